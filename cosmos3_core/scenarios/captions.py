"""Prompts that are meant as data: a JSON caption that is one, or a line on why it is none.

The model is trained on prose and on captions that are JSON objects. Anything else that somebody wrote for a program
would be read to it as prose, brackets and all.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..spelling import shown

MEANT = re.compile(
    r"""\{\s*(["'“”{/#}]|\w+\s*:)"""  # {"caption", {'caption', {caption:, {// a comment
    r"""|\[\s*["'“”{\[\]]"""  # ["a", [{"prompt"
    r"""|\(\s*\{|```""",  # ({'prompt', and a block of Markdown
)
"""How text begins that is data for a program: "[wide shot] a cup" is prose."""
REQUESTS = ("inference_type", "prompt", "negative_prompt", "num_steps", "request")
"""Keys of what is a whole request, here or for NVIDIA's framework. A caption has none of them."""
CAPTION = 'Give prose, or one JSON object such as {"caption": "a red cup"}'


def check_caption(text: str, asked: str) -> None:
    """Raises InputError, with `asked` in it, for text that begins like data and is not one JSON object that describes a
    scene: with the place of the mistake, or with what it is instead. Other text is prose."""
    if not MEANT.match(text.lstrip()):
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
    if keys := [key for key in REQUESTS if key in value]:
        found = f"it is a whole request and no caption: it has {', '.join(map(repr, keys))}"
        raise InputError(asked, found, "Give that file to `request`, or only its prompt here")


def check_no_file(name: str, text: Any) -> None:
    """Raises InputError for a prompt that is one word @FILE: only the command line's arguments are read from files."""
    if isinstance(text, str) and re.fullmatch(r"@\S+", text):
        found = "files of prompts are read for the command line's arguments alone"
        raise InputError(f"{name} {shown(text)}", found, f"Give the text of {shown(text[1:])} itself", name)
