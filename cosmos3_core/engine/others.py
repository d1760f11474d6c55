"""The other processes, where several devices share a request."""

from __future__ import annotations

from typing import Any

import torch

from ..contract import Comm
from ..model.weights import Hold, Target
from ..parallel.ranks import Circle, Ranks
from ..parallel.stages import held
from ..parallel.tensor import split
from ..parallel.towers import shared_out
from ..plan import Plan


class Others:
    """Those of a plan; none where its layout is one device's."""

    def __init__(self, plan: Plan, comm: Comm, device: torch.device):
        self._plan, self._comm, self._device = plan, comm, device
        self._ranks: Ranks | None = None

    def meet(self) -> None:
        """Find them, once. Raises InputError where they have not been started."""
        if self._plan.layout.size > 1 and self._ranks is None:
            self._ranks = Ranks(self._plan, self._comm, self._device)

    def target(self, target: Target) -> Target:
        """What weights become that this process has a part of."""
        if self._ranks is None or self._ranks.tensor.count == 1:
            return target
        return split(target, self._ranks.tensor, self._plan.in_format)

    def own(self, component: Any) -> Any:
        """What this process uses of a component of the model."""
        return component if self._ranks is None else shared_out(self._ranks, component)

    @property
    def sharers(self) -> Circle | None:
        """The processes that have the layers' weights among them; None where each has its own."""
        return self._ranks.hsdp if self._ranks and self._ranks.hsdp.count > 1 else None

    @property
    def dealt(self) -> Ranks | None:
        """The processes to which guidance branches are dealt out, or in which they follow each other; None where each
        has them all."""
        ranks = self._ranks
        return ranks if ranks and ranks.cfg.count * ranks.pipeline.count > 1 else None

    @property
    def in_turn(self) -> bool:
        """Whether they are at different layers at a time: what all decide together, as whether to stop, they decide
        between passes."""
        return bool(self._ranks and self._ranks.pipeline.count > 1)

    def hold(self, hold: Hold) -> Hold:
        """What keeps a tower's layers, those of this process."""
        return held(hold, self._ranks) if self._ranks and self.in_turn else hold
