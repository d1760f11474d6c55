"""SHA-256 digests, in hex: of a file, of several, of a JSON value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(files: Iterable[Path], root: Path) -> dict[str, str]:
    """The digest of each file, by its name relative to `root`, in the names' order."""
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(files)}


def sha256_json(value: Any) -> str:
    """The digest of a JSON value in its one spelling: sorted keys, no spaces, UTF-8, no NaN or infinity."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
