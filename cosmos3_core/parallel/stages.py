"""Pipeline parallel: each process has some of both towers' layers, one after the other, and hands the rows on. While it
is at one guidance branch, the next process is at the one before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..contract import Residual
from ..model.transformer import DecoderLayer, LayerSource, UnderstandingTower
from ..model.weights import Hold
from .ranks import Ranks


class Stage:
    """This process's place in the pipeline."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self._sending: Callable[[], Tensor] | None = None

    @property
    def first(self) -> bool:
        return self.ranks.before is None

    @property
    def last(self) -> bool:
        return self.ranks.after is None

    def received(self, rows: int, width: int, like: Tensor) -> Residual:
        """The rows as the process before has left them."""
        assert self.ranks.before is not None, "the first one makes them"
        return Residual(self.ranks.before.sent(like.new_empty(rows, width), 0)())

    def hand_on(self, residual: Residual) -> None:
        """Give them to the process after, if there is one; what was given before has arrived by then."""
        if self.ranks.after is None:
            return
        if self._sending is not None:
            self._sending()
        x_MI, delta_MI = residual.x_MI, residual.delta_MI
        self._sending = self.ranks.after.sent((x_MI if delta_MI is None else x_MI + delta_MI).contiguous(), 0)


def held(hold: Hold, ranks: Ranks) -> Hold:
    """What keeps this process's layers of a tower."""

    def own(load: Callable[[int], DecoderLayer], count: int) -> LayerSource:
        layers = ranks.pipeline.part(count)
        return hold(lambda i: load(layers.start + i), layers.stop - layers.start)

    return own


def staged(tower: UnderstandingTower, ranks: Ranks) -> UnderstandingTower:
    """The text tower with these layers: every process has the keys and values of its own. Of the rows between them it
    has those that are its among the processes which split the layers."""
    own, stage, width = copy.copy(tower), Stage(ranks), tower.config.hidden_size
    like = torch.empty(0, dtype=tower.dtype, device=tower.device)

    def enter(token_ids: Sequence[int]) -> Residual:
        rows = ranks.tensor.part(len(token_ids))
        if stage.first:
            return tower.embed(token_ids[rows])
        return stage.received(rows.stop - rows.start, width, like)

    own.enter, own.leave = enter, None if stage.last else stage.hand_on
    return own
