"""`cosmos3 recipes validate`: measure a recipe against its baseline on the same device, and write the record."""

from __future__ import annotations

import base64
import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.repository import EMBEDDED
from ..contract import InputError, RunError
from ..files.digests import sha256_file
from ..files.locks import workspace
from ..plan import Plan
from . import record as records
from . import verdict as verdicts
from . import worker
from .embedded import measures
from .embedded.measures import Depth
from .evaluated import DEPTH
from .fingerprint import chosen, differences, fingerprint
from .recipe import Recipe, files_of, put
from .settle import (
    BASELINE,
    CANDIDATE,
    EVALUATION,
    EXACT,
    FORMATS,
    Settled,
    check_expect,
    plan_of_embedded,
    planned,
    settle,
)

if TYPE_CHECKING:
    from torch import Tensor


TENSORS = "tensors.safetensors"
"""What a measurement computed."""
NOISE = "noise.safetensors"
"""The initial noise of all measurements."""
Launch = Callable[[worker.Job, Callable[[str], None]], None]
SHARED = {"baseline": BASELINE, "restart": BASELINE, "exact": EXACT}
"""What recipes for one request have in common: measurements, each a process of its own, and what each runs."""


@dataclass(frozen=True)
class Question:
    """A recipe and what it comes to on this machine, as its baseline and as it is written. `embedded` is its plan for
    the model inside the package, or why one of its rows does not serve that. `before` is the fingerprint at the
    beginning, of all that is going to be measured."""

    recipe: Recipe
    baseline: Settled
    candidate: Settled
    embedded: Plan | str
    before: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe, random_weights: bool) -> Question:
        """Raises InputError for a recipe that cannot run here, or whose record cannot be written."""
        baseline, candidate = (settle(recipe, role, random_weights=random_weights) for role in (BASELINE, CANDIDATE))
        records.check_both_writable(recipe)
        embedded: Plan | str
        try:
            embedded = plan_of_embedded(candidate.plan)
        except InputError as error:
            embedded = f"{error.asked}: {error.found}".replace("`", "")
        return cls(recipe, baseline, candidate, embedded, _fingerprint(candidate, embedded))

    def common(self) -> str:
        """The same for recipes that are held against the same measurements."""
        request, plan = self.candidate.request.to_json(), self.baseline.plan.to_json()
        return json.dumps([self.candidate.model.name, request, plan], sort_keys=True)

    def changed(self) -> list[str]:
        """What changed since the beginning, in words."""
        return differences(self.before, _fingerprint(self.candidate, self.embedded))


def _fingerprint(candidate: Settled, embedded: Plan | str) -> dict[str, Any]:
    plan, ran = candidate.plan, candidate.model.name == EMBEDDED or not isinstance(embedded, str)
    return fingerprint(plan.backend, plan.device, chosen(plan), embedded=ran)


