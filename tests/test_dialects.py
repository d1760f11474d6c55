"""Quantized checkpoints that the packages wrote (scripts/dialect_fixtures.py): read bit for bit, fused exactly, run as
they are, and described in plan and manifest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dialect_files import LISTING, MODELSLIM, PROBE, STEM, changed, checkpoint, saying, tensors_of
from fake_hub import FakeHub
from peer import relative_error
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import TINY

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.tensors import tensor_digest
from cosmos3_core.contract import InputError, Kernel, Residual
from cosmos3_core.model.transformer import DecoderLayer
from cosmos3_core.plan import Plan
from cosmos3_core.quant.dialects import Clues, Header, scheme_of
from cosmos3_core.quant.dialects.compressed import COMPRESSED
from cosmos3_core.quant.numerics import unpack
from cosmos3_core.settle import Wish, ground_of

SMALL = ("--backend", "reference", "--dtype", "float32", "--size", "64x64", "--steps", "2", "--seed", "7")


@pytest.mark.parametrize("name", LISTING)
def test_weights_are_read_as_their_package_reads_them(name: str, tmp_path: Path) -> None:
    weights = Weights(open_model(str(checkpoint(name, tmp_path / "model"))))
    found = dict(weights.quantized.weights(weights.quantized.layouts))
    assert found.keys() == LISTING[name]["modules"].keys()
    for module, (dtype, digest) in LISTING[name]["modules"].items():
        mine = unpack(found[module]).to(getattr(torch, dtype))
        assert tensor_digest(mine + 0) == digest, module


def test_parts_of_one_matrix_become_one_exactly(tmp_path: Path) -> None:
    """q, k and v with a scale each."""
    weights = Weights(open_model(str(checkpoint("modelopt-fp8", tmp_path / "model"))))
    modules = [f"layers.1.self_attn.add_{x}_proj" for x in "qkv"]
    apart = dict(weights.quantized.weights(modules))
    assert len({apart[m].scales.item() for m in modules}) == 3
    (fused,) = weights.quantized.matrices([modules], "cpu", torch.bfloat16)
    assert fused.shape == (128, 64) and fused.scales.shape == (128, 1)
    assert torch.equal(unpack(fused), torch.cat([unpack(apart[m]) for m in modules]))


def plain(folder: Path, to: Path) -> Path:
    """The same checkpoint, not quantized: the numbers that its weights stand for, in fp32."""
    weights = Weights(open_model(str(folder)))
    shutil.copytree(TINY, to)
    numbers = {f"{module}.weight": unpack(one) for module, one in weights.quantized.weights(weights.quantized.layouts)}
    own = load_file(to / "transformer" / f"{STEM}.safetensors")
    save_file(own | numbers, to / "transformer" / f"{STEM}.safetensors", metadata={"format": "pt"})
    return to


def layer(folder: Path) -> tuple[DecoderLayer, Plan]:
    """The media tower's second layer as a run on eager torch has it, in fp32."""
    ground = ground_of(Wish(model=str(folder), backend="reference", dtype="float32"))
    return Weights(ground.model).generation(ground.plan.target(ground.model.config)).layers[1], ground.plan


def outputs(made: DecoderLayer) -> list[torch.Tensor]:
    """Of both halves, for the same random rows."""
    stream = torch.Generator().manual_seed(3)
    rows, angles, attended = (torch.randn(1, 5, n, generator=stream) for n in (64, 16, 64))
    residual = Residual(rows[0])
    q, k, v, _ = made.project(residual, angles.cos(), angles.sin())
    made.finish(residual, attended.view(1, 5, 4, 16))
    return [q, k, v, residual.delta_MI]


@pytest.mark.parametrize("name", [*LISTING, *MODELSLIM])
def test_layers_compute_with_what_the_weights_stand_for(name: str, tmp_path: Path) -> None:
    """Exactly where activations stay in 16 bits."""
    folder = checkpoint(name, tmp_path / "model")
    made, plan = layer(folder)
    held = Weights(open_model(str(folder))).quantized
    formats = [one.format for module, one in held.layouts.items() if module.startswith("layers.")]
    assert {plan.format, *(other.format for other in plan.others)} == {format.name for format in formats}
    expected, _ = layer(plain(folder, tmp_path / "plain"))
    inputs = [format.of_inputs.bits for format in formats if format.of_inputs]
    bound = {4: 0.3, 8: 0.1}[min(inputs)] if inputs else 1e-5
    for ours, theirs in zip(outputs(made), outputs(expected), strict=True):
        assert relative_error(ours, theirs) < bound


