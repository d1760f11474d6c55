"""The tuner with a clock of our own: what it runs, what it takes and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from cosmos3_cuda import tables, tune
from cosmos3_cuda.tables import Launch, table
from cosmos3_cuda.tune import Inputs, Sizes

SMALL = Sizes(
    tokens=40,
    text=9,
    hidden=128,
    inner=256,
    heads=4,
    kv_heads=2,
    head_dim=64,
    latent=(8, 2, 6, 6),
    vae_rows=30,
    vae_width=32,
)
BASE = table("sm_90")


@pytest.fixture
def inputs(monkeypatch) -> Inputs:
    found = type("Properties", (), {"multi_processor_count": 2})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    return Inputs(SMALL, "cpu")


@pytest.mark.parametrize("kernel", BASE.launches)
def test_every_kernel_of_a_table_is_called_as_it_says(kernel, inputs, monkeypatch):
    """With one other launch, which counts as faster: its result is that of the launch before."""
    other = replace(BASE.launches[kernel][0], warps=16)
    monkeypatch.setattr(tune, "neighbours", lambda launch: iter([replace(launch, warps=16)]))
    times = iter([2.0, 1.0] * len(BASE.launches[kernel]))

    def time(call) -> float:
        call()
        return next(times)

    found = tune.tune(kernel, BASE, inputs, time, lambda line: None)
    assert found == [replace(launch, warps=16) for launch in BASE.launches[kernel]] and found[0] == other


@dataclass(frozen=True)
class Call:
    function: Callable
    warps: int

    def __call__(self) -> torch.Tensor:
        return self.function()


def test_the_fastest_that_computes_the_same_is_taken(inputs, monkeypatch):
    """From step to step, past what does not compile and what computes something else."""
    costs = {8: 4.0, 16: 3.0, 32: 2.0, 4: 1.0, 64: 1.99, 2: 5.0, 1: 5.0}
    said: list[str] = []

    def call(kernel, asked, rows):
        (launch,) = asked.launches[kernel]
        if launch.warps == 64:
            raise ValueError("out of warps")
        return partial(torch.full, (3,), 2.0 if launch.warps == 4 else 1.0, dtype=torch.float64), launch.warps

    monkeypatch.setattr(inputs, "call", lambda *asked: Call(*call(*asked)))
    base = replace(BASE, launches={"norm_rope": (Launch(warps=8),)})
    found = tune.tune("norm_rope", base, inputs, lambda call: costs[call.warps], said.append)
    assert found == [Launch(warps=32)]
    assert any("ValueError" in line for line in said) and any("another result" in line for line in said)


def test_what_was_measured_here_goes_before_what_ships(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tables.measured_here("sm_90")
    assert file.is_relative_to(tmp_path) and tables.build()[:16] in file.name
    file.parent.mkdir(parents=True)
    file.write_text(tables.written({"flash": [{"warps": 4, "block_m": 64, "rows": 9}]}, {"device": "Acme 9"}), "utf-8")
    found = table.__wrapped__("sm_90")
    assert found.launches == {**BASE.launches, "flash": (Launch(warps=4, block_m=64, rows=9),)}
    assert found.measured == {"device": "Acme 9"} and found.launch("flash", 10) is None
    monkeypatch.setattr(tables, "triton_version", lambda: "another")
    tables.build.cache_clear()
    assert table.__wrapped__("sm_90") == BASE
    tables.build.cache_clear()


def test_a_wrong_file_is_named(tmp_path):
    (tmp_path / "a.toml").write_text("[[flash]]\nwarps = 4\nblock = 3\n")
    with pytest.raises(ValueError, match="a.toml: .*unexpected keyword argument 'block'"):
        tables.read(tmp_path / "a.toml", BASE)


def test_neighbours_differ_in_one_number():
    begin = BASE.launch("scaled_mm", 9)
    found = list(tune.neighbours(begin))
    assert len(found) == len(set(found)) == 11 and begin not in found
    for launch in found:
        fields = vars(begin)
        assert sum(value != fields[name] for name, value in vars(launch).items()) == 1
    assert {launch.warps for launch in tune.neighbours(Launch(warps=1))} == {2}


def test_every_architecture_has_a_launch_of_what_is_never_left_out():
    for arch in ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_121"):
        found = table(arch)
        row_wise = {"rms_norm", "norm_rope", "gate", "gate_rows", "norm_silu"}
        needed = {"flash", "eight_bit", "scaled_mm", "patch_embed"} | row_wise
        assert all(found.launch(kernel, 10**9) for kernel in needed)
        assert bool(found.measured) is (arch == "sm_90")
        assert tables.origin(arch) == ("NVIDIA H100 80GB HBM3, triton 3.6.0" if arch == "sm_90" else "not measured")
