"""A checkpoint's chat template and tokenizer are code and tables of a stranger: what they may take, and what becomes of
a library that gives up on them."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_TEXT = 4 << 20
"""Characters that a template may make of a conversation, at once or in all; a prompt has at most 100,000."""
LARGEST_NUMBER = 1 << 63
MOST_ITEMS = 100_000
"""Of a list that a template makes, and of a width or count that it names."""
SECONDS = 0.5
"""Of the processor, for one conversation. Published templates take a few milliseconds."""
WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice")
"""Methods of a text, and filters, that make it as long as a number says."""
WIDE = re.compile(r"[%:{][^a-zA-Z]*\d{6,}|%[^a-zA-Z%]*\*|:[^}]*\{")
"""A format that makes a text of a length that it, or a value, says."""
PANIC = "PanicException"
"""What a panic of a library in Rust is in Python: no `Exception`, so that nobody expects it."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which keeps a template from the program, with bounds on what it makes: texts, lists, numbers
    and time. Raises TemplateRuntimeError beyond them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.code_generator_class = _Code
        self.filters = {name: _checked(name, function) for name, function in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        if operator == "**":
            _within(_bits(left) * abs(right if isinstance(right, int) else 1), 64, "bits in a power")
        elif operator == "*":
            long, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(long, "__len__") and isinstance(times, int):
                _within(len(long) * max(times, 1), _most(long), "items of a text or list")
            _within(_bits(left) + _bits(right), 4096, "bits in a product")
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _within(len(left) + len(right), _most(left), "items of a text or list")
        elif operator == "%" and isinstance(left, str) and WIDE.search(left):
            raise TemplateRuntimeError(f"the format {left[:40]!r} asks for a text that is too long")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *arguments: Any, **named: Any) -> Any:
        """A call in a template."""
        # The sandbox wraps a text's own format.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str | bytes):
            _check_call(getattr(function, "__name__", ""), (owner, *arguments), named)
        return super().call(context, function, *arguments, **named)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """a ~ b."""
        texts = [str(part) for part in parts]
        _within(sum(map(len, texts)), LONGEST_TEXT, "characters of a text")
        return "".join(texts)

    def rendered(self, template: Any, **values: Any) -> str:
        """The text that a template of this environment makes, within `LONGEST_TEXT` and `SECONDS`."""
        pieces, length = [], 0
        with _limited_time():
            for piece in template.generate(**values):
                length += len(piece)
                _within(length, LONGEST_TEXT, "characters of a conversation")
                pieces.append(piece)
        return "".join(pieces)


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802: jinja2's name
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


def _checked(name: str, function: Callable) -> Callable:
    """A filter with its arguments checked. jinja2 marks a filter by its attributes, which go along."""

    def checked(*arguments: Any, **named: Any) -> Any:
        # A filter that asks for the environment or the context has that first.
        values = [value for value in arguments if not isinstance(value, BoundedEnvironment | Context)]
        _check_call(name, tuple(values), named)
        return function(*arguments, **named)

    checked.__dict__.update(getattr(function, "__dict__", {}))
    checked.__name__ = name
    return checked


def _check_call(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse a method or filter whose result would be out of bounds: a width, a format, a replacement, a join."""
    for value in (*arguments[1:], *named.values()) if name in WIDTHS else ():
        if isinstance(value, int):
            _within(abs(value), MOST_ITEMS, f"as a number for {name}")
    texts = [len(value) for value in (*arguments, *named.values()) if isinstance(value, str)]
    if name == "replace" and len(texts) == 3:
        _within((texts[0] + 1) * (texts[2] + 1), LONGEST_TEXT, "characters of a replacement")
    if name in ("format", "format_map") and arguments and WIDE.search(str(arguments[0])):
        raise TemplateRuntimeError(f"the format {str(arguments[0])[:40]!r} asks for a text that is too long")
    if name in ("join", "expandtabs", "indent", "translate") and len(texts) > 0:
        pieces = next((len(value) for value in arguments if isinstance(value, list | tuple)), texts[0])
        _within(pieces * (max(texts) + 1), 16 * LONGEST_TEXT, "characters of a text")


def _within(size: float, most: float, what: str) -> None:
    if size > most:
        raise TemplateRuntimeError(f"{size:,} {what}, and {most:,} are the most")


def _most(value: Any) -> int:
    return LONGEST_TEXT if isinstance(value, str | bytes) else MOST_ITEMS


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


@contextmanager
def _limited_time() -> Iterator[None]:
    """TemplateRuntimeError once this thread has computed for `SECONDS`. Looks at every line that runs, as nothing else
    stops a loop in any thread."""
    end = time.thread_time() + SECONDS

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TemplateRuntimeError(f"it takes more than {SECONDS:g} seconds")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


_standard_error = threading.Lock()


@contextmanager
def contained() -> Iterator[None]:
    """RuntimeError in the place of a panic of a library in Rust, whose report on standard error, a page with addresses,
    is dropped."""
    with _standard_error, _muted():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != PANIC:
                raise
            raise RuntimeError(f"its library gave up: {error}") from None


@contextmanager
def _muted() -> Iterator[None]:
    """Nothing reaches file 2, which the library writes to itself."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with suppress(AttributeError, ValueError, OSError):
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
