"""The other processes, where several devices share a request; torch.distributed is imported where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..contract import Comm
from ..plan import Plan

if TYPE_CHECKING:
    from ..parallel.ranks import Circle, Ranks


class Others:
    """Those of a plan; none where its layout is one device's."""

    def __init__(self, plan: Plan, comm: Comm, device: torch.device):
        self._plan, self._comm, self._device = plan, comm, device
        self._ranks: Ranks | None = None

    def meet(self) -> None:
        """Find them, once. Raises InputError where they have not been started."""
        if self._plan.layout.size > 1 and self._ranks is None:
            from ..parallel.ranks import Ranks

            self._ranks = Ranks(self._plan, self._comm, self._device)

    def own(self, component: Any) -> Any:
        """What this process uses of a component of the model."""
        if self._ranks is None:
            return component
        from ..parallel.towers import shared_out

        return shared_out(self._ranks, component)

    @property
    def circle(self) -> Circle | None:
        """The processes to which guidance branches are dealt out; None where one has them all."""
        return self._ranks.cfg if self._ranks and self._ranks.cfg.count > 1 else None
