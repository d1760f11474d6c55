"""From a request to the latents that it asks the model for. Imports torch, as the tables of this package do not."""

from __future__ import annotations

from dataclasses import replace

from ..model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, TransformerConfig
from ..model.packing import Item
from .action import layout_of
from .domains import domains
from .families import TASKS
from .request import Request
from .sound import sound_size
from .transfer import shares


def items_of(request: Request, config: TransformerConfig) -> tuple[Item, ...]:
    """The request's items on a model of this config: its controls, then what is made, in the order of its task's
    `latents`, and its sound after its vision."""
    modalities = [*TASKS[request.task].latents]
    if request.sound:
        modalities.insert(1, "sound")
    made = [_MAKERS[modality](request, config) for modality in modalities]
    follows = "" if request.control_positions == "shared" else request.control_positions
    follows = "ceil" if TASKS[request.task].beside else follows
    if not request.controls:
        return tuple(made)
    weights = shares(vars(request)) if request.control_attention == "weighted" else {}
    like = replace(made[0], clean=tuple(range(made[0].frames)), follows=follows)
    controls = [replace(like, control=hint, weight=weights.get(hint)) for hint in request.controls]
    return (*controls, *(replace(item, follows=follows) for item in made))


def _vision(request: Request, config: TransformerConfig) -> Item:
    frames = (request.frames - 1) // TEMPORAL_COMPRESSION + 1
    height, width = request.height // SPATIAL_COMPRESSION, request.width // SPATIAL_COMPRESSION
    shape = (config.latent_channel, frames, height, width)
    return Item("vision", shape, clean=request.clean_frames, fps=request.fps)


def _sound(request: Request, config: TransformerConfig) -> Item:
    size = sound_size(request, config.sound)
    assert size is not None, "a request of a model without a codec has no sound"
    clean = range(size.frames) if request.audio is not None else ()
    return Item("sound", (config.sound_dim, size.frames), clean=tuple(clean))


def _action(request: Request, config: TransformerConfig) -> Item:
    layout, domain = layout_of(request), 0 if request.domain is None else domains()[request.domain].id
    return Item(
        "action",
        (layout.rows, config.action_dim),
        clean=layout.clean,
        fps=request.fps,
        domain=domain,
        start=layout.start,
        used=request.action_width,
    )


_MAKERS = {"vision": _vision, "sound": _sound, "action": _action}
