"""The embodiments of actions: a name, a row of the action heads' weights, and the channels of an action.

docs/model.md, section 4.10; the rows and their sources are in domains.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..spelling import nearest

UNNAMED = "plain"
"""The layout of a domain whose channels have no names."""
SOURCES = {"D": "diffusers", "N": "NVIDIA's framework", "V": "vllm-omni"}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One embodiment. `id` is its row of the action heads' weights, `spaces` the names of an action's channels by
    layout, the usual one first; a domain without any takes its width from the data. `whose` are the programs that know
    it, and `note` is what there is to know."""

    name: str
    id: int
    spaces: Mapping[str, tuple[str, ...]]
    whose: tuple[str, ...]
    note: str = ""

    def channels(self, space: str | None = None) -> tuple[str, ...] | None:
        """The names of an action's channels, in their order; None where the data set decides. `space` None is the
        usual layout. Raises KeyError for a layout that it has not."""
        if not self.spaces:
            return None
        return self.spaces[space or next(iter(self.spaces))]


@cache
def domains() -> dict[str, Domain]:
    """Every domain by its name."""
    table = tomllib.loads(Path(__file__).with_name("domains.toml").read_text(encoding="utf-8"))
    layouts = {name: _channels(parts, table["blocks"]) for name, parts in table["spaces"].items()}
    return {name: _domain(name, row, layouts) for name, row in table["domains"].items()}


def _domain(name: str, row: Mapping[str, Any], layouts: Mapping[str, tuple[str, ...]]) -> Domain:
    spaces = {space: layouts[space] for space in row.get("spaces", ())}
    if "width" in row:
        spaces = {UNNAMED: unnamed(row["width"])}
    whose = tuple(SOURCES[letter] for letter in row["from"])
    return Domain(name=name, id=row["id"], spaces=spaces, whose=whose, note=row.get("note", ""))


def _channels(parts: list[str], blocks: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The names of a layout's channels: those of its blocks, behind what the block belongs to."""
    split = [part.rpartition(".") for part in parts]
    return tuple(f"{whose}{dot}{channel}" for whose, dot, block in split for channel in blocks[block])


def unnamed(width: int) -> tuple[str, ...]:
    """Names of channels whose meaning is not known."""
    return tuple(f"channel{i}" for i in range(width))


def domain_named(word: str) -> Domain | None:
    """The domain of this name, upper and lower case being the same; None where there is none."""
    return domains().get(word.strip().lower())


def nearest_domain(word: str) -> str | None:
    """The name of a domain that is much like this word, if there is one."""
    return nearest(word, domains())
