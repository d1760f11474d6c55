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
from ..files.memory import Media, check_same
from ..files.video import read_video
from ..model.config import TEMPORAL_COMPRESSION
from ..model.packing import Item
from ..model.text import ChatTokenizer, system_prompt_of
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.conditioning import fit
from ..scenarios.families import INPUTS
from ..scenarios.items import items_of
from ..scenarios.prompts import negative_text, positive_text
from ..scenarios.request import Request


@dataclass(frozen=True)
class Inputs:
    """What a request brings: its prompts as token ids, its picture or clip as fp32 [3, F, H, W] in [-1, 1] or None, the
    initial noise per item (fp32, or None: drawn from the seed), and `notes`, sentences a user should read. `in_memory`:
    a program handed the picture or clip over, and no file has it."""

    prompt: list[int]
    negative: list[int]
    pixels: Tensor | None
    noise: list[Tensor] | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False


def read_inputs(
    request: Request,
    model: Model,
    tokenizer: ChatTokenizer,
    noise: Sequence[Tensor] | None = None,
    media: Media | None = None,
) -> Inputs:
    """Tokenize the prompts, read the picture or clip, check the `noise` that replaces the request's own (one tensor per
    item of `items_of`). `media` is the picture or clip where a program hands it over; the request's field then says
    `media.said`. Raises InputError for what is unusable."""
    for field in INPUTS:
        check_same(field, getattr(request, field), media)
    checked = None if noise is None else _checked_noise(noise, items_of(request, model.config))
    prompt, negative, notes = _read_prompts(request, model, tokenizer)
    return Inputs(prompt, negative, _read_pixels(request, media), checked, notes, media is not None)


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
    system, notes = system_prompt_of(kind, request.system_prompt_text) if request.system_prompt else None, []
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


def _read_pixels(request: Request, media: Media | None) -> Tensor | None:
    count, keep = request.conditioning_pixel_frames, request.condition_video_keep
    if media is not None:
        frames = media.read(count, keep)
    elif request.image is not None:
        frames = read_image(Path(request.image))[None]
    elif request.video is not None:
        frames, _ = read_video(Path(request.video), count, keep)
    else:
        return None
    if len(frames) < count:
        raise InputError(
            f"`video` {request.video}",
            f"it has {len(frames)} frames, and condition_frame_indexes {list(request.condition_frame_indexes)} "
            f"cover {count}",
            f"Use a longer clip, or condition_frame_indexes up to {(len(frames) - 1) // TEMPORAL_COMPRESSION}",
            "video",
        )
    return fit(
        torch.from_numpy(frames),
        request.width,
        request.height,
        image_filter=request.image_filter,
        stretch=request.video is not None and request.video_fit == "stretch",
    )
