"""A loaded model: what makes pictures and clips of requests."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, overload

from cosmos3_core.contract import InputError
from cosmos3_core.plan.mesh import typed
from cosmos3_core.plan.own import with_own
from cosmos3_core.quant.steps import OPTION
from cosmos3_core.runs import generation, outputs, room, saved
from cosmos3_core.runs.generation import Generation
from cosmos3_core.runs.outputs import Paths
from cosmos3_core.runs.processes import Processes
from cosmos3_core.scenarios import kinds
from cosmos3_core.scenarios.captions import check_no_file
from cosmos3_core.scenarios.defaults import PROFILES, check_profile
from cosmos3_core.scenarios.families import INPUTS, TASKS
from cosmos3_core.scenarios.faults import about
from cosmos3_core.scenarios.fields import is_whole
from cosmos3_core.settle import Ground, Settled, Wish, ground_of, place_of, settle
from cosmos3_core.spelling import shown

from .inputs import media_of, noise_of
from .plans import Plan, plan_of
from .questions import check_switch, path_of
from .results import Result
from .runs import Event, Progress, Run, check_hooks, written
from .words import CALL, LOAD, OF_A_PIPE, START, Answering, as_arguments, bound, elsewhere, unknown

if TYPE_CHECKING:
    from cosmos3_core.engine.engine import Engine
    from cosmos3_core.files.memory import Media

Prompt = str | Mapping[str, Any]
"""Text, or a caption in JSON."""
P = ParamSpec("P")
R = TypeVar("R")
MOST = 10_000
"""Outputs of one call."""
MODEL = "nvidia/Cosmos3-Nano"


def plainly(function: Callable[P, R]) -> Callable[P, R]:
    """What the caller has set of torch plays no part in it."""

    @wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        from cosmos3_core.engine.surroundings import plain_torch

        with plain_torch():
            return function(*arguments, **options)

    return call


@as_arguments(LOAD)
@bound
@plainly
def load(
    model: str | os.PathLike[str] = MODEL,
    *,
    backend: str | None = None,
    formats: Mapping[str, str] | None = None,
    high_precision_steps: str | None = None,
    kernels: Mapping[str, str | Callable[..., Any]] | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    profile: str | None = None,
    resident: bool = True,
    placement: str | None = None,
    memory_limit: int | None = None,
    parallel: str | None = None,
    **others: Any,
) -> Pipeline:
    """Open a model and plan it for this machine. Its weights are read by the first run that needs them.

    `model` is a hub id, at a branch, tag or commit `revision`; a folder; or "embedded", the one in the package.
    `backend` None takes the accelerator that is here. `formats` names quantization formats by op, {"pack_linear":
    "fp8"}, `high_precision_steps` those in which activations stay in 16 bits ("2,2": the first and the last two), and
    `kernels` rows by op, or functions of yours: an experiment, which manifests name. `dtype` None is the
    checkpoint's.
    `profile` names whose defaults fill a request. With `resident` what was loaded stays for the next request; without
    it, no two components are on the device at once. `placement` says it of single parts, in words of `cosmos3 run`:
    "generation=streamed,understanding=disk". Until the pipe is closed, the process takes no more of the device than
    `memory_limit` bytes. `parallel` is how several devices share each request, "cfg=2,ulysses=4": torchrun, srun or
    mpirun has started the program once for each, all do the same, and the first one writes. Raises InputError for what
    cannot be met, and RunError where they do not meet.
    """
    from cosmos3_core.engine.engine import Engine

    for name, value in others.items():
        raise InputError(f"load({name}={shown(value)})", "there is no such argument", unknown(name, LOAD), name)
    more = {OPTION: high_precision_steps, "placement": placement, "memory_limit": memory_limit, "revision": revision}
    more["parallel"] = parallel
    wish, ground = grounded(wish_of(model, backend, formats, kernels, dtype, profile, resident, **more))
    plan, processes = ground.plan, Processes()
    if parallel is not None:
        processes = Processes.of_program(parallel)
        processes.take_device(plan)
        wish, plan = processes.agreed(replace(wish, started=processes.count)), replace(plan, layout=typed(parallel))
    engine = Engine(ground.model, plan, placement=wish.placed, limit=wish.memory_limit)
    return Pipeline(wish, ground, engine, processes)


def _settled(wish: Wish, ground: Ground, given: Mapping[str, Any], **other: Any) -> Settled:
    """A request whose texts were typed."""
    check_typed(given)
    return settle(replace(wish, given=given, **other), ground=ground)


def check_typed(given: Mapping[str, Any]) -> None:
    """Raises InputError for a text that is the name of a file."""
    for name in ("prompt", "negative_prompt"):
        check_no_file(name, given.get(name))


def planned(wish: Wish, ground: Ground, fields: dict[str, Any]) -> Settled:
    """A request that may lack its prompt and its input."""
    inputs, _ = media_of(fields)
    return _settled(wish, ground, fields | inputs, partial=True)


def wish_of(
    model: Any, backend: Any, formats: Any, kernels: Any, dtype: Any, profile: Any, resident: Any, **more: Any
) -> Wish:
    """What is no request's. Functions among the kernels get their names in `grounded`."""
    check_switch("resident", resident)
    wish = Wish(
        model=path_of("model", model),
        profile=PROFILES[0] if profile is None else profile,
        backend=backend,
        dtype=str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype,
        kernels={} if kernels is None else kernels,
        formats={} if formats is None else formats,
        resident=resident,
        pick_seed=lambda: secrets.randbelow(2**31),
        **more,
    )
    check_profile(wish.profile)
    return wish


