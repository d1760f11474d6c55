"""The rehearsal itself: the device's tensors are its own, and what is not rehearsed fails."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from conftest import CHIP
from rehearsal.emulated.limits import Limit


def test_views_and_changes_in_place_are_of_the_same_bytes():
    x = torch.arange(12.0, device="npu").view(3, 4)
    x[1:, ::2].mul_(10)
    torch.add(x[0], 1, out=x[0])
    assert x.device.type == "npu"
    assert x.cpu().tolist() == [[1, 2, 3, 4], [40, 5, 60, 7], [80, 9, 100, 11]]


def test_a_copy_is_another_tensor_and_makes_the_host_wait(launches):
    x = torch.zeros(2, device="npu")
    held = x.cpu()
    x += 1
    assert held.tolist() == [0, 0] and launches.waits.total() == 1
    with torch.inference_mode():
        held = x.to("cpu")
        x += 1
    assert held.tolist() == [1, 1]


def test_there_is_no_fp64():
    with pytest.raises(Limit, match=r"no torch.float64"):
        torch.ones(2, device="npu").double()


def test_the_vendor_refuses_what_it_does_not_take():
    rows, weight = torch.ones(4, 64, dtype=torch.int8, device="npu"), torch.ones(64, 32, dtype=torch.int8, device="npu")
    of_rows, short = torch.ones(4, device="npu"), torch.ones(31, device="npu")
    with pytest.raises(RuntimeError, match="scale"):
        torch_npu.npu_quant_matmul(rows, weight, short, pertoken_scale=of_rows, output_dtype=torch.bfloat16)


@pytest.mark.skipif(CHIP == "Ascend950", reason="the 950 has MX")
def test_a_910_has_no_mx():
    with pytest.raises(Limit, match="npu_dynamic_mx_quant is not documented"):
        torch_npu.npu_dynamic_mx_quant(torch.ones(1, 64, dtype=torch.bfloat16, device="npu"))


def test_an_operator_that_nobody_emulates_fails():
    with pytest.raises(Limit, match="npu_gelu is not emulated"):
        torch_npu.npu_gelu(torch.ones(2, device="npu"), approximate="none")


def test_memory_is_counted():
    before = torch.npu.memory_allocated()
    x = torch.empty(2**20, dtype=torch.uint8, device="npu")
    assert torch.npu.memory_allocated() - before >= x.numel()
    assert torch.npu.mem_get_info()[1] == 64 * 2**30
