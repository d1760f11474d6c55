"""The in-tree backend packages: what their probes say of a machine, the plans that follow, and their attention.

None of the devices is here. torch is made to answer as on a machine with one, and its kernels and the vendors' are
replaced by operators of the same signature that compute in plain arithmetic. So these tests are about what a backend
hands to a kernel and makes of the result: a rehearsal, and no evidence that a device works.
"""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from devices import DEVICES, PACKAGES, backend, golden, plan_of, text_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos3_core import __version__
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.contract import GROUP, OPS, Ask, InputError, Segment, Unavailable
from cosmos3_core.evidence.fingerprint import chosen, fingerprint
from cosmos3_core.plan import Want, resolve
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import pack
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing.subject import Subject

BACKENDS = ("cuda", "npu", "rocm", "xpu")
KERNELS = "triton"
"""The folder of our kernels, which is no backend."""


def row(name: str, kernel: str):
    """A row of attention."""
    (found,) = [row for row in backend(name).kernels if (row.op, row.name) == ("attention", kernel)]
    return found


# Packages


def test_the_folders_are_the_four_backends_and_their_kernels():
    assert tuple(sorted(PACKAGES)) == tuple(sorted((*BACKENDS, KERNELS)))


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_says_what_it_is_and_needs_only_this_cosmos3(name):
    """And the kernels' library where it imports that, of the same version. It is no backend."""
    pyproject = tomllib.loads((PACKAGES[name] / "pyproject.toml").read_text("utf-8"))
    project = pyproject["project"]
    assert (project["name"], project["version"]) == (f"cosmos3-{name}", __version__)
    needed = ["cosmos3", f"cosmos3-{KERNELS}"] if name != KERNELS and takes_kernels(name) else ["cosmos3"]
    assert project["dependencies"] == [f"{package}=={__version__}" for package in needed]
    entries = {} if name == KERNELS else {GROUP: {name: f"cosmos3_{name}.plugin"}}
    assert project.get("entry-points", {}) == entries


def takes_kernels(name: str) -> bool:
    """Whether a module of the backend imports their library."""
    modules = (PACKAGES[name] / f"cosmos3_{name}").rglob("*.py")
    return any(f"from cosmos3_{KERNELS}" in module.read_text("utf-8") for module in modules)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_fingerprint_covers_the_kernels_that_a_backend_takes(name):
    """Of a recipe's record, and of a record of the kit."""
    device = next(found for of, found in DEVICES.values() if of == name)
    files = fingerprint(backend(name), device, backend(name).kernels, embedded=False)["files"]
    packages = {f"cosmos3_{name}"} | ({f"cosmos3_{KERNELS}"} if takes_kernels(name) else set())
    assert {file.partition("/")[0] for file in files} == {"cosmos3_core"} | packages and all(files.values())


def test_the_kit_s_record_covers_the_kernels_that_a_backend_takes(monkeypatch):
    before = subject("cuda").sources()
    read = Path.read_bytes
    changed = PACKAGES[KERNELS] / f"cosmos3_{KERNELS}" / "products.py"
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == changed))
    assert takes_kernels("cuda") and subject("cuda").sources() != before


@pytest.mark.parametrize(
    ("device", "table"), [("mi300x", "cdna3"), ("gfx1151", "rdna3"), ("rx9070", "rdna4"), ("b580", "xe")]
)
def test_a_fingerprint_covers_the_launches_that_a_backend_ships(device, table):
    """Those of our kernels' rows alone, and no other backend's."""
    name, found = DEVICES[device]
    for ours in (True, False):
        rows = [row for row in backend(name).kernels if ("triton" in row.needs) is ours]
        files = fingerprint(backend(name), found, rows, embedded=False)["files"]
        shipped = {file for file in files if "/launches/" in file and not file.startswith("cosmos3_triton/")}
        assert (f"cosmos3_{name}/launches/{table}.toml" in shipped) is ours
        assert all(file.startswith(f"cosmos3_{name}/") for file in shipped)
        assert ("cosmos3_triton/row_wise.py" in files) is ours


def subject(name: str) -> Subject:
    """The backend as the kit sees it, but for what only an installed one has."""
    found = object.__new__(Subject)
    found.module, found.backend = f"cosmos3_{name}.plugin", backend(name)
    return found


@pytest.mark.parametrize("name", BACKENDS)
def test_the_readme_names_every_row_and_its_install_line(name):
    text = (PACKAGES[name] / "README.md").read_text("utf-8")
    assert f'pip install "cosmos3[{name}]"' in text
    for kernel in backend(name).kernels:
        assert f"`{kernel.name}`" in text


