"""The model that tests run, by path: Nano's architecture in the hub's layout at 2 MB. Its weights are random
(scripts/build_tiny.py)."""

from __future__ import annotations

from pathlib import Path

TINY = Path(__file__).with_name("tiny")
TINY_MODEL = str(TINY)
