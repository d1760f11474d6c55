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
from .settle import BASELINE, CANDIDATE, Settled, check_expect, settle

if TYPE_CHECKING:
    from torch import Tensor

    from ..plan import Plan

JOBS = {"baseline": BASELINE, "restart": BASELINE, "candidate": CANDIDATE}
"""Each measurement, a process of its own, and what it runs."""
PAIRS = {
    "repeat": ("baseline", 1),
    "restart": ("restart", 0),
    "candidate": ("candidate", 0),
}
"""What is compared with the baseline's first results: a measurement and which of its repetitions."""


def validate(
    recipe: Recipe,
    *,
    launch: Callable[[worker.Job], None] = worker.launch,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure, judge, write the record and the recipe's [validated]; returns the record.

    Raises InputError before any weight is read for a recipe that cannot run here, and RunError, with nothing written,
    for a run that fails or misses an expectation. `launch` takes one measurement, `say` is told what is under way.
    """
    baseline, candidate = settle(recipe, BASELINE), settle(recipe)
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
            launch(worker.Job(str(recipe.path.resolve()), role, str(noise), middle, str(out), time.time()))
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
    record = records.seal(
        {
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "noise_sha256": noise_sha256,
            "date": datetime.date.today().isoformat(),
            "state": verdicts.state(verdict),
            "fingerprint": fingerprint,
            "model": {"name": candidate.model.name, "revision": candidate.model.repository.revision},
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
    """Each of `PAIRS` against the baseline: cosine and relative L1 of the velocities, relative L1 of the short
    trajectory's latents, PSNR (dB, None if equal) and SSIM of the decoded frames."""
    from safetensors import safe_open

    def read(name: str, repeat: int) -> dict[str, Tensor]:
        with safe_open(folder / name / "tensors.safetensors", framework="pt") as file:
            keys = ("velocity_first", "velocity_middle", "short_trajectory", "frames")
            return {key: file.get_tensor(f"{key}.{repeat}") for key in keys}

    baseline = read("baseline", 0)
    return {name: _compare_one(read(*which), baseline) for name, which in PAIRS.items()}


def _compare_one(result: dict[str, Tensor], baseline: dict[str, Tensor]) -> dict[str, Any]:
    from . import quality

    found: dict[str, dict[str, float | None]] = {}
    for key in verdicts.MOST_EXCESS:
        found[key] = {"relative_l1": quality.relative_l1(result[key], baseline[key])}
        if key.startswith("velocity"):
            found[key]["cosine"] = quality.cosine(result[key], baseline[key])
    frames = result["frames"], baseline["frames"]
    found["output"] = {"psnr_db": quality.psnr(*frames), "ssim": quality.ssim(*frames)}
    for key, metrics in found.items():
        if not all(value is None or math.isfinite(value) for value in metrics.values()):
            then = "Run again with --backend reference to tell which kernel it is"
            raise RunError(f"comparing the {key}", "the results hold NaN or infinity", then)
    return found


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
