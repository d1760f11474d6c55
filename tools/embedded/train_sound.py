"""Train the sound codec on the tones of impacts.

    python -m tools.embedded.train_sound --seconds 60 --out FOLDER

Leaves sound.safetensors, whose latents have a deviation of one, and sound.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cosmos3_core.evidence.embedded.inverse import onsets
from cosmos3_core.evidence.embedded.render import play
from cosmos3_core.evidence.embedded.world import Scenes, make

from .codecs import SoundCodec
from .leg import Clock, Descent, Losses, keep, kept, rate, recorded
from .text import REPOSITORY

SOUNDING = {"bounce": 1.0, "dribble": 1.0, "collide": 1.0, "move": 0.1}
SECONDS, CLIPS, PIECE, HOP = 1.4, 48, 16, 1920
"""Of a waveform, in a batch, latents of what a step sees of one, and samples of a latent."""
PEAK, WARM_UP = 1.5e-3, 200
DIVERGENCE = 1e-3
QUIET = 0.3
"""The share of the time at first in which the posterior's noise grows from none to all of it: beside noise of its full
size an encoder that knows nothing is not heard, and the decoder falls silent for good."""
WINDOWS = (512, 2048, 8192)
"""Samples of the spectra that are compared, beside the waveforms."""


def config() -> dict:
    return json.loads((REPOSITORY / "sound_tokenizer" / "config.json").read_text())


def pool_of(seed: int, count: int, device: str) -> Tensor:
    """Waveforms [count, 2, N], each with its first impact between 0.1 and 0.5 seconds."""
    scenes, stream, pieces = make(seed, count, 17, SOUNDING), np.random.default_rng(seed), []
    first = np.nanmin(np.where(np.isnan(scenes.events), 1e3, scenes.events), axis=1)
    shift = np.where(first < 1e3, first - stream.uniform(0.1, 0.5, count), 0)
    moved = Scenes(**(vars(scenes) | {"events": scenes.events - shift[:, None]}))
    for start in range(0, count, 200):
        pieces.append(play(moved.take(slice(start, start + 200)), int(SECONDS * 25) * HOP, device))
    return torch.cat(pieces)


def spectra(wave: Tensor) -> list[Tensor]:
    flat = wave.flatten(0, 1)
    return [
        torch.stft(flat, n, n // 4, window=torch.hann_window(n, device=wave.device), return_complex=True).abs()
        for n in WINDOWS
    ]


def lost(y: Tensor, x: Tensor) -> Tensor:
    """The share of a batch's energy that is missing."""
    return (y - x).square().sum() / (x.square().sum() + 1e-3)


def loss_of(codec: SoundCodec, wave: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(what is trained on, the share of the waveforms' energy that is lost). `noise` is the share of the posterior's.

    Errors are shares of what the batch is to sound like: of a piece that is silent, which many are, a share of its own
    is without bounds, and what is trained on it falls silent.
    """
    mean, deviation = codec.encode(wave)
    y = codec.decode(mean + noise * deviation * torch.randn_like(mean))
    heard, missing = sum(lost(a, b).sqrt() for a, b in zip(spectra(y), spectra(wave), strict=True)), lost(y, wave)
    divergence = (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
    return missing + 0.3 * heard + DIVERGENCE * divergence, missing


def train(codec: SoundCodec, seconds: float, device: str, losses: Losses, shrink: int = 1) -> None:
    pool, clips, length = pool_of(2, max(3000 // shrink, 8), device), max(CLIPS // shrink, 2), PIECE * HOP
    descent, noise = Descent(codec, (0.8, 0.99), 0.0), torch.zeros((), device=device)

    def once() -> dict[str, Tensor]:
        row = torch.randint(len(pool), (clips, 1, 1), device=device)
        first = torch.randint(pool.shape[2] - length + 1, (clips, 1, 1), device=device)
        early = torch.randint(HOP, (clips, 1, 1), device=device)
        first = torch.where(torch.rand(clips, 1, 1, device=device) < 0.7, early, first)  # most with a first impact
        at = first + torch.arange(length, device=device)
        loss, missing = loss_of(codec, pool[row, torch.arange(2, device=device).view(1, 2, 1), at], noise)
        descent.step(loss)
        return {"loss": loss.detach(), "lost": missing.detach()}

    run, clock = recorded(once), Clock(seconds)
    for step in clock.steps():
        descent.rate.fill_(rate(PEAK, step, WARM_UP, clock.share))
        noise.fill_(min(clock.share / QUIET, 1.0))
        said = run()
        if step % 200 == 0:
            losses.add(step=step, seconds=clock.passed, loss=said["loss"], decibels=-10 * said["lost"].log10())


@torch.no_grad()
def scale(codec: SoundCodec, deviation: Tensor) -> None:
    """Fold the latents' deviation into the layers before and after them: there is no other place for it."""
    channels, last, first = len(deviation), codec.encoder.layers[-1], codec.decoder.conv1
    last.weight_g[:channels] /= deviation.view(-1, 1, 1)
    weight = first.weight_g * first.weight_v / first.weight_v.norm(dim=(1, 2), keepdim=True)
    first.weight_v.copy_(weight * deviation.view(1, -1, 1))
    first.weight_g.copy_(first.weight_v.norm(dim=(1, 2), keepdim=True))


@torch.inference_mode()
def measure(codec: SoundCodec, device: str, losses: Losses, count: int = 64) -> None:
    held = make(90_002, count, 17, dict.fromkeys(("bounce", "dribble", "collide"), 1.0))
    wave = play(held, int(SECONDS * 25) * codec.hop, device)
    mean, _ = codec.encode(wave)
    y = codec.decode(mean).clamp(-1, 1)
    found = [(onsets(a.cpu().numpy()), onsets(b.cpu().numpy())) for a, b in zip(wave, y, strict=True)]
    same = [len(a) == len(b) and all(abs(s - t) < 0.04 for s, t in zip(a, b, strict=True)) for a, b in found]
    missing = (y - wave).square().sum((1, 2)) / wave.square().sum((1, 2))
    losses.measured(
        decibels=(-10 * missing.log10()).mean().item(),
        onsets_within_40_ms=float(np.mean(same)),
        latents_mean=mean.mean((0, 2)).tolist(),
        latents_std=mean.std((0, 2)).tolist(),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="begin", type=Path, help="a folder with sound.safetensors to go on from")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and scenes, for a rehearsal")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(args.seed)
    codec = SoundCodec(config()).to(device)
    if args.begin:
        codec.load_state_dict(kept(args.begin / "sound.safetensors"))
    losses = Losses(args.out / "sound.json", seconds=args.seconds, peak=PEAK, clips=CLIPS, seed=args.seed)
    train(codec, args.seconds, device, losses, args.shrink)
    with torch.inference_mode():
        wave = play(make(3, max(256 // args.shrink, 8), 17, SOUNDING), int(SECONDS * 25) * codec.hop, device)
        deviation = codec.encode(wave)[0].std((0, 2)).clone()
    scale(codec, deviation)
    keep(args.out / "sound.safetensors", codec.state_dict())
    losses.write()
    measure(codec, device, losses, max(64 // args.shrink, 4))


if __name__ == "__main__":
    main()
