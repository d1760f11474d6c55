"""Prompts that are meant as data: a JSON caption that is one, or a line on why it is none.

The model is trained on prose and on captions that are JSON objects. Anything else that somebody wrote for a program
would be read to it as prose, brackets and all.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections.abc import Callable
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..spelling import shown

MEANT = re.compile(
    r"""((//|/\*|\#)[^\n]*\n\s*)*(?:"""  # below lines of comment
    r"""\{\s*(["'“”{/#}]|\w+\s*:)"""  # {"caption", {'caption', {caption:, {// a comment
    r"""|\[\s*["'“”{\[\]]"""  # ["a", [{"prompt"
    r"""|\(\s*\{|```"""  # ({'prompt', and a block of Markdown
    r"""|[A-Za-z]\w*\(\s*([\[{(]|\w+=))"""  # OrderedDict([, dict(subject=
    r"""|[^`]*```\w*\s*[\[{]""",  # a block of JSON below a sentence
)
"""How text begins that is data for a program: "[wide shot] a cup" is prose."""
INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
"""Characters without a width. Before a caption they hide that it is one."""
REQUESTS = (
    "inference_type",
    "messages",
    "model_mode",
    "negative_prompt",
    "num_steps",
    "prompt",
    "prompt_path",
    "prompts",
    "request",
)
"""Keys of what is a whole request, here or for NVIDIA's framework. A caption has none of them."""
CAPTION = 'Give prose, or one JSON object such as {"caption": "a red cup"}'


def check_caption(text: str, asked: str) -> None:
    """Raises InputError, with `asked` in it, for text that begins like data and is not one JSON object that describes a
    scene: with the place of the mistake, or with what it is instead. Other text is prose."""
    begins = text.lstrip()
    if INVISIBLE.match(begins):
        found = f"it begins with the invisible character U+{ord(begins[0]):04X}"
        raise InputError(asked, found, "Take that out, and save the text as plain UTF-8")
    if not MEANT.match(begins):
        if what := _value(begins.strip()):
            raise InputError(asked, f"it is {what}, which no caption is", CAPTION)
        return
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text[error.pos :].lstrip(" ,\r\n").startswith("{"):
            found = f"a second JSON object begins at line {error.lineno}"
            raise InputError(asked, found, "A run has one caption: give each its own file") from None
        found = f"it looks like JSON and is not: {error.msg} (line {error.lineno}, column {error.colno})"
        raise InputError(asked, found, CAPTION) from None
    except ValueError as error:
        raise InputError(asked, f"it looks like JSON and cannot be read ({error})", CAPTION) from None
    if not isinstance(value, dict):
        raise InputError(asked, "it is a JSON list, which no caption is", CAPTION)
    if not value:
        raise InputError(asked, "it is an empty JSON object: there is nothing to generate", CAPTION)
    if keys := [key for key in REQUESTS if key in value]:
        found = f"it is a whole request and no caption: it has {', '.join(map(repr, keys))}"
        raise InputError(asked, found, "Give that file to `request`, or only its prompt here")


def _value(text: str) -> str | None:
    """What a program wrote that is a value as a whole, in words; None for prose."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(_parsed(parse_json, line) for line in lines):
        return "a JSON value" if len(lines) == 1 else f"{len(lines)} lines of JSON"
    return "a JSON value" if _parsed(parse_json, text) else "a Python value" if _parsed(literal_eval, text) else None


def _parsed(parse: Callable[[str], Any], text: str) -> bool:
    try:
        parse(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def check_no_file(name: str, text: Any) -> None:
    """Raises InputError for a prompt that is one word @FILE: only the command line's arguments are read from files."""
    if isinstance(text, str) and re.fullmatch(r"@\S+", text):
        found = "files of prompts are read for the command line's arguments alone"
        raise InputError(f"{name} {shown(text)}", found, f"Give the text of {shown(text[1:])} itself", name)
