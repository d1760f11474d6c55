"""Quantization formats as data, with reference numerics: what the names in a kernel's row mean.

Importing this imports no torch: the plan and the command line read `FORMATS` alone.
"""

from __future__ import annotations

from .formats import ELEMENTS, FORMATS, SCALES, Element, Format, Scale, bytes_per_weight, error_bound

__all__ = ["ELEMENTS", "FORMATS", "SCALES", "Element", "Format", "Scale", "bytes_per_weight", "error_bound"]
