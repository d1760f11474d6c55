"""What cosmos3_npu calls is what torch_npu registers, as rehearsal/schemas.txt keeps it. No wheel is needed here;
`make rehearse-npu` compares the file with two."""

from __future__ import annotations

import sys
import zipfile

import pytest
from sources import ROOT

sys.path.insert(0, str(ROOT / "backends" / "npu"))
from rehearsal import exercised, schemas

KEPT = schemas.kept()


@pytest.mark.parametrize("call", list(schemas.calls()), ids=lambda call: f"{call.operator}-{call.where}")
def test_a_call_fits_its_schema(call):
    assert schemas.misfit(call, KEPT[call.operator]) is None


def test_the_kept_schemas_are_those_of_the_calls():
    assert set(KEPT) == set(schemas.used())


def test_another_schema_in_a_wheel_is_told(tmp_path):
    """As a wheel's library holds them, between zeros; one has lost an argument, one is gone."""
    held = [*KEPT.values()]
    lost = KEPT["npu_rms_norm"].replace(", float epsilon=1e-06", "")
    held[held.index(KEPT["npu_rms_norm"])] = lost
    held.remove(KEPT["npu_swiglu"])
    with zipfile.ZipFile(tmp_path / "wheel.whl", "w") as wheel:
        wheel.writestr(schemas.LIBRARY, b"\0" + b"\0".join(schema.encode() for schema in held) + b"\0")
    found = schemas.changed(schemas.registered(tmp_path / "wheel.whl"), KEPT)
    assert [line.split("\n")[0] for line in found] == ["npu_rms_norm", "npu_swiglu"]


def test_a_misfit_is_told():
    call = schemas.Call("npu_rms_norm", 4, ("eps",), "rows.py:1")
    assert "by position, not 4" in schemas.misfit(call, KEPT["npu_rms_norm"])
    assert schemas.misfit(call._replace(positional=2), KEPT["npu_rms_norm"]) == "rows.py:1: npu_rms_norm takes no eps"


def test_every_operator_was_called_by_a_test_that_is_there():
    found, tests = exercised.kept(), ROOT / "backends" / "npu" / "rehearsal" / "tests"
    assert set(found) == set(KEPT)
    for operator, by in found.items():
        for file, test in (named.split("::") for named in by.values()):
            assert f"def {test}(" in (tests / file).read_text("utf-8"), operator


def test_the_page_lists_every_operator():
    page = (ROOT / "docs" / "npu.md").read_text("utf-8")
    assert page == exercised.filled(page), "type: cd backends/npu && python -m rehearsal.exercised ../../docs/npu.md"
