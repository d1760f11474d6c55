"""Where a checkpoint's files come from: the installed package, a folder, or the Hugging Face hub.

Nothing here looks inside a weight file and nothing is ever unpickled. `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and
`HF_HUB_OFFLINE` work as documented by huggingface_hub, which reads them itself.
"""

from __future__ import annotations

import errno
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..files.sources import check_source
from ..scenarios.variants import checkpoints
from ..spelling import nearest

EMBEDDED = "embedded"
"""The model inside the package."""
NEITHER = f"To try what needs no download: `model` {EMBEDDED}"
FORMER = {"tiny": EMBEDDED}
"""Names that are gone."""
ASSETS = Path(__file__).parents[1] / "assets"
PUBLISHED = tuple(checkpoints())
SHORT = {"nano": "nvidia/Cosmos3-Nano", "super": "nvidia/Cosmos3-Super", "edge": "nvidia/Cosmos3-Edge"}
"""Hub ids by the names that everybody calls them by."""
LFS_POINTER = b"version https://git-lfs"
MIB = 1 << 20
LARGEST_TEXT = {"tokenizer.json": 64 * MIB, ".safetensors.index.json": 16 * MIB, ".jinja": MIB // 4}
"""Bytes of a text file that are read, by how its name ends; published ones have 11 MiB, 200 KiB and 8 KiB."""
LARGEST_OTHER_TEXT = 2 * MIB
"""Of all others; the largest published one is a negative prompt of 12 KiB."""


def full_name(model: str) -> str:
    """A model by its hub id where it was named by its short form; a folder of that name goes before."""
    return SHORT[model] if model in SHORT and not Path(model).is_dir() else model


def open_repository(model: str, revision: str | None = None) -> Repository:
    """Open the checkpoint `model`: "embedded" (inside this package), a folder, or a hub id "org/name".

    `revision` is a branch, tag or commit of a hub repository; the default branch if None. An existing folder goes
    before a hub id of the same name. No weight is downloaded. Raises InputError if there is no such checkpoint, if it
    cannot be had (gated, offline and not cached), or if `revision` is given for anything but a hub id.
    """
    asked = f"`model` {model}"
    folder = ASSETS / EMBEDDED if model == EMBEDDED else Path(model)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except OSError as error:
        raise InputError(asked, f"the path cannot be read: {error.strerror}", _did_you_mean(model)) from None
    if model == EMBEDDED or (model and is_folder):
        if revision is not None:
            found = f"{model} is a folder on this machine, and only a hub repository has revisions"
            raise InputError(f"`revision` {revision}", found, "Leave `revision` out, or name a hub id as `model`")
        if not is_folder:
            raise InputError(asked, f"this installation of cosmos3 lacks {folder}", "Install cosmos3 again")
        return _Folder(model, None, folder)
    if model and exists:
        raise InputError(asked, "this is a file", "Pass the folder that holds the checkpoint's model_index.json")
    try:
        from huggingface_hub import snapshot_download  # noqa: F401

        is_id = _is_hub_id(model)
    except ValueError as error:  # the library reads its settings when it is imported
        found = f"huggingface_hub cannot read its settings ({error})"
        raise InputError(asked, found, "Correct the environment variables that begin with HF_, or unset them") from None
    if not is_id:
        raise InputError(asked, "there is no such folder, and a hub id has the form org/name", _did_you_mean(model))
    return _open_hub(model, revision)


class Repository(ABC):
    """The files of one checkpoint, named by their path inside it ("transformer/config.json").

    `name` is what the user asked for; `revision` the commit that every file comes from, None for a folder.
    """

    name: str
    revision: str | None

    @abstractmethod
    def names(self, folder: str) -> list[str] | None:
        """The names of the files directly in `folder`, sorted; None if the checkpoint has no such folder."""

    @abstractmethod
    def paths(self) -> list[str]:
        """Every file's path, sorted, but those whose name or folder begins with a dot."""

    @abstractmethod
    def path(self, path: str) -> Path | None:
        """The file on this machine, downloaded first if need be; None if the checkpoint has no such file."""

    @abstractmethod
    def repair(self, path: str) -> str:
        """What to do about a file that is missing or damaged: the last part of an error message."""

    def here(self, paths: list[str]) -> bool:
        """Whether all of these files, which the checkpoint has, are on this machine."""
        return True

    def fetch(self, paths: list[str]) -> list[Path]:
        """The files on this machine, in the order asked for; a download shows its progress and resumes when it is
        cut. InputError for a file that the checkpoint does not have."""
        files = []
        for path in paths:
            file = self.path(path)
            if file is None:
                raise InputError(f"{self.name}/{path}", "the checkpoint has no such file", self.repair(path))
            files.append(file)
        return files

    def read_text(self, path: str) -> str | None:
        """The file's text, None if there is no such file. InputError if it is not UTF-8, cannot be read or is larger
        than its kind is."""
        file = self.path(path)
        if file is None:
            return None
        largest = next((size for end, size in LARGEST_TEXT.items() if path.endswith(end)), LARGEST_OTHER_TEXT)
        try:
            with reading(f"{self.name}/{path}"), file.open("rb") as stream:
                data = stream.read(largest + 1)
            if len(data) > largest:
                found = f"it has {file.stat().st_size:,} bytes, and {largest:,} are the most that are read"
                raise InputError(f"{self.name}/{path}", found, self.repair(path))
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}/{path}", f"not UTF-8 text: {error}", self.repair(path)) from None

    def read_json(self, path: str) -> dict[str, Any] | None:
        """The file's JSON object, None if there is no such file. InputError if it is not a JSON object."""
        text = self.read_text(path)
        if text is None:
            return None
        try:
            value = parse_json(text)
        except ValueError as error:
            found = f"not valid JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(f"{self.name}/{path}", found, self.repair(path)) from None
        if not isinstance(value, dict):
            found = f"a JSON object was expected, this is a {type(value).__name__}"
            raise InputError(f"{self.name}/{path}", found, self.repair(path))
        return value


