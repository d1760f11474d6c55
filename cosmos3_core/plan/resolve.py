"""The only selection code. A named choice is met or refused with its reason; "auto" takes the first row that serves."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace

from ..contract import COMPOSITES, FORMATTED, OPS, Ask, Backend, Device, InputError, Kernel
from ..quant import Format
from ..quant.formats import grains
from ..quant.steps import OPTION, StepPolicy, a16_of
from ..reference import COMPOSED_ROW
from ..spelling import reason_of, shown
from .choice import Choice, Plan, Refusal, Sixteen, Want, rows
from .discovery import check_op
from .formats import completed, known

DTYPES = ("float32", "bfloat16", "float16")


def dtype_named(text: str) -> str:
    """The one of DTYPES that is also called torch.bfloat16, bf16 or half; any other text as it is."""
    word = text.strip().lower().removeprefix("torch.")
    found = re.fullmatch(r"(b?)f(?:p|loat)?(16|32)", {"half": "f16", "float": "f32"}.get(word, word))
    return f"{found[1]}float{found[2]}" if found else text


def resolve(want: Want, backend: Backend, device: Device) -> Plan:
    """Choose one row for each op on this device. Raises InputError for a choice that cannot be met."""
    if want.dtype not in DTYPES:
        next_step = f"Dtypes are {', '.join(DTYPES)}"
        raise InputError(f"dtype {want.dtype!r}", "weights are not run in it", next_step, "dtype")
    for op in want.kernels:
        check_op(op)
    _check_formats(want.formats, backend)
    backend = completed(backend, want.formats)
    formats = known(backend)
    _check_sides(want, formats)
    shared, both = _in_two_precisions(want, formats)
    layers = want.format("pack_linear")
    if want.tensor > 1 and layers != "none" and not formats[layers].static:  # a stored scale only a checkpoint has
        shared = replace(shared, packed=True)  # packed whole, and then split
    refusals: list[Refusal] = []
    choices = tuple(_choose(op, shared, backend, device, refusals) for op in OPS)
    quantized = [choice.op for choice in choices if want.format(choice.op) != "none"]
    plain = {choice.op: choice.kernel.name for choice in choices if choice.named and _has_format(choice.kernel, "none")}
    kept_want = replace(want, formats={}, kernels=plain)
    kept = tuple(_choose(op, kept_want, backend, device, []) for op in quantized)
    others = tuple(
        _choose("pack_linear", replace(shared, formats={"pack_linear": name}), backend, device, refusals)
        for name in want.others
    )
    a16 = _sixteen(want.policy, both, want, backend, device) if want.policy and both else None
    return Plan(backend, device, want.dtype, choices, tuple(refusals), kept, want.packed, others, a16)


def _in_two_precisions(want: Want, formats: Mapping[str, Format]) -> tuple[Want, dict[str, Format]]:
    """What the ops are asked for, and by the names of the layers' formats that quantize activations those that keep
    these in 16 bits; none where nothing is to be in them. With such steps both precisions read one packed weight, so
    that rows take it packed. Raises InputError where a caller names steps and no format quantizes activations."""
    policy = want.policy
    if policy is None:
        return want, {}
    held = [formats[name] for name in (want.format("pack_linear"), *want.others) if name != "none"]
    both = {format.name: a16_of(format, formats) for format in held if format.of_inputs}
    if not both and policy.named:
        why = ", as no format is asked for"
        if held:
            why = f": {' and '.join(format.name for format in held)} leaves them so"
        found = f"activations are in 16 bits in every step{why}"
        raise InputError(f"`{OPTION}`", found, "Drop it, or name a `format` that quantizes them too", OPTION)
    if not (policy.in_steps or policy.in_text):
        return want, {}
    if policy.in_steps and not want.packed and (static := next((name for name in both if formats[name].static), None)):
        found = f"{static} takes the activations' scales from a quantized checkpoint, and this is none"
        raise InputError(f"`format` pack_linear={static}", found, "Name such a checkpoint, or another format")
    return (replace(want, packed=True) if both and policy.in_steps else want), both


def _sixteen(policy: StepPolicy, both: Mapping[str, Format], want: Want, backend: Backend, device: Device) -> Sixteen:
    """The rows for activations in 16 bits. A row that was named for the format serves where it can."""
    choices, refusals = [], list[Refusal]()
    for name in dict.fromkeys(format.name for format in both.values()):
        able = [row.name for row in rows(backend, "pack_linear") if row.packed and _has_format(row, name)]
        kernels = {op: row for op, row in want.kernels.items() if op == "pack_linear" and row in able}
        asked = replace(want, formats={"pack_linear": name}, kernels=kernels, packed=True)
        choices.append(_choose("pack_linear", asked, backend, device, refusals))
    return Sixteen(policy, both, tuple(choices), tuple(refusals))


def why_not(kernel: Kernel, want: Want, device: Device) -> str | None:
    """Why this row cannot serve the wish on this device, or None; in the wish's format for its op, or where there is
    none in the first of the formats that it is for."""
    format = want.format(kernel.op)
    if format == "none" and "*" not in kernel.formats:
        format = kernel.formats[0]
    return _reason_against(kernel, _ask(kernel.op, want, device, format), want.kernels)


def formats_of(backend: Backend, op: str) -> list[str]:
    """The quantization formats that rows of a backend name for an op, in the rows' order: not those that only eager
    torch has, which has them all."""
    named = dict.fromkeys(name for row in rows(backend, op) for name in row.formats)
    return [name for name in named if name not in ("none", "*")]


def _ask(op: str, want: Want, device: Device, format: str) -> Ask:
    return Ask(
        op=op,
        device=device,
        dtype=want.dtype,
        format=format,
        heads=want.heads // want.tensor,
        kv_heads=max(1, want.kv_heads // want.tensor),
        head_dim=want.head_dim,
        hidden=want.hidden,
        inner=want.inner // want.tensor,
        activation=want.activation,
        packed=want.packed and format != "none",
    )


def _check_formats(formats: Mapping[str, str], backend: Backend) -> None:
    for op, name in formats.items():
        if not isinstance(name, str):
            raise InputError(f"`format` {op}={shown(name)}", "it is not text", "Give the name of a format, such as fp8")
        asked = f"`format` {op}={name}"
        if op in COMPOSITES:
            found = f"{op} multiplies in the format of the layers' weights"
            raise InputError(asked, found, f"Type `format` pack_linear={name}")
        if op not in FORMATTED:
            raise InputError(asked, f"{op} is not quantized", f"Ops with a format are {', '.join(FORMATTED)}")
        here = formats_of(backend, op)
        if op != "pack_linear" and name not in ("none", *here):  # of those, eager torch has every one
            found = f"no {op} kernel of {backend.name} has that format"
            next_step = f"It has {', '.join(here)}" if here else "Leave `format` out, or choose another `backend`"
            raise InputError(asked, found, next_step)


def _check_sides(want: Want, formats: Mapping[str, Format]) -> None:
    """InputError where what shares a scale does not divide a side of the layers' matrices."""
    name = want.format("pack_linear")
    for one in {name, *want.others} - {"none"} if want.tensor > 1 else ():
        if misfit := _cut(formats[one], want):
            fitting = [other for other, format in formats.items() if not (_misfit(format, want) or _cut(format, want))]
            fewer = (way for way in range(want.tensor - 1, 1, -1) if want.heads % way == 0)
            way = next((way for way in fewer if not _cut(formats[one], replace(want, tensor=way))), None)
            next_step = "Split another axis" + (f", or type `parallel` tensor={way}" if way else "")
            if not want.packed:
                next_step += f"; formats that can be split so are {', '.join(fitting)}"
            raise InputError(f"`format` pack_linear={one} with `parallel` tensor={want.tensor}", misfit, next_step)
    if name == "none" or want.packed or not (misfit := _misfit(formats[name], want)):
        return
    fitting = [other for other, format in formats.items() if not _misfit(format, want)]
    raise InputError(f"`format` pack_linear={name}", misfit, f"Formats that fit this model are {', '.join(fitting)}")


