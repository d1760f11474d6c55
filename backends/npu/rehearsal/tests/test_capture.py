"""The capture row. Recordings are made by torch_npu's own NPUGraph, over a stand-in for CANN that refuses what CANN's
pages say it refuses; a stand-in for replays calls again what was recorded (`rehearsal.graphs`). No device replayed
anything."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.distributed as dist
from conftest import CHIP
from cosmos3_npu import attention
from cosmos3_npu.capture import build_capture
from cosmos3_npu.memory import NpuMemory
from cosmos3_npu.plugin import ROWS, cosmos3_backend, probe
from rehearsal.emulated.limits import Limit

from cosmos3_core.contract import RunError, Segment
from cosmos3_core.plan import Want, resolve
from cosmos3_core.reference import build_ops
from cosmos3_core.testing import suite
from cosmos3_core.testing.cases import Here
from cosmos3_core.testing.subject import live_bytes
from cosmos3_core.testing.suite.capture import CAPTURE

(ROW,) = (row for row in ROWS if row.op == "capture")
on_a_910 = pytest.mark.skipif(CHIP == "Ascend950", reason="the row refuses the 950")


@pytest.fixture
def capture():
    with torch.inference_mode():
        yield build_capture(probe())


@pytest.fixture
def x() -> torch.Tensor:
    return torch.ones(3, 4, device="npu")


@on_a_910
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("test", "options"),
    [
        (suite.test_capture_follows_its_inputs, {}),
        (suite.test_captures_are_apart, {}),
        (suite.test_capture_raises_what_its_function_raises, {"run": 1}),
        (suite.test_capture_raises_what_its_function_raises, {"run": 2}),
        (suite.test_capture_gives_its_memory_back, {}),
        (suite.test_inputs_are_left_alone, {}),
    ],
)
def test_the_kit(test, options, dtype, capture):
    here = Here(dtype, "npu", ("none",), lambda format, activation: build_ops())
    fixtures = dict(
        kernel=ROW,
        dtype=dtype,
        op=capture,
        device="npu",
        op_cases=suite.CASES,
        job=lambda op: CAPTURE.job(op, here),
        alive=lambda: live_bytes(NpuMemory(), "npu"),
        **options,
    )
    test(**{name: fixtures[name] for name in inspect.signature(test).parameters})


def test_the_stand_in_takes_what_the_wheel_s_class_takes():
    """Its base is that class, which does the recording."""
    repeated, wheels, *_ = torch.npu.NPUGraph.__mro__
    assert wheels.__module__ == "torch_npu.npu.graphs"
    for name in ("capture_begin", "capture_end", "replay"):
        ours, theirs = (inspect.signature(getattr(of, name)).parameters.values() for of in (repeated, wheels))
        assert [(one.name, one.default) for one in ours] == [(one.name, one.default) for one in theirs]


def test_nothing_is_there_before_a_replay(capture, x, monkeypatch):
    """A device does nothing while it records, and neither does the stand-in: a row that returned what it recorded, or
    left out a replay, would return this."""
    captured = capture(lambda x: [x + 1])
    assert captured(x)[0].cpu().eq(2).all()
    with monkeypatch.context() as patched:
        patched.setattr(torch.npu.NPUGraph, "replay", lambda graph: None)
        assert captured(x)[0].cpu().isnan().all()
    assert captured(x)[0].cpu().eq(2).all()


def waits(x):
    torch.npu.synchronize()
    return [x]


REFUSED = {
    "waiting for the device": (waits, RuntimeError, "107030"),
    "asking for a number": (lambda x: [x * float(x.sum())], Limit, "the host waits for aten.item"),
    "reading the host's memory": (lambda x: [x + torch.ones(4).to("npu")], Limit, "not pinned"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cann_refuses_while_it_records_is_seen(what, capture, x):
    """In the second call, as on a device; recordings after it work."""
    function, error, said = REFUSED[what]
    captured = capture(function)
    captured(x)
    with pytest.raises(error, match=said):
        captured(x)
    other = capture(lambda x: [x + 1])
    for _ in range(3):
        assert other(x)[0].cpu().eq(2).all()


def test_an_operator_that_no_graph_takes_is_an_error(capture):
    """In the first call, before anything is recorded."""
    q, k, v = torch.ones(3, 1, 16, 4, 64, dtype=torch.bfloat16, device="npu")
    captured = capture(lambda q: [attention.fusion(q, [Segment(k, v)])[0]])
    with pytest.raises(RunError, match=r"npu_fusion_attention, which torch_npu documents.* Add --kernel capture=eager"):
        captured(q)
    if CHIP != "Ascend950":
        taken = capture(lambda q: [attention.infer(q, [Segment(k, v)])[0], attention.sdpa(q, [Segment(k, v)])[0]])
        for _ in range(3):
            assert all(found.cpu().eq(1).all() for found in taken(q))


@on_a_910
def test_what_is_recorded_is_watched_too(capture):
    """Not the first call alone: a function may do otherwise in its second."""
    q, k, v = torch.ones(3, 1, 16, 4, 64, dtype=torch.bfloat16, device="npu")
    taken = iter((attention.infer, attention.fusion))
    captured = capture(lambda q: [next(taken)(q, [Segment(k, v)])[0]])
    captured(q)
    with pytest.raises(RunError, match="npu_fusion_attention"):
        captured(q)


def test_one_stream_serves_all_recordings(capture, x):
    """Another than the caller's. A library's workspace on it is then there once."""
    seen = []

    def function(x):
        seen.append(torch.npu.current_stream().npu_stream)
        return [x + 1]

    for captured in (capture(function), capture(function)):
        captured(x), captured(x)
    assert len(seen) == 4 and len({*seen}) == 1 and torch.npu.current_stream().npu_stream not in seen


def test_a_collective_inside_is_an_error(capture, x, tmp_path):
    dist.init_process_group("hccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    def summed(x):
        dist.all_reduce(x)
        return [x]

    try:
        with pytest.raises(RunError, match="a collective, which runs on a stream of HCCL's own"):
            capture(summed)(x.clone())
    finally:
        dist.destroy_process_group()


def test_who_gets_the_row():
    want = Want(dtype="bfloat16", heads=4, kv_heads=2, head_dim=64, hidden=256, inner=512, activation="silu")
    plan = resolve(want, cosmos3_backend(), probe())
    (chosen,) = (choice.kernel.name for choice in plan.choices if choice.op == "capture")
    assert chosen == ("eager" if CHIP == "Ascend950" else "npu-graph")
