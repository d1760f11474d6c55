"""`cosmos3 run`: from the command line to a file, in the order in which things can go wrong cheaply."""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import InputError, RunError
from ..files.atomic import atomic, check_writable, mode_at
from ..files.digests import sha256_file
from ..files.images import write_image
from ..files.outputs import check_output
from ..files.video import write_video
from ..runs import manifest as manifests
from ..runs import saved
from ..runs.saved import PLAN_OPTIONS, STAYING, Earlier, Source, Stopped
from ..scenarios import request as requests
from ..scenarios.fields import FIELDS
from ..settle import Settled, Wish, settle
from .plan import gib, options_of
from .stopping import stop_signal, tell
from .texts import read_text, texts, texts_read

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..sampling.state import State

TILE = 256
"""Pixels, to propose where memory does not suffice for the decode."""
DEFAULT_MODEL = "nvidia/Cosmos3-Nano"
SHORTHANDS = tuple(field.name for field in FIELDS.values() if field.option)
"""Request fields that have an option of their own."""
FREE = ("output", "tile", "resume", "dry_run", "anyway", "disabled", *STAYING)
"""Options that may stand beside --resume; all others a stopped run has settled. A tile may, because memory may be what
stopped it."""
NAMES = {"prompt": "a prompt", "fields": "--set", "kernels": "--kernel", "formats": "--format"}
"""Of options that are called otherwise here."""


@dataclass(frozen=True)
class Options:
    """The command line, as typed."""

    prompt: str | None
    model: str | None
    revision: str | None
    output: str | None
    task: str | None
    image: str | None
    video: str | None
    video_fps: str | None
    size: str | None
    frames: int | None
    fps: float | None
    steps: int | None
    guidance: float | None
    shift: float | None
    seed: int | None
    negative_prompt: str | None
    tile: int | None
    fields: dict[str, Any]
    request: str | None
    profile: str | None
    backend: str | None
    kernels: dict[str, str]
    formats: dict[str, str]
    required: dict[str, str]
    dtype: str | None
    latents: str | None
    save_latents: str | None
    resume: str | None
    manifest: str | None
    dry_run: bool
    anyway: bool
    disabled: tuple[str, ...]


@dataclass(frozen=True)
class Paths:
    """Where this run writes."""

    output: Path
    manifest: Path
    latents: Path | None

    @property
    def state(self) -> Path:
        """Where a stopped run is kept."""
        return self.output.with_name(f"{self.output.name}.state.safetensors")


@dataclass(frozen=True)
class Run:
    """All that a run reads and writes beside its request: `resolved` is the first half of its manifest, `resumable`
    what another run needs to go on with it, `stopped` the run that it goes on with itself, out of the file `resumed`;
    `anyway` that it runs though it does not seem to fit."""

    paths: Paths
    inputs: Inputs
    resolved: dict[str, Any]
    resumable: Earlier
    stopped: Stopped | None
    resumed: str | None
    anyway: bool


