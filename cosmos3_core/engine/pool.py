"""The components that are loaded, each of them once, and only as long as somebody uses it.

Whoever works with a component holds it in a variable. Python counts those references, so the pool keeps weak ones: a
component that nobody holds any more is gone, whether its holder finished, failed or was dropped half way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from ..checkpoint.model import Model, Weights
from ..model.transformer import DecoderLayer, LayerSource
from ..model.weights import Target
from ..plan.cost.units import gib
from ..plan.placement import DISK, RESIDENT, STREAMED, TOWERS, Placement
from ..scenarios.request import Request
from .others import Others
from .stages import Stages
from .store import FromFiles, Gathered, Host, Load, Streamed

IDLE_BYTES = 1 << 30
"""Less idle memory is not worth the time that it takes to get it again."""

LOAD: dict[str, Callable[[Weights, Target], Any]] = {
    "understanding": lambda weights, target: weights.understanding(target),
    "generation": lambda weights, target: weights.generation(target),
    "vae encoder": lambda weights, target: weights.vae(target, "encoder"),
    "vae decoder": lambda weights, target: weights.vae(target, "decoder"),
    "sound encoder": lambda weights, target: weights.sound(target, "encoder"),
    "sound decoder": lambda weights, target: weights.sound(target, "decoder"),
}
"""The components by name: how each is loaded."""


class Asked:
    """A tower's layers, where `before` is called each time that one is asked for."""

    def __init__(self, layers: LayerSource, before: Callable[[], None]):
        self.layers, self.before = layers, before

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int, /) -> DecoderLayer:
        self.before()
        return self.layers[i]


class Pool:
    """Lends a model's components, loaded to `target` and placed by `placement`: what is resident there, or lies in host
    memory, is loaded once; the `others` may have some of it. `notes` say what the host did not do as it was asked."""

    def __init__(
        self,
        model: Model,
        target: Target,
        stages: Stages,
        placement: Placement,
        weights: Weights | None,
        others: Others,
    ):
        self.others = others
        self.model, self.target, self.stages, self.placement = model, target, stages, placement
        self.notes: list[str] = []
        self._weights, self._keeps = weights, True
        self._loaded: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._staying: list[Any] = []
        self._streams: WeakSet[Streamed] = WeakSet()

    def open_weights(self, request: Request | None = None) -> Weights:
        """Download the weight files if need be, with those of the sound codec for a `request` with sound, and check
        their headers; nothing is loaded."""
        sound = request is not None and request.sound
        if self._weights is None or (sound and self._weights.sound_files is None):
            with self.stages.stage("check weights"):
                self._weights = self._weights or Weights(self.model)  # another thread may have, while one was told
                if sound:
                    self._weights.open_sound()
        if request is not None and request.audio is not None:
            self._weights.open_sound(encoder=True)
        return self._weights

    def lease(self, name: str) -> Any:
        """The component of this name, loaded unless somebody holds it already. It stays until the last holder drops
        it."""
        component, weights = self._loaded.get(name), self.open_weights()
        if component is None:
            size = weights.bytes_of(name, layers=self.placement.of(name) != DISK)
            with self.stages.load(f"load {name}", size) as came:
                component = self._loaded.get(name)  # as above
                if component is None:
                    load, told = LOAD[name], weights.telling(came)
                    component = self._loaded[name] = self.others.own(load(told, self._target_of(name)))
                    if self._keeps and self.placement.of(name) in (RESIDENT, STREAMED):
                        self._staying.append(component)
        return component

    def _target_of(self, name: str) -> Target:
        """What a component's weights become where it is placed."""
        if name not in TOWERS:
            return self.target
        way, sharers, target = self.placement.of(name), self.others.sharers, self.others.target(self.target)
        if way == DISK:  # what lies in files everyone reads there
            return replace(target, hold=self.others.hold(FromFiles), table="cpu")
        if way != STREAMED and sharers is None:
            return replace(target, hold=self.others.hold(target.hold))
        memory, device = self.target.ops.memory, torch.device(self.target.device)

        def streamed(load: Load, count: int) -> LayerSource:
            host = Host(memory, device) if way == STREAMED else None
            shelf = Gathered(sharers, host) if sharers else host
            assert shelf is not None, "or the tower would be on the device"
            layers = Streamed(load, count, shelf, device, wraps=name == "generation")
            self._streams.add(layers)
            if host and host.refused:
                self.notes.append(f"the host refused to pin {gib(host.held)} for {name}: some copies take a detour")
            return layers

        return replace(target, hold=self.others.hold(streamed), table="cpu" if way == STREAMED else None)

    def close(self) -> None:
        """Keep nothing from now on: what somebody holds stays until he drops it."""
        self._keeps = False
        self._staying.clear()
        self.target.ops.memory.empty(torch.device(self.target.device))

    def give_back(self) -> None:
        """Return what the allocator holds and nothing uses, if it is much: the next part wants blocks of other
        sizes. To be called once a part is done and what it held is dropped."""
        for layers in self._streams:
            layers.rest()
        memory, device = self.target.ops.memory, torch.device(self.target.device)
        allocated, reserved = memory.used(device)
        if allocated is not None and reserved is not None and reserved - allocated > IDLE_BYTES:
            memory.empty(device)
