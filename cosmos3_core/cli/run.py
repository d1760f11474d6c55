"""`cosmos3 run`: from the command line to a file, in the order in which things can go wrong cheaply."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.model import Model, open_model
from ..contract import InputError, RunError
from ..files.atomic import atomic, check_writable
from ..files.images import write_image
from ..files.outputs import check_output
from ..files.video import write_video
from ..plan import Plan, Want, choose_backend, resolve
from ..runs import manifest as manifests
from ..runs.saved import Earlier, keep, read_tensors, refuse_settled, repeated, stopped, tell, to_keep, write_tensors
from ..scenarios import request as requests
from ..scenarios.fields import FIELDS
from .plan import estimate_of, tiled

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..sampling.state import State

TILE = 256
"""Pixels, to propose where memory does not suffice for the decode."""
DEFAULT_MODEL = "nvidia/Cosmos3-Nano"
MAX_TEXT_BYTES = 1 << 20
SHORTHANDS = tuple(field.name for field in FIELDS.values() if field.option)
"""Request fields that have an option of their own."""


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
    disabled: tuple[str, ...]


STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""From the keyboard, from whoever started the process (Slurm, Docker, systemd), and from a terminal that closes."""


class Stopped(KeyboardInterrupt):
    """The user asked to stop; raised between two pieces of work, never inside one."""


@dataclass(frozen=True)
class Paths:
    """Where this run writes."""

    output: Path
    manifest: Path
    latents: Path | None

    @property
    def state(self) -> Path:
        return self.output.with_name(f"{self.output.name}.state.safetensors")


def execute(options: Options) -> None:
    """Run the command. Raises InputError before any weight is read for everything that can be known by then."""
    _check_given(options)
    earlier = _earlier(options)
    options, fields = (earlier.options, earlier.given) if earlier else (options, {})
    given = _given(options, fields)
    if inferred := "task" not in given:
        given["task"] = requests.infer_task(given, Path(options.output).suffix if options.output else None)
    profile = options.profile or requests.PROFILES[0]
    model = open_model(options.model or DEFAULT_MODEL, options.revision)
    request, origin = requests.resolve(given, profile, model.facts, pick_seed=lambda: secrets.randbelow(2**31))
    if inferred:
        origin["task"] = "the inputs"
    paths = _paths(options, request)
    plan, why = _plan(options, model)
    request, origin = tiled(request, origin, estimate_of(request, origin, model, plan), plan)
    named = earlier.why if earlier else ""
    settled = manifests.resolved(model, plan, profile, request, origin, why or named or "it was named")
    if earlier:
        earlier.check_plan(plan)
        settled |= {"latents": earlier.latents} if earlier.latents else {}
        settled |= {"resumed_at_step": earlier.numbers["index"]} if earlier.numbers else {}

    from ..engine.engine import Engine

    engine = Engine(model, plan)
    noise = _read_noise(options, request, model, settled) if options.latents else None
    inputs = engine.read_inputs(request, noise)
    if earlier:
        earlier.check_inputs(inputs)
    if why:
        print(why, file=sys.stderr)
    if options.dry_run:
        print(json.dumps(settled | {"notes": inputs.notes}, indent=2))
        return
    _generate(engine, request, inputs, paths, settled, to_keep(options, settled, inputs), earlier)
    print(paths.output)
    if options.resume:
        try:
            Path(options.resume).unlink(missing_ok=True)
        except OSError as error:
            tell(f"note: {options.resume} is used up and could not be deleted ({error.strerror})")


def _earlier(options: Options) -> Earlier | None:
    if options.resume:
        refuse_settled(options)
        return stopped(options, *read_tensors(options.resume, f"--resume {options.resume}"))
    if options.request:
        return repeated(options, _read_text(options.request, f"--request {options.request}"))
    return None


def _check_given(options: Options) -> None:
    """An option without text is a shell variable that was not set; to run with the default instead would be a guess."""
    for name, value in vars(options).items():
        if value == "" and name not in ("prompt", "negative_prompt"):
            raise InputError(f"--{name.replace('_', '-')} ''", "it is empty", "Give it a value or leave it out")


def _given(options: Options, given: dict[str, Any]) -> dict[str, Any]:
    """The request fields the user set: those of the request file, then --set's and the options'."""
    typed = {key: value for key in SHORTHANDS if (value := getattr(options, key)) is not None}
    if options.prompt is not None:
        typed["prompt"] = _prompt(options.prompt)
    if twice := sorted(options.fields.keys() & typed.keys()):
        found = f"it is set by an option of its own too, to {typed[twice[0]]!r}"
        raise InputError(f"--set {twice[0]}={options.fields[twice[0]]!r}", found, "Drop one of them")
    given = given | options.fields | typed
    requests.check_keys(given)
    return given


