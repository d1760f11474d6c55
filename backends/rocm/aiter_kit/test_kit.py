"""The conformance kit over AITER's rows on a CPU, with stand-ins. REHEARSED_ARCH names another architecture."""

from cosmos3_core.testing.suite import *  # noqa: F403

BACKEND = "rocm"
