"""What a request means where it is silent: defaults.toml, read and checked, by task, profile and model."""

from __future__ import annotations

import itertools
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..spelling import shown
from .facts import OWN, ModelFacts
from .families import TASKS
from .field import NOT_GIVEN, PROFILE
from .fields import FIELDS
from .task import DISTILLED

PROFILES = ("reference", "diffusers", "diffusers-docs", "vllm-omni", "sglang")
CHECKPOINT = "checkpoint"
"""In defaults.toml: what the field's row finds in the checkpoint."""
NO_GUIDANCE_UP_TO = "no_guidance_up_to"
"""In a profile: an engine that leaves the negative branch out at such guidance, instead of at 1 alone."""
SINGLE = "single"
"""In a task of a profile: defaults for a request with one control, by its kind."""
VARIANTS = ("edge", DISTILLED, "droid")
"""Variants and presets of models that may have defaults of their own, in a table of their name. A preset's go before
its variant's."""

Tables = dict[str, dict[str, Any]]


@cache
def tables_read() -> Tables:
    return read_defaults(Path(__file__).with_name("defaults.toml").read_text(encoding="utf-8"))


def read_defaults(text: str) -> Tables:
    """The tables of defaults.toml: [profile.NAME] of what no task differs in, [TASK.NAME] of the rest. Raises
    InputError unless for each task every profile has the default of every field of the task that takes it from there,
    and no other key."""
    tables = tomllib.loads(text)
    for name in TASKS:
        own = tables.get(name, {})
        if like := own.pop("like", None):
            tables[name] = {profile: row | own.get(profile, {}) for profile, row in tables[like].items()}
    for name, profile in tables["profile"].items():
        _inherit(tables, name, profile.pop("like", None))
    fields = {name: field for name, field in FIELDS.items() if field.default == PROFILE}
    for name, profile in itertools.product(TASKS, PROFILES):
        row = tables.get("profile", {}).get(profile, {}) | tables.get(name, {}).get(profile, {})
        special = [row[variant] for variant in VARIANTS if variant in row]
        missing = {key for key, field in fields.items() if field.refusal(TASKS[name]) is None} - row.keys()
        special += row.get(SINGLE, {}).values()
        unknown = set(row).union(*special) - fields.keys() - {"source", NO_GUIDANCE_UP_TO, SINGLE, *VARIANTS}
        for keys, found in ((missing, "there is no default for"), (unknown, "no field takes a default of the name")):
            if keys:
                asked, said = f"defaults.toml: task {name}, profile {profile}", f"{found} {', '.join(sorted(keys))}"
                raise InputError(asked, said, f"Correct [{name}.{profile}] or [profile.{profile}]")
    return tables


def _inherit(tables: Tables, profile: str, like: str | None) -> None:
    """Fill a profile with the rows of the one that it is like; what it says itself holds for every task."""
    if like is None:
        return
    own = tables["profile"][profile]
    tables["profile"][profile] = tables["profile"][like] | own
    for name in TASKS:
        tables[name][profile] = tables[name][like] | own | tables[name].get(profile, {})


def profile_source(profile: str) -> str:
    """Where a profile's values were read."""
    return tables_read()["profile"][profile]["source"]


def defaults(
    task: str, profile: str, model: ModelFacts, controls: tuple[str, ...] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """What the fields of a task are where they are not given, by a profile for a model and what it has for a single one
    of `controls`, or by the checkpoint itself, and where each value comes from. A field without a default (a prompt) is
    absent; the seed is "random" where the profile leaves it to chance. Raises InputError for an unknown profile."""
    check_profile(profile)
    row = tables_read()["profile"][profile] | tables_read()[task][profile]
    variants = {name: dict(row.pop(name, {})) for name in VARIANTS}
    del row["source"]
    row.pop(NO_GUIDANCE_UP_TO, None)
    single, origin = row.pop(SINGLE, {}), dict.fromkeys(row, f"profile {profile}")
    tables = [(name, variants.get(name, {})) for name in (model.variant, model.preset) if name]
    if len(controls) == 1:
        tables.append((f"{controls[0]} alone", dict(single.get(controls[0], {}))))
    for name, special in tables:
        where = f"profile {profile}, {name}" + (f" ({special.pop('source')})" if "source" in special else "")
        row, origin = row | special, origin | dict.fromkeys(special, where)
    for name, field in FIELDS.items():
        if name not in row and field.refusal(TASKS[task]) is not None:
            row[name], origin[name] = None, NOT_GIVEN
        elif field.default == NOT_GIVEN:
            found = field.checkpoint(model) if field.checkpoint else (None, NOT_GIVEN)
            row[name], origin[name] = (None, NOT_GIVEN) if found[0] is None else found
        elif field.default == PROFILE and field.checkpoint and row[name] == CHECKPOINT:
            row[name], origin[name] = field.checkpoint(model)
    own = model.own.get(task, {})
    return row | own, origin | dict.fromkeys(own, f"the checkpoint's own ({OWN})")


def of_single_controls(task: str, profile: str) -> dict[str, dict[str, Any]]:
    """The defaults that a request with a single control has, by its kind."""
    return {hint: dict(values) for hint, values in tables_read()[task][profile].get(SINGLE, {}).items()}


def check_profile(profile: str) -> None:
    """Raises InputError for a name that is no profile's."""
    if not isinstance(profile, str) or profile not in PROFILES:
        raise InputError(f"profile {shown(profile)}", "there is no such profile", f"Profiles are {', '.join(PROFILES)}")
