"""The actions that a request brings, read and checked on the host, and its predicted ones in a robot's units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint.model import Model
from ..contract import InputError
from ..files.actions import NAMES, STATES, read_rows, rows_of
from ..files.digests import sha256_file, sha256_json
from ..files.normalizers import FARTHEST, Normalizer, normalizer_of, read_normalizer
from ..model.config import TEMPORAL_COMPRESSION
from ..scenarios.action import CHECKPOINT, NO_STATS, OBSERVED, Layout, inline, layout_of, said
from ..scenarios.canvas import filled
from ..scenarios.domains import domains, unnamed
from ..scenarios.facts import ACTION_STATS
from ..scenarios.faults import about
from ..scenarios.request import Request
from ..spelling import shown

NORMALISED = "normalised"
"""The unit of the model's own values."""
Given = tuple[Tensor | None, ...]
CHANNELS = 8
"""Names that a message lists."""
FAR = 10.0
"""Values beyond this are no normalised ones; angles in radians, which DROID's states are, are below it."""


@dataclass(frozen=True)
class Actions:
    """A request's actions. `given` are the rows that are known, of each chunk, fp32 [chunks, T, C] with zeros in the
    channels that the embodiment has not (None: none is known); `channels` and `units` describe one, `normalizer` is
    what turns them into the robot's units (None: they stay the model's); `facts` by field, and `notes`."""

    layout: Layout
    channels: tuple[str, ...]
    units: tuple[str, ...]
    fps: float
    observed: int
    given: Tensor | None = None
    normalizer: Normalizer | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Tensor | None:
        """What is known of the first chunk."""
        return None if self.given is None else self.given[0]

    def following(self, request: Request, pixels: Tensor) -> Callable[[int, Tensor, Mapping[str, Tensor]], Given]:
        """What later chunks of a rollout are given, as `Inputs.following` has it: the canvas with the frames that the
        chunk before ended with, or of a clip `pixels` the next ones; the last actions as history, and the last one as
        the state; and actions of their own, if those are given."""
        layout, frames = self.layout, request.frames

        def given(index: int, carried: Tensor, before: Mapping[str, Tensor]) -> Given:
            if request.task == OBSERVED:
                start = request.chunks.start(index)
                vision = pixels[:, start : start + frames]
            else:
                vision = filled(carried, request.canvas or (carried.shape[3], carried.shape[2]))
            rows = before["action"]
            moved = torch.cat([rows[: layout.history], rows[layout.known :]])
            known = [moved[len(moved) - layout.history :]] + [moved[-1:]] * layout.state
            known += [self.given[index][layout.known :]] if layout.all_given and self.given is not None else []
            action = torch.cat(known)
            return vision, action if len(action) else None

        return given

    def predicted(self, latent: Tensor) -> np.ndarray:
        """The rows that were predicted out of all of a chunk, [A, D] normalised, as fp64 in the robot's units."""
        rows = latent[self.layout.known :].numpy().astype(np.float64)
        return rows if self.normalizer is None else self.normalizer.denormalize(rows)

    def rows(self) -> np.ndarray | None:
        """The actions that are given, of all chunks one after the other, without the history and the state before
        them: fp64 [T, D] in the robot's units. None where they are predicted."""
        if self.given is None or not self.layout.all_given:
            return None
        rows = self.given[:, self.layout.known :, : len(self.channels)].flatten(0, 1).numpy().astype(np.float64)
        return rows if self.normalizer is None else self.normalizer.denormalize(rows)

    def to_json(self) -> dict[str, Any]:
        """What a row is, for manifests and files."""
        return {
            "channels": list(self.channels),
            "units": list(self.units),
            "fps": self.fps,
            "normalization": self.normalizer and self.normalizer.method,
            "observed": self.observed,
        }


