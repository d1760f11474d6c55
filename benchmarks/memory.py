"""What `cosmos3 plan` says a run takes, beside what it takes: peak memory and time of a step and of the decode.

    python -m benchmarks.memory --backend cuda --model nano --job 832x480x93 --job 1280x720x189

The media tower and the VAE get random weights on the device, prompts are random keys and values, which stay for the
decode as they do in a run. Allocated is what the tensors take, reserved what the allocator holds for them; the
estimate's peak has to cover the second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.checkpoint.random_weights import RandomWeights
from cosmos3_core.contract import Memory, Segment
from cosmos3_core.engine.limits import expandable
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.transformer import GenerationTower, TextContext
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.plan import Want, choose_backend, resolve
from cosmos3_core.plan.cost.fit import Estimate
from cosmos3_core.plan.cost.job import Job
from cosmos3_core.plan.cost.units import ceiling_of
from cosmos3_core.plan.execution import Execution
from cosmos3_core.runs.memory import peak_device_memory

from .common import environment, report, seconds, waiting

TEXT = (512, 3500)
"""Tokens of the prompt and of the negative one, as `cosmos3 plan` assumes them."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--job", action="append", required=True, help="WIDTHxHEIGHTxFRAMES, may be repeated")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Measured:
    """Peak allocated and reserved bytes and the seconds of a call, after one call to warm up."""

    def __init__(self, memory: Memory, device: str):
        self.memory, self.device = memory, torch.device(device)

    def __call__(self, function) -> dict[str, Any]:
        function()
        self.memory.empty(self.device)
        self.memory.peak(self.device, reset=True)
        took = seconds(function, waiting(self.memory, self.device))
        return (peak_device_memory(self.memory, self.device) or {}) | {"seconds": took}


def job_of(width: int, height: int, frames: int) -> Job:
    prompt, negative = TEXT
    return Job(
        width=width,
        height=height,
        frames=frames,
        steps=35,
        guidance=6.0,
        guided_steps=35,
        prompt_tokens=prompt,
        negative_tokens=negative,
    )


def random_texts(c: TransformerConfig, device: str) -> list[TextContext]:
    texts = []
    for length in TEXT:
        k, v = (torch.randn(1, length, c.num_key_value_heads, c.head_dim, device=device).bfloat16() for _ in range(2))
        layers = (Segment(k.clone(), v.clone(), static=True) for _ in range(c.num_hidden_layers))
        texts.append(TextContext(tuple(layers), length))
    return texts


@torch.inference_mode()
def steps(
    tower: GenerationTower, texts: list[TextContext], execution: Execution, device: str, measure: Measured
) -> dict[str, Any]:
    """One guided step: both branches, in as many passes as the engine takes."""
    item = Item("vision", (tower.config.latent_channel, *execution.latent))
    packing, latent = Packing([item], tower.config, device), torch.randn(item.shape, device=device)
    read = dict(zip(execution.branches, texts, strict=True))
    passes = [tower.branches(packing, [read[branch] for branch in one.branches]) for one in execution.guided]
    return measure(lambda: [tower.forward(branches, [latent], 500.0) for branches in passes])


def decode(vae: VideoVAE, channels: int, execution: Execution, measure: Measured) -> dict[str, Any]:
    latents = torch.randn(channels, *execution.latent, device=vae.device)
    return measure(lambda: [None for _ in vae.decode(latents, execution.tiling)])


def main() -> None:
    args = arguments()
    model = describe(args.model)
    backend, found, _ = choose_backend(args.backend)
    plan, device = resolve(Want.of(model.config, "bfloat16"), backend, found), backend.torch_device
    sizes = {job: tuple(int(n) for n in job.split("x")) for job in args.job}
    jobs = {name: job_of(*size) for name, size in sizes.items()}
    estimates = {n: Estimate(model.config, model.vae, job, "bfloat16", tuning=plan.tuning) for n, job in jobs.items()}
    target, weights = plan.target(model.config), RandomWeights(model, device)
    if plan.tuning.expandable_segments:  # as the engine takes memory, and as the plan counts
        expandable()
    measure = Measured(target.ops.memory, device)
    texts = random_texts(model.config, device)
    tower = weights.generation(target)
    results: dict[str, dict[str, Any]]
    results = {n: {"steps": steps(tower, texts, e.execution, device, measure)} for n, e in estimates.items()}
    del tower
    vae = weights.vae(target, "decoder")
    for name, estimate in estimates.items():
        results[name]["decode"] = decode(vae, model.config.latent_channel, estimate.execution, measure)
    for name, estimate in estimates.items():
        for stage in estimate.stages:
            if stage.name in results[name]:
                results[name][stage.name]["estimated_peak"] = stage.peak
        if ceiling := ceiling_of(backend, found):
            results[name]["estimated_seconds"] = estimate.seconds(ceiling)
    report(
        {
            "benchmark": "memory",
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "kernels": plan.to_json()["kernels"],
            "jobs": results,
            "environment": environment(device, found),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
