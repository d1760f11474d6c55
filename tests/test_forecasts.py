"""Plans for devices that are not here, by what the in-tree packages know of them."""

from __future__ import annotations

import json

import devices
import pytest
from command import cosmos3 as typed

import cosmos3
from cosmos3_core.contract import InputError
from cosmos3_core.evidence.packages import in_tree, recipes_of
from cosmos3_core.plan import discovery, known
from cosmos3_core.plan.cost.units import GIB, ceiling_of
from cosmos3_core.plan.known import known_device, known_devices

BACKENDS = ("reference", "cuda", "npu", "rocm", "xpu")
SMALL = ("--model", "nano", "--task", "t2v", "--size", "480p", "--frames", "93")


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """All in-tree packages, as if they were installed."""
    monkeypatch.setattr(known, "installed", lambda disabled: dict.fromkeys(BACKENDS))
    monkeypatch.setattr(known, "load", lambda name, disabled: devices.backend(name))


@pytest.fixture
def plan(capsys, monkeypatch):
    return lambda *arguments: typed(capsys, monkeypatch, "plan", *SMALL, *arguments)


def test_a_device_is_forecast_by_its_everyday_name_and_marked(plan):
    code, out, err = plan("--device", "Arc B60")
    assert (code, err) == (0, "") and "device     xpu: Intel(R) Arc(TM) Pro B60 Graphics (bmg-g21), 24.0 GiB" in out
    assert "forecast   made without the device" in out and "as the package of backend xpu describes it with" in out
    code, out, _ = plan("--device", "Arc B580", "--json")
    told = json.loads(out)
    assert (
        code == 0
        and told["plan"]["placement"]["generation"] == "streamed"
        and told["estimate"]["forecast"]
        and told["estimate"]["seconds"]["step"] > 0
    )
    assert told["plan"]["device"]["name"] == "Intel(R) Arc(TM) B580 Graphics"
    code, out, _ = plan("--device", "Arc B580", "--memory", "24", "--json")
    assert code == 0 and json.loads(out)["estimate"]["memory"]["device"] == 24 * GIB


NANO = ("--model", "nano", "--task", "t2v", "--size", "720p", "--frames", "189")
SUPER = ("--model", "super", *NANO[2:], "--format", "w4a16")


@pytest.mark.parametrize(
    ("format", "asks", "decode"),
    [
        ("w4a16", NANO, "in whole frames"),
        ("mxfp4", SMALL, "in whole frames"),
        ("w4a16", (*NANO, "--memory", "10.5"), "in tiles of"),
    ],
)
def test_nano_on_a_b580_one_tower_at_a_time(format, asks, decode, capsys, monkeypatch):
    """Format, placement, tile, memory and an estimated time; the weights of one tower and none of the other."""
    asked = ("plan", *asks, "--device", "Arc B580", "--format", format)
    code, out, err = typed(capsys, monkeypatch, *asked)
    assert (code, err) == (0, "") and f"in bfloat16, pack_linear in {format}" in out
    assert "placement  understanding and generation and codecs staged: on the device while it is used" in out
    assert f"decode     {decode}" in out and "fits       yes: " in out and " s a step, " in out
    _, out, _ = typed(capsys, monkeypatch, *asked, "--json")
    stages = {stage["name"]: stage for stage in json.loads(out)["estimate"]["memory"]["stages"]}
    towers = [stages[name]["weights"] / GIB for name in ("read prompts", "steps")]
    assert all(4 < tower < 5 for tower in towers) and max(stage["peak"] for stage in stages.values()) < 12 * GIB


def test_super_does_not_fit_on_a_b580_and_is_told_what_does(capsys, monkeypatch):
    """Whole towers are refused, with the placement of the same request that fits."""
    for asked in (("--resident",), ("--placement", "generation=staged")):
        code, out, _ = typed(capsys, monkeypatch, "plan", *SUPER, "--device", "Arc B580", *asked)
        offered = "--placement understanding=disk,generation=streamed,codecs=staged"
        assert code == 1 and "fits       no: " in out and f"instead    {offered} fits (11." in out
    code, out, _ = typed(capsys, monkeypatch, "plan", *SUPER, "--device", "Arc B580", *offered.split())
    assert code == 0 and "fits       yes: 11." in out
    code, out, _ = typed(capsys, monkeypatch, "plan", *SUPER, "--device", "Arc B580")
    assert code == 0 and "not understanding=staged,generation=staged" in out and "stage 'steps' takes 2" in out