def _prompt(text: str) -> str:
    if not text.startswith("@"):
        return text
    return _read_text(text[1:], f"prompt {text}").strip()


def _read_text(name: str, asked: str) -> str:
    """A small text file, or standard input for "-". Its size is bounded before it is read."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), "Check the path") from None
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(asked, "it is larger than 1 MiB", "Prompts are a few thousand characters")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(asked, "it is not UTF-8 text", "Save it as UTF-8") from None


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
    return Paths(output, manifest, latents)


def _plan(options: Options, model: Model) -> tuple[Plan, str]:
    """The plan, and what to tell the user of the backend's choice."""
    want = Want.of(model.config, options.dtype or model.dtype, options.kernels, options.formats)
    backend, device, why = choose_backend(options.backend, options.disabled)
    plan = resolve(want, backend, device)
    plan.require(options.required)
    return plan, why


def _read_noise(options: Options, request: requests.Request, model: Model, settled: dict[str, Any]) -> list:
    from ..files.digests import sha256_file
    from ..scenarios.items import items_of

    name, then = options.latents, settled.get("latents")
    if (options.seed is not None or "seed" in options.fields) and request.schedule != "distilled":
        found = "it would change nothing: the noise is in the file"  # and only that sampler draws more of it
        raise InputError(f"--seed {request.seed} with --latents", found, "Drop one")
    tensors, _ = read_tensors(name, f"--latents {name}")
    settled["latents"] = {"file": name, "sha256": sha256_file(Path(name))}
    if then and then["file"] == name and then != settled["latents"]:
        found = f"{name} has changed since the run of that manifest"
        raise InputError(f"--request {options.request}", found, "Put the old file back, or name another by --latents")
    wanted = [f"noise.{item.modality}" for item in items_of(request, model.config)]
    if missing := [key for key in wanted if key not in tensors]:
        raise InputError(f"--latents {name}", f"it has no tensor {missing[0]}", "Use a file that --save-latents wrote")
    return [tensors[key] for key in wanted]


def _generate(
    engine: Engine,
    request: requests.Request,
    inputs: Inputs,
    paths: Paths,
    settled: dict[str, Any],
    kept: dict[str, Any],
    earlier: Earlier | None,
) -> None:
    from .progress import Display

    for note in inputs.notes:
        print(f"note: {note}", file=sys.stderr)
    display = Display(request.steps)
    engine.on_stage = display.stage
    engine.open_weights()  # before the display begins: a download has progress bars of its own
    with _memory_told(engine, request), display, _stop_signal() as check_stop:

        def begin(stage: str) -> None:
            check_stop()
            display.stage(stage)

        engine.on_stage = begin
        state = engine.start(request, inputs)
        if earlier and earlier.state is not None:
            state.restore(earlier.state, earlier.numbers)
        try:
            display.steps_done(state.index)
            while not state.done:
                check_stop()
                engine.step(state)
                display.steps_done(state.index)
            frames = _frames(engine, state, check_stop)
            _write(paths, frames, state, describe=lambda: manifests.complete(settled, engine, inputs, state))
        except BaseException:
            keep(paths.state, paths.output, state, kept, earlier and earlier.options.resume)
            raise


@contextmanager
def _memory_told(engine: Engine, request: requests.Request) -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        found, then = ". ".join(str(error).split(". ")[:2]), "cosmos3 plan says what fits"
        tile, larger_side = request.tile or math.inf, max(request.width, request.height)
        if "load vae decoder" in engine.seconds and TILE < min(tile, larger_side):
            then += f"; --tile {TILE} makes the decode smaller, also with --resume"
        raise RunError(f"running on {engine.plan.device.name}", found, then) from error


@contextmanager
def _stop_signal() -> Iterator[Callable[[], None]]:
    """The first Ctrl-C, or whatever else asks a process to end, lets the piece of work in hand end and then stops; the
    second stops at once."""
    asked = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        tell("stopping after what is under way (Ctrl-C again: at once)")

    def check() -> None:
        if asked:
            raise Stopped

    # What nohup and the like have it ignore stays ignored.
    heard = [number for number in STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in heard}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        write_tensors(paths.latents, tensors, {manifests.KEY: json.dumps(manifest)})
