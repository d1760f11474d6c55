"""The tests of this folder run Triton's kernels on the CPU."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("interpreter")
