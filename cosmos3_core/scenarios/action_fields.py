"""The fields of a request that only actions have, as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import action_kinds, kinds
from .action import GIVEN, NO_STATS, TRAINED_FOR, acts
from .action_kinds import JSON, TEXT, VIEWS
from .domains import domains
from .facts import ModelFacts
from .field import NOT_GIVEN, SIZE, TEXTS, Field
from .task import Task

ACTIONS = "Actions"


def _acts(task: Task) -> str | None:
    return None if acts(task) else f"{task.title} has no actions, which take `domain` and a picture or clip"


def _given(task: Task) -> str | None:
    return _acts(task) or (None if task.name == GIVEN else f"{task.title} predicts its actions")


def _without(name: str) -> Callable[[Mapping[str, Any], Task], str | None]:
    return lambda values, task: f"there is no {name}" if values[name] is None else None


def _no_framing(values: Mapping[str, Any], task: Task) -> str | None:
    return None if values["action_prompt"] == JSON else "only a JSON action prompt says it"


def _no_stats(values: Mapping[str, Any], task: Task) -> str | None:
    return "there is no action_stats" if values["action_stats"] in (None, NO_STATS) else None


def _stats(model: ModelFacts) -> tuple[Any, str]:
    found = model.action_stats
    return ("checkpoint", f"checkpoint ({found})") if found else (NO_STATS, "none: the checkpoint has no statistics")


ROWS = (
    Field(
        name="domain",
        group=ACTIONS,
        kind=action_kinds.DOMAIN,
        help="The embodiment, by the name that the model was trained with.",
        default=NOT_GIVEN,
        checkpoint=lambda model: (model.domain, TRAINED_FOR),
        refusal=_acts,
        option=True,
    ),
    Field(
        name="actions",
        group=ACTIONS,
        kind=action_kinds.ROWS,
        help="The actions to show the outcome of: .json, .npy, .npz, .safetensors, .csv or .parquet.",
        default=NOT_GIVEN,
        refusal=_given,
        option=True,
    ),
    Field(
        name="history",
        group=ACTIONS,
        kind=action_kinds.ROWS,
        help="Actions before the first frame, a file like those of actions.",
        default=NOT_GIVEN,
        refusal=_acts,
        option=True,
    ),
    Field(
        name="state",
        group=ACTIONS,
        kind=action_kinds.ROWS,
        help="A row on what the embodiment is at the first frame: a file, or numbers in brackets.",
        default=NOT_GIVEN,
        refusal=_acts,
        option=True,
    ),
    Field(
        name="chunk",
        group=SIZE,
        kind=action_kinds.CHUNK,
        help="Actions of a chunk: one less than its frames.",
        default=NOT_GIVEN,
        refusal=_acts,
        option=True,
        costs=True,
    ),
    Field(
        name="rollout",
        group=SIZE,
        kind=kinds.whole(1, 1000),
        help="Chunks to make, each from the end of the one before it.",
        refusal=_acts,
        option=True,
    ),
    Field(
        name="canvas",
        group=SIZE,
        kind=action_kinds.CANVAS,
        help="Tier or size that the input is fitted into: never enlarged, at the top left.",
        refusal=_acts,
        option=True,
        costs=True,
    ),
    Field(
        name="view",
        group=TEXTS,
        kind=kinds.choice(*VIEWS),
        help="Where the camera is, for the framing sentence.",
        refusal=_acts,
        idle=_no_framing,
        option=True,
    ),
    Field(
        name="view_detail",
        group=TEXTS,
        kind=kinds.TEXT,
        help="A sentence on the views, behind the framing sentence.",
        refusal=_acts,
        idle=_no_framing,
    ),
    Field(
        name="action_prompt",
        group=TEXTS,
        kind=kinds.choice(JSON, TEXT),
        help="The prompt as the JSON caption of the action heads' training, or as text like that of a video.",
        refusal=_acts,
    ),
    Field(
        name="action_stats",
        group=ACTIONS,
        kind=kinds.PATH,
        help="Statistics between the robot's units and the model's: a file, checkpoint or none.",
        checkpoint=_stats,
        refusal=_acts,
        option=True,
    ),
    Field(
        name="action_normalization",
        group=ACTIONS,
        kind=action_kinds.METHOD,
        help="What the statistics are for, where their file does not say.",
        default=NOT_GIVEN,
        refusal=_acts,
        idle=_no_stats,
    ),
    Field(
        name="pad_actions",
        group=ACTIONS,
        kind=kinds.SWITCH,
        help="Cut actions that are too many, and repeat the last of too few; else both are errors.",
        refusal=_given,
        option=True,
    ),
    Field(
        name="action_rows",
        group=ACTIONS,
        kind=action_kinds.SPAN,
        help="The rows of actions to take.",
        default=NOT_GIVEN,
        refusal=_given,
        idle=_without("actions"),
        option=True,
    ),
    Field(
        name="history_length",
        group=ACTIONS,
        kind=action_kinds.optional(kinds.whole(0, 100_000)),
        help="How many of the history's last rows are taken.",
        default=NOT_GIVEN,
        refusal=_acts,
    ),
    Field(
        name="action_space",
        group=ACTIONS,
        kind=action_kinds.optional(kinds.choice(*dict.fromkeys(s for d in domains().values() for s in d.spaces))),
        help="The layout of an action's channels, where the domain has several.",
        default=NOT_GIVEN,
        checkpoint=lambda model: (model.action_space, TRAINED_FOR),
        refusal=_acts,
    ),
    Field(
        name="action_width",
        group=ACTIONS,
        kind=action_kinds.optional(kinds.whole(1, 4096)),
        help="Channels of an action, where the domain does not say.",
        default=NOT_GIVEN,
        refusal=_acts,
    ),
)
