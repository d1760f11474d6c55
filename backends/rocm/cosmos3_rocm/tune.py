"""Measure the launches of our kernels on this GPU: `python -m cosmos3_rocm.tune [KERNEL ...]`, as
`python -m cosmos3_triton.tune --backend rocm`, which says what is measured and where it is kept."""

from __future__ import annotations

import sys

from cosmos3_triton.tune import main

if __name__ == "__main__":
    main([*sys.argv[1:], "--backend", "rocm"])
