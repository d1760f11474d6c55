"""What pytest needs to run the suite over one backend: options, parameters, known failures and the record.

A test module that star-imports the suite loads this by itself. The options --backend and --record exist from the start
with `-p cosmos3_core.testing.plugin`; a module's own BACKEND serves without it.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest

from ..contract import Cosmos3Error, Device, Kernel
from ..plan.choice import rows
from . import ALONE
from .depth import DEPTHS, QUICK, Depth, Draw, Pace
from .faults import FAULT, fault_place
from .record import Record
from .shares import SHARED
from .subject import Subject, live_bytes, row_id, row_of

if TYPE_CHECKING:
    import torch

    from .cases import Here, Made, OpCase

SUITE = "cosmos3_core.testing.suite"
REASON = re.compile(r"(notimpl|notyet|never): \S.*\S, (https?://\S+)")
NO_ROW = "the backend has no row for this op, so eager torch serves it"
SYSTEM = ("memory", "comm")
RECORD = pytest.StashKey[Record]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cosmos3")
    group.addoption("--backend", dest="cosmos3_backend", metavar="NAME", help="the backend that is judged")
    group.addoption("--depth", dest="cosmos3_depth", choices=tuple(DEPTHS), default=QUICK.name, help="how far sizes go")
    group.addoption("--draw", dest="cosmos3_draw", type=int, default=0, metavar="N", help="other inputs than draw 0's")
    group.addoption("--record", dest="cosmos3_record", metavar="FILE", help="write the result here, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    Draw.number = config.getoption("cosmos3_draw", 0)
    # Of processes that share the tests (pytest-xdist) the one that runs none of them writes the record.
    file = None if hasattr(config, "workerinput") else config.getoption("cosmos3_record", None)
    config.stash[RECORD] = Record(file)
    config.pluginmanager.register(config.stash[RECORD])
    if file and config.getoption("numprocesses", None):
        if (name := config.getoption("cosmos3_backend", None)) is None:
            raise pytest.UsageError("--record of several processes needs --backend NAME")
        config.stash[RECORD].subject(name)


def _subject(config: pytest.Config, module: ModuleType) -> Subject:
    name = config.getoption("cosmos3_backend", None) or getattr(module, "BACKEND", None)
    if name is None:
        raise pytest.Collector.CollectError(
            f'{module.__name__} names no backend: write BACKEND = "..." in it, or pass --backend NAME'
        )
    try:
        subject = config.stash[RECORD].subject(name)
    except Cosmos3Error as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if SHARED in getattr(config, "workerinput", ()) and isinstance(subject.device, str):
        said = f"one of several processes does not find the device: {subject.device}. Leave --jobs out"
        raise pytest.Collector.CollectError(said)
    return subject


def _is_ours(item: Any) -> bool:
    """Whether a collected function is the kit's own; one that overrides it is not."""
    return getattr(getattr(item, "function", None), "__module__", "").startswith(f"{SUITE}.")


@pytest.hookimpl(tryfirst=True)  # before the cases, so that a test's id begins with its row
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Rows are parameters: `kernel` is a row of the op a test is about, `dtype` and `format` are what it declares."""
    if not _is_ours(metafunc) or "kernel" not in metafunc.fixturenames:
        return
    ops, subject = getattr(metafunc.function, "ops", ()), _subject(metafunc.config, metafunc.module)
    names = [name for name in ("kernel", "dtype", "format") if name in metafunc.fixturenames]
    values = []
    for row in _rows(subject, ops):
        formats = subject.formats(row)
        for dtype in row.dtypes if "dtype" in names else (None,):
            for format in formats if "format" in names else (None,):
                shown = [_shown(row, ops), dtype, format if formats != ("none",) else None]
                given = [{"kernel": row, "dtype": dtype, "format": format}[name] for name in names]
                values.append(pytest.param(*given, id="-".join(filter(None, shown))))
    if not values:
        values = [pytest.param(*[None] * len(names), id="no_row", marks=pytest.mark.skip(reason=NO_ROW))]
    metafunc.parametrize(names, values)


def _rows(subject: Subject, ops: tuple[str, ...]) -> list[Kernel]:
    """The backend's rows, of these ops where some are named. What a run asks of a device besides arithmetic is judged
    where the backend leaves it to torch, too: only on the device it shows whether torch can answer."""
    own = [row for row in subject.backend.kernels if not ops or row.op in ops]
    return own or [row for op in set(ops) & set(SYSTEM) for row in rows(subject.backend, op)]


def _shown(row: Kernel, ops: tuple[str, ...]) -> str:
    """How a test's id calls its row."""
    return row.name if len(ops) == 1 else row_id(row)


