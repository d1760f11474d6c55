"""The embedded model, trained, with its media tower in each dialect that is read: its picture stays, as far as the bits
go. The tensors are laid out here, as the fixtures that the packages wrote have them (tests/test_dialects.py)."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
import torch
from command import cosmos3
from dialect_files import DESCRIPTION, STEM
from PIL import Image
from safetensors.torch import load_file, save_file
from test_embedded_formats import least

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.checkpoint.quantize import source_folder
from cosmos3_core.quant import FORMATS, Format
from cosmos3_core.quant.codes import from_bytes
from cosmos3_core.quant.dialects.bitsandbytes import STATE
from cosmos3_core.quant.dialects.written import WRITTEN, Written
from cosmos3_core.quant.layouts import AWQ_ORDER, swapped_nibbles
from cosmos3_core.quant.numerics import Packed, pack

Parts = Callable[[Packed], dict[str, torch.Tensor]]
GROUP = 32
MEDIA = (".mlp_moe_gen.", ".add_", ".to_add_out.")


def mx(packed: Packed) -> dict[str, torch.Tensor]:
    name = "weight" if packed.format.bits == 8 else "weight_packed"
    return {name: packed.values, "weight_scale": packed.scales}


def nvfp4(packed: Packed) -> dict[str, torch.Tensor]:
    assert packed.tensor_scale is not None
    return {"weight": packed.values, "weight_scale": packed.scales, "weight_scale_2": packed.tensor_scale}


def gptq(packed: Packed) -> dict[str, torch.Tensor]:
    """Symmetric: zero points of 8, less one."""
    zeros = torch.full((packed.scales.shape[1], len(packed.values) // 8), 0x77777777, dtype=torch.int32)
    words = packed.values.view(torch.int32).t().contiguous()
    return {"qweight": words, "qzeros": zeros, "scales": packed.scales.t().half().contiguous()}


def awq(packed: Packed) -> dict[str, torch.Tensor]:
    def words(codes: torch.Tensor) -> torch.Tensor:
        places = torch.tensor(AWQ_ORDER) * 4
        return (codes.t().long().unflatten(-1, (-1, 8)) << places).sum(-1).to(torch.uint32).view(torch.int32)

    assert packed.zeros is not None
    codes = from_bytes(packed.values, 4)
    return {"qweight": words(codes), "qzeros": words(packed.zeros), "scales": packed.scales.t().half().contiguous()}


def nf4(packed: Packed) -> dict[str, torch.Tensor]:
    state = {"quant_type": "nf4", "blocksize": packed.format.group, "shape": list(packed.shape)}
    return {
        "weight": swapped_nibbles(packed.values).reshape(-1, 1),
        "weight.absmax": packed.scales.flatten(),
        "weight.quant_map": torch.tensor(packed.format.of_elements.values),
        STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def torchao(packed: Packed) -> dict[str, torch.Tensor]:
    return {"_weight_qdata": packed.values, "_weight_scale": packed.scales}


def modelslim(packed: Packed) -> dict[str, torch.Tensor]:
    return {"weight": packed.values, "weight_scale": packed.scales, "weight_offset": packed.scales * 0}


def q8_0(packed: Packed) -> gguf_files.Entry:
    raw = packed.scales.unsqueeze(-1).view(torch.uint8), packed.values.view(torch.uint8).unflatten(-1, (-1, 32))
    return gguf_files.Entry(packed.shape, gguf_files.NUMBERS["Q8_0"], bytes(torch.cat(raw, -1).numpy()))


INT4 = {"bits": 4, "group_size": GROUP}
MX = {"quant_method": "auto-round", "data_type": "mx_fp", "group_size": 32}


def ours(row: Written) -> tuple[Format, Parts, dict[str, Any]]:
    """As `cosmos3 quantize` writes it."""
    format = replace(row.format, group=GROUP) if row.grouped else row.format
    return row.packed_as(format, torch.bfloat16), row.parts, row.describe(format, (), "0")


def grouped(name: str) -> Format:
    return replace(FORMATS[name], group=GROUP)


DIALECTS: dict[str, tuple[Format, Parts, dict[str, Any] | None]] = {
    **{f"{row.dialect}, {row.format.name}": ours(row) for row in WRITTEN},
    "modelopt, nvfp4": (FORMATS["nvfp4a16"], nvfp4, {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}),
    "auto-round, mxfp8": (FORMATS["mxfp8"], mx, MX | {"bits": 8, "act_bits": 8}),
    "auto-round, mxfp4": (FORMATS["mxfp4a16"], mx, MX | {"bits": 4}),
    "auto-round, w4a16": (
        grouped("w4a16"),
        gptq,
        INT4 | {"quant_method": "auto-round", "data_type": "int", "packing_format": "auto_round:auto_gptq"},
    ),
    "gptq": (grouped("w4a16"), gptq, INT4 | {"quant_method": "gptq"}),
    "awq": (grouped("w4a16_asym"), awq, INT4 | {"quant_method": "awq", "version": "gemm", "zero_point": True}),
    "bitsandbytes": (
        FORMATS["nf4"],
        nf4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
    "torchao": (FORMATS["int8a16"], torchao, {"quant_method": "torchao", "quant_type": "Int8WeightOnlyConfig"}),
    "modelslim": (FORMATS["int8"], modelslim, None),
    "gguf": (FORMATS["q8_0"], lambda packed: {}, None),
}


def written(name: str, folder: Path) -> Path:
    """The embedded model in FOLDER, with the matrices of its media tower in this dialect."""
    source = source_folder(open_model("embedded"))
    shutil.copytree(source, folder)
    transformer = folder / "transformer"
    held: dict[str, torch.Tensor] = {}
    for file in sorted(transformer.glob(f"{STEM}*")):
        held |= load_file(file) if file.suffix == ".safetensors" else {}
        file.unlink()
    matrices = [one for one in held if any(part in one for part in MEDIA) and held[one].ndim == 2]
    format, parts, config = DIALECTS[name]
    said = json.loads((transformer / "config.json").read_text())
    if config is not None:
        (transformer / "config.json").write_text(json.dumps(said | {"quantization_config": config}))
    if name == "gguf":
        blocks = {one: gguf_files.plain(tensor) for one, tensor in held.items()}
        blocks |= {one: q8_0(pack(held[one], format, weight=True)) for one in matrices}
        gguf_files.write(transformer / f"{STEM}.gguf", blocks)
        return folder
    described, metadata = {"model_quant_type": "W8A8_DYNAMIC"}, {"format": "pt"}
    for one in matrices:
        module, scale = one.removesuffix(".weight"), torch.tensor(0.05) if format.static else None
        weight = held.pop(one)
        made = parts(pack(weight, format, weight=True, input_scale=scale))
        held |= {f"{module}.{part}": tensor.contiguous() for part, tensor in made.items()}
        described |= {f"{module}.{part}": "W8A8_DYNAMIC" for part in made}
        metadata[one] = json.dumps({"_type": "Int8Tensor", "_data": {"block_size": [1, weight.shape[1]]}})
    if name == "modelslim":
        (transformer / DESCRIPTION).write_text(json.dumps(dict.fromkeys(held, "FLOAT") | described))
    save_file(held, transformer / f"{STEM}.safetensors", metadata=metadata if name == "torchao" else {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("dialects")


@pytest.mark.parametrize("name", DIALECTS)
def test_the_embedded_model_in(name: str, place: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    job = ("run", "a red ball", "--backend", "reference", "--size", "128x128", "--frames", 1, "--steps", 4, "--seed", 1)
    pictures = []
    for model, file in (
        ("embedded", place / "plain.png"),
        (written(name, tmp_path / "model"), tmp_path / "packed.png"),
    ):
        if not file.exists():
            code, _, err = cosmos3(capsys, monkeypatch, *job, "--model", model, "-o", file)
            assert code == 0, err
        pictures.append(np.asarray(Image.open(file)).astype(float))
    modules = json.loads((tmp_path / "packed.png.json").read_text())["model"]["quantization"]["modules"]
    assert modules == {"layers.0-5 (media)": DIALECTS[name][0].name}
    mse = np.square(pictures[1] - pictures[0]).mean()
    assert mse > 0 and 10 * math.log10(255**2 / mse) > least(DIALECTS[name][0].name)
