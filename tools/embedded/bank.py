"""Clips as latents and captions as ids, made once and drawn from by every step of the towers' training."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.evidence.embedded.render import draw, play, samples_of
from cosmos3_core.evidence.embedded.world import ACTIVE, PASSIVE, SIZE, Scenes, make

from .codecs import SoundCodec, VideoCodec
from .text import CANVAS, ids_of

PIECE = 500
"""Scenes that one process makes ids of at a time."""


@dataclass(frozen=True)
class Group:
    """One kind of sample: scenes of so many frames, their kinds, whether they sound or have actions, how many of their
    captions are JSON, how many tokens a prompt is filled up to, and how many samples a step takes of them."""

    name: str
    frames: int
    kinds: tuple[str, ...]
    text: int
    batch: int
    scenes: int
    sounds: int = 0
    structured: float = 0.0
    acts: bool = False


MIX = (
    Group("pictures", 1, ("still", "pair"), text=72, batch=48, scenes=16000, structured=0.2),
    Group("clips", 17, PASSIVE, text=64, batch=128, scenes=32000, sounds=56),
    Group("captioned", 17, PASSIVE, text=96, batch=24, scenes=8000, sounds=56, structured=1.0),
    Group("long", 33, PASSIVE, text=64, batch=48, scenes=10000, sounds=56),
    Group("actions", 17, ACTIVE, text=104, batch=72, scenes=12000, acts=True),
)


SHARES = {"pair": 0.6, "move": 0.6, "bounce": 0.8, "group": 1.3, "pass": 1.8, "collide": 3.0}
"""Of kinds of scenes that are learned sooner than others, or later; the others have 1."""


def share_of_kinds(kinds: tuple[str, ...]) -> dict[str, float]:
    return {kind: SHARES.get(kind, 1.0) for kind in kinds}


def scenes_of(group: Group, seed: int, count: int) -> Scenes:
    return make(seed, count, group.frames, share_of_kinds(group.kinds))


@dataclass
class Bank:
    """The samples of one group, on the device: ids [N, P] and how many of them count, of prompts and of what stands for
    dropped ones; latents; rates. Latents are normalised."""

    ids: Tensor
    length: Tensor
    null_ids: Tensor
    null_length: Tensor
    fps: Tensor
    vision: Tensor
    sound: Tensor | None
    sounds: Tensor | None
    action: Tensor | None


def _ids_piece(group: Group, seed: int, count: int, piece: int) -> list[tuple[list[int], list[int]]]:
    torch.set_num_threads(1)
    rows = slice(piece * PIECE, (piece + 1) * PIECE)
    return ids_of(scenes_of(group, seed, count).take(rows), 1000 * seed + piece, group.structured)


def all_ids(mix: tuple[Group, ...], seed: int) -> list[list[tuple[list[int], list[int]]]]:
    """Of each group's scenes, by as many processes as there are processors. To be called before the device is."""
    workers = max((os.cpu_count() or 2) - 1, 1)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [
            [pool.submit(_ids_piece, g, seed + n, g.scenes, piece) for piece in range(-(-g.scenes // PIECE))]
            for n, g in enumerate(mix)
        ]
        return [[pair for job in of_group for pair in job.result()] for of_group in jobs]


def padded(ids: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """(int64 [N, width], how many count). A longer text is cut to its end, where it says what to make."""
    cut = [one[-width:] for one in ids]
    out = torch.zeros(len(cut), width, dtype=torch.int64)
    for row, one in enumerate(cut):
        out[row, : len(one)] = torch.tensor(one)
    return out, torch.tensor([len(one) for one in cut])


@torch.inference_mode()
def vision_latents(codec: VideoCodec, scenes: Scenes, mean: Tensor, std: Tensor, *, canvas: bool, clips: int) -> Tensor:
    """bf16 [N, C, T, h, w], normalised. With `canvas` as the engine encodes an action's picture: filled up to the right
    and below by its edge, and cut to itself as latents."""
    device, clips = mean.device.type, min(clips, len(scenes))
    out: Tensor | None = None
    # The last piece reaches back to be as long as the others: each new length costs a search for its fastest kernels.
    for start in [*range(0, len(scenes) - clips, clips), len(scenes) - clips]:
        x = draw(scenes.take(slice(start, start + clips)), device)
        if canvas:
            x = F.pad(x, (0, CANVAS - SIZE, 0, CANVAS - SIZE, 0, 0), mode="replicate")
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            z, _ = codec.encode(x.contiguous(memory_format=torch.channels_last_3d))
        z = z[..., : SIZE // 16, : SIZE // 16].float()
        z = ((z - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)).bfloat16()
        out = z.new_empty(len(scenes), *z.shape[1:]) if out is None else out
        out[start : start + clips] = z
    assert out is not None
    return out


@torch.inference_mode()
def sound_latents(codec: SoundCodec, scenes: Scenes, width: int, device: str) -> tuple[Tensor, Tensor]:
    """(bf16 [N, width, C], how many latents each has). Each clip's sound has its own length."""
    counts = np.array([-(-samples_of(scenes.frames, float(fps)) // codec.hop) for fps in scenes.fps])
    out: Tensor | None = None
    for count in np.unique(counts):
        for rows in np.array_split(np.flatnonzero(counts == count), -(-int((counts == count).sum()) // 256)):
            wave = play(scenes.take(rows), int(count) * codec.hop, device)
            for n, row in enumerate(rows):  # nothing sounds after the clip's end, within the last latent
                wave[n, :, samples_of(scenes.frames, float(scenes.fps[row])) :] = 0
            z = codec.encode(wave)[0].transpose(1, 2).bfloat16()
            if out is None:
                out = torch.zeros(len(scenes), width, z.shape[2], dtype=torch.bfloat16, device=device)
            out[torch.as_tensor(rows, device=device), : int(count)] = z
    assert out is not None
    return out, torch.as_tensor(counts, device=device)


def fill(
    group: Group,
    seed: int,
    ids: list[tuple[list[int], list[int]]],
    codecs: tuple[VideoCodec, SoundCodec],
    statistics: tuple[Tensor, Tensor],
    action_dim: int,
) -> Bank:
    """Encode a group's scenes."""
    scenes, device = scenes_of(group, seed, group.scenes), statistics[0].device.type
    clips = max(64 * 17 // group.frames // (4 if group.acts else 1), 1)
    vision = vision_latents(codecs[0], scenes, *statistics, canvas=group.acts, clips=clips)
    sound = sounds = action = None
    if group.sounds:
        sound, sounds = sound_latents(codecs[1], scenes, group.sounds, device)
    if group.acts:
        action = torch.zeros(len(scenes), group.frames - 1, action_dim, device=device)
        action[..., :2] = torch.as_tensor(scenes.actions, dtype=torch.float32, device=device)
    texts = [padded([pair[i] for pair in ids], group.text) for i in range(2)]
    (a, b), (c, d) = ((x.to(device), y.to(device)) for x, y in texts)
    fps = torch.as_tensor(scenes.fps, dtype=torch.float32, device=device)
    return Bank(a, b, c, d, fps, vision, sound, sounds, action)
