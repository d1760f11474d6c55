"""What a checkpoint's training covered, held against a request: sentences, as what lies outside of it runs too."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .action import acts
from .facts import ModelFacts
from .families import TASKS
from .request import Request
from .sizes import TIERS
from .variants import action_examples, checkpoints, variants


def training_notes(request: Request, model: ModelFacts) -> tuple[str, ...]:
    """How a request of a published checkpoint lies outside of what it was trained or made for; nothing of a model whose
    training nobody here knows."""
    if model.name not in checkpoints():
        return ()
    of = _of_actions if acts(TASKS[request.task]) else _of_video
    return (*_of_size(request, model), *of(request, model))


def tier_of(size: tuple[int, int]) -> str:
    """The tier that a size belongs to: its own, else that whose pictures have most nearly as many pixels."""
    own = [tier for tier, sizes in TIERS.items() if size in sizes.values()]
    if own:
        return own[-1]

    def apart(tier: str) -> float:
        return min(abs(math.log(size[0] * size[1] / (w * h))) for w, h in TIERS[tier].values())

    return min(TIERS, key=apart)


def _of_size(request: Request, model: ModelFacts) -> Iterator[str]:
    trained, size = variants()[model.variant], request.seen_size
    if (tier := tier_of(size)) not in trained.tiers:
        covered = " and ".join(f"{name}p" for name in trained.tiers)
        yield f"{size[0]}x{size[1]} is of {tier}p, and {model.name} was trained for {covered} ({trained.source})"


def _of_video(request: Request, model: ModelFacts) -> Iterator[str]:
    if not request.is_video:
        return
    trained, tier, frames = variants()[model.variant], tier_of(request.seen_size), request.chunks.frames
    least, most = trained.frames.get(tier, (frames, frames))
    if not least <= frames <= most:
        yield f"training covered {least} to {most} frames at {tier}p, and this run has {frames} ({trained.source})"
    low, high = trained.fps or (request.fps, request.fps)
    if not low <= request.fps <= high:
        found = f"{low:g} to {high:g} frames a second, and this run has {request.fps:g}"
        yield f"training covered {found} ({trained.source})"


def _of_actions(request: Request, model: ModelFacts) -> Iterator[str]:
    made, examples = checkpoints()[model.name].chunk, action_examples()
    if made is not None and request.chunk != made:
        found = f"chunks of {made} actions, and this run has {request.chunk}"
        yield f"{model.name} is asked for {found} ({examples.source})"
    fps = examples.fps.get(request.domain or "")
    if fps is not None and request.fps != fps:
        found = f"{fps:g} actions a second, and this run has {request.fps:g}"
        yield f"{request.domain} is asked for {found} ({examples.source})"