def test_a_card_of_two_gpus_is_declared_apart_from_one(capsys, monkeypatch):
    for asked, count in (("Arc B60", 1), ("Arc B60 dual", 2)):
        assert known_device(asked, None, ())[1].count == count
    asked = ("plan", *SUPER, "--device", "Arc B60 dual", "--devices", "2")
    code, out, _ = typed(capsys, monkeypatch, *asked)
    assert code == 0 and "devices    2: cfg 2" in out and "Dual Intel(R) Arc(TM) Pro B60 Graphics" in out


def test_integrated_gpus_share_the_hosts_memory():
    shared = {device.arch for _, device in known_devices("xpu", ()) if device.unified}
    assert shared == {"arl-h", "lnl-m", "ptl-h"}


@pytest.mark.parametrize("asked", ["--device A770", "--arch acm-g10", "--device 140T", "--arch bmg-g31"])
def test_an_intel_gpu_that_rows_for_every_gpu_serve_is_planned_for(asked, plan):
    """Of a generation that no kernel library was written for: torch's own products and attention."""
    code, out, _ = plan("--backend", "xpu", *asked.split(), "--format", "w4a16", "--json")
    told = json.loads(out)
    kernels = {op: told["plan"]["kernels"][op] for op in ("attention", "pack_linear", "capture")}
    assert code == 0 and kernels == {"attention": "sdpa", "pack_linear": "torch-int4", "capture": "xpu-graph"}
    assert told["estimate"]["fits"] and told["estimate"]["seconds"]["total"] > 0


@pytest.mark.parametrize("memory", [("--memory", "16"), ()])
def test_an_architecture_that_a_backend_does_not_name_is_refused(memory, plan):
    code, _, err = plan("--backend", "xpu", "--arch", "acm-g99", *memory)
    assert code == 2 and "backend xpu names no such architecture. Did you mean acm-g10?" in err


def test_an_architecture_that_nobody_knows_is_perhaps_misspelt(plan):
    code, _, err = plan("--arch", "gfx1511")
    assert code == 2 and "Did you mean gfx1151? Give --backend and --memory too" in err


def test_a_plan_for_what_is_here_is_no_forecast(plan):
    _, out, _ = plan("--backend", "reference", "--memory", "24", "--json")
    assert json.loads(out)["estimate"]["forecast"] is False
    assert "forecast" not in plan("--backend", "reference", "--memory", "24")[1]


def test_an_architecture_that_a_device_is_known_of_has_its_rate_and_its_memory(plan):
    code, out, _ = plan("--arch", "sm_90", "--json")
    told = json.loads(out)
    assert code == 0 and told["plan"]["device"]["name"] == "NVIDIA H100 80GB HBM3" and told["plan"]["backend"] == "cuda"
    assert told["estimate"]["forecast"] and told["estimate"]["seconds"]["total"] > 0
    _, out, _ = plan("--arch", "sm_90", "--memory", "12", "--json")
    assert json.loads(out)["estimate"]["memory"]["device"] == 12 * GIB


def test_all_known_devices_are_a_table_and_a_list(plan):
    code, out, err = plan("--device", "all")
    head, columns, *lines = out.splitlines()
    names = [device.name for _, device in known_devices(None, ())]
    assert (
        (code, err) == (0, "") and head.startswith("forecast: ") and columns.split()[:3] == ["device", "backend", "GiB"]
    )
    assert [line.split("  ")[0] for line in lines] == names and len(names) >= 15
    by_name = dict(zip(names, lines, strict=True))
    assert all(" yes " in by_name[name] for name in ("NVIDIA H200", "Intel(R) Arc(TM) B580 Graphics"))
    assert "disk, streamed, staged" in by_name["Intel(R) Arc(TM) B580 Graphics"]
    assert "staged, staged, staged" in by_name["NVIDIA H200"] and "unknown" in by_name["NVIDIA B300"]
    whole = plan("--device", "all", "--placement", "understanding=staged,generation=staged")[1].splitlines()
    assert any(" no " in line and "B580" in line and "--format" in line for line in whole)
    code, out, _ = plan("--device", "all", "--backend", "xpu", "--dtype", "float32", "--json")
    told = json.loads(out)
    assert code == (0 if any(one["fits"] for one in told) else 1) and {one["backend"] for one in told} == {"xpu"}
    assert all(one["forecast"] and one["fits"] == (one["peak"] <= one["memory"]) for one in told)
    placed = next(one for one in told if one["device"] == "Intel(R) Arc(TM) B580 Graphics")["placement"]
    assert placed["generation"] == "streamed" and placed["host_bytes"] > 20 * GIB, "of float32 on any host"


