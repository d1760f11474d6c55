"""Opening a checkpoint: from the wheel, from a folder, from a hub that is a process on this machine.

What talks to the hub runs in a process of its own, because huggingface_hub reads its settings when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub

from cosmos3_core.checkpoint import repository
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import save_tensors
from cosmos3_core.contract.errors import InputError

ROOT = Path(__file__).parents[1]
NANO = "nvidia/Cosmos3-Nano"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"
# argv: the arguments of open_repository as JSON, then an expression. Prints its value, or the error's three parts.
CHILD = """
import json, sys
from cosmos3_core.contract.errors import InputError
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import open_tensors
try:
    repository = open_repository(*json.loads(sys.argv[1]))
    print(json.dumps(eval(sys.argv[2]), default=str))
except InputError as error:
    print(json.dumps([error.asked, error.found, error.next_step]))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "Cosmos3OmniPipeline"}')
    (folder / "transformer" / "config.json").write_text('{"hidden_size": 4096}')
    (folder / "transformer" / "notes.txt").write_text("déjà vu", encoding="utf-8")
    return folder


class User:
    """Someone with a download cache, using the hub at `endpoint`."""

    def __init__(self, endpoint: str, home: Path):
        env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        self.env = env | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}

    def start(self, *model: str, then: str, offline: bool = False, stderr: int | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(model), then],
            cwd=ROOT,
            env=self.env | ({"HF_HUB_OFFLINE": "1"} if offline else {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def opens(self, *model: str, then: str = "repository.revision", offline: bool = False):
        said, _ = self.start(*model, then=then, offline=offline).communicate(timeout=60)
        return json.loads(said)


@pytest.fixture
def user(hub: FakeHub, tmp_path: Path) -> User:
    return User(hub.url, tmp_path / "home")


def downloads(hub: FakeHub) -> list[tuple[str, str | None]]:
    """(file in its repository, Range header) of every download so far."""
    gets = [(path, ranged) for method, path, ranged in hub.requests if method == "GET" and "/resolve/" in path]
    return [("/".join(path.split("/")[5:]), ranged) for path, ranged in gets]


# The hub.

READ_ALL = """[
    repository.revision,
    repository.read_json("model_index.json"),
    repository.read_json("transformer/config.json"),
    repository.read_text("transformer/notes.txt"),
    repository.read_json("modular_model_index.json"),
    repository.names("transformer"),
    repository.names("sound_tokenizer"),
]"""


def test_a_second_open_takes_everything_from_the_cache(hub, user, checkpoint):
    commit = hub.push(NANO, checkpoint)
    read = [
        commit,
        {"_class_name": "Cosmos3OmniPipeline"},
        {"hidden_size": 4096},
        "déjà vu",
        None,
        ["config.json", "notes.txt"],
        None,
    ]
    assert user.opens(NANO, then=READ_ALL) == read
    files = [("model_index.json", None), ("transformer/config.json", None), ("transformer/notes.txt", None)]
    assert downloads(hub) == files
    assert user.opens(NANO, then=READ_ALL) == read
    assert downloads(hub) == files

    asked = len(hub.requests)
    assert user.opens(NANO, then=READ_ALL, offline=True) == read
    assert len(hub.requests) == asked


def test_a_revision_is_a_branch_or_a_commit(hub, user, checkpoint):
    bf16 = hub.push(NANO, checkpoint)
    (checkpoint / "transformer" / "config.json").write_text('{"hidden_size": 8}')
    fp8 = hub.push(NANO, checkpoint, ref="fp8")
    read = "[repository.revision, repository.read_json('transformer/config.json')['hidden_size']]"
    assert user.opens(NANO, then=read) == [bf16, 4096]
    assert user.opens(NANO, "fp8", then=read) == [fp8, 8]
    assert user.opens(NANO, fp8, then=read) == [fp8, 8]


def test_all_files_come_from_one_commit_while_the_branch_moves(hub, user, checkpoint):
    first = hub.push(NANO, checkpoint)
    read = "[print(flush=True), input(), repository.revision, repository.read_json('transformer/config.json')]"
    process = user.start(NANO, then=read)
    process.stdout.readline()  # the repository is open, the config not yet read
    (checkpoint / "transformer" / "config.json").write_text('{"hidden_size": 1}')
    second = hub.push(NANO, checkpoint)
    said, _ = process.communicate("\n", timeout=60)
    assert json.loads(said)[2:] == [first, {"hidden_size": 4096}]
    assert user.opens(NANO) == second


def test_a_cut_download_resumes_where_it_stopped(hub, user, checkpoint):
    chunk = 10 * 2**20  # what huggingface_hub writes at a time
    weights = os.urandom(chunk + 2**20)
    (checkpoint / "vae").mkdir()
    (checkpoint / "vae" / "model.safetensors").write_bytes(weights)
    hub.push(NANO, checkpoint)
    hub.cut["vae/model.safetensors"] = chunk + 2**19
    [file] = user.opens(NANO, then="repository.fetch(['vae/model.safetensors'])")
    assert Path(file).read_bytes() == weights
    assert downloads(hub)[1:] == [("vae/model.safetensors", None), ("vae/model.safetensors", f"bytes={chunk}-")]


def test_a_download_shows_its_progress_and_opening_shows_none(hub, user, checkpoint):
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")  # progress bars are for terminals
    hub.push(NANO, checkpoint)

    def shown(then: str) -> str:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        user.start(NANO, then=then, stderr=theirs).communicate(timeout=60)
        os.write(theirs, b"END")
        text = b""
        while not text.endswith(b"END"):
            text += os.read(ours, 2**16)
        os.close(ours)
        os.close(theirs)
        return text.decode().removesuffix("END")

    user.opens(NANO, then="repository.path('model_index.json')")
    assert shown("repository.revision") == ""
    assert "notes.txt: 100%" in shown("repository.fetch(['transformer/notes.txt'])")


def test_a_cache_that_cannot_be_written(hub, checkpoint):
    hub.push(NANO, checkpoint)
    _, found, next_step = User(hub.url, checkpoint / "model_index.json").opens(NANO)  # a file, not a folder
    assert found.endswith(f"and {checkpoint / 'model_index.json'} is a file")
    assert found.startswith(f"the cache would be {checkpoint}/model_index.json/hub") and "HF_HOME" in next_step


def test_sharded_weights_are_downloaded_and_read(hub, user, checkpoint):
    tensors = {name: torch.full((2, 2), float(value)) for value, name in enumerate("abc")}
    save_tensors(checkpoint / "vae", tensors, max_shard_bytes=16)
    hub.push(NANO, checkpoint)
    values = "{name: tensor.mean().item() for name, tensor in open_tensors(repository, 'vae').read('abc')}"
    assert user.opens(NANO, then=values) == {"a": 0, "b": 1, "c": 2}
    assert user.opens(NANO, then=values, offline=True) == {"a": 0, "b": 1, "c": 2}


def test_a_bad_file_of_a_repository_says_how_to_get_a_good_one(hub, user, checkpoint):
    commit = hub.push(NANO, checkpoint)
    asked, _, next_step = user.opens(NANO, then="repository.fetch(['transformer/config.json', 'vae/a.safetensors'])")
    assert asked == f"{NANO}/vae/a.safetensors"
    assert next_step == f"Choose another `revision`: {commit} does not have it"

    (checkpoint / "transformer" / "config.json").write_text("{")
    commit = hub.push(NANO, checkpoint)
    asked, _, next_step = user.opens(NANO, then="repository.read_json('transformer/config.json')")
    assert asked == f"{NANO}/transformer/config.json"
    assert f"hf download {NANO} transformer/config.json --revision {commit} --force-download" in next_step


def test_offline_a_file_that_was_never_downloaded_does_not_seem_absent(hub, user, checkpoint):
    hub.push(NANO, checkpoint)
    user.opens(NANO)
    assert user.opens(NANO, then="repository.names('transformer')", offline=True) == ["config.json", "notes.txt"]
    assert user.opens(NANO, then="repository.read_json('modular_model_index.json')", offline=True) is None
    asked, found, next_step = user.opens(NANO, then="repository.read_json('transformer/config.json')", offline=True)
    assert NANO in asked and "HF_HUB_OFFLINE" in found and "without HF_HUB_OFFLINE" in next_step


def test_offline_and_not_cached(hub, user, checkpoint):
    commit = hub.push(NANO, checkpoint)
    for model in ([NANO], [NANO, commit]):
        asked, found, next_step = user.opens(*model, offline=True)
        assert asked == " `revision` ".join([f"`model` {NANO}", *model[1:]])
        assert "not everything it needs is in the local cache" in found
        assert "without HF_HUB_OFFLINE" in next_step
    assert hub.requests == []


def test_no_network(hub, user, checkpoint, tmp_path):
    commit = hub.push(NANO, checkpoint)
    user.opens(NANO)
    stranded = User("http://127.0.0.1:9", tmp_path / "home")  # the discard port: nothing listens
    assert stranded.opens(NANO) == commit
    asked, found, next_step = stranded.opens("nvidia/Cosmos3-Super")
    assert asked == "`model` nvidia/Cosmos3-Super"
    assert "http://127.0.0.1:9 cannot be reached" in found and "refused" in found
    assert next_step.startswith("Check the network")


def test_a_cache_without_the_list_of_files_is_not_guessed_from(hub, user, checkpoint, tmp_path):
    hub.push(NANO, checkpoint)
    user.opens(NANO)
    for listing in (tmp_path / "home").rglob("trees/*.json"):  # older versions of huggingface_hub wrote none
        listing.unlink()
    asked, _, next_step = user.opens(NANO, offline=True)
    assert asked == f"`model` {NANO}"
    assert "pass the folder that holds the files" in next_step


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("nvidia/Cosmos-Nano", "Did you mean nvidia/Cosmos3-Nano?"),
        ("nvidia/cosmos3-super-text2img-4step", "Did you mean nvidia/Cosmos3-Super-Text2Image-4Step?"),
        ("acme/unrelated", "one of nvidia/Cosmos3-Nano, "),
    ],
)
def test_an_unknown_repository(user, asked, meant):
    said, found, next_step = user.opens(asked)
    assert said == f"`model` {asked}"
    assert "no such model" in found and "no folder here" in found
    assert meant in next_step and "hf auth login" in next_step


