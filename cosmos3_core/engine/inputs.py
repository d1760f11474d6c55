"""What a request brings, read and checked on the host before any weight is: prompts, a picture or clip, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.model import Model
from ..contract import InputError
from ..files.images import read_image
from ..files.video import read_video
from ..model.config import TEMPORAL_COMPRESSION
from ..model.packing import Item
from ..model.text import SYSTEM_PROMPTS, ChatTokenizer
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.conditioning import fit
from ..scenarios.items import items_of
from ..scenarios.prompts import negative_text, positive_text
from ..scenarios.request import Request


@dataclass(frozen=True)
class Inputs:
    """What a request brings: its prompts as token ids, its picture or clip as fp32 [3, F, H, W] in [-1, 1] or None, the
    initial noise per item (fp32, or None: drawn from the seed), and `notes`, sentences a user should read."""

    prompt: list[int]
    negative: list[int]
    pixels: Tensor | None
    noise: list[Tensor] | None = None
    notes: tuple[str, ...] = ()


def read_inputs(
    request: Request, model: Model, tokenizer: ChatTokenizer, noise: Sequence[Tensor] | None = None
) -> Inputs:
    """Tokenize the prompts, read the picture or clip, check the `noise` that replaces the request's own (one tensor per
    item of `items_of`). Raises InputError for what is unusable."""
    checked = None if noise is None else _checked_noise(noise, items_of(request, model.config))
    prompt, negative, notes = _read_prompts(request, model, tokenizer)
    return Inputs(prompt, negative, _read_pixels(request), checked, notes)


def _checked_noise(noise: Sequence[Tensor], items: tuple[Item, ...]) -> list[Tensor]:
    if len(noise) != len(items) or not all(isinstance(tensor, Tensor) for tensor in noise):
        found = f"this request needs {len(items)}, for {', '.join(item.modality for item in items)}"
        raise InputError(f"initial noise as {len(noise)} latents", found, "Pass a list with a tensor for each")
    for tensor, item in zip(noise, items, strict=True):
        if tuple(tensor.shape) != item.shape or not torch.isfinite(tensor).all():
            raise InputError(
                f"initial {item.modality} noise of shape {list(tensor.shape)}",
                f"this request needs finite values of shape {list(item.shape)}",
                "Save it from a request of the same size and length",
            )
    return [tensor.float() for tensor in noise]


def _read_prompts(
    request: Request, model: Model, tokenizer: ChatTokenizer
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Token ids of the prompt and the negative prompt (none without guidance), and notes."""
    kind = "video" if request.is_video else "image"
    system, notes = SYSTEM_PROMPTS[kind] if request.system_prompt else None, []
    written = {PROMPT: positive_text, NEGATIVE: negative_text}
    texts = {branch: written[branch](request) for branch in branches_of(request.guidance)}
    ids = {name: tokenizer.encode(text, system) for name, text in texts.items()}
    for name, whole in ids.items() if request.max_text_tokens else ():
        ids[name] = tokenizer.encode(texts[name], system, request.max_text_tokens)
        if len(ids[name]) < len(whole):
            notes.append(f"the {name} was cut from {len(whole) - 2} to {request.max_text_tokens} tokens")
    prompt, negative = ids[PROMPT], ids.get(NEGATIVE, [])
    longest, vocabulary = max(prompt + negative), model.config.vocab_size
    if longest >= vocabulary:
        raise InputError(
            f"`model` {model.name}",
            f"its tokenizer makes token {longest} and its vocabulary ends at {vocabulary - 1}",
            "text_tokenizer and transformer belong to different models; get both from one repository",
        )
    return prompt, negative, tuple(notes)


def _read_pixels(request: Request) -> Tensor | None:
    count = request.conditioning_pixel_frames
    if request.image is not None:
        frames = read_image(Path(request.image))[None]
    elif request.video is not None:
        frames, _ = read_video(Path(request.video), count, request.condition_video_keep)
        if len(frames) < count:
            raise InputError(
                f"`video` {request.video}",
                f"it has {len(frames)} frames, and condition_frame_indexes {list(request.condition_frame_indexes)} "
                f"cover {count}",
                f"Use a longer clip, or condition_frame_indexes up to {(len(frames) - 1) // TEMPORAL_COMPRESSION}",
            )
    else:
        return None
    return fit(
        torch.from_numpy(frames),
        request.width,
        request.height,
        image_filter=request.image_filter,
        stretch=request.video is not None and request.video_fit == "stretch",
    )
