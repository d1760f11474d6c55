"""A model that runs prompts while its matrices are looked at or replaced."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ...contract import InputError
from ...plan.placement import ALL_RESIDENT, ALL_STAGED
from ...runs.room import refusal
from ...scenarios.request import Request
from ...settle import Ground, Wish, ground_of, settle
from .seam import KERNELS, Seam, places

if TYPE_CHECKING:
    from torch import Tensor

    from ...engine.engine import Engine
    from ...sampling.state import State

OURS = ("prompt", "seed")
"""Fields that the prompts settle: each has its number as seed."""
Tell = Callable[[int], object]
"""Is told how many steps are done."""


@dataclass(frozen=True)
class Point:
    """A step of a run: its number, the latents before it and the velocity there, flat, fp32."""

    index: int
    x: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Session:
    """Requests, one for each prompt, on one model as it is. `given` are their other fields. Nothing is loaded until a
    run."""

    ground: Ground
    requests: Sequence[Request]
    given: Mapping[str, Any]
    resident: bool

    @classmethod
    def of(
        cls,
        model: str,
        revision: str | None,
        backend: str | None,
        prompts: Sequence[str],
        given: Mapping[str, Any],
        dtype: str | None = None,
    ) -> Session:
        """Raises InputError for fields that do not fit, and for a model that does not fit on the device."""
        for name in OURS:
            if name in given:
                raise InputError(f"`{name}`", "the prompts of a calibration settle it", "Leave it out", name)
        wish = Wish(model=model, revision=revision, backend=backend, dtype=dtype, kernels=KERNELS, resident=True)
        ground = ground_of(wish)
        wishes = [replace(wish, given={**given, "prompt": text, "seed": i}) for i, text in enumerate(prompts)]
        settled = [settle(one, ground=ground) for one in wishes]
        resident = all(one.fits for one in settled)
        if not resident:
            settled = [settle(replace(one, resident=False), ground=ground) for one in wishes]
        if error := next(filter(None, (refusal(one, placeable=False) for one in settled)), None):
            raise error
        return cls(ground, [one.request for one in settled], given, resident)

    @classmethod
    def widest(
        cls, model: str, revision: str | None, backend: str | None, prompts: Sequence[str], given: Mapping[str, Any]
    ) -> Session:
        """In fp32, in which nothing else is rounded than what is quantized, where the device can; else in the model's
        dtype. Raises InputError as `of`."""
        try:
            return cls.of(model, revision, backend, prompts, given, "float32")
        except InputError:  # what is wrong in every dtype is said again
            return cls.of(model, revision, backend, prompts, given)

    @cached_property
    def seam(self) -> Seam:
        return Seam(self.ground.model)

    @cached_property
    def engine(self) -> Engine:
        return self.another_engine()

    def another_engine(self) -> Engine:
        """One that has read no prompt yet."""
        from ...engine.engine import Engine

        placement = ALL_RESIDENT if self.resident else ALL_STAGED
        return Engine(self.ground.model, self.ground.plan, placement=placement, weights=self.seam)

    def reads_text(self, modules: Collection[str]) -> bool:
        """Whether one of the modules is the text tower's."""
        return any(not place.media and set(modules) & set(place.modules) for place in places(self.ground.model.config))

    @property
    def steps(self) -> int:
        """Of all requests."""
        return sum(request.steps for request in self.requests)

    def runs(self, tell: Tell) -> Iterator[tuple[State, list[Point]]]:
        """Every request's state after its last step, and its steps."""
        done = 0
        for request in self.requests:
            state, points = self.engine.start(request), []
            while not state.done:
                (velocity,) = self.engine.predict([state])
                points.append(Point(state.index, state.x.clone(), velocity.clone()))
                self.engine.advance(state, velocity)
                done += 1
                tell(done)
            yield state, points
