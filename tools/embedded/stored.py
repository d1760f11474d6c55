"""The embedded model in the formats that store a scale of the activations, by one calibration: for by_format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos3_core.checkpoint.choosing import Choosing
from cosmos3_core.checkpoint.repository import ASSETS, EMBEDDED
from cosmos3_core.checkpoint.tensors import STEM
from cosmos3_core.evidence.quantizing.prompts import WORLD
from cosmos3_core.evidence.quantizing.quantize import Asked, job_of, quantize, with_statistics
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.dialects.written import Written
from cosmos3_core.quant.numerics import Packed

STORED = frozenset((FP8 := "fp8_static", INT8 := "int8_static"))
POLICY = {"keep_understanding": False}
"""Quantizes what a run with --format does, but the matrices of the text tower's last layer, which no run reads."""
KIND = "W8A8"
"""What ModelSlim calls int8 with a stored scale."""


def stored(folder: Path, backend: str) -> dict[str, Path]:
    """Checkpoints in a folder, by their formats: `cosmos3 quantize` writes the first one. Of the second one cosmos3
    writes none; it is laid out as ModelSlim does, with the same statistics."""
    asked, statistics = Asked(model=EMBEDDED, format=FP8, policy=POLICY), folder / "statistics.safetensors"
    job = with_statistics(replace(asked, calibrate=WORLD, backend=backend), job_of(asked), statistics, _silent)
    quantize(replace(asked, calibrate=str(statistics)), folder / FP8, _silent, _silent)
    shutil.copytree(ASSETS / EMBEDDED, folder / INT8)
    _quantize(folder / INT8 / "transformer", replace(job.choosing, row=SLIM, format=SLIM.format), set(job.modules))
    return {format: folder / format for format in STORED}


def _silent(*_: object) -> None:
    pass


def _parts(packed: Packed) -> dict[str, Tensor]:
    """int8 [O, I] and fp32 scales [O, 1], and the inputs' scale; `deq_scale` [O] is their product. Offsets are 0."""
    assert packed.input_scale is not None
    scales, rows = {"weight_scale": packed.scales, "input_scale": packed.input_scale.reshape(1)}, len(packed.values)
    offsets = {name.replace("scale", "offset"): torch.zeros_like(scale) for name, scale in scales.items()}
    product = {"deq_scale": packed.scales.reshape(-1) * packed.input_scale}
    return {"weight": packed.values, "quant_bias": torch.zeros(rows, dtype=torch.int32)} | scales | offsets | product


SLIM = Written(dialect="modelslim", format=FORMATS[INT8], parts=_parts, describe=lambda *_: {}, rounded=False)


def _quantize(transformer: Path, choosing: Choosing, modules: set[str]) -> None:
    """The modules of a transformer's files, in their place."""
    said, where = {"model_quant_type": KIND}, dict[str, str]()
    for file in transformer.glob("*.safetensors"):
        tensors = {}
        for name, tensor in load_file(file).items():
            module, quantized = name.removesuffix(".weight"), name.removesuffix(".weight") in modules
            parts = choosing.row.parts(choosing.packed(module, tensor)) if quantized else {}
            held = {f"{module}.{part}": one for part, one in parts.items()} or {name: tensor}
            said |= dict.fromkeys(held, KIND if quantized else "FLOAT")
            tensors |= held
        save_file(tensors, file)
        where |= dict.fromkeys(tensors, file.name)
    (transformer / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (transformer / "quant_model_description.json").write_text(json.dumps(said))
