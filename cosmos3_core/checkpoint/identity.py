"""Which weights these are, in well under a second for 130 GB: what tells a folder from another of the same names.

A commit of the hub says it by itself; a file of its cache that was changed by hand is not seen. Of a folder the digest
covers every byte of the JSON and template files and of weight files up to `WHOLE` bytes. Of larger ones it covers the
size, the header, which has every tensor's name, type, shape and place and what `save_tensors` wrote of each tensor's
digest, and `SAMPLE` bytes of the middle of every tensor: a change elsewhere in a tensor of such a file is not seen.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..contract import InputError
from .mapping import TensorInfo
from .repository import Repository

WHOLE = 32 << 20
SAMPLE = 256
DESCRIBED = ("transformer", "vae", "text_tokenizer", "scheduler")
"""Folders whose JSON and template files bear on every result."""


def identity(repository: Repository, weights: Mapping[str, Iterable[TensorInfo]]) -> str:
    """Of the files that a run reads, with the `weights` of each folder: "commit ..." of the hub, else "sha256 ...".
    Raises InputError for a file that cannot be read any more."""
    if repository.revision is not None:
        return f"commit {repository.revision}"
    try:
        return f"sha256 {_digest(repository, weights)}"
    except OSError as error:
        found = f"{error.filename} cannot be read ({error.strerror})"
        raise InputError(f"loading {repository.name}", found, "Check who may read it") from None


def _digest(repository: Repository, weights: Mapping[str, Iterable[TensorInfo]]) -> str:
    total = hashlib.sha256()
    folders = dict.fromkeys((*DESCRIBED, *weights))
    for path in ["model_index.json", *_described(repository, folders)]:
        if (file := repository.path(path)) is not None:
            _add(total, path, file.read_bytes())
    for folder, tensors in weights.items():
        files: dict[Path, list[int]] = {}
        for info in tensors:
            files.setdefault(info.file, []).append(info.nbytes)
        for file, sizes in sorted(files.items()):
            _add_weights(total, f"{folder}/{file.name}", file, sizes)
    return total.hexdigest()


def _described(repository: Repository, folders: Iterable[str]) -> list[str]:
    return [
        f"{folder}/{name}"
        for folder in folders
        for name in repository.names(folder) or ()
        if name.endswith((".json", ".jinja"))
    ]


def _add(total: Any, name: str, data: bytes) -> None:
    """A named part. Lengths go first, so that no two lists of parts have the same bytes."""
    for part in (name.encode("utf-8", "surrogateescape"), data):
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)


def _add_weights(total: Any, name: str, file: Path, sizes: list[int]) -> None:
    """A weight file. `sizes` are its tensors' in bytes, in the order in which they lie in it without a gap."""
    size = file.stat().st_size
    if size <= WHOLE:
        _add(total, name, file.read_bytes())
        return
    with file.open("rb", buffering=0) as stream:
        head = stream.read(8)
        # A GGUF file's table has no length; its tensors end the file, with gaps of a few bytes, which samples bear.
        gguf = head.startswith(b"GGUF")
        head += stream.read(size - sum(sizes) - 8 if gguf else int.from_bytes(head, "little"))
        _add(total, name, size.to_bytes(8, "little") + head)
        begin = len(head)
        for nbytes in sizes:
            _add(total, "", os.pread(stream.fileno(), min(SAMPLE, nbytes), begin + max(nbytes - SAMPLE, 0) // 2))
            begin += nbytes
