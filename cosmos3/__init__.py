"""NVIDIA's Cosmos3 world models on any accelerator, from Python.

    import cosmos3

    pipe = cosmos3.load("nvidia/Cosmos3-Nano")
    pipe("a robot arm pours coffee", frames=93, seed=7).save("coffee.mp4")

docs/python.md shows every task. What is public is what `__all__` lists, with the public names of those classes; it
follows semantic versioning. `cosmos3_core` is the house behind it, which may change in any version.

Importing this package takes milliseconds: torch is imported by the first call that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmos3_core import __version__
    from cosmos3_core.contract.errors import Cosmos3Error, InputError, RunError
    from cosmos3_core.engine.stages import Cancelled

    from .pipeline import Pipeline, load
    from .planning import forecasts, plan
    from .plans import Plan, Stage
    from .policy import Policy
    from .quantizing import quantize
    from .questions import backends, capabilities, show
    from .results import Preview, Result
    from .runs import Run

__all__ = [
    "Cancelled",
    "Cosmos3Error",
    "InputError",
    "Pipeline",
    "Plan",
    "Policy",
    "Preview",
    "Result",
    "Run",
    "RunError",
    "Stage",
    "__version__",
    "backends",
    "capabilities",
    "forecasts",
    "load",
    "plan",
    "quantize",
    "show",
]

_HOMES = {
    "cosmos3_core": ("__version__",),
    "cosmos3_core.contract.errors": ("Cosmos3Error", "InputError", "RunError"),
    "cosmos3_core.engine.stages": ("Cancelled",),
    "cosmos3.pipeline": ("Pipeline", "load"),
    "cosmos3.planning": ("forecasts", "plan"),
    "cosmos3.plans": ("Plan", "Stage"),
    "cosmos3.policy": ("Policy",),
    "cosmos3.quantizing": ("quantize",),
    "cosmos3.questions": ("backends", "capabilities", "show"),
    "cosmos3.results": ("Preview", "Result"),
    "cosmos3.runs": ("Run",),
}
"""Where each public name is defined."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for (PEP 562)."""
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'cosmos3' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