@pytest.hookimpl(tryfirst=True)  # before -k and --deselect take anything away
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    problems = []
    whole = not any("::" in argument for argument in config.args)
    for module in dict.fromkeys(cast(Any, item).module for item in items if _is_ours(item)):
        mine = [item for item in items if getattr(item, "module", None) is module and _is_ours(item)]
        problems += [f"{module.__name__}: {problem}" for problem in _judge(module, mine, whole)]
    if problems:
        raise pytest.UsageError("the kit was not run as it is:\n  " + "\n  ".join(problems))
    config.stash[RECORD].left_out = len(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there before the first test is left out of what `alive` counts and collects: thousands of modules, whose
    objects it would look through before and after every job."""
    record = session.config.stash[RECORD]
    record.left_out = max(0, record.left_out - len(session.items))
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def _judge(module: ModuleType, items: list[Any], whole: bool) -> Iterator[str]:
    """Turn KNOWN_FAILURES into strict xfails; yield what is wrong with them and what of the kit is missing."""
    from . import suite

    known: dict[str, str] = getattr(module, "KNOWN_FAILURES", {})
    used, collected = set(), {getattr(item, "originalname", None) for item in items}
    for name in suite.TESTS:
        if getattr(module, name, None) is not getattr(suite, name) or (whole and name not in collected):
            used.add(name)
            if name not in known:
                yield f"{name} is deleted, overridden or not collected, and KNOWN_FAILURES does not say why"
    for item in items:
        marks = [mark for mark in item.iter_markers() if mark.kwargs.get("reason") != NO_ROW]
        if any(mark.name in ("skip", "skipif", "xfail") for mark in marks):
            yield f"{item.name} carries a mark of this module; KNOWN_FAILURES is the only excuse"
        for entry in _names(item) & set(known):
            used.add(entry)
            item.add_marker(pytest.mark.xfail(reason=known[entry], strict=True))
    for entry, reason in known.items():
        if not REASON.fullmatch(reason):
            yield f'{entry}: {reason!r} is not "notimpl|notyet|never: reason, link"'
        if whole and entry not in used:
            yield f"KNOWN_FAILURES names {entry}, and there is no such test"


def _names(item: Any) -> set[str]:
    """How KNOWN_FAILURES may call a test: by its whole name, or by its row for all dtypes and cases of that row."""
    callspec = getattr(item, "callspec", None)
    kernel = callspec.params.get("kernel") if callspec else None
    if kernel is None:
        return {item.name}
    row = _shown(kernel, getattr(item.function, "ops", ()))
    return {item.name, f"{item.originalname}[{row}]"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A report of a test that failed says where: see `faults`."""
    report = yield
    if report.failed and _is_ours(item):
        name = _subject(item.config, cast(Any, item).module).name
        report.user_properties = [*report.user_properties, (FAULT, fault_place(item, name))]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Reports of several processes travel as UTF-8; a driver's message may hold what is none."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(one) for key, one in value.items()}
    return type(value)(map(_encodable, value)) if type(value) in (list, tuple) else value


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """What the calls of a row change is kept for `test_no_call_changes_anything_global`."""
    if not _is_ours(pyfuncitem) or (row := row_of(pyfuncitem)) is None:
        return (yield)
    subject = _subject(pyfuncitem.config, pyfuncitem.module)
    with subject.looking(row, pyfuncitem.name):
        return (yield)


@pytest.fixture(name="subject")
def _subject_fixture(request: pytest.FixtureRequest) -> Subject:
    """The backend that is judged."""
    return _subject(request.config, request.module)


@pytest.fixture
def pace(depth: Depth, device: str, record_property: Callable[[str, object], None]) -> Iterator[Pace]:
    """Which sizes are worth their time; the record says which were."""
    pace = Pace(depth, device == "cpu")
    yield pace
    record_property("sizes", pace.told())


@pytest.fixture
def depth(request: pytest.FixtureRequest) -> Depth:
    """How deep this run goes."""
    return DEPTHS[request.config.getoption("cosmos3_depth", QUICK.name)]


@pytest.fixture
def device(subject: Subject) -> str:
    """torch's name of the device. Skips where there is none."""
    if not isinstance(subject.device, Device):
        pytest.skip(subject.device)
    return subject.backend.torch_device


@pytest.fixture
def place(device: str) -> torch.device:
    """The device, as `contract.Memory` is asked about it."""
    import torch

    return torch.device(device)


@pytest.fixture
def op(request: pytest.FixtureRequest, subject: Subject, kernel: Kernel, device: str) -> Any:
    """The row, built. Skips, with the row's reason, where it cannot serve on this device."""
    import torch

    asked = request.node.callspec.params
    activation = getattr(asked.get("case"), "activation", "silu")
    if reason := subject.why_not(kernel, asked.get("dtype") or kernel.dtypes[0], asked.get("format"), activation):
        pytest.skip(reason)
    with torch.inference_mode():
        yield kernel.build(subject.present)


@pytest.fixture
def op_cases() -> Mapping[str, OpCase]:
    """What the kit knows of each op."""
    from . import suite

    return suite.CASES


@pytest.fixture
def here(request: pytest.FixtureRequest, subject: Subject, kernel: Kernel, device: str) -> Here:
    """Where the row is used: in the test's dtype, if it has one."""
    return subject.here(kernel, request.node.callspec.params.get("dtype"))


@pytest.fixture
def allowance(subject: Subject, kernel: Kernel) -> float:
    """What an attention row may lose."""
    from .cases import allowance

    return allowance(kernel, subject.known)


@pytest.fixture
def job(kernel: Kernel, here: Here, op_cases: Mapping[str, OpCase]) -> Callable[[Any], list[Any]]:
    """job(op): one ordinary use of the built row, see `OpCase.job`. Skips where one process cannot use it."""
    case = op_cases[kernel.op]
    if case.use is None and case.make is None:
        pytest.skip("it takes more than one process; its own tests use it")
    return lambda op: case.job(op, here)


@pytest.fixture
def made(kernel: Kernel, format: str, op: Any, op_cases: Mapping[str, OpCase], here: Here) -> Made:
    """What the row makes of ordinary weights in this format."""
    make = op_cases[kernel.op].make
    assert make is not None
    return make(op, here, format)


@pytest.fixture
def alive(subject: Subject, device: str) -> Callable[[], int]:
    """alive(): bytes of tensors on the device."""
    return lambda: live_bytes(subject.memory, device)


def again(backend: str, test: str, depth: str = "quick") -> int:
    """Run one test of the kit, by its whole name, over a backend and show what pytest shows. Returns its status."""
    alone = ["-c", str(ALONE), "--noconftest", "-p", "no:cacheprovider", "-p", "cosmos3_core.testing.plugin"]
    suite = Path(__file__).parent / "suite" / "__init__.py"
    return int(pytest.main([f"{suite}::{test}", *alone, "--backend", backend, "--depth", depth]))