@contextmanager
def reading(asked: str) -> Iterator[None]:
    """InputError in the place of an operating system's error."""
    try:
        yield
    except PermissionError:
        found, next_step = "this user may not read it", "Give this user the right to read it and to enter its folders"
        raise InputError(asked, found, next_step) from None
    except OSError as error:
        found = f"it cannot be read ({error.strerror or error})"
        raise InputError(asked, found, "Check the disk and the path, or copy the model again") from None


def _dangles(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


@dataclass(frozen=True)
class _Folder(Repository):
    name: str
    revision: None
    root: Path

    def names(self, folder: str) -> list[str] | None:
        files = self.root / folder
        with reading(f"{self.name}/{folder}"):
            # A link whose file is gone counts, so that it is told apart from a file that never was.
            inside = files.iterdir() if files.is_dir() else None
            return None if inside is None else sorted(file.name for file in inside if file.is_file() or _dangles(file))

    def paths(self) -> list[str]:
        found, seen = [], set()
        with reading(self.name):
            for here, folders, files in os.walk(self.root, followlinks=True):
                seen.add(os.path.realpath(here))
                # A link to a folder above would never end.
                inside = [name for name in folders if os.path.realpath(Path(here, name)) not in seen]
                folders[:] = sorted(name for name in inside if not name.startswith("."))
                found += [Path(here, name).relative_to(self.root).as_posix() for name in files if name[0] != "."]
        return sorted(found)

    def path(self, path: str) -> Path | None:
        file = self.root / path
        with reading(f"{self.name}/{path}"):
            if _dangles(file):
                found = f"it is a link to {file.readlink()}, and nothing is there"
                next_step = "Copy the files that its links lead to as well (`cp -rL`), or download the model again"
                raise InputError(f"{self.name}/{path}", found, next_step)
            if not file.exists():
                return None
            check_source(file, f"{self.name}/{path}", self.repair(path))
            with file.open("rb") as stream:
                is_pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        if is_pointer:
            found = "this is a git-LFS pointer, the data itself was not downloaded"
            raise InputError(f"{self.name}/{path}", found, f"Run `git lfs pull` in {self.root}")
        return file

    def repair(self, path: str) -> str:
        return f"Copy or download {path} again"


@dataclass(frozen=True)
class _Hub(Repository):
    name: str
    revision: str
    files: frozenset[str] = field(repr=False)

    def names(self, folder: str) -> list[str] | None:
        inside = [file.removeprefix(f"{folder}/") for file in self.files if file.startswith(f"{folder}/")]
        return sorted(file for file in inside if "/" not in file) if inside else None

    def paths(self) -> list[str]:
        return sorted(path for path in self.files if not any(part.startswith(".") for part in path.split("/")))

    def path(self, path: str) -> Path | None:
        from huggingface_hub import hf_hub_download

        if path not in self.files:
            return None
        with _hub_errors(self.name, self.revision):
            return Path(hf_hub_download(self.name, path, revision=self.revision))

    def here(self, paths: list[str]) -> bool:
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(self.name, path, revision=self.revision) for path in paths)
        return all(isinstance(file, str) for file in cached)

    def repair(self, path: str) -> str:
        if path not in self.files:
            return f"Choose another `revision`: {self.revision} does not have it"
        return f"Run `hf download {self.name} {path} --revision {self.revision} --force-download`"


