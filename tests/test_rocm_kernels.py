"""docs/rocm-kernels.md is of today's kernels and launches. `make rehearse-rocm` compiles them and writes it."""

from __future__ import annotations

import re

import devices  # noqa: F401 (puts the backends on the path)
from rehearsed import page

TEXT = page.PAGE.read_text()


def test_the_page_is_of_today_s_sources():
    assert page.digest_of(TEXT) == page.digest(), "type make rehearse-rocm"


def test_every_architecture_is_there_and_nothing_failed():
    from cosmos3_rocm import kernels

    assert set(re.findall(r"^## (\w+)$", TEXT, re.M)) == set(kernels.FAMILIES)
    assert "Failed:" not in TEXT


def test_every_kernel_is_among_the_sources():
    library = page.ROOT / "backends" / "triton" / "cosmos3_triton"
    assert {file.stem for file in library.glob("*.py") if "@triton.jit" in file.read_text()} <= set(page.KERNELS)


def test_another_launch_is_noticed(monkeypatch, tmp_path):
    """And another source."""
    for pattern in page.SOURCES:
        for path in page.ROOT.glob(pattern):
            copy = tmp_path / path.relative_to(page.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    before = page.digest()
    monkeypatch.setattr(page, "ROOT", tmp_path)
    assert page.digest() == before
    for name in ("backends/rocm/cosmos3_rocm/launches/cdna3.toml", "backends/triton/cosmos3_triton/products.py"):
        with (tmp_path / name).open("a") as file:
            file.write("# another\n")
        assert page.digest() != before
        before = page.digest()
