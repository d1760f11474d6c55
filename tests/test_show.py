"""`cosmos3 show`: the manifest of a real run, out of the clip, the picture and the file beside them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import cosmos3
from inputs import photograph
from sources import ROOT
from tiny_model import TINY_MODEL

from cosmos3_core.contract import Bytes
from cosmos3_core.files.images import write_image
from cosmos3_core.files.outputs import read_metadata
from cosmos3_core.files.video import write_video
from cosmos3_core.runs.memory import peak_device_memory


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder with a clip and a picture of the tiny model, and their manifests."""
    folder, before = tmp_path_factory.mktemp("outputs"), Path.cwd()
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, frames in (("clip.mp4", 5), ("cube.png", 1)):
                arguments = ["a red cube", "--model", TINY_MODEL, "--size", "64x64", "--steps", "2", "--seed", "7"]
                arguments += ["--frames", str(frames), "-o", name, "--backend", "reference"]
                assert cosmos3(Quiet, patch, "run", *arguments)[0] == 0
    finally:
        os.chdir(before)
    return folder


class Quiet:
    """Stands in for capsys, which a fixture of this scope cannot have."""

    out = err = ""

    @classmethod
    def readouterr(cls):
        return cls


@pytest.fixture
def show(capsys, monkeypatch, outputs):
    monkeypatch.chdir(outputs)

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "show", *arguments)

    return call


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mp4.json", "cube.png", "cube.png.json"])
def test_it_reads_as_text(show, name):
    code, out, err = show(name)
    assert code == 0, err
    rows = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in out.splitlines() if line.strip()}
    assert rows["model.name"] == TINY_MODEL and rows["plan.backend"] == "reference"
    assert rows["request.prompt"].split("  ")[0] == "a red cube" and rows["request.prompt"].endswith("user")
    assert rows["request.seed"].split() == ["7", "user"] and rows["request.steps"].split() == ["2", "user"]
    assert rows["request.guidance"].endswith("profile reference")
    assert rows["plan.kernels.attention"] == "eager" and rows["plan.dtypes.timestep"] == "float32"
    assert "GiB" in rows["peak_host_memory_bytes"] and "seconds.steps" in rows and "versions.torch" in rows
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 160


def test_what_a_task_does_not_take_is_left_out(show):
    for name, taken, left in (("cube.png", "steps", "fps"), ("clip.mp4", "fps", "condition_frame_indexes")):
        out = show(name)[1]
        assert f"request.{taken} " in out and f"request.{left} " not in out and "request.video" not in out
        assert left in json.loads(show(name, "--json")[1])["request"]


@pytest.mark.parametrize("name", ["clip.mp4", "cube.png"])
def test_json_is_what_the_file_carries(show, name):
    code, out, _ = show(name, "--json")
    assert code == 0 and json.loads(out) == json.loads(read_metadata(Path(name))["cosmos3"])


def test_a_refused_kernel_and_what_is_unknown_are_shown(show, tmp_path):
    manifest = json.loads(Path("clip.mp4.json").read_text())
    manifest["plan"]["refused"] = [{"op": "attention", "name": "flash", "reason": "needs the package flash"}]
    manifest["weather"] = {"sky": "grey"}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(manifest))
    code, out, _ = show(other)
    assert code == 0 and "needs the package flash" in out
    assert any(line.split() == ["weather.sky", "grey"] for line in out.splitlines())


def test_a_long_value_is_cut_and_says_so(show, tmp_path):
    manifest = json.loads(Path("clip.mp4.json").read_text())
    manifest["request"]["prompt"] = "word " * 500
    other = tmp_path / "other.json"
    other.write_text(json.dumps(manifest))
    code, out, _ = show(other)
    assert code == 0 and "(2,500 characters)" in " ".join(out.split()) and out.count("word") < 50
    assert json.loads(show(other, "--json")[1])["request"]["prompt"] == "word " * 500


def test_a_file_cannot_steer_the_terminal(show, tmp_path):
    manifest = json.loads(Path("clip.mp4.json").read_text())
    manifest["request"]["prompt"] = "\x1b[2Jgone\x9b1m [bold]kept[/bold]"
    manifest["request"]["\x1bkey"] = manifest["origin"]["prompt"] = "\x1b]0;title\x07"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(manifest))
    code, out, _ = show(other)
    assert code == 0 and not {"\x1b", "\x9b", "\x07"} & set(out) and "[bold]kept[/bold]" in out


