"""Write the recipes of NVIDIA's cards of 8 to 32 GB, each from what `cosmos3 plan` says of it, and from what came of it
in its memory on a larger GPU: none of them was run on its card.

python scripts/card_recipes.py          # or with --check: write nothing, name the recipes that are out of date
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "backends" / name) for name in ("cuda", "triton")]

from cosmos3_cuda.plugin import cosmos3_backend  # noqa: E402  # a checkout's, which need not be installed

from cosmos3_core.contract import Device  # noqa: E402
from cosmos3_core.plan.cost.units import GIB, ceiling_of, gib  # noqa: E402
from cosmos3_core.settle import Settled, Wish, settle  # noqa: E402

FOLDER = ROOT / "backends" / "cuda" / "cosmos3_cuda" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"
BACKEND = cosmos3_backend()
CARDS = {"RTX 3060": "int8", "RTX 4060": "fp8", "RTX 4060 Ti": "fp8", "RTX 4090": "fp8", "RTX 5090": "fp8"}
"""The format that the tensor cores of each multiply fastest, among those whose errors are small."""
MODELS = {"nano": "nvidia/Cosmos3-Nano", "super": "nvidia/Cosmos3-Super"}
ENOUGH = 1 << 40
"""Bytes of the host's memory: how much of it a run takes is said."""


@dataclass(frozen=True)
class Work:
    """A picture (one frame) or a video."""

    task: str
    size: str
    frames: int
    steps: int
    ops: tuple[str, ...]
    """Those in the card's format."""

    def __str__(self) -> str:
        what = f"{self.frames} frames at {self.size}" if self.frames > 1 else f"a picture of {self.size}"
        return f"{what}, {self.steps} steps"


WORKS = (
    Work("t2i", "1024x1024", 1, 50, ("pack_linear",)),
    Work("t2v", "832x480", 93, 35, ("pack_linear", "attention")),
    Work("t2v", "1280x720", 189, 35, ("pack_linear", "attention")),
)


def planned(device: Device, model: str, work: Work, format: str) -> Settled:
    """On a machine with that card, torch and Triton, and no other kernel library."""
    given = {"task": work.task, "size": work.size, "steps": work.steps}
    given |= {"frames": work.frames} if work.frames > 1 else {}
    wish = Wish(
        model=model,
        described=True,
        partial=True,
        chooses=True,
        given=given,
        formats=dict.fromkeys(work.ops, format),
        host_memory=ENOUGH,
    )
    with patch("importlib.util.find_spec", lambda package: package if package == "triton" else None):
        return settle(wish, on=(BACKEND, device))


def estimated(settled: Settled) -> str:
    """Where the parts lie and what it comes to, in one sentence."""
    estimate = settled.estimate
    seconds = estimate.seconds(ceiling_of(BACKEND, settled.plan.device))
    assert seconds is not None, "the device's rates are known"
    if not settled.fits:
        return f"by the estimate of cosmos3 plan its stage {settled.worst.name} takes {gib(settled.worst.peak)}"
    tile = f", the decode in tiles of {estimate.job.tile}" if estimate.job.tile else ""
    host = f", {gib(estimate.host)} of the host's memory" if estimate.host else ""
    found = f"nobody has run it; cosmos3 plan estimates, for {settled.placement}{tile}, {gib(estimate.peak)}{host} and "
    return found + f"{seconds['total']:,.0f} s without loading, {seconds['step']:.1f} s a step"


def rehearsed(settled: Settled) -> dict[str, str]:
    """What came of recipes in their cards' memory, by name (`benchmarks.residency --recipe`), where they were placed as
    this one is today."""
    today = settled.placement.generation, settled.estimate.job.tile
    found = {}
    for path in sorted(RESULTS.glob("residency-cards-*.json")):
        result = json.loads(path.read_text("utf-8"))
        for name, job in result["jobs"].items():
            if (job["job"]["generation"], job["job"]["tile"]) != today:
                continue
            stages = job["stages"]
            reserved = max(stage["reserved"] for stage in stages.values())
            where = f"under a limit of {job['job']['limit_gib']:g} GiB on an {result['environment']['device']}"
            step, decode = (_seconds(stages[stage]["seconds"]) for stage in ("steps", "decode"))
            took = f"it reserved {gib(reserved)} and took {step} a step and {decode} for the decode"
            found[name] = f"rehearsed {where} with that GPU's kernels: {took}; on the card "
    return found


def _seconds(count: float) -> str:
    return f"{count:.1f} s" if count >= 1 else f"{1000 * count:.0f} ms"


def recipe(device: Device, card: str, model: str, work: Work) -> tuple[str, str]:
    """Its file's name and text."""
    format, memory = CARDS[card], device.memory // GIB
    settled = planned(device, model, work, format)
    formats = f"-{format}" + f"-attn{format}" * ("attention" in work.ops)
    name = f"{model}-{work.task}-{work.size}{formats}-{card.lower().replace(' ', '')}x1"
    row = {choice.op: choice.kernel.name for choice in settled.plan.choices}
    commands = [
        f"# On the card:               cosmos3 recipes validate {name}",
        f"# In its memory on an H200:  python -m benchmarks.residency --backend cuda --recipe {name}",
    ]
    lines = [
        "# Written by scripts/card_recipes.py.",
        *commands * settled.fits,
        f'title = "{MODELS[model].partition("/")[2]} on {card} in {format.upper()}: {work}"',
        "",
        "[run]",
        f'model = "{MODELS[model]}"',
        f'task = "{work.task}"',
        f'size = "{work.size}"',
        *[f"frames = {work.frames}"] * (work.frames > 1),
        f"steps = {work.steps}",
        'backend = "cuda"',
        'dtype = "bfloat16"',
        "",
        "[run.formats]",
        *(f'{op} = "{format}"' for op in work.ops),
        "",
        "[device]",
        f'name = "{card}"',
        f'arch = "{device.arch}"',
        "count = 1",
        f"memory_gib = {memory}",
        "",
        "[plan]",
        *(f'{op} = "{row[op]}"' for op in ("attention", "rms_norm", "norm_rope", "project", "finish")),
        "",
    ]
    if settled.fits:
        lines += ["[expect]", f"peak_device_gib = {math.ceil(10 * settled.estimate.peak / GIB) / 10}", ""]
    there = rehearsed(settled).get(name, "")
    state = "unsupported" if not settled.fits else "rehearsed" if there else "help wanted"
    return name, "\n".join([*lines, "[known]", f'state = "{state}"', f'reason = "{there}{estimated(settled)}"', ""])


def recipes() -> Iterator[tuple[Path, str]]:
    """Every file and its text, but for those that hold a record by now."""
    for card in CARDS:
        device = next(one for one in BACKEND.known if one.name.endswith(card))
        for model in MODELS:
            for work in WORKS:
                name, text = recipe(device, card, model, work)
                path = FOLDER / f"{name}.toml"
                if not path.exists() or "[validated]" not in path.read_text("utf-8"):
                    yield path, text


def main() -> None:
    old = [(path, text) for path, text in recipes() if not path.exists() or path.read_text("utf-8") != text]
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(f"{path.name} is out of date: type python scripts/card_recipes.py" for path, _ in old) or 0)
    for path, text in old:
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
