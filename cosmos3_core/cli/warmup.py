"""`cosmos3 warmup`: have every kernel that a run needs compiled and cached, before the first run waits for it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from ..plan.discovery import BUILT_IN
from ..plan.execution import KEPT_SHARE
from ..plan.placement import ALL_RESIDENT
from ..scenarios.branches import NEGATIVE, branches_of
from ..scenarios.defaults import PROFILES
from ..scenarios.fields import FIELDS
from ..settle import Wish, settle
from ..settle.settle import PROMPT_TOKENS
from .terminal import tell

if TYPE_CHECKING:
    import torch

    from ..engine.engine import Engine
    from ..model.packing import Item
    from ..scenarios.request import Request

NEGATIVE_TOKENS = 127
"""Not a multiple of 16, as the prompt is: compilers specialise on that."""
STEPS = 3
"""One runs as it is, one is captured, one is replayed."""
GROUPS = 3
"""The first and the second group of frames are decoded each in its own way, all others as the third."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides a request's kernels, as typed."""

    model: str
    task: str | None
    size: str | None
    frames: int | None
    sound: bool | None
    steps: int | None
    guidance: float | None
    edge: str | None
    blur: str | None
    depth: str | None
    seg: str | None
    wsm: str | None
    control_guidance: float | None
    chunk_frames: int | None
    tile: int | None
    chunk: int | None
    canvas: str | None
    fields: dict[str, Any]
    profile: str | None
    backend: str | None
    kernels: dict[str, str]
    formats: dict[str, str]
    high_precision_steps: str | None
    dtype: str | None
    disabled: tuple[str, ...]

    def wish(self) -> Wish:
        """What is asked for, of a published model without a download."""
        names = [name for name, field in FIELDS.items() if field.option and field.costs]
        typed = {key: value for key in names if (value := getattr(self, key)) is not None}
        return Wish(
            model=self.model,
            described=True,
            given=self.fields | typed,
            partial=True,
            profile=self.profile or PROFILES[0],
            backend=self.backend,
            disabled=self.disabled,
            dtype=self.dtype,
            kernels=self.kernels,
            formats=self.formats,
            high_precision_steps=self.high_precision_steps,
        )


def execute(options: Options, as_json: bool) -> None:
    """Run a request twice on random weights, in part of the layers, and print both runs' seconds. Raises InputError,
    also where no backend is that compiles."""
    settled = settle(options.wish())
    plan = settled.plan
    if plan.backend.name == BUILT_IN and settled.wish.backend is None:
        found = f"no accelerator is here, and eager torch on the CPU ({BUILT_IN}) compiles nothing"
        raise InputError("cosmos3 warmup", found, f"There is nothing to do; `backend` {BUILT_IN} times such a run")
    for line in settled.why.splitlines():
        tell(line)

    from ..checkpoint.random_weights import RandomWeights
    from ..engine.engine import Engine

    # A layer is compiled once, however many there are; with a format, one that is kept belongs to it.
    layers = KEPT_SHARE if settled.execution.kept_layers else 1
    model = replace(settled.model, config=replace(settled.model.config, num_hidden_layers=layers))
    tell(f"warming up {model.name} on {plan.backend.name}, {plan.device.name}")
    weights = RandomWeights(model, plan.backend.torch_device)
    engine = Engine(model, plan, placement=ALL_RESIDENT, weights=weights)
    cold, warm = (_run(engine, settled.request, prompt) for prompt in range(2))
    times = {stage: {"cold": round(cold[stage], 3), "warm": round(warm.get(stage, 0.0), 3)} for stage in cold}
    if as_json:
        print(json.dumps({"plan": plan.to_json(settled.execution.tokens), "seconds": times}, indent=2))
        return
    print(f"{'seconds':<20}{'cold':>8}{'warm':>8}")
    for stage, seconds in times.items():
        print(f"{stage:<20}{seconds['cold']:>8.2f}{seconds['warm']:>8.2f}")


def _zeros(item: Item, request: Request) -> torch.Tensor | None:
    """As much as such a request gives for an item, all zero."""
    import torch

    if item.modality == "action":
        return torch.zeros(len(item.clean), item.shape[1]) if item.clean else None
    length, (width, height) = request.frames if item.control else request.conditioning_pixel_frames, request.seen_size
    return torch.zeros(3, length, height, width) if length else None


def _run(engine: Engine, request: Request, prompt: int) -> dict[str, float]:
    """Seconds by stage of the prompts, a few steps and the first groups of frames. Another number is another `prompt`:
    the engine knows those that it has read."""
    from ..engine.inputs import Inputs
    from ..engine.stages import Watch
    from ..scenarios.items import items_of

    before, request = dict(engine.seconds), request.of_chunk(0)

    def show(stage: str, done: int, total: int) -> None:
        if not done:
            tell(stage)

    watch = Watch(show)
    given = tuple(_zeros(item, request) for item in items_of(request, engine.model.config))
    tokens = [(prompt + index) % engine.model.config.vocab_size for index in range(PROMPT_TOKENS)]
    negative = tokens[:NEGATIVE_TOKENS] if NEGATIVE in branches_of(request.guidance) else []
    context = engine.prepare(request, Inputs(tokens, negative, given), watch)
    # Both kinds of step, whichever of them the guidance interval has first, and in both precisions.
    a16 = engine.plan.a16.policy.a16_steps(request.steps) if engine.plan.a16 else ()
    short = replace(request, steps=min(STEPS + len(a16), request.steps))
    kinds = [replace(short, guidance_interval=None, control_guidance_interval=None)]
    kinds += [replace(kinds[0], guidance=1.0)] if request.guidance_interval else []
    kinds += [replace(kinds[0], control_guidance=1.0)] if request.control_guidance_interval else []
    states = [engine.begin(context, kind, watch) for kind in kinds]
    for state in states:
        while not state.done:
            engine.step(state)
    states.clear()  # the tower, and what was captured and is not kept, go with the last state that holds them
    for _ in engine.finish(state, "sound") if request.sound else ():
        pass
    for _ in islice(engine.finish(state), GROUPS):
        pass
    spent = {stage: seconds - before.get(stage, 0.0) for stage, seconds in engine.seconds.items()}
    return {stage: seconds for stage, seconds in spent.items() if seconds}
