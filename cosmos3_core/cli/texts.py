"""Texts of a command line: typed, in a small file, or on standard input."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..files.digests import sha256_file
from ..files.sources import check_source
from ..scenarios.captions import check_caption

MAX_TEXT_BYTES = 1 << 20
STANDARD_INPUT = "-"
PROMPTS = ("prompt", "negative_prompt")
"""Fields whose option also takes a file, as @FILE."""


def texts(options: Mapping[str, Any]) -> dict[str, str]:
    """The prompts among the options, read where they are files. Raises InputError for a file that cannot be read, and
    for JSON that is no caption."""
    if [*map(_file, _typed(options).values()), options["request"]].count(STANDARD_INPUT) > 1:
        raise InputError("two texts from standard input", "it can be read once", "Put one of them into a file")
    found = {}
    for name, text in _typed(options).items():
        found[name], file = text, _file(text)
        if file is not None:
            asked = f"{name.replace('_', ' ')} {text}"
            found[name] = read_text(file, asked).strip()
            check_caption(found[name], asked)  # as every request is, but here the message names the file
    return found


def texts_read(options: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By prompt, the file that it was in and the file's digest."""
    files = {name: _file(text) for name, text in _typed(options).items()}
    return {
        name: {"file": file, "sha256": sha256_file(Path(file))}
        for name, file in files.items()
        if file not in (None, STANDARD_INPUT)
    }


def files_of(options: Mapping[str, Any]) -> list[str | None]:
    """The files that prompts are in."""
    return [file for text in _typed(options).values() if (file := _file(text)) != STANDARD_INPUT]


def read_text(name: str, asked: str) -> str:
    """A small text file, or standard input for "-". Its size is bounded before it is read; a byte order mark is no part
    of the text."""
    try:
        if name == STANDARD_INPUT:
            data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        else:
            check_source(name, asked, "Check the path, or give - for standard input")
            with open(name, "rb") as file:
                data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), "Check the path") from None
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(asked, "it is larger than 1 MiB", "Prompts are a few thousand characters")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(asked, "it is not UTF-8 text", "Save it as UTF-8") from None


def _typed(options: Mapping[str, Any]) -> dict[str, str]:
    return {name: options[name] for name in PROMPTS if options[name] is not None}


def _file(text: str) -> str | None:
    return text[1:] if text.startswith("@") else None
