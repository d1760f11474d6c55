"""The guidance branches of a request: the one place that says whether there is a negative one, and one without
controls."""

from __future__ import annotations

PROMPT, NEGATIVE = "prompt", "negative prompt"
"""The guidance branches, by the text that each attends to."""
UNCONTROLLED = "prompt without controls"
"""The branch of control guidance: it attends to the prompt, and controls are no part of its sequence."""


def branches_of(guidance: float) -> tuple[str, ...]:
    """The guidance branches of a step, by text. At guidance 1 the negative one would be multiplied by 0."""
    return (PROMPT,) if guidance == 1 else (PROMPT, NEGATIVE)


def text_of(branch: str) -> str:
    """The text that a branch attends to."""
    return PROMPT if branch == UNCONTROLLED else branch
