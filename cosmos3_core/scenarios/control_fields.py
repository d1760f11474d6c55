"""The fields of a request that controls and chunks have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import kinds
from .field import CONTROL, NOT_GIVEN, TEXTS, Field, one_guidance, uncontrolled
from .task import Task
from .transfer import AUTO, BLURS, DERIVED, EDGES, HINTS, hints_of

WORDS = {
    "edge": "clip of edges",
    "blur": "blurred clip",
    "depth": "clip of depth",
    "seg": "clip of segments",
    "wsm": "world scenario map",
}


def _controlled(task: Task) -> str | None:
    return None if HINTS[0] in task.takes else f"{task.title} has no controls"


def _given_edges(hint: str) -> Callable[[Mapping[str, Any], Task], str | None]:
    return lambda values, task: None if values[hint] == AUTO else f"no {hint} control is made of the input clip"


def _one_control(values: Mapping[str, Any], task: Task) -> str | None:
    return "there is one control" if len(hints_of(values)) < 2 else None


def _joint(values: Mapping[str, Any], task: Task) -> str | None:
    joint = values["control_attention"] == "joint"
    return _one_control(values, task) or ("control_attention joint has no weights" if joint else None)


def _no_clip(values: Mapping[str, Any], task: Task) -> str | None:
    return "there is no input clip" if values["video"] is None else None


def _one_chunk(values: Mapping[str, Any], task: Task) -> str | None:
    chunk = values["chunk_frames"]
    return "the clip is one chunk" if not chunk or values["frames"] <= chunk else None


CONTROLS = (
    *(
        Field(
            name=hint,
            group=CONTROL,
            kind=kinds.control(hint in DERIVED),
            help=f"Follow this {WORDS[hint]}{f', or {AUTO}: made of the input clip' if hint in DERIVED else ''}.",
            default=NOT_GIVEN,
            refusal=_controlled,
            option=True,
            costs=True,
        )
        for hint in HINTS
    ),
    Field(
        name="edge_preset",
        group=CONTROL,
        kind=kinds.choice(*EDGES),
        help="How strong an edge has to be.",
        refusal=_controlled,
        idle=_given_edges("edge"),
    ),
    Field(
        name="blur_preset",
        group=CONTROL,
        kind=kinds.choice(*BLURS),
        help="How much is blurred.",
        refusal=_controlled,
        idle=_given_edges("blur"),
    ),
    Field(
        name="control_guidance",
        group=CONTROL,
        kind=kinds.number(0, 10),
        help="How closely controls are followed; 1 is as the model does by itself.",
        refusal=_controlled,
        option=True,
        costs=True,
    ),
    Field(
        name="control_guidance_interval",
        group=CONTROL,
        kind=kinds.INTERVAL,
        help="Timesteps between which control_guidance is used.",
        refusal=_controlled,
        idle=uncontrolled,
    ),
    Field(
        name="control_formula",
        group=CONTROL,
        kind=kinds.choice("nested", "separate"),
        help="Whether guidance multiplies what control_guidance adds (nested) or not (separate).",
        refusal=_controlled,
        idle=one_guidance,
    ),
    Field(
        name="control_weights",
        group=CONTROL,
        kind=kinds.WEIGHTS,
        help="Shares of several controls, such as edge=2,depth=1; 1 each unless given.",
        default=NOT_GIVEN,
        refusal=_controlled,
        idle=_joint,
    ),
    Field(
        name="control_attention",
        group=CONTROL,
        kind=kinds.choice("weighted", "joint"),
        help="Several controls: attention to one at a time, by weights, or to all at once.",
        refusal=_controlled,
        idle=_one_control,
    ),
    Field(
        name="control_positions",
        group=CONTROL,
        kind=kinds.choice("shared", "ceil", "floor"),
        help="Controls and the clip at the same positions, or one after another, from the last position rounded so.",
        refusal=_controlled,
    ),
    Field(
        name="emphasize_controls",
        group=TEXTS,
        kind=kinds.SWITCH,
        help="Add a sentence to the prompt that controls are to be followed.",
        refusal=_controlled,
    ),
    Field(
        name="show_controls",
        group=CONTROL,
        kind=kinds.SWITCH,
        help="Write each control left of what is made, in one picture.",
        refusal=_controlled,
    ),
    Field(
        name="show_input",
        group=CONTROL,
        kind=kinds.SWITCH,
        help="Write the input clip left of what is made, in one picture.",
        refusal=_controlled,
        idle=_no_clip,
    ),
    Field(
        name="max_frames",
        group=CONTROL,
        kind=kinds.whole(1, kinds.LONGEST),
        help="Most frames of a clip whose length follows from its controls.",
        refusal=_controlled,
    ),
    Field(
        name="chunk_frames",
        group=CONTROL,
        kind=kinds.CHUNK,
        help="Frames of each chunk that a long clip is made in; 0 is the whole.",
        refusal=_controlled,
        option=True,
        costs=True,
    ),
    Field(
        name="carry_frames",
        group=CONTROL,
        kind=kinds.whole(0, kinds.LONGEST),
        help="Frames of a chunk that the next one begins with.",
        refusal=_controlled,
        idle=_one_chunk,
    ),
    Field(
        name="first_frames",
        group=CONTROL,
        kind=kinds.whole(0, kinds.LONGEST),
        help="Frames of the input clip that the first chunk begins with.",
        refusal=_controlled,
    ),
    Field(
        name="chunk_noise",
        group=CONTROL,
        kind=kinds.choice("stream", "seed"),
        help="A chunk draws on in the noise of the one before (stream), or from the seed plus its number (seed).",
        refusal=_controlled,
        idle=_one_chunk,
    ),
)
