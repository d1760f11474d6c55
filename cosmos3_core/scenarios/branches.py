"""The guidance branches of a request: the one place that says whether there is a negative one."""

from __future__ import annotations

PROMPT, NEGATIVE = "prompt", "negative prompt"
"""The guidance branches, by the text that each attends to."""


def branches_of(guidance: float) -> tuple[str, ...]:
    """The guidance branches of a step. At guidance 1 the negative one would be multiplied by 0."""
    return (PROMPT,) if guidance == 1 else (PROMPT, NEGATIVE)
