"""Two steps of the tiny model on one process and on several: what tests/test_parallel.py and tests/parallel compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from processes import one_of, together
from tiny_model import TINY_MODEL

from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.stages import Watch
from cosmos3_core.parallel.ranks import from_first
from cosmos3_core.plan.mesh import typed
from cosmos3_core.plan.placement import ALL_STAGED, Placement
from cosmos3_core.settle import Settled, Wish, settle

BOUND = 1e-5
"""Of a pass in fp32: what a ring sums in another order."""
COMMON = {"prompt": "a cup on a table, and a robot", "steps": 3, "seed": 4}
TEXTS = {"guidance": 3.0, "negative_prompt": "blur"}
"""Two branches of unequal length."""


def clip(path: Path, frames: int, seed: int) -> str:
    """Pictures of noise, 80 x 48."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 48, 80, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, pixels)
    first.save(path, save_all=True, append_images=others, duration=40, loop=0)
    return str(path)


def requests(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each kind of item and of attention one, with odd numbers of tokens."""
    picture = clip(folder / "picture.png", 1, 0)
    controls = {"edge": clip(folder / "edge.png", 5, 1), "depth": clip(folder / "depth.png", 5, 2)}
    small = COMMON | {"size": "80x48"}
    policy = {"task": "policy", "image": picture, "domain": "pusht", "chunk": 8}
    return {
        "t2i": small | TEXTS | {"frames": 1, "task": "t2i"},
        "t2v": small | {"frames": 5, "guidance": 1.0},
        "sound": small | TEXTS | {"frames": 9, "sound": True},
        "policy": small | TEXTS | policy,
        "transfer": small | TEXTS | controls | {"frames": 5, "control_guidance": 2.0},
        "v2v": small | {"task": "v2v", "video": controls["edge"], "frames": 9, "guidance": 1.0},
        "one control": small | {"edge": controls["edge"], "frames": 5, "guidance": 1.0, "control_guidance": 2.0},
    }


def settled(
    given: dict[str, Any], parallel: str | None = None, model: str = str(TINY_MODEL), format: str = "none"
) -> Settled:
    formats = {} if format == "none" else {"pack_linear": format}
    wish = Wish(model=model, given=given, backend="reference", dtype="float32", formats=formats, parallel=parallel)
    return settle(wish)


def velocity(one: Settled, placement: Placement = ALL_STAGED) -> torch.Tensor:
    """Of the second step, guidance included. Processes decide together whether to stop, as in `cosmos3 run`."""
    engine = Engine(one.model, one.plan, placement=placement)
    watch = Watch(cancel=lambda: bool(from_first(False))) if one.plan.layout.size > 1 else None
    return engine.predict([engine.step(engine.start(one.request, watch=watch))])[0].clone()


def coded(one: Settled) -> torch.Tensor:
    """What is given, encoded, and the frames that the noise decodes to, before they are rounded."""
    engine = Engine(one.model, one.plan)
    state = engine.start(one.request)
    state.index = state.steps
    frames = engine.tail(state, one.request.frames).flatten()
    return frames if state.context.clean is None else torch.cat([state.context.clean, frames])


def of_processes(
    given: Sequence[Settled], layouts: Sequence[str], found: Callable[[Settled], torch.Tensor] = velocity
) -> list[torch.Tensor]:
    """What each of these requests comes to in the layout beside it, all on one group of processes, which have to find
    the same."""
    plans = [
        one.plan if one.plan.layout.size > 1 else replace(one.plan, layout=typed(layout))
        for one, layout in zip(given, layouts, strict=True)
    ]
    (count,) = {plan.layout.size for plan in plans}

    def work(rank: int) -> list[torch.Tensor]:
        return [found(replace(one, plan=plan)) for one, plan in zip(given, plans, strict=True)]

    each = together(count, work)
    first = one_of(each)
    for other in each[1:]:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True)), "processes differ"
    return list(first)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
