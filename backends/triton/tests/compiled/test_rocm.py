"""Gates of `make rehearse-rocm`, which compiles every row of cosmos3-rocm's for every architecture: each notices a
fault that the compiler lets pass. No GPU of AMD's has run them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "rocm"))
from cosmos3_rocm import kernels
from cosmos3_triton import products, row_wise
from cosmos3_triton.patch_embed import build_patch_embed
from cosmos3_triton.tables import Launch, Table, table, unfit
from cosmos3_triton.targets import TARGETS
from rehearsed import calls
from rehearsed.gates import PRODUCTS, faults
from rehearsed.launched import launched

SMALL = Launch(block_m=64, block_n=64, block_k=64, warps=4, stages=2)
TOO_LARGE = replace(SMALL, block_k=512, stages=3)


def with_launch(arch: str, kernel: str, launch: Launch) -> Table:
    own = kernels.find_table(arch)
    return replace(own, launches={**own.launches, kernel: (launch,)})


def product(of: Table, dtype: torch.dtype) -> None:
    a, b = torch.empty(300, 256, dtype=dtype), torch.empty(256, 256, dtype=dtype)
    products.scaled_mm(a, b, torch.ones(300, 1), torch.ones(256, 1), None, torch.bfloat16, of)


def said(arch: str, format: str, call) -> str:
    (found,) = launched(arch, call)
    return "; ".join(faults(found, arch, format))


def test_every_architecture_has_its_facts_and_its_gates():
    declared = {arch for row in calls.OURS for arch in row.arch}
    assert declared == PRODUCTS.keys() == {arch for arch in TARGETS if arch.startswith("gfx")}
    assert {arch for arch in declared if "fp8" in PRODUCTS[arch]} == {*kernels.WITH_FP8}


def test_what_ships_passes():
    own = with_launch("gfx942", "scaled_mm", SMALL)
    assert said("gfx942", "fp8", lambda: product(own, torch.float8_e4m3fnuz)) == ""
    assert said("gfx942", "none", lambda: calls.gate(row_wise.build_gate(own))) == ""


def test_fp8_that_the_architecture_does_not_have():
    """OCP's on gfx942: the compiler makes 16 bits of it."""
    found = said("gfx942", "fp8", lambda: product(with_launch("gfx942", "scaled_mm", SMALL), torch.float8_e4m3fn))
    assert "does not multiply fp8 as such" in found and "_f16" in found


def test_more_shared_memory_than_there_is():
    found = said("gfx942", "int8", lambda: product(with_launch("gfx942", "scaled_mm", TOO_LARGE), torch.int8))
    assert "bytes of LDS of 65,536" in found
    assert "131,072 bytes in shared memory" in unfit("gfx942", "scaled_mm", TOO_LARGE)


def test_waves_of_another_size(monkeypatch):
    """What the launches count on is what the code takes."""
    monkeypatch.setitem(TARGETS, "gfx942", replace(TARGETS["gfx942"], warp=32))
    found = said("gfx942", "none", lambda: calls.gate(row_wise.build_gate(kernels.find_table("gfx942"))))
    assert "waves of 64 threads, and the architecture 32" in found


def test_a_launch_that_spills():
    """The default's, on an architecture that has one of its own."""
    own = with_launch("gfx1100", "patch_embed", table("default").launch("patch_embed"))
    found = said("gfx1100", "none", lambda: calls.patch_embed(build_patch_embed(own)))
    assert "spills" in found


def test_narrow_stores():
    own = with_launch("gfx942", "gate", table("default").launch("gate"))
    assert "stores" in said("gfx942", "none", lambda: calls.gate(row_wise.build_gate(own)))


def test_a_table_that_the_architecture_cannot_have_is_refused(tmp_path):
    """Before anything is compiled: the default asks for 2048 threads of a program."""
    with pytest.raises(ValueError, match="gfx942: a launch of gate_rows asks for 32 warps of 64 threads"):
        table("gfx942")
    text = Path(kernels.LAUNCHES / "cdna3.toml").read_text()
    (tmp_path / "own.toml").write_text(
        text.replace("block_m = 256", "block_m = 512").replace("block_k = 64", "block_k = 256")
    )
    with pytest.raises(ValueError, match="gfx942: a launch of scaled_mm holds tiles of"):
        table("gfx942", None, tmp_path / "own.toml")
