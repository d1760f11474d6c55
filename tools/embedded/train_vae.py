"""Train the video codec: pictures first, then short clips, then whole ones.

    python -m tools.embedded.train_vae --seconds 240 --out FOLDER [--from FOLDER]

Leaves vae.safetensors, vae.json (losses, PSNR, what the generator's inverse reads from reconstructions) and vae.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos3_core.evidence.embedded.inverse import judge, see
from cosmos3_core.evidence.embedded.render import draw, on, paint
from cosmos3_core.evidence.embedded.world import ACTIVE, PASSIVE, Scenes, make

from .codecs import Norm, VideoCodec
from .leg import Clock, Descent, Losses, keep, kept, rate, recorded
from .text import REPOSITORY


@dataclass(frozen=True)
class Course:
    """What a leg goes through: (until this share of the time, frames of a clip, clips of a batch) each, the highest
    rate, and the seed of its scenes."""

    phases: tuple[tuple[float, int, int], ...]
    peak: float
    seed: int


FIRST = Course(((0.15, 1, 128), (0.3, 5, 48), (0.6, 9, 24), (1.0, 17, 24)), 1e-3, 1)
LATER = Course(((0.65, 9, 24), (1.0, 17, 24)), 7e-4, 2)
"""Of a leg that goes on from another."""
WARM_UP = 100
BRIGHT, WEIGHT = -0.2, 4.0
"""Where a shape is: brighter than this; and how much more it counts there."""
LOG_VARIANCE, DIVERGENCE = -6.0, 1e-6
"""Of the posterior at first, and the weight of its divergence from a normal: noise of unit size teaches nothing."""


def config() -> dict:
    return json.loads((REPOSITORY / "vae" / "config.json").read_text())


def channels_last(codec: VideoCodec) -> VideoCodec:
    """With the convolutions' weights as their maps lie in memory; on a GPU with norms of one kernel each."""
    for module in codec.modules():
        if isinstance(module, Norm) and module.gamma.is_cuda:
            from .fused import Normed  # needs Triton

            module.kernel = Normed.apply
        elif isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return codec


def scenes(seed: int, count: int) -> Scenes:
    return make(seed, count, 17, dict.fromkeys(PASSIVE + ACTIVE, 1.0))


def batch(pool: tuple[Tensor, ...], frames: int, clips: int) -> Tensor:
    """Pixels of random scenes of the pool (`render.on`), from a random frame on."""
    colour, shape, radius, path, background = pool
    row = torch.randint(len(path), (clips,), device=path.device)
    first = torch.randint(path.shape[2] - frames + 1, (1,), device=path.device)
    at = first + torch.arange(frames, device=path.device)
    x = paint(colour[row], shape[row], radius[row], path[row].index_select(2, at), background[row])
    return x.contiguous(memory_format=torch.channels_last_3d)


def loss_of(codec: VideoCodec, x: Tensor) -> tuple[Tensor, Tensor]:
    """(what is trained on, mean squared error)."""
    mean, logvar = codec.encode(x)
    mean, logvar = mean.float(), logvar.float().clamp(-20, 4)
    y = codec.decode(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).float()
    error = y - x
    weight = 1 + WEIGHT * (x.amax(1, keepdim=True) > BRIGHT)
    divergence = (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (weight * (error.abs() + error.square())).mean() + DIVERGENCE * divergence, error.square().mean()


def train(codec: VideoCodec, course: Course, seconds: float, losses: Losses, shrink: int = 1) -> None:
    """The leg itself. `shrink` divides batches, for a rehearsal."""
    descent, device = Descent(codec, (0.9, 0.99), 1e-4), next(codec.parameters()).device
    pool, done, peak = on(scenes(course.seed, 30000 // shrink), device), 0, course.peak
    clock = Clock(seconds)
    for until, frames, clips in course.phases:

        def once(frames: int = frames, clips: int = max(clips // shrink, 1)) -> dict[str, Tensor]:
            x = batch(pool, frames, clips)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
                loss, error = loss_of(codec, x)
            descent.step(loss)
            return {"loss": loss.detach(), "error": error.detach()}

        descent.rate.fill_(rate(peak, done, WARM_UP, clock.share))
        run = recorded(once)
        for step in clock.steps(until, done):
            descent.rate.fill_(rate(peak, step, WARM_UP, clock.share))
            said = run()
            if step % 100 == 0:
                psnr = -10 * (said["error"] / 4).log10()
                losses.add(step=step, seconds=clock.passed, frames=frames, loss=said["loss"], psnr=psnr)
            done = step + 1


@torch.inference_mode()
def measure(codec: VideoCodec, device: str, losses: Losses, count: int = 96) -> None:
    """On scenes that training never sees."""
    held = scenes(90_001, count)
    x = draw(held, device)
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        z = torch.cat([codec.encode(part)[0].float() for part in x.split(16)])
        y = torch.cat([codec.decode(part).float().clamp(-1, 1) for part in z.split(16)])
    psnr = -10 * (((y - x) / 2).square().mean((1, 2, 3, 4)).log10())
    verdicts = [judge(see((clip + 1) / 2), held, row) for row, clip in enumerate(y)]
    right = {name: sum(getattr(v, name) is not False for v in verdicts) / count for name in vars(verdicts[0])}
    mean, std = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
    losses.measured(
        psnr=psnr.mean().item(),
        psnr_worst=psnr.min().item(),
        right=right,
        latents_mean=mean.tolist(),
        latents_std=std.tolist(),
    )
    save_pictures(y[:8], losses.file.with_suffix(".png"))


def save_pictures(clips: Tensor, file: Path) -> None:
    """Five frames of each clip [B, 3, F, H, W] in [-1, 1], a row for each."""
    from PIL import Image

    at = np.linspace(0, clips.shape[2] - 1, min(5, clips.shape[2])).round().astype(int).tolist()
    rows = torch.cat([torch.cat([clip[:, frame] for frame in at], dim=2) for clip in clips], dim=1)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="begin", type=Path, help="a folder with vae.safetensors to go on from")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and scenes, for a rehearsal")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark, torch.backends.cudnn.benchmark_limit = True, 4
    torch.manual_seed(0)
    codec = channels_last(VideoCodec(**config()).to(device))
    if args.begin:
        codec.load_state_dict(kept(args.begin / "vae.safetensors"))
    else:
        with torch.no_grad():
            codec.quant_conv.bias[codec.quant_conv.bias.numel() // 2 :].fill_(LOG_VARIANCE)
    course = LATER if args.begin else FIRST
    losses = Losses(args.out / "vae.json", seconds=args.seconds, **asdict(course))
    train(codec, course, args.seconds, losses, args.shrink)
    keep(args.out / "vae.safetensors", codec.state_dict())
    losses.write()
    measure(codec, device, losses, max(96 // args.shrink, 2))


if __name__ == "__main__":
    main()
