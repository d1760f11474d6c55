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
from cosmos3_core.plan.placement import ALL_STAGED, Placement
from cosmos3_core.sampling.state import State
from cosmos3_core.settle import Settled, Wish, settle

BOUND = 1e-5
"""Of a pass in fp32: what a ring sums in another order."""
COMMON = {"prompt": "a cup on a table, and a robot", "steps": 2, "seed": 4}
TEXTS = {"guidance": 3.0, "negative_prompt": "blur"}
"""Two branches of unequal length."""


def clip(path: Path, frames: int, seed: int) -> str:
    """Pictures of noise, 32 x 144."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 144, 32, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, pixels)
    first.save(path, save_all=True, append_images=others, duration=40, loop=0)
    return str(path)


def requests(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each task one, of nine rows of latents and an odd number of tokens, guided; and some of other kinds: sound of
    197 tokens, a branch alone, a control whose guidance is all that there is."""
    picture = clip(folder / "picture.png", 1, 0)
    edge, depth = (clip(folder / f"{name}.png", 17, seed) for name, seed in (("edge", 1), ("depth", 2)))
    small = COMMON | TEXTS | {"size": "32x144", "frames": 9}
    acting = COMMON | TEXTS | {"domain": "pusht", "chunk": 16, "state": [0.5, -0.25]}
    transfer = small | {"chunk_frames": 9, "control_guidance": 2.0, "edge": edge}
    tasks = {
        "t2i": small | {"frames": 1},
        "edit": small | {"image": picture, "frames": 1},
        "t2v": small,
        "i2v": small | {"image": picture},
        "v2v": small | {"video": edge},
        "extend": small | {"extend": edge},
        "keyframes": small | {"keyframe": {"0": picture, "-1": picture}},
        "transfer": transfer | {"depth": depth},
        "policy": acting | {"image": picture},
        "forward-dynamics": acting | {"image": picture, "actions": [[0.1 * i, 0.5] for i in range(16)]},
        "inverse-dynamics": acting | {"video": edge},
        "video-policy": acting | {"video": edge},
    }
    return {name: given | {"task": name} for name, given in tasks.items()} | {
        "sound": small | {"image": picture, "fps": 1.1422, "sound": True},
        "one branch": small | {"task": "t2v", "guidance": 1.0, "negative_prompt": None},
        "one control": transfer | {"guidance": 1.0, "negative_prompt": None},
    }


def settled(
    given: dict[str, Any],
    parallel: str | None = None,
    model: str = str(TINY_MODEL),
    format: str = "none",
    placement: str | None = None,
) -> Settled:
    formats = {} if format == "none" else {"pack_linear": format}
    wish = Wish(model=model, given=given, backend="reference", dtype="float32", formats=formats, parallel=parallel)
    return settle(replace(wish, placement=placement))


def velocity(one: Settled, placement: Placement = ALL_STAGED) -> list[torch.Tensor]:
    """Of the second step, guidance included; and where rows are shared out, the frames. Processes decide together
    whether to stop, as in `cosmos3 run`."""
    engine = Engine(one.model, one.plan, placement=placement)
    watch = Watch(cancel=lambda: bool(from_first(False))) if one.plan.layout.size > 1 else None
    state = engine.start(one.request, watch=watch)
    return [engine.predict([engine.step(state)])[0].clone(), *([_decoded(engine, state)] if _by_rows(one) else [])]


def coded(one: Settled) -> list[torch.Tensor]:
    """The frames that the noise decodes to, before they are rounded, and what is given, encoded."""
    engine = Engine(one.model, one.plan)
    state = engine.start(one.request)
    clean = state.context.clean
    return [_decoded(engine, state), *([] if clean is None else [clean])]


def _by_rows(one: Settled) -> bool:
    return one.plan.layout.vae > 1 or one.plan.layout.size == 1


def _decoded(engine: Engine, state: State) -> torch.Tensor:
    state.index = state.steps
    return engine.tail(state, state.request.frames).flatten()


def of_processes(
    asked: Sequence[Settled], found: Callable[[Settled], list[torch.Tensor]] = velocity
) -> list[list[torch.Tensor]]:
    """What each of these comes to, all on one group of processes, which have to find the same."""
    (count,) = {one.plan.layout.size for one in asked}
    each = together(count, lambda _: [found(one) for one in asked])
    first = one_of(each)
    for other in each[1:]:
        for one, two in zip(first, other, strict=True):
            assert all(map(torch.equal, one, two)), "processes differ"
    return list(first)


def error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest of what was found, relative."""
    pairs = zip(found, expected[: len(found)], strict=True)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)
