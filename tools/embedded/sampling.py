"""A first look at what the towers have learned, in the leg itself: many prompts at once, Euler steps, the inverse.

What counts is `evaluate`, which goes through the engine.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cosmos3_core.evidence.embedded.inverse import judge, onsets, see, turn
from cosmos3_core.evidence.embedded.world import PASSIVE, make
from cosmos3_core.sampling.schedule import schedule_of

from .bank import padded
from .codecs import SoundCodec, VideoCodec
from .leg import Losses
from .text import ids_of
from .towers import Sample, Towers
from .train_vae import save_pictures

STEPS, SHIFT = 20, 3.0
GUIDANCE = (1.0, 2.0)
TEXT, SOUNDS = 96, 56


@torch.inference_mode()
def sampled(towers: Towers, begin: Sample, guidance: float, null: tuple[Tensor, Tensor]) -> Sample:
    """The sample at noise level 0."""
    schedule = schedule_of("native", STEPS, SHIFT, {}, "the leg")
    prompts, dropped = towers.read(begin.ids), towers.read(null[0])
    s, n = begin, len(begin.ids)
    for timestep, now, then in zip(schedule.timesteps, schedule.sigmas[:-1], schedule.sigmas[1:], strict=True):
        s = replace(s, t=torch.full((n,), timestep / 1000, device=begin.ids.device))
        v = towers.forward(s, prompts)
        if guidance != 1:
            u = towers.forward(replace(s, ids=null[0], text=null[1]), dropped)
            v = {name: u[name] + guidance * (v[name] - u[name]) for name in v}
        step = float(then - now)
        moved = s.vision + step * v["vision"].float()
        s = replace(s, vision=torch.where(s.vision_clean[:, None, :, None, None], s.vision, moved))
        if s.sound is not None:
            s = replace(s, sound=s.sound + step * v["sound"].float())
    return s


@torch.inference_mode()
def measure(
    towers: Towers,
    video: VideoCodec,
    sound: SoundCodec,
    statistics: tuple[Tensor, Tensor],
    prompts: int,
    losses: Losses,
) -> None:
    """Clips with sound from held-out prompts, at several guidances."""
    device = statistics[0].device
    scenes = make(90_003, prompts, 17, dict.fromkeys(PASSIVE, 1.0))
    pairs = ids_of(scenes, 90_003)
    (ids, length), null = (tuple(x.to(device) for x in padded([p[i] for p in pairs], TEXT)) for i in range(2))
    fps = torch.as_tensor(scenes.fps, dtype=torch.float32, device=device)
    counts = torch.as_tensor(-(-(17 * 48000 // scenes.fps) // sound.hop), device=device).long()
    stream = torch.Generator().manual_seed(0)
    vision = torch.randn(prompts, 48, 5, 8, 8, generator=stream).to(device)
    wave = torch.randn(prompts, SOUNDS, towers.c.sound_dim, generator=stream).to(device)
    clean = torch.zeros(prompts, 5, dtype=torch.bool, device=device)
    begin = Sample(ids, length, fps, fps, vision, clean, wave, counts)
    for guidance in GUIDANCE:
        s = sampled(towers, begin, guidance, null)
        z = s.vision * statistics[1].view(1, -1, 1, 1, 1) + statistics[0].view(1, -1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu"):
            y = torch.cat([video.decode(part).float().clamp(-1, 1) for part in z.split(16)])
        seen = [see((clip + 1) / 2) for clip in y]
        verdicts = [judge(one, scenes, row) for row, one in enumerate(seen)]
        right = {name: _share([getattr(v, name) for v in verdicts]) for name in vars(verdicts[0])}
        by_kind = {
            k: _share(
                [v.colour and v.shape and v.count for v, kind in zip(verdicts, scenes.kind, strict=True) if kind == k]
            )
            for k in PASSIVE
        }
        near = []
        for row in np.flatnonzero(np.isin(scenes.kind, ("bounce", "collide"))):
            heard = onsets(sound.decode(s.sound[row : row + 1, : int(counts[row])].transpose(1, 2))[0].cpu().numpy())
            path = seen[row].path.get(int(scenes.colour[row, scenes.subject[row]]))
            turned = None if path is None else turn(path)
            near.append(bool(heard) and turned is not None and abs(heard[0] * scenes.fps[row] - turned) <= 2)
        losses.measured(
            **{f"guidance_{guidance:g}": right | {"by_kind": by_kind, "sound_within_2_frames": _share(near)}}
        )
        if guidance == GUIDANCE[0]:
            save_pictures(y[:12], losses.file.with_suffix(".png"))


def _share(values: list) -> float:
    known = [bool(v) for v in values if v is not None]
    return round(float(np.mean(known)), 4) if known else float("nan")
