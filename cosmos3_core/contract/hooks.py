"""How a device package is found: one entry point, one hook.

    # pyproject.toml of the package
    [project.entry-points."cosmos3.backends"]
    acme = "cosmos3_acme.plugin"

    # cosmos3_acme/plugin.py
    from cosmos3_core.contract import Backend, hookimpl

    @hookimpl
    def cosmos3_backend() -> Backend: ...

The entry point's name is the backend's name. Only the named package is imported, and its plugin module imports neither
torch nor kernel libraries at the top level.
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
