"""What other programs call an option, a field or a value, and what it is called here; the rows are in aliases.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..spelling import did_you_mean

HERE, LATER, NEVER, UNNEEDED = "here", "later", "never", "unneeded"
LOADED = {
    "model": "model",
    "revision": "revision",
    "profile": "profile",
    "backend": "backend",
    "dtype": "dtype",
    "kernel": "kernels",
    "kernels": "kernels",
    "format": "formats",
    "formats": "formats",
    "high_precision_steps": "high_precision_steps",
    "resident": "resident",
    "placement": "placement",
}
"""What is chosen with the model and not by a request: by option and argument, the argument of `cosmos3.load`."""
CONTROL = "control"
"""In a row: a control clip, `edge` or another by its kind."""
INPUT = "input"
"""In a row: the file that a task starts from, `image` or `video` by what it holds."""


@dataclass(frozen=True)
class Alias:
    """One name of other programs. `owners` holds their letters; `kind` is HERE, LATER, NEVER or UNNEEDED, and `means`
    our name, the feature that is not here yet, or the reason why it is not here."""

    name: str
    owners: str
    kind: str
    means: str

    @property
    def whose(self) -> str:
        """Who calls it that, in words."""
        return ", ".join(owners()[letter] for letter in self.owners)

    @property
    def answer(self) -> str:
        """What to know of it, as a part of a sentence; ours are named by their fields."""
        if self.kind == LATER:
            return f"not yet: {self.means}"
        if self.kind != HERE:
            return f"not here: {self.means}"
        if self.means == INPUT:
            return "here it is `image` FILE or `video` FILE"
        if self.means == CONTROL:
            return "here it is `edge` FILE, or `blur`, `depth`, `seg` or `wsm`"
        form = table()["forms"].get(self.means)
        return f"here it is `{self.means}`{f' {form}' if form else ''}"


@cache
def table() -> dict[str, Any]:
    """aliases.toml."""
    return tomllib.loads(Path(__file__).with_name("aliases.toml").read_text("utf-8"))


@cache
def owners() -> dict[str, str]:
    """The programs by letter."""
    return table()["owners"]


@cache
def aliases() -> dict[str, Alias]:
    """Every row by its name, in the order of the file."""
    rows = table()
    return {
        name: Alias(name, letters, kind, means)
        for kind in (HERE, LATER, NEVER, UNNEEDED)
        for means, names in rows[kind].items()
        for name, letters in names.items()
    }


def known(word: str) -> Alias | None:
    """The row of an option or a key as somebody typed it, if there is one."""
    return next((aliases()[name] for name in (named(word), positive(word)) if name in aliases()), None)


def named(word: str) -> str:
    """An option or a key, spelt as a key."""
    return word.lstrip("-").replace("-", "_").lower()


def positive(word: str) -> str:
    """What an option or a key would switch off, if it is of that kind."""
    return named(word).removeprefix("no_").removeprefix("disable_")


def next_step(word: str, ours: Iterable[str], otherwise: str) -> str:
    """What to do about a key that is not among `ours`: what other programs mean by it, else a name that is much like
    it, else `otherwise`."""
    if named(word) in (ours := tuple(ours)):
        return f"Did you mean {named(word)}?"
    found = known(word)
    means = found.means if found and found.kind == HERE else named(word)
    if argument := LOADED.get(named(word)) or LOADED.get(means):
        option = next(name for name in LOADED if LOADED[name] == argument)
        return f"It is chosen with the model: `{option}`, from Python load({argument}=...)"
    if found is None:
        return did_you_mean(word, ours, otherwise)
    return found.answer[0].upper() + found.answer[1:]


def in_python(word: str) -> str | None:
    """What to do from Python about a name that other programs have; None for a name of none of them."""
    rows, found = table()["python"], known(word)
    said = rows.get(word.lower()) or (rows.get(found.means, found.answer) if found else "")
    return said[0].upper() + said[1:] if said else None


def spelled(kind: str, word: str, ours: Iterable[str] = ()) -> str:
    """The one of our names of a profile or a backend that is meant by another; any other word as it is, and what is no
    word."""
    if not isinstance(word, str):
        return word
    name = word.strip().lower().replace("_", "-")
    return name if name in ours else table()["values"][kind].get(name, word)


def asks_nothing(name: str, value: Any) -> bool:
    """Whether this value of a key leaves the feature off. Of a number of outputs that is one."""
    off = table()["off"].get(name)
    if type(off) is int:
        return value is None or (type(value) in (int, float) and value == off)
    return off == "any" or value in (None, False, "", [], {})
