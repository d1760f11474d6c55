"""The only selection code. A named choice is met or refused with its reason; "auto" takes the first row that serves."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass, field
from typing import Any

from .. import reference
from ..contract import OPS, Ask, Backend, Device, InputError, Kernel, Ops, Unavailable

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Want:
    """What the user and the model ask of a device. `kernels` names rows by op; other ops are "auto"."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    kernels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, dtype: str, kernels: dict[str, str] | None = None) -> Want:
        """What running a transformer of this config takes."""
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return cls(dtype, *heads, kernels or {})


@dataclass(frozen=True)
class Refusal:
    """A row that was passed over, and why."""

    op: str
    name: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The row that serves an op."""

    op: str
    kernel: Kernel
    named: bool


@dataclass(frozen=True)
class Plan:
    """What a run will use. Made by `resolve`, printed by `--dry-run`, recorded in the manifest."""

    backend: Backend
    device: Device
    dtype: str
    choices: tuple[Choice, ...]
    refusals: tuple[Refusal, ...]

    def build_ops(self) -> Ops:
        """Import and build the chosen kernels."""
        return Ops(**{choice.op: choice.kernel.build(self.device) for choice in self.choices})

    def to_json(self) -> dict:
        return {
            "backend": self.backend.name,
            "device": vars(self.device),
            "dtype": self.dtype,
            "kernels": {choice.op: choice.kernel.name for choice in self.choices},
            "named": sorted(choice.op for choice in self.choices if choice.named),
            "refused": [vars(refusal) for refusal in self.refusals],
        }


BACKENDS = {backend.name: backend for backend in (reference.BACKEND,)}


def find_backend(name: str | None) -> Backend:
    """The backend of that name; without a name the only one there is. Raises InputError."""
    if name is None:
        (backend,) = BACKENDS.values()
        return backend
    if name not in BACKENDS:
        close = difflib.get_close_matches(name, BACKENDS, 1)
        hint = f"Did you mean {close[0]}?" if close else f"Backends here: {', '.join(BACKENDS)}"
        raise InputError(f"--backend {name}", "no installed package provides it", hint)
    return BACKENDS[name]


def resolve(want: Want, backend: Backend) -> Plan:
    """Probe the backend's device and choose one row for each op. Raises InputError for a choice that cannot be met."""
    if want.dtype not in DTYPES:
        raise InputError(f"dtype {want.dtype!r}", "weights are not run in it", f"Dtypes are {', '.join(DTYPES)}")
    for op in want.kernels:
        if op not in OPS:
            raise InputError(f"a kernel for {op!r}", "there is no such op", f"Ops are {', '.join(OPS)}")
    try:
        device = backend.probe()
    except Unavailable as reason:
        raise InputError(f"--backend {backend.name}", str(reason), "Or choose another --backend") from None
    choices: list[Choice] = []
    refusals: list[Refusal] = []
    for op in OPS:
        ask = Ask(
            op=op, device=device, dtype=want.dtype, heads=want.heads, kv_heads=want.kv_heads, head_dim=want.head_dim
        )
        choices.append(_choose(ask, backend, want.kernels.get(op), refusals))
    return Plan(backend, device, want.dtype, tuple(choices), tuple(refusals))


def _choose(ask: Ask, backend: Backend, named: str | None, refusals: list[Refusal]) -> Choice:
    rows = [kernel for kernel in backend.kernels if kernel.op == ask.op]
    if backend is not reference.BACKEND:
        rows += [kernel for kernel in reference.BACKEND.kernels if kernel.op == ask.op]
    if named is not None:
        known = [kernel.name for kernel in rows]
        rows = [kernel for kernel in rows if kernel.name == named]
        if not rows:
            raise InputError(f"--kernel {ask.op}={named}", "no such kernel", f"{backend.name} has {', '.join(known)}")
    refused = []
    for kernel in rows:
        reason = _reason_against(kernel, ask)
        if reason is None:
            refusals += refused
            return Choice(ask.op, kernel, named is not None)
        refused.append(Refusal(ask.op, kernel.name, reason))
    reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused)
    asked = f"--kernel {ask.op}={named}" if named else f"an {ask.op} kernel of backend {backend.name}"
    raise InputError(asked, reasons or "the backend declares none", "Choose another kernel, dtype or backend")


def _reason_against(kernel: Kernel, ask: Ask) -> str | None:
    """Why a row cannot serve, in the order in which a reader can do something about it."""
    if "*" not in kernel.arch and ask.device.arch not in kernel.arch:
        return f"written for {', '.join(kernel.arch)}, and this device is {ask.device.arch}"
    if ask.dtype not in kernel.dtypes:
        return f"takes {', '.join(kernel.dtypes)}, not {ask.dtype}"
    if ask.format not in kernel.formats:
        return f"takes formats {', '.join(kernel.formats)}, not {ask.format}"
    missing = [name for name in kernel.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs the package {', '.join(missing)}"
    return kernel.refuse(ask)
