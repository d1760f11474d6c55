"""What may be said of a recipe: from its record if it has one that holds, else from what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..contract import Cosmos3Error
from ..plan.formats import completed
from . import evaluated, settle
from . import record as records
from . import verdict as verdicts
from .closure import Sources
from .fingerprint import ROOT, differences, files_now, fingerprint, named
from .recipe import Recipe

BROKEN = "broken"
LEGEND = {
    "validated": "measured on the device, with an error against float32 within the stated bounds; has a record",
    "validated on random weights": "as validated, with random values in the place of the checkpoint's: shows that it "
    "runs there, its time, memory and error, and nothing of the checkpoint's pictures",
    "runs": "ran on the device, with a record, and quality was not shown to be within the bounds",
    "stale": "has a record, of other code, versions or inputs than today's",
    "rehearsed": "its parts were tried, on the device or on a stand-in; never run and measured there as a whole",
    "help wanted": "nothing stands against it, and nobody has run it; numbers, where given, are other people's",
    "unsupported": "cannot run today, for the reason given",
    BROKEN: "its file is no recipe, for the reason given",
}


@dataclass(frozen=True)
class State:
    """A state of `LEGEND`, why in a sentence, and the record if its chain holds."""

    name: str
    why: str
    record: dict[str, Any] | None = None


def state_of(recipe: Recipe, now: dict[str, Any] | None = None, sources: Sources | None = None) -> State:
    """The recipe's state. `now` is the fingerprint of this machine if the recipe's device is here; without it the
    record is held against the `sources` (None: of this checkout) only, so that the answer is the same on every
    machine."""
    if recipe.validated is None and not records.path_of(recipe).exists():
        return State(recipe.known["state"], recipe.known["reason"])
    try:
        record = records.load(recipe)
    except Cosmos3Error as error:
        return State("stale", error.found)
    old = record["fingerprint"]
    sources = sources or Sources(ROOT)
    now = now or {"files": files_now(old, sources, embedded=evaluated.embedded(record)) if "files" in old else {}}
    device, verdict = old["device"], record["verdict"]
    weights = " with random weights" if record["model"]["weights"] == "random" else ""
    why = f"measured on {record['date']} on {device['name']} ({device['arch']}){weights}"
    if said := verdict.get("note") or (None if verdict["passed"] else verdicts.failures(verdict)):
        why += f"; {said}"
    if "not_run" in verdict.get("evaluation", {}):
        why += f"; evaluation: {verdicts.evaluated(verdict)}"
    changed = differences(old, now) + records.changed_media(recipe, record)
    changed += records.lacking(record) + evaluated.changed(record)
    if changed:
        return State("stale", f"{record['state']}, {why}; since then {'; '.join(changed)}", record)
    return State(record["state"], why, record)


def state_here(recipe: Recipe, sources: Sources) -> State:
    """The recipe's state on this machine: its record held against the device, too, if that is here."""
    return state_of(recipe, fingerprint_here(recipe, sources) if recipe.validated else None, sources)


def fingerprint_here(recipe: Recipe, sources: Sources) -> dict[str, Any] | None:
    """This machine's fingerprint for the kernels of the recipe's record, None unless backend and device are here."""
    try:
        record = records.load(recipe)
        backend, device = settle.backend_of(recipe)
        backend = completed(backend, recipe.formats)
        recipe.check_device(device, counted=settle.counted(backend))
    except Cosmos3Error:
        return None
    if "files" not in record["fingerprint"]:
        return None
    kernels = named(backend, record["fingerprint"]["kernels"])
    return fingerprint(backend, device, kernels, embedded=evaluated.embedded(record), sources=sources)
