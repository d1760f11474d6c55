"""Copies beside collectives: the vendor's own streams are waited for before an event is recorded behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from cosmos3_npu.memory import NpuMemory

ORDER = """
import json, sys, time
import torch, torch_npu
import torch.distributed as dist
from cosmos3_npu.memory import NpuMemory
from cosmos3_core.reference.comm import TorchComm

rank, folder, waits = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "waits"
dist.init_process_group("hccl", init_method=f"file://{folder}/{sys.argv[3]}", rank=rank, world_size=2)
torch.npu.set_device(rank)
comm, memory = TorchComm(), NpuMemory()
x = torch.full((1 << 20,), float(rank + 1), device=f"npu:{rank}")
comm.all_reduce(x.clone()).wait()  # the processes know each other
dist.barrier()
if rank:
    time.sleep(1)
pending = comm.all_gather(x)
if waits:
    pending.wait()
held = memory.copy(memory.pinned((2, 1 << 20), torch.float32, x.device), pending.result).wait().clone()
pending.wait()
print(json.dumps([float(held[0].min()), float(held[1].min())]))
dist.barrier()
"""


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    dist.init_process_group("hccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def waited(monkeypatch, launches) -> list[int]:
    """How many copies there were whenever the host waited for the stream, while one more started."""
    found, memory, was = [], NpuMemory(), torch.npu.Stream.synchronize

    def spied(stream) -> None:
        found.append(launches.counts["aten::copy_"])
        was(stream)

    x = torch.ones(4, device="npu")
    pinned = memory.pinned((4,), torch.float32, x.device)
    launches.clear()
    with monkeypatch.context() as patched:
        patched.setattr(torch.npu.Stream, "synchronize", spied)
        started = memory.copy(pinned, x)
    assert launches.counts["aten::copy_"] == 1 and started.wait().tolist() == [1] * 4
    return found


def test_a_copy_waits_for_the_stream_where_processes_share_a_run(alone, monkeypatch, launches):
    """Before it, so that neither the copy nor the event behind it is ahead of a collective."""
    assert waited(monkeypatch, launches) == [0]


def test_a_copy_of_a_process_alone_does_not_wait(monkeypatch, launches):
    assert waited(monkeypatch, launches) == []


@pytest.mark.parametrize("start", ["copy", "fetch"])
def test_an_event_is_recorded_behind_the_copy(start, monkeypatch, launches):
    """The stand-in's copies are done at once, so that an event ahead of one is seen by the order alone."""
    found, memory, event = [], NpuMemory(), torch.Event

    class Spied:
        def __init__(self, device: torch.device) -> None:
            self.event = event(device)

        def record(self, *stream: torch.Stream) -> None:
            found.append(launches.counts["aten::copy_"])
            self.event.record(*stream)

    x = torch.ones(4, device="npu")
    source = memory.pinned((4,), torch.float32, x.device)
    launches.clear()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "Event", Spied)
        getattr(memory, start)(x, source)
    assert found == [1]


@pytest.mark.parametrize(("how", "right"), [("waits", True), ("does not wait", False)])
def test_a_copy_holds_what_a_late_process_has_sent(tmp_path, how, right):
    """Once the collective has been waited for. The fault, a collective that nobody waits for, is seen."""
    command = [sys.executable, "-c", ORDER]
    env = os.environ | {"REHEARSED_COUNT": "2"}
    peers = [
        subprocess.Popen([*command, str(rank), str(tmp_path), how], env=env, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [json.loads(peer.communicate(timeout=300)[0].splitlines()[-1]) for peer in peers]
    assert (said[0] == [1.0, 2.0]) is right, said


def test_a_fetch_waits_for_the_stream_and_its_target_for_the_fetch(monkeypatch, launches):
    """What is computed already may still use the target's memory, so the lane waits for it before it copies; and memory
    that is given back meanwhile is nobody's before the lane is done. The stand-in's streams are never behind, so that
    both are seen by what is asked of torch."""
    found, record = [], torch.Tensor.record_stream

    class Spied(torch.Stream):
        def wait_stream(self, other: torch.Stream) -> None:
            found.append(("waits for", other.stream_id, launches.counts["aten::copy_"]))
            super().wait_stream(other)

    def recorded(tensor: torch.Tensor, lane: torch.Stream) -> None:
        found.append(("is used by", lane.stream_id, launches.counts["aten::copy_"]))
        record(tensor, lane)

    x, memory = torch.zeros(4, device="npu"), NpuMemory()
    here = torch.accelerator.current_stream(x.device).stream_id
    source = memory.pinned((4,), torch.float32, x.device).fill_(1)
    launches.clear()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "Stream", Spied)
        patched.setattr(torch.Tensor, "record_stream", recorded)
        fetched = memory.fetch(x, source)
    (lane,) = (lane.stream_id for lane in memory._lanes.values())
    assert lane != here
    assert found == [("waits for", here, 0), ("is used by", lane, 1)]
    assert fetched.wait().tolist() == [1] * 4
