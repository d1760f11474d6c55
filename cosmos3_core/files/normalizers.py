"""Statistics of actions: what turns a robot's units into the model's, and back.

A file is JSON:

    {"method": "quantile", "q01": [...], "q99": [...], "channels": ["x", ...], "units": ["m", ...]}

`method` is one of `METHODS`, which says what statistics it needs, a number for each channel; `channels` and `units` may
be missing, and so may `method` where the request says it. The statistics may also stand in an object called "global",
as in NVIDIA's framework, or "action", as in a LeRobot data set's meta/stats.json. Others are ignored.

The formulas are those of NVIDIA's framework (data/generator/action/utils/action_processing.py), in fp64:
y = (x - offset) / scale, where offset and scale are mean and deviation, or the middle and half of a range. "asinh" is
asinh(y) / asinh(1), and "piecewise-asinh" is y up to 1 and 1 + asinh(|y| - 1) beyond, with the sign of y.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bounds import parse_json
from ..contract import InputError
from ..scenarios.action_kinds import NORMALIZATIONS, THEIRS
from ..spelling import did_you_mean
from .digests import sha256_file
from .sources import check_source

Array = np.ndarray
LEAST = 1e-8
"""Of a range or a deviation: a channel that never moved has none."""
FARTHEST = 1e6
"""Of a normalised value: beyond it the statistics are another robot's."""
LARGEST_FILE = 4 << 20
BLOCKS = ("global", "action")
NEXT_STEP = 'Give statistics such as {"method": "quantile", "q01": [...], "q99": [...]}'


def _same(y: Array) -> Array:
    return y


def _tails(y: Array) -> Array:
    return np.where(abs(y) <= 1, y, np.sign(y) * (1 + np.arcsinh(np.maximum(abs(y) - 1, 0))))


def _heads(y: Array) -> Array:
    return np.where(abs(y) <= 1, y, np.sign(y) * (1 + np.sinh(np.maximum(abs(y) - 1, 0))))


@dataclass(frozen=True)
class Method:
    """A way to normalise: the two statistics that it needs, whether they are the ends of a range, and what is done to
    the values in its units, with the inverse."""

    needs: tuple[str, str]
    is_range: bool
    forward: Callable[[Array], Array] = _same
    back: Callable[[Array], Array] = _same


QUANTILES = ("q01", "q99")
_MADE = (
    Method(QUANTILES, True),
    Method(("mean", "std"), False),
    Method(("min", "max"), True),
    Method(QUANTILES, True, lambda y: np.arcsinh(y) / math.asinh(1), lambda y: np.sinh(y * math.asinh(1))),
    Method(QUANTILES, True, _tails, _heads),
)
METHODS = dict(zip(NORMALIZATIONS, _MADE, strict=True))


@dataclass(frozen=True)
class Normalizer:
    """Statistics that were read: `offset` and `scale` fp64 [D], the method's name, the channels' names and units where
    the file has them, and its SHA-256."""

    method: str
    offset: Array
    scale: Array
    channels: tuple[str, ...] | None
    units: tuple[str, ...] | None
    sha256: str

    @property
    def width(self) -> int:
        return len(self.offset)

    def normalize(self, values: Array, asked: str) -> Array:
        """Values in a robot's units, fp64 [T, D], in the model's. Raises InputError for those that the statistics
        cannot be of."""
        y = METHODS[self.method].forward((values - self.offset) / self.scale)
        if (far := abs(y) > FARTHEST).any():
            row, channel = np.argwhere(far)[0].tolist()
            found = f"row {row}, channel {channel} is {values[row, channel]:g}, and its statistics say "
            found += f"{self.offset[channel]:g} within {self.scale[channel]:g}"
            raise InputError(asked, found, "Give the statistics of this robot's actions as `action_stats`")
        return y

    def denormalize(self, values: Array) -> Array:
        """The model's values, [T, D], in a robot's units, fp64."""
        return METHODS[self.method].back(values.astype(np.float64)) * self.scale + self.offset


