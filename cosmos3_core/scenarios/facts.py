"""What a request has to know of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

NEGATIVE_PROMPT = "assets/negative_prompt.json"
"""Where a checkpoint keeps the negative prompt that its authors use for video."""


@dataclass(frozen=True)
class ModelFacts:
    """What of a checkpoint bears on a request. `variant` is "base", "edge" or "distilled"; `steps` the
    number that a distilled model was made for; `made_for` the task that it was trained for above others, if any.
    `schedule` and `shift` are what diffusers makes of its scheduler_config.json and model_index.json. `modalities` are
    those that it has heads for, and `silent` is why it makes no sound, as "has no sound head", and None where it makes
    some. `preset` names a table of defaults of its own, if there is one."""

    name: str
    variant: str
    system_prompt: bool
    negative_prompt: str | None
    steps: int | None = None
    made_for: str | None = None
    schedule: str = "karras"
    shift: float = 1.0
    silent: str | None = None
    modalities: tuple[str, ...] = ("vision", "sound", "action")
    preset: str | None = None
