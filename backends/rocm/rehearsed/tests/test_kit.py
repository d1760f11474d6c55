"""The conformance kit over cosmos3-rocm's own kernels, in Triton's interpreter. Rows that are not rehearsed are skipped
with their reason (-rs)."""

from cosmos3_core.testing.suite import *  # noqa: F403

BACKEND = "rocm"
