"""Actions: what an embodiment does from frame to frame, given or predicted beside the video.

A chunk of n actions lies between n + 1 frames. `history` are actions before the first frame and `state` is a row on
what the embodiment is at it; both are known, and stand before the chunk (docs/model.md, sections 2.3 and 4.11; NVIDIA's
framework, build_sequence_plan_from_mode).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..contract import InputError
from ..model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ..spelling import shown
from .chunks import Chunks
from .domains import domains
from .sizes import parse_size
from .task import Conditions, Task

Values = dict[str, Any]


def _all_frames(request: Conditions) -> tuple[int, ...]:
    return tuple(range((request.frames - 1) // TEMPORAL_COMPRESSION + 1))


def _chunks(request: Any) -> Chunks:
    """A rollout: each chunk begins with the frames that the one before it ends with; those of a clip overlap by one."""
    carry = 1 if request.task == OBSERVED else request.conditioning_pixel_frames
    total = request.frames + ((request.rollout or 1) - 1) * (request.frames - carry)
    return Chunks(total, request.frames, carry)


def _of_chunk(request: Any, index: int) -> Any:
    """One chunk of a rollout, whose seed is so many higher."""
    if request.rollout in (None, 1):
        return request
    return replace(request, rollout=1, seed=(request.seed + index) % 2**64)


POLICY = Task(
    name="policy",
    title="policy",
    result="a video and actions",
    suffix=".mp4",
    aspect="16:9",
    single=False,
    latents=("vision", "action"),
    input="image",
    source="picture",
    tables=("history", "state", "action_stats"),
    clean=lambda request: (0,),
    chunks=_chunks,
    of_chunk=_of_chunk,
)
TASKS = (
    POLICY,
    replace(
        POLICY,
        name="forward-dynamics",
        title="forward dynamics",
        result="a video",
        tables=("actions", *POLICY.tables),
        needs=("actions",),
    ),
    replace(POLICY, name="inverse-dynamics", title="inverse dynamics", input="video", source="clip", clean=_all_frames),
    replace(
        POLICY,
        name="video-policy",
        title="policy from a video",
        input="video",
        source="clip",
        chooses_frames=True,
        clean=lambda request: request.condition_frame_indexes,
    ),
)
SAYING = ("domain", "actions", "history", "state")
"""Fields that ask for a task with actions."""
ABSOLUTE = ("joints", "plane")
"""Layouts whose actions say where the embodiment is to be, so that the last one is its state after them."""
ASPECT = "16:9"
"""Of a canvas whose input is not known."""
TRAINED_FOR = "checkpoint (what it was trained for)"
"""Where a domain and a layout come from that nobody asked for."""
CHECKPOINT, NO_STATS = "checkpoint", "none"
"""What `action_stats` says in the place of a file: the checkpoint's own statistics, or none."""
GIVEN, OBSERVED, CHOSEN = "forward-dynamics", "inverse-dynamics", "video-policy"
"""The tasks whose actions are all given, whose frames are, and that says which frames it observes."""


class Acting(Protocol):
    """What of a request its actions follow from."""

    @property
    def task(self) -> str: ...

    @property
    def frames(self) -> int: ...

    @property
    def state(self) -> Any: ...

    @property
    def history_length(self) -> int | None: ...


@dataclass(frozen=True)
class Layout:
    """How a chunk's rows of actions lie. `known` rows come first, the history and then the state, and `predicted` rows
    follow, which in forward dynamics are given too. `start` is the first row's offset in frames: 1 where the chunk
    comes first, 0 behind a state, and one less for each row of history."""

    history: int
    state: int
    predicted: int
    all_given: bool

    @property
    def known(self) -> int:
        return self.history + self.state

    @property
    def rows(self) -> int:
        return self.known + self.predicted

    @property
    def clean(self) -> tuple[int, ...]:
        return tuple(range(self.rows if self.all_given else self.known))

    @property
    def start(self) -> int:
        return 1 - self.known


def acts(task: Task) -> bool:
    """Whether a task has actions."""
    return "action" in task.latents


def layout_of(request: Acting) -> Layout:
    """The layout of a request's actions."""
    state = int(request.state is not None)
    return Layout(request.history_length or 0, state, request.frames - 1, request.task == GIVEN)


