"""How a device package is found: an entry point "cosmos3.backends" with the backend's name, and in the module that it
names one function, `@hookimpl def cosmos3_backend() -> Backend`. Only the named package is imported, and its plugin
module imports neither torch nor kernel libraries at the top level. docs/writing-a-backend.md shows a whole one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from . import Backend

GROUP = "cosmos3.backends"
hookimpl = pluggy.HookimplMarker("cosmos3")
_hookspec = pluggy.HookspecMarker("cosmos3")


@_hookspec(firstresult=True)
def cosmos3_backend() -> Backend:
    """The backend this package provides."""
    raise NotImplementedError  # a specification: what is called is the package's
