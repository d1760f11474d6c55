"""The towers of one process among several: the same layers on a part of the rows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..contract import Ops, Residual
from ..model.packing import Packing
from ..model.transformer import Branches, GenerationTower, TextContext, UnderstandingTower
from ..model.vae import VideoVAE
from .attention import Exchanged, text_of
from .patches import by_rows
from .ranks import Ranks, parts
from .stages import Stage, staged


class SplitTower:
    """model.GenerationTower, which has this process's layers, and these see its media tokens; of the rows between them
    it has those that are its among the processes which split the layers. What goes in and out is
    whole: every process has the latents, and the last ones of a pipeline get the velocities."""

    def __init__(self, tower: GenerationTower, ranks: Ranks):
        self._tower, self._ranks = copy.copy(tower), ranks
        self._stage = Stage(ranks)
        if ranks.layout.split > 1:
            self._tower.attend = Exchanged(tower.ops.attention, ranks)

    @property
    def ops(self) -> Ops:
        return self._tower.ops

    @property
    def device(self) -> torch.device:
        return self._tower.device

    def sweep(self) -> None:
        """As GenerationTower's."""
        self._tower.sweep()

    def branches(self, packing: Packing, texts: Sequence[TextContext]) -> Branches:
        whole, rows = self._tower.branches(packing, texts), self._ranks.rows.part(packing.length)
        return replace(whole, cos=whole.cos[:, rows].contiguous(), sin=whole.sin[:, rows].contiguous())

    def forward(
        self, branches: Branches, latents: Sequence[Tensor], timestep: float | Tensor, *, a16: bool = False
    ) -> list[list[Tensor]]:
        """As GenerationTower's; zeros of all but the last process of a pipeline."""
        tower, count, length = self._tower, len(branches.texts), branches.packing.length
        rows, split = self._ranks.rows, self._ranks.tensor
        tokens = rows.part(length)
        whole = count * (tokens.stop - tokens.start)
        own = split.part(whole)
        if self._stage.first:
            x = tower.embed(branches, latents, timestep).x_MI.unflatten(0, (count, length))
            residual = Residual(x[:, tokens].flatten(0, 1)[own])
            del x
        else:
            like = torch.empty(0, dtype=tower.dtype, device=tower.device)
            residual = self._stage.received(own.stop - own.start, tower.config.hidden_size, like)
        tower.blocks(residual, branches, 0, len(tower.layers), a16=a16)
        if not self._stage.last:
            self._stage.hand_on(residual)
            return [[torch.zeros_like(latent, dtype=tower.dtype) for latent in latents]] * count
        y = tower.normed(residual)
        if split.count > 1:
            y = split.gathered_rows(y, parts(whole, split.count), 0)
        y = y.unflatten(0, (count, -1))
        if rows.count > 1:
            y = rows.gathered_rows(y, parts(length, rows.count), 1)
        return tower.outputs(y.flatten(0, 1), branches)


def shared_out(ranks: Ranks, component: Any) -> Any:
    """A component of a model as this process has it."""
    if ranks.vae.count > 1 and isinstance(component, VideoVAE):
        return by_rows(component, ranks.vae)
    if ranks.layout.split * ranks.layout.apart > 1 and isinstance(component, GenerationTower):
        return SplitTower(component, ranks)
    if isinstance(component, UnderstandingTower):
        component = staged(component, ranks) if ranks.layout.apart > 1 else copy.copy(component)
        component.keeps = partial(text_of, ranks=ranks)
    return component
