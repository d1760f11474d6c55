"""Tables of actions out, as .json and .safetensors, with what a row is; each is read back before it gets its name.

JSON is an object: `actions`, a list of rows, its `shape`, what `to_json` of engine.actions.Actions says (`channels`,
`units`, `fps` ...) and, under "cosmos3", the manifest of what was known before. A .safetensors file has the tensor
`actions`, fp64 [T, D], and the rest as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contract import RunError
from .atomic import atomic
from .frames import read_back_error

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".json", ".safetensors")


def write_actions(
    path: Path, values: np.ndarray, about: Mapping[str, Any], metadata: Mapping[str, str], *, overwrite: bool
) -> dict[str, Any]:
    """Write values, [T, D], to a file of one of `SUFFIXES`; `about` says what a row is and `metadata` are texts for the
    file. Returns what a manifest says of the file. Raises RunError for values that are not finite and for a file that
    does not read back."""
    import numpy as np

    from .actions import read_rows

    if not np.isfinite(values).all():
        found = "the actions hold NaN or infinity"
        raise RunError(f"writing {path}", found, "Check `action_stats`, and the weights")
    about = {"shape": list(values.shape), **about}
    with atomic(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() == ".json":
            rows = ",\n    ".join(json.dumps(row) for row in values.tolist())
            parts = {key: json.dumps(value) for key, value in about.items()} | dict(metadata)
            rest = "".join(f",\n  {json.dumps(key)}: {text}" for key, text in parts.items())
            temporary.write_text(f'{{\n  "actions": [\n    {rows}\n  ]{rest}\n}}\n', encoding="utf-8")
        else:
            from safetensors.numpy import save

            saved = {"actions": np.ascontiguousarray(values)}
            temporary.write_bytes(save(saved, {"about": json.dumps(about), **metadata}))
        if not np.array_equal(read_rows(temporary, f"reading {path} back").values, values):
            raise read_back_error(path, "other numbers")
    return {"file": path.name, "bytes": path.stat().st_size}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in a .safetensors file of actions."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
