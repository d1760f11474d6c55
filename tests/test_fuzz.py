"""Files that were damaged or made up, by hypothesis: whatever is in them, the answer is a result or one line.

`make test` takes the same examples every time; `make fuzz` takes others for ten minutes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import inputs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

from cosmos3_core import cli
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import open_tensors
from cosmos3_core.contract import Cosmos3Error
from cosmos3_core.evidence import record, state
from cosmos3_core.evidence.packages import in_tree, recipes_of
from cosmos3_core.evidence.recipe import Recipe, load, load_all
from cosmos3_core.files.images import read_image
from cosmos3_core.files.video import read_video
from cosmos3_core.runs.saved import KEY
from cosmos3_core.runs.sealed import read_tensors

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests" / "goldens" / "0.1.0"
CONFIGS = (
    *("model_index.json", "transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"),
    *("text_tokenizer/tokenizer_config.json", "assets/negative_prompt.json"),
)
LONGEST = 4000
"""Characters of an answer. It names a value, and not at length."""
COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.generate),
    "database": None,
}
BY_CHANCE = "COSMOS3_FUZZ" in os.environ
"""Whether this is a round of `make fuzz`, whose examples are others each time."""
settings.register_profile("files", derandomize=not BY_CHANCE, **COMMON)
settings.load_profile("files")


def examples(count: int) -> settings:
    return settings(max_examples=count * (10 if BY_CHANCE else 1))


# --- damage ----------------------------------------------------------------------------------------------------------

NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")]
TEXTS = ["", " ", "x", "\x1b[2J", "a\nb", "../../etc/passwd", "/dev/null", "é" * 300, "\ud800", "true", "9" * 500]


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth > 1 else []


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from([[], {}, [[]], [None], {"a": 1}, {"": None}, [1, "2", None]]),
    st.integers(1, 80).map(nested),
).map(copy.deepcopy)


@st.composite
def damaged(draw: Any, value: Any) -> Any:
    """A JSON value with one to three places changed: taken out, put in, doubled, or of another kind."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holder = {"": value}
        place: Any = ""
        while isinstance(inner := holder[place], dict | list) and inner and draw(st.integers(0, 4)):
            holder = inner
            place = draw(st.sampled_from(sorted(inner)) if isinstance(inner, dict) else st.integers(0, len(inner) - 1))
        kind = draw(st.sampled_from(["junk", "junk", "gone", "more", "wrapped"]))
        if kind == "gone" and place != "":
            del holder[place]
        elif kind == "more" and isinstance(holder[place], dict):
            holder[place][draw(st.sampled_from(["schema", "x", "sha256", "", "numbers"]))] = draw(JUNK)
        elif kind == "wrapped":
            holder[place] = [holder[place]]
        else:
            holder[place] = draw(JUNK)
        value = holder[""] if place == "" else value
    return value


@st.composite
def torn(draw: Any, data: bytes) -> bytes:
    """Bytes with a few bits flipped, a part cut out or doubled, or an end missing."""
    if draw(st.booleans()):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.sampled_from([1, 8, 100, len(data)])))
        return data[:begin] + (data[begin:end] * draw(st.integers(0, 2))) + data[end:]
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 6))):
        # Most of what is read as structure lies at the begin.
        place = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([64, 1024, len(data)])))))
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)


def as_toml(tables: Any) -> str:
    """Values of JSON's kinds as TOML, nested ones inline."""
    return "\n".join(f"{json.dumps(key)} = {_toml(value)}" for key, value in tables.items())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        return '"null"'
    return {"NaN": "nan", "Infinity": "inf"}.get(text := json.dumps(value), text)


# --- what may come of it ---------------------------------------------------------------------------------------------


def answered(*arguments: Any) -> int:
    """`cosmos3 ARGUMENTS` ends with a result or in one line of an error. An exception comes through."""
    said, typed = (io.StringIO(), io.StringIO()), sys.argv
    sys.argv = ["cosmos3", *map(str, arguments)]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
            cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = typed
    errors = [line for line in said[1].getvalue().splitlines() if line.startswith("error:")]
    assert code in (0, 1, 2) and "Traceback" not in said[1].getvalue(), said[1].getvalue()
    assert len(errors) == (1 if code == 2 else len(errors)), said[1].getvalue()
    assert all(len(line) < LONGEST and line.isprintable() for line in errors), errors
    return code


