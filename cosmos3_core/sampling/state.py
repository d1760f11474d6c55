"""A generation as a value: everything that the next step reads. Saved, it is all that a stopped run needs to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract import InputError, RunError
from .solver import Solver

if TYPE_CHECKING:
    from ..model.packing import Item
    from ..model.transformer import Branches
    from ..plan.execution import Execution
    from ..scenarios.request import Request


def views(flat: Tensor, items: Sequence[Item]) -> list[Tensor]:
    """Views of all items' elements as one vector, one per item, in its latent's shape."""
    sizes = [torch.Size(item.shape).numel() for item in items]
    return [part.view(item.shape) for part, item in zip(flat.split(sizes), items, strict=True)]


@dataclass
class State:
    """`x` is all items' latents as one flat fp32 vector on the device; `index` the next step.

    `guided` and `cond` are the branches for steps with and without guidance (each a list of what runs in one pass), as
    `execution` has them.
    `pinned` marks elements of clean frames and `clean` holds their values, both flat; None when nothing is conditioned.
    `noise` is the initial noise per item, on the host. `stream` is the request's random stream. `passes` are the
    branches' forward passes as they are run, by the branches' identity: they hold the tower, until `finish`. `torn` is
    true from the solver's move to the end of the step: what interrupts that leaves parts of two steps.
    """

    request: Request
    items: tuple[Item, ...]
    x: Tensor
    solver: Solver
    stream: torch.Generator
    noise: list[Tensor]
    cond: list[Branches]
    guided: list[Branches]
    execution: Execution
    pinned: Tensor | None = None
    clean: Tensor | None = None
    index: int = 0
    torn: bool = False
    passes: dict[int, Callable[[Tensor, Tensor], list[Tensor]]] = field(default_factory=dict)

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
        if self.pinned is not None:
            self.x = torch.where(self.pinned, self.clean, self.x)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the host, numbers): with the request, enough to continue. Prompts and input media are
        read again. Raises RunError for a torn state."""
        if self.torn:
            raise RunError(
                f"keeping step {self.index + 1}", "it was interrupted half way", "Keep a state between two steps"
            )
        history, numbers = self.solver.history()
        tensors = {"x": self.x, "stream": self.stream.get_state()} | {f"solver.{k}": v for k, v in history.items()}
        tensors |= {f"noise.{item.modality}": noise for item, noise in zip(self.items, self.noise, strict=True)}
        return {k: v.cpu().contiguous() for k, v in tensors.items()}, {"index": self.index, "solver": numbers}

    def restore(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Continue from what `to_tensors` returned, on a state that was started from the same request."""
        shapes = {"x": self.x.shape} | {f"noise.{item.modality}": item.shape for item in self.items}
        if any(name not in tensors or tensors[name].shape != shape for name, shape in shapes.items()):
            raise InputError("resuming", "the saved latents do not fit the saved request", "Start the run again")
        device = self.x.device
        self.index, self.x = numbers["index"], tensors["x"].to(device)
        self.noise = [tensors[f"noise.{item.modality}"] for item in self.items]
        self.stream.set_state(tensors["stream"])
        history = {k.removeprefix("solver."): v.to(device) for k, v in tensors.items() if k.startswith("solver.")}
        self.solver.restore(history, numbers["solver"])
