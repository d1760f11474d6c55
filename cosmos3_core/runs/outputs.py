"""Where a run writes: names that are checked before it, are its own while it goes on, and get files at its end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..contract import InputError, RunError
from ..files.action_tables import SUFFIXES, write_actions
from ..files.atomic import Unwritable, alone, atomic, check_writable, elsewhere, free, mode_at
from ..files.audio import Sound, write_sound
from ..files.images import write_image
from ..files.locks import sweep
from ..files.outputs import check_output, check_sound, is_sound
from ..files.sheets import Sheet
from ..files.sources import check_name
from ..files.video import write_video
from . import manifest as manifests
from . import saved, sealed
from .drawings import PLOT, SHEET, check_drawings, check_wide, plot_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..scenarios.request import Request

T = TypeVar("T")
MANIFEST = ".json"
"""What the manifest's name adds to that of its output."""


@dataclass(frozen=True)
class Paths:
    """Where a run writes: its picture, clip or sound, the manifest beside it, its latents and a clip's `sound` in files
    of their own if they are asked for, tables of the actions that it predicts, if any, a `plot` of its actions and a
    contact `sheet` of its clip; and whether it may `overwrite` what is there."""

    output: Path
    manifest: Path
    latents: Path | None = None
    overwrite: bool = False
    sound: Path | None = None
    tables: tuple[Path, ...] = ()
    plot: Path | None = None
    sheet: Path | None = None

    @property
    def state(self) -> Path:
        """Where a stopped run is kept."""
        return Path(f"{self.output}.state.safetensors")  # also of a folder, which is refused below

    @property
    def written(self) -> tuple[Path, ...]:
        """What a whole run leaves."""
        return tuple(
            filter(None, (self.output, self.manifest, self.latents, self.sound, *self.tables, self.plot, self.sheet))
        )

    @property
    def only_actions(self) -> bool:
        """Whether the output is a table of actions, and nothing is decoded to be looked at."""
        return self.output.suffix.lower() in SUFFIXES

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For the time of the block no other run writes to one of these. Raises InputError where one does."""
        with alone((*self.written, self.state)):
            yield


@dataclass(frozen=True)
class Made:
    """What a run made, asked for when it is written: the frames, uint8 [H, W, 3] each, the sound, if it has one, and
    the actions (rows, and what a row is), if there are some."""

    frames: Callable[[], Iterable[np.ndarray]]
    sound: Callable[[], Sound | None]
    actions: Callable[[], tuple[np.ndarray, dict[str, Any]]] | None = None


class Moved(RunError):
    """The run succeeded, and what it made could not be written where it was asked for and is at another `path`."""

    path: Path


def checked_paths(
    output: str | os.PathLike[str],
    request: Request,
    *,
    manifest: str | os.PathLike[str] | None = None,
    latents: str | os.PathLike[str] | None = None,
    sound: str | os.PathLike[str] | None = None,
    plot: str | os.PathLike[str] | None = None,
    sheet: str | os.PathLike[str] | None = None,
    read: Iterable[str | None] = (),
    model: str | None = None,
    overwrite: bool = False,
) -> Paths:
    """Where a run of this request writes. Raises InputError for what cannot be written, for what is there unless it may
    `overwrite`, and for a name that is taken by another of its files, by one that it `read` or by one of its `model`,
    under whatever name. What dead runs left in these folders goes."""
    output = Path(output)
    beside = [Path(name) if name else None for name in (latents, sound, plot, sheet)]
    tables = _tables(output) if request.predicts_actions else ()
    paths = Paths(output, Path(manifest or f"{output}{MANIFEST}"), beside[0], overwrite, beside[1], tables, *beside[2:])
    inputs = [name for name in (*request.sources.values(), *read) if name]
    for path in paths.written:
        check_name(path, f"writing {path}")
    for name in inputs:
        check_name(os.path.abspath(name), f"reading {name}")
    for path in (*paths.written, saved.numbered(paths.state, 9999)):  # the longest that a stop would choose
        another = "Choose another name" if path in (paths.manifest, *beside) else "Choose another `output`"
        mode_at(path, another)
    for folder in {path.parent for path in paths.written}:
        sweep(folder)
    _check_apart(paths, inputs, model)
    kinds = {"sound": request.sound, "actions": request.predicts_actions}
    check_output(output, clip=request.is_video, **kinds, overwrite=overwrite)
    if paths.sound:
        check_sound(paths.sound, request.sound)
    alone = "actions" if paths.only_actions else "sound" if is_sound(output) else None
    check_wide(request)
    check_drawings(request, {PLOT: paths.plot, SHEET: paths.sheet}, alone)
    for path in paths.written:
        check_writable(path, overwrite=overwrite)
    return paths


def _tables(output: Path) -> tuple[Path, ...]:
    """Where the actions go beside an output that shows them; one of their own files has them itself."""
    if output.suffix.lower() in SUFFIXES:
        return ()
    return tuple(output.with_name(f"{output.stem}.actions{suffix}") for suffix in SUFFIXES)


def _check_apart(paths: Paths, inputs: Iterable[str], model: str | None) -> None:
    """Each file of the run has a name of its own, and none is one of its inputs, by whatever link or spelling."""
    taken, read = {os.path.realpath(name) for name in inputs}, {_identity(name) for name in inputs} - {None}
    for path in paths.written:
        if (real := os.path.realpath(path)) in taken or _identity(path) in read:
            raise InputError(f"writing {path}", "another file of this run has that name", "Choose another file name")
        taken.add(real)
        if model and os.path.isdir(model) and _identity(path) in _files_of(model):
            raise InputError(f"writing {path}", f"it is a file of the model {model}", "Choose another file name")
    if os.path.realpath(paths.state) in map(os.path.realpath, paths.written[1:]):
        found = "a stop would keep the run there, and another file of this run has that name"
        raise InputError(f"writing {paths.state}", found, "Choose another file name")


def _files_of(model: str) -> set[tuple[int, int] | None]:
    """The files of a model's folder, which has no folders inside its components'."""
    root = Path(model)
    return {_identity(path) for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_file()}


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What is the same for all names of a file; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def free_output(path: Path) -> Path:
    """The first name like this one that neither an output nor its manifest has."""
    return free(path, (MANIFEST,))


def write(
    paths: Paths,
    made: Made,
    request: Request,
    embedded: dict[str, Any],
    manifest: Callable[[], dict[str, Any]],
    latents: Callable[[], dict[str, Tensor]],
) -> None:
    """The file, with the manifest `embedded`; once the last frame was written, the `manifest` beside it, which also
    knows the decode, and the sound, the actions and the `latents` if there are paths for them. Of what is the sound or
    the actions alone no frame is asked for. What can no longer be written where it was to be goes to another folder,
    and then Moved is raised at the end; Unwritable where no folder takes it."""
    moved: list[Moved] = []
    sheet = Sheet(request.fps)
    frames = (lambda: sheet.watching(made.frames())) if paths.sheet else made.frames
    inside = {manifests.KEY: json.dumps(saved.sealed(embedded))}

    def table(path: Path, overwrite: bool) -> dict[str, Any]:
        assert made.actions is not None, "a run that predicts none has no table"
        return write_actions(path, *made.actions(), inside, overwrite=overwrite)

    def media(path: Path, overwrite: bool) -> dict[str, Any]:
        if paths.only_actions:
            return table(path, overwrite)
        sound = made.sound()
        if sound and is_sound(path):
            return {"file": path.name} | write_sound(path, sound, inside, overwrite=overwrite)
        if request.is_video:
            written = write_video(path, frames(), request.fps, inside, sound, overwrite=overwrite)
            return {"file": path.name} | {key: value for key, value in asdict(written).items() if value is not None}
        (frame,) = frames()
        write_image(path, frame, inside, overwrite=overwrite)
        return {"file": path.name, "frames": 1, "width": frame.shape[1], "height": frame.shape[0]}

    written = _somewhere(paths.output, paths.overwrite, media, moved, elsewhere(paths.output, (MANIFEST,)))
    tables = [_somewhere(path, paths.overwrite, table, moved, elsewhere(path))["file"] for path in paths.tables]
    written |= {"actions": tables} if tables else {}
    beside = saved.sealed(manifest() | {"output": written})

    def text(path: Path, overwrite: bool) -> None:
        with atomic(path, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(beside, indent=2) + "\n")

    # Beside the output, where that has moved.
    others = [Path(f"{error.path}{MANIFEST}") for error in moved]
    _somewhere(paths.manifest, paths.overwrite, text, moved, chain(others, elsewhere(paths.manifest)))
    _write_more(paths, made, request, inside, beside, latents, sheet, moved)
    if moved:
        raise moved[0]


def _write_more(
    paths: Paths,
    made: Made,
    request: Request,
    inside: dict[str, str],
    beside: dict[str, Any],
    latents: Callable[[], dict[str, Tensor]],
    sheet: Sheet,
    moved: list[Moved],
) -> None:
    """What is asked for besides the output and its manifest: these are written by now, whatever comes of the others."""
    if paths.sound and (alone := made.sound()):

        def track(path: Path, overwrite: bool) -> None:
            write_sound(path, alone, inside, overwrite=overwrite)

        _somewhere(paths.sound, paths.overwrite, track, moved, elsewhere(paths.sound))
    if paths.latents:
        tensors = latents()

        def save(path: Path, overwrite: bool) -> None:
            sealed.write_tensors(path, tensors, {manifests.KEY: json.dumps(beside)}, overwrite=overwrite)

        _somewhere(paths.latents, paths.overwrite, save, moved, elsewhere(paths.latents))
    if paths.plot and made.actions:
        _draw(paths.plot, paths.overwrite, plot_of(request, made.actions()), inside, moved)
    if paths.sheet:
        _draw(paths.sheet, paths.overwrite, sheet.drawn(), inside, moved)


def _draw(path: Path, overwrite: bool, picture: np.ndarray, inside: dict[str, str], moved: list[Moved]) -> None:
    """Write a picture about the run."""

    def put(path: Path, overwrite: bool) -> None:
        write_image(path, picture, inside, overwrite=overwrite)

    _somewhere(path, overwrite, put, moved, elsewhere(path))


def _somewhere(
    path: Path, overwrite: bool, put: Callable[[Path, bool], T], moved: list[Moved], others: Iterable[Path]
) -> T:
    """What `put` makes at `path`, or where that cannot be written to at the first of `others` that can."""
    try:
        return put(path, overwrite)
    except Unwritable as error:
        for other in others:
            try:
                found = put(other, False)
            except Unwritable:
                continue
            moved.append(Moved(error.asked, error.found, f"It is in {other} instead"))
            moved[-1].path = other
            return found
        raise