def execute(options: Options) -> None:
    """Run the command. Raises InputError before any weight is read for everything that can be known by then."""
    _check_given(options)
    stopped = _stopped(options)
    earlier = stopped.earlier if stopped else _repeated(options)
    given, named = _given(options, earlier.given), _why_named(options, earlier)
    options = _joined(options, earlier, stopped is not None)
    settled = settle(_wish(options, given))
    paths = _paths(options, settled.request)
    _check_kernels(options, earlier, settled)
    refusal = _refusal(options, settled)
    if refusal and not (options.dry_run or options.anyway):
        raise refusal

    from ..engine.engine import Engine

    engine = Engine(settled.model, settled.plan)
    noise, latents = None, earlier.latents
    if options.latents:
        noise, latents = _read_noise(options.latents, options, settled, earlier)
    inputs = engine.read_inputs(settled.request, noise)
    if stopped and earlier.pixels != saved.pixels_digest(inputs.pixels):
        found = "the picture or clip that it began with has changed since"
        raise InputError(f"--resume {options.resume}", found, "Put the old file back, or start the run again")
    if stopped:
        engine.check_saved(settled.request, stopped.tensors, stopped.numbers)
    resolved = manifests.resolved(settled, named)
    resolved |= {"latents": asdict(latents)} if latents else {}
    resolved |= {"inputs": texts_read(vars(options)) | inputs.facts}
    resolved |= {"resumed_at_step": stopped.numbers["index"]} if stopped else {}
    if settled.why:
        print(settled.why, file=sys.stderr)
    if options.dry_run:
        print(json.dumps(resolved | {"notes": inputs.notes}, indent=2))
        if refusal:
            tell(f"note: the run itself would be refused: {refusal}")
        return
    resumable = Earlier.of(settled, inputs, latents, save_latents=options.save_latents, manifest=options.manifest)
    run = Run(paths, inputs, resolved, resumable, stopped, options.resume, anyway=refusal is not None)
    _generate(engine, settled.request, run)
    print(paths.output)
    if options.resume:
        try:
            Path(options.resume).unlink(missing_ok=True)
        except OSError as error:
            tell(f"note: {options.resume} is used up and could not be deleted ({error.strerror})")


def _stopped(options: Options) -> Stopped | None:
    """The run to go on with."""
    if not options.resume:
        return None
    _refuse_settled(options)
    return saved.read_stopped(options.resume, f"--resume {options.resume}")


def _repeated(options: Options) -> Earlier:
    """What the run to repeat has settled: nothing, where there is none."""
    if not options.request:
        return Earlier(given={})
    asked = f"--request {options.request}"
    earlier = saved.read_request(read_text(options.request, asked), asked)
    if earlier.profile and options.profile:
        found = "the manifest has every value already, so there is nothing left for a profile's defaults"
        raise InputError(f"--profile {options.profile} with {asked}", found, "Drop --profile")
    return earlier


def _why_named(options: Options, earlier: Earlier) -> str:
    """Why a backend is taken that is not chosen here."""
    if options.backend or not earlier.backend:
        return "it was named"
    return "the stopped run had it" if options.resume else "the manifest has it"


def _refuse_settled(options: Options) -> None:
    """InputError for an option that the stopped run has settled."""
    for name, value in vars(options).items():
        if name not in FREE and value not in (None, {}):
            option, what = NAMES.get(name, f"--{name.replace('_', '-')}"), "plan" if name in PLAN_OPTIONS else "request"
            raise InputError(f"{option} with --resume", f"the stopped run has settled its {what}", f"Drop {option}")


def _joined(options: Options, earlier: Earlier, goes_on: bool) -> Options:
    """The options with what an earlier run settled in the place of those that were not typed. A run that goes on has
    its noise in its state."""
    names = ("profile", "dtype", *STAYING)
    values = {name: getattr(options, name) or getattr(earlier, name) for name in names}
    values["formats"] = {**earlier.formats, **options.formats}
    if options.backend is None:  # another backend has other kernels
        values |= {"backend": earlier.backend, "kernels": {**earlier.kernels, **options.kernels}}
    if options.model is None:
        values |= {"model": earlier.model, "revision": options.revision or earlier.revision}
    if options.latents is None and earlier.latents and not goes_on:
        values["latents"] = earlier.latents.file
    return replace(options, **values)


def _wish(options: Options, given: dict[str, Any]) -> Wish:
    return Wish(
        model=options.model or DEFAULT_MODEL,
        revision=options.revision,
        given=given,
        suffix=Path(options.output).suffix if options.output else None,
        profile=options.profile or requests.PROFILES[0],
        pick_seed=lambda: secrets.randbelow(2**31),
        backend=options.backend,
        disabled=options.disabled,
        dtype=options.dtype,
        kernels=options.kernels,
        formats=options.formats,
        required=options.required,
    )


