"""Whether what a row returns is what its protocol's annotation says, which the plan's callers rely on."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch.distributed import ProcessGroup

from ..contract import ops

NAMES = {"torch": torch, "Tensor": torch.Tensor, "ProcessGroup": ProcessGroup, "Callable": Callable}
NAMES |= {"Maybe": torch.Tensor | None, "Weight": Any, "Head": Any, "Group": Any, "Parts": Any}
"""What the contract imports for type checkers alone."""


def returned(method: Callable[..., Any]) -> Any:
    """The annotation of what a protocol's method returns."""
    return get_type_hints(method, vars(ops) | NAMES)["return"]


def unlike(found: Any, annotation: Any) -> str | None:
    """What is wrong with a value, as "a tuple, not list", or None. What has a protocol has its methods."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if getattr(annotation, "_is_protocol", False):
        methods = [name for name, method in vars(annotation).items() if isfunction(method)]
        fits = all(callable(getattr(found, name, None)) for name in methods)
        return None if fits else f"{_of(found)}, not {_name(annotation)}"
    if origin is Callable:
        return None if callable(found) else f"{_of(found)}, not a function"
    if origin in (UnionType, Union):
        wrong = [unlike(found, part) for part in parts]
        return f"{_of(found)}, not {_name(annotation)}" if all(wrong) else None
    if annotation in (None, NoneType):
        return None if found is None else f"{_of(found)}, not None"
    kind = origin or annotation
    exact = kind in (tuple, list, int)
    if not (type(found) is kind if exact else isinstance(found, kind)):
        return f"{_of(found)}, not {_name(annotation)}"
    if kind is tuple and len(found) != len(parts):
        return f"a tuple of {len(found)}, not {_name(annotation)}"
    if kind is dict:
        found, parts = list(found.values()), parts[1:]
    if kind in (tuple, list, dict):
        inside = zip(found, parts if kind is tuple else parts * len(found), strict=True)
    elif issubclass(kind, tuple):
        inside = zip(found, [get_type_hints(kind, vars(ops) | NAMES)[name] for name in kind._fields], strict=True)
    else:
        return None
    wrong = [f"{number + 1}: {problem}" for number, pair in enumerate(inside) if (problem := unlike(*pair))]
    return f"{_name(annotation)} with element {wrong[0]}" if wrong else None


def _name(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    for prefix in ("torch.", "collections.abc.", "cosmos3_core.contract.ops."):
        text = text.replace(prefix, "")
    return text


def _of(found: Any) -> str:
    return "None" if found is None else f"{'an' if type(found).__name__[0] in 'aeiou' else 'a'} {type(found).__name__}"
