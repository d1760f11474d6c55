"""Plugins of contract 1, frozen, under this contract: what they bring runs, and their doors stay closed."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import peer
import pytest
from command import cosmos3
from installed import forget, install
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.contract import Kernel, Quantized
from cosmos3_core.evidence.closure import Sources
from cosmos3_core.evidence.fingerprint import ROOT, places_of
from cosmos3_core.files.digests import sha256_files, sha256_json
from cosmos3_core.plan import discovery

FROZEN = Path(__file__).parent / "contract1"
DIGESTS = {
    "guide": "4b539696b5e63f6cf16f32852b24a81322213810841255b8c0df8762bdb75d06",
    "device": "d059d39105b26f0a3f6ad68e05987896ad09fe263b22423cc81ff0ada2b292b2",
}
OWN = {
    "guide": {"attention": "by_segment"},
    "device": {
        "attention": "online_softmax",
        "pack_linear": "transposed",
        "rms_norm": "fused_norm",
        "norm_rope": "complex_rope",
        "gate": "exp_gate",
        "patch_embed": "strided_convolution",
        "norm_silu": "fused_norm_silu",
        "capture": "replayed",
    },
}
"""By package, the rows that serve a model with heads of 128."""
JOB = ("--size", "64x64", "--steps", 4, "--seed", 1)


@pytest.fixture
def use(tmp_path, monkeypatch):
    """Installs a package, frozen or not, here and for the processes that are started."""
    before = list(sys.path)

    def put(folder: Path) -> None:
        install(folder, tmp_path / "site")
        path = [str(tmp_path / "site"), str(folder)]
        monkeypatch.setattr(sys, "path", [*path, *before])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*path, str(ROOT)]))
        forget("cosmos3_acme")

    yield put
    forget("cosmos3_acme")


@pytest.fixture(params=OWN)
def frozen(request, use) -> str:
    use(FROZEN / request.param)
    return request.param


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """The tiny model with random weights in float32 and heads of 128, for which both packages wrote their attention."""
    config = peer.TINY | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    module = peer.diffusers_transformer(config | {"rope_axes_dim": [24, 20, 20]}, scale=0.1)
    folder = peer.save_repository(tmp_path_factory.mktemp("wide"), module)
    written = folder / "transformer" / "config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"dtype": "float32"}))
    return folder


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Text to image on a backend: (pixels, manifest)."""

    def image(backend: str, model: str | Path, *options) -> tuple[np.ndarray, dict]:
        file = tmp_path / f"{backend}.png"
        command = ("run", "a cup", "--model", model, *JOB, "--backend", backend, "-o", file, *options)
        code, _, err = cosmos3(capsys, monkeypatch, *command)
        assert code == 0, err
        return np.asarray(Image.open(file)).astype(int), json.loads(Path(f"{file}.json").read_text())

    return image


