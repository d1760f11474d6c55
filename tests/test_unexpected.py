"""Errors of types that nothing expects, and causes whose advice was wrong: one line that fits, a report where the cause
is unknown, and never a traceback on the terminal."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from command import cosmos3
from safetensors import SafetensorError
from test_bad_input import CONFIG, TOKENIZER, TRANSFORMER, VAE, Damage, removed, saying, sharded
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import open_tensors
from cosmos3_core.cli.unexpected import without_secrets
from cosmos3_core.contract import InputError, RunError
from cosmos3_core.engine.checks import not_finite
from cosmos3_core.settle import questions

PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
)


def too_deep() -> None:
    too_deep()


def of(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), names[0] if names else None, None, names[1] if len(names) > 1 else None)


# What is raised, and a part of the one line. All are known by their cause.
KNOWN: dict[str, tuple[BaseException, str]] = {
    "memory": (MemoryError(), "the machine's memory ran out: there was no more. Ask for a smaller --size"),
    "memory with a text": (MemoryError("Unable to allocate 3 GiB"), "ran out: Unable to allocate 3 GiB. Ask for"),
    "memory on a CPU": (RuntimeError(CPU), "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9. Ask"),
    "memory in C++": (RuntimeError("std::bad_alloc"), "the machine's memory ran out: std::bad_alloc. Ask for"),
    "memory of the system": (of(errno.ENOMEM), "the machine's memory ran out: [Errno 12] Cannot allocate memory. Ask"),
    "memory of a device": (torch.OutOfMemoryError("HIP out of memory.\nTried"), "the device's memory ran out: HIP out"),
    "no right": (of(errno.EACCES, "/root/x"), "/root/x: this user may not read or write it. Change its permissions"),
    "not permitted": (of(errno.EPERM, "/x"), "/x: this user may not do that. Change its permissions"),
    "a full disk": (of(errno.ENOSPC, "/x/y"), "/x/y: the disk is full. Free space there"),
    "a quota": (of(errno.EDQUOT, "/x/y"), "/x/y: your quota of the disk is used up. Free space there"),
    "a disk that is read only": (of(errno.EROFS, "/x"), "/x: its disk can only be read. Write to another disk"),
    "a broken disk": (of(errno.EIO, "/x"), "/x: the disk answers with an error. Check the disk"),
    "a lost network disk": (of(errno.ESTALE, "/x"), "/x: the network disk has lost the file. Mount it again"),
    "too many files": (of(errno.EMFILE, "/x"), "too many files are open in this process. Raise the limit, `ulimit"),
    "too many files in all": (of(errno.ENFILE), "too many files are open on this machine. Close other programs"),
    "a long name": (of(errno.ENAMETOOLONG, "aa"), "aa: the name is too long. Choose a shorter name"),
    "a file that went": (of(errno.ENOENT, "a", "b"), "a and b: it is gone. Put it back"),
    "a file for a folder": (of(errno.ENOTDIR, "a/b"), "a/b: a part of its path is a file"),
    "a full disk by a library": (
        RuntimeError("I/O error: No space left on device (os error 28)"),
        "(os error 28). Free",
    ),
    "a safetensors file": (SafetensorError("Error while deserializing: x"), "a safetensors file cannot be read (Error"),
    "a package": (ModuleNotFoundError("No module named 'av'", name="av"), "the package av cannot be used (No module"),
}
# For these a report is written.
UNKNOWN: dict[str, Callable[[], object]] = {
    "a recursion": too_deep,
    "an overflow": lambda: float(10**400),
    "a division": lambda: 1 // 0,
    "an encoding": lambda: "“".encode("ascii"),
    "a decoding": lambda: b"\xff".decode(),
    "an assertion": lambda: (_ for _ in ()).throw(AssertionError),
    "a key": lambda: {}["x"],
    "a type": lambda: None + 1,
    "an attribute": lambda: None.x,
    "a runtime error": lambda: (_ for _ in ()).throw(RuntimeError("odd\nforged: line\x1b[2J")),
    "a socket": lambda: (_ for _ in ()).throw(ConnectionResetError("by the peer")),
    "an end of file": lambda: (_ for _ in ()).throw(EOFError()),
    "a group": lambda: (_ for _ in ()).throw(ExceptionGroup("two", [ValueError("a"), KeyError("b")])),
    "a panic": lambda: (_ for _ in ()).throw(PanicException("index out of bounds")),
    "an error without a text": lambda: (_ for _ in ()).throw(Exception()),
}


@pytest.fixture
def raises(capsys, monkeypatch, tmp_path):
    """A command in which this is raised; its (code, stdout, lines on stderr)."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def call(raising: Callable[[], object], *arguments: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(questions, "backends", lambda *_: raising())
        code, out, err = cosmos3(capsys, monkeypatch, *(arguments or ("backends",)))
        return code, out, err.splitlines()

    return call


