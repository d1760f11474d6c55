"""Which modules `cosmos3 quantize` leaves in the model's dtype: a TOML file with these keys, all optional.

    keep_understanding = true    # the text tower's layers
    keep_first_layers = 2        # of the media tower; by default as many as a run with --format keeps
    keep = ["*.down_proj"]       # more modules, by name or with *, in diffusers' naming

Only matrices of decoder layers are quantized: embeddings, the time embedder, the heads and norms always stay.
"""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..files.sources import check_source
from ..model.config import TransformerConfig
from ..spelling import did_you_mean, shown

LARGEST = 1 << 18
"""Bytes of a policy's file."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`keep_first_layers` None: as many as whoever quantizes takes by default."""

    keep_understanding: bool = True
    keep_first_layers: int | None = None
    keep: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"keep": list(self.keep)}


KEYS: Mapping[str, tuple[type, str]] = {
    "keep_understanding": (bool, "true or false"),
    "keep_first_layers": (int, "a whole number"),
    "keep": (list, "a list of modules' names"),
}


def read_policy(path: Path) -> Policy:
    """A policy's file, checked. Raises InputError for one that cannot be read, an unknown key or a wrong value."""
    asked = f"`policy` {path}"
    check_source(path, asked, "Pass a TOML file")
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(asked, f"it has more than {LARGEST:,} bytes", "Pass a policy, which is a few lines")
        table = tomllib.loads(text.decode())
    except OSError as error:
        raise InputError(asked, error.strerror or str(error), "Check who may read it") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(asked, f"it is no TOML: {error}", "Correct the file") from None
    return policy_of(table, asked)


def policy_of(table: Mapping[str, Any], asked: str) -> Policy:
    """A policy of these keys, checked; `asked` names it in messages. Raises InputError."""
    for key, value in table.items():
        if key not in KEYS:
            raise InputError(asked, f"unknown key {key}", did_you_mean(key, KEYS, f"Keys are {', '.join(KEYS)}"))
        kind, words = KEYS[key]
        texts = not isinstance(value, list) or all(isinstance(one, str) for one in value)
        if type(value) is not kind or not texts:
            raise InputError(asked, f"{key} is {shown(value)}, and it should be {words}", "Correct it")
    return Policy(**{**table, **({"keep": tuple(table["keep"])} if "keep" in table else {})})


def chosen(policy: Policy, config: TransformerConfig) -> list[str]:
    """The modules to quantize, in the layers' order. Raises InputError where the policy names layers or modules that
    are not there, keeps by name what stays anyway, or leaves nothing."""
    from ..model.weights import layer_slots, shapes

    first, layers, asked = policy.keep_first_layers or 0, config.num_hidden_layers, "`policy`"
    if not 0 <= first <= layers:
        found = f"keep_first_layers is {first}, and the model has {layers} layers"
        raise InputError(asked, found, f"Choose 0 to {layers}")
    modules = [
        module
        for i in range(layers)
        for media in (False, True)
        if (i >= first if media else not policy.keep_understanding)
        for slot in layer_slots(config, i, media=media)
        if slot.matrix
        for module in slot.modules
    ]
    every = {name.removesuffix(".weight") for name in shapes(config) if name.endswith(".weight")}
    for pattern in policy.keep:
        if not _matching(pattern, modules):
            anyway = _matching(pattern, sorted(every))
            found = f"{anyway[0]} stays without it" if anyway else "no module has such a name"
            hint = f"Modules are such as {modules[0]}" if modules else "Leave it out"
            raise InputError(asked, f"keep has {shown(pattern)}, and {found}", "Leave it out" if anyway else hint)
    kept = {module for pattern in policy.keep for module in _matching(pattern, modules)}
    if left := [module for module in modules if module not in kept]:
        return left
    raise InputError(asked, "it keeps every module, and nothing would be quantized", "Keep less")


def _matching(pattern: str, modules: Sequence[str]) -> list[str]:
    return [module for module in modules if fnmatch.fnmatchcase(module, pattern)]
