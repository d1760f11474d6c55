"""The forward passes of a generation's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..model.packing import Item, Packing
from ..model.transformer import Branches, GenerationTower, TextContext
from ..parallel.guidance import dealt
from ..parallel.towers import SplitTower
from ..plan.execution import Execution, Pass
from ..sampling.guidance import combined, guided, inside, normalized
from ..sampling.state import Context, State, views
from ..scenarios.branches import PROMPT, UNCONTROLLED, text_of
from .kept import Kept
from .others import Others

Tower = GenerationTower | SplitTower


class Forward:
    """One forward pass of some branches, captured or not. Of the latents of `items` it takes those that the branches
    have; the velocity of the others is zero."""

    def __init__(self, tower: Tower, branches: Branches, items: tuple[Item, ...], captured: bool, a16: bool):
        taken = [items.index(item) for item in branches.packing.items]

        def run(x: Tensor, timestep: Tensor) -> list[Tensor]:
            latents = views(x, items)
            predicted = tower.forward(branches, [latents[i] for i in taken], timestep, a16=a16)
            return [_flat(latents, dict(zip(taken, per_item, strict=True))) for per_item in predicted]

        self._run = tower.ops.capture(run) if captured else run

    def __call__(self, x: Tensor, timestep: Tensor) -> list[Tensor]:
        """(flat fp32 latents, timestep as fp32 [1]), both on the device, to a flat fp32 velocity for each branch. What
        it returns may be overwritten by its next call."""
        return self._run(x, timestep)


def _flat(latents: list[Tensor], predicted: dict[int, Tensor]) -> Tensor:
    parts = [predicted[i] if i in predicted else torch.zeros_like(latent) for i, latent in enumerate(latents)]
    return torch.cat([part.flatten() for part in parts]).float()


class Kind(NamedTuple):
    """What a forward pass is of: of equal kinds one serves for the other. The texts are equal where they are the very
    same: a captured pass reads them where they lie. With `a16` activations stay in 16 bits."""

    items: tuple[Item, ...]
    texts: tuple[TextContext, ...]
    one: Pass
    a16: bool


class Forwards:
    """Forward passes, each kind of them once as long as somebody holds it. Of the captured ones those used last stay
    when nobody does, of so many `rows` in all, and of `texts` alone that stay themselves: a pass holds its texts, which
    may be larger than all that it works in."""

    def __init__(self, rows: int, texts: Callable[[], set[TextContext]]):
        self._texts = texts
        self._held: WeakValueDictionary[Kind, Forward] = WeakValueDictionary()
        self._kept: Kept[Kind, Forward] = Kept(rows)

    def of(self, tower: Tower, whole: Packing, texts: tuple[TextContext, ...], one: Pass, a16: bool) -> Forward:
        """The pass `one` over a packing's items, with a text for each of its branches, in one of two precisions."""
        kind, staying = Kind(whole.items, texts, one, a16), self._texts()
        self._kept.keep_only(lambda kept: staying.issuperset(kept.texts))
        found = self._held.get(kind)
        if found is None:
            if one.captured:
                self._kept.make_room(one.rows)  # before it takes memory of its own
            packing = whole.without_controls(tower.device) if one.branches == (UNCONTROLLED,) else whole
            branches = tower.branches(packing, texts)
            found = self._held[kind] = Forward(tower, branches, whole.items, one.captured, a16)
        if one.captured and staying.issuperset(texts):
            self._kept.keep(kind, found, one.rows)
        return found

    def close(self) -> None:
        """Keep nothing from now on that nobody holds."""
        self._kept.close()


class Passes:
    """The passes of a generation's steps, without guidance and with it, as `execution` has them; each is made when a
    step first needs it. They hold the tower, and the memory of those that are captured, as long as anybody holds
    them. The passes are dealt out to the `others`, if these are there for that."""

    def __init__(
        self,
        tower: Tower,
        context: Context,
        execution: Execution,
        forwards: Forwards,
        others: Others | None = None,
    ):
        self.tower, self.packing, self.execution, self._forwards = tower, context.packing, execution, forwards
        self._others = others
        self._texts = dict(zip(execution.branches, context.texts, strict=True))
        self._made: dict[tuple[Pass, bool], Forward] = {}

    def velocity(self, state: State) -> Tensor:
        """What the solver is handed for the state's next step: flat, fp32 and of its own memory."""
        request, timestep = state.request, state.solver.timesteps[state.index]
        timestep_1 = torch.full((1,), timestep, device=state.x.device)
        with_text = guided(request.guidance, request.guidance_interval, timestep, request.interval_ends)
        passes = self.execution.guided if with_text else self.execution.unguided
        interval, used = request.control_guidance_interval, request.control_guidance != 1
        if used and (interval is None or inside(interval, timestep, request.interval_ends)):
            passes = (*passes, *self.execution.control)
        a16 = self.execution.a16(state.index, state.steps)

        def run(one: Pass) -> list[Tensor]:
            return self._forward(one, a16)(state.x, timestep_1)

        velocities: dict[str, Tensor] = {}
        if self._others and (ranks := self._others.dealt):
            idle = self.tower.sweep if self._others.sharers else _nothing
            velocities = dealt(passes, run, idle, ranks, state.x)
        else:
            for one in passes:
                velocities |= zip(one.branches, run(one), strict=True)
        velocity = combined(velocities, request.guidance, request.control_guidance, request.control_formula)
        if request.normalize_guidance and len(velocities) > 1:
            velocity = normalized(velocity, velocities[PROMPT], state.items)
        return velocity.clone() if len(velocities) == 1 else velocity

    def _forward(self, one: Pass, a16: bool) -> Forward:
        if (one, a16) not in self._made:
            texts = tuple(self._texts[text_of(name)] for name in one.branches)
            self._made[one, a16] = self._forwards.of(self.tower, self.packing, texts, one, a16)
        return self._made[one, a16]


def _nothing() -> None:
    """What a process has to do while others compute, where it has its own weights."""
