"""`cosmos3 quantize`: what it writes loads exactly, says what it is, and is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import cosmos3
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint import tensors, writing
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.policy import Policy
from cosmos3_core.checkpoint.quantize import Job, prepare, source_folder, with_defaults
from cosmos3_core.contract import InputError
from cosmos3_core.evidence.quantizing.quantize import Asked, job_of, with_statistics
from cosmos3_core.files import locks
from cosmos3_core.files.digests import sha256_file
from cosmos3_core.quant.dialects.written import WRITTEN, Written
from cosmos3_core.quant.numerics import pack, unpack
from cosmos3_core.reference import ops as reference_ops

Call = Callable[..., tuple[int, str, str]]
STEM = "diffusion_pytorch_model"
MEDIA = (*(f"self_attn.add_{x}_proj" for x in "qkv"), "self_attn.to_add_out")
MEDIA += tuple(f"mlp_moe_gen.{x}_proj" for x in ("gate", "up", "down"))
TEXT = (*(f"self_attn.to_{x}" for x in ("q", "k", "v", "out")), *(f"mlp.{x}_proj" for x in ("gate", "up", "down")))
TINY_MEDIA = {f"layers.{i}.{module}" for i in range(2) for module in MEDIA}
WIDEST = 1 << 20
"""Bytes of a shard here, so that the embedded model has many."""


@pytest.fixture
def quantize(capsys, monkeypatch, tmp_path: Path) -> Call:
    """`cosmos3 quantize ARGUMENTS` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cosmos3(capsys, monkeypatch, "quantize", *arguments)


@pytest.fixture(scope="session")
def statistics(tmp_path_factory) -> Path:
    """Of the tiny model, with second moments."""
    folder = tmp_path_factory.mktemp("statistics")
    (folder / "prompts.txt").write_text("waves\n\na cup\n")
    given = {"size": "64x64", "steps": 1, "frames": 1}
    asked = Asked(
        model=TINY_MODEL,
        format="w4a16",
        group=16,
        method="gptq",
        calibrate=str(folder / "prompts.txt"),
        given=given,
        backend="reference",
    )
    with_statistics(asked, job_of(asked), folder / "tiny.safetensors", lambda *_: None)
    return folder / "tiny.safetensors"


def options(row: Written, group: int, statistics: Path) -> tuple[object, ...]:
    """What a row takes to be written."""
    found: tuple[object, ...] = ("--format", row.format.name, "--dialect", row.dialect)
    found += ("--group", group) if row.grouped else ()
    return found + (("--calibrate", statistics) if row.format.static else ())


