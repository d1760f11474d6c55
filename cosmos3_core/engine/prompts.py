"""Prompts, read once by the text tower."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from ..contract import Memory, Segment
from ..model.host_copy import HostCopy
from ..model.transformer import TextContext
from ..reference.hosts import free_memory
from .kept import Kept
from .pool import Asked, Pool
from .stages import Stages

Ids = tuple[int, ...]
SPARE = 4
"""How often the host's free memory holds a prompt that is kept there."""


class Prompts:
    """What prompts come to: each layer's keys and values, by the prompt's token ids: model, formats and device are the
    engine's. Those of the prompts used last are kept on the device, of so many `tokens` in all, where the same prompt
    is the same object, for which passes are captured once; and those that have no room there on the host, of so many
    `host_tokens`, from where they come back bit for bit."""

    def __init__(self, pool: Pool, stages: Stages, tokens: int, host_tokens: int = 0):
        self._pool, self._stages, self._host_tokens = pool, stages, host_tokens
        self._kept: Kept[Ids, TextContext] = Kept(tokens)
        self._spilled: Kept[Ids, Spilled] = Kept(host_tokens)

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[TextContext, ...]:
        """Of each prompt's token ids."""
        asked = [tuple(ids) for ids in prompts]
        texts = {ids: text for ids in dict.fromkeys(asked) if (text := self._found(ids)) is not None}
        if new := [ids for ids in dict.fromkeys(asked) if ids not in texts]:
            texts |= self._read(new)
        else:
            with self._stages.stage("read prompts"):
                pass  # told, as of every run
        for ids in asked:
            for gone in self._kept.keep(ids, texts[ids], len(ids)):
                self._spill(*gone)
        return tuple(texts[ids] for ids in asked)

    def kept(self) -> set[TextContext]:
        """Those that stay on the device for the next request."""
        return set(self._kept.values())

    def _found(self, ids: Ids) -> TextContext | None:
        if (text := self._kept.get(ids)) is not None:
            return text
        target, spilled = self._pool.target, self._spilled.get(ids)
        return None if spilled is None else spilled.back(target.ops.memory, torch.device(target.device))

    def _spill(self, ids: Ids, text: TextContext, size: int) -> None:
        """Keep on the host what goes from the device, unless it is there already, or the host has little left."""
        if size > self._host_tokens or self._spilled.get(ids) is not None:
            return
        if free_memory() > SPARE * sum(tensor.nbytes for segment in text.segments for tensor in segment):
            self._spilled.make_room(size)
            self._spilled.keep(ids, Spilled(text, self._pool.target.ops.memory), size)

    def _read(self, prompts: Sequence[Ids]) -> dict[Ids, TextContext]:
        tower = self._pool.lease("understanding")
        parts = 0 if self._pool.others.in_turn else len(tower.layers)
        with self._stages.stage("read prompts", parts) as begin_layer:
            asked = copy.copy(tower)
            if parts:
                asked.layers = Asked(tower.layers, begin_layer)
            texts = dict(zip(prompts, asked.read(prompts), strict=True))
        del tower, asked
        self._pool.give_back()
        return texts

    def close(self) -> None:
        """Keep nothing from now on."""
        self._host_tokens = 0
        self._kept.close()
        self._spilled.close()


class Spilled:
    """A prompt's keys and values in host memory."""

    def __init__(self, text: TextContext, memory: Memory):
        self._length = text.length
        begun = [HostCopy(memory, tensor) for segment in text.segments for tensor in segment]
        self._tensors = [pending.wait() for pending in begun]

    def back(self, memory: Memory, device: torch.device) -> TextContext:
        """On the device, as it was."""
        begun = [memory.fetch(torch.empty(host.shape, dtype=host.dtype, device=device), host) for host in self._tensors]
        there = iter([pending.wait() for pending in begun])
        segments = [Segment(k, v, static=True) for k, v in zip(there, there, strict=True)]
        return TextContext(tuple(segments), self._length)
