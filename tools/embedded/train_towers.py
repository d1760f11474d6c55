"""Train both towers on latents of the trained codecs: flow matching, all tasks mixed in every step.

    python -m tools.embedded.train_towers --seconds 400 --codecs FOLDER --out FOLDER [--from FOLDER]

Leaves towers.safetensors (bf16), towers.json and towers.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cosmos3_core.model.config import TransformerConfig

from .bank import MIX, Bank, Group, all_ids, fill
from .codecs import SoundCodec, VideoCodec
from .leg import Clock, Losses, beside, keep, kept, rate, recorded
from .sampling import measure
from .text import REPOSITORY
from .towers import Flat, Sample, Towers, drawn, merged
from .train_sound import config as sound_config
from .train_vae import channels_last
from .train_vae import config as vae_config

PEAK, WARM_UP, DECAY, BETAS, EPSILON = 1.2e-3, 400, 0.01, (0.9, 0.98), 1e-8
LATER_PEAK = 6e-4
"""Of a leg that goes on from another."""
AVERAGE = 0.999
"""Of the weights over steps; what is kept is the average."""
SHIFT = 3.0
"""Of the noise levels: the training shift of the smallest resolution (docs/model.md, section 4.5)."""
DROPPED, SOUNDING = 0.1, 0.5
"""Shares of samples without their prompt, for guidance, and with their sound."""
WEIGHTS = {"vision": 1.0, "sound": 0.5, "action": 1.0}
ACTION_CHANNELS = 2


def config() -> TransformerConfig:
    file = REPOSITORY / "transformer" / "config.json"
    return TransformerConfig.from_json(json.loads(file.read_text()), str(file))


def clean_frames(group: Group, n: int, frames: int, device: str) -> tuple[Tensor, Tensor | None]:
    """(which latent frames are given [n, T], which actions are [n, A]) of each sample's task, drawn.

    Of clips half are made from text, a quarter goes on from a picture and a quarter from a clip. With actions a third
    each is forward dynamics (all actions given), a policy and inverse dynamics (all frames given).
    """
    at, u = torch.arange(frames, device=device)[None], torch.rand(n, 1, device=device)
    if group.acts:
        vision = (at == 0) | (u >= 2 / 3)
        return vision, (u < 1 / 3).expand(-1, group.frames - 1)
    if frames == 1:
        return torch.zeros(n, 1, dtype=torch.bool, device=device), None
    return (at < 1) & (u > 0.5) | (at < 2) & (u > 0.75), None


def noisy(x: Tensor, t: Tensor, clean: Tensor | None, frame_axis: int) -> tuple[Tensor, Tensor]:
    """(x at noise level t, its velocity). Clean frames stay."""
    noise, level = torch.randn_like(x), t.view(-1, *[1] * (x.ndim - 1))
    mixed = torch.lerp(x, noise, level)
    if clean is not None:
        shape = [len(x)] + [clean.shape[1] if axis == frame_axis else 1 for axis in range(1, x.ndim)]
        mixed = torch.where(clean.view(shape), x, mixed)
    return mixed, noise - x


def mean_over(error: Tensor, counts: Tensor) -> Tensor:
    """The mean of error [n, tokens] over the tokens that count."""
    return (error * counts).sum() / counts.sum().clamp_min(1)


def losses_of(towers: Towers, group: Group, bank: Bank) -> dict[str, Tensor]:
    """Of a batch that is drawn here: mean squared error of the velocity by modality."""
    device, n = bank.ids.device.type, group.batch
    row = torch.randint(len(bank.ids), (n,), device=device)
    dropped = torch.rand(n, device=device) < DROPPED
    ids = torch.where(dropped[:, None], bank.null_ids[row], bank.ids[row])
    length = torch.where(dropped, bank.null_length[row], bank.length[row])
    u = torch.randn(n, device=device).sigmoid()
    t = SHIFT * u / (1 + (SHIFT - 1) * u)
    vision = bank.vision[row].float()
    clean, given = clean_frames(group, n, vision.shape[2], device)
    x, velocity = noisy(vision, t, clean, 2)
    sample = Sample(ids, length, bank.fps[row], t, x, clean)
    wanted, counts = {"vision": velocity}, {"vision": ~clean}
    if bank.sound is not None and bank.sounds is not None:
        s, wanted["sound"] = noisy(bank.sound[row].float(), t, None, 1)
        sounds = bank.sounds[row] * (torch.rand(n, device=device) < SOUNDING)
        sample = replace(sample, sound=s, sounds=sounds)
        counts["sound"] = torch.arange(s.shape[1], device=device)[None] < sounds[:, None]
    if bank.action is not None and given is not None:
        action = bank.action[row]
        a, wanted["action"] = noisy(action, t, given, 1)
        used = torch.arange(action.shape[2], device=device) < ACTION_CHANNELS
        sample = replace(sample, action=a * used, action_clean=given)
        counts["action"] = ~given
    out = towers.forward(sample)
    errors = {
        "vision": lambda e: e.mean((1, 3, 4)),
        "sound": lambda e: e.mean(2),
        "action": lambda e: e[..., :ACTION_CHANNELS].mean(2),
    }
    return {m: mean_over(errors[m]((out[m].float() - wanted[m]).square()), counts[m]) for m in wanted}


class Optimizer:
    """AdamW on a flat vector, and the running average of the weights. Everything stays on the device, so that a step
    can be recorded and replayed."""

    def __init__(self, flat: Flat):
        self.flat, self.average = flat, flat.master.clone()
        self.first, self.second = torch.zeros_like(flat.master), torch.zeros_like(flat.master)
        self.count, self.rate = (torch.zeros((), device=flat.master.device) for _ in range(2))

    def step(self) -> None:
        flat = self.flat
        grad = flat.grad.float()
        norm = grad.norm()
        grad = torch.nan_to_num(grad) * torch.where(norm.isfinite(), 1 / norm.clamp_min(1.0), 0.0)
        self.count += 1
        self.first.lerp_(grad, 1 - BETAS[0])
        self.second.lerp_(grad.square(), 1 - BETAS[1])
        first = self.first / (1 - BETAS[0] ** self.count)
        second = self.second / (1 - BETAS[1] ** self.count)
        flat.master -= self.rate * (first / (second.sqrt() + EPSILON) + DECAY * flat.decays * flat.master)
        self.average.lerp_(
            flat.master, torch.minimum(1 / (1 + self.count), torch.ones_like(self.count)).clamp_min(1 - AVERAGE)
        )
        flat.copy.copy_(flat.master)


def step_of(towers: Towers, flat: Flat, optimizer: Optimizer, banks: list[tuple[Group, Bank]]) -> dict[str, Tensor]:
    """One step on every group; the losses, by group and modality."""
    flat.grad.zero_()
    said, total = {}, torch.zeros((), device=flat.master.device)
    every = beside([partial(losses_of, towers, group, bank) for group, bank in banks])
    for (group, _), losses in zip(banks, every, strict=True):
        said |= {f"{group.name}.{modality}": loss.detach() for modality, loss in losses.items()}
        total = total + sum(WEIGHTS[modality] * loss for modality, loss in losses.items()) * (group.batch / 128) ** 0.5
    total.backward()
    optimizer.step()
    return said


def train(
    flat: Flat, banks: list[tuple[Group, Bank]], peak: float, seconds: float, losses: Losses, file: Path
) -> Tensor:
    """The leg itself; the averaged weights. They are in `file` now and then: a leg may be stopped at any time."""
    towers, optimizer = Towers(flat.config, flat.leaves, fused=flat.master.is_cuda), Optimizer(flat)
    run = recorded(lambda: step_of(towers, flat, optimizer, banks))
    clock = Clock(seconds)
    for step in clock.steps():
        optimizer.rate.fill_(rate(peak, step, WARM_UP, clock.share))
        said = run()
        if step % 500 == 0:
            losses.add(step=step, seconds=clock.passed, **said)
            losses.write()
        if step % 2500 == 0:
            keep(file, flat.named(optimizer.average), torch.bfloat16)
    keep(file, flat.named(optimizer.average), torch.bfloat16)
    losses.measured(steps=step + 1, steps_a_second=(step + 1) / clock.passed)
    return optimizer.average


def codecs_of(folder: Path, device: str) -> tuple[VideoCodec, SoundCodec, tuple[Tensor, Tensor]]:
    """The trained codecs and the statistics of the video's latents."""
    video, sound = VideoCodec(**vae_config()), SoundCodec(sound_config())
    video.load_state_dict(kept(folder / "vae.safetensors"))
    sound.load_state_dict(kept(folder / "sound.safetensors"))
    said = json.loads((folder / "vae.json").read_text())
    mean, std = (torch.tensor(said[name], device=device) for name in ("latents_mean", "latents_std"))
    return channels_last(video.to(device)).eval(), sound.to(device).eval(), (mean, std)