def plain(folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint's transformer as its files have it."""
    held: dict[str, torch.Tensor] = {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        held |= load_file(file)
    return held


def files_of(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


def expected(weight: torch.Tensor, format: str, dialect: str, group: int) -> torch.Tensor:
    """What becomes of a weight, by the formats' definitions. A row of zeros stays one. ModelOpt has scales in fp32,
    compressed-tensors in the model's dtype."""
    w, stored = weight.float(), torch.float32 if dialect == "modelopt" else weight.dtype
    if format == "fp8":
        scale = (w.abs().amax(1, keepdim=True) / torch.tensor(448.0)).to(stored).float()
        return (w / scale).nan_to_num(0).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    if format == "fp8_static":
        scale = w.abs().amax() / torch.tensor(448.0)
        return (w / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    if format == "int8":
        scale = (w.abs().amax(1, keepdim=True) / torch.tensor(127.0)).to(stored).float()
        return (w / scale).nan_to_num(0).round().clamp(-127, 127) * scale
    blocks = w.unflatten(1, (-1, group))
    scale = (blocks.abs().amax(-1, keepdim=True) / 7.5).to(stored).float()
    return ((blocks / scale).nan_to_num(0).round().clamp(-8, 7) * scale).flatten(1)


def check_weights(folder: Path, source: Path, modules: set[str], format: str, dialect: str, group: int) -> None:
    """The loader finds these modules quantized, each exactly, and all other tensors as they were, to the bit."""
    weights, own = Weights(open_model(str(folder))), plain(source)
    assert weights.quantized is not None
    found = dict(weights.quantized.weights(weights.quantized.layouts))
    assert found.keys() == modules
    for module, packed in found.items():
        assert packed.format.name == format
        assert torch.equal(unpack(packed), expected(own[f"{module}.weight"], format, dialect, group)), module
    held = plain(folder)
    for name, tensor in own.items():
        if name.removesuffix(".weight") not in modules:
            assert held[name].dtype == tensor.dtype and torch.equal(held[name], tensor), name


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: f"{row.dialect}-{row.format.name}")
def test_what_is_written_is_read_exactly(row, statistics, quantize: Call, tmp_path: Path) -> None:
    code, out, err = quantize("--model", TINY_MODEL, *options(row, 16, statistics), "-o", "out")
    assert (code, out) == (0, "out\n") and "tensor 66 of 66" in err
    check_weights(tmp_path / "out", TINY, TINY_MEDIA, row.format.name, row.dialect, 16)
    config = json.loads((tmp_path / "out/transformer/config.json").read_text())
    said = config.pop("quantization_config")
    assert said["quant_method"] == row.dialect and "layers.0.mlp.up_proj" in said["ignore"]
    assert config == json.loads((TINY / "transformer/config.json").read_text())
    same = {path: digest for path, digest in files_of(TINY).items() if not path.startswith("transformer/")}
    new = {"README.md", "cosmos3_quantize.json", "transformer/config.json", f"transformer/{STEM}.safetensors"}
    written = files_of(tmp_path / "out")
    assert written.keys() == {*same, *new} and same.items() <= written.items()
    card, record = (tmp_path / "out/README.md").read_text(), json.loads((tmp_path / "out" / writing.RECORD).read_text())
    for text in (TINY_MODEL, record["identity"], row.format.name, row.dialect, "understanding"):
        assert text in card
    assert record["files"] == {path: digest for path, digest in written.items() if path != writing.RECORD}
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("row", WRITTEN, ids=lambda row: f"{row.dialect}-{row.format.name}")
def test_what_is_written_runs(row, statistics, quantize: Call, run: Call) -> None:
    assert quantize("--model", TINY_MODEL, *options(row, 32, statistics), "-o", "out")[0] == 0
    size = ("--size", "64x64", "--steps", 2)
    code, _, err = run("waves", "--model", "out", "--backend", "reference", *size, "-o", "waves.png")
    assert code == 0, err
    said = json.loads(Path("waves.png.json").read_text())["model"]["quantization"]
    assert said["dialect"] == row.dialect and said["modules"] == {"layers.0-1 (media)": row.format.name}


def test_help_names_what_is_written(quantize: Call) -> None:
    _, out, _ = quantize("--help")
    assert all(row.format.name in out and row.dialect in out for row in WRITTEN)


def test_the_embedded_model_by_a_policy(quantize: Call, tmp_path: Path) -> None:
    Path("policy.toml").write_text('keep_understanding = false\nkeep_first_layers = 2\nkeep = ["*.mlp.down_proj"]\n')
    code, out, _ = quantize(
        "--model", "embedded", "--format", "w4a16", "--policy", "policy.toml", "-o", "out", "--json", "-q"
    )
    said, source = json.loads(out), source_folder(open_model("embedded"))
    modules = {f"layers.{i}.{module}" for i in range(6) for module in TEXT if module != "mlp.down_proj"}
    modules |= {f"layers.{i}.{module}" for i in range(2, 6) for module in MEDIA}
    assert code == 0 and set(said["quantized"]) == modules
    assert said["bytes"] < said["source_bytes"] and said["policy"]["keep"] == ["*.mlp.down_proj"]
    check_weights(tmp_path / "out", source, modules, "w4a16", "compressed-tensors", 128)
    assert "first 2 layers of the media tower; `*.mlp.down_proj`" in (tmp_path / "out/README.md").read_text()
    # The source's own card is kept, and the digests of its files are not, which these no longer have.
    assert (tmp_path / "out/README-source.md").read_text() == (source / "README.md").read_text()
    assert not (tmp_path / "out/SHA256SUMS").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scales_are_in_the_dtype_in_which_loaders_have_them(dtype: torch.dtype) -> None:
    """compressed-tensors' in the model's, so that none is rounded after the codes were chosen."""
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    for row in WRITTEN:
        given = torch.tensor(0.1) if row.format.static else None
        packed = pack(weight, row.packed_as(row.format, dtype), weight=True, input_scale=given)
        wanted = torch.float32 if row.dialect == "modelopt" else dtype
        assert row.parts(packed)["weight_scale"].dtype == wanted, row


def test_a_row_of_zeros_has_a_scale_that_loaders_take(quantize: Call, tmp_path: Path) -> None:
    shutil.copytree(TINY, "zeros")
    file, module = tmp_path / f"zeros/transformer/{STEM}.safetensors", "layers.1.mlp_moe_gen.up_proj"
    held = load_file(file)
    held[f"{module}.weight"][3] = 0
    save_file(held, file)
    for row in (row for row in WRITTEN if row.format.outputs):
        named = options(row, 16, tmp_path)
        assert quantize("--model", "zeros", *named, "-o", "out", "--overwrite")[0] == 0
        check_weights(tmp_path / "out", tmp_path / "zeros", TINY_MEDIA, row.format.name, row.dialect, 16)
        assert (plain(tmp_path / "out")[f"{module}.weight_scale"][3] == 1).all()


POLICIES = {
    "keep_text = true": ("unknown key keep_text", "Keys are keep_understanding, keep_first_layers, keep"),
    "keep_understandin = true": ("unknown key keep_understandin", "Did you mean keep_understanding?"),
    "keep_understanding = 1": ("keep_understanding is 1", "true or false"),
    "keep_first_layers = true": ("keep_first_layers is True", "a whole number"),
    "keep_first_layers = 3": ("keep_first_layers is 3, and the model has 2 layers", "0 to 2"),
    "keep_first_layers = 2": ("it keeps every module", "Keep less"),
    "keep = [1]": ("keep is [1]", "a list of modules' names"),
    'keep = ["layers.7.*"]': ("'layers.7.*', and no module has such a name", "Modules are such as layers.0.self_attn"),
    'keep = ["proj_in"]': ("'proj_in', and proj_in stays without it", "Leave it out"),
    'keep = ["*"]': ("it keeps every module", "Keep less"),
    "keep = [": ("it is no TOML", "Correct the file"),
}


@pytest.mark.parametrize("text", POLICIES)
def test_a_policy_that_cannot_be_met(text: str, quantize: Call, tmp_path: Path) -> None:
    Path("policy.toml").write_text(text + "\n")
    code, out, err = quantize("--model", TINY_MODEL, "--format", "fp8", "--policy", "policy.toml", "-o", "out")
    assert code == 2 and not out and err.startswith("error: --policy") and err.count("\n") == 1
    assert all(part in err for part in POLICIES[text])
    assert os.listdir(tmp_path) == ["policy.toml"]


BAD = {
    (
        "--format",
        "fp9",
    ): "knows no such format. It writes modelopt: fp8, fp8_static; compressed-tensors: fp8, int8, w4a16",
    ("--format", "int4"): "no such format. Did you mean w4a16? It writes",
    ("--format", "W4A16"): "no such format. Did you mean w4a16? It writes",
    ("--format", "nvfp4"): "fp8, int8, w4a16. A run with --format nvfp4 quantizes while loading\n",
    ("--format", "mxfp4"): "while loading. The package auto-round writes such a checkpoint, and cosmos3 runs it: docs/",
    ("--format", "int8_static"): "cosmos3 quantize does not write int8_static. It writes modelopt: fp8, fp8_static; "
    "compressed-tensors: fp8, int8, w4a16\n",
    ("--format", "w4a16", "--dialect", "auto-round"): "It writes modelopt, compressed-tensors. The package auto-round",
    ("--format", "fp8_static"): "only a calibration measures",
    (
        "--format",
        "int8",
        "--dialect",
        "modelopt",
    ): "does not write int8 in modelopt. It writes modelopt: fp8, fp8_static\n",
    (
        "--format",
        "fp8",
        "--dialect",
        "gguf",
    ): "--dialect gguf: cosmos3 quantize does not write it. It writes modelopt, ",
    ("--format", "fp8", "--group", "64"): "--group 64: a weight in fp8 has no groups",
    ("--format", "w4a16", "--group", "12"): "--group 12: groups are multiples of 8",
    ("--format", "w4a16"): "groups of 128 do not divide the 64 input features of layers.0.self_attn.add_q_proj. "
    "Choose --group 32\n",
    ("--format", "fp8", "--policy", "none.toml"): "--policy none.toml: No such file",
    ("--format", "fp8", "--revision", "main"): "only a hub repository has revisions",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_error_before_anything_is_written(arguments, quantize: Call, tmp_path: Path) -> None:
    code, out, err = quantize("--model", TINY_MODEL, *arguments, "-o", "out")
    assert code == 2 and not out and err.count("\n") == 1 and BAD[arguments] in err
    assert os.listdir(tmp_path) == []


def test_a_quantized_source_is_refused(quantize: Call) -> None:
    assert quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "first")[0] == 0
    code, _, err = quantize("--model", "first", "--format", "int8", "-o", "second")
    assert code == 2 and "quantized already: fp8 in the dialect modelopt" in err and not Path("second").exists()


def test_where_it_is_not_written(quantize: Call, monkeypatch, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "models/tiny")
    Path("notes").mkdir()
    asked = ("--model", "models/tiny", "--format", "fp8", "-o")
    inside = {
        "models/tiny": "it would be inside the source",
        "models/tiny/fp8": "it would be inside the source",
        "models": "the source",
        "nowhere/fp8": "there is no folder",
        "notes": "it exists. Choose another name, or add --overwrite",
    }
    inside |= dict.fromkeys(("", ".", "..", "/"), "it is no name of a new folder. Choose another name")
    inside |= {"fp8.part": "a folder whose name ends in .part is an unfinished one", "a\udcff": "its path is not UTF-8"}
    inside |= dict.fromkeys(("n" * 252, f"{'n' * 300}/fp8"), "the name cannot be used (")
    before = files_of(tmp_path)
    for output, found in inside.items():
        code, _, err = quantize(*asked, output)
        assert code == 2 and found in err and err.count("\n") == 1, output
    code, _, err = quantize(*asked, "notes", "--overwrite")
    assert code == 2 and "is no checkpoint: it has no model_index.json" in err
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 1_234_567))
    code, _, err = quantize(*asked, "fp8")
    assert code == 2 and "GB more, and the disk has 0.00123 GB free" in err
    assert files_of(tmp_path) == before and not Path("fp8.part").exists()


def test_a_disk_that_fills_up_is_one_error_and_the_same_command_goes_on(quantize: Call, monkeypatch) -> None:
    asked, write = ("--model", TINY_MODEL, "--format", "fp8", "-o", "out"), Job.write

    def full(self, shard, file, tell) -> None:
        write(self, shard, file, tell)
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(Job, "write", full)
        code, _, err = quantize(*asked)
    assert code == 2 and "No space left" in err.splitlines()[-1] and "error: " in err.splitlines()[-1], err
    assert os.listdir() == ["out.part"] and not list(Path("out.part").rglob("*.safetensors"))
    assert quantize(*asked)[0] == 0 and os.listdir() == ["out"]


def test_what_is_written_is_not_packed_again(quantize: Call, run: Call, monkeypatch) -> None:
    assert quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "out")[0] == 0
    packed, pack = [], reference_ops.pack
    monkeypatch.setattr(reference_ops, "pack", lambda *given, **how: packed.append(1) or pack(*given, **how))
    job = ("a cup", "--size", "64x64", "--frames", 1, "--steps", 1, "--backend", "reference", "-o", "a.png")
    code, _, err = run(*job, "--model", os.path.abspath("out"))
    assert code == 0 and not packed, err
    assert run(*job, "--model", TINY_MODEL, "--format", "fp8", "--overwrite")[0] == 0 and packed


