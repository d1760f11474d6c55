"""Devices that are not here, as installed packages describe them: what a forecast is made for."""

from __future__ import annotations

import re
from collections.abc import Collection

from ..contract import Backend, Device, InputError
from ..spelling import did_you_mean, nearest
from .discovery import Rejected, extras, installed, load, pip_install

ALL = "all"
"""In the place of a device's name: every one that is known."""


def names_alike(wanted: str, found: str) -> bool:
    """Whether every word of a device's everyday name stands in what its probe calls it: "Arc B60" in "Intel(R) Arc(TM)
    Pro B60 Graphics", "Ascend 910B" in "Ascend910B3"; but not "H20" in "H200", nor "H200" in "GH200"."""

    def stands(word: str) -> bool:
        before = r"(?<![a-z0-9])" if word[0].isalpha() else r"(?<![0-9])"
        after = r"(?![0-9])" if word[-1].isdigit() else ""
        return re.search(before + re.escape(word) + after, found.lower()) is not None

    return all(stands(word) for word in re.findall(r"[a-z0-9]+", wanted.lower()))


def known_devices(name: str | None, disabled: Collection[str]) -> list[tuple[Backend, Device]]:
    """The devices that the installed backends, or the one of that name, can be planned for unseen. A package at fault
    has none, unless it is named: then it is an InputError."""
    found = []
    for one in [name] if name else installed(disabled):
        try:
            backend = load(one, disabled)
        except Rejected:
            if name:
                raise
            continue
        found += [(backend, device) for device in backend.known]
    return found


def known_device(asked: str, name: str | None, disabled: Collection[str]) -> tuple[Backend, Device]:
    """The known device of an everyday name, such as "Arc B580", and its backend. Raises InputError where none or
    several have it."""
    known = known_devices(name, disabled)
    found = [one for one in known if names_alike(asked, f"{one[1].name} {one[1].arch}")]
    if len(found) > 1:  # "RX 9070" is in the name of the RX 9070 XT, too
        found = [one for one in found if one[1].name.lower().endswith(asked.lower())] or found
    if len(found) > 1:  # "Arc B60" is in the name of the card with two of them, too
        found = [one for one in found if one[1].count == 1] or found
    if len(found) == 1:
        return found[0]
    names = [device.name for _, device in found or known]
    if found:
        raise InputError(f"`device` {asked}", f"several are called so: {', '.join(names)}", "Say more of the name")
    whose = f"backend {name} knows" if name else "the installed packages know"
    hints = [f"Did you mean {close}?"] if (close := nearest(asked, names)) else []
    if names and not close:
        hints.append(f"Known are {', '.join(names)}")
    absent = [] if name or close else sorted(set(extras()) - set(installed(disabled)))
    if absent:
        hints.append(f"Devices of {', '.join(absent)} are known to packages that are not installed")
        hints.append(f"Type {pip_install(absent[0])}, or another of these names")
    elif not names:
        hints.append("Give `arch` and `memory` instead")
    hints += [] if name else _faults(disabled)
    raise InputError(f"`device` {asked}", f"{whose} none of that name", ". ".join(hints))


def _faults(disabled: Collection[str]) -> list[str]:
    """Why installed packages know no device: each that cannot be loaded, and what is wrong with it."""
    faults = []
    for one in installed(disabled):
        try:
            load(one, disabled)
        except Rejected as error:
            faults.append(f"Those of {one} are not looked at ({error.found})")
    return faults


def described_device(
    arch: str, name: str | None, memory: int | None, disabled: Collection[str]
) -> tuple[Backend, Device]:
    """A device of an architecture, which need not be here, and its backend: the first that is known to have it, else
    one of which is known what was said, its backend and its memory. Raises InputError."""
    asked = f"`arch` {arch}"
    known = [one for one in known_devices(name, disabled) if one[1].arch == arch]
    if len({backend.name for backend, _ in known}) > 1:
        found = f"it is known to {' and '.join(dict.fromkeys(backend.name for backend, _ in known))}"
        raise InputError(asked, found, "Give one of them as `backend`")
    if known:
        return known[0]
    if backend := load(name, disabled) if name is not None else None:
        named = {one for row in backend.kernels for one in row.arch} | {device.arch for device in backend.known}
        if arch not in (served := sorted(named - {"*"})):
            hint = did_you_mean(arch, served, f"It names {', '.join(served) or 'none'}")
            raise InputError(asked, f"backend {name} names no such architecture", hint)
    if backend is None or memory is None:
        found = "a device that no package knows is known by its backend, its architecture and its memory"
        missing = [option for option, value in (("`backend`", name), ("`memory`", memory)) if value is None]
        otherwise = f"Give {' and '.join(missing)} too"
        close = None if backend else nearest(arch, {device.arch for _, device in known_devices(None, disabled)})
        raise InputError(asked, found, f"Did you mean {close}? {otherwise}" if close else otherwise)
    return backend, Device(arch=arch, name="not in this machine", count=1, memory=memory, unified=False, versions={})
