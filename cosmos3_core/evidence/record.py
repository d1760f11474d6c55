"""Records: what a validation measured, chained by hashes to what went in, and what the code and machine were.

A record holds the SHA-256 of the recipe, of the noise, of each measurement and of itself. The chain shows a slip of the
hand and a file from another run; it is no signature, and does not stop someone who computes the hashes anew.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import Backend, Device, InputError
from . import verdict as verdicts

if TYPE_CHECKING:
    from .recipe import Recipe

ROOT = Path(__file__).parents[2]
"""The checkout, or the folder of the installed package."""
SCHEMA = 3
"""Raised whenever what is measured, or how, changes: records of another schema are stale."""
CORE = "cosmos3_core"
CORE_PARTS = (
    "assets",
    "checkpoint",
    "contract",
    "engine",
    "model",
    "plan",
    "quant",
    "reference",
    "sampling",
    "scenarios",
)
"""The parts of the core that a generation runs through, the tiny model's files among them."""
SOURCES = ("py", "toml", "json", "safetensors")
LIBRARIES = ("torch", "diffusers")
MEDIA = ("image", "video")
"""Fields of a request that name a file."""
REMAKE = "Measure it again: cosmos3 recipes validate"


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, no NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the hash of each measurement, and last its own."""
    measurements = {name: {"sha256": digest(raw), "raw": raw} for name, raw in record["measurements"].items()}
    record = record | {"schema": SCHEMA, "measurements": measurements}
    return record | {"sha256": digest(record)}


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
        if digest(measurement["raw"]) != measurement["sha256"]:
            return f"the measurement {name!r} was changed by hand"
    if digest({key: value for key, value in record.items() if key != "sha256"}) != record["sha256"]:
        return "it was changed by hand"
    claimed = {"sha256": record["sha256"], "state": record["state"], "date": record["date"]}
    written = {"record": f"evidence/{path_of(recipe).name}"} | claimed
    for key, value in (recipe.validated or {}).items():
        if written[key] != value:
            return f"the recipe's [validated] has {key} = {value}, and the record {written[key]}"
    return None if recipe.validated else "the recipe has no [validated], so it was not written for this record"


def check_writable(recipe: Recipe) -> None:
    """InputError unless the record and the recipe can be written: a measurement takes too long to find out after it."""
    from ..files.atomic import check_writable

    check_writable(recipe.path)
    path = path_of(recipe)
    path.parent.mkdir(exist_ok=True)
    check_writable(path)


def write(recipe: Recipe, record: dict[str, Any]) -> None:
    """Write the sealed record, and its hash into the recipe's [validated]."""
    from ..files.atomic import atomic

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


# --- the fingerprint -------------------------------------------------------------------------------------------------


def fingerprint(backend: Backend, device: Device, root: Path = ROOT) -> dict[str, Any]:
    """What a measurement depends on besides the recipe: the code, the declared rows, versions and the device. `root`
    is the checkout, whose sources go before installed ones."""
    packages = sorted({CORE, *(kernel.build.__module__.split(".")[0] for kernel in backend.kernels)})
    needs = sorted({name.split(".")[0] for kernel in backend.kernels for name in kernel.needs})
    return {
        "code": {name: code_digest(name, root) for name in packages},
        "rows": digest([_row(kernel) for kernel in backend.kernels]),
        "versions": {name: _version(name) for name in (*LIBRARIES, *needs)} | dict(device.versions),
        "device": {"backend": backend.name, "name": device.name, "arch": device.arch},
    }


def code_digest(package: str, root: Path = ROOT) -> str | None:
    """SHA-256 over a package's sources, of the core only `CORE_PARTS`. None if the package is nowhere to be found."""
    source = _source(package, root)
    if source is None:
        return None
    parts = [source / part for part in CORE_PARTS] if package == CORE else [source]
    files = {path for part in parts for suffix in SOURCES for path in part.rglob(f"*.{suffix}")}
    files = files or {source}
    total = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(source.parent).as_posix()
        total.update(f"{name} {digest_file(path)}\n".encode())
    return total.hexdigest()


def changed_media(recipe: Recipe, record: dict[str, Any]) -> list[str]:
    """Which of the recipe's input media are not what was measured, in words."""
    given, said = recipe.given(), []
    for key in MEDIA:
        if (then := record["request"][key]) is not None:
            path = Path(given[key])
            if not path.exists() or media_digest(path) != then:
                said.append(f"the {key} {path.name} changed" if path.exists() else f"the {key} {path.name} is gone")
    return said


def media_digest(path: Path) -> str:
    """What a record holds in the place of a file."""
    return f"sha256:{digest_file(path)}"


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What two fingerprints differ in, in words; a part that is unknown now is not counted."""
    said = []
    for package, old in then["code"].items():
        if now["code"].get(package) not in (None, old):
            said.append(f"the code of {package} changed")
    if "rows" in now and then["rows"] != now["rows"]:
        said.append("the backend declares other rows")
    for table in ("versions", "device"):
        new = now.get(table, then[table])
        for name in sorted(then[table].keys() | new.keys()):
            old_value, new_value = then[table].get(name), new.get(name)
            if old_value != new_value:
                said.append(f"{name} was {old_value} and is {new_value}")
    return said


def _source(package: str, root: Path) -> Path | None:
    for path in (root / package, *root.glob(f"backends/*/{package}")):
        if path.is_dir():
            return path
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    return (
        Path(next(iter(spec.submodule_search_locations), "")) if spec.submodule_search_locations else Path(spec.origin)
    )


def _row(kernel: Any) -> dict[str, Any]:
    plain = ("op", "name", "arch", "dtypes", "formats", "needs", "deterministic")
    return {key: list(value) if isinstance(value := getattr(kernel, key), tuple) else value for key in plain}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