def read_actions(request: Request, model: Model) -> Actions:
    """Read what a request with actions names. Raises InputError for tables that cannot be read, for numbers of rows or
    channels that are not the request's, and for statistics that are missing or of another width."""
    facts: dict[str, Any] = {}
    with about("action_stats"):
        normalizer = _normalizer(request, model, facts)
    width, layout = request.action_width or 0, layout_of(request)
    channels = _channels(request, normalizer, width)
    known, notes = _known(request, layout, channels, facts)
    given = None
    if known:
        chunks = [np.concatenate([_normalised(*table, normalizer) for table in chunk]) for chunk in known]
        padded = np.zeros((len(chunks), len(chunks[0]), model.config.action_dim), dtype=np.float32)
        padded[:, :, :width] = np.stack(chunks)
        if (reach := float(np.abs(padded).max())) > FAR:
            notes.append(
                f"what is given of actions reaches {reach:.4g} in the model's units, where most lies between -1 and 1: "
                "a robot's own units need its statistics (action_stats)"
            )
        given = torch.from_numpy(padded)
    return Actions(
        layout=layout,
        channels=channels,
        units=(normalizer and normalizer.units) or ((NORMALISED,) * width if normalizer is None else ("",) * width),
        fps=request.fps,
        observed=max(request.clean_frames) * TEMPORAL_COMPRESSION,
        given=given,
        normalizer=normalizer,
        facts=facts,
        notes=tuple(notes),
    )


def _normalised(name: str, rows: np.ndarray, normalizer: Normalizer | None) -> np.ndarray:
    """Rows of a field in the model's units."""
    with about(name):
        if normalizer is not None:
            return normalizer.normalize(rows, f"`{name}` of {len(rows)} rows")
        if (far := abs(rows) > FARTHEST).any():
            row, channel = np.argwhere(far)[0].tolist()
            found = f"row {row}, channel {channel} is {rows[row, channel]:g}, and the model's own values are about 1"
            raise InputError(f"`{name}` of {len(rows)} rows", found, "Give the statistics of these as `action_stats`")
        return rows


def _known(
    request: Request, layout: Layout, channels: tuple[str, ...], facts: dict[str, Any]
) -> tuple[list[list[tuple[str, np.ndarray]]], list[str]]:
    """By chunk the tables that are known, in their order, and notes."""
    notes: list[str] = []
    before: list[tuple[str, np.ndarray]] = []
    if layout.history:
        history = _table("history", request.history, request, channels, facts)
        if len(history) < layout.history:
            found = f"it has {len(history)} rows, and history_length says {layout.history}"
            raise InputError(said("history", request.history), found, "Give a longer one", "history")
        before.append(("history", history[len(history) - layout.history :]))
    if layout.state:
        state = _table("state", request.state, request, channels, facts)
        if len(state) != 1:
            found = f"it has {len(state)} rows, and a state is one"
            raise InputError(said("state", request.state), found, "Give the row of the first frame", "state")
        before.append(("state", state))
    if not layout.all_given:
        return [before] if before else [], notes
    actions = _table("actions", request.actions, request, channels, facts)
    actions, note = _exact(actions, request)
    notes += [note] if note else []
    chunks = np.split(actions, request.rollout or 1)
    return [[*before, ("actions", chunk)] for chunk in chunks], notes


def _exact(actions: np.ndarray, request: Request) -> tuple[np.ndarray, str]:
    """As many rows as the chunks have; where they may be made so, with a note on it."""
    chunk, chunks, count = request.chunk or 1, request.rollout or 1, len(actions)
    wanted = chunk * chunks
    if count == wanted:
        return actions, ""
    if request.pad_actions and count > wanted:
        return actions[:wanted], f"of {count} actions the first {wanted} were taken (pad_actions)"
    if request.pad_actions:
        filled = np.concatenate([actions, actions[-1:].repeat(wanted - count, axis=0)])
        return filled, f"the last of {count} actions was repeated up to {wanted} (pad_actions)"
    found = f"it has {count} rows, and {'a chunk' if chunks == 1 else f'{chunks} chunks'} of {chunk} takes {wanted}"
    advice = [f"`chunk` {count}"] if chunks == 1 and count % TEMPORAL_COMPRESSION == 0 else []
    advice += [f"`rollout` {count // chunk}"] if count % chunk == 0 else []
    advice += [f"`action_rows` [0, {wanted}]"] if count > wanted else []
    next_step = f"Use {', '.join([*advice, 'or `pad_actions`'])}"
    raise InputError(said("actions", request.actions), found, next_step.replace("Use or", "Use"), "actions")


