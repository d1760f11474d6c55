"""Quantization formats from the command line to the weights, on the fake device, which has int8."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from command import cosmos3
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.contract import InputError
from cosmos3_core.evidence import recipe
from cosmos3_core.evidence import settle as evidence

SMALL = ("--model", TINY_MODEL, "--backend", "acme", "--size", "64x64", "--steps", "2", "--frames", "1")


def run(capsys, monkeypatch, tmp_path: Path, *options: str) -> dict:
    """The manifest of a small run."""
    code, _, err = cosmos3(
        capsys, monkeypatch, "run", "a cup", *SMALL, "--seed", "3", "-o", tmp_path / "a.png", "--overwrite", *options
    )
    assert code == 0, err
    return json.loads((tmp_path / "a.png.json").read_text())


def pixels(tmp_path: Path) -> bytes:
    """Of the run's picture; the file has the run's times in it."""
    return Image.open(tmp_path / "a.png").tobytes()


def test_a_run_in_int8_says_so_and_packs_the_layers_only(acme, capsys, monkeypatch, tmp_path):
    import torch
    from cosmos3_acme import kernels

    packed, pack = [], kernels.transposed
    monkeypatch.setattr(
        kernels,
        "transposed",
        lambda weight, bias, *, format="none": (
            packed.append((format, weight.dtype)) or pack(weight, bias, format=format)
        ),
    )
    plain = run(capsys, monkeypatch, tmp_path)
    picture = pixels(tmp_path)
    assert plain["plan"]["formats"] == {} and {format for format, _ in packed} == {"none"}
    packed.clear()
    quantized = run(capsys, monkeypatch, tmp_path, "--format", "int8")
    assert quantized["plan"]["formats"] == {"pack_linear": "int8"}
    assert all(quantized["plan"][told] == plain["plan"][told] for told in ("kernels", "fused"))
    assert quantized["plan"]["dtypes"]["generation"] == "bfloat16, layers in int8"
    layers, matrices, towers = 2, 4, 2
    assert sum(format == "int8" for format, _ in packed) == layers * matrices * towers
    assert ("int8", torch.float32) not in packed and ("none", torch.float32) in packed
    assert pixels(tmp_path) != picture


def test_a_format_of_the_attention_takes_another_row(acme, capsys, monkeypatch, tmp_path):
    """The tiny model's heads are not of the width that both rows want: the format cannot be met, the default can."""
    assert run(capsys, monkeypatch, tmp_path)["plan"]["kernels"]["attention"] == "eager"
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", *SMALL, "--format", "attention=int8")
    assert code == 2 and "--format attention=int8: int8_kv: written for heads of 128" in err
    code, out, _ = cosmos3(
        capsys, monkeypatch, "plan", "--model", "nano", "--backend", "acme", "--format", "attention=int8", "--json"
    )
    told = json.loads(out)["plan"]
    assert told["kernels"]["attention"] == "int8_kv" and told["formats"] == {"attention": "int8"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--format", "int9"],
            "--format pack_linear=int9: neither cosmos3, nor backend acme, nor an installed package",
        ),
        (["--format", "nvfp"], "brings a format of that name. Did you mean nvfp4?"),
        (["--format", "gate=int8"], "--format gate=int8: gate is not quantized"),
        (["--format", "finish=int8"], "format of the layers' weights. Type --format pack_linear=int8"),
        (["--format", "fp8_static"], "takes the activations' scales from a quantized checkpoint, and this is none"),
        (["--format", "w4a16"], "w4a16 has a scale for every 128 input features, and the hidden width is 64"),
        (["--format", "fp8", "--kernel", "pack_linear=transposed"], "takes formats none, int8, not fp8"),
        (["--format", "int8", "--kernel", "pack_linear=transposed", "--dtype", "float16"], "bfloat16, not float16"),
    ],
)
def test_a_format_that_cannot_be_met(acme, capsys, monkeypatch, tmp_path, options, said):
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", *SMALL, "-o", tmp_path / "a.png", *options)
    assert code == 2 and said in err and not list(tmp_path.iterdir())