def test_overwrite_replaces_a_checkpoint_when_the_new_one_is_whole(quantize: Call, monkeypatch) -> None:
    assert quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "out")[0] == 0
    before = files_of(Path("out"))

    def fails(self, *_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Job, "config", fails)
        code, _, err = quantize("--model", TINY_MODEL, "--format", "int8", "-o", "out", "--overwrite")
        assert code == 130 and "the same command goes on" in err and files_of(Path("out")) == before
    code, _, err = quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "out", "--overwrite")
    assert code == 2 and "is unfinished, and of another format: 'int8' instead of 'fp8'" in err
    assert quantize("--model", TINY_MODEL, "--format", "int8", "-o", "out", "--overwrite")[0] == 0
    made = open_model("out").quantization
    assert made and made.formats == ("int8",) and os.listdir() == ["out"]


def of_embedded() -> Job:
    """In several files."""
    model, policy = open_model("embedded"), with_defaults(Policy(), 0)
    return prepare(model, format="w4a16", dialect=None, group=None, policy=policy, shard_bytes=WIDEST)


def test_files_are_no_larger_than_they_may_be() -> None:
    """But for one with a single tensor."""
    for shard in of_embedded().shards:
        assert sum(spec.nbytes for spec in shard.specs.values()) <= WIDEST or len(shard.pieces) == 1


