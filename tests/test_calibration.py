"""Statistics of what matrices are multiplied by, and what is quantized with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import cosmos3
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.choosing import Choosing
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.quantize import Job
from cosmos3_core.checkpoint.statistics import FACTS, Statistics, read_statistics
from cosmos3_core.contract import InputError
from cosmos3_core.evidence.quantizing import collect
from cosmos3_core.evidence.quantizing.session import Session
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.dialects.written import WRITTEN
from cosmos3_core.quant.feedback import can_feed_back, pack_with_feedback
from cosmos3_core.quant.numerics import pack, unpack

Call = Callable[..., tuple[int, str, str]]
SMALL = ("--backend", "reference", "--set", "size=64x64", "--set", "steps=2", "--set", "frames=1")
STATIC = ("--model", TINY_MODEL, "--format", "fp8_static")
GPTQ = ("--model", TINY_MODEL, "--format", "w4a16", "--group", 16, "--method", "gptq")
OUT = ("-o", "out")
SAVED = "out.calibration.safetensors"


@pytest.fixture
def quantize(capsys, monkeypatch, tmp_path: Path) -> Call:
    """`cosmos3 quantize ARGUMENTS` in a folder with prompts.txt: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("waves\n\na cup on a table\n")
    return lambda *arguments: cosmos3(capsys, monkeypatch, "quantize", *arguments)


def correlated(width: int, rows: int) -> torch.Tensor:
    """Inputs [rows, width] whose features go together."""
    stream = torch.Generator().manual_seed(0)
    mixed = torch.randn(width, width, generator=stream) / width**0.5 + torch.eye(width) * 0.3
    return torch.randn(rows, width, generator=stream) @ mixed


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if can_feed_back(format)])
def test_feedback_loses_less_of_the_product(name: str) -> None:
    format, x = FORMATS[name], correlated(256, 1024)
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(1))
    packed = pack_with_feedback(weight, format, x.T @ x / len(x), torch.tensor(0.5))
    plain = pack(weight, format, weight=True, input_scale=torch.tensor(0.5))
    kinds = {part: (tensor.shape, tensor.dtype) for part, tensor in plain.tensors().items()}
    assert {part: (tensor.shape, tensor.dtype) for part, tensor in packed.tensors().items()} == kinds
    lost = [(x @ (unpack(one) - weight).T).square().mean() for one in (packed, plain)]
    assert lost[0] < 0.8 * lost[1]


def test_feedback_without_correlations_rounds_to_nearest() -> None:
    weight, format = torch.randn(8, 64), FORMATS["int8"]
    packed, plain = pack_with_feedback(weight, format, torch.eye(64)), pack(weight, format, weight=True)
    assert torch.equal(packed.values, plain.values) and torch.equal(packed.scales, plain.scales)


@pytest.mark.parametrize("group", [0, 16])
def test_feedback_is_that_of_the_paper(group: int) -> None:
    """Column by column with the inverse of the moments in fp64, as 2210.17323 begins with; but for rounding."""
    format, x = replace(FORMATS["w4a16"], group=group), correlated(64, 256)
    weight, moment = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)), x.T @ x / len(x)
    left, inverse = weight.double(), moment.double()
    inverse = torch.linalg.inv(inverse + 0.01 * inverse.diagonal().mean() * torch.eye(64))
    expected = torch.empty(48, 64)
    for j in range(64):
        if j % (group or 64) == 0:
            block = left[:, j : j + (group or 64)]
            extreme = block.gather(1, block.abs().argmax(1, keepdim=True))[:, 0]
            scale = extreme / -8
        expected[:, j] = (left[:, j] / scale).round().clamp(-8, 7) * scale
        lost = (left[:, j] - expected[:, j]) / inverse[j, j]
        left -= lost[:, None] * inverse[j]
        inverse = inverse - inverse[:, j, None] * inverse[j] / inverse[j, j]
    found = unpack(pack_with_feedback(weight, format, moment))
    assert ((found - expected).abs() < 1e-3).float().mean() > 0.98


def test_feedback_of_moments_without_an_inverse() -> None:
    """Few rows, and features that are always 0, as of a model that does not use them."""
    x = correlated(64, 3)
    x[:, 5] = 0
    weight = torch.randn(16, 64)
    packed = pack_with_feedback(weight, FORMATS["int8"], x.T @ x)
    assert (unpack(packed) - weight).isfinite().all()
    zeros = pack_with_feedback(weight, FORMATS["int8"], torch.zeros(64, 64))
    assert torch.equal(zeros.values, pack(weight, FORMATS["int8"], weight=True).values)
    with pytest.raises(ValueError, match="not finite"):
        pack_with_feedback(weight, FORMATS["int8"], torch.full((64, 64), torch.nan))
    with pytest.raises(ValueError, match="one by one in nvfp4"):
        pack_with_feedback(weight, FORMATS["nvfp4"], torch.eye(64))