def refused(call: Any, *arguments: Any) -> None:
    """It returns, or raises an error of ours in one line."""
    try:
        call(*arguments)
    except Cosmos3Error as error:
        assert len(str(error)) < LONGEST and "\n" not in str(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to write in, with a model of its own and the files of a run of today."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(TINY, folder / "model")
    options = f"--model {TINY_MODEL} --size 64x64 --steps 1 --seed 4 --backend reference".split()
    with contextlib.chdir(folder):
        assert answered("run", "a cup", *options, "-o", "x.png", "--save-latents", "x.st") == 0
    return folder


SAVED = json.loads(safe_open(OLD / "stopped.safetensors", "pt").metadata()[KEY])
TENSORS = load_file(OLD / "stopped.safetensors")
DRY = ("--dry-run", "--json")


@examples(60)
@given(damaged(SAVED))
def test_states(place, value):
    save_file(TENSORS, file := place / "state.st", {KEY: as_json(value)})
    answered("run", "--resume", file, "-o", place / "y.png", *DRY)


@examples(60)
@given(damaged(json.loads((OLD / "manifest.json").read_text())))
def test_manifests(place, value):
    (file := place / "manifest.json").write_text(as_json(value))
    answered("run", "--request", file, "-o", place / "y.png", *DRY)
    answered("show", file)


@examples(40)
@given(st.data())
def test_files_of_a_run_of_today(place, data):
    for name, arguments in {"x.st": ("--latents",), "x.png.json": ("--request",)}.items():
        (file := place / f"torn-{name}").write_bytes(data.draw(torn((place / name).read_bytes())))
        answered("run", "a cup", "--model", TINY_MODEL, "--size", "64x64", "--steps", 1, *arguments, file, *DRY)


RECIPES = [found for _, found in recipes_of(in_tree(ROOT)) if isinstance(found, Recipe)]
MEASURED = next(found for found in RECIPES if found.name == "embedded-t2i-128x128-cpux1")


@examples(150)
@given(st.sampled_from(RECIPES).flatmap(lambda found: st.tuples(st.just(found.path.name), damaged(found.tables))))
def test_recipes(place, chosen):
    (folder := place / "recipes").mkdir(exist_ok=True)
    name, tables = chosen
    text = as_toml(tables) if isinstance(tables, dict) else str(tables)
    (file := folder / name).write_text(text, errors="surrogateescape" if text.isascii() else "replace")
    refused(lambda: state.state_of(load(file)))
    load_all(folder)
    file.unlink()


@examples(200)
@given(damaged(json.loads(record.path_of(MEASURED).read_text())), st.booleans())
def test_records(place, value, sealed):
    folder = place / "evidence"
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    shutil.copy(MEASURED.path, folder)
    with contextlib.suppress(Exception):  # what cannot be sealed is written as it is
        bent = {key: part for key, part in value.items() if key != "sha256"}
        raw = {name: entry["raw"] for name, entry in bent["measurements"].items()}
        value = record.seal(bent | {"measurements": raw}) if sealed else value
    copied = load(folder / MEASURED.path.name)
    record.path_of(copied).write_text(as_json(value))
    assert state.state_of(copied).name in state.LEGEND


@examples(100)
@given(st.data())
def test_safetensors_headers(place, data):
    weights = next((TINY / "vae").glob("*.safetensors"))
    whole = weights.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, rest = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    head = as_json(data.draw(damaged(header))).encode()
    length = len(head) if data.draw(st.booleans()) else data.draw(st.sampled_from([0, 1, 2**40, 2**63, 2**64 - 1]))
    file = place / "model" / "vae" / weights.name
    file.write_bytes(length.to_bytes(8, "little") + head + rest)
    refused(lambda: open_tensors(open_repository(str(place / "model")), "vae"))
    refused(read_tensors, str(file), "the file")
    shutil.copy(weights, file)


@examples(60)
@given(st.data())
def test_configs(place, data):
    name = data.draw(st.sampled_from(CONFIGS))
    value = data.draw(damaged(json.loads((TINY / name).read_text())))
    (file := place / "model" / name).write_text(as_json(value))
    answered("run", "a cup", "--model", place / "model", "--backend", "reference", "-o", place / "y.mp4", *DRY)
    shutil.copy(TINY / name, file)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("media")
    for suffix in ("png", "jpg", "webp"):
        inputs.photograph(40, 30).save(folder / f"a.{suffix}")
    inputs.clip(folder / "a.mp4", frames=3)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@examples(150)
@given(st.data())
def test_pictures(place, media, data):
    name = data.draw(st.sampled_from([name for name in sorted(media) if not name.endswith("mp4")]))
    (file := place / name).write_bytes(data.draw(torn(media[name])))
    refused(read_image, file)


@examples(60)
@given(st.data())
def test_clips(place, media, data):
    (file := place / "a.mp4").write_bytes(data.draw(torn(media["a.mp4"])))
    refused(read_video, file, 5, data.draw(st.sampled_from(["first", "last"])))
