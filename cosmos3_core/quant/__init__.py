"""Quantization formats as data, with reference numerics: what the names in a kernel's row mean.

Importing this imports no torch: the plan and the command line read `FORMATS` alone.
"""

from __future__ import annotations

from .formats import ELEMENTS, FORMATS, Element, Format, bytes_per_weight

__all__ = ["ELEMENTS", "FORMATS", "Element", "Format", "bytes_per_weight"]
