"""Prompts, read once by the text tower."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ..model.transformer import TextContext
from .kept import Kept
from .pool import Asked, Pool
from .stages import Stages

Ids = tuple[int, ...]


class Prompts:
    """What prompts come to: each layer's keys and values. Those of the prompts used last are kept by token ids, of so
    many `tokens` in all; the same prompt is then the same object, for which passes are captured once."""

    def __init__(self, pool: Pool, stages: Stages, tokens: int):
        self._pool, self._stages = pool, stages
        self._kept: Kept[Ids, TextContext] = Kept(tokens)

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[TextContext, ...]:
        """Of each prompt's token ids."""
        asked = [tuple(ids) for ids in prompts]
        texts = {ids: text for ids in asked if (text := self._kept.get(ids)) is not None}
        if new := [ids for ids in dict.fromkeys(asked) if ids not in texts]:
            texts |= self._read(new)
        else:
            with self._stages.stage("read prompts"):
                pass  # told, as of every run
        for ids in asked:
            self._kept.keep(ids, texts[ids], len(ids))
        return tuple(texts[ids] for ids in asked)

    def kept(self) -> set[TextContext]:
        """Those that stay for the next request."""
        return set(self._kept.values())

    def _read(self, prompts: Sequence[Ids]) -> dict[Ids, TextContext]:
        tower = self._pool.lease("understanding")
        with self._stages.stage("read prompts", len(tower.layers)) as begin_layer:
            asked = copy.copy(tower)
            asked.layers = Asked(tower.layers, begin_layer)
            texts = dict(zip(prompts, asked.read(prompts), strict=True))
        del tower, asked
        self._pool.give_back()
        return texts

    def close(self) -> None:
        """Keep nothing from now on."""
        self._kept.close()
