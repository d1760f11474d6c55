"""What can be asked of a model, as data: its tasks, the fields of a request with values and defaults, and sizes."""

from __future__ import annotations

from typing import Any

from ..model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from .action import TRAINED_FOR, acts
from .aliases import spelled
from .defaults import PROFILES, defaults, of_single_controls, profile_source
from .domains import Domain, domains
from .facts import ModelFacts
from .families import TASKS
from .field import REQUIRED, Field
from .fields import FIELDS
from .kinds import LONGEST, Kind, choice
from .sizes import LARGEST, SMALLEST, TIERS
from .task import DISTILLED, Task
from .transfer import HINTS
from .variants import Variant, able, lacking, variants

Row = tuple[dict[str, Any], dict[str, str]]


def capabilities(model: ModelFacts, profile: str, widest: int) -> dict[str, Any]:
    """What a model takes, and by a profile the default of each field for each of its tasks; its action heads take
    `widest` channels. Raises InputError for an unknown profile."""
    profile = spelled("profile", profile, PROFILES)
    cannot = {name: lacking(task, model.variant, model.lacks) for name, task in TASKS.items()}
    tasks = [task for task in TASKS.values() if cannot[task.name] is None]
    rows = {task.name: defaults(task.name, profile, model) for task in tasks}
    embodiments = {name: _of_domain(row, widest) for name, row in domains().items() if _fits(row, widest)}
    without = TASKS.keys() - rows.keys() | ({DISTILLED} - {model.variant}) | (domains().keys() - embodiments.keys())
    return {
        "model": {
            "name": model.name,
            "variant": model.variant,
            "modalities": list(model.modalities),
            "made_for": model.made_for,
            "note": model.note,
            "trained": None if model.note else _trained(variants()[model.variant]),
        },
        "profile": {"name": profile, "source": profile_source(profile)},
        "profiles": list(PROFILES),
        "tasks": {task.name: _task(task, profile) for task in tasks},
        "cannot": {
            name: {"why": f"{model.name} {why}", "instead": able(TASKS[name])} for name, why in cannot.items() if why
        },
        "fields": {name: _field(field, model, rows, without) for name, field in FIELDS.items()},
        "sizes": {
            "smallest": SMALLEST,
            "largest": LARGEST,
            "step": SPATIAL_COMPRESSION,
            "tiers": {tier: {aspect: f"{w}x{h}" for aspect, (w, h) in row.items()} for tier, row in TIERS.items()},
        },
        "domains": embodiments if any(map(acts, tasks)) else {},
        "frames": {"first": 1, "step": TEMPORAL_COMPRESSION, "most": LONGEST},
    }


def _trained(variant: Variant) -> dict[str, Any]:
    return {
        "tiers": list(variant.tiers),
        "frames": {tier: list(range_) for tier, range_ in variant.frames.items()},
        "fps": list(variant.fps) if variant.fps else None,
        "source": variant.source,
    }


def _fits(domain: Domain, widest: int) -> bool:
    """Whether heads of so many channels take an embodiment, in one of its layouts or in one that a request says."""
    return not domain.spaces or any(len(channels) <= widest for channels in domain.spaces.values())


def _of_domain(domain: Domain, widest: int) -> dict[str, Any]:
    spaces = {space: list(channels) for space, channels in domain.spaces.items() if len(channels) <= widest}
    return {"id": domain.id, "spaces": spaces, "known_to": list(domain.whose), "note": domain.note}


def _task(task: Task, profile: str) -> dict[str, Any]:
    return {
        "title": task.title,
        "input": task.input,
        "single_frame": task.single,
        "output": task.suffix,
        "latents": list(task.latents),
        "controls": list(HINTS) if HINTS[0] in task.takes else [],
        "single_control": of_single_controls(task.name, profile),
    }


def _field(field: Field, model: ModelFacts, rows: dict[str, Row], without: set[str]) -> dict[str, Any]:
    lacking = model.lacks.get(field.modality or "")
    tasks, kind = [name for name in field.tasks if name in rows and not lacking], _kind(field, without)
    return {
        "help": field.help,
        "kind": kind.name,
        "words": kind.words,
        "schema": dict(kind.schema),
        "required": field.default == REQUIRED,
        "fixed": field.distilled and model.variant == DISTILLED,
        "tasks": tasks,
        "lacking": lacking,
        "defaults": {name: _default(field, *rows[name]) for name in tasks if field.name in rows[name][0]},
    }


def _kind(field: Field, lacking: set[str]) -> Kind:
    """The field's kind with what this model takes of its choices: not each has every task, only a distilled one the
    schedule of that name, and action heads take so many channels."""
    names = field.kind.schema.get("enum", ())
    return choice(*(name for name in names if name not in lacking)) if lacking & set(names) else field.kind


def _default(field: Field, values: dict[str, Any], origin: dict[str, str]) -> dict[str, Any]:
    """A field's default and its source. A text in a checkpoint's files is named and not repeated."""
    value, source = values[field.name], origin[field.name]
    read = isinstance(value, str) and source.startswith("checkpoint") and source != TRAINED_FOR
    return {"value": None if read else value, "source": source}
