"""What can be asked without a model's weights: the devices here, what a model takes, what a file was made with."""

from __future__ import annotations

import json
import os
from typing import Any

from cosmos3_core.contract.errors import InputError
from cosmos3_core.spelling import shown

from .words import bound


@bound
def backends() -> list[dict[str, Any]]:
    """The installed backends, `reference` first: for each its name, package, version, state ("available",
    "unavailable", "broken" ...) with the reason, device and kernels, as `cosmos3 backends --json` prints them."""
    from cosmos3_core.settle.questions import backends

    return backends()


@bound
def capabilities(
    model: str | os.PathLike[str] = "nvidia/Cosmos3-Nano", *, profile: str = "reference"
) -> dict[str, Any]:
    """What can be asked of a model: tasks, fields with values and defaults, sizes, dtypes and formats, as `cosmos3
    capabilities --json` prints them. `profile` says whose defaults. Nothing of a published model is downloaded. Raises
    InputError."""
    from cosmos3_core.settle.questions import capabilities

    return capabilities(path_of("model", model), profile)


@bound
def show(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest in a picture or clip that cosmos3 wrote, or in the .json beside it. Raises InputError."""
    from cosmos3_core.runs.manifest import read_manifest

    return read_manifest(path_of("path", path))


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """A copy as JSON has it: lists in the place of tuples."""
    return dict(json.loads(json.dumps(value)))


def path_of(name: str, value: Any) -> str:
    """A path as text. Raises InputError for what is none; `name` is the argument's."""
    from cosmos3_core.scenarios import kinds

    if path := kinds.path_of(value):
        return path
    raise InputError(f"{name} = {shown(value)}", "it is not a path", f"Give {name} as a string or a pathlib.Path", name)


def check_switch(name: str, value: Any) -> None:
    """Raises InputError for what is neither True nor False; `name` is the argument's."""
    if not isinstance(value, bool):
        raise InputError(f"{name} = {shown(value)}", "it is a switch", "Give True or False", name)