@pytest.mark.parametrize("error, said", KNOWN.values(), ids=KNOWN)
def test_a_cause_that_is_known_is_a_line(raises, tmp_path, error, said):
    code, out, (line,) = raises(lambda: (_ for _ in ()).throw(error))
    assert (code, out) == (1, "") and line.startswith("error: ") and said in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raising", UNKNOWN.values(), ids=UNKNOWN)
def test_a_cause_that_is_not_known_is_a_line_and_a_report(raises, tmp_path, raising):
    code, out, (*empty, line) = raises(raising)
    assert (code, out) == (1, "") and not any(empty) and "Traceback" not in line and "\x1b" not in line
    found = re.fullmatch(
        r"error: this is a fault of cosmos3 or of a library \((.*)\)\. A report .* is in (\S+); .*", line
    )
    report = Path(found[2])
    assert report.parent == tmp_path and report.stat().st_mode & 0o777 == 0o600
    text = report.read_text()
    assert (
        "command: cosmos3 backends" in text
        and "Traceback" in text
        and "torch " in text
        and found[1].split(":")[0] in text
    )


def test_a_report_that_cannot_be_written(raises, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    code, out, (line,) = raises(lambda: 1 // 0)
    assert (code, out) == (1, "") and "no report of it could be written (No such file or directory)" in line


SECRETS = {
    "a token of the hub": "hf_abcdefghijklmnop",
    "a header": "Authorization: Bearer abc.def-ghi",
    "a variable": "HF_TOKEN=abcdefgh",
    "a key in JSON": '{"api_key": "abcdefgh"}',
    "an option": "--token abcdefgh",
    "a password of an address": "https://user:abcdefgh@proxy:8080/x",
    "a signed address": "https://x/y?X-Amz-Signature=abcdefgh&X-Amz-Credential=abcdefgh",
    "another signed address": "https://x/y?Policy=abcdefgh&Signature=abcdefgh&Key-Pair-Id=abcdefgh",
    "a password": "password = abcdefgh",
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_report_has_no_secrets(text):
    left = without_secrets(f"before {text} after")
    assert (
        not re.search("abc", left) and left.startswith("before ") and left.endswith(" after") and "[left out]" in left
    )


def test_a_report_has_neither_this_users_token_nor_that_of_the_command_line(raises, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "plain-words-of-a-token")
    monkeypatch.setattr(sys, "argv", [])

    def raising():
        sys.argv += ["--set", "token=plain", "hf_abcdefghijk"]
        raise RuntimeError("sent plain-words-of-a-token")

    _, _, (line,) = raises(raising)
    (report,) = tmp_path.iterdir()
    for text in (line, report.read_text()):
        assert "plain-words" not in text and "hf_abc" not in text
    assert "a prompt" not in line


# ---- advice that fits -----------------------------------------------------------------------------------------------


def renamed(folder: str, name: str) -> Damage:
    def damage(model: Path) -> None:
        (model / folder / "diffusion_pytorch_model.safetensors").rename(model / folder / name)

    return damage


def stale(model: Path) -> None:
    """A whole file, and beside it an index whose shards went."""
    whole = (model / TRANSFORMER).read_bytes()
    sharded(lambda folder, shards: [(folder / shard).unlink() for shard in set(shards.values())])(model)
    (model / TRANSFORMER).write_bytes(whole)


def dangling(path: str) -> Damage:
    def damage(model: Path) -> None:
        (model / path).unlink()
        (model / path).symlink_to("../../blobs/0123")

    return damage


ADVICE: dict[str, tuple[Damage, str]] = {
    "a variant": (
        renamed("transformer", "diffusion_pytorch_model.bf16.safetensors"),
        "there is diffusion_pytorch_model.bf16.safetensors, a variant, and no diffusion_pytorch_model.safetensors. "
        "Rename it to diffusion_pytorch_model.safetensors",
    ),
    "a variant of the VAE": (renamed("vae", "diffusion_pytorch_model.fp16.safetensors"), "a variant, and no diffusion"),
    "shards of a variant": (
        lambda model: (
            (model / TRANSFORMER).unlink(),
            (model / "transformer/diffusion_pytorch_model.safetensors.index.bf16.json").write_text("{}"),
        ),
        "the index of a variant",
    ),
    "a stale index": (stale, "stands beside it. Delete the index diffusion_pytorch_model.safetensors.index.json"),
    "a link to weights that went": (
        dangling(TRANSFORMER),
        "it is a link to ../../blobs/0123, and nothing is there. Copy",
    ),
    "a link to a VAE that went": (dangling(VAE), "it is a link to ../../blobs/0123, and nothing is there. Copy"),
    "a link to a config that went": (dangling(CONFIG), "it is a link to ../../blobs/0123, and nothing is there. Copy"),
    "a link to a tokenizer that went": (dangling(TOKENIZER), "nothing is there. Copy the files that its links lead to"),
    "a folder that went": (removed(VAE), "neither diffusion_pytorch_model.safetensors nor its index"),
    "a tokenizer that panics as it loads": (
        saying(TOKENIZER, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "tokenizer.json cannot be read (its library gave up: Precompiled",
    ),
    "a tokenizer that panics on a text": (
        saying(TOKENIZER, normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "x"}),
        "the tokenizer fails (its library gave up: index out of bounds",
    ),
    "a tokenizer that divides by zero": (
        saying(TOKENIZER, pre_tokenizer={"type": "FixedLength", "length": 0}),
        "the tokenizer fails (its library gave up: chunk size must be non-zero",
    ),
    "a tokenizer without a word": (
        saying(TOKENIZER, model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]], "byte_fallback": False}),
        "the tokenizer fails (Encountered an unknown token",
    ),
}


