"""What a model is calibrated and judged with: prompts of the user's, or of the embedded model's world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...contract import InputError
from ...files.sources import check_source

WORLD = "world"
"""In the place of a file: captions of the world, none of which an evaluation has."""
WORLDS = 8
FIRST = 89_000
"""The seed of the first of them, before those that are held out."""
LARGEST = 1 << 20
"""Bytes of a file of prompts."""
MOST = 1024
"""Prompts in a file."""


def prompts_of(source: str | Sequence[str]) -> list[str]:
    """The prompts of `WORLD`, of a file, which are its lines less empty ones, or these. Raises InputError for a file
    that is missing, no text or too large, and for no prompts or too many."""
    if source == WORLD:
        return world_prompts(WORLDS, FIRST)
    asked = f"`calibrate` {source}" if isinstance(source, str) else "`calibrate`"
    prompts = _read(Path(source), asked) if isinstance(source, str) else list(source)
    if not prompts:
        raise InputError(asked, "it has no prompt", "Give one at least, in a file one on each line")
    if len(prompts) > MOST:
        raise InputError(asked, f"it has {len(prompts):,} prompts", f"Pass at most {MOST:,}")
    return prompts


def _read(path: Path, asked: str) -> list[str]:
    check_source(path, asked, f'Pass a text file with a prompt on each line, or "{WORLD}" for the embedded model')
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(asked, f"it has more than {LARGEST:,} bytes", "Pass a few dozen prompts")
        lines = [line.strip() for line in text.decode().splitlines()]
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), "Check who may read it") from None
    except UnicodeDecodeError as error:
        raise InputError(asked, f"it is no text: {error}", "Pass a text file with a prompt on each line") from None
    return [line for line in lines if line]


def world_prompts(count: int, first: int) -> list[str]:
    """Captions of so many scenes, every kind as often as the others; `first` is the seed of the first."""
    import numpy as np

    from ..embedded.captions import sentence
    from ..embedded.world import PASSIVE, make

    found = []
    for number in range(count):
        scenes = make(first + number, 1, 17, {PASSIVE[number % len(PASSIVE)]: 1.0})
        found.append(sentence(scenes, 0, np.random.default_rng(first + number)))
    return found