def test_what_cannot_be_read_back_gets_no_name(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(Asked(model=TINY_MODEL, format="fp8"))
    monkeypatch.setattr(Job, "config", lambda self: json.loads((TINY / "transformer/config.json").read_text()))
    with pytest.raises(InputError, match="so it is quantized, and no file says how"):
        writing.write(job, Path("out"), lambda *_: None)
    assert os.listdir() == ["out.part"]


def _age(file: Path) -> tuple[int, int]:
    return file.stat().st_ino, file.stat().st_mtime_ns


KILLED = """
import sys
from pathlib import Path
from test_quantize import of_embedded
from cosmos3_core.checkpoint.writing import write
write(of_embedded(), Path("out"), lambda stage, done, total: print(stage, done, flush=True))
"""


def test_a_killed_process_is_gone_on_with(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    job = of_embedded()
    assert len(job.shards) > 5
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        third = sum(len(shard.pieces) for shard in job.shards[:3]) + 2  # within the fourth file
        assert process.stdout and any(line == f"tensors {third}\n" for line in process.stdout)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    part = Path("out.part")
    assert not Path("out").exists() and not (part / "model_index.json").exists()
    finished = {shard.name: _age(part / "transformer" / shard.name) for shard in job.shards[:3]}
    # One finished file was damaged since.
    damaged = part / "transformer" / job.shards[1].name
    *before, last = damaged.read_bytes()
    damaged.write_bytes(bytes([*before, last ^ 1]))
    writing.write(of_embedded(), Path("out"), lambda *_: None)
    writing.write(of_embedded(), Path("whole"), lambda *_: None)
    first, second = files_of(Path("out")), files_of(Path("whole"))
    card = "README.md"  # which has the folder's name
    assert {first.pop(card), second.pop(card)} and first.keys() == second.keys()
    assert {k for k in first if first[k] != second[k]} <= {writing.RECORD}
    kept = {name for name, age in finished.items() if _age(Path("out/transformer") / name) == age}
    assert kept == {job.shards[0].name, job.shards[2].name}
    assert sorted(os.listdir()) == ["out", "whole"]
    names = {shard.name for shard in job.shards}
    index = json.loads(Path(f"out/transformer/{STEM}.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == names
    source = source_folder(open_model("embedded"))
    check_weights(Path("out"), source, set(job.modules), "w4a16", "compressed-tensors", 128)


def test_what_changed_since_a_stop_is_as_it_is_now(monkeypatch, tmp_path: Path) -> None:
    """Of what decides no weight: a file that changed, and two that are gone, one of which the model card speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, "model")
    for name in ("NOTES", "GONE", "README.md"):
        Path("model", name).write_text("old")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == writing.CHECK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.write(job_of(Asked(model="model", format="fp8")), Path("out"), stop)
    assert Path("out.part/NOTES").read_text() == "old" and Path("out.part/README-source.md").is_file()
    shard = Path("out.part/transformer") / f"{STEM}.safetensors"
    before = _age(shard)
    Path("model/NOTES").write_text("new")
    Path("model/GONE").unlink()
    Path("model/README.md").unlink()
    writing.write(job_of(Asked(model="model", format="fp8")), Path("out"), lambda *_: None)
    resumed = files_of(Path("out"))
    assert _age(Path("out/transformer") / shard.name) == before
    shutil.rmtree("out")
    writing.write(job_of(Asked(model="model", format="fp8")), Path("out"), lambda *_: None)
    assert resumed == files_of(Path("out")) and "GONE" not in resumed


def test_one_killed_before_its_first_record_is_gone_on_with(quantize: Call, monkeypatch) -> None:
    part = Path("out.part")
    part.mkdir()
    left = part / locks.part(".json")
    left.touch()
    assert quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "out")[0] == 0
    assert not part.exists() and not (Path("out") / left.name).exists()


def test_one_tensor_of_the_source_is_in_memory_at_a_time(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    job, most = of_embedded(), []
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    view = tensors.view_of

    def counted(mapped, info):
        most.append(len(alive))
        alive.add(tensor := view(mapped, info))
        return tensor

    monkeypatch.setattr(tensors, "view_of", counted)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "Weights", lambda model: None)  # which reads all scales
        writing.write(job, Path("out"), lambda *_: None)
    assert len(most) == sum(len(shard.pieces) for shard in job.shards) and max(most) <= 1


def test_two_processes_do_not_write_one_folder(quantize: Call, tmp_path: Path) -> None:
    with writing.alone((tmp_path / "out",)):
        code, _, err = quantize("--model", TINY_MODEL, "--format", "fp8", "-o", "out")
    assert code == 2 and "another run is writing to that name" in err and not Path("out").exists()
