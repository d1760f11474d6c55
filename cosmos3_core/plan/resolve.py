"""The only selection code. A named choice is met or refused with its reason; "auto" takes the first row that serves."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from .. import reference
from ..contract import FORMATTED, OPS, Ask, Backend, Device, InputError, Kernel, Ops, RunError, Unavailable
from .discovery import BUILT_IN, conflict, extras, installed, load, pip_install, probe, reason_of

if TYPE_CHECKING:
    from ..model.weights import Target

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Want:
    """What the user and the model ask of a device. `kernels` names rows by op; other ops are "auto". `formats` names
    quantization formats by op, of those in `FORMATTED`."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Any,
        dtype: str,
        kernels: Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
    ) -> Want:
        """What running a transformer of this config takes."""
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return cls(dtype, *heads, kernels or {}, formats or {})


@dataclass(frozen=True)
class Refusal:
    """A row that was passed over, and why."""

    op: str
    name: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The row that serves an op, in a quantization format or "none"."""

    op: str
    kernel: Kernel
    named: bool
    format: str = "none"


@dataclass(frozen=True)
class Plan:
    """What a run will use. Made by `resolve`, printed by --dry-run, recorded in the manifest."""

    backend: Backend
    device: Device
    dtype: str
    choices: tuple[Choice, ...]
    refusals: tuple[Refusal, ...]
    kept: tuple[Choice, ...] = ()
    """For each op with a format, the row that serves the parts of the model which are never quantized."""

    @property
    def formats(self) -> dict[str, str]:
        """Quantization formats by op, where there is one."""
        return {choice.op: choice.format for choice in self.choices if choice.format != "none"}

    def target(self) -> Target:
        """What a model's weights become under this plan. Imports and builds the chosen kernels."""
        import torch

        from ..model.weights import Target

        ops = self.build_ops()
        return Target(
            ops=ops,
            kept=self.build_kept(ops),
            device=self.backend.torch_device,
            dtype=getattr(torch, self.dtype),
            format=self.formats.get("pack_linear", "none"),
        )

    def build_ops(self) -> Ops:
        """Import and build the chosen kernels. Raises RunError where a kernel that declared it can serve does not."""
        able = {choice.op: choice.kernel.formats for choice in self.choices if choice.op not in FORMATTED}
        return Ops(**{choice.op: self._build(choice) for choice in self.choices}, formats=able)

    def build_kept(self, ops: Ops) -> Ops:
        """The built `ops` as the parts of the model that are never quantized have them."""
        return replace(ops, **{choice.op: self._build(choice) for choice in self.kept})

    def _build(self, choice: Choice) -> Any:
        try:
            return choice.kernel.build(self.device)
        except Exception as error:
            asked = f"building {choice.op}={choice.kernel.name} of backend {self.backend.name}"
            then = f"`kernel` {choice.op}=eager does without it"
            if choice.format != "none":
                then = f"Leave `format` {choice.op}={choice.format} out to do without it"
            raise RunError(asked, reason_of(error), then) from error

    def require(self, kernels: Mapping[str, str]) -> None:
        """Raises InputError unless each op named here is served by the row named here."""
        _check_ops(kernels)
        chosen = {choice.op: choice for choice in self.choices}
        refused = {(refusal.op, refusal.name): refusal.reason for refusal in self.refusals}
        for op, name in kernels.items():
            choice, known = chosen[op], [row.name for row in rows(self.backend, op)]
            if choice.kernel.name == name:
                continue
            asked, found = f"`require` {op}={name}", f"the plan has {choice.kernel.name}"
            if name not in known:
                why, then = f"{self.backend.name} has no such kernel", f"It has {', '.join(known)}"
            elif (op, name) in refused:
                why, then = f"{name}: {refused[op, name]}", "Change what it objects to, or drop `require`"
            else:
                why = "it was named" if choice.named else "it serves and is preferred"
                then = f"Type `kernel` {op}={name} to use the other"
            raise InputError(asked, f"{found}; {why}", then)

    def to_json(self) -> dict:
        return {
            "backend": self.backend.name,
            "device": vars(self.device) | {"versions": dict(self.device.versions)},
            "dtype": self.dtype,
            "kernels": {choice.op: choice.kernel.name for choice in self.choices},
            "formats": self.formats,
            "kept": {choice.op: choice.kernel.name for choice in self.kept},
            "named": sorted(choice.op for choice in self.choices if choice.named),
            "refused": [vars(refusal) for refusal in self.refusals],
        }


