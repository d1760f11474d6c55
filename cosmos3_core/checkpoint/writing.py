"""Writing a quantized checkpoint so that it is there whole or not at all, and that a killed process loses one file.

Until it is whole, OUTPUT is a folder OUTPUT.part. `RECORD` in it says what is being written and the digest of each file
that is finished; the same command takes it up, and files that still have their digests stay.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..files import locks
from ..files.atomic import Unwritable, alone, atomic, mode_at
from ..files.digests import sha256_file
from ..files.sources import check_name
from ..spelling import shown
from .card import card
from .model import Weights, open_model
from .quantize import CARD, CONFIG, INDEX, RECORD, Job, source_folder

PART = ".part"
INSIDE = "model_index.json"
"""What every checkpoint has at its top."""
LARGEST_RECORD = 1 << 22
WRITE, COPY, CHECK = "tensors", "other files", "reading it back"
"""Stages of writing, in their order."""

Show = Callable[[str, int, int], object]
"""Is told a stage, how many parts of it are done, and of how many."""


def check_folder(output: Path, companions: tuple[str, ...] = ()) -> None:
    """Raises InputError for a name that no new folder can have, nor its names while it is made or with one of
    `companions` added: before anything is named by it."""
    asked, next_step = f"writing {output}", "Choose another name, such as Cosmos3-Nano-FP8"
    if output.name in ("", ".."):
        raise InputError(asked, "it is no name of a new folder", next_step)
    if output.name.endswith(PART):
        raise InputError(asked, f"a folder whose name ends in {PART} is an unfinished one", next_step)
    check_name(output, asked)
    for end in ("", PART, *companions):
        mode_at(output.with_name(output.name + end), next_step)


def check_output(job: Job, output: Path, *, overwrite: bool) -> None:
    """Raises InputError, before a weight is read, unless a folder of this name can be written: it is not there (or a
    checkpoint, and `overwrite`), it is apart from the source, what was begun there is this same job, and the disk has
    room."""
    asked, part = f"writing {output}", part_of(output)
    real, source = Path(os.path.realpath(output)), source_folder(job.model)
    if real == source or source in real.parents:
        raise InputError(asked, f"it would be inside the source, {source}", "Choose a folder elsewhere")
    if real in source.parents:
        raise InputError(asked, f"the source, {source}, is inside it", "Choose a folder elsewhere")
    if not real.parent.is_dir():
        raise InputError(asked, f"there is no folder {real.parent}", "Create it with mkdir -p")
    if os.path.lexists(output):
        if not overwrite:
            raise InputError(asked, "it exists", "Choose another name, or add `overwrite`")
        if output.is_symlink() or not (real / INSIDE).is_file():
            raise InputError(asked, f"what is there is no checkpoint: it has no {INSIDE}", "Choose another name")
    done = _done(job, part)
    if not os.access(real.parent, os.W_OK | os.X_OK):
        raise InputError(asked, f"the folder {real.parent} cannot be written to", "Choose another folder")
    needed = sum(size for path, size in job.sizes().items() if path not in done)
    if needed > (free := shutil.disk_usage(real.parent).free):
        found = f"it takes {needed / 1e9:.3g} GB more, and the disk has {free / 1e9:.3g} GB free"
        raise InputError(asked, found, "Free space, or choose another disk")


def check_calibrated(job: Job) -> None:
    """Raises InputError for a job without the statistics that it needs."""
    if job.choosing.calibrates and job.choosing.statistics is None:
        found = "it takes what the matrices are multiplied by, which only a calibration measures"
        raise InputError(
            job.choosing.asked,
            found,
            'Add `calibrate` with a file of prompts, one a line, or "world" for the embedded model',
        )


def part_of(output: Path) -> Path:
    """The folder that becomes the output."""
    real = Path(os.path.realpath(output))
    return real.with_name(real.name + PART)


def write(job: Job, output: Path, show: Show, *, overwrite: bool = False) -> Path:
    """Write the checkpoint, or go on with it. Raises InputError as `check_output`, for a job that lacks the statistics
    that it needs, where another process writes it, and where a weight of the source is damaged."""
    check_calibrated(job)
    with alone((output,)):
        check_output(job, output, overwrite=overwrite)
        part = part_of(output)
        folder = _Folder(job, part, _done(job, part))
        folder.begin()
        _tensors(job, folder, show)
        for number, (path, source) in enumerate(job.copies.items()):
            show(COPY, number, len(job.copies))
            (file,) = job.model.repository.fetch([source])
            folder.copy(path, file)
        texts = {CONFIG: _json(job.config()), CARD: card(job, output.name), INDEX: job.index()}
        for path, text in texts.items():
            if text is not None:
                folder.text(path, text)
        folder.drop_others()
        show(CHECK, 0, 1)
        Weights(open_model(str(part)))
        _name(part, output)
    return output


def _tensors(job: Job, folder: _Folder, show: Show) -> None:
    total, done = sum(len(shard.pieces) for shard in job.shards), 0

    def tell() -> None:
        nonlocal done
        done += 1
        show(WRITE, done, total)

    show(WRITE, 0, total)
    for shard in job.shards:
        path = f"transformer/{shard.name}"
        if folder.has(path):
            done += len(shard.pieces)
            show(WRITE, done, total)
        else:
            folder.put(path, lambda temp, shard=shard: job.write(shard, temp, tell))  # type: ignore[misc]


class _Folder:
    """OUTPUT.part: its finished files, with their digests."""

    def __init__(self, job: Job, root: Path, done: dict[str, str]):
        self.job, self.root, self.done = job, root, done

    def begin(self) -> None:
        try:
            self.root.mkdir(exist_ok=True)
            self._record()
        except OSError as error:
            found = f"the folder {self.root} cannot be written to ({error.strerror})"
            raise Unwritable(f"writing {self.root}", found, "Choose another folder") from error

    def has(self, path: str) -> bool:
        """Whether a file was finished before and still has the digest that it had then."""
        file = self.root / path
        return path in self.done and file.is_file() and sha256_file(file) == self.done[path]

    def put(self, path: str, write: Callable[[Path], object]) -> None:
        """A file, unless it is there; finished, it is on the disk and recorded."""
        if self.has(path):
            return
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        locks.sweep(file.parent)
        with atomic(file) as temp:
            write(temp)
            digest = sha256_file(temp)
        self.done[path] = digest
        self._record()

    def copy(self, path: str, file: Path) -> None:
        """A file of the source as it is now: what the job's identity does not cover may have changed since a stop."""
        self._anew(path, sha256_file(file), lambda temp: shutil.copyfile(file, temp))

    def text(self, path: str, text: str) -> None:
        """A file with this text, which may say what has changed since a stop."""
        self._anew(path, sha256(text.encode()).hexdigest(), lambda temp: temp.write_text(text, "utf-8"))

    def _anew(self, path: str, digest: str, write: Callable[[Path], object]) -> None:
        """A file that is kept only if it had this digest when it was finished."""
        if self.done.get(path, digest) != digest:
            del self.done[path]
        self.put(path, write)

    def drop_others(self) -> None:
        """Delete what is no file of the checkpoint."""
        for folder, _, files in os.walk(self.root):
            for name in files:
                file = Path(folder, name)
                if (path := file.relative_to(self.root).as_posix()) not in self.done and path != RECORD:
                    file.unlink()

    def _record(self) -> None:
        text = _json(self.job.description | {"files": dict(sorted(self.done.items()))})
        with atomic(self.root / RECORD) as temp:
            temp.write_text(text, "utf-8")


