"""`cosmos3 check`: the conformance kit over one installed backend, without a test folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .. import testing
from ..contract import InputError, Unavailable
from ..files.atomic import check_writable
from ..plan import discovery
from .terminal import printable


def execute(
    disabled: Collection[str],
    backend: str,
    record: str | None,
    depth: str,
    keyword: str | None,
    module: str | None,
    jobs: int,
    only_list: bool,
) -> None:
    """Run the kit, or the test module that star-imports it, and exit with pytest's status. Raises InputError where
    there is nothing to run it on or with."""
    if importlib.util.find_spec("pytest") is None:
        raise InputError("cosmos3 check", "pytest is not installed", "Type pip install pytest")
    if jobs > 1 and importlib.util.find_spec("xdist") is None:
        raise InputError(f"--jobs {jobs}", "pytest-xdist is not installed", "Type pip install pytest-xdist")
    if record and (Path(record).is_dir() or not Path(record).absolute().parent.is_dir()):
        raise InputError(f"--record {record}", "no file can be written there", "Name a file in a folder that exists")
    if record:
        if module and Path(record).resolve() == Path(module).resolve():
            raise InputError(f"--record {record}", "it is the module of the kit", "Choose another name")
        check_writable(Path(record))
    found = discovery.load(backend, disabled)
    try:
        device = discovery.probe(found)
    except Unavailable as reason:
        raise InputError(f"--backend {backend}", str(reason), "Run the check on a machine with this device") from None
    if module and not Path(module).is_file():
        raise InputError(f"--module {module}", "there is no such file", "Name the test module that imports the kit")
    import pytest

    from ..testing.shares import Shares
    from .lines import Lines

    # Nothing of the folder the user happens to stand in: no configuration, no conftest, no cache.
    suite = Path(module).resolve() if module else Path(testing.__file__).parent / "suite" / "__init__.py"
    alone = ["-c", str(testing.ALONE), "--rootdir", str(suite.parent), "--noconftest", "-p", "no:cacheprovider"]
    arguments = [str(suite), *alone, "-p", "cosmos3_core.testing.plugin", "--tb=no", "--color=no"]
    arguments += ["--backend", backend, "--depth", depth, *(["-k", keyword] if keyword else [])]
    package = discovery.installed()[backend]
    if not only_list:
        what = f"{backend}: {device.name} ({device.arch}), {package.package} {package.version}"
        print(printable(f"{what}, depth {depth}"), flush=True)
    lines = Lines(only_list, depth, jobs)
    status = _run(arguments, lines, Shares(backend), None if only_list else jobs, record)
    if lines.stopped:
        raise KeyboardInterrupt
    if lines.died:
        sys.exit(int(pytest.ExitCode.TESTS_FAILED))
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise _nothing(keyword, module)
    # An expression that pytest cannot read: it has said why.
    sys.exit(InputError.exit_code if status == pytest.ExitCode.USAGE_ERROR else int(status))


def _nothing(keyword: str | None, module: str | None) -> InputError:
    """Why no test ran."""
    if keyword:
        return InputError(f"-k {keyword}", "no test of the kit matches it", "Leave -k out to run them all")
    if module:
        return InputError(f"--module {module}", "it has no test", "Import the kit in it, see cosmos3_core.testing")
    return InputError("PYTEST_ADDOPTS", "its options leave no test of the kit", "Unset it")


def _run(arguments: list[str], lines: Any, shares: Any, jobs: int | None, record: str | None) -> int:
    """pytest's status of the tests in so many processes; with None they are collected only."""
    import pytest

    status: int = pytest.ExitCode.OK
    if jobs != 1:
        status = pytest.main([*arguments, "--collect-only"], plugins=[lines, shares])
    if jobs is None or status != pytest.ExitCode.OK:
        return status
    several = ["-n", str(jobs), "--max-worker-restart", str(jobs)] if jobs > 1 else []
    plugins = [lines, shares] if jobs > 1 else [lines]
    return pytest.main([*arguments, *(["--record", record] if record else []), *several], plugins=plugins)
