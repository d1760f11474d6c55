"""Which backend to run on: the one that was named, or the only accelerator here."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import entry_points, version

from .. import reference
from ..contract import Backend, Device, InputError, Unavailable
from .discovery import BUILT_IN, conflict, extras, installed, load, pip_install, probe


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
        next_step = " or ".join(f"`backend` {backend.name}" for backend, _ in available)
        raise InputError("no `backend`", f"there is more than one accelerator here: {found}", f"Type {next_step}")
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
    next_step = f"Type {' or '.join(missing)}, or " if missing else "Type "
    found = f"torch sees an accelerator of type {visible}, and no installed backend can use it{because}"
    raise InputError("no `backend`", found, f"{next_step}`backend` {BUILT_IN} for the CPU")


def _visible_accelerator() -> str | None:
    """Torch's name for the type of this machine's accelerator."""
    if version("torch").endswith("+cpu") and not entry_points(group="torch.backends"):
        return None  # a build for no accelerator, and nothing that adds one: spares the seconds of importing torch
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else None
