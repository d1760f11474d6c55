"""Controls in requests of other programs: an object, a path or a switch for each kind, or a file beside its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spelling import shown
from .conversion import Work, file_of, number_of
from .transfer import AUTO, DERIVED, HINTS

PRESETS = {"preset_edge_threshold": "edge_preset", "preset_blur_strength": "blur_preset"}
FILES, KINDS = ("control_reference", "control_path"), ("control_type", "control_hint")
"""Keys of the file of a single control, and of its kind."""


def control(work: Work, key: str, value: Any) -> None:
    """A control by its kind: true or an object without a path is to be made of the clip."""
    if value in (None, False, ""):
        work.drop(f"{key} {shown(value)}", "there is no such control")
        return
    parts = {} if value is True else value if isinstance(value, Mapping) else {"control_path": value}
    path = next((parts[name] for name in ("control_path", "control") if parts.get(name) is not None), None)
    if path is None and key not in DERIVED:
        work.wrong.append(f"{key}: it is not made of a clip here. Give its control_path")
    elif path is None:
        work.put(key, key, AUTO)
        work.said.append(f"{key} → {key} {AUTO}")
    elif file := file_of(work, f"{key}.control_path", path):
        work.put(key, key, file)
        work.said.append(f"{key}.control_path → {key}")
    for name, part in parts.items():
        if name == "control_weight":
            work.given["control_weights"] = work.given.get("control_weights", {}) | {key: number_of(part)}
            work.said.append(f"{key}.{name} → control_weights")
        elif name in PRESETS and PRESETS[name].startswith(key):
            if path is None:
                work.put(f"{key}.{name}", PRESETS[name], part)
            else:
                work.drop(f"{key}.{name}", "the control has a clip of its own")
        elif name not in ("control_path", "control"):
            work.wrong.append(f"{key}: there is no key {name} in it")


def controls_of(work: Work, keys: Mapping[str, Any]) -> None:
    """A single control as a file and its kind, an object with several, and weights of which there is but one."""
    files, kinds = ([(key, keys[key]) for key in names if keys.get(key)] for names in (FILES, KINDS))
    if kinds and kinds[0][1] not in HINTS:
        work.wrong.append(f"{kinds[0][0]} {shown(kinds[0][1])}: controls are {', '.join(HINTS)}")
    elif kinds:
        (kind, hint), *_ = kinds
        control(work, hint, files[0][1] if files else True)
        work.said.append(f"{', '.join([*(key for key, _ in files), kind])} → {hint}")
    elif files:
        work.wrong.append(f"{files[0][0]}: it does not say which kind of control it is. Add {KINDS[0]}")
    if isinstance(several := keys.get("transfer"), Mapping):
        for hint, value in several.items():
            if hint in HINTS:
                control(work, hint, value)
            else:
                work.wrong.append(f"transfer: there is no key {hint} in it")
    elif several is not None:
        work.wrong.append(f"transfer: it is no object of controls, which are {', '.join(HINTS)}")
    if len([hint for hint in HINTS if hint in work.given]) < 2 and "control_weights" in work.given:
        del work.given["control_weights"]
        work.drop("control_weight", "there is one control")