def read_normalizer(path: Path, method: str | None = None) -> Normalizer:
    """The statistics in a file, in the form above; `method` is what the request says. Raises InputError."""
    asked = f"`action_stats` {path}"
    check_source(path, asked, NEXT_STEP)
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ValueError(f"it has {size:,} bytes, and at most {LARGEST_FILE:,} are read")
        value = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(asked, f"{getattr(error, 'strerror', None) or error}", NEXT_STEP, "action_stats") from None
    return normalizer_of(value, method, asked, sha256_file(path))


def normalizer_of(value: Any, method: str | None, asked: str, sha256: str) -> Normalizer:
    """The statistics in a JSON value. `asked` names it in messages. Raises InputError."""
    try:
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        stats = value | next((value[name] for name in BLOCKS if isinstance(value.get(name), dict)), {})
        return _of(stats, _method(stats, method, asked), sha256)
    except ValueError as error:
        raise InputError(asked, str(error), NEXT_STEP, "action_stats") from None


def _method(stats: dict[str, Any], asked_for: str | None, asked: str) -> str:
    said = stats.get("method")
    if said is not None:
        said = THEIRS.get(str(said), str(said))
        if said not in METHODS:
            raise ValueError(
                f"its method is {said!r}: {did_you_mean(said, METHODS, f'it is one of {_listed(METHODS)}')}"
            )
        if asked_for not in (None, said):
            raise ValueError(f"its method is {said}, and action_normalization says {asked_for}")
        return said
    if asked_for is not None:
        return asked_for
    able = [name for name, method in METHODS.items() if all(need in stats for need in method.needs)]
    if not able:
        raise ValueError(f"it has no statistics of {_listed(METHODS)}")
    found = f"it does not say its method, and its statistics serve {_listed(able)}"
    raise InputError(asked, found, f"Add `action_normalization`, such as {able[0]}", "action_normalization")


def _of(stats: dict[str, Any], name: str, sha256: str) -> Normalizer:
    method = METHODS[name]
    low, high = (_numbers(stats, need, name) for need in method.needs)
    if len(low) != len(high):
        raise ValueError(f"its {method.needs[0]} has {len(low)} channels and its {method.needs[1]} {len(high)}")
    if method.is_range and (wrong := np.flatnonzero(high < low)).size:
        raise ValueError(f"channel {wrong[0]} ends at {high[wrong[0]]:g}, before it begins at {low[wrong[0]]:g}")
    if not method.is_range and (wrong := np.flatnonzero(high < 0)).size:
        raise ValueError(f"channel {wrong[0]} has the negative deviation {high[wrong[0]]:g}")
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused
        offset = (high + low) / 2 if method.is_range else low
        scale = np.maximum(high - low, LEAST) / 2 if method.is_range else np.maximum(high, LEAST)
    if (wrong := np.flatnonzero(~(np.isfinite(offset) & np.isfinite(scale)))).size:
        raise ValueError(f"channel {wrong[0]} has numbers too large to compute with")
    return Normalizer(name, offset, scale, _words(stats, "channels", low), _words(stats, "units", low), sha256)


def _numbers(stats: dict[str, Any], need: str, method: str) -> Array:
    values = stats.get(need)
    if values is None:
        raise ValueError(f"it has no {need}, which {method} needs")
    if not isinstance(values, list) or not values or not all(type(v) in (int, float) for v in values):
        raise ValueError(f"its {need} is no list of numbers, one for each channel")
    return np.asarray(values, dtype=np.float64)


def _words(stats: dict[str, Any], key: str, like: Array) -> tuple[str, ...] | None:
    words = stats.get(key)
    if words is None:
        return None
    if not isinstance(words, list) or len(words) != len(like) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"its {key} is no list of {len(like)} words, one for each channel")
    return tuple(words)


def _listed(names: Any) -> str:
    return " or ".join(names)