def test_statistics_are_those_of_the_products(quantize: Call, tmp_path: Path, monkeypatch) -> None:
    """Of every matrix that a run multiplies by something: also with moments in several passes."""
    monkeypatch.setattr(collect, "MOMENTS_AT_ONCE", 70_000)
    code, out, err = quantize(*GPTQ, "--calibrate", "prompts.txt", *SMALL, *OUT)
    assert (code, out) == (0, "out\n") and "calibration step 12 of 12" in err
    found = read_statistics(Path(SAVED))
    seen: dict[str, list[torch.Tensor]] = {}
    given = {"size": "64x64", "steps": 2, "frames": 1}
    session = Session.of(TINY_MODEL, None, "reference", ["waves", "a cup on a table"], given)
    session.seam.watch = lambda name, x: seen.setdefault(name, []).append(x.flatten(0, -2).float().clone())
    assert len(list(session.runs(lambda steps: None))) == 2
    assert found.largest.keys() == seen.keys() and len(found.moments) == 8  # the media tower's two layers
    for name, rows in seen.items():
        x = torch.cat(rows)
        assert torch.equal(found.largest[name], x.abs().amax(0))
        if name in found.moments:
            assert torch.allclose(found.moment(name), x.T @ x / len(x), rtol=1e-3, atol=1e-3)
    assert found.facts["identity"] == Weights(open_model(TINY_MODEL)).identity and found.facts["prompts"] == 2
    record = json.loads(Path("out/cosmos3_quantize.json").read_text())
    assert record["calibration"]["sha256"] == found.sha256 and record["method"] == "gptq"
    assert "made up for by later ones" in Path("out/README.md").read_text()


def test_saved_statistics_serve_again(quantize: Call) -> None:
    assert quantize(*STATIC, "--calibrate", "prompts.txt", *SMALL, *OUT)[0] == 0
    first = load_file("out/transformer/diffusion_pytorch_model.safetensors")
    # The same command goes on with them, another file of prompts does not, and they can be named.
    code, _, err = quantize(*STATIC, "--calibrate", "prompts.txt", *SMALL, *OUT, "--overwrite")
    assert code == 0 and "calibration" not in err
    Path("other.txt").write_text("a cup\n")
    code, _, err = quantize(*STATIC, "--calibrate", "other.txt", *SMALL, *OUT, "--overwrite")
    assert code == 2 and f"writing {SAVED}: it is there, and of another prompts" in err
    code, _, err = quantize(*STATIC, "--calibrate", SAVED, "-o", "again")
    again = load_file("again/transformer/diffusion_pytorch_model.safetensors")
    assert code == 0 and all(torch.equal(again[name].float(), first[name].float()) for name in first)
    scale = first["layers.1.mlp_moe_gen.up_proj.input_scale"]
    assert scale == read_statistics(Path(SAVED)).largest["layers.1.mlp_moe_gen.gate_proj"].amax() / 448


def test_a_stopped_one_is_gone_on_with(quantize: Call, monkeypatch) -> None:
    """With the statistics that it saved; without them it is told before a prompt runs."""
    named = (*STATIC, "--calibrate", "prompts.txt", *SMALL)

    def stopped(self, *_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "config", stopped)
        code, _, err = quantize(*named, *OUT)
        assert code == 130 and "the same command goes on" in err and Path(SAVED).exists()
    saved = Path(SAVED).rename("away.safetensors")
    code, _, err = quantize(*named, *OUT)
    assert code == 2 and "out.part is unfinished, and of another calibration" in err and "step" not in err
    saved.rename(SAVED)
    code, out, err = quantize(*named, *OUT)
    assert (code, out) == (0, "out\n") and "calibration" not in err
    assert quantize(*STATIC, "--calibrate", SAVED, "-o", "whole")[0] == 0
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert Path("out", name).read_bytes() == Path("whole", name).read_bytes()


def test_inputs_that_were_all_zero_have_the_scale_1(tmp_path: Path) -> None:
    row = next(row for row in WRITTEN if row.format.static)
    statistics = Statistics(tmp_path, {"identity": None, "model": "m"}, "", {"m": torch.zeros(16)}, frozenset())
    given = {"inputs": {"m": "m"}, "unread": frozenset[str](), "statistics": statistics}
    choosing = Choosing(row=row, format=row.format, method="nearest", **given)  # type: ignore[arg-type]
    assert choosing.parts("m", torch.ones(16, 16))["input_scale"] == 1
    with pytest.raises(InputError, match="they are of 'm', no files, and the model here is no files"):
        statistics.check(None, {"m"})


def test_text_that_nothing_reads_is_not_calibrated(quantize: Call) -> None:
    """The last layer of the text tower: its keys and values alone are read."""
    Path("policy.toml").write_text("keep_understanding = false\n")
    code, out, _ = quantize(
        *STATIC, "--policy", "policy.toml", "--calibrate", "prompts.txt", *SMALL, *OUT, "--json", "-q"
    )
    last = {name for name in json.loads(out)["quantized"] if name.startswith("layers.1.") and ".to_" in name}
    assert code == 0 and last == {f"layers.1.self_attn.to_{x}" for x in "qkv"} | {"layers.1.self_attn.to_add_out"}