def _table(name: str, value: Any, request: Request, channels: tuple[str, ...], facts: dict[str, Any]) -> np.ndarray:
    """The table of a field, of as many channels as an action has, fp64 [T, D]. Raises InputError also for one whose
    file says that it has them in another order, or in other units than those that are read."""
    asked = said(name, value)
    with about(name):
        rows = (
            rows_of(value, asked)
            if inline(value)
            else read_rows(Path(value), asked, STATES if name == "state" else NAMES)
        )
        if name == "actions" and request.action_rows:
            rows = rows.between(*request.action_rows, asked)
        rows.check_one_episode(asked)
        if not inline(value):
            facts[name] = {**(rows.facts or {}), "sha256": sha256_file(Path(value))}
        found, width = rows.values.shape[1], request.action_width
        if found != width:
            where = f"{request.domain}{f' ({request.action_space})' if request.action_space else ''}"
            next_step = f"Give {width} columns" + _named(request)
            raise InputError(asked, f"its rows have {found} channels, and {where} has {width}", next_step)
        _check_order(rows.channels, channels, asked)
        _check_units(rows.units, request, asked)
    return rows.values


def _check_order(named: tuple[str, ...] | None, channels: tuple[str, ...], asked: str) -> None:
    """InputError for names of which one is another column's. Names that nobody here knows say nothing."""
    for at, name in enumerate(named or ()):
        if name in channels and name != channels[at]:
            found = f"its channel {at} is {shown(name)}, and that of an action is {shown(channels[at])}"
            more = " ..." if len(channels) > CHANNELS else ""
            raise InputError(asked, found, f"Give them in the order {', '.join(channels[:CHANNELS])}{more}")


def _check_units(units: tuple[str, ...] | None, request: Request, asked: str) -> None:
    """InputError for a robot's units where the model's own values are read, and the other way round."""
    if units is None:
        return
    own, stats = set(units) == {NORMALISED}, request.action_stats not in (None, NO_STATS)
    if own and stats:
        found = "it says that it holds the model's own values, and `action_stats` are for a robot's"
        raise InputError(asked, found, "Drop `action_stats`, or give rows in the robot's units")
    if not own and not stats:
        found = "it says that it holds a robot's units, and without `action_stats` the model's own values are read"
        raise InputError(asked, found, "Add `action_stats` FILE, or drop the units")


def _named(request: Request) -> str:
    """The channels of the request's layout, in words."""
    channels = domains()[request.domain or ""].channels(request.action_space)
    if channels is None or channels == unnamed(len(channels)):
        return ""
    return f": {', '.join(channels[:CHANNELS])}{' ...' if len(channels) > CHANNELS else ''}"


def _normalizer(request: Request, model: Model, facts: dict[str, Any]) -> Normalizer | None:
    """The statistics that the request names."""
    value = request.action_stats
    if value in (None, NO_STATS):
        return None
    if value == CHECKPOINT:
        blocks = model.repository.read_json(ACTION_STATS)
        if not isinstance(blocks, dict) or request.domain not in blocks:
            reason = f"{model.name} has no statistics of {request.domain} ({ACTION_STATS})"
            raise InputError("`action_stats` checkpoint", reason, "Give a file of them, or none")
        stats = blocks[request.domain]
        asked = f"{ACTION_STATS} of {model.name}, {request.domain}"
        normalizer = normalizer_of(stats, request.action_normalization, asked, sha256_json(stats))
    else:
        normalizer = read_normalizer(Path(value or ""), request.action_normalization)
        facts["action_stats"] = {"file": value, "sha256": normalizer.sha256}
    if normalizer.width != request.action_width:
        found = f"its statistics are of {normalizer.width} channels, and {request.domain} has {request.action_width}"
        raise InputError(f"`action_stats` {value}", found, "Give those of this embodiment")
    return normalizer


def _channels(request: Request, normalizer: Normalizer | None, width: int) -> tuple[str, ...]:
    """The names of an action's channels: those of the statistics, else the domain's."""
    own = domains()[request.domain or ""].channels(request.action_space) or unnamed(width)
    named = None if normalizer is None else normalizer.channels
    with about("action_stats"):
        _check_order(named, own, f"`action_stats` {request.action_stats}")
    return named or own
