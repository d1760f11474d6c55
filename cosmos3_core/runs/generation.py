"""A run, from what was settled to its files: what the command line and the Python package do one after the other, in
the order in which things can go wrong cheaply.

    generation = prepare(engine, settled)
    generation.begin()
    while not generation.done:
        generation.step()
    generation.write(paths, generation.frames)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..contract import Cosmos3Error, InputError, RunError
from ..engine.stages import SILENT, Watch
from ..files.audio import Sound
from ..files.digests import sha256_file
from ..scenarios.fields import is_whole
from ..spelling import reason_of
from . import chunks, saved, sealed
from . import manifest as manifests
from .outputs import Made, Paths, write
from .room import out_of_memory
from .saved import CHANGED, Earlier, Source, Stopped

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..files.memory import Media
    from ..sampling.state import Context, State
    from ..scenarios.request import Request
    from ..settle import Settled

IN_MEMORY = "in memory"
"""In a manifest, in the place of a file's path: what was handed over by the caller."""


def other_kernels(earlier: Earlier, settled: Settled) -> Iterator[tuple[str, str, str | None]]:
    """The ops that run on another kernel than in an earlier run, whose picture would be another: (op, then, now)."""
    plan = settled.plan.to_json(settled.execution.tokens)
    here = saved.ran_on(plan) | {op: f"done inside {composites}" for op, composites in plan["fused"].items()}
    for op, used in earlier.ran_on.items():
        if here.get(op) != used:
            yield op, used, here.get(op)


def check_same_kernels(earlier: Earlier, settled: Settled, asked: str) -> None:
    """Raises InputError for a run that would go on with other kernels."""
    for op, used, here in other_kernels(earlier, settled):
        found = f"its {op} ran on {used}, and here it would be {here}"
        raise InputError(asked, found, "Restore that, or start the run again")


def read_noise(name: str, settled: Settled) -> tuple[list[Tensor], Source]:
    """The initial noise in a file, a tensor for each item of the request, and what the manifest says of it."""
    from ..scenarios.items import items_of

    asked = f"`latents` {name}"
    if name == IN_MEMORY:
        found = "a Python program handed the noise over, so no file has it"
        raise InputError(asked, found, "Name a file of saved latents, or hand it over again in Python")
    tensors, _ = sealed.read_tensors(name, asked)
    items = items_of(settled.request.of_chunk(0), settled.model.config)
    wanted = [f"noise.{item.name}" for item in items if not item.control]
    if missing := [key for key in wanted if key not in tensors]:
        raise InputError(asked, f"it has no tensor {missing[0]}", "Use a file that `save_latents` wrote")
    return [tensors[key] for key in wanted], Source(os.path.abspath(name), sha256_file(Path(name)))


def draws_more(settled: Settled) -> bool:
    """Whether the sampler draws noise after the initial one."""
    return settled.request.schedule == "distilled"


def check_seed_matters(settled: Settled, given: bool) -> None:
    """Raises InputError for a seed that was `given` beside initial noise: only the distilled sampler draws more."""
    if given and not draws_more(settled):
        found = "it would change nothing: the noise is given"
        raise InputError(f"`seed` {settled.request.seed} with `latents`", found, "Drop one")


