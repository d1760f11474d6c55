"""A caller's own function in the place of a kernel: an experiment. It is named in plans and manifests, is no row of a
backend, and has no evidence."""

from __future__ import annotations

import hashlib
import inspect
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..contract import Backend, InputError, Kernel, ops
from ..spelling import shown
from .choice import OWN
from .discovery import check_op
from .witness import witnessed

PROTOCOLS: dict[str, Any] = {
    "attention": ops.Attention,
    "pack_linear": ops.PackLinear,
    "rms_norm": ops.RmsNorm,
    "norm_rope": ops.NormRope,
    "gate": ops.Gate,
    "patch_embed": ops.PatchEmbed,
    "norm_silu": ops.NormSilu,
    "project": ops.PackProject,
    "finish": ops.PackFinish,
    "capture": ops.Capture,
}
"""The ops that are one function each."""


def with_own(backend: Backend, kernels: Mapping[str, str | Callable[..., Any]]) -> tuple[Backend, dict[str, str]]:
    """The backend with a row for each function among `kernels`, and the rows' names by op. Raises InputError for a
    function that cannot be called as its op is, and for what is neither a name nor a function."""
    named: dict[str, str] = {}
    own: list[Kernel] = []
    for op, kernel in kernels.items():
        check_op(op)
        if isinstance(kernel, str):
            named[op] = kernel
            continue
        own.append(_row(op, kernel))
        named[op] = own[-1].name
    return replace(backend, kernels=(*own, *backend.kernels)), named


def _row(op: str, function: Callable[..., Any]) -> Kernel:
    asked = f"kernels[{op!r}] = {_called(function)}"
    if not callable(function):
        found = "it is neither a kernel's name nor a function"
        raise InputError(asked, found, "cosmos3.backends() lists the names")
    if isinstance(function, type):
        found = "it is a class, and a call would make an object"
        raise InputError(asked, found, f"Give {_called(function)}() if that can be called, or a function")
    if op not in PROTOCOLS:
        raise InputError(asked, f"{op} is an object with methods, and no function", "Write a backend package for it")
    if reason := _cannot_be_called(function, PROTOCOLS[op].__call__):
        raise InputError(asked, reason, f"Write it like cosmos3_core.contract.{PROTOCOLS[op].__name__}.__call__")
    name = f"{_called(function)}{OWN}{_digest(function)})"
    return Kernel(
        op=op, name=name, build=lambda device: witnessed(op, name, function), notes="a function of the caller's"
    )


def _digest(function: Any) -> str:
    """A comma and the start of a SHA-256 of a function's source, or of its code where there is no source; nothing for a
    function that is not Python's. What the function calls is no part of it."""
    while inspect.ismethod(function) or hasattr(function, "func"):
        function = function.__func__ if inspect.ismethod(function) else function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    try:
        data = inspect.getsource(function).encode()
    # Typed into a console, of no Python, or of a file that was changed since and is none now.
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        code = getattr(function, "__code__", None)
        if code is None:
            return ""
        data = code.co_code + repr((code.co_names, [one for one in code.co_consts if not inspect.iscode(one)])).encode()
    return f", {hashlib.sha256(data).hexdigest()[:8]}"


def _called(function: Any) -> str:
    """A function's name; that of its type where it has none."""
    if not callable(function):
        return shown(function)
    return getattr(function, "__name__", type(function).__name__)


def _cannot_be_called(function: Callable[..., Any], protocol: Callable[..., Any]) -> str | None:
    """Why a function does not take the arguments of a protocol, or None; None too where it does not say what it
    takes."""
    _, *parameters = inspect.signature(protocol).parameters.values()
    keywords = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(function).bind(*[None] * (len(parameters) - len(keywords)), **keywords)
    except TypeError as error:
        wanted = ", ".join(str(one.name) for one in parameters)
        return f"it cannot be called with ({wanted}): {error}"
    except ValueError:  # a builtin without a signature
        return None
    return None
