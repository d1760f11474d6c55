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
LARGEST_SCALE = 2.0**96
"""Below this no code of a format, nor the sum of a product, is infinite in fp32. Scales of models are around 2^-10."""


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
    """A row. A checkpoint is in it whose `quant_method` is one of `methods`, or where `detect(clues)` says, in words,
    what else shows it. `keys` are the keys of a `quantization_config` that are understood, with what their values have
    to be, `harmless` those that change nothing of the weights; any other is an error, before `describe(clues)` reads
    the description, or raises InputError. `suffixes` are the ends of its tensors' names, after the module's.
    """

    name: str
    methods: tuple[str, ...] = ()
    detect: Callable[[Clues], str | None] = lambda clues: None
    keys: Mapping[str, Kind]
    harmless: tuple[str, ...]
    suffixes: tuple[str, ...]
    describe: Callable[[Clues], Scheme]


@dataclass(frozen=True)
class Kind:
    """What a value of a description has to be, in words and as a check."""

    words: str
    fits: Callable[[Any], bool]


MOST_REPEATED = 4
"""Each repetition of a pattern multiplies the time that a name may take, and that of a group takes all powers."""
MOST_WAYS = 1000
"""In which a pattern's alternatives can be taken, and what may be left out: twenty of the latter are a million."""


def _names(value: Any) -> bool:
    """Names as text, or patterns behind "re:"."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return False
    try:
        return all(_ends_soon(one.removeprefix("re:")) for one in value if one.startswith("re:"))
    except (re.error, OverflowError, RecursionError):  # a repetition beyond C's numbers, groups in hundreds of groups
        return False


def _ends_soon(pattern: str) -> bool:
    """Whether a regular expression tries no more than names are worth: few repetitions, of no group, and few choices.
    Raises what re.compile does."""
    re.compile(pattern)
    plain = re.sub(r"\\.", "", pattern, flags=re.DOTALL)
    few = len(re.findall(r"[+*{]", plain)) <= MOST_REPEATED and _ways(plain) <= MOST_WAYS
    return few and not re.search(r"\)[+*{]", plain)


def _ways(plain: str) -> int:
    """In how many ways the alternatives of a pattern without escapes, and what may be left out, can be taken."""
    plain = re.sub(r"\[\^?\]?[^\]]*\]", "x", plain)
    ways, inside = 1 << len(re.findall(r"(?<![(+*?}])\?", plain)), [1]
    for mark in re.findall(r"[(|)]", plain):
        if mark == "(":
            inside.append(1)
        elif mark == "|":
            inside[-1] += 1
        elif len(inside) > 1:  # a comment may have others
            ways *= inside.pop()
    return ways * math.prod(inside)


TEXT = Kind("text", lambda value: isinstance(value, str))
WHOLE = Kind("a whole number", lambda value: type(value) is int)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
NAMES = Kind("a list of modules' names, or of patterns with few choices and no repeated groups", _names)
ANYTHING = Kind("anything", lambda value: True)
"""For whoever reads the value to check."""


def understood(
    clues: Clues, where: str, found: Mapping[str, Any], keys: Mapping[str, Kind], harmless: Iterable[str] = ()
) -> dict[str, Any]:
    """A part of a description, without what is null, which says nothing. InputError for a key that nobody here
    understands, for it may say how weights are to be read, and for a value that is not what its key takes."""
    known = {*keys, *harmless}
    if strange := sorted(key for key in found if key not in known):
        said = ", ".join(f"{key} = {_short(found[key])}" for key in strange[:6])
        next_step = f"cosmos3 knows {', '.join(sorted(known))}. Drop what has no effect, or tell us what it means"
        raise refuse(clues, where, f"{said}, which is not understood", next_step)
    given = {key: value for key, value in found.items() if value is not None}
    for key, value in given.items():
        if key in keys and not keys[key].fits(value):
            raise refuse(clues, where, f"{key} {_short(value)}, which is not {keys[key].words}")
    return given


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
    """Raises Broken for scales that are NaN or infinite, so large that weights would be, negative unless `negative`, or
    0 unless `zero`."""
    scale = tensors[part].float()
    wrong = ~scale.isfinite() | (scale.abs() > LARGEST_SCALE)
    if not negative:
        wrong |= scale < 0
    if not zero:
        wrong |= scale == 0
    if wrong.any():
        first = scale.reshape(-1)[wrong.reshape(-1)][0].item()
        kind = "NaN" if math.isnan(first) else "infinite" if math.isinf(first) else "zero" if first == 0 else "negative"
        kind = f"{first:.3g}" if LARGEST_SCALE < abs(first) < math.inf else kind
        raise Broken(part, f"{int(wrong.sum())} of its {scale.numel()} scales cannot be, the first is {kind}")


def exponents(tensors: Mapping[str, Tensor], part: str) -> None:
    """Raises Broken for scales of e8m0 that are NaN, which is 255, or so large that weights would be infinite."""
    if (tensors[part] == 255).any():
        raise Broken(part, "one of its scales is 255, which is NaN in e8m0")
    if (largest := int(tensors[part].max()) - 127) > math.log2(LARGEST_SCALE):
        raise Broken(part, f"one of its scales is 2^{largest}, and its weights would be infinite")


def finite_codes(tensors: Mapping[str, Tensor], part: str) -> Tensor:
    """A weight of 8-bit floats. Raises Broken where it holds NaN."""
    import torch

    weight = tensors[part]
    if ((weight.view(torch.uint8) & 127) == 127).any():
        raise Broken(part, "it holds NaN")
    return weight