def _check_kernels(options: Options, earlier: Earlier, settled: Settled) -> None:
    """Another kernel would end in another picture: a run that goes on refuses that, a repeated one says so."""
    plan = settled.plan.to_json(settled.execution.tokens)
    here = plan["kernels"] | {op: f"done inside {composites}" for op, composites in plan["fused"].items()}
    for op, used in earlier.ran_on.items():
        if here.get(op) == used:
            continue
        if options.resume:
            found = f"its {op} ran on {used}, and here it would be {here.get(op)}"
            raise InputError(f"--resume {options.resume}", found, "Restore that, or start the run again")
        print(f"note: {op} ran on {used} in that run, and is {here.get(op)} here", file=sys.stderr)


def _refusal(options: Options, settled: Settled) -> InputError | None:
    """Of a run that does not fit in the device's memory, with the nearest one that does."""
    if settled.fits:
        return None
    request, device, worst = settled.request, settled.plan.device, settled.worst
    asked = f"{request.task} {request.width}x{request.height}, {request.frames} frames, on {device.name}"
    found = f"its stage {worst.name!r} takes {gib(worst.peak)}, and there are {gib(device.memory)}"
    # A stopped run has settled all but the tile.
    changes = [change for change in settled.nearest() if not options.resume or change.values.keys() == {"tile"}]
    next_step = "Use a smaller model or a larger device (see cosmos3 plan)"
    if changes:
        next_step = f"Add {options_of(changes[0].values)}, which fits (cosmos3 plan lists other ways)"
    return InputError(f"{settled.model.name}: {asked}", found, f"{next_step}, or --anyway to try it as it is")


def _check_given(options: Options) -> None:
    """An option without text is a shell variable that was not set; to run with the default instead would be a guess."""
    for name, value in vars(options).items():
        if value == "" and name not in ("prompt", "negative_prompt"):
            raise InputError(f"--{name.replace('_', '-')} ''", "it is empty", "Give it a value or leave it out")


def _given(options: Options, given: dict[str, Any]) -> dict[str, Any]:
    """The request fields the user set: those of the request file, then --set's and the options'."""
    typed = {key: value for key in SHORTHANDS if (value := getattr(options, key)) is not None}
    typed |= texts(vars(options))
    if twice := sorted(options.fields.keys() & typed.keys()):
        found = f"it is set by an option of its own too, to {typed[twice[0]]!r}"
        raise InputError(f"--set {twice[0]}={options.fields[twice[0]]!r}", found, "Drop one of them")
    given = given | options.fields | typed
    requests.check_keys(given)
    return given


def _paths(options: Options, request: requests.Request) -> Paths:
    suffix = ".mp4" if request.is_video else ".png"
    output = Path(options.output or f"cosmos3-{request.seed}{suffix}")
    check_output(output, clip=request.is_video)
    manifest = Path(options.manifest or f"{output}.json")
    latents = Path(options.save_latents) if options.save_latents else None
    read = (request.image, request.video, options.latents, options.resume, options.request)
    taken = {os.path.realpath(name) for name in read if name}
    for path in filter(None, (output, manifest, latents)):
        if (real := os.path.realpath(path)) in taken:
            raise InputError(f"writing {path}", "another file of this run has that name", "Choose another file name")
        taken.add(real)
        check_writable(path)
    paths = Paths(output, manifest, latents)
    mode_at(paths.state, "Choose another name with -o")
    if os.path.realpath(paths.state) in map(os.path.realpath, filter(None, (manifest, latents))):
        found = "a stop would keep the run there, and another file of this run has that name"
        raise InputError(f"writing {paths.state}", found, "Choose another file name")
    return paths


def _read_noise(name: str, options: Options, settled: Settled, earlier: Earlier) -> tuple[list[Tensor], Source]:
    from ..scenarios.items import items_of

    request, before = settled.request, earlier.latents
    if (options.seed is not None or "seed" in options.fields) and request.schedule != "distilled":
        found = "it would change nothing: the noise is in the file"  # and only that sampler draws more of it
        raise InputError(f"--seed {request.seed} with --latents", found, "Drop one")
    tensors, _ = saved.read_tensors(name, f"--latents {name}")
    source = Source(name, sha256_file(Path(name)))
    if before and before.file == name and before != source:
        found = f"{name} has changed since the run of that manifest"
        raise InputError(f"--request {options.request}", found, "Put the old file back, or name another by --latents")
    wanted = [f"noise.{item.modality}" for item in items_of(request, settled.model.config)]
    if missing := [key for key in wanted if key not in tensors]:
        raise InputError(f"--latents {name}", f"it has no tensor {missing[0]}", "Use a file that --save-latents wrote")
    return [tensors[key] for key in wanted], source


