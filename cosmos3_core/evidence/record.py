"""Records: what a validation measured, chained by hashes to what went in, and what the code and machine were.

A record holds the SHA-256 of the recipe, of the noise, of each measurement and of itself. The chain shows a slip of the
hand and a file from another run; it is no signature, and does not stop someone who computes the hashes anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..contract import InputError
from ..files.atomic import atomic, check_writable
from ..files.digests import sha256_file, sha256_json
from . import verdict as verdicts
from .recipe import Recipe

SCHEMA = 3
"""Raised whenever what is measured, or how, changes: records of another schema are stale."""
MEDIA = ("image", "video")
"""Fields of a request that name a file."""
REMAKE = "Measure it again: cosmos3 recipes validate"


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the hash of each measurement, and last its own."""
    measurements = {name: {"sha256": sha256_json(raw), "raw": raw} for name, raw in record["measurements"].items()}
    record = record | {"schema": SCHEMA, "measurements": measurements}
    return record | {"sha256": sha256_json(record)}


def path_of(recipe: Recipe) -> Path:
    """Where a recipe's record is."""
    return recipe.path.parent / "evidence" / f"{recipe.name}.json"


def load(recipe: Recipe) -> dict[str, Any]:
    """The recipe's record, its chain checked. Raises InputError that says which link does not hold."""
    path, asked = path_of(recipe), f"the record of {recipe.name}"
    try:
        record = json.loads(path.read_text("utf-8"))
        found = _broken_link(recipe, record)
        if found is None:
            verdict = verdicts.judge(record["comparisons"], record["same"])
            if (verdict, verdicts.state(verdict, record["model"]["weights"])) != (record["verdict"], record["state"]):
                found = "its verdict does not follow from its comparisons"
    except OSError as error:
        raise InputError(asked, f"{path.name}: {error.strerror or error}", REMAKE) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"it is damaged ({type(error).__name__}: {error})"
    if found:
        raise InputError(asked, found, REMAKE)
    return record


def _broken_link(recipe: Recipe, record: dict[str, Any]) -> str | None:
    if record["schema"] != SCHEMA:
        return f"it was written by another version of the tool (schema {record['schema']}, now {SCHEMA})"
    if record["recipe_sha256"] != recipe.sha256:
        return "the recipe was changed after it was measured"
    if bool(recipe.formats) != ("formats" in record["comparisons"]["error"]):
        return "it does not say what eager torch loses in the recipe's formats"
    for name, measurement in record["measurements"].items():
        if sha256_json(measurement["raw"]) != measurement["sha256"]:
            return f"the measurement {name!r} was changed by hand"
    if sha256_json({key: value for key, value in record.items() if key != "sha256"}) != record["sha256"]:
        return "it was changed by hand"
    claimed = {"sha256": record["sha256"], "state": record["state"], "date": record["date"]}
    written = {"record": f"evidence/{path_of(recipe).name}"} | claimed
    for key, value in (recipe.validated or {}).items():
        if written[key] != value:
            return f"the recipe's [validated] has {key} = {value}, and the record {written[key]}"
    return None if recipe.validated else "the recipe has no [validated], so it was not written for this record"


def check_both_writable(recipe: Recipe) -> None:
    """InputError unless the record and the recipe can be written: a measurement takes too long to find out after it."""
    check_writable(recipe.path)
    path = path_of(recipe)
    path.parent.mkdir(exist_ok=True)
    check_writable(path)


def write(recipe: Recipe, record: dict[str, Any]) -> None:
    """Write the sealed record, and its hash into the recipe's [validated]."""
    path = path_of(recipe)
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    table = {
        "state": record["state"],
        "record": f"evidence/{path.name}",
        "sha256": record["sha256"],
        "date": record["date"],
    }
    text = re.sub(r"\n*^\[validated\]$.*?(?=^\[|\Z)", "\n", recipe.path.read_text("utf-8"), flags=re.M | re.S)
    lines = [f'{key} = "{value}"' for key, value in table.items()]
    with atomic(recipe.path) as temporary:
        temporary.write_text("\n".join([text.rstrip(), "", "[validated]", *lines, ""]), "utf-8")


def changed_media(recipe: Recipe, record: dict[str, Any]) -> list[str]:
    """Which of the recipe's input media are not what was measured, in words."""
    given, said = recipe.given(), []
    for key in MEDIA:
        if (old := record["request"][key]) is not None:
            path = Path(given[key])
            if not path.exists() or media_digest(path) != old:
                said.append(f"the {key} {path.name} changed" if path.exists() else f"the {key} {path.name} is gone")
    return said


def media_digest(path: Path) -> str:
    """What a record holds in the place of a file."""
    return f"sha256:{sha256_file(path)}"
