"""Every family of AMD's GPUs: what torch says of it, what it is planned with, and why not with more."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from cosmos3_rocm.devices import CEILINGS, CHANNELS_FIRST, KNOWN
from cosmos3_rocm.kernels import FAMILIES
from cosmos3_rocm.plugin import ROWS, cosmos3_backend, probe
from vendor_cases import row

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.plan import Want, resolve

ATTENTION = {
    "gfx90a": "sdpa-flash",
    "gfx942": "sdpa-flash",
    "gfx950": "sdpa-flash",
    "gfx1100": "triton",
    "gfx1151": "triton",
    "gfx1200": "triton",
    "gfx1201": "sdpa-flash",
}
"""With torch 2.11, without AITER and with no kernel that is experimental."""
FP8 = {"gfx942": "scaled-mm", "gfx950": "scaled-mm", "gfx1200": "scaled-mm", "gfx1201": "scaled-mm"}
"""Who multiplies in fp8, between the halves' kernels; elsewhere our own, in 16 bits."""


def planned(device, **asked):
    want = Want.of(describe("nano").config, "bfloat16", **asked)
    brought = {"triton": "triton"}
    with patch("importlib.util.find_spec", brought.get), patch.dict("os.environ", clear=True):
        return resolve(want, cosmos3_backend(), device)


def test_every_family_is_known_and_has_kernels():
    assert {device.arch for device in KNOWN} == set(ATTENTION) == set(FAMILIES)
    for device in KNOWN:
        assert any(device.name.endswith(key) for key in CEILINGS) or device.arch in CEILINGS, device.name


@pytest.mark.parametrize("device", KNOWN, ids=lambda device: device.name)
def test_a_plan_names_its_kernels_and_why_others_were_passed_over(device):
    plan = planned(device)
    chosen = {choice.op: choice.kernel.name for choice in plan.choices}
    assert chosen["attention"] == ATTENTION[device.arch] and chosen["capture"] == "hip-graph"
    assert {chosen[op] for op in ("rms_norm", "norm_rope", "gate", "norm_silu", "patch_embed")} == {"triton"}
    reasons = {(one["op"], one["name"]): one["reason"] for one in plan.to_json()["refused"]}
    elsewhere = f"written for gfx942, gfx950, and this device is {device.arch}"
    without = "needs the package aiter" if device.arch in ("gfx942", "gfx950") else elsewhere
    assert reasons["attention", "aiter-fa"] == without
    if ATTENTION[device.arch] == "triton":
        assert "experimental" in reasons["attention", "sdpa-flash"]
    assert plan.tuning.channels_last is (device.arch not in CHANNELS_FIRST)


@pytest.mark.parametrize("device", KNOWN, ids=lambda device: device.name)
def test_fp8_is_the_vendor_s_where_the_matrix_units_have_it(device):
    plan = planned(device, formats={"pack_linear": "fp8"})
    chosen = {choice.op: choice.kernel.name for choice in plan.choices}
    expected = FP8.get(device.arch)
    assert chosen["project"] == chosen["finish"] == (expected or "composed")


@pytest.mark.parametrize("told", ["gfx942:sramecc+:xnack-", "gfx90a:sramecc+:xnack-", "gfx1200"])
def test_a_gpu_is_known_by_its_gcn_arch_name(told, monkeypatch):
    gpu = SimpleNamespace(gcnArchName=told, name="AMD something", total_memory=2**34, is_integrated=0)
    monkeypatch.setattr(torch.version, "hip", "7.2.1")
    for name, answer in {"is_available": True, "device_count": 2, "get_device_properties": gpu}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *given, answer=answer: answer)
    found = probe()
    assert (found.arch, found.count, found.unified, found.versions["hip"]) == (told.split(":")[0], 2, False, "7.2.1")


def test_an_architecture_that_nobody_names_still_has_what_all_have():
    """No family is left out by a range: what serves everywhere serves there."""
    everywhere = {(one.op, one.name) for one in ROWS if one.arch == ("*",)}
    assert ("capture", "hip-graph") in everywhere


def test_a_graph_is_recorded_by_torch_s_cuda_graphs(monkeypatch):
    graphs = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "a stream")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.append("a graph"))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    recorded = row("capture", "hip-graph").build(KNOWN[0])(lambda x: [x])
    recorded.new_graph()
    assert graphs == ["a graph"] and recorded.stream == "a stream"
