"""Checkpoints of the embedded model that AutoRound's own package wrote, judged by `cosmos3 evaluate --depth quick`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import depths
from cosmos3_core.settle import Wish

pytestmark = pytest.mark.skipif(
    find_spec("auto_round") is None, reason="AutoRound is not installed: make rehearse-xpu installs it"
)
SCHEMES = {
    "W4A16": ("w4a16", "torch-int4", {"velocity"}),
    "MXFP8": ("mxfp8", "vllm-fp8", set()),
    "MXFP4": ("mxfp4", "vllm-fp4", {"velocity", "inverse-dynamics"}),
}
"""By AutoRound's name: our format, the row that multiplies in it, and the tasks whose error 4 bits push beyond the
bound of the model in bfloat16."""
MORE = 1.1
"""How much farther off than the format's reference numerics with the same checkpoint what is missed may be."""


def ran(*command: object, codes: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([sys.executable, "-m", *map(str, command)], capture_output=True, text=True)
    assert done.returncode in codes, done.stderr
    return done.stdout


def errors(found) -> dict[str, float]:
    return {one["task"]: one["value"] for one in found["measures"] if one["measure"] == "error"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_of_autoround_shows_what_was_asked_for(scheme, tmp_path):
    """Within all bounds of the model; where 4 bits miss one, as eager torch does, and no farther off."""
    format, row, missing = SCHEMES[scheme]
    folder = tmp_path / scheme
    ran("cosmos3_xpu_rehearsal.written", scheme, folder)
    modules = open_model(str(folder)).quantization.modules
    assert {one.name for one in modules.values()} == {format} and all(name.startswith("layers.") for name in modules)
    asked = ("cosmos3", "evaluate", "--model", folder, "--backend", "xpu", "--depth", "quick", "--json")
    found = json.loads(ran(*asked, codes=(0, 1)))
    assert found["kernels"]["pack_linear"] == row
    missed = {(one["task"], one["measure"]) for one in found["measures"] if not one["met"]}
    assert missed <= {(task, "error") for task in missing}
    if missing:
        quick = depths()["quick"]
        wish = Wish(model=str(folder), profile="reference", backend="xpu", kernels={"pack_linear": "eager"})
        eager = evaluate(wish, replace(quick, runs={task: quick.runs[task] for task in missing}))
        far = {task: (errors(found)[task], errors(eager)[task]) for task in missing}
        assert all(ours <= MORE * theirs for ours, theirs in far.values()), far
