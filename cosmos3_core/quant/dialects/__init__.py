"""Quantized checkpoints as others write them: each dialect is a row that says what shows it, which keys of its
description are understood, and how its tensors become `Packed`. What a row does not understand it refuses by name."""

from __future__ import annotations

from ...contract import InputError
from .autoround import AUTOROUND
from .bitsandbytes import BITSANDBYTES
from .common import AGAIN, Broken, Clues, Dialect, Header, Layout, Scheme, unknown_keys
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
    shown = {row.name: (row, why) for row in DIALECTS if (why := row.detect(clues))}
    asked = f"loading {clues.source}"
    if len(shown) > 1:
        found = " and ".join(f"it is {name}, as {why}" for name, (_, why) in shown.items())
        raise InputError(asked, found, "Remove what describes another quantization than that of its tensors")
    if shown:
        return next(iter(shown.values()))[0]
    if clues.config is not None:
        found = f"its quantization_config says quant_method {clues.method!r}, which cosmos3 does not read"
        raise InputError(asked, found, f"It reads {', '.join(row.name for row in DIALECTS)}")
    return None


def scheme_of(dialect: Dialect, clues: Clues) -> Scheme:
    """What a checkpoint's description in its dialect says. Raises InputError, for a key that is not understood, too."""
    if clues.config is not None:
        unknown_keys(clues, "quantization_config", clues.config, (*dialect.keys, *dialect.harmless))
    return dialect.describe(clues)
