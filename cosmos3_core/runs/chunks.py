"""Runs of several chunks: what is kept of the chunks that are done, and what the next one begins with.

A chunk is a generation of its own: the engine knows of no other. It begins with the last frames of the one before, as
they were decoded. Of a chunk that is done its latents stay, on the host, and are decoded again for the output: that
takes a hundredth of the time that its steps took, and keeps no frames of a long clip in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..contract import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..engine.stages import Watch
    from ..model.packing import Item
    from ..sampling.state import State
    from ..scenarios.request import Request
    from .saved import Stopped

INDEX = "chunk"
"""In a saved run's numbers: which chunk was in hand."""
DONE, CARRIED = "done.", "carried"
"""What the names of a saved run's tensors begin with: the latents of chunks that are done, and the frames that the one
in hand began with."""


@dataclass(frozen=True)
class Progress:
    """Where a run of several chunks is: the latents of those that are done, on the host, by item, and the frames that
    the one in hand began with, fp32 [3, F, H, W] in [-1, 1] (None: the first one)."""

    done: tuple[Mapping[str, Tensor], ...] = ()
    carried: Tensor | None = None

    @property
    def index(self) -> int:
        """The chunk in hand."""
        return len(self.done)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """(tensors, numbers) to save beside those of the state in hand: nothing in the first chunk."""
        if self.carried is None:
            return {}, {}
        named = {f"{DONE}{i}.{name}": latent for i, one in enumerate(self.done) for name, latent in one.items()}
        return named | {CARRIED: self.carried}, {INDEX: self.index}


FIRST = Progress()


def split(stopped: Stopped, request: Request, engine: Engine) -> tuple[Stopped, Progress]:
    """A stopped run's chunk in hand alone, and what the chunks before it came to. Raises InputError for what does not
    fit the request. Reads no weight."""
    tensors, numbers = stopped.tensors, stopped.numbers
    index = numbers.get(INDEX, 0)
    state = {name: tensor for name, tensor in tensors.items() if name != CARRIED and not name.startswith(DONE)}
    own = {name: value for name, value in numbers.items() if name != INDEX}
    if index:
        progress = _progress({name: tensors[name] for name in tensors.keys() - state}, index, request, engine)
    else:
        progress, state = FIRST, tensors
    engine.check_saved(request.of_chunk(index), state, own)
    return replace(stopped, tensors=state, numbers=own), progress


def _made(request: Request, engine: Engine) -> list[Item]:
    """A chunk's items but for the controls."""
    from ..scenarios.items import items_of

    return [item for item in items_of(request, engine.model.config) if not item.control]


def _progress(found: dict[str, Tensor], index: int, request: Request, engine: Engine) -> Progress:
    import torch  # plans, which know runs too, do without it

    chunks = request.chunks
    items = _made(request.of_chunk(0), engine)
    wanted = {f"{DONE}{i}.{item.name}": item.shape for i in range(index) for item in items}
    wanted |= {CARRIED: (3, chunks.carry)}
    fits = index < chunks.count and found.keys() == wanted.keys()
    if not fits or not all(
        tensor.shape[: len(wanted[name])] == wanted[name]
        and tensor.dtype == torch.float32
        and bool(tensor.isfinite().all())
        for name, tensor in found.items()
    ):
        raise InputError("resuming", "the saved chunks do not fit the saved request", "Start the run again")
    done = tuple({item.name: found[f"{DONE}{i}.{item.name}"] for item in items} for i in range(index))
    return Progress(done, found[CARRIED])


def latents_of(state: State) -> dict[str, Tensor]:
    """What a state has made so far, on the host, by item."""
    parts = zip(state.items, state.latents(), strict=True)
    return {item.name: latent.cpu().contiguous() for item, latent in parts if not item.control}


def finished(state: State, progress: Progress) -> Iterator[State]:
    """A state for each chunk, which the engine can finish; `state` is the last one."""
    from ..sampling.state import views

    if progress.done:
        state.passes = None  # they hold the media tower, and a decode wants its room
    for latents in progress.done:
        x = state.x.clone()
        for item, part in zip(state.items, views(x, state.items), strict=True):
            if item.name in latents:
                part.copy_(latents[item.name])
        yield replace(state, x=x, memory={}, index=state.steps, foreseen=None)
    yield state


def next_chunk(
    engine: Engine, request: Request, inputs: Inputs, state: State, progress: Progress, watch: Watch
) -> tuple[State, Progress]:
    """The chunk after the one that `state` has finished, before its first step. The prompts are not read again. A chunk
    whose seed is the request's own draws on in the stream of the one before."""
    import torch

    from ..sampling.noise import initial_noise

    count = request.chunks.carry
    carried = engine.tail(state, count) if count else torch.zeros(3, 0, request.height, request.width)
    after = Progress((*progress.done, latents_of(state)), carried)
    following = request.of_chunk(after.index)
    given = given_to(inputs, after)
    stream = None
    if following.seed == request.seed:
        stream = torch.Generator()
        stream.set_state(state.stream.get_state())
        given = replace(given, noise=initial_noise(_made(following, engine), stream))
    context = engine.prepare(following, given, watch, state.context.texts)
    begun = engine.begin(context, following, watch)
    begun.stream = stream or begun.stream
    return begun, after


def given_to(inputs: Inputs, progress: Progress) -> Inputs:
    """What the chunk in hand is conditioned on."""
    if progress.carried is None:
        return inputs
    assert inputs.following is not None
    return replace(inputs, given=inputs.following(progress.index, progress.carried, progress.done[-1]), noise=None)
