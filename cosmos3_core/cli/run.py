"""`cosmos3 run`: from the command line to a file, in the order in which things can go wrong cheaply."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..contract import InputError, RunError
from ..engine.stages import Cancelled
from ..files.action_tables import SUFFIXES
from ..parallel.launchers import Started
from ..plan.cost.units import GIB
from ..plan.known import ALL
from ..plan.placement import OFFLOADED
from ..quant.steps import OPTION
from ..runs import generation, outputs, room, saved
from ..runs import manifest as manifests
from ..runs.generation import Generation
from ..runs.keeping import Keeper, stopped_runs
from ..runs.outputs import Moved, Paths
from ..runs.processes import Processes
from ..runs.saved import PLAN_OPTIONS, STAYING, Earlier, Source, Stopped
from ..scenarios import request as requests
from ..scenarios.captions import check_no_file
from ..scenarios.defaults import PROFILES
from ..scenarios.families import TASKS
from ..scenarios.sound import SOUND_SUFFIXES
from ..settle import Settled, Wish, settle
from .forecast import show_all
from .options import DEFAULT_MODEL, flag
from .plan import show
from .processes import among, layout_of, met, start, stopping, working
from .stopping import Stop, stop_signal
from .terminal import remark, tell
from .texts import PROMPTS, files_of, read_text, texts, texts_read
from .typed import FREE, NAMES, PLACING, REPORT, SHORTHANDS, Options

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..files.audio import Sound


def execute(options: Options) -> None:
    """Run the command. Raises InputError before any weight is read for everything that can be known by then."""
    one = among(options)
    return working(options, one, _execute) if one else _execute(options, None)


def _execute(options: Options, one: Started | None) -> None:
    _check_given(options)
    processes = met(one, options)
    stopped = _stopped(options)
    earlier = stopped.earlier if stopped else _repeated(options)
    given, named = _given(options, earlier), _why_named(options, earlier)
    options = _joined(options, earlier, stopped is not None)
    if (wish := replace(_wish(options, given), started=one.count if one else None)).device == ALL:
        show_all(replace(wish, device=None), as_json=options.as_json)
    settled = settle(processes.agreed(wish, options.picked))
    if settled.wish.partial:
        _report(options, settled, manifests.resolved(settled, named), settled.notes)
    paths = _paths(options, settled.request) if processes.writes else None
    processes.take_device(settled.plan)
    _check_kernels(options, earlier, settled)

    from ..engine.engine import Engine

    noise, latents = None, earlier.latents
    if options.latents:
        noise, latents = _read_noise(options.latents, options, settled)
    run = generation.prepare(
        Engine(settled.model, settled.plan, placement=settled.placement, limit=wish.memory_limit),
        settled,
        named=named,
        noise=noise,
        latents=latents,
        stopped=stopped,
        repeated=earlier if options.request else None,
        changed=options.changed,
        asked=f"`resume` {options.resume}" if stopped else f"`request` {options.request}",
        texts=texts_read(vars(options)),
        said=[earlier.note] if earlier.note else [],
    )
    settled = settled.with_texts(len(run.inputs.prompt), len(run.inputs.negative))
    if options.dry_run:
        _report(options, settled, run.resolved, run.inputs.notes)
    refusal = room.refusal(settled, stopped=stopped is not None) or room.crowded(settled, run.engine)
    if refusal and not options.anyway:
        raise refusal
    processes.check(run)
    if paths is None:
        return processes.follow(run)
    if (count := settled.plan.layout.size) > processes.count:
        return start(options, settled.request.seed, str(paths.output), count)
    for line in settled.why.splitlines():
        remark(line)
    _name_stopped(paths, options)
    try:
        _generate(run, paths, options, processes, anyway=refusal is not None)
    except (KeyboardInterrupt, Cancelled):
        if not (options.resume or run.index):
            tell("nothing was computed yet, so nothing is kept")
        raise
    processes.part()


def _report(options: Options, settled: Settled, resolved: dict[str, Any], notes: Sequence[str]) -> NoReturn:
    """What a dry run ends with. Exit code 1 where the run would be refused because it does not fit."""
    show(settled, resolved, notes, as_json=options.as_json)
    for line in settled.why.splitlines():
        remark(line)
    sys.exit(0 if settled.fits or options.anyway else 1)


def _stopped(options: Options) -> Stopped | None:
    """The run to go on with."""
    if not options.resume:
        return None
    _refuse_settled(options)
    return saved.read_stopped(options.resume, f"`resume` {options.resume}")


def _repeated(options: Options) -> Earlier:
    """What the run to repeat has settled: nothing, where there is none."""
    if not options.request:
        return Earlier(given={})
    asked = f"--request {options.request}"
    text = _request_text(options.request, asked)
    earlier = saved.read_request(text, asked, options.request, changed=options.changed)
    if earlier.note:
        model = f"; model {options.model or earlier.model}" if earlier.model else ""
        other = f" in the place of {earlier.model}" if options.model and earlier.model else ""
        whose = options.profile or f"{earlier.profile} (--profile chooses another)"
        earlier = replace(earlier, note=f"{earlier.note}{model}{other}; defaults of profile {whose}")
        remark(f"note: {earlier.note}")
    elif earlier.profile and options.profile:
        found = "the manifest has every value already, so there is nothing left for a profile's defaults"
        raise InputError(f"--profile {options.profile} with {asked}", found, "Drop --profile")
    return earlier


def _request_text(name: str, asked: str) -> str:
    """A request file; of a picture or clip that a run wrote, the manifest in it."""
    try:
        return read_text(name, asked)
    except InputError:
        if Path(name).suffix.lower() not in {*SOUND_SUFFIXES, *(task.suffix for task in TASKS.values())}:
            raise
    return json.dumps(manifests.read_manifest(name, asked))


def _why_named(options: Options, earlier: Earlier) -> str:
    """Why a backend is taken that is not chosen here."""
    if options.backend or not earlier.backend:
        return "it was named"
    return "the stopped run had it" if options.resume else "the manifest has it"


def _refuse_settled(options: Options) -> None:
    """InputError for an option that the stopped run has settled."""
    for name, value in vars(options).items():
        untyped = value in (None, {}, ()) or (value is False and name not in SHORTHANDS)
        if name not in FREE and not untyped:
            option, what = NAMES.get(name, f"--{name.replace('_', '-')}"), "plan" if name in PLAN_OPTIONS else "request"
            raise InputError(f"{option} with --resume", f"the stopped run has settled its {what}", f"Drop {option}")


def _joined(options: Options, earlier: Earlier, goes_on: bool) -> Options:
    """The options with what an earlier run settled in the place of those that were not typed. A run that goes on has
    its noise in its state."""
    names = ("profile", "dtype", OPTION, *STAYING)
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
    """A dry run without a prompt asks for the plan of a size and a task, of a published model without a download."""
    partial = options.dry_run and "prompt" not in given
    suffix = Path(options.output).suffix if options.output else SOUND_SUFFIXES[0] if options.sound_only else None
    return Wish(
        model=options.model or DEFAULT_MODEL,
        revision=options.revision,
        described=partial,
        partial=partial,
        given=given,
        suffix=suffix,
        decodes=suffix is None or suffix.lower() not in (*SOUND_SUFFIXES, *SUFFIXES),
        profile=options.profile or PROFILES[0],
        backend=options.backend,
        disabled=options.disabled,
        dtype=options.dtype,
        kernels=options.kernels,
        formats=options.formats,
        high_precision_steps=options.high_precision_steps,
        required=options.required,
        resident=options.resident,
        placement=options.placement or (OFFLOADED if options.enable_layerwise_offload else None),
        chooses=not options.resident,
        memory_limit=_bytes(options.memory_limit),
        host_memory=_bytes(options.host_memory),
        memory=_bytes(options.memory),
        device=options.device,
        arch=options.arch,
        parallel=layout_of(options),
        devices=options.devices,
        objective=options.objective,
    )


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


def _check_kernels(options: Options, earlier: Earlier, settled: Settled) -> None:
    """Another kernel would end in another picture: a run that goes on refuses that, a repeated one says so."""
    if options.resume:
        generation.check_same_kernels(earlier, settled, f"`resume` {options.resume}")
    for op, used, here in generation.other_kernels(earlier, settled):
        remark(f"note: {op} ran on {used} in that run, and is {here} here")
    if options.request and earlier.ran_on and earlier.layout != settled.plan.layout:
        then, now = (
            "one device" if one.size == 1 else f"{one.size} devices, as {one}"
            for one in (earlier.layout, settled.plan.layout)
        )
        remark(f"note: that run had {then}, and this one has {now}: numbers may be rounded otherwise")


def _check_given(options: Options) -> None:
    """An option without text is a shell variable that was not set; to run with the default instead would be a guess."""
    for name, value in vars(options).items():
        if value == "" and name not in ("prompt", "negative_prompt"):
            raise InputError(f"--{name.replace('_', '-')} ''", "it is empty", "Give it a value or leave it out")
        if name in REPORT and value not in (None, False) and not options.dry_run:
            found = "a run that is no dry run takes what is here and reports in its manifest"
            here = "; what is here is named by --backend" if name in ("device", "arch") else ""
            here = "; --memory-limit bounds a run" if name == "memory" else here
            raise InputError(REPORT[name], found, f"Type cosmos3 plan, or add --dry-run{here}")
    if options.sound_only and options.output and Path(options.output).suffix.lower() not in SOUND_SUFFIXES:
        found, another = "the sound alone is a .wav or .flac", Path(options.output).with_suffix(SOUND_SUFFIXES[0])
        raise InputError(f"--sound-only with `output` {options.output}", found, f"Pass `output` {another}")
    if options.changed and not (options.request or options.resume):
        found = "it says that files of an earlier run may have changed"
        raise InputError("`changed` without `request` or `resume`", found, "Name that run by one of them, or drop it")
    for name in ("memory", "memory_limit", "host_memory"):
        size = getattr(options, name)
        if size is not None and not 0 < size < 1 << 20:
            raise InputError(f"{flag(name)} {size:g}", "that is no memory", "Give it in GiB")
    if len(placed := [flag(name) for name in PLACING[:3] if getattr(options, name)]) > 1:
        raise InputError(" with ".join(placed), "each says where weights lie", "Keep one of them")


def _given(options: Options, earlier: Earlier) -> dict[str, Any]:
    """The request fields the user set: those of the request file, then --set's and the options'."""
    given = earlier.given
    for name in PROMPTS:
        check_no_file(name, (options.fields if earlier.ran_on else given | options.fields).get(name))
    typed = {key: value for key in SHORTHANDS if (value := getattr(options, key)) not in (None, ())}
    typed |= texts(vars(options))
    if twice := sorted(options.fields.keys() & typed.keys()):
        found = f"it is set by an option of its own too, to {typed[twice[0]]!r}"
        raise InputError(f"--set {twice[0]}={options.fields[twice[0]]!r}", found, "Drop one of them")
    return given | options.fields | typed


def _paths(options: Options, request: requests.Request) -> Paths:
    output = options.output
    if output is None:
        suffix = SOUND_SUFFIXES[0] if options.sound_only else ".mp4" if request.is_video else ".png"
        named = Path(f"cosmos3-{request.seed}{suffix}")
        output = str(named if options.overwrite else outputs.free_output(named))
    return outputs.checked_paths(
        output,
        request,
        manifest=options.manifest,
        latents=options.save_latents,
        sound=options.save_sound,
        plot=options.plot,
        sheet=options.sheet,
        read=(options.latents, options.resume, options.request, *files_of(vars(options))),
        model=options.model,
        overwrite=options.overwrite,
    )


def _read_noise(name: str, options: Options, settled: Settled) -> tuple[list[Tensor], Source]:
    generation.check_seed_matters(settled, options.seed is not None or "seed" in options.fields)
    return generation.read_noise(name, settled)


def _name_stopped(paths: Paths, options: Options) -> None:
    """Steps of an earlier run of this output, which was stopped or killed, are said to be there."""
    if not options.resume and (found := stopped_runs(paths.state)):
        others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        resume = _resume(found[-1], paths, options, anyway=False)
        remark(f"note: an earlier run of {paths.output} was stopped{others}; to go on with it instead: {resume}")


def _resume(state: Path, paths: Paths, options: Options, anyway: bool) -> str:
    """The command line that goes on with a stopped run."""
    words = ["cosmos3", "run", "--resume", str(state), "-o", str(paths.output)]
    for name in ("manifest", "save_latents", "save_sound", "plot", "sheet"):
        value = getattr(options, name)
        words += [f"--{name.replace('_', '-')}", value] if value else []
    words += ["--overwrite"] if options.overwrite else []
    words += ["--sound-only"] if options.sound_only else []
    return shlex.join(words + (["--anyway"] if anyway else []))


def _generate(run: Generation, paths: Paths, options: Options, processes: Processes, anyway: bool) -> None:
    """From the weights to the files. Until they are there, no signal ends more than the piece of work in hand."""
    from .progress import Display

    display = Display(lambda: run.engine.loading)
    with stop_signal() as stop, paths.alone():
        run.watch(display.show, stopping(options, processes, stop))
        with stop.at(1):
            run.open_weights()  # before the display begins: a download has progress bars of its own
        for note in run.inputs.notes:
            remark(f"note: {note}")
        keeper = Keeper(run, paths.state, options.resume)
        with display:
            with stop.at(2):
                run.begin()
            try:
                while not run.done:
                    with stop.at(2):
                        run.step()
                    keeper.between_steps()
                run.watch(display.show, stop)  # the others are done
                run.write(paths, lambda: _stoppable(processes.frames(run), stop), lambda: _heard(run, stop))
            except Moved:
                _use_up(keeper, options)
                raise
            except BaseException:
                _keep(keeper, paths, options, anyway)
                raise
        _use_up(keeper, options)
        print(paths.output)


def _stoppable(frames: Iterator[np.ndarray], stop: Stop) -> Iterator[np.ndarray]:
    """The frames. The second signal ends the decode of one, and not the writing of it."""
    while True:
        with stop.at(2):
            frame = next(frames, None)
        if frame is None:
            return
        yield frame


def _heard(run: Generation, stop: Stop) -> Sound | None:
    """The sound, as `_stoppable` the frames."""
    with stop.at(2):
        return run.sound()


def _use_up(keeper: Keeper, options: Options) -> None:
    """The files in which a run that is whole was kept go; one that somebody gave a name stays."""
    try:
        keeper.discard()
        if options.resume and saved.named_here(options.resume):
            Path(options.resume).unlink(missing_ok=True)
    except OSError as error:
        tell(f"note: {error.filename} is used up and could not be deleted ({error.strerror})")


def _keep(keeper: Keeper, paths: Paths, options: Options, anyway: bool) -> None:
    """Save what was computed, so that a stop, a full disk or too small a memory does not cost it, and say so."""
    try:
        path = keeper.keep()
    except RunError as error:
        tell(str(error))
        return
    if path:
        done = f"{keeper.run.index} of {keeper.run.steps} steps are"
        tell(f"{done} kept; go on with: {_resume(path, paths, options, anyway)}")
