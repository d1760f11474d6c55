"""A quantization format from outside: of a backend (`Backend.formats`) or of a package without a device (entry point
"cosmos3.formats"). Plan, estimate, run, kit, lists and matrix take it up, and a fault of one names its package."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command import cosmos3
from installed import forget
from tiny_model import TINY_MODEL

from cosmos3_core.contract import InputError
from cosmos3_core.evidence import fingerprint
from cosmos3_core.evidence.matrix import render
from cosmos3_core.plan import discovery, formats
from cosmos3_core.quant import ELEMENTS, FORMATS, SCALES, Element, Format, error_bound
from cosmos3_core.quant.formats import bytes_per_weight
from cosmos3_core.quant.numerics import multiply, pack, unpack
from cosmos3_core.reference import BACKEND

FORMAT = """
from cosmos3_core.quant import Element, Format

W3 = Format(name="bolt_w3a16", element="int3", own_element=Element(bits=3, most=4, top=1, offset=4), scale="fp16",
            group=32, activations=False, source="BOLT handbook")
"""
PLUGIN = """
from cosmos3_core.contract import Backend, Ceiling, Device, Kernel, hookimpl
from .format import W3


def probe():
    return Device(arch="bolt1", name="BOLT One", count=1, memory=80 * 2**30, unified=True)


def build(device):
    from .kernel import pack_linear
    return pack_linear


ROW = Kernel(op="pack_linear", name="w3", build=build, arch=("bolt1",), formats=("none", "bolt_w3a16"), packed=True)
CEILING = Ceiling(tflops={"bfloat16": 100.0}, bandwidth=1e12, source="BOLT data sheet")


@hookimpl
def cosmos3_backend():
    return Backend(name="bolt", torch_device="cpu", collectives="gloo", probe=probe, kernels=(ROW,), formats=(W3,),
                   ceilings={"bolt1": CEILING}, api=2)
"""
KERNEL = """
import torch.nn.functional as F
from cosmos3_core.quant.numerics import Packed, pack, unpack
from .format import W3


class Linear:
    def __init__(self, weight, bias_O):
        self.weight, self.bias_O = weight, bias_O

    def __call__(self, x_MI):
        weight = unpack(self.weight).to(x_MI.dtype) if isinstance(self.weight, Packed) else self.weight
        return F.linear(x_MI, weight, self.bias_O)

    def tensors(self):
        held = self.weight.tensors() if isinstance(self.weight, Packed) else {"weight": self.weight}
        return held if self.bias_O is None else held | {"bias": self.bias_O}


def pack_linear(weight_OI, bias_O, *, format="none"):
    if format != "none" and not isinstance(weight_OI, Packed):
        weight_OI = pack(weight_OI, W3, weight=True)
    return Linear(weight_OI, bias_O)