def test_an_unknown_revision(hub, user, checkpoint):
    hub.push(NANO, checkpoint)
    for revision in ("fp9", "0" * 40):
        asked, found, next_step = user.opens(NANO, revision)
        assert asked == f"`model` {NANO} `revision` {revision}"
        assert "no such branch, tag or commit" in found
        assert f"{hub.url}/{NANO}/tree/main" in next_step


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository(hub, user, checkpoint, status):
    hub.push(NANO, checkpoint)
    hub.gated[NANO] = status
    asked, found, next_step = user.opens(NANO)
    assert asked == f"`model` {NANO}" and "gated" in found
    assert f"{hub.url}/{NANO}" in next_step and "hf auth login" in next_step


def test_a_hub_that_is_down(hub, user, checkpoint):
    commit = hub.push(NANO, checkpoint)
    hub.down = 503
    asked, found, next_step = user.opens(NANO)
    assert asked == f"`model` {NANO}" and "answered 503" in found and "later" in next_step
    hub.down = None
    user.opens(NANO)
    hub.down = 503
    assert user.opens(NANO) == commit


# Folders, and what is neither.


def test_a_folder(checkpoint):
    opened = open_repository(str(checkpoint))
    assert (opened.name, opened.revision) == (str(checkpoint), None)
    assert opened.read_json("transformer/config.json") == {"hidden_size": 4096}
    assert opened.read_text("transformer/notes.txt") == "déjà vu"
    assert opened.read_json("modular_model_index.json") is None
    assert opened.path("vae/config.json") is None
    assert opened.names("transformer") == ["config.json", "notes.txt"]
    assert opened.names("vae") is None
    assert opened.fetch(["model_index.json"]) == [checkpoint / "model_index.json"]


