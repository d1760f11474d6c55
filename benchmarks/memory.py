"""What `cosmos3 plan` says a run takes, beside what it takes: peak memory and time of a step and of the decode.

    python -m benchmarks.memory --backend cuda --model nano --job 832x480x93 --job 1280x720x189

The media tower and the VAE get random weights on the device, prompts are random keys and values. Allocated is what the
tensors take, reserved what the allocator holds for them; the estimate's peak has to cover the second.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.cli.plan import describe
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.transformer import GenerationTower, TextContext
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.model.weights import generation_slots, load_slots
from cosmos3_core.plan import Want, choose_backend, resolve
from cosmos3_core.plan.estimate import Estimate, Job, ceiling_of

from .common import environment, report, seconds

TEXT = (512, 3500)
"""Tokens of the prompt and of the negative one, as `cosmos3 plan` assumes them."""

VAE_KEYS = {
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "is_residual": True,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
}
"""What the built-in table of the plan leaves out of `vae/config.json` (spec 5.1)."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--job", action="append", required=True, help="WIDTHxHEIGHTxFRAMES, may be repeated")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Measured:
    """Peak allocated and reserved bytes and the seconds of a call, after one call to warm up."""

    def __init__(self, device: str):
        self.device = device

    def __call__(self, function) -> dict[str, Any]:
        function()
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
        took = seconds(function, self.device)
        return {
            "allocated": torch.accelerator.max_memory_allocated(),
            "reserved": torch.accelerator.max_memory_reserved(),
            "seconds": took,
        }


def job_of(width: int, height: int, frames: int) -> Job:
    prompt, negative = TEXT
    numbers = {"width": width, "height": height, "frames": frames, "steps": 35, "guided_steps": 35}
    return Job(**numbers, prompt_tokens=prompt, negative_tokens=negative)


def tower(config, plan, device: str) -> GenerationTower:
    stream = torch.Generator(device).manual_seed(0)
    slots = generation_slots(config)
    shapes = {name: shape for slot in slots for name, shape in slot.tensors().items()}

    def read(names):
        for name in names:
            mean = 1.0 if "norm" in name else 0.0
            yield name, torch.empty(shapes[name], device=device).normal_(mean, 0.02, generator=stream)

    ops = plan.build_ops()
    return GenerationTower(config, ops, load_slots(slots, read, ops, device, torch.bfloat16))


@torch.inference_mode()
def steps(model: GenerationTower, job: Job, device: str, measure: Measured) -> dict[str, Any]:
    """One guided step: both branches, as the engine runs them for this many tokens."""
    c = model.config
    texts = []
    for length in TEXT:
        kv = [torch.randn(1, length, c.num_key_value_heads, c.head_dim, device=device).bfloat16() for _ in range(2)]
        texts.append(TextContext(tuple((kv[0].clone(), kv[1].clone()) for _ in range(c.num_hidden_layers)), length))
    item = Item("vision", (c.latent_channel, *job.latent))
    packing, latent = Packing([item], c, device), torch.randn(c.latent_channel, *job.latent, device=device)
    passes = [model.branches(packing, [text]) for text in texts]
    return measure(lambda: [model.forward(branches, [latent], 500.0) for branches in passes])


def decode(config: dict[str, Any], job: Job, device: str, measure: Measured) -> dict[str, Any]:
    stream, channels = torch.Generator(device).manual_seed(0), config["z_dim"]
    config = config | VAE_KEYS | {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    shapes = VideoVAE.names(config, "the VAE")
    tensors = ((n, torch.empty(s, device=device).normal_(0, 0.02, generator=stream)) for n, s in shapes.items())
    vae = VideoVAE.load(config, tensors, encoder=False, source="the VAE", device=device, dtype=torch.bfloat16)
    latents = torch.randn(channels, *job.latent, device=device)
    return measure(lambda: [None for _ in vae.decode(latents)])


def main() -> None:
    args = arguments()
    described = describe(args.model)
    backend, found, _ = choose_backend(args.backend)
    plan, device = resolve(Want.of(described.config, "bfloat16"), backend, found), backend.torch_device
    measure, results = Measured(device), {}
    sizes = {job: tuple(int(n) for n in job.split("x")) for job in args.job}
    jobs = {name: job_of(*size) for name, size in sizes.items()}
    estimates = {name: Estimate(described.config, described.vae, job, "bfloat16") for name, job in jobs.items()}
    model = tower(described.config, plan, device)
    for name, job in jobs.items():
        results[name] = {"steps": steps(model, job, device, measure)}
    del model
    torch.accelerator.empty_cache()
    for name, job in jobs.items():
        results[name]["decode"] = decode(described.vae, job, device, measure)
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
            "environment": environment(device),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
