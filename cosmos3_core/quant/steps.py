"""In which steps of a run, and whether in its text tower, activations stay in 16 bits although the format of the
layers' weights quantizes them.

The words are those of `diffusion_step_policy`, which NVIDIA's `fp8` revisions of Cosmos3 carry: "a16" is activations in
16 bits by the same packed weights, "native" what the format says. Importing this imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..contract import InputError
from .formats import Format

A16, NATIVE = "a16", "native"
OPTION = "high_precision_steps"
"""What a caller names a policy by, as FIRST,LAST."""
FORM = "Write FIRST,LAST, as 2,2; the text tower follows with 2,2,a16 and does not with 2,2,native; or none"


@dataclass(frozen=True, kw_only=True)
class StepPolicy:
    """The modes of the `first` and the `last` so many steps, of those that are among both (`overlap`), and of the text
    tower (`reasoner`); all other steps are native. `named`: a caller asked for it, and no checkpoint."""

    first: int = 0
    last: int = 0
    first_mode: str = A16
    last_mode: str = A16
    overlap: str = A16
    reasoner: str = A16
    named: bool = False

    @classmethod
    def of(cls, policy: Mapping[str, Any]) -> StepPolicy:
        """A checkpoint's, which its dialect has checked."""
        first, last = policy["first_steps"], policy["last_steps"]
        return cls(
            first=first["count"],
            last=last["count"],
            first_mode=first["mode"],
            last_mode=last["mode"],
            overlap=policy["overlap"],
            reasoner=policy["reasoner"],
        )

    @classmethod
    def typed(cls, text: str) -> StepPolicy:
        """FIRST,LAST, which the text tower follows; FIRST,LAST,a16 or FIRST,LAST,native, which says so of it; or none.
        Raises InputError."""
        if text.strip().lower() == "none":
            return cls(reasoner=NATIVE, named=True)
        found = re.fullmatch(rf"\s*([0-9]{{1,4}})\s*,\s*([0-9]{{1,4}})\s*(?:,\s*({A16}|{NATIVE})\s*)?", text)
        if found is None:
            raise InputError(f"`{OPTION}` {text}", "it is no two counts of steps", FORM, OPTION)
        return cls(first=int(found[1]), last=int(found[2]), reasoner=found[3] or A16, named=True)

    @property
    def in_steps(self) -> bool:
        """Whether a run may have steps in 16 bits."""
        first, last = self.first and self.first_mode == A16, self.last and self.last_mode == A16
        return bool(first or last or (self.first and self.last and self.overlap == A16))

    @property
    def in_text(self) -> bool:
        """Whether the text tower is in 16 bits."""
        return self.reasoner == A16

    def a16(self, index: int, steps: int) -> bool:
        """Whether step `index`, counted from 0, of so many is in 16 bits."""
        first, last = index < self.first, index >= steps - self.last
        if first and last:
            return self.overlap == A16
        return (first and self.first_mode == A16) or (last and self.last_mode == A16)

    def a16_steps(self, steps: int) -> tuple[int, ...]:
        """Those steps of so many that are in 16 bits, counted from 0."""
        return tuple(index for index in range(steps) if self.a16(index, steps))

    def check(self, steps: int) -> None:
        """Raises InputError where a caller names more steps than the run has. A checkpoint does not know how many a run
        will have, and says what becomes of those that are counted twice."""
        if not self.named or self.first + self.last <= steps:
            return
        found = f"the run has {steps} step{'s' * (steps > 1)}, and some would be among the first and the last"
        if max(self.first, self.last) > steps:
            found = f"the run has {steps} step{'s' * (steps > 1)}"
        asked = f"`{OPTION}` {self.first},{self.last}"
        raise InputError(asked, found, f"Give two counts that make {steps} at most; {steps},0 are all", OPTION)


def a16_of(format: Format, known: Mapping[str, Format]) -> Format:
    """The format of the same weights with activations in 16 bits: the one of these that is it, or one that is called
    after this one. One whose activations stay in 16 bits is its own. What a whole weight's scale says, a scale for each
    output says as well, for which there are kernels."""
    if format.of_inputs is None:
        return format

    def meaning(one: Format) -> Format:
        return replace(one, name="", source="")

    alone = replace(format.weight_only(), outputs=format.outputs or 1)
    same = (one for one in known.values() if meaning(one) == meaning(alone))
    return next(same, replace(alone, name=f"{format.name}_a16"))
