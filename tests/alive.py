"""What is alive: how many bytes of tensors at once, on any torch device, also on "meta", where nothing is allocated.
And which components of a model."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmos3_core.checkpoint.model import Weights


class Alive(TorchDispatchMode):
    """Counts the storages that operations make while it is on; `peak` is the most that lived at the same time. What
    exists before and is only read does not count, unless a view of it is made."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.storages = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.storages.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.storages.discard(key)
        self.now -= size


class Loaded:
    """What `Weights` has loaded so far, by stage, without holding any of it."""

    def __init__(self, monkeypatch):
        self.seen = []
        for name in ("understanding", "generation", "vae"):
            monkeypatch.setattr(Weights, name, self._watched(getattr(Weights, name)))

    def _watched(self, load):
        def watched(weights, target, *halves):
            component = load(weights, target, *halves)
            self.seen.append((" ".join((load.__name__, *halves)), weakref.ref(component)))
            return component

        return watched

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    @property
    def alive(self) -> list[str]:
        return sorted(name for name, component in self.seen if component() is not None)