@pytest.mark.parametrize(
    "name",
    [
        PROBE,
        "add_k_proj",
        r".*layers\.1\..*add_k.*",
        f"({'|'.join(map(str, range(1, 36)))}).self_attn.(add_)?(k|q[|])_proj",
    ],
)
def test_what_autoround_says_of_single_modules_is_followed(name: str, tmp_path: Path) -> None:
    """By their names or a part of them: MXFP4, and a module of it in MXFP8, as its AutoScheme mixes them."""
    folder = checkpoint("autoround-mxfp4", tmp_path / "model")
    saying("quantization_config", "extra_config", name, value={"bits": 8, "act_bits": 8})(folder)
    other, _ = tensors_of(checkpoint("autoround-mxfp8", tmp_path / "other"))
    parts = {f"{PROBE}.{part}": other[f"{PROBE}.{part}"] for part in ("weight", "weight_scale")}
    changed(weight_packed=None, **{part.rpartition(".")[2]: tensor for part, tensor in parts.items()})(folder)
    weights = Weights(open_model(str(folder)))
    ((_, found),) = weights.quantized.weights([PROBE])
    dtype, digest = LISTING["autoround-mxfp8"]["modules"][PROBE]
    assert tensor_digest(unpack(found).to(getattr(torch, dtype)) + 0) == digest
    assert {module for module, format in weights.quantized.formats().items() if format.name == "mxfp8"} == {PROBE}
    made, _ = layer(folder)
    assert all(one.isfinite().all() for one in outputs(made))


@pytest.mark.parametrize("name", ["modelopt-fp8", "gguf"])
def test_a_folder_runs_as_it_is(name: str, tmp_path: Path, run: Callable) -> None:
    """In several formats, too; the manifest says which modules are in which."""
    folder = checkpoint(name, tmp_path / "model")
    code, _, err = run("waves", "--model", folder, *SMALL, "-o", "packed.png")
    assert code == 0, err
    assert np.asarray(Image.open("packed.png")).std() > 1
    manifest = json.loads(Path("packed.png.json").read_text())
    said = manifest["model"]["quantization"]
    if name == "gguf":
        assert said["dialect"] == "gguf" and said["policy"] is None
        assert manifest["plan"]["others"].keys() == {"q4_0", "q5_1"}
        assert said["modules"]["layers.1.self_attn.add_v_proj"] == "q8_0"
        assert said["modules"]["action_proj_in.fc, made numbers while loading"] == "q4_k"
    else:
        assert said["modules"] == {"layers.1": "fp8_static"}
        assert said["policy"]["first_steps"] == {"count": 3, "mode": "a16"}


def test_another_format_is_refused_and_its_own_is_the_same(tmp_path: Path, run: Callable) -> None:
    folder = checkpoint("modelopt-fp8", tmp_path / "model")
    code, _, err = run("waves", "--model", folder, *SMALL, "--format", "int8", "--dry-run")
    assert code == 2 and "--format pack_linear=int8: the weights of" in err and "are in fp8_static already" in err
    code, out, err = run("waves", "--model", folder, *SMALL, "--format", "fp8_static", "--dry-run")
    assert code == 0, err
    assert "quantized" in out and "by modelopt: layers.1: fp8_static; others in 16 bits" in " ".join(out.split())