@pytest.mark.parametrize("damage, said", ADVICE.values(), ids=ADVICE)
def test_advice_fits_the_cause(tmp_path, capfd, monkeypatch, damage, said):
    shutil.copytree(TINY, tmp_path / "model")
    damage(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    command = ["run", "a cup", "--size", "64x64", "--steps", "1", "--backend", "reference", "-o", "a.png"]
    code, out, err = cosmos3(capfd, monkeypatch, *command, "--model", "model")
    *progress, message = err.splitlines()
    assert (code, out) == (2, "") and message.startswith("error: ") and said in message
    assert progress in ([], ["check weights"]) and not Path("a.png").exists()


def test_a_checkpoint_that_this_user_may_not_read(tmp_path):
    """As root, who may read all, only a child that is another user sees it."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    tests = {
        "model": lambda path: open_model(path),
        "transformer": lambda path: open_model(path),
        "vae": lambda path: open_tensors(open_model(path).repository, "vae"),
        CONFIG: lambda path: open_model(path),
        TRANSFORMER: lambda path: open_tensors(open_model(path).repository, "transformer"),
    }
    for name, opens in tests.items():
        target = model if name == "model" else model / name
        mode = target.stat().st_mode
        target.chmod(0)
        said = _as_nobody(lambda opens=opens: opens(str(model)))
        target.chmod(mode)
        assert "InputError" in said and ("this user may not read it" in said or "Permission denied" in said), (
            name,
            said,
        )


def _as_nobody(call: Callable[[], object]) -> str:
    """What another user gets."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            call()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("fails", [RuntimeError("unable to mmap"), OSError(errno.EIO, "Input/output error")])
def test_a_weight_file_that_changes_during_a_run(monkeypatch, fails):
    files = open_tensors(open_model(TINY_MODEL).repository, "vae")

    def mapped(*_, **__):
        raise fails

    monkeypatch.setattr("torch.UntypedStorage.from_file", mapped)
    with pytest.raises(RunError, match="it was whole when this run began and cannot be read now"):
        list(files.read(files.tensors))


HUB = {
    "a token with quotes": (lambda: "Bearer “hf_x”".encode("latin-1"), "the token that is sent to the hub holds the"),
    "a token with a long dash": (
        lambda: "Bearer hf—x".encode("latin-1"),
        "character '—', which no token has. Copy the",
    ),
    "no right to the cache": (
        lambda: (_ for _ in ()).throw(of(errno.EACCES, "/c/x")),
        "this user may not use /c/x. Change",
    ),
    "a full disk": (
        lambda: (_ for _ in ()).throw(of(errno.ENOSPC, "/c/x")),
        "is full. Free space there, or set HF_HOME",
    ),
    "a broken disk": (lambda: (_ for _ in ()).throw(of(errno.EIO, "/c/x")), "the download failed: "),
}


@pytest.mark.parametrize("raising, said", HUB.values(), ids=HUB)
def test_what_goes_wrong_with_the_hub_and_its_cache(capsys, monkeypatch, raising, said):
    monkeypatch.setattr(huggingface_hub, "resolve_revision", lambda *_, **__: raising())
    code, out, err = cosmos3(capsys, monkeypatch, "plan", "a cup", "--model", "nobody/nothing")
    assert (code, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_a_home_of_the_hub_that_is_a_file(tmp_path):
    (tmp_path / "home").write_text("")
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    program = [sys.executable, "-B", "-m", "cosmos3", "plan", "a", "--model", "nobody/nothing"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("setting", ["HF_HOME", "HF_HUB_CACHE"])
@pytest.mark.parametrize("damage", ["a file", "below a file", "a pipe", "not ours", "not ours, and new"])
def test_a_folder_of_the_hub_that_cannot_be_used(tmp_path, monkeypatch, setting, damage):
    place = tmp_path / "place"
    folder = place / "below" if damage in ("below a file", "not ours, and new") else place
    if "file" in damage:
        place.write_text("")
    elif damage == "a pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
        monkeypatch.setattr(os, "access", lambda path, mode: path != place)
    home = folder if setting == "HF_HOME" else tmp_path
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub" if home == folder else folder))
    with pytest.raises(InputError, match=f"{place}.* {setting} to a folder") as refused:
        open_repository("nobody/nothing")
    assert ("this user may not use" in refused.value.found) == ("not ours" in damage)


def test_a_cache_that_is_read_only_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "resolve_revision", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ZeroDivisionError):
        open_repository("nobody/nothing")


def test_values_that_are_not_finite_on_the_reference_itself():
    for backend, formats, advice in (
        ("reference", {}, "with `dtype` float32"),
        ("reference", {"pack_linear": "fp8"}, "with `backend` reference"),
        ("acme", {}, "with `backend` reference"),
    ):
        plan = SimpleNamespace(backend=SimpleNamespace(name=backend), formats=formats)
        assert advice in not_finite(3, plan).next_step.replace("Run again ", "")