def grounded(wish: Wish) -> tuple[Wish, Ground]:
    """What all requests share, with the caller's functions as rows of the backend."""
    if all(isinstance(kernel, str) for kernel in wish.kernels.values()):
        return wish, ground_of(wish)
    with about("backend"):
        backend, device, why = place_of(wish)
    with about("kernels"):
        backend, named = with_own(backend, wish.kernels)
    wish = replace(wish, kernels=named)
    return wish, replace(ground_of(wish, (backend, device)), why=why)


class Pipeline(Answering):
    """A model on a device; `cosmos3.load` makes one. Called, it makes a picture or a clip.

    One thread works on the device at a time, so that several may share a pipe: steps of their runs take turns. As a
    context manager it closes itself. Several devices share its requests where `parallel` said so: then one thread of
    each process calls it, all with the same arguments.
    """

    def __init__(self, wish: Wish, ground: Ground, engine: Engine, processes: Processes):
        self._wish, self._ground, self._engine, self._closed = wish, ground, engine, False
        self._processes = processes

    def close(self) -> None:
        """Free what is loaded. Runs in hand go on, and what they load again goes with them; new ones are refused."""
        self._closed = True
        self._engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> str:
        """The model's name."""
        return self._ground.model.name

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self._ground.plan.backend.name

    @property
    def why(self) -> str:
        """Why this backend was taken, and what was skipped: lines, or "" where it was named."""
        return self._ground.why

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel that serves each op, by name."""
        return dict(self._ground.plan.to_json()["kernels"])

    @overload
    def __call__(self, prompt: Prompt, *, n: None = None, **fields: Any) -> Result: ...
    @overload
    def __call__(self, prompt: Prompt, *, n: int, **fields: Any) -> list[Result]: ...
    @overload
    def __call__(self, prompt: Sequence[Prompt], *, n: int | None = None, **fields: Any) -> list[Result]: ...

    @as_arguments(CALL)
    @bound
    def __call__(
        self,
        prompt: Prompt | Sequence[Prompt] | None = None,
        *,
        n: int | None = None,
        image: Any = None,
        video: Any = None,
        noise: Any = None,
        output: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        on_step: Callable[[Run], object] | None = None,
        progress: Progress | None = None,
        cancel: Event | None = None,
        anyway: bool = False,
        **fields: Any,
    ) -> Result | list[Result]:
        """Make a picture (`frames=1`) or a clip: a Result, or a list of them for a list of prompts or an `n`.

        `prompt` is text or a caption as a dict. `n` outputs are made of each prompt, and seeds count on over all of
        them. `image`, `video` and `noise` are as for `start`, `on_step`, `progress` and `cancel` as for `Run.run`.
        `output` is a path to write the result to, which is checked before the first step, and whose suffix may say that
        a picture is wanted; a file that is there is refused unless it may be `overwrite`n; a run is kept beside it, in
        OUTPUT.state.safetensors, every minute and where it fails or is cancelled. `fields` are all others of
        docs/fields.md: size, frames, steps, guidance, seed ... `anyway` runs what does not fit by the estimate. Every
        request is checked before a weight is read. Raises InputError, RunError and Cancelled.
        """
        check_hooks(on_step, progress, cancel)
        check_switch("overwrite", overwrite)
        many = isinstance(prompt, list | tuple)
        prompts: Sequence[Any] = prompt if isinstance(prompt, list | tuple) else [prompt]
        count = 1 if n is None else kinds.whole(1, MOST).read("n", kinds.plain(n), TASKS["t2v"])
        if not prompts:
            raise InputError("an empty list of prompts", "there is nothing to generate", "Give a prompt", "prompt")
        several = many or n is not None
        if several and output is not None:
            found = "several results would have one name"
            raise InputError("output with several outputs", found, "Call save() of each result", "output")
        if count * len(prompts) > 1 and noise is not None:
            found = f"all {count * len(prompts)} outputs would begin with the same"
            raise InputError("noise with several outputs", found, "Call once for each noise", "noise")
        fields |= {"image": image, "video": video}
        runs = self._several(prompts, count, noise, output, anyway, fields)
        hooks = partial(Run.run, on_step=on_step, progress=progress, cancel=cancel)
        if output is not None:
            return self._written(runs[0], path_of("output", output), overwrite, hooks)
        results = []
        while runs:  # a run that is done gives back what it holds on the device
            results.append(hooks(runs.pop(0)))
        return results if several else results[0]

    @as_arguments(START)
    @bound
    def start(
        self,
        prompt: Prompt | None = None,
        *,
        image: Any = None,
        video: Any = None,
        noise: Any = None,
        anyway: bool = False,
        **fields: Any,
    ) -> Run:
        """A run before its first step. Everything is checked and no weight is read.

        `image` and `video` are a path, the bytes of a file, a PIL image, or an array or tensor [H, W, 3], of a clip a
        list of pictures or [F, H, W, 3]; uint8, or floats in [0, 1]. So are `extend`, the controls `edge`, `blur`,
        `depth`, `seg` and `wsm`, which are clips, and the pictures of `keyframe`, a dict by frame. `noise` is the
        initial noise, fp32 in the shape of `Result.latents`, also with an axis of length 1 before it, or a path to a
        file of saved latents. Raises InputError.
        """
        if isinstance(prompt, list | tuple):
            found = "a run has one prompt"
            raise InputError(f"start() with a list of {len(prompt)} prompts", found, "Start one for each", "prompt")
        return self._several([prompt], 1, noise, None, anyway, fields | {"image": image, "video": video})[0]

    @as_arguments(CALL)
    @bound
    @plainly
    def resume(
        self,
        path: str | os.PathLike[str],
        *,
        image: Any = None,
        video: Any = None,
        keyframe: Any = None,
        extend: Any = None,
        edge: Any = None,
        blur: Any = None,
        depth: Any = None,
        seg: Any = None,
        wsm: Any = None,
        tile: int | None = None,
        anyway: bool = False,
    ) -> Run:
        """The run that `Run.save` or a stopped `cosmos3 run` left in this file, to go on with. What was handed over in
        memory, `image`, `video`, `keyframe`, `extend` or a control, is handed over again. Raises InputError unless
        this pipe has the model, dtype, formats and kernels that the run began with."""
        self._check_open()
        asked = f"resume {path_of('path', path)}"
        check_switch("anyway", anyway)
        stopped = saved.read_stopped(path_of("path", path), asked)
        earlier = stopped.earlier
        self._check_same(earlier, asked)
        controls = {"edge": edge, "blur": blur, "depth": depth, "seg": seg, "wsm": wsm}
        given, media = media_of({"image": image, "video": video, "keyframe": keyframe, "extend": extend} | controls)
        given = earlier.given | given | ({} if tile is None else {"tile": tile})
        settled = settle(
            replace(self._wish, given=given, profile=earlier.profile or self._wish.profile), ground=self._ground
        )
        generation.check_same_kernels(earlier, settled, asked)
        self._check_fits(settled, anyway, stopped=True)
        ready = generation.prepare(
            self._engine,
            settled,
            latents=earlier.latents,
            media=media,
            stopped=stopped,
            asked=asked,
        )
        self._processes.check(ready)
        return Run(ready, self._processes)

    @as_arguments(OF_A_PIPE)
    @bound
    def plan(self, prompt: Prompt | None = None, **fields: Any) -> Plan:
        """What a request would take: bytes, seconds, and whether it fits. `fields` are those of a call; the prompt and
        the input may be left out. Reads no weight. Raises InputError."""
        return plan_of(planned(self._wish, self._ground, {"prompt": prompt} | fields))

    def __reduce__(self) -> NoReturn:
        raise InputError("copying or pickling a pipe", "it holds a loaded model", "Load it where it is needed")

    def __repr__(self) -> str:
        plan = self._ground.plan
        return f"<cosmos3 pipeline: {self.model} in {plan.dtype} on {plan.backend.name} ({plan.device.name})>"

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("a run on a closed pipe", "its model was freed", "Load it again")

    @staticmethod
    def _elsewhere(name: str) -> str | None:
        return elsewhere(name)

    @plainly
    def _several(
        self,
        prompts: Sequence[Any],
        count: int,
        noise: Any,
        output: str | os.PathLike[str] | None,
        anyway: bool,
        fields: Mapping[str, Any],
    ) -> list[Run]:
        """A run for each output, all of them checked."""
        self._check_open()
        check_switch("anyway", anyway)
        inputs, media = media_of(fields)
        suffix = None if output is None else Path(path_of("output", output)).suffix
        runs: list[Run] = []
        given = {**fields, **dict.fromkeys(INPUTS), **inputs}
        seeded = fields.get("seed") is not None and not is_whole(given | {"prompt": None})
        for prompt in prompts:
            given = given | {"prompt": prompt}
            first: Generation | None = None
            for _ in range(count):
                settled = _settled(self._wish, self._ground, given, suffix=suffix)
                self._check_fits(settled, anyway)
                if runs:
                    counted = settled.origin | {"seed": f"counted on from {runs[0].seed}"}
                    settled = replace(settled, origin=counted)
                ready = first.again(settled) if first else self._prepared(settled, noise, seeded, media)
                first = first or ready
                self._processes.check(ready)
                runs.append(Run(ready, self._processes))
                given = given | {"seed": settled.request.seed + 1}
        return runs

    def _prepared(self, settled: Settled, noise: Any, seeded: bool, media: list[Media]) -> Generation:
        tensors, source = None, None
        if noise is not None:
            generation.check_seed_matters(settled, seeded)
            tensors, source = noise_of(noise, settled)
        return generation.prepare(self._engine, settled, noise=tensors, latents=source, media=media)

    def _check_fits(self, settled: Settled, anyway: bool, *, stopped: bool = False) -> None:
        refusal = room.refusal(settled, stopped=stopped) or room.crowded(settled, self._engine)
        if refusal and not anyway:
            raise refusal

    def _check_same(self, earlier: saved.Earlier, asked: str) -> None:
        """Raises InputError unless this pipe is what the run began on."""
        model, plan = self._ground.model, self._ground.plan
        here = {"model": model.name, "revision": model.repository.revision, "dtype": plan.dtype}
        for name, value in here.items():
            then = getattr(earlier, name)
            folders = name == "model" and os.path.isdir(then) and os.path.isdir(model.name)
            if value != then and not (folders and os.path.samefile(then, model.name)):
                found = f"it began with {name} {then}, and this pipe has {value}"
                raise InputError(asked, found, f"Load the {name} that it began with", "path")
        if earlier.formats != plan.formats:
            found = f"it began with formats {earlier.formats or 'none'}, and this pipe has {plan.formats or 'none'}"
            raise InputError(asked, found, "Load the same formats", "path")
        then, now = earlier.high_precision_steps, self._wish.high_precision_steps
        if then != now:
            found = f"it began with `{OPTION}` {then}, and this pipe has {now}"
            raise InputError(asked, found, f"Load with `{OPTION}` {then!r}", "path")

    def _written(self, run: Run, output: str, overwrite: bool, make: Callable[[Run], Result]) -> Result:
        """The result of a run, in its file."""
        ready, processes = run._generation, self._processes

        def checked() -> Paths:
            with about("output"):
                return outputs.checked_paths(output, ready.request, model=self.model, overwrite=overwrite)

        return written(run, processes.by_first(checked), make)
