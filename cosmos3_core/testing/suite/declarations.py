"""What a backend says of itself: its rows, its probe, and what importing it does."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from ...contract import OPS, Ask, Device, Unavailable
from .. import cases
from ..subject import row_id
from .behaviour import SLOW_SECONDS
from .composites import INSIDE


def test_rows_are_well_formed(subject, op_cases):
    seen = set()
    for row in subject.backend.kernels:
        who = f"row {row_id(row)}"
        assert row.op in OPS, f"{who}: there is no op {row.op!r}"
        assert (row.op, row.name) not in seen, f"{who} is declared twice"
        seen.add((row.op, row.name))
        for key in ("arch", "dtypes", "formats", "needs", "fuses"):
            value = getattr(row, key)
            assert isinstance(value, tuple) and all(isinstance(v, str) for v in value), f"{who}: {key} is {value!r}"
        assert row.dtypes and row.arch and row.formats, f"{who}: arch, dtypes and formats name at least one each"
        assert set(row.dtypes) <= set(cases.DTYPES), f"{who}: dtypes are among {cases.DTYPES}, not {row.dtypes}"
        nobodys = sorted({*subject.formats(row)} - {"none", *subject.known})
        assert not nobodys, f"{who}: there is no format {', '.join(nobodys)}; bring it in Backend.formats"
        inside = INSIDE.get(row.op, ())
        assert set(row.fuses) <= set(inside), f"{who}: it can fuse {inside}, not {row.fuses}"
        assert callable(row.build) and callable(row.refuse), f"{who}: build and refuse are functions"
        for key in ("deterministic", "fresh", "prepares", "packed", "widens"):
            assert type(getattr(row, key)) is bool, f"{who}: {key} is True or False"
        for delegate in row.delegates:
            calls = f"calls with fewer than {delegate.below!r} queries"
            assert type(delegate.below) is int and delegate.below > 1, f"{who}: there are no {calls}"


def test_probe_finds_a_device_or_says_why_not(subject):
    try:
        found = subject.backend.probe()
    except Unavailable as reason:
        assert len(str(reason).split()) > 2, f"Unavailable({str(reason)!r}) is no sentence a user can act on"
        pytest.skip(str(reason))
    except Exception as error:
        pytest.fail(f"probe() raised {error!r}; all it may raise is Unavailable with one sentence", pytrace=False)
    assert isinstance(found, Device), f"probe() returned {found!r}, not a Device"
    assert found.arch and found.name, "the device has an arch and a name"
    assert found.count >= 1 and found.memory > 0, f"{found.count} devices of {found.memory} bytes"
    torch.empty(1, device=subject.backend.torch_device)


def test_import_has_no_side_effects(subject):
    effects = subject.import_effects
    heavy = {"torch"} | {name for row in subject.backend.kernels for name in row.needs}
    loaded = sorted(heavy & set(effects["modules"]))
    assert not loaded, f"importing {subject.module} imports {', '.join(loaded)}; a row's build() is the place for that"
    changed = [name for name in ("environment", "sys.path", "threads", "prints") if effects[name]]
    assert not changed, f"importing {subject.module} changes {', '.join(changed)}: {effects['prints']}"


def test_import_takes_little_time(subject):
    seconds = subject.import_effects["seconds"]
    assert seconds <= SLOW_SECONDS, f"importing {subject.module} takes {seconds:.1f} seconds, bound {SLOW_SECONDS}"


REFUSALS = 200
"""How often the same ordinary request is asked once more, an odd one once: an answer depends on the request alone."""
ODD: dict[str, Any] = dict(
    dtype="float8_e4m3fn", format="no such format", heads=7, kv_heads=5, head_dim=1, hidden=3, inner=5
)
ODD |= dict(activation="an activation of next year")


@pytest.mark.parametrize("odd", [None, "arch", *ODD])
def test_refusals_give_reasons(subject, kernel, odd):
    """An odd request is refused with a sentence or served; it never raises."""
    device = Device(arch="x86_64", name="a device", count=1, memory=2**34, unified=False)
    if isinstance(subject.device, Device):
        device = subject.device
    if odd == "arch":
        device = replace(device, arch="an arch of next year", count=0, memory=0)
    widths: dict[str, Any] = {"heads": cases.HEADS, "kv_heads": cases.KV_HEADS, "head_dim": cases.HEAD_DIM}
    widths |= {"hidden": cases.HIDDEN, "inner": cases.INNER, "dtype": kernel.dtypes[0]}
    ask = Ask(op=kernel.op, device=device, **widths | ({odd: ODD[odd]} if odd in ODD else {}))
    before = repr(ask)
    reason = kernel.refuse(ask)
    again = [reason, *(kernel.refuse(ask) for _ in range(1 if odd else REFUSALS))]
    assert len(set(again)) == 1, f"refuse() answered {again[0]!r}, and the same request later {again[-1]!r}"
    assert repr(ask) == before, "refuse() changes what it is asked: the next row would be asked something else"
    assert reason is None or (isinstance(reason, str) and len(reason.split()) > 1), (
        f"refuse() answered {reason!r}: the plan prints it to the user as the reason"
    )


def _parameters(function) -> list[tuple]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.description, p.default) for p in found if p.name != "self"]


def _written(parameters: list[tuple]) -> str:
    """As one would write them, keywords after a *."""
    words: list[str] = []
    for name, kind, default in parameters:
        if kind == "keyword-only" and "*" not in words:
            words.append("*")
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        words.append(prefix + name + ("" if default is inspect.Parameter.empty else f"={default!r}"))
    return ", ".join(words)


WITHOUT = {"Memory": ("fetch",)}
"""Methods that a row may lack: `reference.memory.whole` makes one of the others."""


def _check_methods(found, protocol: type) -> None:
    """Fail unless an object has every public method of a protocol that it may not lack, with its parameters."""
    methods = {name: method for name, method in vars(protocol).items() if inspect.isfunction(method)}
    for name, method in methods.items():
        if name.startswith("_") and name != "__call__":
            continue
        if name in WITHOUT.get(protocol.__name__, ()) and not hasattr(found, name):
            continue
        expected = _parameters(method)
        assert callable(getattr(found, name, None)), f"{protocol.__name__}.{name} is missing"
        given = _parameters(found if name == "__call__" else getattr(found, name))
        assert given == expected, (
            f"{protocol.__name__}.{name} takes ({_written(expected)}), this row's takes ({_written(given)})"
        )


def test_signature_is_the_protocols(kernel, op, op_cases, here):
    """Of every public method of what a row builds, and of what that makes."""
    case = op_cases[kernel.op]
    _check_methods(op, case.protocol)
    if case.makes is not None:
        _check_methods(case.make(op, here, here.formats[0]).thing, case.makes)
    if kernel.prepares:
        given = [name for name, *_ in _parameters(op.prepare)]
        assert given == ["k_BTKD", "v_BTKD"], f"prepare takes k_BTKD and v_BTKD, this row's takes {given}"
