"""What each checkpoint can do. Validation, advice and `cosmos3 capabilities` ask the same table, variants.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import InputError
from .facts import ModelFacts, lacking_heads
from .families import TASKS
from .task import Task

ADVISED = 2
"""Checkpoints that an error names."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published checkpoint. `config` is its row of checkpoint/models.toml, `variant` one of `variants()`, `heads` the
    modalities besides vision that it has weights for, `made_for` the task that it was trained for above others,
    `preset` the name of a table with defaults of its own, `domain` and `action_space` the embodiment and the layout of
    its actions that it was trained for, `steps` those that a distilled one was made for, and `chunk` how many actions a
    policy is asked for."""

    name: str
    config: str
    variant: str
    heads: tuple[str, ...]
    made_for: str | None = None
    preset: str | None = None
    domain: str | None = None
    action_space: str | None = None
    steps: int | None = None
    chunk: int | None = None

    @property
    def lacks(self) -> dict[str, str]:
        """As `ModelFacts` has it."""
        return lacking_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What the training of a kind of checkpoint covered: resolution `tiers`, by tier the least and the largest number
    of `frames`, and frames a second (`fps`, None where nothing says). `only` is what to say of another task than
    `{tasks}`; `source` is where all this is from."""

    name: str
    only: str
    tiers: tuple[str, ...]
    frames: Mapping[str, tuple[int, int]]
    source: str
    fps: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Examples:
    """How published examples ask for actions: how many a second (`fps`), by domain, and where that is from."""

    fps: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Conflict:
    """What is said of one thing by whom, where it is no profile's, and what was chosen `here`."""

    about: str
    says: Mapping[str, str]
    here: str


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("variants.toml").read_text(encoding="utf-8"))


@cache
def checkpoints() -> dict[str, Checkpoint]:
    """The published checkpoints by hub id."""
    rows = _table()["checkpoint"]
    return {name: Checkpoint(name=name, **row | {"heads": tuple(row["heads"])}) for name, row in rows.items()}


@cache
def variants() -> dict[str, Variant]:
    """The kinds of checkpoint by name."""
    found = {}
    for name, row in _table()["variant"].items():
        frames = {tier: (least, most) for tier, (least, most) in row["frames"].items()}
        fps = tuple(row["fps"]) if "fps" in row else None
        found[name] = Variant(name=name, **row | {"tiers": tuple(row["tiers"]), "frames": frames, "fps": fps})
    return found


def action_examples() -> Examples:
    """How published examples ask for actions."""
    return Examples(**_table()["actions"])


def conflicts() -> list[Conflict]:
    """Where engines disagree, besides what the profiles of defaults.toml hold."""
    return [Conflict(**row) for row in _table()["conflict"]]


def lacking(task: Task, variant: str, lacks: Mapping[str, str], beside: Collection[str] = ()) -> str | None:
    """Why a checkpoint of this variant that `lacks` these modalities cannot do a task, and the modalities `beside`
    those of the task, such as sound; None where it can."""
    for modality in (*task.latents, *beside):
        if modality in lacks:
            return lacks[modality]
    if variant not in task.variants:
        names = [name for name, other in TASKS.items() if variant in other.variants]
        return variants()[variant].only.format(tasks=f"{', '.join(names[:-1])} and {names[-1]}")
    return None


def able(task: Task, beside: Collection[str] = ()) -> list[str]:
    """The published checkpoints that can do a task, and those first that were made for it or for no other."""
    can = [row for row in checkpoints().values() if lacking(task, row.variant, row.lacks, beside) is None]
    return [row.name for row in sorted(can, key=lambda row: row.made_for not in (task.name, None))]


def check_able(task: Task, model: ModelFacts, beside: Collection[str] = ()) -> None:
    """Raises InputError for a task, or what is wanted `beside` its own modalities, that this checkpoint cannot do. It
    names checkpoints that can."""
    if (reason := lacking(task, model.variant, model.lacks, beside)) is None:
        return
    asked = f"task {task.name}" + (f" with {' and '.join(beside)}" if beside else "")
    names = " or ".join(able(task, beside)[:ADVISED])
    drop = f"drop {' and '.join(beside)}" if beside else "another task"
    raise InputError(asked, f"{model.name} {reason}", f"Use `model` {names}, or {drop}")