def _generate(engine: Engine, request: requests.Request, run: Run) -> None:
    from .progress import Display

    for note in run.inputs.notes:
        print(f"note: {note}", file=sys.stderr)
    display = Display(request.steps)
    engine.on_stage = display.stage
    engine.open_weights()  # before the display begins: a download has progress bars of its own
    with _memory_explained(engine, request), display, stop_signal() as check_stop:

        def begin(stage: str) -> None:
            check_stop()
            display.stage(stage)

        engine.on_stage = begin
        state = engine.start(request, run.inputs)
        if run.stopped:
            state.restore(run.stopped.tensors, run.stopped.numbers)
        try:
            display.steps_done(state.index)
            while not state.done:
                check_stop()
                engine.step(state)
                display.steps_done(state.index)
            frames = _frames(engine, state, check_stop)
            _write(run.paths, frames, state, lambda: manifests.complete(run.resolved, engine, run.inputs, state))
        except BaseException:
            _keep(run, state)
            raise


def _keep(run: Run, state: State) -> None:
    """Save what was computed, so that a stop, a full disk or too small a memory does not cost it, and say so."""
    path, output = saved.unused(run.paths.state, run.resumed), run.paths.output
    if state.index == 0:
        return
    try:
        if not saved.save(path, state, run.resumable):
            return
    except Exception as error:  # a full disk, a device that no longer answers
        still = f"; {run.resumed} still holds those before it" if run.resumed else ""
        tell(f"{state.index} of {state.steps} steps are lost: {error}{still}")
        return
    resume = ["cosmos3", "run", "--resume", str(path), "-o", str(output), *(["--anyway"] if run.anyway else [])]
    tell(f"{state.index} of {state.steps} steps are kept; go on with: {shlex.join(resume)}")


@contextmanager
def _memory_explained(engine: Engine, request: requests.Request) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        found, next_step = ". ".join(str(error).split(". ")[:2]), "cosmos3 plan says what fits"
        tile, larger_side = request.tile or math.inf, max(request.width, request.height)
        if "load vae decoder" in engine.seconds and TILE < min(tile, larger_side):
            next_step += f"; --tile {TILE} makes the decode smaller, also with --resume"
        raise RunError(f"running on {engine.plan.device.name}", found, next_step) from error


def _frames(engine: Engine, state: State, check_stop: Callable[[], None]) -> Iterator:
    for group in engine.finish(state):
        for frame in group.numpy():
            check_stop()
            yield frame


def _write(paths: Paths, frames: Iterator, state: State, describe: Callable[[], dict[str, Any]]) -> None:
    """The file, the manifest in it and beside it (which also knows the decode), and the latents if asked for."""
    request, embedded = state.request, {manifests.KEY: json.dumps(describe())}
    if request.is_video:
        written = vars(write_video(paths.output, frames, request.fps, embedded))
    else:
        (frame,) = frames
        write_image(paths.output, frame, embedded)
        written = {"frames": 1, "width": request.width, "height": request.height}
    manifest = describe() | {"output": {"file": paths.output.name} | written}
    with atomic(paths.manifest) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    if paths.latents:
        tensors = {f"noise.{item.modality}": noise for item, noise in zip(state.items, state.noise, strict=True)}
        final = zip(state.items, state.latents(), strict=True)
        tensors |= {f"final.{item.modality}": latent.cpu().contiguous() for item, latent in final}
        saved.write_tensors(paths.latents, tensors, {manifests.KEY: json.dumps(manifest)})
