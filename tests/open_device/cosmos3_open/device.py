"""Tensors of the device, every operation on them, and its registration with torch."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "opendev"
MEMORY = 8 * 2**30
aten = torch.ops.aten
CROSSING = (aten.copy_, aten._to_copy)
"""The operations that take tensors of the host beside the device's."""


class Allocator:
    """Bytes of the storages that tensors of the device hold: `now`, the most so far, and the most there may be."""

    def __init__(self):
        self.now, self.peak, self.limit = 0, 0, MEMORY
        self._counted: set[int] = set()

    def count(self, storage: torch.UntypedStorage) -> None:
        """Raises torch.OutOfMemoryError beyond the limit. A storage counts once, until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted:
            return
        if self.now + size > self.limit:
            raise torch.OutOfMemoryError(f"{NAME} has {self.limit - self.now} of {self.limit} bytes left, not {size}")
        self._counted.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size


ALLOCATOR = Allocator()


class OpenTensor(Tensor):
    """A tensor of the device. Its elements are those of `host`, at the same strides."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor, index: int = 0) -> OpenTensor:
        ALLOCATOR.count(host.untyped_storage())
        # What torch allows a tensor that was made in inference mode depends on the mode it was made in.
        with torch.inference_mode(host.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                host.shape,
                strides=host.stride(),
                storage_offset=host.storage_offset(),
                dtype=host.dtype,
                device=torch.device(NAME, index),
            )
        made.host = host
        return made

    def __repr__(self) -> str:
        return f"{NAME} {self.host!r}"

    @classmethod
    def __torch_dispatch__(cls, op: OpOverload, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(op, args, kwargs or {})


def compute(op: OpOverload, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do on the host what is asked of the device. Raises RuntimeError for a tensor of the host among the device's."""
    if op.overloadpacket is aten.to:  # says in many ways where to; what it is made of says it in one
        return op.decompose(*args, **kwargs)
    if op.overloadpacket is aten._copy_from:  # from the first to the second
        op, args = aten.copy_.default, (args[1], args[0])
    given: dict[int, Tensor] = {}
    index = None
    for tensor in tree_leaves([args, kwargs]):
        if isinstance(tensor, OpenTensor):
            given[id(tensor.host)] = tensor
            index = tensor.device.index if index is None else index
        elif isinstance(tensor, Tensor):
            given[id(tensor)] = tensor
        else:
            continue
        strange = tensor.dim() and tensor.device != torch.device(NAME, index or 0)
        if strange and op.overloadpacket not in CROSSING:
            raise RuntimeError(f"{op} takes tensors of {NAME}, and one is on {tensor.device}")
    place = torch.device(kwargs.get("device") or torch.device(NAME, index or 0))

    def lowered(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        return value.host if isinstance(value, OpenTensor) else value

    def raised(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in given:  # written in place
            return given[id(value)]
        return OpenTensor(value, place.index or 0) if place.type == NAME else value

    return tree_map(raised, op(*tree_map(lowered, args), **tree_map(lowered, kwargs)))


@functools.cache
def register() -> torch.library.Library:
    """Make torch know the device. What is returned keeps its operators registered."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("aten", "IMPL")
    # Those that reach the device without a tensor of it, or past `__torch_dispatch__`: torch.tensor() does.
    for op in (aten.empty.memory_format, aten.empty_strided.default, aten.arange.start_step, aten._copy_from.default):
        library.impl(op, lambda *args, _op=op, **kwargs: compute(_op, args, kwargs), "PrivateUse1")
    return library
