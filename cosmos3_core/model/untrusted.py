"""A checkpoint's chat template is code of a stranger: what it may take."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain
from types import FrameType
from typing import Any

from jinja2 import Template, TemplateError, TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST_TEXT = 4 << 20
"""Characters that a template may make of a conversation, at once or in all; a prompt has at most 100,000."""
LARGEST_NUMBER = 1 << 63
MOST_ITEMS = 100_000
"""Of a list that a template makes, and of a width or count that it names."""
LARGEST_VALUE = 4 * LONGEST_TEXT
"""Characters and items of a value, each as often as it is in it: what is made of it takes as long."""
MOST_FORMAT = 256
"""Characters of a format of the time, and of what a template tells `tojson`."""
SECONDS = 2.0
"""Of the processor, for one conversation. Published templates take a few milliseconds; Python may collect garbage in
between, which takes a process of many objects half a second."""
LONG_TIME = re.compile(r"%[^a-zA-Z%]*\d{3}")
"""A width of 100 characters or more in a format of the time."""
WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice")
"""Methods of a text, and filters, that make it as long as a number says."""
WIDE = re.compile(r"[%:{][^a-zA-Z]*\d{6,}|%[^a-zA-Z%]*\*|:[^}]*\{")
"""A format that makes a text of a length that it, or a value, says."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which keeps a template from the program, with bounds on what it makes: texts, lists, numbers
    and time. Raises TemplateRuntimeError beyond them."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any):
        super().__init__(finalize=_checked_value, **options)
        self.code_generator_class = _Code
        self.filters = {name: checked(name, function) for name, function in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One of `intercepted_binops`."""
        _checked_value(left)
        _checked_value(right)
        if operator == "**":
            _within(_bits(left) * abs(right if isinstance(right, int) else 1), 64, "bits in a power")
        elif operator == "*":
            long, times = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(long, "__len__") and isinstance(times, int):
                _within(len(long) * max(times, 1), _most(long), "items of a text or list")
                _within(_size(long, {}) * max(times, 1), LARGEST_VALUE, "characters and items of a value")
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
        for value in (owner, *arguments, *named.values()):
            _checked_value(value)
        if isinstance(owner, str | bytes):
            _check_call(getattr(function, "__name__", ""), (owner, *arguments), named)
        return super().call(context, function, *arguments, **named)

    def made(self, value: Any) -> Any:
        """[a, b], (a, b) or {a: b}."""
        return _checked_value(value)

    def joined(self, parts: tuple[Any, ...]) -> str:
        """a ~ b."""
        texts = [str(_checked_value(part)) for part in parts]
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

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802: jinja2's name
        self._made(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802: jinja2's name
        self._made(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802: jinja2's name
        if node.ctx == "load":
            self._made(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def _made(self, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write("environment.made(")
        visit(node, frame)
        self.write(")")


def time_in(form: str) -> str:
    """The time of this machine, as transformers gives it to templates that write the date into the prompt. Raises
    TemplateRuntimeError for a format that makes more of it."""
    _within(len(form), MOST_FORMAT, "characters of a format of the time")
    if LONG_TIME.search(form):
        raise TemplateRuntimeError(f"the format {form[:40]!r} asks for a text that is too long")
    return datetime.now().strftime(form)


def checked(name: str, function: Callable) -> Callable:
    """A filter with its arguments checked. jinja2 marks a filter by its attributes, which go along."""

    def call(*arguments: Any, **named: Any) -> Any:
        # A filter that asks for the environment or the context has that first.
        values = [value for value in arguments if not isinstance(value, BoundedEnvironment | Context)]
        for value in (*values, *named.values()):
            _checked_value(value)
        _check_call(name, tuple(values), named)
        return function(*arguments, **named)

    call.__dict__.update(getattr(function, "__dict__", {}))
    call.__name__ = name
    return call


def _check_call(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Refuse a method or filter whose result would be out of bounds: a width, a format, a replacement, a join."""
    for value in (*arguments[1:], *named.values()) if name in WIDTHS else ():
        if isinstance(value, int):
            _within(abs(value), MOST_ITEMS, f"as a number for {name}")
    texts = [len(value) for value in (*arguments, *named.values()) if isinstance(value, str)]
    if name == "tojson":
        _within(
            sum(_size(value, {}) for value in (*arguments[1:], *named.values())), MOST_FORMAT, "characters for tojson"
        )
    if name == "sum" and any(isinstance(value, list | tuple) for value in (*arguments[1:], *named.values())):
        raise TemplateRuntimeError("sum adds numbers")  # of lists, each sum is a copy of the one before
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


def _checked_value(value: Any) -> Any:
    """The value, where it is within `LARGEST_VALUE`."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        _within(_size(value, {}), LARGEST_VALUE, "characters and items of a value")
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """Characters and items of a value, each as often as it is in it. `known` has what was counted, by identity."""
    if isinstance(value, str | bytes):
        return len(value) + 1
    if not isinstance(value, list | tuple | dict | set | frozenset):
        return 1 + _bits(value) // 3
    if id(value) not in known:
        parts = chain(value.keys(), value.values()) if isinstance(value, dict) else value
        total = 1
        for part in parts:
            kind = type(part)
            total += len(part) + 1 if kind is str else 1 + part.bit_length() // 3 if kind is int else _size(part, known)
        known[id(value)] = total
    return known[id(value)]


def _most(value: Any) -> int:
    return LONGEST_TEXT if isinstance(value, str | bytes) else MOST_ITEMS


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


@contextmanager
def _limited_time() -> Iterator[None]:
    """TemplateRuntimeError once this thread has computed for `SECONDS`. Looks at every line that runs, as nothing else
    stops a loop in any thread; but not those of `_size`, which would take ten times as long."""
    end = time.thread_time() + SECONDS

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise TemplateRuntimeError(f"it takes more than {SECONDS:g} seconds")
        return None if frame.f_code is _size.__code__ else look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


class _Generation(Extension):
    """`{% generation %}`, by which a template marks what the assistant says for training: its body is rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def compiled(template: str) -> Template:
    """A chat template as transformers takes it: with `{% generation %}`, `tojson`, `raise_exception` and
    `strftime_now`. Raises what jinja2 does."""
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = checked("tojson", _to_json)
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": time_in}
    return environment.from_string(template)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """The filter that chat templates expect: unlike jinja's own it escapes neither HTML nor, unasked, Unicode."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