def _done(job: Job, part: Path) -> dict[str, str]:
    """The finished files of an earlier process that the checkpoint is still to have, and their digests. Raises
    InputError where it wrote another thing."""
    asked = f"writing {part.name.removesuffix(PART)}"
    hint = f"Delete {part}, or choose another name"
    if not os.path.lexists(part):
        return {}
    record = part / RECORD
    if part.is_symlink() or not part.is_dir() or not (record.is_file() or _new(part)):
        raise InputError(asked, f"{part} is there, and no unfinished checkpoint of cosmos3 quantize", hint)
    if not record.is_file():
        return {}
    try:
        if record.stat().st_size > LARGEST_RECORD:
            raise ValueError("it is too large")
        said = parse_json(record.read_text("utf-8"))
        files = said.pop("files")
        assert all(isinstance(one, str) for pair in files.items() for one in pair)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
        raise InputError(asked, f"{record} cannot be read ({shown(str(error))})", hint) from None
    for key, value in job.description.items():
        if said.get(key) != value:
            found = f"{part} is unfinished, and of another {key}: {shown(said.get(key))} instead of {shown(value)}"
            raise InputError(asked, found, f"Type the command that began it, delete {part}, or choose another name")
    mine = {*(f"transformer/{shard.name}" for shard in job.shards), *job.copies, CONFIG, CARD, INDEX}
    return {path: digest for path, digest in files.items() if path in mine and stat.S_ISREG(_mode(part / path))}


def _new(part: Path) -> bool:
    """Whether a folder holds nothing yet but what a process that died before its first record left."""
    return all(locks.MADE.fullmatch(file.name) for file in part.iterdir())


def _mode(file: Path) -> int:
    try:
        return file.lstat().st_mode
    except OSError:
        return 0


def _name(part: Path, output: Path) -> None:
    """The finished folder gets its name; a checkpoint that has it goes."""
    old = None
    real = Path(os.path.realpath(output))
    try:
        if real.exists():
            old = real.with_name(locks.part(""))
            real.rename(old)
        part.rename(real)
    except OSError as error:
        if old is not None and not real.exists():
            with suppress(OSError):
                old.rename(real)
        found = f"the finished folder {part} cannot get that name ({error.strerror})"
        raise Unwritable(f"writing {output}", found, f"Rename {part} yourself") from error
    folder = os.open(real.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
