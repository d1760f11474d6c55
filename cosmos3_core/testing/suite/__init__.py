"""The tests of the kit, named after what they ask of a device. Star-import them; see `cosmos3_core.testing`.

A test with `kernel` among its arguments runs for every row of its op (`over`), or for every row; with `dtype` and
`format` also for all that the row declares. Fixtures and parameters come from `plugin`.

A module holds what the kit has of one kind of op: inputs and the truth about them, tests, and an `OpCase` for the tests
that are about rows of any op. A new op is such a module and its line below, where tests stand in the order they run in.
"""
# ruff: noqa: F403, I001

from __future__ import annotations

from ..cases import OpCase
from .declarations import *
from .serving import *
from .attention import *
from .linear import *
from .norms import *
from .gate import *
from .composites import *
from .weights import *
from .patches import *
from .norm_silu import *
from .capture import *
from .memory import *
from .comm import *
from .sizes import *
from .attention_sizes import *
from .rounding import *
from .scaling import *
from .small import *
from .state import *
from .behaviour import *
from .whole import *
from .after import *

TESTS = tuple(name for name in dict(globals()) if name.startswith("test_"))
CASES = {case.op: case for case in dict(globals()).values() if isinstance(case, OpCase)}
pytest_plugins = ["cosmos3_core.testing.plugin"]
__all__ = [*TESTS, "pytest_plugins"]
