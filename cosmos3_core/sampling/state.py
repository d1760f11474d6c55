"""A generation as a value: everything that the next step reads. Saved, it is all that a stopped run needs to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..contract import InputError, RunError, Segment
from ..model.packing import Packing
from ..model.transformer import TextContext
from ..scenarios.families import FILES
from .solver import Solver

if TYPE_CHECKING:
    from ..model.packing import Item
    from ..scenarios.request import Request


NOT_COMPARED = ("action_rows", "show_controls", "show_input", "tile", "with_input")
"""Request fields that a saved state may differ in: the same numbers may come from another place, and the others are the
decode's matter."""


def views(flat: Tensor, items: Sequence[Item]) -> list[Tensor]:
    """Views of all items' elements as one vector, one per item, in its latent's shape."""
    sizes = [torch.Size(item.shape).numel() for item in items]
    return [part.view(item.shape) for part, item in zip(flat.split(sizes), items, strict=True)]


@dataclass(frozen=True)
class Origin:
    """What a context was computed on, as `Model` and `Plan` name it."""

    model: str
    revision: str | None
    dtype: str
    device: str


@dataclass(frozen=True, eq=False)
class Context:
    """What a request's prompts and inputs came to. Any number of generations may begin on one.

    `texts` are the prompt as it was read and, with guidance, the negative prompt. `pinned` marks the elements of clean
    frames and `clean` holds their values, both flat and on the device; None when nothing is conditioned. `noise` is the
    initial noise of each item of `made`, fp32 on the host, where it was handed over; None where every generation draws
    its own. Pickled, it lies on the host and has all of that.
    """

    request: Request
    packing: Packing
    texts: tuple[TextContext, ...]
    pinned: Tensor | None = None
    clean: Tensor | None = None
    noise: list[Tensor] | None = None
    origin: Origin | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The latents, in the order in which `State.x` has them."""
        return self.packing.items

    @property
    def made(self) -> tuple[Item, ...]:
        """Those that begin as noise: all but the controls."""
        return tuple(item for item in self.items if not item.control)

    def to(self, device: torch.device | str) -> Context:
        """The same context with its tensors on this device."""
        return replace(
            self,
            packing=Packing(self.items, self.packing.config, device),
            texts=tuple(
                TextContext(
                    tuple(Segment(k.to(device), v.to(device), static=True) for k, v in text.segments), text.length
                )
                for text in self.texts
            ),
            pinned=None if self.pinned is None else self.pinned.to(device),
            clean=None if self.clean is None else self.clean.to(device),
        )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.to("cpu"))


@dataclass(eq=False)
class State:
    """`x` is all items' latents as one flat fp32 vector on the device; `index` the next step.

    `memory` is what the solver remembers of the steps before, by name. `noise` is the initial noise of each item that
    is made, on the host. `stream` is the request's random stream. `torn` is true from the solver's move to the end of
    the step: what interrupts that leaves parts of two steps. `foreseen` is what the last prediction takes the clean
    latents for, flat fp32; None before it. `passes` and `watch` are the engine's: the forward passes of the context,
    which hold the tower from the first step until `finish`, or until nobody has the state any more, and who is told of
    the steps.

    A copy, shallow or deep, is a generation of its own that shares the context, the passes and the watch. A pickled
    state has all that the next step reads, on the host: the prompts' keys and values too (Nano: 144 KiB a token), so
    that an engine of the same model, dtype and device goes on with it in another process of the same version, without
    reading the prompts again. It leaves the passes, the watch and `foreseen` behind. Both raise RunError for a torn
    state.
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
    foreseen: Tensor | None = None
    passes: Any = None
    watch: Any = None

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

    def place(self, device: torch.device | str) -> None:
        """Move to this device, if it is elsewhere. Raises InputError for what is none."""
        try:
            there = torch.device(device)
        except (RuntimeError, TypeError):
            raise InputError(
                f"a state on {device!r}", "torch knows no such device", "Give an engine's device"
            ) from None
        if self.x.device.type == there.type:
            return
        self.context, self.solver = self.context.to(device), self.solver.to(device)
        self.x, self.memory = self.x.to(device), {name: t.to(device) for name, t in self.memory.items()}

    def __copy__(self) -> State:
        self.check_whole("copying")
        stream = torch.Generator()
        stream.set_state(self.stream.get_state())
        memory = {name: tensor.clone() for name, tensor in self.memory.items()}
        noise = [tensor.clone() for tensor in self.noise]
        return replace(self, x=self.x.clone(), memory=memory, noise=noise, stream=stream)

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        self.check_whole("pickling")
        here = vars(self) | {"foreseen": None, "passes": None, "watch": None}
        memory = {name: tensor.cpu() for name, tensor in self.memory.items()}
        return here | {
            "x": self.x.cpu(),
            "solver": self.solver.to("cpu"),
            "memory": memory,
            "stream": self.stream.get_state(),
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        stream = torch.Generator()
        stream.set_state(values["stream"])
        vars(self).update(values | {"stream": stream})

    def check_whole(self, doing: str) -> None:
        """Raises RunError for a torn state."""
        if self.torn:
            next_step = "Keep a state between two steps"
            raise RunError(f"{doing} step {self.index + 1}", "it was interrupted half way", next_step)

    def _tensors(self) -> dict[str, Tensor]:
        """All that is saved, where it is."""
        noise = {f"noise.{item.name}": noise for item, noise in zip(self.context.made, self.noise, strict=True)}
        return {"x": self.x, "stream": self.stream.get_state()} | self.memory | noise

    def _compared(self) -> dict[str, Any]:
        """Of the request, what a saved state has to agree with, as JSON has it."""
        plain = json.loads(json.dumps(self.request.to_json()))
        # The same pixels may come from another file, for the same frames.
        frames = {name: list(plain[name]) if isinstance(plain[name], dict) else None for name in FILES}
        return {name: value for name, value in (plain | frames).items() if name not in NOT_COMPARED}

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors on the host, numbers as JSON): with the request, enough to continue. Prompts and input media are
        read again. Raises RunError for a torn state."""
        self.check_whole("keeping")
        numbers = {"index": self.index, "request": self._compared()}
        return {name: t.cpu().contiguous() for name, t in self._tensors().items()}, numbers

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from what `to_tensors` returned, on a state that was begun from the same request. Raises InputError
        for what does not fit it, and stays as it is. 0.1.0 wrote the same tensors, a number that nothing needs and no
        request."""
        for name, value in (("tensors", tensors), ("numbers", numbers)):
            if not isinstance(value, Mapping):
                found = f"its {name} are a {type(value).__name__}, not a dict"
                raise InputError("restoring a state", found, "Pass both parts of what to_tensors returned")
        self._check_request(numbers.get("request"))
        own, index, device = self._tensors(), numbers.get("index"), self.x.device
        fits = tensors.keys() == own.keys() and all(
            isinstance(tensor, Tensor)
            and (tensor.shape, tensor.dtype) == (own[name].shape, own[name].dtype)
            and bool(tensor.isfinite().all())
            for name, tensor in tensors.items()
        )
        refusal = InputError("resuming", "the saved latents do not fit the saved request", "Start the run again")
        if not fits or type(index) is not int or not 0 <= index <= self.steps:
            raise refusal
        if not self.solver.handed(index, {name: tensors[name] for name in self.memory}):
            found = f"its step is {index}, and what its solver remembers is of another"
            raise InputError("resuming", found, "Start the run again")
        stream = torch.Generator()
        try:
            stream.set_state(tensors["stream"].cpu())
        except RuntimeError:  # of the right length, and no state of the generator
            raise refusal from None
        self.stream, self.index, self.x = stream, index, tensors["x"].to(device, copy=True)
        self.noise = [tensors[f"noise.{item.name}"].cpu() for item in self.context.made]
        self.memory = {name: tensors[name].to(device, copy=True) for name in self.memory}
        self.foreseen, self.torn = None, False

    def _check_request(self, saved: Any) -> None:
        if saved is None:
            return
        if not isinstance(saved, Mapping):
            raise InputError("resuming", "the saved request is damaged", "Start the run again")
        if other := [name for name, value in self._compared().items() if saved.get(name, value) != value]:
            found = f"the state was saved from another request: its {', '.join(other)} differ"
            raise InputError("resuming", found, "Begin from the request that it was saved with", other[0])