def test_importing_the_plugins_loads_neither_torch_nor_a_kernel_library():
    modules = ", ".join(f"cosmos3_{name}.plugin" for name in BACKENDS)
    script = f"import sys, {modules}; print([name for name in sys.modules if '.' not in name])"
    environment = {"PYTHONPATH": ":".join(map(str, PACKAGES.values()))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.replace("'", '"')))
    assert "cosmos3_npu" in loaded
    assert not loaded & {"torch", "torch_npu", "aiter", "fa3_fwd_interface", "triton", "numpy"}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_is_what_torch_calls_it(name):
    found = backend(name)
    devices = {"cuda": ("cuda", "nccl"), "rocm": ("cuda", "nccl"), "npu": ("npu", "hccl"), "xpu": ("xpu", "xccl")}
    assert (found.name, found.torch_device, found.collectives) == (name, *devices[name])
    assert {kernel.op for kernel in found.kernels} <= set(OPS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_ceiling_says_where_it_is_from_and_fits_a_known_device(name):
    for key, ceiling in backend(name).ceilings.items():
        assert 10 < ceiling.tflops["bfloat16"] < 5000 and 1e11 < ceiling.bandwidth < 1e13, key
        assert ceiling.tflops.get("fp8", math.inf) > ceiling.tflops["bfloat16"]
        assert ceiling.source


# Probes


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda", r"torch \S+ was built without CUDA; install a CUDA build of torch, see pytorch.org/get-started"),
        ("rocm", r"torch \S+ was built without HIP; install a ROCm build of torch, see pytorch.org/get-started"),
        ("npu", r"torch_npu is not installed; pip install the torch-npu that matches your torch and CANN"),
        ("xpu", r"torch \S+ was built without XPU; install an XPU build of torch, see pytorch.org/get-started"),
    ],
)
def test_a_torch_for_another_device_is_unavailable_with_a_sentence(name, said, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0" if name == "rocm" else None)
    monkeypatch.setattr(torch.version, "hip", "7.2" if name == "cuda" else None)
    monkeypatch.setattr(torch.version, "xpu", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(Unavailable, match=f"^{said}$"):
        backend(name).probe()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_right_torch_without_a_device_is_unavailable_with_a_sentence(name, monkeypatch):
    machine(monkeypatch, name, [])
    with pytest.raises(Unavailable, match=r"^no [GN]PU is visible to the \w+ driver; [\w-]+( info)? says what"):
        backend(name).probe()


def test_an_npu_without_cann_is_unavailable_with_the_loader_s_words(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise ImportError('libhccl.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        Unavailable, match=r"torch_npu does not load \(libhccl.so: cannot .*\); install CANN and source"
    ):
        backend("npu").probe()


# What torch says of one device. SYCL's numbers: device_architecture.def of its headers.
TOLD: dict[str, dict] = {
    "h100": {"major": 9, "minor": 0, "is_integrated": 0},
    "rtx5090": {"major": 12, "minor": 0, "is_integrated": 0},
    "gb10": {"major": 12, "minor": 1, "is_integrated": 1},
    "mi300x": {"gcnArchName": "gfx942:sramecc+:xnack-", "major": 9, "minor": 4, "is_integrated": 0},
    "mi350x": {"gcnArchName": "gfx950:sramecc+:xnack-", "major": 9, "minor": 5, "is_integrated": 0},
    "gfx1151": {"gcnArchName": "gfx1151", "major": 11, "minor": 5, "is_integrated": 1},
    "rx9070": {"gcnArchName": "gfx1201", "major": 12, "minor": 0, "is_integrated": 0},
    "ascend910b": {},
    "ascend910c": {},
    "ascend950": {},
    "b580": {"architecture": 0x0500400400, "is_integrated_gpu": False, "driver_version": "1.6.33578+38"},
    "b60": {"architecture": 0x0500400400, "is_integrated_gpu": False, "driver_version": "1.6.33578+38"},
}


def told(device: str) -> SimpleNamespace:
    found = DEVICES[device][1]
    return SimpleNamespace(name=found.name, total_memory=found.memory, **TOLD[device])


def machine(monkeypatch, name: str, devices: list[SimpleNamespace], versions: dict[str, str] | None = None) -> None:
    """Make torch answer as on a machine with these devices."""
    versions = versions or next(found.versions for of, found in DEVICES.values() if of == name)
    answers = SimpleNamespace(
        is_available=lambda: bool(devices),
        device_count=lambda: len(devices),
        get_device_properties=lambda index: devices[index],
        get_device_name=lambda index: devices[index].name,
    )
    monkeypatch.setattr(torch, "__version__", versions["torch"])
    monkeypatch.setattr(torch, {"rocm": "cuda"}.get(name, name), answers, raising=False)
    for version, key in {"cuda": "cuda", "hip": "hip", "xpu": "oneapi"}.items():
        monkeypatch.setattr(torch.version, version, versions.get(key))
    if name == "cuda":
        monkeypatch.setattr(f"cosmos3_{name}.plugin.driver_version", lambda: versions.get("driver"))
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    if name == "npu":
        monkeypatch.setattr(torch, "get_device_module", lambda device: answers)
        torch_npu = stand_in(monkeypatch, "torch_npu", __version__=versions["torch-npu"])
        cann = {"CANN": versions["cann"], "DRIVER": versions["driver"]}
        torch_npu.npu = SimpleNamespace(utils=SimpleNamespace(get_cann_version=lambda module="CANN": cann[module]))


def stand_in(monkeypatch, name: str, **names) -> ModuleType:
    """A module in the place of a library that is not installed."""
    module = ModuleType(name)
    module.__spec__ = SimpleNamespace(name=name)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.mark.parametrize("device", TOLD)
def test_probe_reports_the_device(device, monkeypatch):
    name, found = DEVICES[device]
    machine(monkeypatch, name, [told(device)], found.versions)
    assert backend(name).probe() == found


@pytest.mark.parametrize("device", ["h100", "mi300x", "b580"])
def test_a_damaged_file_of_measured_launches_is_said_to_be_one(device, monkeypatch, tmp_path):
    from cosmos3_triton import tables

    name, found = DEVICES[device]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine(monkeypatch, name, [SimpleNamespace(**vars(told(device)) | {"name": "Acme 9"})], found.versions)
    file = tables.measured_here(found.arch, "Acme 9")
    file.parent.mkdir(parents=True)
    file.write_text("[[gate]]")
    with pytest.raises(
        Unavailable, match=rf"{file.name}: a launch of gate says .*\. Delete the file; python -m cosmos3_t"
    ):
        backend(name).probe()


@pytest.mark.parametrize(
    ("name", "arch", "kernel", "warps"),
    [
        ("rocm", "gfx942", "gate", 4),
        ("rocm", "gfx1151", "flash", 4),
        ("rocm", "gfx1201", "flash", 8),
        ("rocm", "gfx1103", "gate", 8),
        ("xpu", "bmg-g21", "flash", 16),
        ("xpu", "acm-g10", "rms_norm", 8),
    ],
)
def test_a_backend_s_launches_go_before_the_default_and_after_what_was_measured(
    name, arch, kernel, warps, monkeypatch, tmp_path
):
    """Of an architecture, or a kernel, that it says nothing of, the default holds."""
    from cosmos3_triton import tables
    from cosmos3_triton.rows import find_of

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = find_of(backend(name).kernels)
    assert find(arch).launch(kernel).warps == warps and find(arch).origin == "not measured"
    assert find(arch).launch("norm_silu") == tables.table("default").launch("norm_silu")
    file = tables.measured_here(arch, "Acme 9")
    file.parent.mkdir(parents=True)
    entry = asdict(replace(find(arch).launch(kernel), warps=16))
    said = {field: value for field, value in entry.items() if field in tables.KERNELS[kernel]}
    file.write_text(tables.written({kernel: [said]}, {"device": "Acme 9", "triton": "3.7.1"}))
    assert find(arch, "Acme 9").launch(kernel).warps == 16 and find(arch).launch(kernel).warps == warps
    assert f"{kernel}: here (" in find(arch, "Acme 9").origin


def test_the_nvidia_driver_is_asked_through_its_own_tool(monkeypatch, tmp_path):
    import cosmos3_cuda.plugin as plugin

    monkeypatch.setenv("PATH", str(tmp_path))
    assert plugin.driver_version() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$1" = --query-gpu=driver_version ] && echo 580.159.04\n')
    tool.chmod(0o755)
    assert plugin.driver_version() == "580.159.04"


def test_the_probed_devices_are_the_recorded_ones():
    assert {*TOLD, "cpu"} == set(DEVICES)


@pytest.mark.parametrize(
    ("first", "other"),
    [("h100", "rtx5090"), ("mi300x", "mi350x"), ("b580", "b60"), ("ascend910b", "ascend950")],
)
def test_of_unlike_devices_the_first_kind_is_counted(first, other, monkeypatch):
    name, found = DEVICES[first]
    machine(monkeypatch, name, [told(first), told(other), told(first)], found.versions)
    probed = backend(name).probe()
    assert (probed.name, probed.count) == (found.name, 2)


@pytest.mark.parametrize(("name", "package"), [("cuda", "fa3-fwd"), ("rocm", "amd-aiter")])
def test_versions_name_an_installed_kernel_library(name, package, monkeypatch, tmp_path):
    record = tmp_path / f"{package.replace('-', '_')}-7.8.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 7.8.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    device = next(key for key, (of, _) in DEVICES.items() if of == name)
    machine(monkeypatch, name, [told(device)])
    assert backend(name).probe().versions[package] == "7.8.9"


# Plans


@pytest.mark.parametrize("device", DEVICES)
def test_the_plan_is_the_golden_one(device):
    assert text_of(plan_of(device)) == golden(device).read_text("utf-8"), "see tests/devices.py"


@pytest.mark.parametrize("device", ["h100", "mi300x", "b580"])
def test_without_triton_its_rows_are_refused_in_a_line(device):
    name, found = DEVICES[device]
    with patch("importlib.util.find_spec", lambda package: None):
        plan = resolve(Want.of(describe("nano").config, "bfloat16"), backend(name), found)
    reasons = {(row["op"], row["reason"]) for row in plan.to_json()["refused"] if row["name"] == "triton"}
    ops = ("rms_norm", "norm_rope", "gate", "patch_embed", "norm_silu")
    assert reasons >= {(op, "needs the package triton") for op in ops}
    assert "triton" not in {chosen_for(plan, op).kernel.name for op in ops}


@pytest.fixture
def hopper(monkeypatch):
    """hopper(fp8=["pack_linear"], gate="eager") -> the plan for Nano on an H100 with every kernel library."""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: package)

    def plan(fp8=(), **kernels):
        name, device = DEVICES["h100"]
        want = Want.of(describe("nano").config, "bfloat16", kernels, dict.fromkeys(fp8, "fp8"))
        return resolve(want, backend(name), device)

    return plan


def chosen_for(plan, op: str):
    (choice,) = (choice for choice in plan.choices if choice.op == op)
    return choice


@pytest.mark.parametrize(("queries", "serving"), [(1024, "sdpa-cudnn"), (2047, "sdpa-cudnn"), (2048, "fa3")])
def test_short_calls_of_flash_attention_3_are_cudnn_s(hopper, queries, serving):
    """In the plan, where everybody sees it, and in a record's fingerprint; in FP8 those of the text tower alone."""
    plan = hopper()
    assert chosen_for(plan, "attention").serving(queries).name == serving
    assert plan.to_json(queries)["kernels"]["attention"] == serving
    assert {("attention", "fa3"), ("attention", "sdpa-cudnn")} <= {(row.op, row.name) for row in chosen(plan)}
    assert "gate" not in {row.op for row in chosen(plan)}, "it is done inside finish=cublas"
    in_fp8 = hopper(fp8=["attention"])
    assert chosen_for(in_fp8, "attention").serving(queries).name == "fa3-fp8"
    assert [choice.serving(queries).name for choice in in_fp8.kept if choice.op == "attention"] == [serving]
    told = in_fp8.to_json(queries)
    assert (told["below"], told["kept"]["attention"]) == ({}, "fa3")
    assert told["kept_below"] == {"attention": {"sdpa-cudnn": 2048}}


def test_an_older_cudnn_gets_no_calls(hopper, monkeypatch):
    device = DEVICES["h100"][1]
    monkeypatch.setitem(DEVICES, "h100", ("cuda", replace(device, versions={"cudnn": "9.10.2"})))
    assert chosen_for(hopper(), "attention").below == ()


@pytest.mark.parametrize(
    ("fp8", "named", "project", "finish", "fused"),
    [
        ([], {}, "composed", "cublas", {"gate": "finish=cublas"}),
        ([], {"gate": "triton"}, "composed", "composed", {}),
        ([], {"pack_linear": "eager"}, "composed", "composed", {}),
        (["pack_linear"], {"pack_linear": "scaled-mm"}, "composed", "composed", {}),
        (["pack_linear"], {"rms_norm": "eager"}, "composed", "composed", {}),
        (["pack_linear"], {"finish": "triton-scaled-mm"}, "scaled-mm", "triton-scaled-mm", None),
    ],
)
def test_the_halves_of_a_layer_on_hopper(hopper, fp8, named, project, finish, fused):
    """A composite does no op whose row the user has named."""
    plan = hopper(fp8, **named)
    assert [chosen_for(plan, op).kernel.name for op in ("project", "finish")] == [project, finish]
    assert fused is None or {op: by for op, by in plan.fused.items() if op != "pack_linear"} == fused


def test_in_fp8_no_linear_of_its_own_runs_in_a_layer_on_hopper(hopper):
    """The first layers, which are never quantized, are finished in 16 bits."""
    plan = hopper(["pack_linear"])
    assert plan.fused == {
        "gate": "finish=scaled-mm, finish=cublas",
        "pack_linear": "project=scaled-mm, finish=scaled-mm",
    }
    assert {choice.op: choice.kernel.name for choice in plan.kept if choice.op != "attention"} == {
        "pack_linear": "eager",
        "project": "composed",
        "finish": "cublas",
    }


@pytest.mark.parametrize(
    ("format", "widths", "said"),
    [
        ("fp8_block", {"hidden": 4160}, "every 128 input features, and the hidden width is 4160"),
        (
            "fp8_block",
            {"kv_heads": 1, "head_dim": 96},
            "every 128 outputs, and the width of q, k and v together is 3264",
        ),
        ("w4a16", {"inner": 12352}, "every 128 input features, and the MLP's width is 12352"),
    ],
)
def test_widths_that_cannot_be_packed_are_refused_before_loading(format, widths, said):
    name, device = DEVICES["h100"]
    want = replace(Want.of(describe("nano").config, "bfloat16", formats={"pack_linear": format}), **widths)
    with patch("importlib.util.find_spec", lambda package: package), pytest.raises(InputError, match=said):
        resolve(want, backend(name), device)


def test_widths_that_a_device_cannot_multiply_in_8_bits_are_multiplied_in_16():
    """cuBLAS takes multiples of 16 in fp8; the plan says what is given up."""
    name, device = DEVICES["h100"]
    want = replace(Want.of(describe("nano").config, "bfloat16", formats={"pack_linear": "fp8"}), hidden=4104)
    with patch("importlib.util.find_spec", lambda package: package):
        plan = resolve(want, backend(name), device)
    assert {choice.op: choice.kernel.name for choice in plan.choices}["pack_linear"] == "triton-a16"
    assert any("saves memory, and no time" in note for note in plan.notes)


def ask(on: str, **changed) -> Ask:
    """What the plan asks for Nano's attention on a device, but for what is changed."""
    nano = dict(op="attention", device=DEVICES[on][1], dtype="bfloat16", heads=32, kv_heads=8, head_dim=128)
    return Ask(**nano | changed)


@pytest.mark.parametrize(
    ("device", "kernel", "changed", "reason"),
    [
        ("h100", "sdpa-cudnn", {"head_dim": 192}, "up to 128"),
        ("h100", "sdpa-flash", {"head_dim": 100}, "multiples of 8"),
        ("h100", "fa3", {"head_dim": 80}, "head dims 64"),
        ("mi300x", "aiter-fa", {"head_dim": 264}, "up to 256"),
        ("mi300x", "sdpa-flash", {"head_dim": 512}, "up to 256"),
        ("gfx1151", "sdpa-flash", {}, "experimental; TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 allows"),
        ("ascend910b", "fusion", {"head_dim": 1024}, "up to 768"),
        ("b580", "sdpa", {"head_dim": 1024}, "up to 576"),
    ],
)
def test_a_row_refuses_what_its_kernel_cannot_do(device, kernel, changed, reason, monkeypatch):
    monkeypatch.delenv("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", raising=False)
    found = row(DEVICES[device][0], kernel)
    assert reason in found.refuse(ask(device, **changed))
    if changed:
        assert found.refuse(ask(device)) is None


@pytest.mark.parametrize(
    ("device", "cann", "queue", "reason"),
    [
        ("ascend910b", "9.1.0", "1", None),
        ("ascend910c", "8.1.RC1", None, None),
        ("ascend910b", "8.0.RC3", None, "records streams from 8.1 on, and this is CANN 8.0.RC3"),
        ("ascend910b", "7.3.0", None, "this is CANN 7.3.0"),
        ("ascend910b", "9.0.0", None, None),
        ("ascend910b", "10.0.0", None, None),
        ("ascend910c", "9.1.0", "2", "TASK_QUEUE_ENABLE is 2"),
        ("ascend950", "9.1.0", None, "no graph takes npu_fusion_attention"),
    ],
)
def test_graphs_are_refused_where_the_vendor_has_none(device, cann, queue, reason, monkeypatch):
    monkeypatch.delenv("TASK_QUEUE_ENABLE", raising=False)
    if queue is not None:
        monkeypatch.setenv("TASK_QUEUE_ENABLE", queue)
    (found,) = (row for row in backend("npu").kernels if row.op == "capture")
    on = replace(DEVICES[device][1], versions={"cann": cann})
    said = found.refuse(Ask(op="capture", device=on, dtype="bfloat16"))
    assert said is None if reason is None else reason in said


def test_an_experimental_kernel_is_used_where_the_user_allows_it(monkeypatch):
    monkeypatch.setenv("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1")
    assert row("rocm", "sdpa-flash").refuse(ask("gfx1151")) is None


@pytest.mark.parametrize(
    ("arch", "cudnn", "kv_heads", "reason"),
    [
        ("sm_90", "9.10.2", 8, "cuDNN 9.10.2 is wrong"),
        ("sm_90", None, 8, "built without cuDNN"),
        ("sm_100", "9.20.0", 4, "fewer than 8 key heads"),
        ("sm_100", "9.20.0", 8, None),
        ("sm_90", "9.15.1", 4, None),
    ],
)
def test_cudnn_is_refused_where_it_is_known_to_be_wrong(arch, cudnn, kv_heads, reason):
    versions = {"cudnn": cudnn} if cudnn else {}
    device = SimpleNamespace(arch=arch, versions=versions)
    said = row("cuda", "sdpa-cudnn").refuse(ask("h100", device=device, kv_heads=kv_heads))
    assert said is None if reason is None else reason in said


# Attention


def exact(q, k, v, causal):
    """(out, maximum, sum of exponentials) of BHSD tensors, one row of scores after the other."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    if causal:
        later = torch.arange(k.shape[2]) > torch.arange(q.shape[2])[:, None]
        scores = scores.masked_fill(later, -math.inf)
    peak = scores.amax(-1, keepdim=True)
    total = (scores - peak).exp().sum(-1, keepdim=True)
    return ((scores - peak).exp() / total @ v.double()).to(q.dtype), peak.float(), total.float()


class FusedOperators(TorchDispatchMode):
    """torch's fused attention operators, which have no CPU kernel, in plain arithmetic and with their own schemas."""

    def __init__(self):
        super().__init__()
        self.calls: list[dict] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name not in ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention"):
            return function(*args, **(kwargs or {}))
        names = [argument.name for argument in function._schema.arguments]
        call = dict(zip(names, args, strict=False)) | (kwargs or {})
        self.calls.append(call | {"name": name})
        out, peak, total = exact(call["query"], call["key"], call["value"], call.get("is_causal", False))
        lse = peak + total.log()
        if name == "_scaled_dot_product_flash_attention":
            lse = lse.squeeze(-1)
        elif not call["compute_log_sumexp"]:
            lse = torch.empty(0)
        nothing = torch.empty(0)
        return out, lse, nothing, nothing, 0, 0, nothing, nothing, nothing


class Rehearsal:
    """Stand-ins for the vendors' libraries, with the signatures of fa3-fwd 0.0.3, flash-attn-4 4.0.0b36, auto-round-lib
    0.16.0 and vllm-xpu-kernels 0.1.16.2 (these as far as the rows use them) and torch_npu 2.13, and what they were
    called with. AITER's is in backends/rocm/tests."""

    def __init__(self, monkeypatch):
        self.calls: list[dict] = []
        stand_in(monkeypatch, "fa3_fwd_interface", flash_attn_func=self.fa3)
        stand_in(monkeypatch, "flash_attn").__path__ = []
        stand_in(monkeypatch, "flash_attn.cute", flash_attn_func=self.fa4)
        operators = {name: getattr(self, name) for name in ("npu_fusion_attention", "npu_fused_infer_attention_score")}
        stand_in(monkeypatch, "torch_npu", **operators)
        stand_in(monkeypatch, "vllm_xpu_kernels").__path__ = []
        stand_in(monkeypatch, "vllm_xpu_kernels.flash_attn_interface", flash_attn_varlen_func=self.varlen)
        stand_in(monkeypatch, "auto_round_kernel", sdpa=self.ark)

    def keep(self, values: dict) -> None:
        self.calls.append({name: value for name, value in values.items() if name != "self"})

    def fa3(  # fmt: skip
        self, q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False,
        sm_margin=0, return_attn_probs=False,
    ):  # fmt: skip
        self.keep(locals())
        out, peak, total = exact(*(x.transpose(1, 2) for x in (q, k, v)), causal)
        out = out.transpose(1, 2)
        return (out, (peak + total.log()).squeeze(-1)) if return_attn_probs else out

    def fa4(self, q, k, v, softmax_scale=None, causal=False, window_size=(None, None), return_lse=False):
        self.keep(locals())
        out, peak, total = exact(*(x.transpose(1, 2) for x in (q, k, v)), causal)
        return out.transpose(1, 2), (peak + total.log()).squeeze(-1) if return_lse else None

    def varlen(  # fmt: skip
        self, q, k, v, max_seqlen_q, cu_seqlens_q, max_seqlen_k, cu_seqlens_k=None, causal=False,
        return_softmax_lse=False,
    ):  # fmt: skip
        self.keep(locals())
        starts = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
        assert [*starts] == [(i * max_seqlen_q, i * max_seqlen_k) for i in range(len(cu_seqlens_q))]
        rows = (x.unflatten(0, (-1, length)) for x, length in ((q, max_seqlen_q), (k, max_seqlen_k), (v, max_seqlen_k)))
        out, peak, total = exact(*(x.transpose(1, 2) for x in rows), causal)
        lse_HM = (peak + total.log()).squeeze(-1).transpose(0, 1).flatten(1)
        out = out.transpose(1, 2).flatten(0, 1)
        return (out, lse_HM) if return_softmax_lse else out

    def ark(self, query, key, value, is_causal=False, tensor_layout="HND", return_lse=False):
        self.keep(locals())
        assert tensor_layout == "NHD" and all(x.is_contiguous() for x in (query, key, value))
        out, peak, total = exact(*(x.transpose(1, 2) for x in (query, key, value)), is_causal)
        out = out.transpose(1, 2).contiguous()
        return (out, (peak + total.log()).squeeze(-1)) if return_lse else out

    def npu_fusion_attention(  # fmt: skip
        self, query, key, value, head_num, input_layout, pse=None, padding_mask=None, atten_mask=None, scale=1.0,
        keep_prob=1.0, pre_tockens=2147483647, next_tockens=2147483647, inner_precise=0, prefix=None,
        actual_seq_qlen=None, actual_seq_kvlen=None, sparse_mode=0, gen_mask_parallel=True, sync=False,
        softmax_layout="", sink=None, dropout_mask=None, seed=0, offset=0,
    ):  # fmt: skip
        self.keep(locals())
        assert input_layout == "BSND" and head_num == query.shape[2]
        # With sparse_mode 2 the mask is a 2048 x 2048 triangle, True above the diagonal.
        assert sparse_mode in (0, 2) and (atten_mask is not None) == (sparse_mode == 2)
        q = query * (scale * math.sqrt(query.shape[-1]))
        out, peak, total = exact(*(x.transpose(1, 2) for x in (q, key, value)), sparse_mode == 2)
        peak, total = (x.expand(*x.shape[:-1], 8) for x in (peak, total))
        return out.transpose(1, 2), peak, total, torch.empty(0), 0, 0, 0

    def npu_fused_infer_attention_score(  # fmt: skip
        self, query, key, value, *, atten_mask=None, key_shared_prefix=None, value_shared_prefix=None, num_heads=1,
        scale=1.0, input_layout="BSH", num_key_value_heads=0, sparse_mode=0, softmax_lse_flag=False,
    ):  # fmt: skip
        """With those of its arguments that the row uses; backends/npu/rehearsal has the whole signature."""
        self.keep(locals())
        assert all(x.is_contiguous() for x in (query, key, value))
        assert input_layout == "BSND" and (num_heads, num_key_value_heads) == (query.shape[2], key.shape[2])
        assert sparse_mode in (0, 2) and (atten_mask is not None) == (sparse_mode == 2)
        if key_shared_prefix is not None:
            assert len(key_shared_prefix) == 1 and sparse_mode == 0
            key, value = torch.cat((key_shared_prefix, key), 1), torch.cat((value_shared_prefix, value), 1)
        q = query * (scale * math.sqrt(query.shape[-1]))
        out, peak, total = exact(*(x.transpose(1, 2) for x in (q, key, value)), sparse_mode == 2)
        return out.transpose(1, 2), peak + total.log() if softmax_lse_flag else torch.empty(0)


ROWS = [
    (name, kernel.name)
    for name in BACKENDS
    for kernel in backend(name).kernels
    if kernel.op == "attention" and not {"triton", "aiter", "mindiesd"} & {*kernel.needs} and "none" in kernel.formats
]
"""Rows that call a library, in 16 bits. Our own kernels run in Triton's interpreter: backends/triton/tests; MindIE-SD's
and those in MXFP8 in Ascend's rehearsal."""
CASES = {
    "one segment": dict(queries=20, keys=[20], causal=False),
    "causal": dict(queries=20, keys=[20], causal=True),
    "two segments": dict(queries=20, keys=[7, 20], causal=False),
    "three segments": dict(queries=5, keys=[3, 1, 9], causal=False),
}


@pytest.fixture
def rehearsal(monkeypatch):
    return Rehearsal(monkeypatch)


def inputs(queries: int, keys: list[int], dtype=torch.float32, heads: int = 32, kv_heads: int = 8):
    torch.manual_seed(0)
    q = torch.randn(2, queries, heads, 128).to(dtype)
    # The segments' ranges differ, as text's and media's do: a kernel that mixes them up is far off.
    pairs = [
        (torch.randn(2, length, kv_heads, 128) * 3**i, torch.randn(2, length, kv_heads, 128) * 2**i)
        for i, length in enumerate(keys)
    ]
    return q, [Segment(k.to(dtype), v.to(dtype)) for k, v in pairs]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "kernel"), ROWS)