def test_a_folder_goes_before_a_hub_id_of_the_same_name(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    checkpoint.rename("org")
    assert open_repository("org/transformer").read_json("config.json") == {"hidden_size": 4096}


def test_the_embedded_checkpoint_is_part_of_the_package(checkpoint, monkeypatch):
    checkpoint.rename(checkpoint.with_name("embedded"))
    monkeypatch.setattr(repository, "ASSETS", checkpoint.parent)
    opened = open_repository("embedded")
    assert (opened.name, opened.revision) == ("embedded", None)
    assert opened.read_json("transformer/config.json") == {"hidden_size": 4096}
    monkeypatch.setattr(repository, "ASSETS", checkpoint.parent / "lost")
    with pytest.raises(InputError, match="Install cosmos3 again"):
        open_repository("embedded")


def test_a_name_that_is_gone_says_what_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is called embedded now: `model` embedded"):
        open_repository("tiny")
    (tmp_path / "tiny").mkdir()  # a folder of one's own may have any name
    assert open_repository("tiny").name == "tiny"


def test_only_a_hub_repository_has_revisions(checkpoint):
    for model in ("embedded", str(checkpoint)):
        with pytest.raises(InputError, match="`revision` fp8: .* only a hub repository has revisions"):
            open_repository(model, "fp8")


@pytest.mark.parametrize(
    "model", ["", "./missing", "../missing", "/missing/checkpoint", "~/missing", "a/b/c", "a b/c", "x\\y", "a/b--c"]
)
def test_neither_a_folder_nor_a_hub_id(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        open_repository(model)
    assert raised.value.asked == f"`model` {model}"
    assert "no such folder" in raised.value.found and "org/name" in raised.value.found
    assert "embedded, a folder, or one of nvidia/Cosmos3-Nano" in raised.value.next_step


def test_a_prompt_in_place_of_a_model():
    with pytest.raises(InputError, match="File name too long"):
        open_repository("a robot arm pours coffee, " * 20)


@pytest.mark.parametrize("model", ["nano", "Cosmos3-Nano", "https://huggingface.co/nvidia/Cosmos3-Nano"])
def test_a_name_that_is_nearly_a_hub_id(model):
    with pytest.raises(InputError, match="Did you mean nvidia/Cosmos3-Nano?"):
        open_repository(model)


def test_a_file_is_not_a_checkpoint(checkpoint):
    with pytest.raises(InputError, match="this is a file. Pass the folder"):
        open_repository(str(checkpoint / "model_index.json"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "expected, this is a list"),
        (b"null", "expected, this is a NoneType"),
        (b"\xff\xfe{}", "not UTF-8"),
        (LFS_POINTER.encode(), "git-LFS pointer"),
    ],
)
def test_a_json_file_that_is_no_json_object(checkpoint, content, found):
    (checkpoint / "transformer" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=found) as raised:
        open_repository(str(checkpoint)).read_json("transformer/config.json")
    assert raised.value.asked == f"{checkpoint}/transformer/config.json"


def test_a_clone_without_git_lfs_says_what_to_type(checkpoint):
    (checkpoint / "transformer" / "model.safetensors").write_text(LFS_POINTER)
    with pytest.raises(InputError, match="git lfs pull") as raised:
        open_repository(str(checkpoint)).fetch(["transformer/model.safetensors"])
    assert "transformer/model.safetensors" in raised.value.asked


def test_fetching_a_file_that_is_not_there(checkpoint):
    with pytest.raises(InputError, match="vae/model.safetensors: the checkpoint has no such file"):
        open_repository(str(checkpoint)).fetch(["model_index.json", "vae/model.safetensors"])