def test_a_revision_is_the_one_that_runs(tmp_path: Path) -> None:
    """As nvidia/Cosmos3-Nano's `fp8` is; once fetched, without the hub too. The pickle beside it is not fetched."""
    folder = checkpoint("modelopt-fp8", tmp_path / "model")
    (folder / "modelopt_state.pth").write_bytes(b"a pickle")
    command = [sys.executable, "-m", "cosmos3", "run", "waves", "--model", "org/tiny", "--revision", "fp8"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    with FakeHub() as hub:
        hub.push("org/tiny", TINY)
        commit = hub.push("org/tiny", folder, ref="fp8")
        done = subprocess.run(
            [*command, *SMALL, "-o", "one.png"],
            env=env | {"HF_ENDPOINT": hub.url},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert not [path for _, path, _ in hub.requests if path.endswith(".pth")]
    offline = subprocess.run(
        [*command, *SMALL, "--dry-run", "--json"],
        env=env | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert offline.returncode == 0, offline.stderr
    planned = json.loads(offline.stdout)["model"]
    assert planned["revision"] == commit == json.loads((tmp_path / "one.png.json").read_text())["model"]["revision"]
    assert planned["quantization"]["modules"] == {"layers.1": "fp8_static"}


@pytest.mark.parametrize("apart", ["in 16 bits", "an input scale of its own"])
def test_parts_that_cannot_be_one_are_multiplied_apart(apart: str, tmp_path: Path) -> None:
    """As where q and k stay in bf16 and v is quantized."""
    folder = checkpoint("modelopt-fp8", tmp_path / "model")
    where = folder / "transformer" / f"{STEM}.safetensors"
    held, module = load_file(where), "layers.1.self_attn.add_k_proj"
    if apart == "in 16 bits":
        del held[f"{module}.weight_scale"], held[f"{module}.input_scale"]
        held[f"{module}.weight"] = load_file(TINY / "transformer" / f"{STEM}.safetensors")[f"{module}.weight"]
    else:
        held[f"{module}.input_scale"] *= 1.5
    save_file(held, where, metadata={"format": "pt"})
    made, _ = layer(folder)
    whole, _ = layer(checkpoint("modelopt-fp8", tmp_path / "whole"))
    for (name, ours), theirs in zip(dict(zip("qkvx", outputs(made), strict=True)).items(), outputs(whole), strict=True):
        assert torch.equal(ours, theirs) == (name in "qvx"), name
        assert relative_error(ours, theirs) < 0.1


def test_a_plan_says_which_kernel_takes_the_weights(tmp_path: Path) -> None:
    """Before one is read: here eager torch, as the device's own kernel packs plain weights itself."""
    folder = checkpoint("modelopt-fp8", tmp_path / "model")
    row = Kernel(op="pack_linear", name="own", build=lambda device: None, formats=("fp8_static",))
    backend = replace(reference.BACKEND, name="acme", kernels=(row, *reference.BACKEND.kernels))
    plan = ground_of(Wish(model=str(folder)), on=(backend, reference.probe())).plan
    (refused,) = [one for one in plan.refusals if one.op == "pack_linear"]
    assert refused.name == "own" and "these come packed in fp8_static" in refused.reason
    assert any("eager torch" in note for note in plan.notes)
    with pytest.raises(InputError, match="packs plain weights itself"):
        ground_of(Wish(model=str(folder), kernels={"pack_linear": "own"}), on=(backend, reference.probe()))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    held = Weights(open_model(str(folder))).quantized
    return {module: unpack(one) for module, one in held.weights(held.layouts)}


def test_zero_points_of_gptq_v2_are_not_less_one(tmp_path: Path) -> None:
    folder = checkpoint("gptq", tmp_path / "model")
    before, (held, metadata) = weights_of(folder), tensors_of(folder)
    more = {name: tensor + 0x11111111 for name, tensor in held.items() if name.endswith(".qzeros")}
    save_file(held | more, folder / "transformer" / f"{STEM}.safetensors", metadata=metadata)
    saying("quantization_config", "checkpoint_format", value="gptq_v2")(folder)
    after = weights_of(folder)
    assert all(torch.equal(after[module], weight) for module, weight in before.items())


def test_a_group_of_minus_one_is_a_whole_row(tmp_path: Path) -> None:
    folder = checkpoint("gptq", tmp_path / "model")
    held, metadata = tensors_of(folder)
    for name in [name for name in held if name.endswith((".scales", ".qzeros"))]:
        held[name] = held[name][:1].expand_as(held[name]).contiguous()
    kept = {name: tensor for name, tensor in held.items() if not name.endswith(".g_idx")}
    save_file(kept, folder / "transformer" / f"{STEM}.safetensors", metadata=metadata)
    before = weights_of(folder)
    one = {name: tensor[:1].clone() for name, tensor in kept.items() if name.endswith((".scales", ".qzeros"))}
    save_file(kept | one, folder / "transformer" / f"{STEM}.safetensors", metadata=metadata)
    saying("quantization_config", "group_size", value=-1)(folder)
    after = weights_of(folder)
    assert all(torch.equal(after[module], weight) for module, weight in before.items())


def test_awq_s_version_may_be_in_capitals(tmp_path: Path) -> None:
    folder = checkpoint("awq", tmp_path / "model")
    before = weights_of(folder)
    saying("quantization_config", "version", value="GEMM")(folder)
    assert weights_of(folder).keys() == before.keys()


def test_features_of_gptq_are_in_the_groups_that_it_names(tmp_path: Path) -> None:
    """Its act-order: scale and zero point are those of the group of `g_idx`, and features stay where they are."""
    folder = checkpoint("gptq", tmp_path / "model")
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(5)) // 32
    changed(g_idx=shuffled.int())(folder)
    held, _ = tensors_of(folder)
    words, zeros, scales = (held[f"{PROBE}.{part}"] for part in ("qweight", "qzeros", "scales"))
    nibbles = torch.arange(0, 32, 4, dtype=torch.int32)
    codes_IO = (words[:, None] >> nibbles[:, None] & 15).flatten(0, 1)
    zeros_GO = (zeros[..., None] >> nibbles & 15).flatten(1) + 1
    expected = ((codes_IO - zeros_GO[shuffled]) * scales[shuffled].float()).T
    ((_, found),) = Weights(open_model(str(folder))).quantized.weights([PROBE])
    assert found.order is not None and torch.equal(unpack(found), expected)


@pytest.mark.parametrize(
    "said",
    [
        {PROBE: 8, "add_k_proj": 4},
        {"add_k_proj": 4, PROBE: 8},
        {"add_k": 8, "layers.1": 4},
        {r".*\.add_k_proj$": 8, "self_attn": 4},
    ],
)
def test_of_what_autoround_says_of_a_module_its_name_counts_and_then_the_first(
    said: dict[str, int], tmp_path: Path
) -> None:
    folder = checkpoint("autoround-mxfp4", tmp_path / "model")
    other, _ = tensors_of(checkpoint("autoround-mxfp8", tmp_path / "other"))
    parts = {part: other[f"{PROBE}.{part}"] for part in ("weight", "weight_scale")}
    changed(weight_packed=None, **parts)(folder)
    for name, bits in said.items():
        saying("quantization_config", "extra_config", name, value={"bits": bits, "act_bits": bits})(folder)
    formats = Weights(open_model(str(folder))).quantized.formats()
    assert {module for module, format in formats.items() if format.name == "mxfp8"} == {PROBE}


def test_features_in_groups_of_their_own_order(tmp_path: Path) -> None:
    """compressed-tensors' act-order: each feature has the scale of the group that weight_g_idx names."""
    folder = checkpoint("ct-w4a16", tmp_path / "model")
    saying("quantization_config", "config_groups", "group_0", "weights", "actorder", value="group")(folder)
    held, metadata = tensors_of(folder)
    weights = Weights(open_model(str(checkpoint("ct-w4a16", tmp_path / "plain"))))
    before = dict(weights.quantized.weights([PROBE]))[PROBE]
    for name in [n for n in held if n.endswith(".weight_packed")]:
        width = held[name].shape[1] * 8
        shuffled = torch.randperm(width, generator=torch.Generator().manual_seed(5))
        held[name.replace("packed", "g_idx")] = (shuffled // 32).int()
    save_file(held, folder / "transformer" / f"{STEM}.safetensors", metadata=metadata)
    found = dict(Weights(open_model(str(folder))).quantized.weights([PROBE]))[PROBE]
    scales = before.scales
    codes = unpack(before) / scales.repeat_interleave(32, 1)
    assert found.order is not None
    assert torch.allclose(unpack(found), codes * scales[:, held[f"{PROBE}.weight_g_idx"].long()])


def test_a_config_group_that_names_a_module_goes_before_patterns(tmp_path: Path) -> None:
    """In whatever order they stand: compressed-tensors' own, by name, by pattern, then all linears."""
    folder, where = checkpoint("ct-int", tmp_path / "model"), ("quantization_config", "config_groups")
    config = json.loads((folder / "transformer/config.json").read_text())
    named = config["quantization_config"]["config_groups"]["group_0"]
    other = {"weights": {"strategy": "channel"}, "format": "int-quantized"}
    groups = {"group_0": {"targets": ["Linear"], **other}, "group_1": {"targets": ["re:.*"], **other}, "group_2": named}
    saying(*where, value=groups)(folder)
    formats = Weights(open_model(str(folder))).quantized.formats()
    assert {format.name for format in formats.values()} == {"int8"} and set(formats) >= {PROBE}


@pytest.mark.parametrize("symmetric", [True, False])
def test_words_that_are_not_full(symmetric: bool) -> None:
    """compressed-tensors' words of eight codes where neither the inputs nor the outputs are multiples of eight: what
    fills the last word is no code."""
    shape, stream = (12, 20), torch.Generator().manual_seed(4)
    codes = torch.randint(0, 16, shape, generator=stream)
    zeros = torch.full((12, 1), 8) if symmetric else torch.randint(0, 16, (12, 1), generator=stream)

    def words(codes_NI: torch.Tensor) -> torch.Tensor:
        full = torch.cat([codes_NI, torch.full((len(codes_NI), -codes_NI.shape[1] % 8), 15)], 1).long()
        found = (full.unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(-1)
        return (found - (found >= 2**31) * 2**32).int()

    args = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": symmetric}
    said = {"format": "pack-quantized", "config_groups": {"all": {"targets": ["Linear"], "weights": args}}}
    parts = {"weight_packed": words(codes), "weight_scale": torch.rand(12, 1), "weight_shape": torch.tensor(shape)}
    parts |= {} if symmetric else {"weight_zero_point": words(zeros.T).T.contiguous()}
    headers = {name: Header(tuple(one.shape), str(one.dtype).removeprefix("torch.")) for name, one in parts.items()}
    layout = scheme_of(COMPRESSED, Clues(source="x", config=said)).layout("x", headers, shape)
    layout.check(parts)
    assert torch.equal(unpack(layout.read(parts)), (codes - zeros).float() * parts["weight_scale"])
