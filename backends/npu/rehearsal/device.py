"""Executes what torch is asked to do on an NPU, on the host, on the very bytes of the device's tensors.

An operator of the vendor goes to its own Meta kernel first, which checks the call, and what the emulation returns has
to have the shapes and dtypes that it said. Everything else is torch's for processors. Views stay torch_npu's.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .emulated import A5, ON_950, OPS, SINCE
from .emulated.limits import Limit

ALLOCATING = {
    "empty",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "set_",
    "resize_",
    "_unsafe_view",
    "record_stream",
}
"""Nothing is computed: torch_npu's own."""
PERHAPS_VIEWS = {"contiguous", "reshape", "to", "flatten"}
"""A view where one can be, else a copy: one that torch_npu would make on the device."""
WAITING = {"_local_scalar_dense", "item", "nonzero", "equal", "masked_select", "is_nonzero", "unique2"}
"""The host waits for the device's answer."""

PRODUCTS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "convolution"}
PRODUCTS |= {"linear", "matmul", "mm", "addmm", "bmm"}
"""In 16 bits a processor takes ten to hundreds of times as long as in fp32: in that they are computed, and rounded."""

HOST = torch.device("cpu")


@dataclass
class Launches:
    """How often the device was asked for an operator, by name, and which of these made the host wait. `unchecked` are
    operators of the vendor without a Meta kernel."""

    counts: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    unchecked: set[str] = field(default_factory=set)

    def clear(self) -> None:
        self.counts.clear()
        self.waits.clear()


def on_npu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == "npu"


def check_dtype(x: Tensor) -> None:
    """Raises Limit for one that the device does not have."""
    if x.dtype in (torch.float64, torch.complex128):
        raise Limit(f"the device has no {x.dtype}")


def alias(x: Tensor) -> Tensor:
    """The same bytes as a tensor of the host."""
    storage = x.untyped_storage()
    size = storage.nbytes()
    if not size:
        return torch.empty(x.shape, dtype=x.dtype)
    buffer = (ctypes.c_char * size).from_address(storage.data_ptr())
    bytes_ = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(bytes_, x.storage_offset(), x.shape, x.stride())


class Operator(NamedTuple):
    """What there is to know of an overload of torch's before it is called."""

    namespace: str
    name: str
    passes: bool
    """It computes nothing, or is a view: torch_npu's own."""


@functools.cache
def operator(func: Any) -> Operator:
    namespace, name = func._schema.name.split("::")
    aliases = (found.alias_info for found in func._schema.returns)
    views = any(info is not None and not info.is_write for info in aliases)
    view = namespace == "aten" and views and name not in PERHAPS_VIEWS
    return Operator(namespace, name, view or name in ALLOCATING)


def mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """The function of everything in nested tuples, lists and dicts."""
    if isinstance(x, tuple | list):
        return type(x)([mapped(function, part) for part in x])
    if isinstance(x, dict):
        return {key: mapped(function, part) for key, part in x.items()}
    return function(x)


def leaves(x: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and dicts."""
    if isinstance(x, tuple | list | dict):
        for part in x.values() if isinstance(x, dict) else x:
            yield from leaves(part)
    else:
        yield x


def in_fp32(func: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """A function of floats, in fp32 and rounded to the dtype of the first."""
    wide = mapped(lambda x: x.float() if isinstance(x, Tensor) else x, (args, options))
    found: Tensor = func(*wide[0], **wide[1])
    return found.to(args[0].dtype)


class Rehearsal(TorchDispatchMode):
    """While it is entered, NPUs compute. One that is entered in every thread shares its `launches`."""

    def __init__(self, launches: Launches, soc: int):
        super().__init__()
        self.launches, self.soc = launches, soc

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        namespace, name, passes = operator(func)
        given = list(leaves((args, options)))
        device = next((leaf for leaf in given if isinstance(leaf, torch.device)), None)
        if passes or ((device is None or device.type != "npu") and not any(map(on_npu, given))):
            return func(*args, **options)
        on_host: dict[int, Tensor] = {}
        of_storage: dict[int, Tensor] = {}

        def host(x: Any) -> Any:
            if isinstance(x, torch.device):
                return HOST
            if not on_npu(x):
                return x
            check_dtype(x)
            found = alias(x)
            if namespace == "c10d":  # work that goes on behind the call keeps its tensors, and these the device's
                found.of_device = x  # type: ignore[attr-defined]
            on_host[id(found)] = x
            of_storage[found.untyped_storage().data_ptr()] = x
            return found

        ours, with_ = mapped(host, (args, options))
        held = (ours, with_)  # ids stay whose they are while these live
        if namespace == "npu":
            found = self.vendors(func, name, ours, with_)
            self.launches.counts[f"{namespace}::{name}"] += 1
            return mapped(self.back, found)
        self.launches.counts[f"{namespace}::{name}"] += 1
        stays = not on_npu(args[0]) if name == "copy_" else device is not None and device.type != "npu"
        if stays or name in WAITING:
            self.launches.waits[f"{namespace}::{name}"] += 1
        with_.pop("pin_memory", None)
        result = in_fp32(func, ours, with_) if name in PRODUCTS else func(*ours, **with_)
        if name in PERHAPS_VIEWS and result.untyped_storage().data_ptr() in of_storage:
            self.launches.counts[f"{namespace}::{name}"] -= 1

        def place(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if stays:  # what was the host's already is another tensor than the device's all the same
                return x.clone() if x.untyped_storage().data_ptr() in of_storage else x
            if id(x) in on_host:
                return on_host[id(x)]
            whole = of_storage.get(x.untyped_storage().data_ptr()) if x.numel() else None
            if whole is not None and whole.dtype == x.dtype:
                return whole.as_strided(x.shape, x.stride(), x.storage_offset())
            return self.back(x)

        placed = mapped(place, result)
        del held
        return placed

    def vendors(self, func: Any, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if name not in OPS:
            raise Limit(f"npu::{name} is not emulated")
        if self.soc < SINCE[name]:
            raise Limit(f"npu::{name} is not documented for a chip of the kind {self.soc}")
        expected = self.expected(func, name, args, options)
        emulated = ON_950.get(name, OPS[name]) if self.soc >= A5 else OPS[name]
        found = emulated(*args, **options)
        if expected is not None:
            for ours, theirs in zip(leaves(found), leaves(expected), strict=True):
                if isinstance(theirs, Tensor) and (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                    said = (
                        f"{list(ours.shape)} of {ours.dtype}, and the vendor says {list(theirs.shape)}, {theirs.dtype}"
                    )
                    raise AssertionError(f"npu::{name} is emulated as {said}")
        return found

    def expected(self, func: Any, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What the vendor's Meta kernel says of the call, which it may refuse; None where it has none."""
        meta = mapped(lambda x: x.to("meta") if isinstance(x, Tensor) else x, (args, options))
        try:
            return func(*meta[0], **meta[1])
        except NotImplementedError:
            self.launches.unchecked.add(name)
            return None

    @staticmethod
    def back(x: Any) -> Any:
        """A result of the host as the device's."""
        if not isinstance(x, Tensor):
            return x
        check_dtype(x)
        out = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="npu")
        if x.numel():
            alias(out).copy_(x)
        return out
