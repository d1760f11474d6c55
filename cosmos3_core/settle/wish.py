"""What somebody wants to run, as far as it was said."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..contract import InputError
from ..scenarios.request import PROFILES


def zero() -> int:
    """The seed of a run whose pixels nobody looks at."""
    return 0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """`model` is "tiny", a folder or a hub id, at a `revision`; with `described` a published model's facts come from
    the table here, so that nothing is downloaded, and "nano", "super" and "edge" are names too.

    `given` are request fields as `scenarios.request.resolve` takes them; a task that is not among them follows from
    the inputs and from `suffix`, that of the output file. `profile` names whose defaults fill the rest; `pick_seed` is
    asked where they leave the seed to chance.

    `backend` None takes the accelerator that is here, none of those that are `disabled`. `kernels` and `formats` by op
    are met or refused, `required` kernels asserted. `dtype` None is the checkpoint's. `memory` in bytes stands in the
    place of the device's own. `resident`: what is loaded stays for the next request.
    """

    model: str
    revision: str | None = None
    described: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    suffix: str | None = None
    profile: str = PROFILES[0]
    pick_seed: Callable[[], int] = zero
    backend: str | None = None
    disabled: Collection[str] = ()
    dtype: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    resident: bool = False

    def __post_init__(self) -> None:
        """Raises InputError for what is of another kind than it says above."""
        for name in ("given", "kernels", "formats", "required"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                raise InputError(f"{name} = {value!r}", "it is no mapping by name", f"Pass {name} as a dict")
        texts = {"model": False, "revision": True, "suffix": True, "profile": False, "backend": True, "dtype": True}
        for name, may_lack in texts.items():
            value = getattr(self, name)
            if not isinstance(value, str) and not (may_lack and value is None):
                raise InputError(f"{name} = {value!r}", "it is not text", f"Pass {name} as a string")
        if isinstance(self.disabled, str):
            found = "it is one text, and each of its letters would be a name"
            raise InputError(f"disabled = {self.disabled!r}", found, f"Pass [{self.disabled!r}]")
        memory = self.memory
        if memory is not None and not (isinstance(memory, int | float) and 0 < memory < math.inf):
            raise InputError(f"memory = {memory!r}", "that is no memory", "Give it in bytes")
