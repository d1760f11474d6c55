"""The tuner with a clock of our own: what it runs, what it takes and what it leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
from cosmos3_triton import products, tables, tune
from cosmos3_triton.rows import attention_rows
from cosmos3_triton.tables import Launch, table
from cosmos3_triton.tune import Inputs, Sizes

from cosmos3_core.contract import GROUP, Backend, Device, Unavailable

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
    monkeypatch.setattr(products, "processors", lambda device: 2)
    return Inputs(SMALL, "cpu", int8=True)


@pytest.mark.parametrize("kernel", BASE.launches)
def test_every_kernel_of_a_table_is_called_as_it_says(kernel, inputs, monkeypatch):
    """With one other launch, which counts as faster; what is called takes its launch from the table it is given."""
    taken: list[Launch] = []
    lookup = tables.Table.find

    def find(self, name: str, rows: int = 0) -> Launch | None:
        found = lookup(self, name, rows)
        if name == kernel:
            taken.append(found)
        return found

    monkeypatch.setattr(tables.Table, "find", find)
    monkeypatch.setattr(tune, "neighbours", lambda kernel, launch: iter([replace(launch, warps=16)]))
    times = iter([2.0, 1.0] * len(BASE.launches[kernel]))
    found = tune.tune(kernel, BASE, inputs, lambda call: (call(), next(times))[1], lambda line: None)
    others = [replace(launch, warps=16) for launch in BASE.launches[kernel]]
    assert found == others and set(taken) == {*BASE.launches[kernel], *others}


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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    tables.fingerprint.cache_clear()


def test_what_was_measured_here_goes_before_what_ships(cache, monkeypatch):
    """On this GPU with this build; its own digest tells it from what ships."""
    file = tables.measured_here("sm_90", "Acme 9")
    assert file.is_relative_to(cache) and tables.fingerprint("Acme 9")[:16] in file.name
    tune.save({"flash": (Launch(warps=4, block_m=64, block_n=32, stages=2),)}, "Acme 9", file)
    found = table.__wrapped__("sm_90", "Acme 9")
    assert found.launches == {**BASE.launches, "flash": (Launch(warps=4, block_m=64, block_n=32, stages=2),)}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    assert found.origin == f"NVIDIA H100 80GB HBM3, triton 3.6.0; flash: here ({digest})"
    assert table.__wrapped__("sm_90") == table.__wrapped__("sm_90", "Acme 10") == BASE
    monkeypatch.setattr(tables, "triton_version", lambda: "another")
    tables.fingerprint.cache_clear()
    assert table.__wrapped__("sm_90", "Acme 9") == BASE


def test_a_home_of_another_user_has_no_table(cache, monkeypatch):
    def denied(path):
        raise PermissionError(path)

    monkeypatch.setattr(tables.Path, "is_file", denied)
    assert table.__wrapped__("sm_90", "Acme 9") == BASE


WRONG = {
    "[[flash]]\nblock_m = 64\nblock_n = 64\nwarps = 4\nstages = 3\nblock = 3": "look at block$",
    "[[flash]]\nwarps = 4": "a launch of flash says block_m, block_n, stages, warps; look at block_m, block_n, stages$",
    "[[flsh]]\nwarps = 4": "there is no kernel flsh",
    "[[rms_norm]]\nwarps = 4\n[[rms_norm]]\nwarps = 8": "rms_norm has two launches",
    "[[flash": "Expected",
    "flash = 3": "not iterable",
    "measured = 3": "not subscriptable",
    "[measured]\ntriton = '3'": "device",
    "[[rms_norm]]\nwarps = 'eight'": "a launch of rms_norm has warps = 'eight'",
    "[[rms_norm]]\nwarps = 0": "a launch of rms_norm has warps = 0",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_named(text, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)a\.toml: .*{WRONG[text]}"):
        tables.read(tmp_path / "a.toml")


GPU = Device(arch="sm_90", name="Acme 9", count=1, memory=0, unified=True)


def none() -> Device:
    raise Unavailable("no GPU is visible")


@pytest.fixture
def installed(monkeypatch):
    """installed(acme=probe) puts a backend with that probe in the place of those that are installed."""

    def install(**probes: Callable[[], Device]) -> None:
        backends = {
            name: Backend(name=name, torch_device="cpu", collectives="gloo", probe=probe, kernels=())
            for name, probe in probes.items()
        }
        plugins = {name: SimpleNamespace(cosmos3_backend=lambda name=name: backends[name]) for name in backends}
        entries = [SimpleNamespace(name=name, load=lambda name=name: plugins[name]) for name in plugins]
        monkeypatch.setattr(tune, "entry_points", lambda group: entries if group == GROUP else [])

    return install


def test_the_tuner_measures_the_device_of_the_one_backend_that_has_one(installed):
    installed(acme=lambda: GPU, other=none)
    assert [tune.found_here(name)[0].name for name in (None, "acme")] == ["acme", "acme"]
    assert tune.found_here(None)[1] is GPU
    installed(acme=lambda: GPU, other=lambda: GPU)
    assert tune.found_here("other")[0].name == "other"
    for name, said in ((None, "acme, other have a device here; --backend names one"), ("acmee", "no backend acmee")):
        with pytest.raises(Unavailable, match=said):
            tune.found_here(name)


@pytest.mark.parametrize("arch", ["sm_90", "sm_100"])
def test_attention_in_8_bits_is_measured_in_int8_where_the_backend_s_row_serves(arch, monkeypatch):
    asked = []
    rows = attention_rows(("sm_90", "sm_100"), int8=("sm_90",), fp8=("sm_90", "sm_100"))
    backend = Backend(name="acme", torch_device="cpu", collectives="gloo", probe=none, kernels=rows)
    monkeypatch.setattr(tune, "found_here", lambda name: (backend, replace(GPU, arch=arch)))
    monkeypatch.setattr(tune, "Inputs", lambda *_, int8: asked.append(int8))
    monkeypatch.setattr(tune, "tune", lambda *_: [])
    monkeypatch.setattr(tune, "save", lambda *_: None)
    tune.main(["eight_bit"])
    assert asked == [arch == "sm_90"]


def test_the_tuner_begins_with_the_launches_of_the_backend_s_rows(monkeypatch):
    """Not with the default, which may not even run there."""
    ours = replace(BASE, launches={"gate": (Launch(elements=512, warps=2),)})
    rows = attention_rows(("acme_9",), find=lambda arch, device=None: ours)
    backend = Backend(name="acme", torch_device="cpu", collectives="gloo", probe=none, kernels=rows)
    begun = []
    monkeypatch.setattr(tune, "found_here", lambda name: (backend, replace(GPU, arch="acme_9")))
    monkeypatch.setattr(tune, "tune", lambda kernel, base, *_: begun.append((kernel, base)) or [])
    monkeypatch.setattr(tune, "save", lambda *_: None)
    tune.main([])
    assert begun == [("gate", ours)]


@pytest.mark.parametrize("package", ["triton", "triton-rocm", "pytorch-triton-xpu"])
def test_triton_has_a_version_whichever_package_it_came_in(package, monkeypatch):
    """Launches that another Triton measured are not taken."""

    def version(name: str) -> str:
        if name != package:
            raise PackageNotFoundError(name)
        return "3.9.8"

    monkeypatch.setattr(tables, "version", version)
    assert tables.triton_version() == "3.9.8"


def test_what_was_measured_is_kept(cache, inputs, installed, monkeypatch, capsys):
    """After every kernel, beside what was measured before; what does not run here is left out."""

    def measure(kernel, base, inputs, time, say):
        if kernel == "flash":
            raise RuntimeError("too small a GPU")
        return [replace(launch, warps=16) for launch in base.launches[kernel]]

    installed(acme=lambda: GPU)
    monkeypatch.setattr(tune, "Inputs", lambda *_, **__: inputs)
    monkeypatch.setattr(tune, "tune", measure)
    tune.main(["flash"])
    assert "flash does not run here" in capsys.readouterr().out and not [*cache.rglob("*.toml")]
    tune.main(["rms_norm"])
    tune.main(["gate", "flash"])
    found, measured = tables.read(tables.measured_here("sm_90", "Acme 9"))
    assert found == {"rms_norm": (Launch(warps=16),), "gate": (replace(BASE.launch("gate"), warps=16),)}
    assert measured == f"Acme 9, triton {tables.triton_version()}"


def test_the_tuner_says_what_is_wrong(cache, installed, capsys):
    (cache / "a.toml").write_text("[[flsh]]")
    for probe, asked, said in (
        (none, [], "acme: no GPU is visible"),
        (lambda: GPU, ["flsh"], "sm_90 has no kernel flsh; it has flash"),
        (lambda: GPU, ["--out", str(cache / "a.toml")], "a.toml: there is no kernel flsh"),
    ):
        installed(acme=probe)
        with pytest.raises(SystemExit, match="2"):
            tune.main(asked)
        assert said in capsys.readouterr().err


def test_neighbours_differ_in_one_number():
    begin = BASE.launch("scaled_mm", 9)
    found = list(tune.neighbours("scaled_mm", begin))
    assert len(found) == len(set(found)) == 11 and begin not in found
    for launch in found:
        fields = vars(begin)
        assert sum(value != fields[name] for name, value in vars(launch).items()) == 1
    assert list(tune.neighbours("norm_rope", Launch(warps=1))) == [Launch(warps=2)]


def test_every_architecture_has_a_launch_of_what_is_never_left_out():
    for arch in ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_121"):
        found = table(arch)
        row_wise = {"rms_norm", "norm_rope", "gate", "gate_rows", "norm_silu"}
        needed = {"flash", "eight_bit", "scaled_mm", "patch_embed"} | row_wise
        assert all(found.launch(kernel, 10**9) for kernel in needed)
        assert found.origin == ("NVIDIA H100 80GB HBM3, triton 3.6.0" if arch == "sm_90" else "not measured")
