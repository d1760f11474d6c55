"""A generation as a value: everything that the next step reads. Saved, it is all that a stopped run needs to go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract import InputError, RunError
from .solver import Solver

if TYPE_CHECKING:
    from ..model.packing import Item, Packing
    from ..model.transformer import TextContext
    from ..scenarios.request import Request


def views(flat: Tensor, items: Sequence[Item]) -> list[Tensor]:
    """Views of all items' elements as one vector, one per item, in its latent's shape."""
    sizes = [torch.Size(item.shape).numel() for item in items]
    return [part.view(item.shape) for part, item in zip(flat.split(sizes), items, strict=True)]


@dataclass(frozen=True, eq=False)
class Context:
    """What a request's prompts and inputs came to. Any number of generations may begin on one.

    `texts` are the prompt as it was read and, with guidance, the negative prompt. `pinned` marks the elements of clean
    frames and `clean` holds their values, both flat and on the device; None when nothing is conditioned. `noise` is the
    initial noise per item that was handed over, fp32 on the host; None where every generation draws its own.
    """

    request: Request
    packing: Packing
    texts: tuple[TextContext, ...]
    pinned: Tensor | None = None
    clean: Tensor | None = None
    noise: list[Tensor] | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The latents, in the order in which `State.x` has them."""
        return self.packing.items


@dataclass
class State:
    """`x` is all items' latents as one flat fp32 vector on the device; `index` the next step.

    `memory` is what the solver remembers of the steps before, by name. `noise` is the initial noise per item, on the
    host. `stream` is the request's random stream. `torn` is true from the solver's move to the end of the step: what
    interrupts that leaves parts of two steps. `passes` is the engine's: the forward passes of the context, which hold
    the tower from the first step until `finish`, or until nobody has the state any more.
    """

    request: Request
    context: Context
    x: Tensor
    solver: Solver
    memory: dict[str, Tensor]
    stream: torch.Generator
    noise: list[Tensor]
    index: int = 0
    torn: bool = False
    passes: Any = None

    @property
    def items(self) -> tuple[Item, ...]:
        return self.context.items

    @property
    def steps(self) -> int:
        return len(self.solver.timesteps)

    @property
    def done(self) -> bool:
        return self.index >= self.steps

    def latents(self) -> list[Tensor]:
        """Views of `x`, one per item, in its latent's shape."""
        return views(self.x, self.items)

    def pin(self) -> None:
        """Put the conditioned frames back. UniPC keeps them to rounding; a stochastic sampler does not."""
        pinned, clean = self.context.pinned, self.context.clean
        if pinned is not None and clean is not None:
            self.x = torch.where(pinned, clean, self.x)

    def _tensors(self) -> dict[str, Tensor]:
        """All that is saved, where it is."""
        noise = {f"noise.{item.modality}": noise for item, noise in zip(self.items, self.noise, strict=True)}
        return {"x": self.x, "stream": self.stream.get_state()} | self.memory | noise

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the host, numbers): with the request, enough to continue. Prompts and input media are
        read again. Raises RunError for a torn state."""
        if self.torn:
            raise RunError(
                f"keeping step {self.index + 1}", "it was interrupted half way", "Keep a state between two steps"
            )
        return {name: t.cpu().contiguous() for name, t in self._tensors().items()}, {"index": self.index}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from what `to_tensors` returned, on a state that was begun from the same request. Raises InputError
        for what does not fit it. 0.1.0 wrote the same tensors and one number more, which nothing needs."""
        own, index, device = self._tensors(), numbers.get("index"), self.x.device
        fits = tensors.keys() == own.keys() and all(
            (tensor.shape, tensor.dtype) == (own[name].shape, own[name].dtype) and bool(tensor.isfinite().all())
            for name, tensor in tensors.items()
        )
        refusal = InputError("resuming", "the saved latents do not fit the saved request", "Start the run again")
        if not fits or type(index) is not int or not 0 <= index <= self.steps:
            raise refusal
        try:
            self.stream.set_state(tensors["stream"])
        except RuntimeError:  # of the right length, and no state of the generator
            raise refusal from None
        self.index, self.x = index, tensors["x"].to(device)
        self.noise = [tensors[f"noise.{item.modality}"] for item in self.items]
        self.memory = {name: tensors[name].to(device) for name in self.memory}
