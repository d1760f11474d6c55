"""Records: what a validation measured, chained by hashes to what went in, and what the code and machine were.

A record holds the SHA-256 of the recipe, of the noise, of each measurement and of itself, and samples of what every
measurement computed, from which the errors are computed again. That shows a slip of the hand, a file from another run
and a number that was made better; it is no signature, and does not stop someone who invents a measurement as a whole.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..checkpoint.repository import full_name
from ..contract import InputError
from ..files.atomic import atomic, check_writable
from ..files.digests import sha256_file, sha256_json
from ..files.schema import Anything, Listed, Number, Switch, Table, Text
from ..files.sources import check_source
from ..plan.known import names_alike
from ..scenarios.families import TASKS
from ..scenarios.fields import FIELDS
from ..scenarios.sizes import AUTO, TIERS
from . import evaluated
from . import verdict as verdicts
from .recipe import Recipe, files_of
from .settle import PLANNED

SCHEMA = 5
"""Raised whenever what is measured, or how, changes: records of another schema are stale."""
LACKING = {
    3: "samples, from which errors are recomputed",
    4: "an evaluation of the embedded model with the recipe's plan",
}
"""What records of the schemas before and of those before them lack; they are read for what they say."""
WITHOUT_SAMPLES = 3
SAMPLES = 512
"""Elements of every velocity and trajectory that a record keeps."""
AGREES = 1.6
"""How far an error on the samples may be from that on all elements: their mean differs from theirs by chance, some 10 %
where single elements are far off."""
LEAST = 1e-5
"""An error that two ways of adding up may disagree on."""
LARGEST = 4 << 20
"""Bytes of a record's file."""
MEDIA = ("image", "video")
"""Fields of a request that every record has, None where there is none: the digest of a file."""
OUTPUTS = {"frames": "psnr_db", "sound": "snr_db", "actions": "error"}
"""What a run makes, by its tensor, and the comparison that tells whether it is equal."""
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
        record = _read(path)
        found = _outdated(recipe, record)
        if found is None:
            RECORD.check(record, "it")
            found = _broken_link(recipe, record) or _other_recipe(recipe, record) or _other_quantities(recipe, record)
            found = found or _not_measured(record) or _not_evaluated(record)
        if found is None:
            verdict = verdicts.judge(record["comparisons"], record["same"], record.get("evaluation"))
            if (verdict, verdicts.state(verdict, record["model"]["weights"])) != (record["verdict"], record["state"]):
                found = "its verdict does not follow from its comparisons"
    except OSError as error:
        raise InputError(asked, f"{path.name}: {error.strerror or error}", REMAKE) from None
    except (ValueError, RecursionError) as error:
        found = f"it is damaged: {error}"
    if found:
        raise InputError(asked, found, REMAKE)
    return record


def _outdated(recipe: Recipe, record: dict[str, Any]) -> str | None:
    if record["schema"] not in (*LACKING, SCHEMA):
        return f"it was written by another version of the tool (schema {record['schema']}, now {SCHEMA})"
    if record["recipe_sha256"] != recipe.sha256:
        return "the recipe was changed after it was measured"
    return None


def _broken_link(recipe: Recipe, record: dict[str, Any]) -> str | None:
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


def _read(path: Path) -> dict[str, Any]:
    """A record of any schema. Raises OSError, for a pipe too, and ValueError."""
    try:
        check_source(path, f"reading {path}", REMAKE)
    except InputError as error:
        raise OSError(error.found) from None
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    record = parse_json(data.decode())
    VERSIONED.check(record, "it")
    return record


def _other_recipe(recipe: Recipe, record: dict[str, Any]) -> str | None:
    """What of a record is of another recipe, in words."""
    if record["recipe"] != recipe.name:
        return f"it is the record of {record['recipe']}"
    device, here = recipe.device, record["fingerprint"]["device"]
    raw = {name: measurement["raw"] for name, measurement in record["measurements"].items()}
    plan, task = raw["candidate"]["plan"], TASKS[recipe.run["task"]]
    asked = {"backend": recipe.run["backend"], "model": full_name(recipe.run["model"]), "formats": dict(recipe.formats)}
    asked |= {"arch": device["arch"]} if "arch" in device else {}
    asked |= {"dtype": recipe.run["dtype"]} if "dtype" in recipe.run else {}
    asked |= {"parallel": recipe.parallel}
    formats = {op: name for op, name in plan["formats"].items() if name != "none"}
    has = {"backend": here["backend"], "model": record["model"]["name"], "arch": here["arch"]}
    has |= {"formats": formats, "dtype": plan["dtype"], "parallel": plan.get("parallel")}
    if other := [key for key in asked if asked[key] != has[key]]:
        return f"its {other[0]} is {has[other[0]]}, and the recipe's {asked[other[0]]}"
    if not names_alike(device["name"], f"{here['name']} {here['arch']}"):
        return f"it was measured on {here['name']}, and the recipe is for {device['name']}"
    kernels = {tuple(kernel) for kernel in record["fingerprint"]["kernels"]}
    if lost := [f"{op} {name}" for op, name in plan["kernels"].items() if (op, name) not in kernels]:
        return f"its fingerprint is without the kernel {lost[0]}, which it was measured with"
    for key, value in recipe.given().items():
        if files_of({key: value}):  # their digests are held against the files
            continue
        measured = record["request"].get(key)
        has, wants = FIELDS[key].check(measured, task), FIELDS[key].check(value, task)
        if has != wants and not _may_become(wants, has):
            return f"its request's {key} is {measured}, and the recipe's {value}"
    return None