def _open_hub(name: str, revision: str | None) -> Repository:
    from huggingface_hub import get_cached_repo_tree, resolve_revision, snapshot_download
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(*arguments, **options | {"disable": True})

    _check_cache(f"`model` {name}")
    with _hub_errors(name, revision):
        commit = resolve_revision(name, revision=revision).resolved
        # Leaves the commit's complete file list in the cache. So "the checkpoint has no such file" and "the file is
        # not in the cache" stay two different answers offline, where an optional file must not seem to be absent.
        snapshot_download(name, revision=commit, allow_patterns="model_index.json", tqdm_class=Silent)
        files = frozenset(file.path for file in get_cached_repo_tree(name, revision=commit))
    return _Hub(name, commit, files)


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Say what huggingface_hub's errors mean to someone who asked for the repository `name`."""
    from huggingface_hub import constants, errors

    asked = f"`model` {name}" if revision is None else f"`model` {name} `revision` {revision}"
    page = f"{constants.ENDPOINT}/{name}"
    try:
        yield
    except errors.GatedRepoError:
        found = "the repository is gated, and this account has not been given access to it"
        raise InputError(asked, found, f"Accept the terms at {page}, run `hf auth login`, try again") from None
    except errors.RepositoryNotFoundError:
        found = "no folder here has this name, and the hub has no such model or does not show it to this account"
        raise InputError(asked, found, f"{_did_you_mean(name)} (for a private model run `hf auth login`)") from None
    except errors.RevisionNotFoundError:
        found = "the repository has no such branch, tag or commit"
        raise InputError(asked, found, f"Choose one of those at {page}/tree/main") from None
    except errors.CachedRepoTreeNotFoundError:
        found = "the local cache holds this model without its list of files, and the hub cannot be reached"
        raise InputError(asked, found, "Go online once, or pass the folder that holds the files as `model`") from None
    except UnicodeEncodeError as error:  # a header of the request holds nothing but Latin-1
        wrong = error.object[error.start : error.start + 1]
        found = f"the token that is sent to the hub holds the character {wrong!r}, which no token has"
        next_step = "Copy the token again, without quotes, into HF_TOKEN or with `hf auth login`"
        raise InputError(asked, found, next_step) from None
    except UnicodeDecodeError:
        found = f"a file of its cache, {constants.HF_HUB_CACHE}, is damaged: it is no text"
        raise InputError(asked, found, "Delete the model's folder refs there, and run this again") from None
    # HTTPError is the base of the HTTP library's errors, whichever library this huggingface_hub is built on.
    except (errors.HTTPError, errors.RevisionResolutionError, OSError) as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        if answer := next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None):
            found = f"the hub answered {answer.response.status_code}: {str(answer).strip().splitlines()[0]}"
            next_step = "Run `hf auth whoami` to see which account asks, or try again later"
        elif any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
            found = "not everything it needs is in the local cache, and HF_HUB_OFFLINE forbids a download"
            next_step = (
                f"Run once without HF_HUB_OFFLINE, or pass the folder that holds the files as `model`. {NEITHER}"
            )
        elif isinstance(error, OSError) and not isinstance(error, errors.LocalEntryNotFoundError):
            found, next_step = _local_failure(error, Path(constants.HF_HUB_CACHE))
        else:
            found = f"the hub at {constants.ENDPOINT} cannot be reached, and the local cache does not hold all files"
            found += f": {causes[-1]}"
            next_step = f"Check the network and run this again; finished files are kept. {NEITHER}"
        raise InputError(asked, found, next_step) from error
    except Exception as error:
        if type(error).__name__ != "InvalidURL":  # the HTTP library's, and no HTTPError
            raise
        next_step = "Correct HF_ENDPOINT, or the proxy's address in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"
        raise InputError(asked, f"an address on the way to the hub is invalid: {error}", next_step) from None


def _check_cache(asked: str) -> None:
    """Raises InputError where the hub's library could not use its folders; the download would say something else."""
    from huggingface_hub import constants

    home, cache = Path(constants.HF_HOME).absolute(), Path(constants.HF_HUB_CACHE).absolute()
    setting = "HF_HOME" if cache == home / "hub" else "HF_HUB_CACHE"
    for folder, what, name in ((cache, "cache", setting), (home, "token's folder", "HF_HOME")):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not os.path.isdir(there):
            kind = "a file" if os.path.isfile(there) else "no folder"
            raise InputError(asked, f"the {what} would be {folder}, and {there} is {kind}", f"Set {name} to a folder")
        new = folder == cache != there  # a cache that is there may be read only
        if not os.access(there, os.R_OK | os.X_OK) or (new and not os.access(there, os.W_OK)):
            next_step = f"Set {name} to a folder of your own"
            raise InputError(asked, f"the {what} would be {folder}, and this user may not use {there}", next_step)


def _local_failure(error: OSError, cache: Path) -> tuple[str, str]:
    """What was found and what to do about an error of this machine's disk."""
    if isinstance(error, PermissionError):
        where = error.filename or cache
        return f"this user may not use {where}", f"Change who owns {cache}, or set HF_HOME to a folder of your own"
    kept = "run this again; finished files are kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {cache} is full", f"Free space there, or set HF_HOME to another disk, and {kept}"
    return f"the download failed: {error}", f"Check {cache} and the network, and {kept}"


def _is_hub_id(model: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return model.count("/") == 1


def _did_you_mean(model: str) -> str:
    names = {name.removeprefix(part): name for part in ("", "nvidia/", "nvidia/Cosmos3-") for name in PUBLISHED}
    names |= {EMBEDDED: EMBEDDED}
    if model in FORMER:
        return f"The model inside the package is called {FORMER[model]} now: `model` {FORMER[model]}"
    close = nearest(re.sub(r"^\w+://[^/]*/", "", model), names)  # the address of the model's page ends in its id
    if close and names[close] != model:
        return f"Did you mean {names[close]}?"
    return f"Pass {EMBEDDED}, a folder, or one of {', '.join(PUBLISHED)}"