def test_where_it_cannot_run_the_list_says_why(plan):
    _, out, _ = plan("--device", "all", "--kernel", "attention=fusion", "--json")
    refused = {one["device"]: one["refused"] for one in json.loads(out)}
    assert refused["Ascend910B3"] is None and "fusion" in refused["NVIDIA H200"]
    code, out, _ = plan("--device", "all", "--kernel", "attention=fusionn")
    assert code == 1 and out.count("fusionn") == len(refused)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ("--device", "Arc"),
            "several are called so: Intel(R) Arc(TM) B580 Graphics, Intel(R) Arc(TM) B570 Graphics, "
            "Intel(R) Arc(TM) Pro B50 Graphics, Intel(R) Arc(TM) Pro B60 Graphics, Intel(R) Arc(TM) Pro B70 Graphics, "
            "Intel(R) Arc(TM) A770 Graphics, Intel(R) Arc(TM) A750 Graphics, Intel(R) Arc(TM) 140T GPU, "
            "Intel(R) Arc(TM) 140V GPU, Intel(R) Arc(TM) B390 GPU",
        ),
        (("--device", "H1000"), "the installed packages know none of that name"),
        (("--device", "H100", "--backend", "xpu"), "backend xpu knows none of that name"),
        (("--device", "H100", "--arch", "sm_90"), "Give one of them"),
        (("--device", "all", "--backend", "reference"), "backend reference knows no device. Drop --backend"),
        (("--device", "all", "--size", "480x"), "--size"),
    ],
)
def test_what_nobody_knows_is_one_line(plan, asked, said):
    code, _, err = plan(*asked)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(("installed", "named"), [((), "cuda, npu, rocm, xpu"), (("cuda", "npu"), "rocm, xpu")])
def test_a_device_of_a_package_that_is_not_installed_names_the_package(plan, monkeypatch, installed, named):
    monkeypatch.setattr(known, "installed", lambda disabled: dict.fromkeys(("reference", *installed)))
    monkeypatch.setattr(known, "extras", lambda: ("cuda", "npu", "rocm", "xpu"))
    code, _, err = plan("--device", "Arc B580")
    assert code == 2 and f"Devices of {named} are known to packages that are not installed. Type pip install" in err
    assert "none" not in err.partition("know none of that name")[2]


def test_a_backend_that_knows_no_device_says_how_to_describe_one(plan):
    assert "Give --arch and --memory instead" in plan("--device", "Arc B580", "--backend", "reference")[2]


def test_a_run_takes_no_device_that_is_not_here(capsys, monkeypatch):
    code, _, err = typed(capsys, monkeypatch, "run", "a cup", "--device", "H100")
    assert code == 2 and "--device" in err and "cosmos3 plan" in err


def test_python_forecasts_alike():
    made = cosmos3.plan("nvidia/Cosmos3-Nano", device="RX 9070", size="480p", frames=93)
    assert made.forecast and made.device == "AMD Radeon RX 9070" and not made.fits
    assert "a forecast for AMD Radeon RX 9070" in repr(made)
    assert cosmos3.plan("nvidia/Cosmos3-Nano", arch="sm_90", memory=GIB, size="480p").device_bytes == GIB
    found = cosmos3.forecasts("nvidia/Cosmos3-Nano", size="480p", frames=93, kernels={"attention": "fusion"})
    assert found["Ascend910B3"].forecast and isinstance(found["NVIDIA H200"], InputError)
    assert list(found) == [device.name for _, device in known_devices(None, ())]


def test_every_device_that_a_recipe_is_for_is_known():
    for package, recipe in recipes_of(in_tree(devices.ROOT)):
        if package.backend.name != "reference":
            wanted = recipe.device
            backend, found = known_device(wanted["name"], package.backend.name, ())
            assert found.arch == wanted["arch"], recipe.name
            assert found.memory >= 0.99 * wanted.get("memory_gib", 0) * GIB, recipe.name
            assert ceiling_of(backend, found) or wanted["name"] in ("B300", "Ascend 910B", "Ascend 910C", "Ascend 950")


def test_extras_that_bring_no_backend_are_none():
    assert discovery.extras() == ("cuda", "npu", "rocm", "xpu")
