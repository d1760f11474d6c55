"""The packages' own folders on the path, which `make test` does not install, and that of the plugin `interpreter`."""

from __future__ import annotations

import sys
from pathlib import Path

BACKENDS = Path(__file__).parents[2]
sys.path[:0] = [*map(str, sorted(BACKENDS.iterdir())), str(BACKENDS / "triton" / "tests")]
