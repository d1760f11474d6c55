"""The checkpoint inside the wheel: reproducible, complete, and what diffusers would read."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.model import Weights, open_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "build_tiny.py"


def build(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("build_tiny", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' sound codec uses the old weight_norm
        module.build(folder)


def test_the_script_makes_the_same_bytes_again(tmp_path):
    build(tmp_path)
    files = {path.relative_to(TINY) for path in TINY.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for file in files:
        assert (tmp_path / file).read_bytes() == (TINY / file).read_bytes(), f"{file} differs"


def test_it_is_small_enough_for_the_wheel_and_has_the_hubs_layout():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 3_000_000
    for path in (
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "sound_tokenizer/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "text_tokenizer/tokenizer.json",
        "text_tokenizer/chat_template.jinja",
        "assets/negative_prompt.json",
    ):
        assert (TINY / path).is_file()
    Weights(open_model(TINY_MODEL))


def test_diffusers_reads_all_of_it():
    from diffusers import Cosmos3OmniPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = Cosmos3OmniPipeline.from_pretrained(TINY, torch_dtype=torch.bfloat16)
    assert pipeline.transformer.dtype == torch.bfloat16
    assert pipeline.transformer.time_embedder.linear_1.weight.dtype == torch.float32
    assert pipeline.sound_tokenizer is not None and pipeline.config.default_use_system_prompt is True
