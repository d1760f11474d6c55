"""The VAE's decode, here and in diffusers, on the same random weights and latents.

    python -m benchmarks.vae --backend cuda --size 1280x720 --frames 189

The published widths in bf16. A small clip is first decoded by diffusers in fp32 too, and the run fails if ours is
further from that than diffusers' own bf16 is. Ours is timed to bytes on the host, diffusers' to its tensor on the
device.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import Memory
from cosmos3_core.model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, VAE_SUPPORTED, latent_size
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.plan import Want, choose_backend, resolve
from cosmos3_core.plan.execution import tiling_of
from cosmos3_core.runs.memory import peak_device_memory
from cosmos3_core.scenarios.sizes import parse_size

from .common import alternate, environment, report, waiting

Decode = Callable[[Tensor], Iterator[Tensor]]
COMPARED = 320, 192, 9
"""Width, height and frames of what is compared before anything is timed."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--frames", type=int, default=189)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def published() -> dict[str, Any]:
    """`vae/config.json` at the published widths; latents that are not normalised keep both sides' inputs equal."""
    config = describe("nano").vae
    factors = {"scale_factor_temporal": TEMPORAL_COMPRESSION, "scale_factor_spatial": SPATIAL_COMPRESSION}
    channels = config["z_dim"]
    return config | VAE_SUPPORTED | factors | {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}


def random_weights(config: dict[str, Any], device: str) -> dict[str, Tensor]:
    """Of a scale that keeps the feature maps' size through the depth."""
    stream, weights = torch.Generator(device).manual_seed(0), {}
    for name, shape in VideoVAE.names(config, "the VAE").items():
        drawn = torch.empty(shape, device=device).normal_(generator=stream)
        fan_in = math.prod(shape[1:])
        scaled = 1 + 0.2 * drawn if "gamma" in name else drawn * (fan_in**-0.5 if len(shape) > 1 else 0.1)
        weights[name] = scaled.bfloat16()
    return weights


def diffusers_vae(config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype):
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        module = AutoencoderKLWan.from_config(config)
    module.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, strict=True, assign=True)
    del module.encoder, module.quant_conv
    return module.eval().requires_grad_(False)


def as_bytes(sample: Tensor) -> Tensor:
    """diffusers' [1, 3, F, H, W] in [-1, 1] as [F, H, W, 3] from 0 to 255, not rounded."""
    return (sample[0].float().permute(1, 2, 3, 0) + 1) * 127.5


@torch.inference_mode()
def errors(exact, theirs, ours: Decode, latents: Tensor) -> dict[str, float]:
    """Relative errors of both bf16 decodes against diffusers in fp32."""
    truth = as_bytes(exact.decode(latents[None].float()).sample)
    found = {
        "cosmos3": torch.cat(list(ours(latents))).to(truth),
        "diffusers": as_bytes(theirs.decode(latents[None]).sample),
    }
    return {name: float((values - truth).norm() / truth.norm()) for name, values in found.items()}


def peaks(decode: Callable[[], Any], weights: int, memory: Memory, torch_device: str) -> dict[str, int]:
    """Peak bytes of a decode and its own weights, as if the other contestant's were not there."""
    device = torch.device(torch_device)
    memory.empty(device)
    memory.peak(device, reset=True)
    before = memory.used(device)._asdict()
    decode()
    peak = peak_device_memory(memory, device) or {}
    return {name: (peak[name] or 0) - (before[name] or 0) + weights for name in before}


def contestants(ours: Decode, theirs, latents: Tensor) -> dict[str, Callable[[], Any]]:
    return {
        "cosmos3": lambda: [None for _ in ours(latents)],
        "diffusers": torch.inference_mode()(lambda: theirs.decode(latents[None]).sample),
    }


def main() -> None:
    args = arguments()
    backend, found, _ = choose_backend(args.backend)
    plan, device = resolve(Want.of(describe("nano").config, "bfloat16"), backend, found), backend.torch_device
    config, ops = published(), plan.build_ops()
    weights = random_weights(config, device)
    halves = ("decoder",)
    vae = VideoVAE.load(
        config, weights.items(), ops, source="the VAE", device=device, dtype=torch.bfloat16, halves=halves
    )
    theirs, exact = (diffusers_vae(config, weights, dtype) for dtype in (torch.bfloat16, torch.float32))
    size = sum(t.nbytes for n, t in weights.items() if n.startswith(("decoder.", "post_quant_conv.")))
    del weights

    def latents(width: int, height: int, frames: int) -> Tensor:
        shape = latent_size(width, height, frames)
        return torch.randn(config["z_dim"], *shape, device=device, generator=stream).bfloat16()

    def ours(latents: Tensor) -> Iterator[Tensor]:
        _, _, height, width = latents.shape
        return vae.decode(latents, tiling_of(height, width, None, plan.tuning.chunk_area))

    stream = torch.Generator(device).manual_seed(1)
    width, height = parse_size(args.size, "16:9")
    error = errors(exact, theirs, ours, latents(*COMPARED))
    del exact
    if not error["cosmos3"] <= error["diffusers"]:
        raise SystemExit(f"ours is further from fp32 than diffusers is: {error}")
    decodes = contestants(ours, theirs, latents(width, height, args.frames))
    for decode in decodes.values():
        decode()
    timed = alternate(decodes, waiting(ops.memory, device), args.repeats)
    report(
        {
            "benchmark": "vae",
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "kernels": plan.to_json()["kernels"],
            "relative_error_to_fp32": error,
            "seconds": timed,
            "speed_ratio": timed["diffusers"]["median_s"] / timed["cosmos3"]["median_s"],
            "peak_bytes": None
            if found.unified
            else {name: peaks(decode, size, ops.memory, device) for name, decode in decodes.items()},
            "environment": environment(device, found),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
