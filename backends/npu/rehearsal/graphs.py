"""A stand-in for replays: torch_npu's own NPUGraph records, in memory of its own and under CANN's rules, and what was
called meanwhile is called again. A device replays launches; nothing here says how."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .device import Launches, alias, leaves, on_npu
from .emulated.limits import Limit


class Call(NamedTuple):
    """What was called, and what it returned: there its results belong in every replay."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    results: list[Tensor]


def storages(x: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in leaves(x) if on_npu(leaf)}


class Calls(TorchDispatchMode):
    """While it is entered, what is called on a device is kept. Raises Limit for what cannot be recorded: a call for
    which the host waits, and a copy from memory of the host that is not pinned."""

    def __init__(self, launches: Launches):
        super().__init__()
        self.launches, self.kept = launches, list[Call]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if any(
            isinstance(leaf, Tensor) and leaf.is_cpu and leaf.ndim and not leaf.is_pinned() for leaf in leaves(args)
        ):
            raise Limit(f"{func} reads memory of the host that is not pinned, while a stream is recorded")
        waits = self.launches.waits.total()
        found = func(*args, **options)
        if self.launches.waits.total() > waits:
            raise Limit(f"the host waits for {func}, while a stream is recorded")
        fresh = storages(found) - storages((args, options))
        results = [x for x in leaves(found) if on_npu(x) and x.untyped_storage().data_ptr() in fresh]
        self.kept.append(Call(func, args, options, results))
        return found


def repeating(graph: type, launches: Launches) -> type:
    """torch_npu's NPUGraph with replays on the host. What is called while it records is not done by then: its results
    are overwritten."""

    class Repeated(graph):  # type: ignore[misc]
        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            super().capture_begin(pool, capture_error_mode)
            self.calls = Calls(launches)
            self.calls.__enter__()

        def capture_end(self) -> None:
            self.calls.__exit__(None, None, None)
            super().capture_end()
            for call in self.calls.kept:
                for x in call.results:
                    alias(x).untyped_storage().fill_(0xFF)

        def replay(self) -> None:
            for function, arguments, options, results in self.calls.kept:
                found = function(*arguments, **options)
                ours = storages((arguments, options))
                again = [x for x in leaves(found) if on_npu(x) and x.untyped_storage().data_ptr() not in ours]
                for result, value in zip(results, again, strict=True):
                    alias(result).copy_(alias(value))

    return Repeated