"""
W6 = """
from cosmos3_core.quant import Format
W6 = Format(name="{name}", element="int6", scale="fp16", group=32, activations=False, source="arXiv 0000.00000")
"""
SMALL = ("--model", TINY_MODEL, "--size", "64x64", "--steps", 2, "--frames", 1, "--seed", 1)


class Site:
    """A site-packages of its own, on the path here and for processes that are started."""

    def __init__(self, folder: Path):
        self.folder = folder

    def distribution(self, project: str, group: str, entry: str) -> None:
        info = self.folder / f"{project.replace('-', '_')}-0.3.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")

    def bolt(self, at: Path | None = None) -> None:
        folder = (at or self.folder) / "cosmos3_bolt"
        folder.mkdir(parents=True)
        for name, text in (("__init__", ""), ("format", FORMAT), ("plugin", PLUGIN), ("kernel", KERNEL)):
            (folder / f"{name}.py").write_text(text)
        if at is None:
            self.distribution("cosmos3-bolt", "cosmos3.backends", "bolt = cosmos3_bolt.plugin")

    def formats(self, project: str, code: str, value: str = "W6") -> None:
        """A package that brings what its module calls `value`."""
        module = f"own_{project.replace('-', '_')}"
        (self.folder / f"{module}.py").write_text(code)
        self.distribution(project, "cosmos3.formats", f"{project} = {module}:{value}")


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    yield Site(folder)
    for name in ("cosmos3_bolt", *(path.stem for path in folder.glob("own_*.py"))):
        forget(name)


@pytest.fixture
def told(capsys, monkeypatch):
    def call(*arguments) -> dict:
        code, out, err = cosmos3(capsys, monkeypatch, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.fixture
def said(capsys, monkeypatch):
    def call(*arguments) -> str:
        code, _, err = cosmos3(capsys, monkeypatch, *arguments)
        assert code == 2 and len(err.splitlines()) == 1, err
        return err

    return call


def test_a_backends_format_is_planned_counted_and_run(site, told, tmp_path, capsys, monkeypatch):
    site.bolt()
    plain, own = (
        told("plan", "--backend", "bolt", "--model", "nano", *more) for more in ((), ("--format", "bolt_w3a16"))
    )
    assert own["plan"]["kernels"]["pack_linear"] == "w3" and own["plan"]["formats"] == {"pack_linear": "bolt_w3a16"}
    parts = [plan["estimate"]["memory"]["weights"]["understanding"] for plan in (plain, own)]
    assert parts[1] / parts[0] == pytest.approx((3 + 16 / 32) / 16, rel=0.01)
    assert own["estimate"]["seconds"]["total"] > 0 and not any("eager" in note for note in own["notes"])
    code, _, err = cosmos3(
        capsys,
        monkeypatch,
        "run",
        "a cup",
        *SMALL,
        "--backend",
        "bolt",
        "--format",
        "bolt_w3a16",
        "-o",
        tmp_path / "a.png",
    )
    assert code == 0, err
    manifest = json.loads((tmp_path / "a.png.json").read_text())
    assert manifest["plan"]["formats"] == {"pack_linear": "bolt_w3a16"}
    assert manifest["plan"]["kernels"]["pack_linear"] == "w3"


def test_lists_and_matrix_show_a_backends_format(site, told, capsys, monkeypatch, tmp_path):
    site.bolt()
    found = told("capabilities", "--model", TINY_MODEL)["formats"]
    assert found["names"] == [*FORMATS, "bolt_w3a16"] and found["by"]["bolt_w3a16"] == "backend bolt"
    assert found["described"]["bolt_w3a16"]["group"] == 32 and found["faults"] == []
    _, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", TINY_MODEL)
    assert "bolt_w3a16 (of backend bolt)" in out
    _, out, _ = cosmos3(capsys, monkeypatch, "backends")
    assert "brings the formats bolt_w3a16" in out
    forget("cosmos3_bolt")
    (tmp_path / "cosmos3_core" / "recipes").mkdir(parents=True)
    site.bolt(bolt := tmp_path / "backends" / "bolt")
    (bolt / "pyproject.toml").write_text('[project]\nname = "cosmos3-bolt"\nversion = "0.3"\n')
    page = render(tmp_path)
    line = "| bolt_w3a16 | bolt | 3.5 | bolt w3 | – |"
    assert line in page and "none, bolt_w3a16" in page


def test_a_record_holds_for_the_format_it_was_measured_in(site):
    site.bolt()
    backend = discovery.load("bolt")
    other = replace(backend, formats=(replace(backend.formats[0], group=64),))
    device, rows = backend.probe(), backend.kernels
    was, same, now = (fingerprint.fingerprint(one, device, rows, embedded=True) for one in (backend, backend, other))
    assert not fingerprint.differences(was, same)
    assert fingerprint.differences(was, now) == ["the backend declares its rows otherwise"]


CHECKED = "own_formats or well_formed or linear_parity or packed_weight or held or take_what or (every_format and pack)"


def check(keyword: str) -> str:
    command = [sys.executable, "-m", "cosmos3", "check", "--backend", "bolt", "-k", keyword]
    return subprocess.run(command, capture_output=True, text=True).stdout


def test_the_kit_judges_a_backends_format(site):
    site.bolt()
    out = check(f"({CHECKED}) and not float")
    assert "failed" not in out and "passed" in out, out
    assert "test_own_formats_keep_their_bound" not in out.partition("skipped")[2]


def test_the_kit_finds_a_format_of_ones_own_that_is_ignored(site):
    site.bolt()
    kernel = site.folder / "cosmos3_bolt" / "kernel.py"
    kernel.write_text(KERNEL.replace('if format != "none" and', "if False and"))
    out = check("take_what and bfloat16 or linear_parity and bfloat16")
    assert "is the full weight kept?" in out and "failed" in out, out


FAULTY = {
    "a built-in name": ("W3.name", "fp8", "its format 'fp8' is built in"),
    "a name that cannot be typed": ("W3.name", "w 3", "its format 'w 3' cannot be asked for by this name"),
    "an element that nobody has": ("W3.own", None, "the element of its format bolt_w3a16 is 'int3', which is none of"),
    "no format": ("formats", '("w3",)', "it brings an object of type str, and a quant.Format is wanted"),
    "one twice": ("formats", "(W3, W3)", "it brings two formats named bolt_w3a16"),
}


@pytest.mark.parametrize(("what", "value", "expected"), FAULTY.values(), ids=FAULTY)
def test_a_backend_whose_format_is_none(site, what, value, expected):
    site.bolt()
    folder = site.folder / "cosmos3_bolt"
    if what == "formats":
        (folder / "plugin.py").write_text(PLUGIN.replace("formats=(W3,)", f"formats={value}"))
    elif what == "W3.name":
        (folder / "format.py").write_text(FORMAT.replace("bolt_w3a16", value))
    else:
        (folder / "format.py").write_text(FORMAT.replace("own_element=Element(bits=3, most=4, top=1, offset=4), ", ""))
    with pytest.raises(InputError, match="backend bolt of cosmos3-bolt 0.3: ") as caught:
        discovery.load("bolt")
    assert expected in str(caught.value)


def test_a_row_for_a_format_that_nobody_brings(site, said):
    site.bolt()
    plugin = site.folder / "cosmos3_bolt" / "plugin.py"
    plugin.write_text(PLUGIN.replace("formats=(W3,)", "formats=()"))
    asked = said("plan", "--backend", "bolt", "--model", "nano", "--format", "bolt_w3a16")
    assert "--format pack_linear=bolt_w3a16: neither cosmos3, nor backend bolt, nor an installed package" in asked
    assert "there is no format bolt_w3a16; bring it in Backend.formats" in check("well_formed")


def test_a_packages_format_runs_on_every_backend(site, told, tmp_path, capsys, monkeypatch):
    site.formats("acme-formats", W6.format(name="acme_w6a16"))
    found = told("plan", "--backend", "reference", *SMALL[:2], "--format", "acme_w6a16")
    assert found["plan"]["kernels"]["pack_linear"] == "eager"
    assert [note for note in found["notes"] if "no kernel of reference serves acme_w6a16 here" in note]
    options = ("--backend", "reference", "--format", "acme_w6a16", "-o", tmp_path / "a.png")
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", *SMALL, *options)
    assert code == 0 and "eager torch makes the layers' weights numbers again" in err, err
    listed = told("capabilities", "--model", TINY_MODEL)["formats"]
    assert listed["by"]["acme_w6a16"] == "acme-formats 0.3"


def test_a_backends_row_may_serve_a_packages_format(site, told):
    site.bolt()
    site.formats("acme-formats", W6.format(name="acme_w6a16"))
    plugin = site.folder / "cosmos3_bolt" / "plugin.py"
    plugin.write_text(PLUGIN.replace('"bolt_w3a16")', '"acme_w6a16")'))
    found = told("plan", "--backend", "bolt", "--model", "nano", "--format", "acme_w6a16")
    assert found["plan"]["kernels"]["pack_linear"] == "w3" and "eager" not in str(found["notes"])


def test_packages_are_imported_only_for_a_format_that_is_not_built_in(site):
    site.formats("acme-formats", W6.format(name="acme_w6a16"))
    formats.completed(BACKEND, {"pack_linear": "fp8", "attention": "none"})
    assert "own_acme_formats" not in sys.modules
    assert formats.completed(BACKEND, {"pack_linear": "acme_w6a16"}).formats[0].group == 32
    assert "own_acme_formats" in sys.modules


def test_two_packages_that_claim_a_format_are_an_error_that_names_both(site, said):
    for project in ("acme-formats", "other-formats"):
        site.formats(project, W6.format(name="acme_w6a16"))
    site.formats("third-formats", W6.format(name="third_w6a16"))
    asked = said("plan", "--backend", "reference", "--model", "nano", "--format", "acme_w6a16")
    assert "it is brought by acme-formats 0.3 and other-formats 0.3, and cosmos3 does not choose between them" in asked
    assert "pip uninstall acme-formats or pip uninstall other-formats" in asked
    assert formats.completed(BACKEND, {"pack_linear": "third_w6a16"}).formats


OWN = Element(bits=3, most=4, top=1, offset=4)
SOUND = Format(name="own", element="int3", own_element=OWN, scale="fp16", group=32, activations=False)
LIES: dict[str, tuple[dict[str, object], str]] = {
    "a name that is a number": ({"name": 3}, "of its format 3 name is 3, and should be of type str"),
    "an element in a list": ({"element": ["int3"]}, "element is ['int3'], and should be of type str"),
    "a group of half a feature": ({"group": 32.0}, "group is 32.0, and should be of type int"),
    "a group that is a flag": ({"group": True}, "group is True, and should be of type int"),
    "a negative group": ({"group": -1}, "are counts, and one is negative"),
    "outputs of minus one": ({"outputs": -1}, "are counts, and one is negative"),
    "inputs by name": ({"activations": True, "inputs": "fp8"}, "inputs is 'fp8', and should be a quant.Format"),
    "inputs that are not the built-in ones": (
        {"activations": True, "inputs": replace(FORMATS["fp8"], group=32)},
        "its format 'fp8' is built in",
    ),
    "inputs of weights alone": ({"inputs": FORMATS["fp8"]}, "and activations is False"),
    "an unknown rule": ({"exponent": "up"}, "exponent is 'up', which is none of 'floor'"),
    "an unknown packer": ({"packer": "mine"}, "packer is 'mine', which is none of"),
    "a super block of no groups": (
        {"scale": "int8", "super_group": 48, "super_scale": "fp16"},
        "super_group is 48, which is no multiple of group 32",
    ),
    "a super block without a scale": ({"scale": "int8", "super_group": 64}, "super_group and super_scale belong"),
    "a multiple of nothing": ({"scale": "int8"}, "a multiple of a super block's, and there is no super_scale"),
    "a multiple that is none": ({"super_group": 64, "super_scale": "fp16"}, "scale is fp16 and super_scale fp16"),
    "unsigned multiples of signed scales": (
        {"scale": "uint6", "super_group": 64, "super_scale": "fp16"},
        "can be negative, as it has an offset, and uint6 cannot",
    ),
    "zero points of a signed element": ({"zeros": True}, "its element int3 is no unsigned integer"),
    "zero points and minima": (
        {"zeros": True, "minima": True, "own_element": Element(bits=3, most=7, top=2)},
        "an element cannot have both",
    ),
    "negative weights by an unsigned element": ({"own_element": Element(bits=3, most=7, top=2)}, "is never negative"),
    "e8m0 below a tensor's scale": ({"scale": "e8m0", "tensor_scale": True}, "goes neither with e8m0"),
    "one scale of a group": ({"outputs": 0}, "a scale of the whole tensor is fp32, without a group"),
    "no element": ({"own_element": "int3"}, "own_element is 'int3', and should be a quant.Element"),
    "no bits": ({"own_element": replace(OWN, bits=0)}, "own_element has 0 bits, and 1 to 8 can be packed"),
    "half a bit": ({"own_element": replace(OWN, bits=3.0)}, "own_element's bits is 3.0"),
    "NaN": ({"own_element": replace(OWN, most=float("nan"))}, "own_element's most nan"),
    "another largest": ({"own_element": replace(OWN, most=100, top=6)}, "has most 100 and offset 4"),
    "another power of two": ({"own_element": replace(OWN, top=7)}, "has top 7, and its largest positive number is 3"),
    "no dtype of torch": (
        {"own_element": replace(OWN, dtype="float8_nope")},
        "has dtype 'float8_nope', which is none of int8",
    ),
    "a dtype of other numbers": (
        {"own_element": Element(bits=8, most=448, top=8, mantissa=3, dtype="float8_e5m2")},
        "has dtype float8_e5m2, which is 8 bits, 2 of them mantissa",
    ),
    "a float without a table": ({"own_element": Element(bits=4, most=6, top=2, mantissa=1)}, "neither a dtype nor val"),
    "a table in no order": ({"own_element": Element(bits=2, most=1, values=(1.0, 0.0, -1.0))}, "that do not ascend"),
    "a table of one sign": (
        {"own_element": Element(bits=1, most=1, values=(0.0, 1.0))},
        "values from 0 to 1, and most",
    ),
    "a table of another float": (
        {"own_element": replace(FORMATS["mxfp4"].of_elements, mantissa=2)},
        "not those of a float of its bits, mantissa and top",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_declaration_that_cannot_be_is_refused_before_it_is_used(name: str) -> None:
    change, expected = LIES[name]
    assert formats.complaint(SOUND) is None
    assert expected in (formats.complaint(replace(SOUND, **change)) or "")


def test_a_format_that_counts_its_own_bytes_is_no_row_of_data() -> None:
    class Small(Format):
        bits = 1  # type: ignore[assignment]

    small = Small(name="own", element="int6", scale="fp16", group=32, activations=False)
    assert "it brings an object of type Small" in (formats.complaint(small) or "")


def test_what_is_declared_like_a_built_in_format_is_taken() -> None:
    for format in FORMATS.values():
        for own in ({}, {"element": "mine", "own_element": format.of_elements}):
            assert formats.complaint(replace(format, name=f"my_{format.name}", **own)) is None, format.name


def test_a_declaration_that_is_taken_packs_as_it_says() -> None:
    """Random ones: those that are taken keep their bound and their bytes."""
    pick, taken = random.Random(3), 0
    elements = [OWN, Element(bits=2, most=1, values=(-1.0, 0.0, 1.0)), Element(bits=7, most=64, top=5, offset=64)]
    elements += [Element(bits=4, most=15, top=3), *ELEMENTS.values()]
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    weight[3, 5] = 20
    while taken < 150:
        format = Format(
            name="own",
            element="mine",
            own_element=pick.choice(elements),
            scale=pick.choice([scale for scale in SCALES if scale != "e4m3"]),  # alone its range is small
            group=pick.choice((0, 8, 32, 64)),
            outputs=pick.choice((1, 1, 1, 0, 4)),
            zeros=pick.random() < 0.2,
            minima=pick.random() < 0.2,
            super_group=pick.choice((0, 0, 64, 256)),
            super_scale=pick.choice(("", "", "fp16", "fp32")),
            tensor_scale=pick.random() < 0.2,
            exponent=pick.choice(("floor", "ceil", "even", "rceil")),
            activations=pick.random() < 0.5,
            packer=pick.choice(("", "", "compressed-tensors", "llama.cpp", "bitsandbytes")),
        )
        if formats.complaint(format):
            continue
        taken += 1
        packed = pack(weight, format, weight=True)
        rows, features = format.outputs or 16, format.super_group or format.group or 256
        tiles = (-1, rows, 256 // features, features)
        largest = weight.view(tiles).abs().amax((1, 3), keepdim=True)
        error = ((unpack(packed) - weight).view(tiles).abs() / largest).max()
        assert error <= error_bound(format) * 1.01 + 1e-5, format
        assert packed.bytes == pytest.approx(bytes_per_weight(format, 256) * weight.numel(), abs=4), format
        assert multiply(weight[:3], packed).isfinite().all()


BROKEN = {
    "it does not load": ("raise ImportError('libacme.so.3')", "W6", "raised ImportError: libacme.so.3"),
    "it ends the program": ("raise SystemExit(3)", "W6", "raised SystemExit: 3"),
    "it brings something else": ("W6 = 6", "W6", "it brings an object of type int, and a quant.Format is wanted"),
    "it has no such name": ("W7 = 6", "W6", "raised AttributeError"),
    "it takes a built-in name": (W6.format(name="w4a16"), "W6", "its format 'w4a16' is built in"),
}


@pytest.mark.parametrize(("code", "value", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named_and_hides_no_other(site, said, told, code, value, expected):
    site.formats("acme-formats", code, value)
    site.formats("other-formats", W6.format(name="other_w6a16"))
    asked = said("plan", "--backend", "reference", "--model", "nano", "--format", "acme_w6a16")
    assert "formats of acme-formats 0.3: " in asked and expected in asked and "Did you mean other_w6a16?" in asked
    assert formats.completed(BACKEND, {"pack_linear": "other_w6a16"}).formats
    found = told("capabilities", "--model", TINY_MODEL)["formats"]
    assert "other_w6a16" in found["names"]
    (fault,) = found["faults"]
    assert fault.startswith("formats of acme-formats 0.3: ") and expected in fault