@dataclass(kw_only=True)
class Generation:
    """A settled request on an engine: its inputs, the first half of its manifest (`resolved`), where its noise is from
    (None: its seed), what another run needs to go on with it (`resumable`), the run that it goes on with itself
    (`stopped`), the run before it whose files it has to find as they were (`earlier`, called `asked`) unless they may
    be `changed`, notes that were `said` to its user before, and the one whose inputs it shares (`first`). `begin` makes
    its `state`, that of the chunk in hand; `progress` is what the chunks before it came to. `seconds` are its own, by
    stage. Runs of one engine may be in several threads."""

    engine: Engine
    settled: Settled
    inputs: Inputs
    resolved: dict[str, Any]
    resumable: Earlier
    stopped: Stopped | None = None
    earlier: Earlier | None = None
    changed: bool = False
    said: tuple[str, ...] = ()
    asked: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    first: Generation | None = None
    state: State | None = None
    progress: chunks.Progress = chunks.FIRST
    _context: Context | None = None
    _sound: Sound | None = None
    _watch: Watch = SILENT
    _started: bool = False
    _raised: BaseException | None = None

    def again(self, settled: Settled) -> Generation:
        """Another run on the same inputs, whose request differs in its seed only: the prompts are read once."""
        resolved = self.resolved | manifests.resolved(settled, self.resolved["plan"]["backend_why"])
        resumable = replace(self.resumable, given=self.resumable.given | {"seed": settled.request.seed})
        return replace(
            self,
            settled=settled,
            resolved=resolved,
            resumable=resumable,
            seconds={},
            first=self,
            state=None,
            _sound=None,
        )

    def watch(self, progress: Callable[[str, int, int], object] | None, cancel: Any) -> None:
        """Who is told of what the run does from now on, and who may stop it, as `Watch` has them."""
        self._watch = Watch(progress and self._heard(progress), cancel)
        if self.state:
            self.state.watch = self._watch

    def _heard(self, progress: Callable[[str, int, int], object]) -> Callable[[str, int, int], None]:
        """What the caller's function raises is told from what a kernel does."""

        def tell(stage: str, done: int, total: int) -> None:
            if stage == "steps":  # a state knows those of its own chunk
                done, total = done + self.progress.index * total, self.steps
            try:
                progress(stage, done, total)
            except BaseException as error:
                self._raised = error
                raise

        return tell

    @property
    def request(self) -> Request:
        return self.settled.request

    @property
    def steps(self) -> int:
        """How many steps there are in all, of all chunks."""
        return self.request.steps * self.request.chunks.count

    @property
    def index(self) -> int:
        """How many of them are done."""
        begun = self.state.index if self.state else self.stopped.numbers["index"] if self.stopped else 0
        return self.progress.index * self.request.steps + begun

    @property
    def done(self) -> bool:
        """Whether all of them are."""
        return self.index >= self.steps

    def open_weights(self) -> None:
        """Download the weight files if need be, check their headers, and that they are the earlier run's. `begin` does,
        too. Raises InputError."""
        if self.resumable.weights:
            return
        with self._at_work():
            opened = self.engine.open_weights(self._watch, self.request)
            weights = opened.identity_with_sound if self.request.sound else opened.identity
        if self.earlier and (change := self.earlier.other_weights(self.settled, weights)):
            if not self.changed:
                raise InputError(self.asked, change, CHANGED)
            self.inputs = replace(self.inputs, notes=(*self.inputs.notes, change))
        self.resolved = self.resolved | {"weights": weights}
        self.resumable = replace(self.resumable, weights=weights)

    def begin(self) -> State:
        """The state before the next step. The prompts are read, unless another run on the same inputs did."""
        self.open_weights()
        with self._at_work():
            context = self._read()
            state = self.engine.begin(context, self.request.of_chunk(self.progress.index), self._watch)
            if self.stopped:
                state.restore(self.stopped.tensors, self.stopped.numbers)
            self.state = self.state or state  # another thread may have, while the caller's functions were called
        return self.state

    def _read(self) -> Context:
        if self._context is None:
            shared = self.first._read() if self.first else None
            inputs, number = chunks.given_to(self.inputs, self.progress), self.progress.index
            context = shared or self.engine.prepare(self.request.of_chunk(number), inputs, self._watch)
            self._context = self._context or context
        return self._context

    @property
    def begun(self) -> State:
        """The state, which is begun if it has not been."""
        return self.state or self.begin()

    def step(self) -> int:
        """One solver step, and before it the next chunk where one is done; the number of steps that are done. What
        interrupts one leaves the state as it was before. Raises InputError for a run that has had all of them."""
        state = self.begun
        if state.done and not self.done:
            state = self._next_chunk(state)
        x, memory, index, stream = state.x, state.memory, state.index, state.stream.get_state()  # replaced, not changed
        try:
            with self._at_work():
                self.engine.step(state)
        except BaseException:
            if state.torn:
                state.x, state.memory, state.index = x, memory, index
                state.stream.set_state(stream)
                state.torn = False
            raise
        return self.index

    def _next_chunk(self, state: State) -> State:
        with self._at_work():
            begun, progress = chunks.next_chunk(
                self.engine, self.request, self.inputs, state, self.progress, self._watch
            )
            if self.state is state:  # another thread may have, while the caller's functions were called
                self.state, self.progress = begun, progress
            return self.begun

    def preview(self) -> Tensor:
        """What the last step takes the picture for, or the first frame of a clip: uint8 [1, H, W, 3] on the host."""
        state = self.begun
        with self._at_work():
            return self.engine.preview(state, 1)

    def frames(self) -> Iterator[np.ndarray]:
        """Decode: uint8 [H, W, 3] each, after those that the output begins with."""
        before = self.inputs.before
        if before:
            yield from before.frames()
        yield from islice(self._generated(), before.replaced if before else 0, None)

    def _generated(self) -> Iterator[np.ndarray]:
        import numpy as np

        for number, state in enumerate(chunks.finished(self.begun, self.progress)):
            groups, kept, count = self.engine.finish(state), self.request.chunks.kept(number), 0
            left = self.inputs.beside(number).numpy() if self.inputs.beside else None
            while True:
                with self._at_work():
                    group = next(groups, None)
                if group is None:
                    break
                for i, frame in enumerate(group.numpy(), count):
                    if i in kept:
                        yield frame if left is None else np.concatenate([left[i], frame], axis=1)
                count += len(group)

    def sound(self) -> Sound | None:
        """Decode the sound, or take that which was given; None of a run that has none."""
        size = self.settled.execution.sound
        if size is not None and self._sound is None:
            if self.request.audio is not None:
                waveform = self.inputs.given[1]
            else:
                with self._at_work():
                    (waveform,) = self.engine.finish(self.begun, "sound")
            assert waveform is not None, "it was read before the run"
            self._sound = Sound(waveform.numpy(), size.rate)
        return self._sound

    def actions(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The actions, predicted or all given, fp64 [T, D] in the robot's units, and what one is."""
        import numpy as np
        import torch

        if (io := self.inputs.actions) is None:
            raise InputError(f"the actions of task {self.request.task}", "it has none", "Ask for its frames")
        if (given := io.rows()) is not None:
            return given, io.to_json()
        rows: list[np.ndarray] = []
        for number, state in enumerate(chunks.finished(self.begun, self.progress)):
            with self._at_work():
                latent = torch.cat(list(self.engine.finish(state, "action")))
            rows.extend(io.predicted(latent)[self.request.chunks.carry - 1 if number else 0 :])
        return np.stack(rows), io.to_json()

    def lasted(self) -> dict[str, float]:
        """How long what was done so far took, by stage, as the manifest has it."""
        return manifests.lasted(self.resolved, self.seconds)

    def manifest(self) -> dict[str, Any]:
        """What was done so far."""
        inputs = replace(self.inputs, notes=(*self.said, *self.inputs.notes))
        return manifests.complete(self.resolved, self.engine, inputs, self.begun, self.seconds)

    def write(
        self, paths: Paths, frames: Callable[[], Iterable[np.ndarray]], sound: Callable[[], Sound | None] | None = None
    ) -> None:
        """Write the frames, uint8 [H, W, 3], as they come, the `sound` (None: this run's own) and the actions; they are
        asked for again where they have to go elsewhere. What was known before the first of them goes into the file.
        Raises as `outputs.write`."""
        made = Made(frames, sound or self.sound, self.actions)
        write(paths, made, self.request, self.manifest(), self.manifest, self.latents)

    def latents(self) -> dict[str, Tensor]:
        """The initial noise and the latents as they are, on the host, by name: what `read_noise` reads. Of several
        chunks, those of the one in hand, and what `Progress` keeps of the others."""
        state = self.begun
        with self._at_work():  # not while another thread is in a step
            latents = chunks.latents_of(state)
        tensors = {f"noise.{item.name}": noise for item, noise in zip(state.context.made, state.noise, strict=True)}
        before, _ = self.progress.to_tensors()
        return tensors | {f"final.{name}": one for name, one in latents.items()} | before

    def computed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as `State.to_tensors` has it, and what the chunks before came to. No later step changes these
        tensors: each makes new ones."""
        state, (before, number) = self.begun, self.progress.to_tensors()
        with self._at_work():
            tensors, numbers = state.to_tensors()
        return tensors | before, numbers | number

    def keep(self, path: Path) -> bool:
        """Save what was computed, for another run to go on with; False where there is nothing."""
        return self.index > 0 and saved.save(path, *self.computed(), self.resumable)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Around whatever the engine does for this run: its seconds are counted, and what torch or a caller's own
        kernel raises becomes an error with words."""
        import torch

        if not self._started:  # since it was prepared, others may have run
            self.resolved, self._started = self.resolved | {"started": manifests.now()}, True
        try:
            with self.engine.counting(self.seconds):
                yield
        except torch.OutOfMemoryError as error:
            raise out_of_memory(error, self.engine, self.settled, self.state) from error
        except Cosmos3Error:
            raise
        except Exception as error:
            if error is self._raised or not (own := self.settled.plan.own):
                raise
            found = f"the run failed with it: {reason_of(error)}"
            raise RunError(f"running with {', '.join(own)}", found, "Correct it, or drop it from `kernels`") from error


def prepare(
    engine: Engine,
    settled: Settled,
    *,
    named: str = "it was named",
    noise: Sequence[Tensor] | None = None,
    latents: Source | None = None,
    media: Sequence[Media] = (),
    stopped: Stopped | None = None,
    repeated: Earlier | None = None,
    changed: bool = False,
    asked: str = "",
    texts: Mapping[str, Any] = MappingProxyType({}),
    said: Sequence[str] = (),
) -> Generation:
    """A run that is ready to begin: everything that can be wrong with it was checked, and no weight was read.

    `named` says why its backend was taken, where it was not chosen here. `noise` replaces the request's own, and
    `latents` says where it is from. `media` are pictures or clips that were handed over. `stopped` is the run to go on
    with, or `repeated` the one that this is again, which messages call `asked`; their files may have `changed`.
    `texts` are the facts of prompts that were in files, and `said` notes that its user was told. Raises InputError.
    """
    if noise is None and not stopped and is_whole(given := settled.wish.given) and given["seed"] is None:
        found = "the request is of a run whose noise was given, and has no seed for another"
        raise InputError("`seed` None", found, "Give its noise as `latents`, or a `seed`", "seed")
    if noise is not None and settled.request.chunks.count > 1:
        found = f"its {settled.request.chunks.count} chunks each draw noise of their own, from the seed"
        raise InputError("`noise` of a run of several chunks", found, "Give a `seed`", "noise")
    progress, inputs = chunks.FIRST, engine.read_inputs(settled.request, noise, media)
    changes = [*repeated.changes(settled.request, inputs, latents)] if repeated else []
    if stopped:
        if stopped.earlier.pixels != saved.given_digest(inputs.given):
            changes.append("the picture or clip that it began with has changed since")
        stopped, progress = chunks.split(stopped, settled.request, engine)
    resolved = manifests.resolved(settled, named)
    for change in changes:
        if not changed:
            raise InputError(asked, change, CHANGED)
        inputs = replace(inputs, notes=(*inputs.notes, change))
    if latents:
        resolved |= {"latents": asdict(latents)} | ({} if draws_more(settled) else manifests.seedless(resolved))
    resolved |= {"inputs": {**texts, **inputs.facts}}
    resolved |= {"actions": inputs.actions.to_json()} if inputs.actions else {}
    if (whole := settled.request.chunks).count > 1:
        resolved |= {"chunks": {"count": whole.count, "frames": whole.frames, "carry": whole.carry}}
    if stopped:
        resolved |= {"resumed_at_step": progress.index * settled.request.steps + stopped.numbers["index"]}
    return Generation(
        engine=engine,
        settled=settled,
        inputs=replace(inputs, notes=(*settled.notes, *inputs.notes)),
        resolved=resolved,
        resumable=Earlier.of(settled, inputs, latents),
        stopped=stopped,
        earlier=stopped.earlier if stopped else repeated,
        changed=changed,
        asked=asked,
        progress=progress,
        said=tuple(said),
    )
