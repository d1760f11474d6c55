"""GGUF files for tests: what the package `gguf` wrote, with tensors beside it, and files that nobody should read."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cosmos3_core.checkpoint.gguf import open_gguf
from cosmos3_core.checkpoint.repository import open_repository

NUMBERS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
OF_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
ALIGNMENT = 32


@dataclass(frozen=True)
class Entry:
    """One tensor: its shape [O, I], its type's number and its bytes."""

    shape: tuple[int, ...]
    type: int
    data: bytes


def plain(tensor: torch.Tensor) -> Entry:
    """A tensor of numbers."""
    return Entry(
        tuple(tensor.shape), NUMBERS[OF_DTYPE[tensor.dtype]], bytes(tensor.contiguous().view(torch.uint8).numpy())
    )


def read(folder: Path) -> dict[str, Entry]:
    """The tensors of the file in FOLDER/transformer."""
    (file,) = (folder / "transformer").glob("*.gguf")
    opened = open_gguf(open_repository(str(folder)), "transformer", file.name)
    found = {}
    for name, tensor in opened.read(opened.tensors):
        info = opened.tensors[name]
        if info.type:
            found[name] = Entry(info.shape, NUMBERS[info.type], bytes(tensor.contiguous().numpy()))
        else:
            found[name] = plain(tensor)
    return found


def write(
    path: Path,
    entries: Mapping[str, Entry],
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    count: int | None = None,
    shift: int = 0,
    cut: int | None = None,
) -> None:
    """`count` is what the head says of how many tensors there are, `shift` is added to where each begins, and from
    byte `cut` on nothing is written."""
    keys = [
        ("general.architecture", 8, struct.pack("<Q", 7) + b"cosmos3"),
        ("general.alignment", 4, struct.pack("<I", 32)),
    ]
    head = magic + struct.pack("<IQQ", version, len(entries) if count is None else count, len(keys))
    for key, kind, value in keys:
        head += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
    body = b""
    for name, entry in entries.items():
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(entry.shape))
        head += b"".join(struct.pack("<Q", side) for side in reversed(entry.shape))
        head += struct.pack("<IQ", entry.type, len(body) + shift)
        body += entry.data + bytes(-len(entry.data) % ALIGNMENT)
    whole = head + bytes(-len(head) % ALIGNMENT) + body
    path.write_bytes(whole if cut is None else whole[:cut])
