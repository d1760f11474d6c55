"""What a request brings, read and checked on the host before any weight is: prompts, a picture or clip, noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.model import Model
from ..contract import InputError
from ..files.digests import sha256_file
from ..files.frames import Reading
from ..files.images import read_image
from ..files.memory import Media, check_same
from ..files.video import read_video
from ..model.config import TEMPORAL_COMPRESSION
from ..model.packing import Item
from ..model.text import ChatTokenizer, system_prompt_of
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.families import INPUTS, TASKS
from ..scenarios.faults import about
from ..scenarios.items import items_of
from ..scenarios.prompts import negative_text, positive_text
from ..scenarios.request import Request
from .actions import Actions, read_actions
from .control_clips import read_controls
from .fitting import fitted, fitting_notes

Following = Callable[[int, Tensor, Mapping[str, Tensor]], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Inputs:
    """What a request brings: its prompts as token ids, what is `given` for each item of `items_of` (vision: a picture
    or clip, fp32 [3, F, H, W] in [-1, 1]; None where everything is noise, and empty where all items are), the initial
    noise per item (fp32, or None: drawn from the seed), `notes`, sentences a user should read, and `facts`, JSON by
    field: what was found in the file of the input, what was assumed of it and what was changed. `in_memory`: a program
    handed the picture or clip over, and no file has it. `following` returns what is given for the items of a later
    chunk: it takes the chunk's number, the frames that it begins with, fp32 [3, F, H, W] in [-1, 1], and the latents of
    the chunk before, by item. `actions` says
    what the request's actions are, if it has some."""

    prompt: list[int]
    negative: list[int]
    given: tuple[Tensor | None, ...] = ()
    noise: list[Tensor] | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    following: Following | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    actions: Actions | None = None


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
    for name in INPUTS:
        check_same(name, getattr(request, name), media)
    items = items_of(request.of_chunk(0), model.config)
    with about("noise"):
        checked = None if noise is None else _checked_noise(noise, [item for item in items if not item.control])
    prompt, negative, notes = _read_prompts(request.of_chunk(0), model, tokenizer)
    if request.controls:
        found = read_controls(request, media)
        return Inputs(
            prompt,
            negative,
            found.given,
            checked,
            (*notes, *found.notes),
            in_memory=media is not None,
            facts=found.facts,
            following=found.following,
        )
    name = "image" if request.image is not None else "video"
    with about(name):
        reading = _read_input(request, media)
    actions = read_actions(request, model) if request.domain else None
    if reading is None:
        return Inputs(prompt, negative, (), checked, notes)
    pixels, following = fitted(request, reading), None
    given: dict[str, Tensor | None] = {"vision": pixels}
    if actions:
        given |= {"vision": pixels[:, : request.conditioning_pixel_frames], "action": actions.first}
        following = actions.following(request, pixels) if request.chunks.count > 1 else None
        notes = (*notes, *actions.notes)
    return Inputs(
        prompt,
        negative,
        tuple(given.get(item.modality) for item in items),
        checked,
        (*notes, *fitting_notes(request, name, reading)),
        in_memory=media is not None,
        following=following,
        facts={name: reading.facts} | (dict(actions.facts) if actions else {}),
        actions=actions,
    )


def _checked_noise(noise: Sequence[Tensor], items: Sequence[Item]) -> list[Tensor]:
    if len(noise) != len(items) or not all(isinstance(tensor, Tensor) for tensor in noise):
        found = f"this request needs {len(items)}, for {', '.join(item.modality for item in items)}"
        raise InputError(f"initial noise as {len(noise)} latents", found, "Pass a list with a tensor for each")
    for tensor, item in zip(noise, items, strict=True):
        if tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
            found = f"it is {tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise InputError(f"initial {item.modality} noise", found, "Give real numbers, dense, on a device", "noise")
        if tuple(tensor.shape) != item.shape or not torch.isfinite(tensor).all():
            raise InputError(
                f"initial {item.modality} noise of shape {list(tensor.shape)}",
                f"this request needs finite values of shape {list(item.shape)}",
                "Save it from a request of the same size and length",
            )
    return [tensor.to(torch.float32, copy=True) for tensor in noise]  # the caller's may change afterwards


def _read_prompts(
    request: Request, model: Model, tokenizer: ChatTokenizer
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Token ids of the prompt and the negative prompt (none without guidance), and notes."""
    kind = TASKS[request.task].system or ("video" if request.is_video else "image")
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


def _read_input(request: Request, media: Media | None) -> Reading | None:
    """The picture or clip that the request starts from, with its digest."""
    count, keep = request.input_frames, request.condition_video_keep
    fps = request.fps if request.video_fps == "resample" else None
    if media is not None:
        reading = media.read(count, keep, fps)
    elif request.image is not None:
        reading = read_image(Path(request.image))
    elif request.video is not None:
        reading = read_video(Path(request.video), count, keep, fps)
    else:
        return None
    if (frames := len(reading.frames)) < count:
        at = f" at {request.fps:g} a second" if "resampled_to_fps" in reading.facts else ""
        raise InputError(
            f"`video` {request.video}",
            f"it has {frames} frames{at}, and {_covers(request)} {count}",
            f"Use a longer clip, or {_fewer(request, frames)}",
            "video",
        )
    digest = media.sha256 if media else sha256_file(Path(reading.facts["file"]))
    return replace(reading, facts=reading.facts | {"sha256": digest})


def _covers(request: Request) -> str:
    if TASKS[request.task].chooses_frames:
        return f"condition_frame_indexes {list(request.condition_frame_indexes)} cover"
    return f"task {request.task} takes"


def _fewer(request: Request, frames: int) -> str:
    """What a clip of so many frames would do for."""
    last = (frames - 1) // TEMPORAL_COMPRESSION
    if TASKS[request.task].chooses_frames:
        return f"condition_frame_indexes up to {last}"
    return f"frames {last * TEMPORAL_COMPRESSION + 1}" if last else "another task"