def test_attention_is_the_reference_s(name, kernel, case, rehearsal):
    queries, keys, causal = CASES[case].values()
    q, segments = inputs(queries, keys)
    expected, expected_lse = reference.attention(q, segments, causal=causal, want_lse=True)
    attention = row(name, kernel).build(DEVICES["h100"][1])
    with FusedOperators():
        out, nothing = attention(q, segments, causal=causal)
        out_too, lse = attention(q, segments, causal=causal, want_lse=True)
    assert nothing is None and out.shape == q.shape
    assert lse.shape == (2, 32, queries) and lse.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out_too, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kernel"), ROWS)
def test_attention_keeps_the_dtype_and_wants_as_many_keys_as_queries_when_causal(name, kernel, rehearsal):
    attention = row(name, kernel).build(DEVICES["h100"][1])
    q, segments = inputs(6, [6], torch.bfloat16, heads=4, kv_heads=4)
    with FusedOperators():
        out, lse = attention(q, segments, causal=True, want_lse=True)
        assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
        with pytest.raises(ValueError, match="as many keys as queries, got 5 and 6"):
            attention(q, [Segment(k[:, :5], v[:, :5]) for k, v in segments], causal=True)


@pytest.mark.parametrize(("name", "kernel"), ROWS)
def test_attention_has_the_signature_of_the_contract(name, kernel, rehearsal):
    def parameters(function):
        return [(found.name, found.kind, found.default) for found in inspect.signature(function).parameters.values()]

    assert parameters(row(name, kernel).build(DEVICES["h100"][1])) == parameters(reference.attention)