def _may_become(wants: Any, has: Any) -> bool:
    """Whether a size in pixels is one of those that "auto" stands for, which an input settles."""
    auto = AUTO.fullmatch(wants) if isinstance(wants, str) and isinstance(has, tuple) else None
    return auto is not None and (not auto[1] or has in TIERS[auto[1]].values())


def _other_quantities(recipe: Recipe, record: dict[str, Any]) -> str | None:
    """That not all of what the recipe's run makes was judged, or something else was, in words."""
    judged, compared = set(verdicts.quantities(recipe.made)), record["comparisons"]
    for errors in (*compared["error"].values(), *compared["noise"].values()):
        if errors.keys() != judged:
            return f"it judges {' and '.join(sorted(errors.keys() ^ judged))} otherwise than the recipe's task says"
    made = {OUTPUTS["frames"], "ssim"} | {OUTPUTS[name] for name in outputs_of(recipe)}
    for name, output in compared["output"].items():
        if output.keys() != made:
            return f"its output of {name} is not compared in {' and '.join(sorted(output.keys() ^ made))}"
    return None


def outputs_of(recipe: Recipe) -> tuple[str, ...]:
    """What is made and written of a run, as its tensors are called: frames, which are decoded of every run, and what
    there is besides."""
    return (
        "frames",
        *(("sound",) if "sound" in recipe.made else ()),
        *(("actions",) if "action" in recipe.made else ()),
    )


def _not_measured(record: dict[str, Any]) -> str | None:
    """What of the comparisons does not follow from the measurements, in words."""
    raw = {name: measurement["raw"] for name, measurement in record["measurements"].items()}
    if same(raw) != record["same"]:
        return "whether the candidate is the baseline does not follow from their plans"
    pairs = [(name, "", "exact", claimed) for name, claimed in record["comparisons"]["error"].items()]
    noise = record["comparisons"]["noise"]
    pairs += [("baseline", ".again", "baseline", noise["repeat"]), ("restart", "", "baseline", noise["restart"])]
    for name, suffix, truth, claimed in pairs:
        for quantity, said in claimed.items():
            equal = _digest(raw, name, quantity + suffix) == _digest(raw, truth, quantity)
            if equal != (said == 0):
                return f"its {quantity} of {name} is {said:g} from {truth}, and their digests are {_alike(equal)}"
            if record["schema"] <= WITHOUT_SAMPLES:
                continue
            samples = _samples(record, name, quantity + suffix), _samples(record, truth, quantity)
            found = _distance(*samples)
            if not found / AGREES - LEAST <= said <= found * AGREES + LEAST:
                return f"its {quantity} of {name} is {said:.3g} from {truth}, and by its samples {found:.3g}"
    for name, claimed in record["comparisons"]["output"].items():
        for tensor, key in OUTPUTS.items():
            if key not in claimed:
                continue
            equal = _digest(raw, name, tensor) == _digest(raw, "baseline", tensor)
            if equal != (claimed[key] in (None, 0)):
                return f"its {tensor} of {name} and the baseline's have digests that are {_alike(equal)}"
    return None


def _not_evaluated(record: dict[str, Any]) -> str | None:
    """What of the evaluation does not follow from its cases, in words."""
    if "evaluation" in record:
        return evaluated.fault(record)
    return "it holds no evaluation" if record["schema"] == SCHEMA else None


def lacking(record: dict[str, Any]) -> list[str]:
    """What records hold today, and one of an earlier schema does not, in words."""
    return [
        f"records hold {said}, and this one has none" for schema, said in LACKING.items() if record["schema"] <= schema
    ]


def _digest(raw: Mapping[str, Any], name: str, tensor: str) -> str:
    """Of a measurement. Raises ValueError where there is none."""
    if (found := raw[name]["tensors"].get(tensor)) is None:
        raise ValueError(f"its measurement {name!r} has no {tensor}")
    return str(found)


