"""`cosmos3 recipes validate`: measure a recipe against its baseline on the same device, and write the record."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import RunError
from . import record as records
from . import verdict as verdicts
from . import worker
from .recipe import Recipe
from .settle import BASELINE, CANDIDATE, EXACT, Settled, check_expect, settle

if TYPE_CHECKING:
    from torch import Tensor

    from ..plan import Plan

JOBS = {"baseline": BASELINE, "restart": BASELINE, "candidate": CANDIDATE, "exact": EXACT}
"""Each measurement, a process of its own, and what it runs."""


def validate(
    recipe: Recipe,
    *,
    random_weights: bool = False,
    launch: Callable[[worker.Job], None] = worker.launch,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure, judge, write the record and the recipe's [validated]; returns the record.

    `random_weights` stand for the checkpoint's; `launch` takes one measurement, `say` is told what is under way. Raises
    InputError before any weight is read for a recipe that cannot run here, and RunError, with nothing written, for a
    run that fails or misses an expectation.
    """
    baseline, candidate = (settle(recipe, role, random_weights=random_weights) for role in (BASELINE, CANDIDATE))
    records.check_writable(recipe)
    backend, device = candidate.plan.backend, candidate.plan.device
    fingerprint = records.fingerprint(backend, device)
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as folder:
        noise = _write_noise(Path(folder), candidate)
        raw = {}
        for name, role in JOBS.items():
            say(f"measuring: {name}")
            out = Path(folder) / name
            out.mkdir()
            middle = None if name == "baseline" else str(Path(folder) / "baseline" / "tensors.safetensors")
            file = str(recipe.path.resolve())
            launch(worker.Job(file, role, random_weights, str(noise), middle, str(out), time.time()))
            raw[name] = json.loads((out / "raw.json").read_text())
        cold, memory = raw["candidate"]["cold"], raw["candidate"]["memory"]
        check_expect(recipe, sum(cold["stages"].values()), memory)
        say("comparing")
        comparisons = compare(Path(folder))
        noise_sha256 = records.digest_file(noise)
    if changed := records.differences(fingerprint, records.fingerprint(backend, device)):
        raise RunError(f"validating {recipe.name}", f"{'; '.join(changed)} while it was measured", "Measure again")
    same = _same(baseline, candidate)
    verdict = verdicts.judge(comparisons, same)
    model = {"name": candidate.model.name, "revision": candidate.model.repository.revision}
    model["weights"] = "random" if random_weights else "checkpoint"
    record = records.seal(
        {
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "noise_sha256": noise_sha256,
            "date": datetime.date.today().isoformat(),
            "state": verdicts.state(verdict, model["weights"]),
            "fingerprint": fingerprint,
            "model": model,
            "request": _portable(candidate.request.to_json()),
            "measurements": raw,
            "comparisons": comparisons,
            "same": same,
            "verdict": verdict,
        }
    )
    records.write(recipe, record)
    return record


def compare(folder: Path) -> dict[str, Any]:
    """`error`: how far each measurement is from the exact baseline, and `noise`: the baseline, repeated and restarted,
    from itself, both as relative L1 of the verdict's quantities. `output`: PSNR (dB, None if equal) and SSIM of the
    decoded frames, restarted and the candidate's, against the baseline's."""
    from safetensors import safe_open

    from . import quality

    def read(name: str, key: str) -> Tensor:
        with safe_open(folder / name / "tensors.safetensors", framework="pt") as file:
            return file.get_tensor(key)

    def distance(name: str, truth: str, suffix: str = "") -> dict[str, float]:
        found = {q: quality.relative_l1(read(name, q + suffix), read(truth, q)) for q in verdicts.QUANTITIES}
        for quantity, value in found.items():
            if not math.isfinite(value):
                then = "Run again with --backend reference to tell which kernel it is"
                raise RunError(f"comparing the {quantity}", "the results hold NaN or infinity", then)
        return found

    def output(name: str) -> dict[str, float | None]:
        frames = read(name, "frames"), read("baseline", "frames")
        return {"psnr_db": quality.psnr(*frames), "ssim": quality.ssim(*frames)}

    return {
        "error": {name: distance(name, "exact") for name in ("baseline", "restart", "candidate")},
        "noise": {"repeat": distance("baseline", "baseline", ".again"), "restart": distance("restart", "baseline")},
        "output": {name: output(name) for name in ("restart", "candidate")},
    }


def _write_noise(folder: Path, settled: Settled) -> Path:
    """The initial noise of the request, drawn once and read by every measurement."""
    from safetensors.torch import save_file

    from ..engine.engine import items_of
    from ..sampling.noise import generator, initial_noise

    items, path = items_of(settled.request, settled.model), folder / "noise.safetensors"
    noise = initial_noise(items, generator(settled.request.seed))
    save_file({item.modality: tensor for item, tensor in zip(items, noise, strict=True)}, path)
    return path


def _same(baseline: Settled, candidate: Settled) -> bool:
    def key(plan: Plan) -> tuple:
        return plan.dtype, [(choice.kernel, choice.format) for choice in plan.choices]

    return key(baseline.plan) == key(candidate.plan)


def _portable(request: dict[str, Any]) -> dict[str, Any]:
    """The request with the hash of its input media instead of their paths on this machine."""
    media = {key: f"sha256:{records.digest_file(Path(request[key]))}" for key in ("image", "video") if request[key]}
    return request | media