def shrunk(mix: tuple[Group, ...], factor: int) -> tuple[Group, ...]:
    return tuple(replace(g, scenes=max(g.scenes // factor, 4), batch=max(g.batch // factor, 2)) for g in mix)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument(
        "--codecs", type=Path, required=True, help="the folder of vae.safetensors and sound.safetensors"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="begin", type=Path, help="a folder with towers.safetensors to go on from")
    parser.add_argument("--scenes", type=float, default=1.0, help="as a share of MIX's")
    parser.add_argument("--shrink", type=int, default=1, help="divide batches and scenes, for a rehearsal")
    parser.add_argument("--seed", type=int, default=10, help="of the scenes: another one for each leg")
    parser.add_argument("--prompts", type=int, default=64, help="held-out prompts to measure on")
    args = parser.parse_args(arguments)
    mix = tuple(replace(g, scenes=max(int(g.scenes * args.scenes), 64)) for g in MIX)
    mix = shrunk(mix, args.shrink) if args.shrink > 1 else mix
    began = time.perf_counter()
    ids = all_ids(mix, args.seed)
    peak = LATER_PEAK if args.begin else PEAK
    losses = Losses(
        args.out / "towers.json", seconds=args.seconds, peak=peak, shift=SHIFT, seed=args.seed, scenes=args.scenes
    )
    losses.measured(seconds_for_ids=time.perf_counter() - began)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(args.seed)
    video, sound, statistics = codecs_of(args.codecs, device)
    c = config()
    banks = []
    for n, (group, of_it) in enumerate(zip(mix, ids, strict=True)):
        banks.append((group, fill(group, args.seed + n, of_it, (video, sound), statistics, c.action_dim)))
        losses.measured(**{f"seconds_until_{group.name}": time.perf_counter() - began})
    begin = kept(args.begin / "towers.safetensors") if args.begin else drawn(c, 0)
    flat = Flat.of(c, begin, device, torch.bfloat16 if device == "cuda" else torch.float32)
    average = train(flat, banks, peak, args.seconds, losses, args.out / "towers.safetensors")
    measure(
        Towers(c, merged(c, average.to(flat.copy.dtype))),
        video,
        sound,
        statistics,
        max(args.prompts // args.shrink, 1),
        losses,
    )


if __name__ == "__main__":
    main()
