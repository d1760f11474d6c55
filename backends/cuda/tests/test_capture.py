"""CUDA graphs, rehearsed on the CPU: a graph that records torch's operations and repeats them on the same memory."""

from __future__ import annotations

import inspect
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cosmos3_cuda.capture import build_capture
from cosmos3_cuda.plugin import ROWS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cosmos3
from cosmos3_core.reference import build_ops
from cosmos3_core.testing import suite
from cosmos3_core.testing.cases import Here
from cosmos3_core.testing.subject import live_bytes
from cosmos3_core.testing.suite.capture import CAPTURE, Step

TINY_MODEL = str(Path(__file__).parents[3] / "tests" / "tiny")


POOL = (0, 7)


class Graph(TorchDispatchMode):
    """A recorded operation writes its result to where it wrote it when it was recorded, from the same inputs."""

    made: list[weakref.ref] = []

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0
        Graph.made.append(weakref.ref(self))

    def capture_begin(self, pool: tuple[int, int], capture_error_mode: str) -> None:
        assert (pool, capture_error_mode) == (POOL, "thread_local")
        self.__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.item.default:  # waits for the device
            self.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def capture_end(self) -> None:
        self.__exit__(None, None, None)
        if getattr(self, "invalid", False):
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, result in self.operations:
            for place, value in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                place.copy_(value)


@pytest.fixture
def capture(monkeypatch):
    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = dict(
        CUDAGraph=Graph,
        graph_pool_handle=lambda: POOL,
        current_device=lambda: 3,
        Stream=lambda: stream,
        current_stream=lambda: stream,
        stream=lambda entered: nullcontext(),
        synchronize=lambda: None,
        empty_cache=lambda: None,
    )
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(Graph, "made", [])
    with torch.inference_mode():
        yield build_capture()


@pytest.mark.parametrize(
    ("test", "options"),
    [
        (suite.test_capture_follows_its_inputs, {}),
        (suite.test_captures_are_apart, {}),
        (suite.test_capture_raises_what_its_function_raises, {"run": 1}),
        (suite.test_capture_raises_what_its_function_raises, {"run": 2}),
        (suite.test_capture_gives_its_memory_back, {}),
        (suite.test_capture_that_cannot_be_recorded_leaves_memory_alone, {}),
        (suite.test_inputs_are_left_alone, {}),
    ],
)
def test_the_kit(test, options, capture):
    (row,) = (row for row in ROWS if row.name == "cuda-graph")
    here = Here("bfloat16", "cpu", ("none",), lambda format, activation: build_ops())
    fixtures = dict(
        kernel=row,
        dtype="bfloat16",
        op=capture,
        device="cpu",
        subject=SimpleNamespace(memory=build_ops().memory),
        op_cases=suite.CASES,
        job=lambda op: CAPTURE.job(op, here),
        alive=lambda: live_bytes(build_ops().memory, "cpu"),
        **options,
    )
    test(**{name: fixtures[name] for name in inspect.signature(test).parameters})


def test_the_first_call_runs_the_second_records_and_the_others_replay(capture):
    step, runs = Step.of("float32", "cpu"), []

    def counted(*tensors):
        runs.append(len(Graph.made))
        return step(*tensors)

    captured = capture(counted)
    for seed in range(5):
        captured(*step.input(seed))
    assert runs == [0, 1], "once without a graph, once with one"
    (graph,) = Graph.made
    assert graph().replays == 4 and len(graph().operations) == 4


def test_a_recording_goes_with_its_callable(capture):
    step = Step.of("float32", "cpu")
    captured = capture(step)
    for seed in range(2):
        captured(*step.input(seed))
    (graph,) = Graph.made
    del captured
    assert graph() is None


def test_the_reason_of_a_failed_recording_is_the_functions_own(capture):
    """Ending such a recording raises too, and what it says is of no use."""
    captured = capture(lambda x: [x * float(x.sum())])
    x = torch.ones(3)
    captured(x)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
            captured(x)
    assert capture(lambda x: [x + 1])(x)[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("ended", [False, True])
def test_a_failed_recording_is_over_for_the_allocator(capture, monkeypatch, ended):
    """Which a torch that has ended it already refuses to hear again."""
    told = []

    def end(*given):
        if ended:
            raise RuntimeError("not currently recording to mempool_id")
        told.append(("end", *given))

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *given: told.append(("release", *given)), raising=False)
    captured, x = capture(lambda x: [x * float(x.sum())]), torch.ones(3)
    captured(x)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(x)
    assert told == ([] if ended else [("end", 3, POOL), ("release", 3, POOL)])
    capture(lambda x: [x + 1])(x)
    assert len(told) == (0 if ended else 2), "only what failed is ended so"


@pytest.mark.parametrize("other", [torch.ones(1, 4), torch.ones(3, 4, dtype=torch.float16), torch.ones(4)])
def test_inputs_of_another_shape_or_dtype_are_refused(other, capture):
    """copy_() would broadcast or convert them."""
    captured = capture(lambda x: [x + 1])
    for _ in range(2):
        captured(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"recorded for torch.float32 \[3, 4\], called with"):
        captured(other)


def test_a_policy_replays_what_it_recorded(capture):
    """From its third observation on the picture's encode and the pass are replays, and every answer is that of a pipe
    that records nothing."""
    stream = np.random.default_rng(5)
    seen = [
        {
            "prompt": "pick up the cup",
            "observation/image": stream.integers(0, 256, (64, 96, 3), dtype=np.uint8),
            "observation/joint_position": stream.uniform(-1, 1, 7),
            "observation/gripper_position": np.array([0.5]),
        }
        for _ in range(4)
    ]
    options, replays = {"steps": 2, "canvas": "96x64", "chunk": 4}, []
    with torch.inference_mode(False):
        with cosmos3.load(TINY_MODEL, backend="reference", kernels={"capture": capture}) as pipe:
            policy = cosmos3.Policy(pipe, **options)
            for one in seen:
                answer = policy.act(one)
                replays.append([graph().replays for graph in Graph.made])
                with cosmos3.load(TINY_MODEL, backend="reference", resident=False) as other:
                    assert np.array_equal(cosmos3.Policy(other, **options).act(one), answer)
    assert replays == [[1], [3, 1], [5, 2], [7, 3]], "the pass is recorded in its second call, the encode as well"
    assert not any(graph() for graph in Graph.made)