def _misfit(format: Format, want: Want) -> str | None:
    attended, keys = want.heads * want.head_dim, want.kv_heads * want.head_dim
    sides = {"hidden width": want.hidden, "width of the heads together": attended, "MLP's width": want.inner}
    above = {"hidden width": want.hidden, "width of q, k and v together": attended + 2 * keys}
    groups = max(one.group for one in (format, format.of_inputs) if one)
    for shared, what, sizes in (
        (groups, "input features", sides),
        (format.outputs, "outputs", above | {"MLP's width": want.inner}),
    ):
        for side, size in sizes.items():
            if shared and size % shared:
                return f"{format.name} has a scale for every {shared} {what}, and the {side} is {size}"
    return None


def _cut(format: Format, want: Want) -> str | None:
    """Why layers in a format are not split among the devices."""
    features, outputs = grains(format)
    sides = {"width of its heads": want.heads * want.head_dim, "part of the MLP": want.inner}
    above = sides | {"width of its key heads": max(want.kv_heads, want.tensor) * want.head_dim}
    for shared, what, parts in ((features, "input features", sides), (outputs, "outputs", above)):
        for side, size in parts.items():
            if size // want.tensor % shared:
                found = f"{format.name} shares scales or bytes among {shared} {what}"
                return f"{found}, and the {side} that a device has is {size // want.tensor}"
    return None