def content(source: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(width, height) that an input of this size takes of a canvas: as much as fits, and never more than it has
    (diffusers' and the framework's rounding)."""
    scale = min(canvas[0] / source[0], canvas[1] / source[1], 1.0)
    width, height = (max(1, int(scale * side + 0.5)) for side in source)
    return width, height


def shown_size(source: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the video that is made from an input of this size: the latents that its content covers."""
    width, height = (max(side // SPATIAL_COMPRESSION, 1) * SPATIAL_COMPRESSION for side in content(source, canvas))
    return width, height


def derive(values: Values, origin: dict[str, str], given: Mapping[str, Any], partial: bool) -> None:
    """Fill in what follows from other fields: the chunk and the frames, the layout and the width of an action, rows of
    history. Raises InputError where two fields do not agree and for a domain whose width nothing says; a `partial`
    request may lack the domain."""
    _fill_chunk(values, origin, given)
    if isinstance(values["canvas"], str):  # no input was looked at
        values["canvas"] = parse_size(values["canvas"].replace(":auto", ""), ASPECT)
    if "size" not in given:
        values["size"], origin["size"] = values["canvas"], "canvas"
    if values["history_length"] is None:
        rows = values["history"]
        values["history_length"] = len(rows) if isinstance(rows, tuple) else 0
        origin["history_length"] = "history"
    elif values["history_length"] and values["history"] is None:
        found = "there is no history"
        raise InputError(f"history_length {values['history_length']}", found, "Add `history` FILE", "history_length")
    if values["domain"] is not None:
        _fill_width(values, origin)
        _check_rollout(values)
    elif not partial:
        found = "it has no domain, and the action heads have weights for each embodiment"
        raise InputError(f"task {values['task']}", found, f"Add `domain`, one of {', '.join(domains())}", "domain")


def _check_rollout(values: Values) -> None:
    """InputError for a rollout whose state nobody knows after its first chunk, or whose chunks carry all on."""
    if values["rollout"] in (None, 1):
        return
    chosen = values["condition_frame_indexes"] if values["task"] == CHOSEN else (0,)
    if max(chosen) * TEMPORAL_COMPRESSION + 1 >= values["frames"]:
        found = (
            f"each begins with latent frame {max(chosen)}, and a chunk of {values['frames']} frames has no later one"
        )
        raise InputError(f"rollout {values['rollout']}", found, "Use a longer `chunk`", "rollout")
    if values["state"] is None or values["action_space"] in ABSOLUTE:
        return
    found = "after a chunk the state is not known: these actions are changes, and not where the embodiment is"
    raise InputError(f"rollout {values['rollout']} with a state", found, "Drop `state`, or run chunk by chunk", "state")


def _fill_chunk(values: Values, origin: dict[str, str], given: Mapping[str, Any]) -> None:
    chunk, frames = values["chunk"], values["frames"]
    if chunk is not None and "frames" not in given:
        values["frames"], origin["frames"] = chunk + 1, "chunk"
    elif chunk not in (None, frames - 1):
        found = f"a chunk of {chunk} actions has {chunk + 1} frames"
        raise InputError(f"chunk {chunk} with {frames} frames", found, "Drop one of them", "chunk")
    elif chunk is None:
        values["chunk"], origin["chunk"] = frames - 1, "frames"


def _fill_width(values: Values, origin: dict[str, str]) -> None:
    domain, width = domains()[values["domain"]], values["action_width"]
    if origin["action_space"] == TRAINED_FOR and values["action_space"] not in domain.spaces:
        values["action_space"] = None  # that of a model's own domain, and another one was asked for
    space = values["action_space"]
    if space is not None and space not in domain.spaces:
        found = f"{domain.name} has {' and '.join(domain.spaces) or 'no layouts of its own'}"
        raise InputError(f"action_space {space}", found, "Drop action_space, or name another `domain`", "action_space")
    channels = domain.channels(space)
    if channels is None:
        if width is None:
            found = "nothing says how many channels its actions have" + (f" ({domain.note})" if domain.note else "")
            raise InputError(f"domain {domain.name}", found, "Add `action_width`", "action_width")
        return
    if width not in (None, len(channels)):
        found = f"{domain.name} has {_widths(domain.spaces)}"
        raise InputError(f"action_width {width}", found, "Drop action_width, or name another `domain`", "action_width")
    if space is None:
        values["action_space"], origin["action_space"] = next(iter(domain.spaces)), "domain"
    if width is None:
        values["action_width"], origin["action_width"] = len(channels), f"domain {domain.name}"


def _widths(spaces: Mapping[str, tuple[str, ...]]) -> str:
    return " and ".join(f"{len(channels)} channels in its layout {space}" for space, channels in spaces.items())


def inline(value: Any) -> bool:
    """Whether a table stands in the request itself."""
    return isinstance(value, tuple)


def said(name: str, value: Any) -> str:
    """A table in a message."""
    return f"`{name}` of {len(value)} rows" if inline(value) else f"`{name}` {shown(value)[1:-1]}"