@pytest.mark.parametrize(
    ("name", "kernel", "operator"),
    [
        ("cuda", "sdpa-cudnn", "_scaled_dot_product_cudnn_attention"),
        ("cuda", "sdpa-flash", "_scaled_dot_product_flash_attention"),
        ("rocm", "sdpa-flash", "_scaled_dot_product_flash_attention"),
    ],
)
def test_a_pinned_row_calls_its_operator_with_the_key_heads_as_they_are(name, kernel, operator):
    q, segments = inputs(6, [3, 6])
    with FusedOperators() as operators:
        row(name, kernel).build(DEVICES["h100"][1])(q, segments)
    (call,) = operators.calls
    assert (call["name"], call["key"].shape) == (operator, (2, 8, 9, 128))


@pytest.mark.parametrize(("name", "kernel"), [("cuda", "sdpa-cudnn"), ("cuda", "sdpa-flash"), ("rocm", "sdpa-flash")])
def test_torch_s_own_shape_rules_for_the_device_take_the_call(name, kernel):
    attention = row(name, kernel).build(DEVICES["h100"][1])
    with FakeTensorMode():
        q = torch.empty(2, 20, 32, 128, dtype=torch.bfloat16, device="cuda")
        kv = [torch.empty(2, length, 8, 128, dtype=torch.bfloat16, device="cuda") for length in (7, 20)]
        segments = [Segment(x, x) for x in kv]
        out, lse = attention(q, segments, want_lse=True)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((2, 32, 20), torch.float32)


