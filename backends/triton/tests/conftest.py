"""The packages' own folders on the path: `make test` does not install them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in sorted(Path(__file__).parents[2].iterdir())]