@pytest.mark.parametrize("name", OWN)
def test_the_packages_are_as_they_were(name):
    files = [path for path in (FROZEN / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sha256_json(sha256_files(files, FROZEN / name)) == DIGESTS[name], "they are frozen: undo the change"


def test_backends_lists_it(frozen, capsys, monkeypatch):
    code, out, _ = cosmos3(capsys, monkeypatch, "backends", "--json")
    told = next(backend for backend in json.loads(out) if backend["name"] == "acme")
    assert code == 0 and told["state"] == "available"
    chosen = {row["op"]: row["name"] for row in told["kernels"] if row["chosen"]}
    assert OWN[frozen].items() <= chosen.items() and chosen["finish"] == "composed"
    assert discovery.load("acme").api == 1


def test_an_image_on_its_rows_is_the_references(frozen, run, wide):
    found, manifest = run("acme", wide)
    expected, _ = run("reference", wide)
    assert OWN[frozen].items() <= manifest["plan"]["kernels"].items()
    assert expected.std() > 1 and np.abs(found - expected).max() <= 1, "a level of 256 is a rounding"


def test_an_image_on_eager_rows_is_the_references_bit_for_bit(use, run):
    use(FROZEN / "guide")  # its only row refuses the tiny model's heads
    # The reference computes a part in float32 where the processor takes long for 16 bits.
    found, manifest = run("acme", TINY_MODEL, "--dtype", "float32")
    expected, _ = run("reference", TINY_MODEL, "--dtype", "float32")
    assert manifest["plan"]["kernels"]["attention"] == "eager" and np.array_equal(found, expected)


def test_nothing_goes_through_the_doors(use, run, monkeypatch):
    """In its 8-bit format, where contract 1 asked for rows in 8 bits, gates and sums."""
    use(FROZEN / "device")
    kernels = import_module("cosmos3_acme.kernels")
    products, extra = [], []
    multiply = kernels.Transposed.__call__

    def counted(self, x_MI, *rest, **named):
        products.append(self.takes)
        extra.extend([*rest, *named, *([x_MI] if isinstance(x_MI, Quantized) else [])])
        return multiply(self, x_MI, *rest, **named)

    monkeypatch.setattr(kernels.Transposed, "__call__", counted)
    monkeypatch.setattr(kernels.Transposed, "gated", lambda self: extra.append("gated"))
    for name in ("fused_norm", "exp_gate"):
        kernel = getattr(kernels, name)

        def plain(*tensors, kernel=kernel, **options):
            products.append(kernel.__name__)
            extra.extend(["format"] if "format" in options else [])
            return kernel(*tensors, **options)

        monkeypatch.setattr(kernels, name, plain)
    _, manifest = run("acme", TINY_MODEL, "--format", "int8")
    assert manifest["plan"]["formats"] == {"pack_linear": "int8"}
    assert {"int8", "none", "fused_norm", "exp_gate"} <= set(products) and not extra


def test_what_records_take_digests_of_is_the_packages_code(frozen):
    def place(kernel: Kernel) -> set[str]:
        return {place.partition(":")[0] for place in places_of(kernel.build, Sources(ROOT))}

    assert all(place(kernel) == {"cosmos3_acme.plugin"} for kernel in discovery.load("acme").kernels)


def test_it_passes_the_kit(frozen, capsys, monkeypatch, tmp_path):
    """In the results of what it brings; tests/slow has the whole kit."""
    command = ("check", "--backend", "acme", "--record", tmp_path / "acme.json")
    code, out, err = cosmos3(capsys, monkeypatch, *command, "-k", f"parity and ({' or '.join(OWN[frozen].values())})")
    assert code == 0, out + err
    tests = json.loads((tmp_path / "acme.json").read_text())["tests"]
    attention = OWN[frozen]["attention"]
    assert tests[f"test_attention_parity[{attention}-bfloat16-gqa64_8-ragged]"]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("api", "fix"), [(3, "Type pip install --upgrade cosmos3"), (0, "Type pip install --upgrade cosmos3-acme")]
)
def test_another_contract_is_refused_by_name(use, capsys, monkeypatch, tmp_path, api, fix):
    package = tmp_path / "package"
    for path in (FROZEN / "guide").rglob("*.*"):
        (package / path.relative_to(FROZEN / "guide")).parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text().replace("kernels=(ATTENTION,)", f"kernels=(ATTENTION,), api={api}")
        (package / path.relative_to(FROZEN / "guide")).write_text(text)
    use(package)
    code, _, err = cosmos3(
        capsys, monkeypatch, "run", "a cup", "--model", TINY_MODEL, "--backend", "acme", "-o", "x.png"
    )
    said = f"backend acme of cosmos3-acme 0.1: it is written for contract {api}, and this cosmos3 takes 1 and 2. {fix}"
    assert (code, err) == (2, f"error: {said}\n")
    code, out, _ = cosmos3(capsys, monkeypatch, "backends")
    assert code == 0 and f"incompatible: {said}" in out