def test_a_vendor_s_kernel_is_called_without_a_transpose(rehearsal):
    q, segments = inputs(6, [6])
    row("cuda", "fa3").build(DEVICES["h100"][1])(q, segments, causal=True)
    (call,) = rehearsal.calls
    assert call["q"] is q and call["k"] is segments[0].k_BTKD and call["causal"] is True
    assert call["window_size"] == (-1, -1) and call["softmax_scale"] is None


def test_the_npu_s_operator_gets_query_heads_a_scale_and_true_for_masked_out(rehearsal):
    q, segments = inputs(6, [6])
    fusion = row("npu", "fusion").build(DEVICES["ascend910b"][1])
    fusion(q, segments)
    fusion(q, segments, causal=True)
    full, causal = rehearsal.calls
    for call in (full, causal):
        assert (call["head_num"], call["key"].shape[2], call["scale"]) == (32, 8, 1 / math.sqrt(128))
    assert full["atten_mask"] is None
    mask = causal["atten_mask"]
    assert (mask.dtype, mask.shape) == (torch.bool, (2048, 2048))
    assert mask[0, 1] and not mask[0, 0] and not mask[1, 0]


def test_one_branch_s_text_is_the_npu_s_shared_prefix(rehearsal):
    q, segments = inputs(6, [3, 6])
    q, segments = q[:1], [Segment(k[:1], v[:1]) for k, v in segments]
    out, lse = row("npu", "infer").build(DEVICES["ascend910b"][1])(q, segments, want_lse=True)
    expected, expected_lse = reference.attention(q, segments, want_lse=True)
    (call,) = rehearsal.calls
    assert (call["key_shared_prefix"].shape[1], call["key"].shape[1]) == (3, 6)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-5, atol=1e-5)