def choose_backend(name: str | None = None, disabled: Collection[str] = ()) -> tuple[Backend, Device, str]:
    """The backend to run on, its device, and what to tell the user of the choice (lines, or "" where it was named).

    A name is met or is an InputError. Without one the only accelerator that answers is used. Several, or none where
    torch sees one whose package is missing, are InputErrors; otherwise it is `reference`. `disabled` backends count as
    not installed.
    """
    if name is not None:
        backend = load(name, disabled)
        try:
            return backend, probe(backend), ""
        except Unavailable as error:
            raise InputError(f"`backend` {name}", sentence(error), "Or choose another `backend`") from None
    available, reasons, lines = _survey(disabled)
    if len(available) > 1:
        found = " and ".join(f"{backend.name} ({device.name})" for backend, device in available)
        then = " or ".join(f"`backend` {backend.name}" for backend, _ in available)
        raise InputError("no `backend`", f"there is more than one accelerator here: {found}", f"Type {then}")
    if available:
        ((backend, device),) = available
        why = "it is the only accelerator here"
    else:
        if not disabled:  # whoever disables backends has decided what not to use
            _check_nothing_missed(reasons, mendable=bool(lines))
        backend, device = reference.BACKEND, reference.BACKEND.probe()
        why = "no accelerator backend is available here (see cosmos3 backends)"
    lines.append(f"backend {backend.name}: {device.name}, chosen because {why}")
    return backend, device, "\n".join(lines)


def sentence(error: Unavailable) -> str:
    """A backend's reason, as a part of a message: one line, without the full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _survey(disabled: Collection[str]) -> tuple[list[tuple[Backend, Device]], dict[str, str], list[str]]:
    """(the accelerators that answer, why the others do not, warnings of packages at fault)."""
    available, reasons, warnings = [], {}, []
    for name, found in installed(disabled).items():
        try:
            if error := conflict(found):
                raise error
            if name != BUILT_IN:
                backend = load(name)
                available.append((backend, probe(backend)))
        except Unavailable as error:
            reasons[name] = sentence(error)
        except InputError as error:
            reasons[name] = error.found
            warnings.append(f"warning: skipped: {error}")
    return available, reasons, warnings


def _check_nothing_missed(reasons: dict[str, str], mendable: bool) -> None:
    """InputError where torch sees an accelerator that one of our packages is for: a run on the host instead would take
    hours, and nobody asked for it."""
    visible = _visible_accelerator()
    if visible not in extras():
        return
    # A package at fault is the likelier cause than one that is not there.
    missing = [] if mendable else [pip_install(name) for name in extras() if name not in installed()]
    because = "".join(f"; {name}: {reason}" for name, reason in reasons.items())
    then = f"Type {' or '.join(missing)}, or " if missing else "Type "
    found = f"torch sees an accelerator of type {visible}, and no installed backend can use it{because}"
    raise InputError("no `backend`", found, f"{then}`backend` {BUILT_IN} for the CPU")


def _visible_accelerator() -> str | None:
    """Torch's name for the type of this machine's accelerator."""
    if version("torch").endswith("+cpu") and not entry_points(group="torch.backends"):
        return None  # a build for no accelerator, and nothing that adds one: spares the seconds of importing torch
    import torch

    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else None


def rows(backend: Backend, op: str) -> list[Kernel]:
    """The rows that may serve an op, in order of preference: the backend's own, then eager torch."""
    own = [kernel for kernel in backend.kernels if kernel.op == op]
    return own + [kernel for kernel in reference.BACKEND.kernels if kernel.op == op and kernel not in own]


def resolve(want: Want, backend: Backend, device: Device) -> Plan:
    """Choose one row for each op on this device. Raises InputError for a choice that cannot be met."""
    if want.dtype not in DTYPES:
        raise InputError(f"dtype {want.dtype!r}", "weights are not run in it", f"Dtypes are {', '.join(DTYPES)}")
    _check_ops(want.kernels)
    _check_formats(want.formats, backend)
    choices: list[Choice] = []
    refusals: list[Refusal] = []
    for op in OPS:
        ask = _ask(op, want, device, want.formats.get(op, "none"))
        choices.append(_choose(ask, backend, want.kernels.get(op), refusals))
    quantized = [choice.op for choice in choices if choice.format != "none"]
    kept = tuple(_choose(_ask(op, want, device, "none"), backend, None, []) for op in quantized)
    return Plan(backend, device, want.dtype, tuple(choices), tuple(refusals), kept)


