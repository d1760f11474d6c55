"""What a dialect is: how one maker of quantized checkpoints names its tensors, describes them, and lays them out."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...contract import InputError
from ..formats import FORMATS, Format

if TYPE_CHECKING:
    from torch import Tensor

    from ..numerics import Packed

AGAIN = "Quantize the model again, or get the checkpoint again from where it was published"
PLAIN = ("float32", "bfloat16", "float16")
"""Dtypes of a weight that is not quantized."""


@dataclass(frozen=True)
class Header:
    """What a file's header says of a tensor: its shape, torch's name of its dtype, and in a GGUF file its type."""

    shape: tuple[int, ...]
    dtype: str
    type: str = ""


@dataclass(frozen=True, kw_only=True)
class Clues:
    """What is known of a checkpoint before a weight is read, and what a dialect is detected by.

    `source` names it in messages. `config` is the transformer's `quantization_config`, `files` other files that
    describe a quantization by their names (hf_quant_config.json, quant_model_description.json), `metadata` that of its
    safetensors files, `gguf` says that its weights are a GGUF file. `headers` are its tensors by their names in
    diffusers' naming, None where they are not known yet.
    """

    source: str
    config: Mapping[str, Any] | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    gguf: bool = False
    headers: Mapping[str, Header] | None = None

    @property
    def method(self) -> str | None:
        """`quant_method` of the config."""
        return None if self.config is None else str(self.config.get("quant_method", ""))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of one quantized weight_OI lie in the file.

    `parts` are its tensors by the ends of their names. Those of `small` are read, and judged by `check`, before any
    weight is; `read` makes the weight of all. `check` and `read` raise `Broken`.
    """

    format: Format
    parts: tuple[str, ...]
    small: tuple[str, ...]
    read: Callable[[dict[str, Tensor]], Packed]
    check: Callable[[dict[str, Tensor]], None]


class Broken(Exception):
    """What is wrong with a quantized weight: its part (None: all of it), and what was found."""

    def __init__(self, part: str | None, found: str):
        self.part, self.found = part, found
        super().__init__(found)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A checkpoint's quantization as its description has it.

    `formats` are those that it names, () where only the tensors tell. `layout(module, parts, shape)` says how the
    weight [O, I] of a module lies in its tensors `parts` (by suffix), None where it is not quantized; it raises
    `Broken`. `policy` is what the checkpoint asks of a run's steps.
    """

    formats: tuple[Format, ...]
    layout: Callable[[str, Mapping[str, Header], tuple[int, int]], Layout | None]
    policy: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A row. `detect(clues)` is what shows that a checkpoint is in it, in words, or None. `keys` are the keys of a
    `quantization_config` that are understood, `harmless` those that change nothing of the weights; any other is an
    error, before `describe(clues)` reads the description, or raises InputError. `suffixes` are the ends of its tensors'
    names, after the module's.
    """

    name: str
    detect: Callable[[Clues], str | None]
    keys: tuple[str, ...]
    harmless: tuple[str, ...]
    suffixes: tuple[str, ...]
    describe: Callable[[Clues], Scheme]


def unknown_keys(clues: Clues, where: str, found: Mapping[str, Any], known: Iterable[str]) -> None:
    """InputError for a key of a description that nobody here understands: it may say how weights are to be read."""
    known = set(known)
    if strange := sorted(key for key in found if key not in known):
        said = ", ".join(f"{key} = {_short(found[key])}" for key in strange[:6])
        next_step = f"cosmos3 knows {', '.join(sorted(known))}. Drop what has no effect, or tell us what it means"
        raise InputError(f"loading {clues.source}", f"its {where} says {said}, which is not understood", next_step)


def refuse(clues: Clues, where: str, found: str, next_step: str = AGAIN) -> InputError:
    """The error for a description that cannot be met."""
    return InputError(f"loading {clues.source}", f"its {where} says {found}", next_step)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def named(patterns: Iterable[str], module: str) -> bool:
    """Whether a list of modules has one: by name, by a pattern with *, by `re:` and a regular expression, or by a
    part of the path."""
    for pattern in patterns:
        if pattern.startswith("re:"):
            if re.match(pattern[3:], module):
                return True
        elif pattern == module or fnmatch.fnmatchcase(module, pattern) or module.startswith(f"{pattern}."):
            return True
    return False


def present(parts: Mapping[str, Header], wanted: Iterable[str], what: str) -> None:
    """Raises Broken where one of the wanted parts is missing."""
    if missing := [part for part in wanted if part not in parts]:
        raise Broken(missing[0], f"it is missing, and {what} needs it")


def expect(
    parts: Mapping[str, Header], part: str, shapes: tuple[int, ...] | list[tuple[int, ...]], *dtypes: str
) -> None:
    """Raises Broken where a part has another shape than one of `shapes`, or another dtype."""
    header, allowed = parts[part], shapes if isinstance(shapes, list) else [shapes]
    if header.dtype not in dtypes:
        raise Broken(part, f"it is {header.dtype} instead of {' or '.join(dtypes)}")
    if header.shape not in allowed:
        raise Broken(part, f"it is {list(header.shape)} instead of {' or '.join(str(list(one)) for one in allowed)}")


def group_of(width: int, group: int, part: str) -> int:
    """The group's size where it divides the width; -1 and 0 mean the whole row. Raises Broken."""
    if group in (-1, 0):
        return width
    if group < 0 or width % group:
        raise Broken(part, f"groups of {group} do not divide its {width} input features")
    return group


def with_group(name: str, width: int, group: int) -> Format:
    """The built-in format of this name with groups of another size."""
    return replace(FORMATS[name], group=0 if group == width else group)


def positive(tensors: Mapping[str, Tensor], part: str, *, zero: bool = False, negative: bool = False) -> None:
    """Raises Broken for scales that are NaN or infinite, negative unless `negative`, or 0 unless `zero`."""
    scale = tensors[part].float()
    wrong = ~scale.isfinite()
    if not negative:
        wrong |= scale < 0
    if not zero:
        wrong |= scale == 0
    if wrong.any():
        first = scale.reshape(-1)[wrong.reshape(-1)][0].item()
        kind = "NaN" if math.isnan(first) else "infinite" if math.isinf(first) else "negative" if first < 0 else "zero"
        raise Broken(part, f"{int(wrong.sum())} of its {scale.numel()} scales cannot be, the first is {kind}")


def not_nan(tensors: Mapping[str, Tensor], part: str) -> None:
    """Raises Broken for scales of e8m0 that are NaN, which is 255."""
    if (tensors[part] == 255).any():
        raise Broken(part, "one of its scales is 255, which is NaN in e8m0")


def finite_codes(tensors: Mapping[str, Tensor], part: str) -> Tensor:
    """A weight of 8-bit floats. Raises Broken where it holds NaN."""
    import torch

    weight = tensors[part]
    if ((weight.view(torch.uint8) & 127) == 127).any():
        raise Broken(part, "it holds NaN")
    return weight
