"""Runs that the memory does not suffice for: refused before a weight is read, or stopped while they run."""

from __future__ import annotations

import math
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from ..contract import InputError, RunError
from ..plan.cost.placing import lack
from ..plan.cost.stages import OVERHEAD_BYTES
from ..plan.cost.units import gib
from ..plan.placement import ALL_STAGED, Placement, candidates

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..sampling.state import State
    from ..settle import Settled

TILE = 256
"""Pixels, to propose where memory does not suffice for the decode."""


def refusal(settled: Settled, *, stopped: bool = False, placeable: bool = True) -> InputError | None:
    """Of a run that does not fit in the device's memory, with the nearest one that does; None where it fits. A
    `stopped` run has settled all but the tile and the placement, which is not everywhere `placeable`."""
    if settled.fits:
        return None
    request = settled.request
    asked = f"{request.task} {request.width}x{request.height}, {request.frames} frames, on {settled.plan.device.name}"
    changes = [
        one
        for one in settled.nearest()
        if (placeable or "placement" not in one.values) and (not stopped or one.values.keys() == {"tile"})
    ]
    next_step = "Use a smaller model or a larger device (see cosmos3 plan)"
    lower = settled.lower if placeable else None
    if lower == ALL_STAGED and settled.wish.resident:
        next_step = "Load the model with `resident` False, which fits"
    elif lower:
        next_step = f"Place it by `placement` {lower}, which fits"
    elif changes:
        instead = " in the place of the placement you named" if "placement" in changes[0].values else ""
        next_step = f"Add {changes[0]}{instead}, which fits (cosmos3 plan lists other ways)"
    return InputError(f"{settled.model.name}: {asked}", settled.lack, f"{next_step}, or `anyway` to try it as it is")


def crowded(settled: Settled, engine: Engine) -> InputError | None:
    """Of a run for which other processes leave too little of the device, with the placement that fits in what is left.
    None where they leave enough, and on a device that has the host's memory, of which more gets free as it is asked
    for."""
    import torch

    memory, device, worst = engine.ops.memory, torch.device(engine.device), settled.worst
    if device.type == "cpu" or settled.plan.device.unified:
        return None
    total, left = memory.total(device), memory.free(device) + (memory.used(device).reserved or 0)
    here = min(total, left + OVERHEAD_BYTES)  # the plan counts this process's context, which is not free any more
    if worst.peak <= here:
        return None
    asked = f"{settled.request.task} on {settled.plan.device.name}"
    found = f"its stage {worst.name!r} takes {gib(worst.peak)}, and other processes hold {gib(total - left)}"
    lower = _lower(settled, here)
    next_step = f"Place it by `placement` {lower}, which fits beside them" if lower else "Wait for them, or end them"
    return InputError(
        f"{settled.model.name}: {asked}", f"{found} of {gib(total)}", f"{next_step}, or `anyway` to try it as it is"
    )


def out_of_memory(error: BaseException, engine: Engine, settled: Settled, state: State | None) -> RunError:
    """What to say of a run that the device's memory ran out for: what held it, and where weights could lie instead. All
    that the work in hand has allocated is freed; the run's `state` is as it was."""
    import torch

    said = ". ".join(str(error).split(". ")[:2])
    traceback.clear_frames(error.__traceback__)  # whose locals are the tensors that it worked with
    memory, device, request = engine.ops.memory, torch.device(engine.device), settled.request
    engine.give_back()
    total, reserved = memory.total(device), memory.used(device).reserved
    name = engine.begun
    found, next_step = said, "cosmos3 plan says what fits"
    if reserved is not None:
        stages = {one.name: one for one in settled.estimate.stages}
        if name not in stages:  # a component is being loaded
            name = "read prompts" if state is None else "decode" if state.done else "steps"
        stage = stages.get(name, settled.worst)
        parts = {"weights": stage.weights, "text K/V": stage.text_kv, "latents": stage.latents}
        parts |= {"activations": stage.activations, "what is kept": stage.kept}
        counted = ", ".join(f"{part} {gib(size)}" for part, size in parts.items() if size)
        others = max(0, total - memory.free(device) - reserved)
        found += f". By the plan, {stage.name!r} holds {counted}; other processes and drivers hold {gib(others)}"
        found += f" of {gib(total)}"
        room = min(total - others, settled.plan.device.memory)
        if room == settled.plan.device.memory:  # and yet it did not suffice
            room = math.ceil(0.9 * room)
        if (lower := _lower(settled, room)) is not None:
            next_step = f"`placement` {lower} takes less, also with `resume`; {next_step}"
    tile, larger_side = request.tile or math.inf, max(request.width, request.height)
    if "load vae decoder" in engine.seconds and TILE < min(tile, larger_side):
        next_step += f"; `tile` {TILE} makes the decode smaller, also with `resume`"
    return RunError(f"running on {engine.plan.device.name}", found, next_step)


def _lower(settled: Settled, room: int) -> Placement | None:
    """The first placement that takes less than the run's and fits in so many bytes."""
    estimate, here = settled.estimate, settled.room._replace(device=room)
    for one in candidates(False, {}, unified=settled.plan.device.unified):
        other = replace(estimate, placement=one)
        if other.peak < estimate.peak and not lack(other, here):
            return one
    return None