@pytest.fixture
def without(outputs):
    """Files that are not outputs of this program."""
    photograph(64, 64).save(outputs / "photo.png")
    frames = [np.asarray(photograph(64, 64))] * 3
    write_video(outputs / "plain.mp4", frames, 24, {"comment": "none of ours"})
    write_image(outputs / "odd.png", frames[0], {"cosmos3": "[1]"})
    for name, text in {"broken.json": "{", "list.json": "[]", "recipe.json": '{"request": {}}'}.items():
        (outputs / name).write_text(text)
    (outputs / "bytes.json").write_bytes(b"\xff\xfe")
    return outputs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo.png", "it carries no cosmos3 manifest"),
        ("plain.mp4", "it carries no cosmos3 manifest"),
        ("odd.png", "what it carries is no cosmos3 manifest"),
        ("broken.json", "what it carries is no cosmos3 manifest"),
        ("list.json", "what it carries is no cosmos3 manifest"),
        ("recipe.json", "what it carries is no cosmos3 manifest"),
        ("bytes.json", "it cannot be read (not UTF-8 text)"),
        ("none.mp4", "No such file"),
        ("none.png", "No such file"),
        ("none.json", "No such file"),
        (".", "it cannot be read"),
    ],
)
def test_a_file_without_a_manifest_is_told_as_such(show, without, name, said):
    code, out, err = show(name)
    assert (code, out) == (2, "") and err.startswith("error: ") and said in err and len(err.splitlines()) == 1


# --- what the manifest knows -----------------------------------------------------------------------------------------


def test_the_manifest_has_what_the_design_asks_for(outputs):
    manifest = json.loads((outputs / "clip.mp4.json").read_text())
    assert manifest["plan"]["dtypes"] == {
        "understanding": "bfloat16",
        "generation": "bfloat16",
        "timestep": "float32",
        "vae": "bfloat16",
        "solver": "float32",
    }
    assert manifest["request"]["seed"] == 7 and manifest["plan"]["latents"] == {"vision": [48, 2, 4, 4]}
    stages = {name: seconds for name, seconds in manifest["seconds"].items() if name != "total"}
    assert manifest["seconds"]["total"] >= sum(stages.values()) - 0.01
    assert manifest["peak_device_memory_bytes"] is None  # the host is the device
    inside = json.loads(read_metadata(outputs / "clip.mp4")["cosmos3"])
    assert "total" not in inside["seconds"]  # written before the decode has ended
    assert inside["started"] == manifest["started"]


def test_a_devices_peak_is_its_memorys_and_none_where_it_is_not_counted():
    peaks = {"acme": Bytes(5, None), "cpu": Bytes(None, None)}
    memory = SimpleNamespace(peak=lambda device: peaks["cpu" if device.type == "cpu" else "acme"])
    assert peak_device_memory(memory, "meta") == {"allocated": 5, "reserved": None}
    assert peak_device_memory(memory, "cpu") is None


def test_a_stopped_run_is_shown_by_its_dry_run(outputs, capsys, monkeypatch):
    (outputs / "x.state.safetensors").write_bytes(b"\0" * 16)
    code, _, err = cosmos3(capsys, monkeypatch, "show", outputs / "x.state.safetensors")
    assert code == 2 and f"cosmos3 run --resume {outputs / 'x.state.safetensors'} --dry-run" in err


def test_an_output_is_repeated_by_the_manifest_in_it(outputs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = cosmos3(capsys, monkeypatch, "run", "--request", outputs / "cube.png", "-o", "again.png")
    assert code == 0, err
    assert (tmp_path / "again.png").read_bytes()[:8] == (outputs / "cube.png").read_bytes()[:8]
    first, again = (json.loads(path.read_text()) for path in (outputs / "cube.png.json", tmp_path / "again.png.json"))
    assert again["request"] == first["request"]
    photograph(64, 64).save("plain.png")
    code, _, err = cosmos3(capsys, monkeypatch, "run", "--request", "plain.png")
    assert code == 2 and err.startswith("error: --request plain.png: it carries no cosmos3 manifest")


def test_the_page_lists_a_manifest_s_keys(outputs):
    page = (ROOT / "docs" / "manifest.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    said = {key for row in rows for key in re.findall("`([a-z0-9_.]+)`", row)}
    manifest = json.loads((outputs / "clip.mp4.json").read_text())
    whole = ("request", "origin", "inputs", "seconds", "versions")  # their keys are fields, stages and libraries
    found = set()
    for key, value in manifest.items():
        parts = value if isinstance(value, dict) and key not in whole else ()
        found |= {f"{key}.{part}" for part in parts} or {key}
    sounding = {f"output.{name}" for name in ("sound", "rate", "channels", "samples")}
    chunked = {f"chunks.{name}" for name in ("count", "frames", "carry")}
    acting = {
        "output.actions",
        *(f"actions.{name}" for name in ("channels", "units", "fps", "normalization", "observed")),
    }
    quantized = {"model.quantization", "plan.others", "plan.a16"}
    assert said - {"latents", "resumed_at_step"} - sounding - chunked - acting - quantized == found