BAD = {
    (*STATIC,): "--format fp8_static: it takes what the matrices are multiplied by, which only a calibration measures. "
    "Add --calibrate with a file of prompts",
    (*GPTQ,): "--method gptq: it takes what the matrices are multiplied by",
    (*STATIC, "--calibrate", "none.txt"): "--calibrate none.txt: No such file",
    (
        *STATIC,
        "--calibrate",
        "empty.txt",
    ): "--calibrate empty.txt: it has no prompt. Give one at least",
    (*STATIC, "--calibrate", "bytes.txt"): "--calibrate bytes.txt: it is no text",
    (*STATIC, "--calibrate", "none.safetensors"): "--calibrate none.safetensors: No such file",
    (*STATIC, "--calibrate", "bytes.safetensors"): "--calibrate bytes.safetensors: it cannot be read",
    (*STATIC, "--calibrate", "other.safetensors"): "it cannot be read (its description is null",
    (*STATIC, "--calibrate", "prompts.txt", "--set", "seed=1"): "the prompts of a calibration settle it",
    (*STATIC, "--calibrate", "prompts.txt", "--set", "stepz=1"): "Did you mean steps?",
    (
        *STATIC,
        "--set",
        "steps=1",
        "--calibrate",
        "other.safetensors",
    ): "nothing is run. Leave it out",
    ("--model", TINY_MODEL, "--format", "fp8", "--set", "steps=1"): "nothing is run. Leave it out",
    ("--model", TINY_MODEL, "--format", "fp8", "--backend", "reference"): "--backend: nothing is run",
    ("--model", TINY_MODEL, "--format", "fp8", "--calibrate", "prompts.txt"): "depends on no prompts",
}


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: " ".join(map(str, arguments[2:])))
def test_bad_input_is_one_error_before_a_weight_is_read(arguments, quantize: Call, tmp_path: Path) -> None:
    Path("empty.txt").write_text(" \n\n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\xff")
    Path("bytes.safetensors").write_bytes(b"\xff" * 100)
    save_file({"x": torch.zeros(2)}, "other.safetensors")
    before = sorted(tmp_path.iterdir())
    code, out, err = quantize(*arguments, *OUT)
    assert code == 2 and not out and err.count("\n") == 1 and BAD[arguments] in err
    assert sorted(tmp_path.iterdir()) == before


def test_statistics_that_do_not_fit_are_refused(quantize: Call, tmp_path: Path) -> None:
    assert quantize(*STATIC, "--calibrate", "prompts.txt", *SMALL, *OUT)[0] == 0
    held, facts = load_file(SAVED), read_statistics(Path(SAVED)).facts
    name = "layers.0.mlp_moe_gen.down_proj"

    def refused(tensors: dict[str, torch.Tensor], said: object, *arguments: object) -> str:
        facts_and_digests = {FACTS: json.dumps(said), "cosmos3.blake2b": _digests(tensors)}
        save_file(tensors, "changed.safetensors", facts_and_digests)
        code, _, err = quantize(*(arguments or STATIC), "--calibrate", "changed.safetensors", "-o", "new")
        assert code == 2 and err.count("\n") == 1 and not Path("new").exists()
        return err

    assert "sha256 0, and the model here is" in refused(held, {**facts, "identity": "sha256 0"})
    assert "cannot be read" in refused(held, {**facts, "schema": 2})
    assert "have no second moments of layers.0" in refused(held, facts, *GPTQ)
    less = {key: one for key, one in held.items() if not key.startswith(name)}
    assert f"they have nothing of {name}" in refused(less, facts)
    for value, found in ((torch.nan, "holds NaN"), (-1.0, "holds negative")):
        wrong = held | {f"{name}.largest": torch.full_like(held[f"{name}.largest"], value)}
        assert f"{name}.largest {found}" in refused(wrong, facts)
    assert "is no part of statistics" in refused(held | {"x.scale": torch.zeros(1)}, facts)
    damaged = bytearray(Path(SAVED).read_bytes())
    damaged[-1] ^= 1
    Path("changed.safetensors").write_bytes(damaged)
    code, _, err = quantize(*STATIC, "--calibrate", "changed.safetensors", "-o", "new")
    assert code == 2 and "is damaged" in err


def _digests(tensors: dict[str, torch.Tensor]) -> str:
    from cosmos3_core.checkpoint.tensors import tensor_digest

    return json.dumps({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def test_a_model_without_weights(quantize: Call, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(TINY, "bare")
    for file in Path("bare/transformer").glob("*.safetensors"):
        file.unlink()
    code, _, err = quantize("--model", "bare", "--format", "fp8_static", "--calibrate", "prompts.txt", *SMALL, *OUT)
    assert code == 2 and "bare/transformer: neither diffusion_pytorch_model.safetensors" in err
    assert not Path(SAVED).exists()