def splits(plan: Plan, want: Want) -> bool:
    """Whether the layers in the plan's formats are split among as many devices as is wanted."""
    names = {plan.format, *(other.format for other in plan.others)} - {"none"}
    return not any(_cut(plan.meanings[name], want) for name in names)


def _choose(op: str, want: Want, backend: Backend, device: Device, refusals: list[Refusal]) -> Choice:
    ask, named, candidates = _ask(op, want, device, want.format(op)), want.kernels.get(op), rows(backend, op)
    if named is not None:
        known = [kernel.name for kernel in candidates]
        candidates = [kernel for kernel in candidates if kernel.name == named]
        if not candidates:
            raise InputError(f"`kernel` {op}={named}", "no such kernel", f"{backend.name} has {', '.join(known)}")
    else:  # a row for another format only is no refusal worth telling
        candidates = [kernel for kernel in candidates if _has_format(kernel, ask.format)]
    refused: list[Refusal] = []
    for kernel in candidates:
        reason = _reason_against(kernel, ask, want.kernels)
        if op in COMPOSITES and want.tensor > 1 and kernel.name != COMPOSED_ROW:
            reason = "reads and adds up whole rows, of which every device has a part"
        if reason is None:
            refusals += refused
            return Choice(op, kernel, named is not None, ask.format, _below(kernel, ask, backend))
        refused.append(Refusal(op, kernel.name, reason))
    reasons = "; ".join(f"{refusal.name}: {refusal.reason}" for refusal in refused)
    asked = f"`kernel` {op}={named}" if named else f"`format` {op}={ask.format}"
    raise InputError(asked, reasons, "Choose another kernel, format, dtype or backend")


def _below(kernel: Kernel, ask: Ask, backend: Backend) -> tuple[tuple[int, Kernel], ...]:
    """The rows that this one hands smaller calls to, those that serve here."""
    by_name = {row.name: row for row in rows(backend, kernel.op)}
    found = [(delegate.below, by_name[delegate.to]) for delegate in kernel.delegates]
    return tuple(
        sorted((pair for pair in found if _reason_against(pair[1], ask, {}) is None), key=lambda pair: pair[0])
    )


def _has_format(kernel: Kernel, format: str) -> bool:
    return "*" in kernel.formats or format in kernel.formats


def _reason_against(kernel: Kernel, ask: Ask, named: Mapping[str, str]) -> str | None:
    """Why a row cannot serve, in the order in which a reader can do something about it. `named` are the rows that the
    user has named."""
    if "*" not in kernel.arch and ask.device.arch not in kernel.arch:
        return f"written for {', '.join(kernel.arch)}, and this device is {ask.device.arch}"
    if ask.dtype not in kernel.dtypes:
        return f"takes {', '.join(kernel.dtypes)}, not {ask.dtype}"
    if not _has_format(kernel, ask.format):
        return f"takes formats {', '.join(kernel.formats)}, not {ask.format}"
    if ask.packed and not kernel.packed and (kernel.op == "pack_linear" or "pack_linear" in kernel.fuses):
        return f"packs plain weights itself, and these come packed in {ask.format}"
    if taken := [f"{op}={named[op]}" for op in kernel.fuses if op in named and op not in COMPOSITES]:
        return f"does {', '.join(op.split('=')[0] for op in taken)} itself, and {', '.join(taken)} was named"
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
