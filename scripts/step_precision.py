"""How far the embedded model's velocities are from bf16's in a few quantization formats, with activations in 16 bits in
the first and the last steps and in the text tower, and without. On the reference rows, on the CPU:

python scripts/step_precision.py          # writes scripts/step_precision.json, of which scripts/pages.py makes a table

Each run of bf16 is followed, and at each of its states all others predict: no step inherits another's error. Beside it
each plan makes a run of its own from the same noise, whose final latents are compared.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.checkout import build_version
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.quant.steps import StepPolicy
from cosmos3_core.settle import Wish, ground_of, settle

RESULT = Path(__file__).with_suffix(".json")
FORMATS = ("fp8", "int8", "w4a8", "mxfp4")
POLICY = "3,3"
"""That of NVIDIA's `fp8` revisions."""
PROMPTS = ("a red ball", "a blue square moves to the right", "two green triangles")
STEPS, SIZE = 20, "128x128"
Key = tuple[str, str]
EXACT: Key = ("none", "none")


def engines() -> dict[Key, Engine]:
    """By format and policy; bf16 is EXACT."""
    found = {EXACT: engine({}, None)}
    for name in FORMATS:
        for steps in ("none", POLICY):
            found[name, steps] = engine({"pack_linear": name}, steps)
    return found


def engine(formats: Mapping[str, str], steps: str | None) -> Engine:
    ground = ground_of(Wish(model="embedded", backend="reference", formats=formats, high_precision_steps=steps))
    return Engine(ground.model, ground.plan, placement=ALL_RESIDENT)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def measured(made: Mapping[Key, Engine], prompt: str, seed: int) -> dict[Key, dict[str, Any]]:
    """Errors of one prompt: of the velocity by step, and of the final latents."""
    given = {"prompt": prompt, "frames": 1, "size": SIZE, "steps": STEPS, "seed": seed}
    request = settle(Wish(model="embedded", backend="reference", given=given)).request
    states = {key: one.start(request) for key, one in made.items()}
    exact, leading = made[EXACT], states.pop(EXACT)
    followers = {key: replace(state) for key, state in states.items()}
    errors: dict[Key, list[float]] = {key: [] for key in states}
    while not leading.done:
        (velocity,) = exact.predict([leading])
        for key, state in followers.items():
            state.x, state.index = leading.x, leading.index
            errors[key].append(error(made[key].predict([state])[0], velocity))
        exact.advance(leading, velocity)
    for key, state in states.items():
        while not state.done:
            made[key].step(state)
    return {key: {"velocity": errors[key], "latents": error(state.x, leading.x)} for key, state in states.items()}


def mean(values: Sequence[float]) -> float:
    return float(f"{sum(values) / len(values):.4g}")


def summary(cases: Sequence[Mapping[Key, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each format and policy: means over the prompts, of the policy's steps and of the others."""
    named = set(StepPolicy.typed(POLICY).a16_steps(STEPS))
    rows = []
    for key in cases[0]:
        by_step = [mean(values) for values in zip(*(case[key]["velocity"] for case in cases), strict=True)]
        row: dict[str, Any] = {"format": key[0], "steps": key[1]}
        row["first and last"] = mean([value for index, value in enumerate(by_step) if index in named])
        row["others"] = mean([value for index, value in enumerate(by_step) if index not in named])
        row["by step"] = by_step
        rows.append(row | {"latents by prompt": [mean([case[key]["latents"]]) for case in cases]})
    return rows


def main() -> None:
    torch.set_num_threads(1)
    begin = time.monotonic()
    made = engines()
    rows = summary([measured(made, prompt, seed) for seed, prompt in enumerate(PROMPTS, 1)])
    about = {"model": "embedded", "size": SIZE, "steps": STEPS, "policy": POLICY, "prompts": list(PROMPTS)}
    machine = {"cosmos3": build_version(), "torch": torch.__version__, "arch": platform.machine()}
    machine["seconds"] = round(time.monotonic() - begin)
    RESULT.write_text(json.dumps(about | {"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print({name: value for name, value in row.items() if name != "by step"})


if __name__ == "__main__":
    main()