def test_the_npu_s_mask_is_made_once(rehearsal):
    """For all layers and calls on a device, of whatever length."""
    fusion = row("npu", "fusion").build(DEVICES["ascend910b"][1])
    for length in (6, 9):
        fusion(*inputs(length, [length]), causal=True)
    first, second = rehearsal.calls
    assert first["atten_mask"] is second["atten_mask"]


def test_the_npu_s_sdpa_calls_the_vendor_s_operator_for_the_lse_only(rehearsal):
    q, segments = inputs(6, [6])
    sdpa = row("npu", "sdpa").build(DEVICES["ascend910b"][1])
    sdpa(q, segments)
    assert not rehearsal.calls
    sdpa(q, segments, want_lse=True)
    assert len(rehearsal.calls) == 1


PARITY = {"pack_linear": "test_linear_parity", "capture": "test_capture_follows_its_inputs"}


def test_cuda_claims_no_more_than_is_on_record():
    """Only a record of the kit for these very sources, rows and tests lets the README say that it passes; of others, it
    says that they have changed. What no record knows is said never to have run or to be on none, or, of ops that the
    kit had no test for, to be newer."""
    from cosmos3_core.evidence.checks import kit_digest
    from cosmos3_core.evidence.closure import Sources
    from cosmos3_core.evidence.fingerprint import ROOT

    file, rows = PACKAGES["cuda"] / "cosmos3_cuda" / "recipes" / "checks" / "h200.json", backend("cuda").kernels
    readme = " ".join((PACKAGES["cuda"] / "README.md").read_text().split())
    record = json.loads(file.read_text())
    found = record["fingerprint"]
    current = found["backend"]["sources"] == subject("cuda").sources() and found["kit"] == kit_digest(Sources(ROOT))
    passed = {name for name, test in record["tests"].items() if test["outcome"] == "passed"}
    day = f"{datetime.fromisoformat(record['finished']):%-d %B %Y}"
    state = "passes" if current else f"passed on {day}, with code that has changed since,"
    assert f"State: the conformance kit {state} on one H200 with torch 2.11: {len(passed)} passed" in readme
    assert "H200" in found["device"]["name"] and record["exit_status"] == 0 and not record["selected"]
    tests = {row.op: PARITY.get(row.op, f"test_{row.op}_parity") for row in rows}
    newer = [op for op, test in tests.items() if not any(name.startswith(f"{test}[") for name in passed)]
    assert "newer than that record" not in readme or newer
    assert all(f"Rows of {' and '.join(newer)} are newer than that record" in readme for _ in newer)
    for row in (row for row in rows if row.op not in newer):
        test = tests[row.op]
        ran = any(name.startswith(tuple(f"{test}[{row.name}-{dtype}" for dtype in row.dtypes)) for name in passed)
        said = "never run" in row.notes or "on no record" in row.notes
        assert ran != said, f"{row.op} {row.name}: {'' if ran else 'not '}on record"
    assert not [name for name, test in record["tests"].items() if test["outcome"] not in ("passed", "skipped")]


def test_ascend_s_product_names_the_groups_that_it_takes():
    linears = import_module("cosmos3_npu.linears")
    small = pack(torch.randn(16, 64), replace(FORMATS["w4a16"], group=16), weight=True)
    with pytest.raises(ValueError, match="groups of multiples of 32, not 16"):
        linears.pack_linear(small, None, format="w4a16")
