"""AITER's signatures: of a real wheel, and of its repository after and before it, as scripts/rocm_signatures.py wrote
them down by ast. What they do not take is refused with a reason, and nothing is imported for it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import emulated
import pytest
from cosmos3_rocm import signatures
from cosmos3_rocm.plugin import ROWS
from rocm_signatures import lines_of, recorded
from vendor_cases import DEVICE, NEWER, OTHER, WHEEL, ask, row

from cosmos3_core.testing import cases

MISFITS = {
    (WHEEL, "flash_attn_fp8_pertensor_func"): "not (q, k, v, q_descale, k_descale, v_descale)",
    (OTHER, "rmsnorm2d_fwd"): "takes no use_model_sensitive_rmsnorm",
    (OTHER, "rmsnorm2d_fwd_with_add"): "takes no use_model_sensitive_rmsnorm",
    (OTHER, "rope_cached_fwd"): "(input, cos, sin, reuse_freqs_front_part",
    (OTHER, "rope_cached_2c_fwd"): "(input_x, input_y, cos, sin, reuse_freqs_front_part",
}
"""What is refused, of what was recorded: why."""


@pytest.mark.parametrize("record", [WHEEL, NEWER, OTHER], ids=lambda file: file.stem)
def test_every_recorded_function_is_called_as_it_takes_it_or_refused_with_a_reason(record):
    for name, (file, text) in recorded(record).items():
        function = signatures.FUNCTIONS[name]
        found = signatures.parameters(f"def {name}({text}): ...")[name]
        reasons = [form.misfit(found) for form in function.forms]
        assert file == function.file
        if wanted := MISFITS.get((record, name)):
            assert None not in reasons and wanted in reasons[-1]
        else:
            assert None in reasons, f"{name}: {reasons}"


def test_the_wheel_has_every_function():
    assert recorded(WHEEL).keys() == signatures.FUNCTIONS.keys()


def test_signatures_are_read_by_ast_from_a_wheel_and_from_a_folder(tmp_path):
    emulated.install([WHEEL], tmp_path)
    assert lines_of(tmp_path) == [line for line in WHEEL.read_text().splitlines() if not line.startswith("#")]
    zipped = tmp_path / "aiter.whl"
    with zipfile.ZipFile(zipped, "w") as wheel:
        for file in tmp_path.glob("aiter/**/*.py"):
            wheel.write(file, str(file.relative_to(tmp_path)))
    assert lines_of(zipped) == lines_of(tmp_path)


@pytest.mark.parametrize("name", signatures.FUNCTIONS)
def test_a_drifted_signature_is_refused_before_anything_is_imported(name, aiter):
    """One more parameter in front, which a call by place would fill with something else."""
    _, text = (recorded(WHEEL) | recorded(NEWER))[name]
    rows = [row for row in ROWS if "aiter" in row.needs and name in functions_of(row)]
    assert rows, f"no row calls {name}"
    aiter([WHEEL, NEWER], **{name: f"stream, {text}"})
    for one in rows:
        said = one.refuse(ask(format=one.formats[0], op=one.op))
        assert said is not None and f"{name} of the installed amd-aiter is another" in said, (one.name, said)
    assert "aiter" not in sys.modules


def functions_of(row) -> list[str]:
    """AITER's functions that a row asks after: those without which it refuses."""
    asked = []

    def seen(name):
        asked.append(name)
        return signatures.FUNCTIONS[name].forms[0]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(signatures, "installed", lambda: Path("/"))
        patched.setattr(signatures, "form", seen)
        row.refuse(ask(format=row.formats[0], op=row.op))
    return asked


def test_a_function_that_is_gone_is_said_to_be(aiter, tmp_path):
    aiter([WHEEL])
    (tmp_path / "aiter" / "ops" / "activation.py").write_text("def silu(x): ...")
    said = row("gate", "aiter").refuse(ask(op="gate"))
    assert said == "the installed amd-aiter has no silu_and_mul in aiter/ops/activation.py"


def test_of_one_parameter_in_the_middle_a_named_one_is_still_found(aiter):
    """AITER put gemma_norm before use_model_sensitive_rmsnorm; by place the one would have become the other."""
    aiter([WHEEL, NEWER])
    x = cases.normal(5, 256, seed=1).bfloat16()
    assert row("rms_norm", "aiter").refuse(ask(op="rms_norm")) is None
    row("rms_norm", "aiter").build(DEVICE["gfx950"])(x, x[0], eps=1e-6, residual_MI=x)
    ((name, given),) = emulated.CALLS
    assert name == "rmsnorm2d_fwd_with_add"
    assert (given["gemma_norm"], given["use_model_sensitive_rmsnorm"]) == (False, 1)


def test_without_aiter_the_row_s_needs_say_so(monkeypatch):
    monkeypatch.setattr(signatures, "find_spec", lambda name: None)
    assert row("attention", "aiter-fa").refuse(ask()) is None


def test_source_that_python_cannot_read_is_a_reason(aiter, tmp_path):
    aiter([WHEEL])
    (tmp_path / "aiter" / "ops" / "mha.py").write_text("def flash_attn_func(q k): ...")
    assert "invalid syntax" in row("attention", "aiter-fa").refuse(ask())
