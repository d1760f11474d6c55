"""Safetensors files that carry a digest of themselves, so that one flipped bit anywhere is found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..bounds import parse_json
from ..contract import InputError
from ..files.atomic import atomic
from ..files.schema import Anything, Table, Text
from ..files.sources import check_source

if TYPE_CHECKING:
    from torch import Tensor

SEAL = "cosmos3.sha256"
"""The metadata key of the digest: SHA-256 of the file with zeros in its place."""
OPEN = "0" * 64
LARGEST_HEADER = 8 << 20
"""Bytes. A header has a run's request in it, with its prompts, and the names of a dozen tensors."""
CHUNK = 1 << 22
HEADER = Table(allowed={"__metadata__": Table(others=Text(longest=LARGEST_HEADER))}, others=Table(others=Anything()))
WRITTEN = "Give a safetensors file that cosmos3 wrote"


def read_tensors(name: str, asked: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, held against its digest if it has one. `asked` names it in
    messages. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    check_source(name, asked, WRITTEN)
    try:
        _check(name)
        with safe_open(name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(asked, f"it cannot be read ({error})", WRITTEN) from None


def write_tensors(path: Path, named: dict[str, Tensor], metadata: dict[str, str], *, overwrite: bool = True) -> None:
    """A safetensors file with its digest, that is there as a whole or not at all."""
    from safetensors.torch import save as to_bytes

    data = to_bytes(named, metadata | {SEAL: OPEN})
    digest = hashlib.sha256(data).hexdigest()
    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data.replace(_sealed(OPEN), _sealed(digest), 1))


def _sealed(digest: str) -> bytes:
    return f'"{SEAL}":"{digest}"'.encode()


def _check(name: str) -> None:
    """Raises ValueError for a header that is too large, or whose digest is not that of the file."""
    with open(name, "rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > LARGEST_HEADER:
            raise ValueError(f"its header would have {size:,} bytes, and {LARGEST_HEADER:,} are the most")
        head = file.read(size)
        header = parse_json(head.decode())
        HEADER.check(header, "its header")
        if (digest := header.get("__metadata__", {}).get(SEAL)) is None:
            return
        total = hashlib.sha256(length + head.replace(_sealed(digest), _sealed(OPEN), 1))
        for chunk in _chunks(file):
            total.update(chunk)
    if total.hexdigest() != digest:
        raise ValueError("it was damaged or changed since it was written: its digest is another")


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
