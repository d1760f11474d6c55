"""Quantized checkpoints as others write them: each dialect is a row that says what shows it, which keys of its
description are understood, and how its tensors become `Packed`. What a row does not understand it refuses by name."""

from __future__ import annotations

from dataclasses import replace

from ...contract import InputError
from .autoround import AUTOROUND
from .bitsandbytes import BITSANDBYTES
from .common import AGAIN, Broken, Clues, Dialect, Header, Layout, Scheme, understood
from .compressed import COMPRESSED
from .gguf import GGUF
from .modelopt import MODELOPT
from .modelslim import MODELSLIM
from .torchao import TORCHAO
from .words import AWQ, GPTQ

DIALECTS: tuple[Dialect, ...] = (
    MODELOPT,
    COMPRESSED,
    AUTOROUND,
    GPTQ,
    AWQ,
    BITSANDBYTES,
    TORCHAO,
    MODELSLIM,
    GGUF,
)

__all__ = ["AGAIN", "DIALECTS", "Broken", "Clues", "Dialect", "Header", "Layout", "Scheme", "dialect_of", "scheme_of"]


def dialect_of(clues: Clues) -> Dialect | None:
    """The one dialect that a checkpoint is in, None for one that is not quantized. Raises InputError where it is in
    two, or says that it is in one that nobody here reads."""
    asked = f"loading {clues.source}"
    if clues.method and not any(clues.method in row.methods for row in DIALECTS):
        found = f"its quantization_config says quant_method {clues.method!r}, which cosmos3 does not read"
        raise InputError(asked, found, f"It reads {', '.join(row.name for row in DIALECTS)}")
    shown = {row.name: (row, why) for row in DIALECTS if (why := _shown_by(row, clues))}
    if len(shown) > 1:
        found = " and ".join(f"it is {name}, as {why}" for name, (_, why) in shown.items())
        raise InputError(asked, found, "Remove what describes another quantization than that of its tensors")
    if shown:
        return next(iter(shown.values()))[0]
    if clues.config is not None:
        found = "its quantization_config names no quant_method"
        raise InputError(asked, found, f"cosmos3 reads {', '.join(row.name for row in DIALECTS)}")
    return None


def _shown_by(row: Dialect, clues: Clues) -> str | None:
    """What shows that a checkpoint is in a dialect, in words."""
    if clues.method and clues.method in row.methods:
        return f"quantization_config says quant_method {clues.method}"
    return row.detect(clues)


def scheme_of(dialect: Dialect, clues: Clues) -> Scheme:
    """What a checkpoint's description in its dialect says. Raises InputError, for a key that is not understood, too."""
    if clues.config is not None:
        given = understood(clues, "quantization_config", clues.config, dialect.keys, dialect.harmless)
        clues = replace(clues, config=given)
    return dialect.describe(clues)
