"""What the model in the package makes, at depth quick: half a minute of one core."""

from __future__ import annotations

from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import depths
from cosmos3_core.settle import Wish
from tools.embedded import faults


def test_the_embedded_model_meets_the_bounds_of_depth_quick():
    found = evaluate(Wish(model="embedded", backend="reference"), depths()["quick"])
    assert found["met"], [one for one in found["measures"] if not one["met"]]


def test_what_has_learned_nothing_misses_them():
    with faults.planted("a model that has learned nothing"):
        found = evaluate(Wish(model="embedded", backend="reference"), depths()["quick"])
    missed = {f"{one['task']} {one['measure']}" for one in found["measures"] if not one["met"]}
    assert {"t2vs colour", "t2i shape", "i2v colour", "policy reached", "velocity error"} <= missed
