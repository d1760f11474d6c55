"""`cosmos3 capabilities`: what can be asked of a model, from the rows of tasks and fields and the model's facts."""

from __future__ import annotations

import json
from typing import Any

from ..plan.formats import BUILT_IN
from ..scenarios.fields import FIELDS
from ..settle.questions import capabilities
from .options import flag
from .terminal import printable


def execute(model: str, profile: str, as_json: bool) -> None:
    """Print what a model takes. Raises InputError for a model or a profile that does not exist."""
    report = capabilities(model, profile)
    print(json.dumps(report, indent=2) if as_json else "\n".join(map(printable, _lines(report))))


def _lines(report: dict[str, Any]) -> list[str]:
    model, profile, dtypes, formats = (report[key] for key in ("model", "profile", "dtypes", "formats"))
    lines = [f"{model['name']} ({model['variant']}), defaults of profile {profile['name']}: {profile['source']}"]
    lines += ["", "tasks"]
    for name, task in report["tasks"].items():
        source = f" from {flag(task['input'])}" if task["input"] else ""
        lines.append(f"  {name}  {task['title']}{source}, into {task['output']}")
    for name, row in report["cannot"].items():
        lines.append(f"  no {name}: {row['why']}" + (f"; {row['instead'][0]} can" if row["instead"] else ""))
    lines += ["", "fields, set by their option or by --set FIELD=VALUE"]
    for name, field in report["fields"].items():
        if field["tasks"]:
            lines.append(f"  {name}{f' ({flag(name)})' if FIELDS[name].option else ''}: {field['help']}")
            lines.append(f"      {field['words']}; {takers(field, report)}")
            lines += [f"      default {text}" for text in defaults(field, report)]
    lines[1:1] = [f"it says of itself: {model['note']}"] if model["note"] else []
    covered = model["trained"]  # of one that says itself what it knows nothing else does
    paces = covered["fps"] if covered else ()
    pace = f" ({paces[0]:g} to {paces[1]:g} frames a second)" if paces else ""
    said = f"; what training covered{pace} is from {covered['source']}" if covered else ""
    lines += ["", f"sizes by tier{said}"]
    for tier, sizes in report["sizes"]["tiers"].items():
        listed = ", ".join(f"{aspect} {size}" for aspect, size in sizes.items())
        lines.append(f"  {tier}p  {listed}{_trained(tier, covered) if covered else ''}")
    lines += ["", "domains of actions"] if report["domains"] else []
    for name, domain in report["domains"].items():
        spaces = ", ".join(f"{space} of {len(channels)} channels" for space, channels in domain["spaces"].items())
        lines.append(f"  {name}  {spaces or 'as many channels as action_width says'}")
    lines += ["", f"dtypes   {', '.join(dtypes['names'])}; the checkpoint has {dtypes['checkpoint']}"]
    brought = {name: "" if by == BUILT_IN else f" (of {by})" for name, by in formats["by"].items()}
    lines.append(f"formats  {', '.join(name + by for name, by in brought.items())}; of {' and '.join(formats['ops'])}")
    lines += [f"         not read: {fault}" for fault in formats["faults"]]
    lines.append("         cosmos3 backends lists those that a device has kernels for")
    return lines


def _trained(tier: str, trained: dict[str, Any]) -> str:
    """What training covered of a tier, in words."""
    if tier not in trained["tiers"]:
        return "; not in training"
    least, most = trained["frames"].get(tier, (1, 1))
    return f"; {least} to {most} frames" if most > 1 else "; pictures"


def takers(field: dict[str, Any], report: dict[str, Any]) -> str:
    """Which of a model's tasks take a field, in words."""
    if field["fixed"]:
        return "fixed by distillation"
    if field["required"]:
        return "every task needs it"
    return "every task" if field["tasks"] == list(report["tasks"]) else ", ".join(field["tasks"])


def defaults(field: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """A field's defaults, one text for all tasks that share one: the tasks where it is not all of them, the value, and
    its source where that is not the profile itself."""
    shared: dict[tuple[str, str], list[str]] = {}
    for task, default in field["defaults"].items():
        value, source = default["value"], default["source"]
        typed = value if isinstance(value, str) and value else json.dumps(value)
        shared.setdefault(("" if value is None else typed, source), []).append(task)
    texts = []
    for (value, source), tasks in shared.items():
        which = "" if len(tasks) == len(field["tasks"]) else f"{', '.join(tasks)}: "
        parts = (value, source if source != f"profile {report['profile']['name']}" else "")
        texts.append(which + " from ".join(filter(None, parts)))
    return texts
