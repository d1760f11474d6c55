"""What a request has to know of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

NEGATIVE_PROMPT = "assets/negative_prompt.json"
"""Where a checkpoint keeps the negative prompt that its authors use for video."""

ACTION_STATS = "assets/action_stats.json"
"""Where a checkpoint may keep statistics of actions, by domain, in the form of files/normalizers.py. No published
checkpoint is known to have this file."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a checkpoint bears on a request. `variant` is "base", "edge" or "distilled"; `steps` the
    number that a distilled model was made for; `made_for` the task that it was trained for above others, if any.
    `schedule` and `shift` are what diffusers makes of its scheduler_config.json and model_index.json. `domain` is the
    embodiment that it was trained for alone, if any, `action_stats` its file of action statistics, if it has one."""

    name: str
    variant: str
    system_prompt: bool
    negative_prompt: str | None
    steps: int | None = None
    made_for: str | None = None
    schedule: str = "karras"
    shift: float = 1.0
    domain: str | None = None
    action_stats: str | None = None
