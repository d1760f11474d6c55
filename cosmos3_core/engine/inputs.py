"""What a request brings, read and checked on the host before any weight is: prompts, a picture or clip, noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model import Model
from ..contract import InputError
from ..files.audio import read_sound
from ..files.digests import sha256_file
from ..files.frames import Reading
from ..files.images import read_image
from ..files.memory import Media, check_same
from ..files.video import play_video, read_video
from ..model.config import TEMPORAL_COMPRESSION
from ..model.packing import Item
from ..model.text import ChatTokenizer, system_prompt_of
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.families import MEDIA, TASKS
from ..scenarios.faults import about
from ..scenarios.items import items_of
from ..scenarios.keyframes import held
from ..scenarios.prompts import negative_text, positive_text
from ..scenarios.request import Request
from ..scenarios.sound import sound_size
from ..scenarios.transfer import hints_of
from .actions import Actions, read_actions
from .control_clips import read_controls
from .fitting import fitted, fitting_notes

Following = Callable[[int, Tensor, Mapping[str, Tensor]], tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Before:
    """`frames`, each uint8 [H, W, 3], that an output begins with. They stand in the place of the first `replaced`
    frames of what is generated, which show the same."""

    frames: Callable[[], Iterator[np.ndarray]]
    replaced: int


@dataclass(frozen=True)
class Inputs:
    """What a request brings: its prompts as token ids, what is `given` for each item of `items_of` (vision: a picture
    or clip, fp32 [3, F, H, W] in [-1, 1]; sound: a waveform, fp32 [2, N]; None where everything is noise, and empty
    where all items are), the initial noise per item (fp32, or None: drawn from the seed), `notes`, sentences a user
    should read, and `facts`, JSON by input, as `Request.sources` calls them: what was found in its file, what was
    assumed of it and what was changed. `before` is what the output has before what is generated; None for nothing.
    `following` returns what is given for the items of a later chunk: it takes the chunk's number, the frames that it
    begins with, fp32 [3, F, H, W] in [-1, 1], and the latents of the chunk before, by item. `actions` says what the
    request's actions are, if it has some. `beside` returns what an output has left of the frames of a chunk, by
    its number: uint8 [F, H, W, 3]; None for nothing."""

    prompt: list[int]
    negative: list[int]
    given: tuple[Tensor | None, ...] = ()
    noise: list[Tensor] | None = None
    notes: tuple[str, ...] = ()
    before: Before | None = None
    following: Following | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    actions: Actions | None = None
    beside: Callable[[int], Tensor] | None = None


def read_inputs(
    request: Request,
    model: Model,
    tokenizer: ChatTokenizer,
    noise: Sequence[Tensor] | None = None,
    media: Sequence[Media] = (),
) -> Inputs:
    """Tokenize the prompts, read the pictures or the clip, check the `noise` that replaces the request's own (one
    tensor per item of `items_of`). `media` are those that a program hands over; the request's fields then say
    `media.said`. Raises InputError for what is unusable."""
    named = {label: path for label, path in request.sources.items() if label.partition(".")[0] in MEDIA}
    chunk = request.of_chunk(0)
    handed = _handed(named, media)
    for label in named | handed:
        check_same(label, named.get(label), handed.get(label))
    items = items_of(chunk, model.config)
    with about("noise"):
        checked = None if noise is None else _checked_noise(noise, [item for item in items if not item.control])
    prompt, negative, notes = _read_prompts(chunk, model, tokenizer)
    if hints_of(vars(request)):
        found = read_controls(request, handed)
        notes = (*notes, *found.notes)
        controlled = Inputs(prompt, negative, found.given, checked, notes, following=found.following)
        return replace(controlled, facts=found.facts, beside=found.beside)
    readings = {}
    for label, path in named.items():
        with about(label.partition(".")[0]):
            readings[label] = _read_input(request, label, path, handed.get(label))
    given: dict[str, Tensor | None] = {}
    facts: dict[str, Any] = {label: reading.facts for label, reading in readings.items()}
    actions, following = read_actions(request, model) if request.domain else None, None
    if readings:
        with about(next(iter(named)).partition(".")[0]):
            given["vision"] = pixels = _vision(request, readings)
        if actions:
            given |= {"vision": pixels[:, : request.conditioning_pixel_frames], "action": actions.first}
            following = actions.following(request, pixels) if request.chunks.count > 1 else None
            notes, facts = (*notes, *actions.notes), facts | dict(actions.facts)
    if request.audio is not None:
        with about("audio"):
            given["sound"], facts["audio"] = _read_audio(request, model)
    of_media = (note for label, reading in readings.items() for note in fitting_notes(request, label, reading))
    return Inputs(
        prompt,
        negative,
        tuple(given.get(item.modality) if item.clean else None for item in items) if given else (),
        checked,
        (*notes, *dict.fromkeys(of_media)),
        before=_before(request, handed.get("extend")),
        following=following,
        actions=actions,
        facts=facts,
    )


def _handed(named: Mapping[str, str], media: Sequence[Media]) -> dict[str, Media]:
    """What was handed over for each file that the request names: what it says, else what is of its name."""
    said = {one.said: one for one in media}
    found = {label: said[path] for label, path in named.items() if path in said}
    return {one.field: one for one in media if one not in found.values()} | found


def _read_audio(request: Request, model: Model) -> tuple[Tensor, dict[str, Any]]:
    """The sound that the video is made for, as long as it is, and what was found in its file."""
    size = sound_size(request, model.config.sound)
    assert size is not None and request.audio is not None, "a field that would change nothing is refused"
    sound, facts = read_sound(Path(request.audio), size.rate, size.samples)
    if sound.length < size.samples:
        lasts = sound.length / size.rate
        frames = max(int(lasts * request.fps) - 1, 0) // TEMPORAL_COMPRESSION * TEMPORAL_COMPRESSION + 1
        wanted = f"{request.frames} frames at {request.fps:g} a second {size.samples / size.rate:.3g}"
        next_step = f"Use a longer one, or `frames` {frames}" if frames > 1 else "Use a longer one"
        raise InputError(f"`audio` {request.audio}", f"it lasts {lasts:.3g} s, and {wanted}", next_step, "audio")
    return torch.from_numpy(sound.samples), facts | {"sha256": sha256_file(Path(request.audio))}


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
    notes += [model.facts.note] if model.facts.note else []
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


def _read_input(request: Request, label: str, path: str, media: Media | None) -> Reading:
    """One picture or clip that the request starts from, with its digest."""
    clip = TASKS[request.task].source == "clip"
    count = request.input_frames if clip else 1
    how = count, request.condition_video_keep, request.fps if request.video_fps == "resample" else None
    if media is not None:
        reading = media.read(*how)
    else:
        reading = read_video(Path(path), *how) if clip else read_image(Path(path))
    if (frames := len(reading.frames)) < count:
        if reading.facts.get("pictures") == 1:
            found, next_step = "it is a still picture, and this takes a clip", "Give it as `image`, or use a clip"
            raise InputError(f"`{label}` {path}", found, next_step, label)
        at = f" at {request.fps:g} a second" if "resampled_to_fps" in reading.facts else ""
        raise InputError(
            f"`{label}` {path}",
            f"it has {frames} frames{at}, and {_covers(request)} {count}",
            f"Use a longer clip, or {_fewer(request, frames)}",
            label,
        )
    digest = media.sha256 if media else sha256_file(Path(reading.facts["file"]))
    return replace(reading, facts=reading.facts | {"sha256": digest})


def _before(request: Request, media: Media | None) -> Before | None:
    """The clip that a request goes on from, where its output holds that too: fitted, and else as it is."""
    if request.extend is None or not request.with_input:
        return None
    path, fps = Path(request.extend), request.fps if request.video_fps == "resample" else None

    def frames() -> Iterator[np.ndarray]:
        for frame in media.play(fps) if media else play_video(path, fps):
            pixels = fitted(request, Reading(frame[None], {}))
            yield ((pixels[:, 0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()

    return Before(frames, request.conditioning_pixel_frames)


def _vision(request: Request, readings: Mapping[str, Reading]) -> Tensor:
    """What the vision item is conditioned on: a picture or clip; or of several pictures a clip in which each frame is
    the next one's. The VAE is causal: what a picture's latent frame becomes does not depend on what comes after it, and
    before it there is nothing but the same picture, or as little else as can be."""
    clips = [fitted(request, reading) for reading in readings.values()]
    if request.keyframe is None:
        return clips[0]
    ends = [held(one.frame)[1] + 1 for one in request.keyframe]
    lengths = [end - begin for begin, end in zip((0, *ends), ends, strict=False)]
    return torch.cat([clip.expand(-1, length, -1, -1) for clip, length in zip(clips, lengths, strict=True)], dim=1)


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