def same(raw: Mapping[str, Any]) -> bool:
    """Whether a candidate is its baseline, by their measurements: the same rows, formats and dtype, on one device."""
    keys = (*PLANNED, "parallel")
    first, second = ([raw[name]["plan"].get(key) for key in keys] for name in ("baseline", "candidate"))
    return first == second


def _alike(equal: bool) -> str:
    return "equal" if equal else "different"


def _samples(record: dict[str, Any], name: str, quantity: str) -> array[float]:
    """Of a measurement. Raises ValueError unless there are as many as there should be, all of them finite."""
    try:
        values = array("f", base64.b64decode(record["samples"][name][quantity], validate=True))
    except (KeyError, ValueError, binascii.Error):
        raise ValueError(f"the samples of its {quantity} are missing or damaged") from None
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != SAMPLES or not all(map(math.isfinite, values)):
        raise ValueError(f"the samples of its {quantity} are missing or damaged")
    return values


def _distance(values: array[float], truth: array[float]) -> float:
    """Relative L1, as `quality.relative_l1`."""
    whole = math.fsum(map(abs, truth))
    return math.fsum(abs(one - other) for one, other in zip(values, truth, strict=True)) / whole if whole else 0.0


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
    old, said = files_of(record["request"]), []
    for label, name in files_of(recipe.given()).items():
        path = Path(name)
        if not path.exists() or media_digest(path) != old.get(label):
            said.append(f"the {label} {path.name} changed" if path.exists() else f"the {label} {path.name} is gone")
    return said


def media_digest(path: Path) -> str:
    """What a record holds in the place of a file."""
    return f"sha256:{sha256_file(path)}"


POSITIVE = Number(0, 1e15)
SHA256 = Text(pattern="[0-9a-f]{64}")
DECIBELS = Number(-1000, 1000, none=True)
ERRORS = Table(allowed=dict.fromkeys(verdicts.quantities(verdicts.MODALITIES), Number(0, 1e9)))
OUTPUT = Table({"psnr_db": DECIBELS, "ssim": Number(-1.001, 1.001)}, {"snr_db": DECIBELS, "error": Number(0, 1e9)})
TIMES = Table({"seconds": POSITIVE}, {"stages": Table(others=POSITIVE)})
PLAN = Table(
    {"dtype": Text(), "kernels": Table(others=Text()), "formats": Table(others=Text())},
    others=Anything(),
)
MEMORY = Table({"host_bytes": POSITIVE}, dict.fromkeys(("allocated_bytes", "reserved_bytes"), POSITIVE))
PROBED = {"plan": PLAN, "tensors": Table(others=Text())}


def _measured(**needed: Any) -> Table:
    return Table({"sha256": SHA256, "raw": Table(PROBED | needed)})


RECORD = Table(
    {
        "schema": Number(whole=True),
        "sha256": SHA256,
        "recipe": Text(),
        "recipe_sha256": SHA256,
        "date": Text(pattern=r"\d{4}-\d\d-\d\d"),
        "state": Text(),
        "model": Table(
            {"name": Text(), "revision": Text(none=True), "weights": Text(choices=("random", "checkpoint"))}
        ),
        "request": Table(dict.fromkeys(MEDIA, Text(none=True)), others=Anything()),
        "same": Switch(),
        "verdict": Table(
            {"passed": Switch(), "rule": Text(), "checks": Listed(Table(others=Anything()))},
            {"note": Text(), "evaluation": Anything()},
        ),
        "noise_sha256": SHA256,
        "fingerprint": Table(
            {
                "kernels": Listed(Listed(Text(), 2, 2)),
                "rows": Text(),
                "versions": Table(others=Text(none=True)),
                "device": Table({"backend": Text(), "name": Text(), "arch": Text()}, others=Anything()),
                "tuning": Table(others=Anything()),
            },
            {"files": Table(others=Text()), "builds": Listed(Text())},
        ),
        "measurements": Table(
            {
                "baseline": _measured(cold=TIMES, memory=MEMORY),
                "restart": _measured(cold=TIMES, memory=MEMORY),
                "exact": _measured(),
                "candidate": _measured(cold=TIMES, warm=TIMES, memory=MEMORY),
            },
            {"formats": _measured()},
        ),
        "comparisons": Table(
            {
                "error": Table(dict.fromkeys(("baseline", "restart", "candidate"), ERRORS), {"formats": ERRORS}),
                "noise": Table({"repeat": ERRORS, "restart": ERRORS}),
                "output": Table({"restart": OUTPUT, "candidate": OUTPUT}),
            }
        ),
    },
    {"samples": Table(others=Table(others=Text(longest=8 * SAMPLES))), "evaluation": Anything()},
)
VERSIONED = Table({"schema": Number(0, 1000, whole=True), "recipe_sha256": SHA256}, others=Anything())
