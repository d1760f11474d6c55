"""GGUF files, llama.cpp's container: the table of tensors, read strictly, and their bytes.

A reader of our own: the package `gguf` trusts the lengths in a file, of strings and tables too, reads all of its
metadata before the first tensor is known, and raises whatever numpy does. What is needed of the container is the
table (ggml/docs/gguf.md); the blocks are read by `quant.dialects.gguf`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..contract import InputError
from .mapping import TensorInfo, bytes_of, map_file
from .repository import Repository, reading

if TYPE_CHECKING:
    import torch

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_TENSORS, MOST_KEYS, LONGEST, DEEPEST = 100_000, 100_000, 1 << 20, 4
"""Tensors, keys, bytes of a string, levels of arrays: a published model has some 1400, 50, 60 KiB, 1."""
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Types of metadata values by their bytes; beside these 8 is a string and 9 an array."""
UINT32, STRING, ARRAY = 4, 8, 9
PLAIN = {0: "F32", 1: "F16", 30: "BF16"}
PLAIN_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TYPES = PLAIN | {2: "Q4_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K"}
OTHERS = {3: "Q4_1", 6: "Q5_0", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"}
"""Names of some types that are not read."""


@dataclass(frozen=True)
class GgufTensor(TensorInfo):
    """`shape` is [O, I], `type` that of the blocks ("" for plain numbers)."""

    type: str


@dataclass(frozen=True)
class GgufFile:
    """As `TensorFiles`; tensors of blocks are yielded as their bytes, uint8 [O, bytes of a row]."""

    repository: Repository
    folder: str
    tensors: dict[str, GgufTensor]
    metadata: dict[str, str]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the named tensors in file order, on the host. Raises InputError."""

        wanted = set(names)
        for name, info in self.tensors.items():
            if name not in wanted:
                continue
            with reading(f"{self.repository.name}/{self.folder}/{info.file.name}"):
                mapped = map_file(info.file, info.begin + info.nbytes)
            held = bytes_of(mapped, info).clone()
            if info.type:
                yield name, held.view(info.shape[0], -1)
            else:
                tensor = held.view(info.dtype).view(info.shape)
                if not tensor.isfinite().all():
                    raise _bad(
                        self.repository, f"{self.folder}/{info.file.name}", f"tensor {name} holds NaN or infinity"
                    )
                yield name, tensor


class _Wrong(Exception):
    """What is wrong with a file."""


def open_gguf(repository: Repository, folder: str, name: str) -> GgufFile:
    """Read the table of a GGUF file of the checkpoint's `folder`; no weight is read yet. Raises InputError."""
    path = f"{folder}/{name}"
    file = repository.fetch([path])[0]
    with reading(f"{repository.name}/{path}"), file.open("rb") as stream:
        try:
            return GgufFile(repository, folder, _table(stream, file), {})
        except _Wrong as wrong:
            raise _bad(repository, path, str(wrong)) from None


def _bad(repository: Repository, path: str, found: str) -> InputError:
    return InputError(f"{repository.name}/{path}", found, repository.repair(path))


def _table(stream: BinaryIO, file: Path) -> dict[str, GgufTensor]:
    import torch

    size = file.stat().st_size
    if (magic := stream.read(4)) != MAGIC:
        raise _Wrong(f"it begins with {magic!r}, and a GGUF file with {MAGIC!r}")
    version = _number(stream, "<I")
    if version not in VERSIONS:
        raise _Wrong(f"it is GGUF of version {version}, and cosmos3 reads {' and '.join(map(str, VERSIONS))}")
    count, keys = _number(stream, "<Q"), _number(stream, "<Q")
    if count > MOST_TENSORS or keys > MOST_KEYS:
        raise _Wrong(f"it says that it has {count:,} tensors and {keys:,} keys, more than are read")
    alignment = 32
    for _ in range(keys):
        key, number = _text(stream), _number(stream, "<I")
        value = _skip(stream, number, size)
        if key == "general.alignment":
            if number != UINT32 or value < 8 or value % 8:
                raise _Wrong(f"its general.alignment is {value}")
            alignment = value
    rows = [_row(stream) for _ in range(count)]
    start = -(-stream.tell() // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in sorted(rows, key=lambda row: row[3]):
        if name in found:
            raise _Wrong(f"tensor {name} is there twice")
        nbytes = _bytes(name, shape, kind)
        if offset % alignment:
            raise _Wrong(f"tensor {name} begins at byte {offset}, which is not aligned to {alignment}")
        if start + offset + nbytes > size:
            raise _Wrong(f"the file is cut short: tensor {name} ends at byte {start + offset + nbytes:,} of {size:,}")
        plain = kind in PLAIN_DTYPES
        dtype = getattr(torch, PLAIN_DTYPES[kind]) if plain else torch.uint8
        found[name] = GgufTensor(shape, dtype, file, start + offset, nbytes, None, "" if plain else kind)
    ordered = list(found.values())
    for name, one, other in zip(list(found)[1:], ordered, ordered[1:], strict=False):
        if one.begin + one.nbytes > other.begin:
            raise _Wrong(f"tensor {name} begins inside of the one before it")
    return found


def _row(stream: BinaryIO) -> tuple[str, tuple[int, ...], str, int]:
    """Name, shape, type and offset of one tensor."""
    name, axes = _text(stream), _number(stream, "<I")
    if not 1 <= axes <= 4:
        raise _Wrong(f"tensor {name} has {axes} axes")
    shape = tuple(_number(stream, "<Q") for _ in range(axes))[::-1]
    if not all(0 < side < 1 << 32 for side in shape):
        raise _Wrong(f"tensor {name} has the shape {list(shape)}")
    number, offset = _number(stream, "<I"), _number(stream, "<Q")
    if number not in TYPES:
        called = OTHERS.get(number, f"number {number}")
        raise _Wrong(f"tensor {name} is of type {called}, and cosmos3 reads {', '.join(TYPES.values())}")
    return name, shape, TYPES[number], offset


def _bytes(name: str, shape: tuple[int, ...], kind: str) -> int:
    if kind in PLAIN_DTYPES:
        return math.prod(shape) * (4 if kind == "F32" else 2)
    from ..quant.layouts import BLOCKS

    block = BLOCKS[kind.lower()]
    if shape[-1] % block.features or len(shape) != 2:
        raise _Wrong(f"tensor {name} of shape {list(shape)} has no whole blocks of {block.features}, as {kind} has")
    return math.prod(shape) // block.features * block.bytes


def _number(stream: BinaryIO, form: str) -> int:
    data = stream.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise _Wrong("the file is cut short inside of its table")
    number: int = struct.unpack(form, data)[0]
    return number


def _text(stream: BinaryIO) -> str:
    length = _number(stream, "<Q")
    if length > LONGEST:
        raise _Wrong(f"a text of its table has {length:,} bytes, and {LONGEST:,} are the most that are read")
    data = stream.read(length)
    if len(data) < length:
        raise _Wrong("the file is cut short inside of its table")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _Wrong("a text of its table is not UTF-8") from None


def _skip(stream: BinaryIO, kind: int, size: int, depth: int = 0) -> Any:
    """Pass over a value of the metadata; that of an uint32 is returned."""
    if kind == UINT32:
        return _number(stream, "<I")
    if kind == STRING:
        return _text(stream)
    if kind == ARRAY and depth < DEEPEST:
        inner, count = _number(stream, "<I"), _number(stream, "<Q")
        if count > size:
            raise _Wrong(f"an array of its metadata has {count:,} values, more than the file has bytes")
        if inner in SCALARS:
            return _over(stream, SCALARS[inner] * count, size)
        for _ in range(count):
            _skip(stream, inner, size, depth + 1)
        return None
    if kind not in SCALARS:
        raise _Wrong(f"its metadata holds a value of type {kind}, which GGUF does not have")
    return _over(stream, SCALARS[kind], size)


def _over(stream: BinaryIO, count: int, size: int) -> None:
    if stream.tell() + count > size:
        raise _Wrong("the file is cut short inside of its table")
    stream.seek(count, 1)