def why_not(kernel: Kernel, want: Want, device: Device) -> str | None:
    """Why this row cannot serve the wish on this device, or None; in the wish's format for its op, or where there is
    none in the first of the formats that it is for."""
    return _reason_against(kernel, _ask(kernel.op, want, device, want.formats.get(kernel.op, kernel.formats[0])))


def _ask(op: str, want: Want, device: Device, format: str) -> Ask:
    heads = {"heads": want.heads, "kv_heads": want.kv_heads, "head_dim": want.head_dim}
    return Ask(op=op, device=device, dtype=want.dtype, format=format, **heads)


def _check_ops(kernels: Mapping[str, str]) -> None:
    for op in kernels:
        if op not in OPS:
            raise InputError(f"a kernel for {op!r}", "there is no such op", f"Ops are {', '.join(OPS)}")


def formats_of(backend: Backend, op: str) -> list[str]:
    """The quantization formats that rows of a backend declare for an op, in the rows' order, "none" left out."""
    return [name for name in dict.fromkeys(f for row in rows(backend, op) for f in row.formats) if name != "none"]


def _check_formats(formats: Mapping[str, str], backend: Backend) -> None:
    for op, name in formats.items():
        asked = f"`format` {op}={name}"
        if op not in FORMATTED:
            raise InputError(asked, f"{op} is not quantized", f"Ops with a format are {', '.join(FORMATTED)}")
        known = formats_of(backend, op)
        if name != "none" and name not in known:
            then = f"It has {', '.join(known)}" if known else "Leave `format` out, or choose another `backend`"
            raise InputError(asked, f"no {op} kernel of {backend.name} has that format", then)


def _choose(ask: Ask, backend: Backend, named: str | None, refusals: list[Refusal]) -> Choice:
    candidates = rows(backend, ask.op)
    if named is not None:
        known = [kernel.name for kernel in candidates]
        candidates = [kernel for kernel in candidates if kernel.name == named]
        if not candidates:
            raise InputError(f"`kernel` {ask.op}={named}", "no such kernel", f"{backend.name} has {', '.join(known)}")
    else:  # a row for another format only is no refusal worth telling
        candidates = [kernel for kernel in candidates if ask.format in kernel.formats]
    refused = []
    for kernel in candidates:
        reason = _reason_against(kernel, ask)
        if reason is None:
            refusals += refused
            return Choice(ask.op, kernel, named is not None, ask.format)
        refused.append(Refusal(ask.op, kernel.name, reason))
    reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused)
    asked = f"`kernel` {ask.op}={named}" if named else f"`format` {ask.op}={ask.format}"
    raise InputError(asked, reasons, "Choose another kernel, format, dtype or backend")


def _reason_against(kernel: Kernel, ask: Ask) -> str | None:
    """Why a row cannot serve, in the order in which a reader can do something about it."""
    if "*" not in kernel.arch and ask.device.arch not in kernel.arch:
        return f"written for {', '.join(kernel.arch)}, and this device is {ask.device.arch}"
    if ask.dtype not in kernel.dtypes:
        return f"takes {', '.join(kernel.dtypes)}, not {ask.dtype}"
    if ask.format not in kernel.formats:
        return f"takes formats {', '.join(kernel.formats)}, not {ask.format}"
    missing = [problem for name in kernel.needs if (problem := _missing(name))]
    if missing:
        return f"needs the package {', '.join(missing)}"
    try:
        return kernel.refuse(ask)
    except Exception as error:  # a row that cannot say whether it serves is no ground to stop
        return f"its refuse() raised {reason_of(error)}"


def _missing(name: str) -> str | None:
    """The module's name if it cannot be had. To look for a part of a package imports the package, which may fail."""
    try:
        return None if importlib.util.find_spec(name) else name
    except ModuleNotFoundError:
        return name
    except Exception as error:
        return f"{name} ({reason_of(error)})"
