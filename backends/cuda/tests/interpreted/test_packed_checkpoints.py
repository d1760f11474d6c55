"""Checkpoints that the packages wrote (tests/dialects) on an H100 that is not here: which row the plan takes for their
weights, and that it multiplies as eager torch does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cosmos3_cuda import plugin
from cosmos3_triton import products

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.contract import Device
from cosmos3_core.plan import Plan
from cosmos3_core.quant.numerics import multiply
from cosmos3_core.settle import Wish, ground_of
from cosmos3_core.testing import cases

sys.path.append(str(Path(__file__).parents[4] / "tests"))
from dialect_files import PROBE, checkpoint

SERVED_BY = {
    "autoround-mxfp4": "triton-a16",
    "autoround-mxfp8": "triton-a16",
    "autoround-w4a16": "triton-a16",
    "awq": "triton-a16",
    "bnb-nf4": "triton-a16",
    "ct-float": "scaled-mm",
    "ct-float-static": "scaled-mm",
    "ct-int": "triton-scaled-mm",
    "ct-mxfp4": "triton-a16",
    "ct-nvfp4": "triton-a16",
    "ct-w4a16": "triton-a16",
    "ct-w4a16-asym": "triton-a16",
    "gptq": "triton-a16",
    "modelopt-fp8": "scaled-mm",
    "modelopt-nvfp4": "triton-a16",
    "modelslim-static": "triton-scaled-mm",
    "torchao-float8": "triton-a16",
    "torchao-int8": "triton-a16",
}


def planned(folder: Path, arch: str) -> tuple[Plan, dict[str, str]]:
    """The plan, and for each format of the weights the row that takes them."""
    device = Device(arch=arch, name="a GPU", count=1, memory=2**36, unified=False, versions={"cudnn": "9.19.0"})
    plan = ground_of(Wish(model=str(folder), dtype="bfloat16"), on=(plugin.cosmos3_backend(), device)).plan
    chosen = [one for one in (*plan.choices, *plan.others) if one.op == "pack_linear"]
    return plan, {one.format: one.kernel.name for one in chosen}


@pytest.mark.parametrize("name", SERVED_BY)
def test_a_row_of_the_device_takes_the_weights_of_a_dialect(name, tmp_path, monkeypatch):
    monkeypatch.setattr(products, "processors", lambda device: 2)
    folder = checkpoint(name, tmp_path / "model")
    plan, rows = planned(folder, "sm_90")
    assert set(rows.values()) == {SERVED_BY[name]}
    row = next(one.kernel for one in plan.choices if one.op == "pack_linear")
    widened = row.name == "triton-a16" and plan.meanings[plan.format].activations
    assert plan.widens == row.widens and bool(plan.notes) == widened
    weight = dict(Weights(open_model(str(folder))).quantized.weights([PROBE]))[PROBE]
    x = cases.normal(3, weight.shape[1], seed=1).bfloat16()
    linear = row.build(plan.device)(weight, None, format=weight.format.name)
    exact = multiply(x, weight)
    cases.check(linear(x), exact, exact, "bfloat16", 2**-8 + cases.allowed(plan.meanings[plan.format]) / 10)


def test_the_plan_says_what_was_given_up(tmp_path):
    plan, rows = planned(checkpoint("autoround-mxfp8", tmp_path / "mxfp8"), "sm_90")
    reasons = {one.name: one.reason for one in plan.refusals if one.op == "pack_linear"}
    assert reasons == {"block-scaled-mm": "written for sm_100, sm_103, sm_120, sm_121, and this device is sm_90"}
    assert plan.notes == (
        f"products of mxfp8 are in bfloat16 here (block-scaled-mm: {reasons['block-scaled-mm']}): "
        "the format saves memory, and no time",
    )
    folder = checkpoint("modelopt-fp8", tmp_path / "fp8")
    plan, rows = planned(folder, "sm_80")
    assert rows == {"fp8_static": "triton-a16"}
    assert any("sm_80 has no 8-bit floats" in one.reason for one in plan.refusals)
    assert planned(tmp_path / "mxfp8", "sm_100")[1] == {"mxfp8": "block-scaled-mm"}


def test_eager_torch_takes_what_no_row_does(tmp_path):
    plan, rows = planned(checkpoint("gguf", tmp_path / "model"), "sm_90")
    assert rows == {"q8_0": "triton-a16", "q4_0": "triton-a16", "q5_1": "eager"}
