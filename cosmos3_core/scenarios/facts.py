"""What a request has to know of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

NEGATIVE_PROMPT = "assets/negative_prompt.json"
"""Where a checkpoint keeps the negative prompt that its authors use for video."""
MODALITIES = ("vision", "sound", "action")
"""Of latents. Every checkpoint makes the first."""


def lacking_heads(heads: Collection[str]) -> dict[str, str]:
    """The modalities, besides vision, without a head, and what is said of each."""
    return {
        name: f"has no {name} head ({name}_gen in its transformer/config.json)"
        for name in MODALITIES[1:]
        if name not in heads
    }


ACTION_STATS = "assets/action_stats.json"
"""Where a checkpoint may keep statistics of actions, by domain, in the form of files/normalizers.py. No published
checkpoint is known to have this file."""


OWN = "assets/defaults.json"
"""Where a checkpoint may keep defaults of its own and what it says of itself (own.py)."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a checkpoint bears on a request. `variant` is "base", "edge" or "distilled"; `steps` the
    number that a distilled model was made for; `made_for` the task that it was trained for above others, if any.
    `schedule` and `shift` are what diffusers makes of its scheduler_config.json and model_index.json. `lacks` says
    of each modality that it cannot make why, as "has no sound head". `preset` names a table of defaults of its own,
    if there is one. `domain` and `action_space` are the embodiment that it was trained for alone and the layout of
    its actions, if any, `action_stats` its file of action statistics, if it has one. `own` are its own defaults by
    task, `note` is what it says of itself, and its weights may be `random`."""

    name: str
    variant: str
    system_prompt: bool
    negative_prompt: str | None
    steps: int | None = None
    made_for: str | None = None
    schedule: str = "karras"
    shift: float = 1.0
    lacks: Mapping[str, str] = field(default_factory=dict)
    preset: str | None = None
    domain: str | None = None
    action_space: str | None = None
    action_stats: str | None = None
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str | None = None
    random: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it makes latents of."""
        return tuple(modality for modality in MODALITIES if modality not in self.lacks)
