"""Quantized checkpoints for tests: the tiny model with the transformer of a fixture, and changes to its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_model import TINY

FIXTURES = Path(__file__).with_name("dialects")
LISTING: dict[str, Any] = json.loads((FIXTURES / "fixtures.json").read_text())
STEM = "diffusion_pytorch_model"
DESCRIPTION = "quant_model_description.json"
HIDDEN = 64
MODELSLIM = ("modelslim-dynamic", "modelslim-static")
"""Of no package that can be installed here; laid out as Huawei's documentation of msModelSlim has it."""

Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], None]


def checkpoint(name: str, folder: Path) -> Path:
    """The tiny model in FOLDER with the transformer of this fixture."""
    shutil.copytree(TINY, folder)
    transformer = folder / "transformer"
    if name in MODELSLIM:
        _modelslim(transformer, static=name.endswith("static"))
        return folder
    fixture = FIXTURES / name
    shutil.copy(fixture / "config.json", transformer)
    own, modules = load_file(transformer / f"{STEM}.safetensors"), LISTING[name]["modules"]
    kept = {n: t for n, t in own.items() if n.removesuffix(".weight") not in modules}
    if (fixture / f"{STEM}.gguf").is_file():
        shutil.copy(fixture / f"{STEM}.gguf", transformer)
        (transformer / f"{STEM}.safetensors").unlink()
        held = {n: gguf_files.plain(t) for n, t in kept.items()} | gguf_files.read(folder)
        gguf_files.write(transformer / f"{STEM}.gguf", held)
        return folder
    with safe_open(fixture / f"{STEM}.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(kept | load_file(fixture / f"{STEM}.safetensors"), transformer / f"{STEM}.safetensors", metadata=metadata)
    return folder


def _modelslim(transformer: Path, *, static: bool) -> None:
    """int8 of the media tower's second layer, a scale for each output."""
    tensors, kind = load_file(transformer / f"{STEM}.safetensors"), "W8A8" if static else "W8A8_DYNAMIC"
    said = {"model_quant_type": kind}
    said |= dict.fromkeys(tensors, "FLOAT")
    media = ("layers.1.self_attn.add_", "layers.1.self_attn.to_add_out", "layers.1.mlp_moe_gen.")
    for name in [n for n in tensors if n.startswith(media) and n.endswith(".weight")]:
        base, weight = name.removesuffix(".weight"), tensors[name].float()
        scale = weight.abs().amax(1, keepdim=True) / 127
        parts = {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale, "weight_offset": scale * 0}
        if static:
            given = torch.tensor([0.03])
            rows = torch.zeros(len(weight), dtype=torch.int32)
            parts |= {"input_scale": given, "input_offset": given * 0, "quant_bias": rows}
            parts["deq_scale"] = scale.flatten() * given
        tensors |= {f"{base}.{part}": tensor for part, tensor in parts.items()}
        said |= {f"{base}.{part}": kind for part in parts}
    save_file(tensors, transformer / f"{STEM}.safetensors", metadata={"format": "pt"})
    (transformer / DESCRIPTION).write_text(json.dumps(said))


def tensors_of(folder: Path) -> tuple[Tensors, dict[str, str]]:
    """The transformer's tensors and the file's metadata."""
    path = folder / "transformer" / f"{STEM}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def changed(**tensors: Callable[[torch.Tensor], torch.Tensor] | torch.Tensor | None) -> Change:
    """Tensors of `PROBE`, by the ends of their names with __ for a dot: changed, put there, or (None) taken away."""

    def change(folder: Path) -> None:
        held, metadata = tensors_of(folder)
        for end, how in tensors.items():
            name = f"{PROBE}.{end.replace('__', '.').replace('bytes.nf4', 'bytes__nf4')}"
            if how is None:
                del held[name]
            else:
                held[name] = (how if isinstance(how, torch.Tensor) else how(held[name].clone())).contiguous()
        save_file(held, folder / "transformer" / f"{STEM}.safetensors", metadata=metadata)

    return change


PROBE = "layers.1.self_attn.add_k_proj"
"""The module whose tensors are changed: [32, 64]."""


def saying(*path: str, value: Any, file: str = "transformer/config.json") -> Change:
    """Another value in a JSON file, at a path of keys."""

    def change(folder: Path) -> None:
        where = folder / file
        whole = json.loads(where.read_text()) if where.is_file() else {}
        inner = whole
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
        where.write_text(json.dumps(whole))

    return change


def without_config(folder: Path) -> None:
    """Nothing says how the weights are quantized."""
    where = folder / "transformer" / "config.json"
    whole = json.loads(where.read_text())
    del whole["quantization_config"]
    where.write_text(json.dumps(whole))


def first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first element has this value."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.reshape(-1)
        if tensor.dtype.itemsize == 1 and tensor.is_floating_point():
            flat.view(torch.uint8)[0] = int(torch.tensor(value).to(tensor.dtype).view(torch.uint8))
        else:
            flat[0] = value
        return flat.reshape(tensor.shape)

    return change