def plan(capsys, monkeypatch, *options: str) -> dict:
    staged = "understanding=staged,generation=staged"  # all of the weights are on the device
    arguments = ("plan", "--backend", "acme", "--json", "--model", "nano", "--placement", staged, *options)
    return json.loads(cosmos3(capsys, monkeypatch, *arguments)[1])


def test_the_plan_counts_narrower_weights_and_proposes_them(acme, capsys, monkeypatch):
    def weights(told: dict) -> list[int]:
        return [stage["weights"] for stage in told["estimate"]["memory"]["stages"][:2]]

    wide, narrow = (weights(plan(capsys, monkeypatch, *options)) for options in ((), ("--format", "int8")))
    for before, after in zip(wide, narrow, strict=True):
        assert 0.5 < after / before < 0.6
    told = plan(capsys, monkeypatch, "--memory", "14", "--size", "480p", "--frames", "93")
    assert not told["estimate"]["fits"] and told["estimate"]["nearest"][0]["options"].startswith("--format int8")
    assert told["estimate"]["nearest"][0]["peak"] <= 14 << 30


def test_a_recipe_names_its_formats(acme, capsys, monkeypatch, tmp_path):
    written = (Path(__file__).parents[1] / "cosmos3_core" / "recipes" / "embedded-t2i-128x128-cpux1.toml").read_text()
    tables = tomllib.loads(written)
    body = written[: written.index("[validated]")].replace('"reference"', '"acme"')
    body = body[: body.index("[plan]")].replace(tables["device"]["name"], "ACME One")
    (tmp_path / "embedded-t2i-128x128-int8-acmeonex1.toml").write_text(body + '[run.formats]\npack_linear = "int8"\n')
    code, out, err = cosmos3(
        capsys, monkeypatch, "recipes", "--folder", tmp_path, "show", "embedded-t2i-128x128-int8-acmeonex1"
    )
    assert code == 0 and "--format pack_linear=int8" in out, err
    (tmp_path / "embedded-t2i-128x128-int8-acmeonex1.toml").rename(tmp_path / "embedded-t2i-128x128-acmeonex1.toml")
    code, _, err = cosmos3(
        capsys, monkeypatch, "recipes", "--folder", tmp_path, "show", "embedded-t2i-128x128-acmeonex1"
    )
    assert code == 2 and "Name it embedded-t2i-128x128-int8-acmeonex1.toml" in err


def test_a_recipe_names_its_steps_in_16_bits(acme, capsys, monkeypatch, tmp_path):
    """They are in its name, in its command and in what it is judged as: the baselines without a format have none."""
    written = (Path(__file__).parents[1] / "cosmos3_core" / "recipes" / "embedded-t2i-128x128-cpux1.toml").read_text()
    body = written[: written.index("[plan]")].replace('"reference"', '"acme"')
    body = body.replace(tomllib.loads(written)["device"]["name"], "ACME One")
    formats = '[run.formats]\npack_linear = "int8"\n[plan]\npack_linear = "eager"\n'
    path = tmp_path / "embedded-t2i-128x128-int8-steps1_2-acmeonex1.toml"
    path.write_text(body.replace("[run]\n", '[run]\nhigh_precision_steps = "1,2"\n') + formats)
    code, out, err = cosmos3(capsys, monkeypatch, "recipes", "--folder", tmp_path, "show", path.stem)
    assert code == 0 and "--high-precision-steps 1,2" in out, err
    roles = {role: evidence.settle(recipe.load(path), role).plan.a16 for role in (*evidence.EAGER, evidence.CANDIDATE)}
    named = {role: a16 and (a16.policy.first, a16.policy.last) for role, a16 in roles.items()}
    assert named == {
        evidence.BASELINE: None,
        evidence.EXACT: None,
        evidence.FORMATS: (1, 2),
        evidence.CANDIDATE: (1, 2),
    }
    path.write_text(body.replace("[run]\n", '[run]\nhigh_precision_steps = "1"\n') + formats)
    with pytest.raises(InputError, match="it is no two counts of steps"):
        recipe.load(path)