def validate(
    recipes: Sequence[Recipe],
    *,
    random_weights: bool = False,
    launch: Launch = worker.launch,
    say: Callable[[str], None] = lambda line: None,
    evaluations: dict[str, dict[str, Any]] | None = None,
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Measure, judge, write the record and the recipe's [validated], recipe by recipe; yields each with its record.
    Recipes for one request, say in bf16 and in FP8, share what is measured of eager torch, and those of one plan the
    evaluation of the embedded model with it.

    `random_weights` stand for the checkpoint's; `launch` takes one measurement, `say` is told what is under way;
    `evaluations` are those of calls before, by plan, and those of this one are added. Raises
    InputError before any weight is read if one of the recipes cannot run here, and RunError, with nothing written of
    that recipe, for a run that fails or misses an expectation.
    """
    groups: dict[str, list[Question]] = {}
    for recipe in recipes:
        question = Question.of(recipe, random_weights)
        groups.setdefault(question.common(), []).append(question)
    measuring = Measuring(random_weights, launch, say, {} if evaluations is None else evaluations)
    for questions in groups.values():
        yield from _answer(questions, measuring)


@dataclass(frozen=True)
class Measuring:
    """How processes are launched, and what the embedded model came to in those before, by plan."""

    random_weights: bool
    launch: Launch
    say: Callable[[str], None]
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)

    def measured(self, recipe: Recipe, name: str, role: str, folder: Path, depth: Depth | None = None) -> Any:
        """One process, in a folder of this `name`; returns what it wrote."""
        out, noise = folder / name, folder / NOISE
        out.mkdir(exist_ok=True)
        middle = None if name == "baseline" else str(folder / "baseline" / TENSORS)
        file = str(recipe.path.resolve())
        job = worker.Job(file, role, self.random_weights, str(noise), middle, str(out), time.time(), depth)
        self.launch(job, self.say)
        return json.loads((out / "raw.json").read_text())

    def evaluated(self, question: Question, folder: Path) -> dict[str, Any]:
        """What the embedded model comes to with the recipe's plan, each plan once, or why it is not run."""
        recipe, plan = question.recipe, question.embedded
        if isinstance(plan, str):
            self.say(f"not evaluating the embedded model: {plan}")
            return {"not_run": plan}
        key = json.dumps([plan.backend.name, planned(plan)], sort_keys=True)
        if key not in self.evaluations:
            depth = measures.depths()[DEPTH]
            runs = sum(depth.runs.values())
            self.say(f"evaluating the embedded model with the plan of {recipe.name}: {runs} runs, minutes on a CPU")
            found = self.measured(recipe, "evaluation", EVALUATION, folder, depth)
            self.say(f"evaluated in {found['seconds']:.0f} s: {'all' if found['met'] else 'not all'} bounds are met")
            self.evaluations[key] = {"depth": DEPTH, **asdict(depth), **found}
        return self.evaluations[key]


def _answer(questions: Sequence[Question], measuring: Measuring) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    first = questions[0]
    with workspace() as folder:
        _write_noise(folder / NOISE, first.candidate)

        def measure(recipe: Recipe, job: str, role: str) -> dict[str, Any]:
            measuring.say(f"measuring {recipe.name}: {job}")
            found: dict[str, Any] = measuring.measured(recipe, job, role, folder)
            return found

        shared: dict[str, Any] = {}
        for question in questions:
            recipe, evaluation = question.recipe, measuring.evaluated(question, folder)
            shared = shared or {job: measure(first.recipe, job, role) for job, role in SHARED.items()}
            raw = shared | {"candidate": measure(recipe, "candidate", CANDIDATE)}
            if recipe.formats:
                raw["formats"] = measure(recipe, "formats", FORMATS)
            cold, memory = raw["candidate"]["cold"], raw["candidate"]["memory"]
            check_expect(recipe, sum(cold["stages"].values()), memory)
            measuring.say(f"comparing {recipe.name}")
            entries: dict[str, Any] = {"noise_sha256": sha256_file(folder / NOISE), "measurements": raw}
            entries |= {"comparisons": compare(folder, recipe), "evaluation": evaluation}
            entries["samples"] = {name: sample(folder / name / TENSORS) for name in raw}
            if changed := question.changed():
                found = f"{'; '.join(changed)} while it was measured"
                raise RunError(f"validating {recipe.name}", found, "Measure again")
            drawn = worker.are_random(question.candidate.model, measuring.random_weights)
            record = _record(question, {"weights": "random" if drawn else "checkpoint"}, entries)
            records.write(recipe, record)
            yield recipe, record


def _record(question: Question, model: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What was `found`, the verdict on it and what it was found of."""
    recipe, candidate, same = question.recipe, question.candidate, records.same(found["measurements"])
    verdict = verdicts.judge(found["comparisons"], same, found["evaluation"])
    origin = {"name": candidate.model.name, "revision": candidate.model.repository.revision}
    return records.seal(
        {
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "date": datetime.date.today().isoformat(),
            "state": verdicts.state(verdict, model["weights"]),
            "model": origin | model,
            "request": _portable(candidate.request.to_json()),
            "same": same,
            "verdict": verdict,
            "fingerprint": question.before,
            **found,
        }
    )


def compare(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """`error`: how far each measurement is from the exact baseline, the one in the recipe's formats included if it has
    any, and `noise`: the baseline, repeated and restarted, from itself, both as relative L1 of the verdict's
    quantities. `output`: PSNR (dB, None if equal) and SSIM of the decoded frames, restarted and the candidate's,
    against the baseline's; of sound the signal-to-noise ratio (dB), of actions the relative L1 ("error")."""
    from safetensors import safe_open

    from . import quality

    def read(name: str, key: str) -> Tensor:
        with safe_open(folder / name / TENSORS, framework="pt") as file:
            return file.get_tensor(key)

    def distance(name: str, truth: str, suffix: str = "") -> dict[str, float]:
        found = {q: quality.relative_l1(read(name, q + suffix), read(truth, q)) for q in judged}
        for quantity, value in found.items():
            if not math.isfinite(value):
                next_step = "Run again with `backend` reference to tell which kernel it is"
                raise RunError(f"comparing the {quantity}", "the results hold NaN or infinity", next_step)
        return found

    def output(name: str) -> dict[str, float | None]:
        made = {tensor: (read(name, tensor), read("baseline", tensor)) for tensor in records.outputs_of(recipe)}
        found: dict[str, float | None] = {
            records.OUTPUTS[tensor]: measures[tensor](*two) for tensor, two in made.items()
        }
        return found | {"ssim": quality.ssim(*made["frames"])}

    measures = {"frames": quality.psnr, "sound": quality.snr, "actions": quality.relative_l1}
    judged = verdicts.quantities(recipe.made)
    names = ("baseline", "restart", "candidate", *(["formats"] if recipe.formats else []))
    return {
        "error": {name: distance(name, "exact") for name in names},
        "noise": {"repeat": distance("baseline", "baseline", ".again"), "restart": distance("restart", "baseline")},
        "output": {name: output(name) for name in ("restart", "candidate")},
    }


def sample(file: Path) -> dict[str, str]:
    """Of each velocity and trajectory in a measurement's tensors: `records.SAMPLES` elements in float32, the same
    places for all of one size, in base64. A record's errors are recomputed from them."""
    import torch
    from safetensors import safe_open

    found = {}
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():
            if name.partition(".")[0] in verdicts.quantities(verdicts.MODALITIES):
                flat = tensors.get_tensor(name).float().flatten()
                places = torch.randint(len(flat), (records.SAMPLES,), generator=torch.Generator().manual_seed(0))
                found[name] = base64.b64encode(flat[places].numpy().astype("<f4").tobytes()).decode()
    return found


def _write_noise(path: Path, settled: Settled) -> None:
    """The initial noise of the request, drawn once and read by every measurement."""
    from safetensors.torch import save_file

    from ..sampling.noise import generator, initial_noise
    from ..scenarios.items import items_of

    request = settled.request.of_chunk(0)
    items = [item for item in items_of(request, settled.model.config) if not item.control]
    noise = initial_noise(items, generator(request.seed))
    save_file({item.modality: tensor for item, tensor in zip(items, noise, strict=True)}, path)


def _portable(request: dict[str, Any]) -> dict[str, Any]:
    """The request with the hash of its input files instead of their paths on this machine."""
    return put(request, {label: records.media_digest(Path(path)) for label, path in files_of(request).items()})
