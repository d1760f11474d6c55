"""From what a user typed to the text the model reads: metadata sentences, or metadata keys in a JSON prompt.

docs/model.md, section 4.2. Released models are trained on captions that state their duration and size.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .action_kinds import JSON
from .action_prompts import action_text
from .sizes import TIERS
from .transfer import SUFFIX, hints_of

if TYPE_CHECKING:
    from .request import Request


def positive_text(request: Request) -> str:
    """The prompt with its metadata, and with emphasis on its controls."""
    if request.action_prompt == JSON:
        return action_text(request)
    if request.json_metadata and (caption := _json_object(request.prompt)) is not None:
        text = json.dumps(_with_metadata(caption, request))
    else:
        text = _with_sentences(request.prompt, request, inverse=False)
    if request.emphasize_controls and (hints := hints_of(vars(request))):
        text = text.rstrip() + SUFFIX.format(hints=", ".join(hints))
    return text


def negative_text(request: Request) -> str:
    """The negative prompt with none, the same or the inverse metadata."""
    if request.negative_metadata == "none" or request.action_prompt == JSON:
        return request.negative_prompt
    return _with_sentences(request.negative_prompt, request, inverse=request.negative_metadata == "inverse")


def _with_sentences(text: str, request: Request, inverse: bool) -> str:
    not_ = "not " if inverse else ""
    sentences = []
    if request.duration_template and request.frames > 1:
        duration = request.frames / request.fps
        sentences.append(f"The video is {not_}{duration:.1f} seconds long and is {not_}of {request.fps:.0f} FPS.")
    if request.resolution_template:
        kind, (width, height) = "image" if request.frames == 1 else "video", request.seen_size
        sentences.append(f"This {kind} is {not_}of {height}x{width} resolution.")
    for sentence in sentences:
        text = text.rstrip(".")
        text = f"{text}. {sentence}" if text else sentence
    return text


def _json_object(text: str) -> dict[str, Any] | None:
    """The prompt as a JSON object, or None: arrays and strings are plain text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _with_metadata(caption: dict[str, Any], request: Request) -> dict[str, Any]:
    caption = dict(caption)
    if request.frames == 1:
        caption.pop("duration", None)
        caption.pop("fps", None)
    else:
        caption["duration"] = f"{int(request.frames / request.fps)}s"
        caption["fps"] = float(request.fps)
    size = width, height = request.seen_size
    caption["resolution"] = {"H": height, "W": width}
    aspect = next((name for tier in TIERS.values() for name, known in tier.items() if known == size), None)
    if aspect:
        caption["aspect_ratio"] = aspect.replace(":", ",")
    return caption
