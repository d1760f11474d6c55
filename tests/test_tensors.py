"""Reading and writing weights: what is good comes back bit for bit, what is damaged is named before it does harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import gguf_files
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file, save_file

from cosmos3_core.checkpoint import tensors
from cosmos3_core.checkpoint.gguf import open_gguf
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import TensorFiles, open_tensors, save_tensors
from cosmos3_core.contract.errors import InputError, RunError

ROOT = Path(__file__).parents[1]
SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"
SHARDS = [f"diffusion_pytorch_model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "blocks.0.weight": torch.randn(6, 4, generator=generator).bfloat16(),
        "blocks.0.bias": torch.randn(6, generator=generator),
        "blocks.1.weight": torch.randn(6, 4, generator=generator).half(),
        "blocks.1.scale": torch.tensor(0.5, dtype=torch.float64),
        "blocks.1.packed": torch.randn(6, 4, generator=generator).to(torch.float8_e4m3fn),
        "blocks.1.ids": torch.arange(5),
    }


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """The empty `vae` folder of the checkpoint at `tmp_path`."""
    folder = tmp_path / "vae"
    folder.mkdir()
    return folder


@pytest.fixture
def sharded(vae: Path) -> Path:
    """The `vae` folder with one float32 tensor of 16 bytes per shard: a, b, c."""
    save_tensors(vae, {name: torch.full((4,), float(ord(name))) for name in "abc"}, max_shard_bytes=16)
    return vae


def opened(vae: Path) -> TensorFiles:
    return open_tensors(open_repository(str(vae.parent)), "vae")


def read_all(vae: Path) -> dict[str, torch.Tensor]:
    files = opened(vae)
    return {name: tensor.clone() for name, tensor in files.read(files.tensors)}


def refused(vae: Path) -> InputError:
    """The error of opening the weights and, if that goes well, reading them."""
    with pytest.raises(InputError) as raised:
        read_all(vae)
    return raised.value


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    def described(tensors: dict[str, torch.Tensor]) -> dict[str, tuple]:
        return {
            name: (tensor.dtype, tensor.shape, tensor.detach().reshape(-1).view(torch.uint8).tolist())
            for name, tensor in tensors.items()
        }

    return described(found) == described(expected)


# What is written comes back.


def test_tensors_come_back_bit_for_bit(vae):
    awkward = {"column": torch.nn.Parameter(torch.randn(3, 5).T), "empty": torch.zeros(0, 3), "ümlaut": torch.ones(1)}
    tensors = some_tensors() | awkward
    save_tensors(vae, tensors)
    assert [file.name for file in vae.iterdir()] == [SINGLE]
    assert same(read_all(vae), tensors)
    assert same(load_file(vae / SINGLE), tensors)


def test_tensors_lie_at_multiples_of_their_element_size(vae):
    save_tensors(vae, {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(3).half(), "c": torch.ones(3)})
    for name, tensor in opened(vae).read("abc"):
        assert tensor.data_ptr() % tensor.element_size() == 0, name


@pytest.mark.parametrize("length", [1, 3, 7])
def test_tensors_between_multiples_of_their_element_size_come_back(vae, length):
    """Other programs write them as they come."""
    written = {"a": torch.arange(length, dtype=torch.uint8), "b": torch.randn(3, 2), "c": torch.tensor(0.5).double()}
    written["none"] = torch.empty(0, 4)
    header, data = {}, b""
    for name, tensor in written.items():
        begin, kind = len(data), {1: "U8", 4: "F32", 8: "F64"}[tensor.element_size()]
        data += tensor.numpy().tobytes()
        header[name] = {"dtype": kind, "shape": [*tensor.shape], "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    (vae / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert same(read_all(vae), written)


def test_a_file_cut_short_after_its_header_was_read(vae):
    save_tensors(vae, some_tensors())
    files = opened(vae)
    os.truncate(vae / SINGLE, (vae / SINGLE).stat().st_size - 1)
    with pytest.raises(RunError, match="it was whole when this run began and cannot be read now"):
        list(files.read(files.tensors))


def test_torchs_default_device_is_not_where_files_lie(vae):
    save_tensors(vae, some_tensors())
    with torch.device("meta"):
        found = read_all(vae)
    assert same(found, some_tensors())


def gone(file: Path) -> None:
    file.unlink()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("becomes", [gone, a_pipe, a_folder])
def test_a_file_that_is_none_when_it_is_read(vae, becomes):
    """A pipe would be waited for forever."""
    save_tensors(vae, some_tensors())
    files = opened(vae)
    becomes(vae / SINGLE)
    with pytest.raises(RunError, match="it was whole when this run began and cannot be read now"):
        list(files.read(files.tensors))


@pytest.mark.parametrize("becomes", [gone, a_pipe, a_folder])
def test_a_gguf_file_that_is_none_when_it_is_read(vae, becomes):
    file = vae / "m.gguf"
    gguf_files.write(file, {"x": gguf_files.plain(torch.ones(2, 32))})
    files = open_gguf(open_repository(str(vae.parent)), "vae", file.name)
    becomes(file)
    with pytest.raises(InputError, match="m.gguf: it cannot be read"):
        list(files.read(["x"]))


def test_the_header_is_known_before_a_weight_is_read(vae):
    save_tensors(vae, some_tensors())
    info = opened(vae).tensors["blocks.0.weight"]
    assert (info.shape, info.dtype, info.nbytes) == ((6, 4), torch.bfloat16, 48)
    assert info.file == vae / SINGLE


REPEAT = """
import sys
from pathlib import Path
import torch
from cosmos3_core.checkpoint.tensors import save_tensors
tensors = {name: torch.arange(4.0) for name in "dacb"} | {"wide": torch.arange(4), "half": torch.arange(4).half()}
save_tensors(Path(sys.argv[1]), tensors, max_shard_bytes=40)
"""


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    # Two processes, since what Python and Rust hash comes in another order in each.
    for folder in ("one", "other"):
        subprocess.run([sys.executable, "-c", REPEAT, str(tmp_path / folder)], cwd=ROOT, check=True)
    one, other = ({file.name: file.read_bytes() for file in (tmp_path / f).iterdir()} for f in ("one", "other"))
    assert one == other and len(one) > 2


def test_shards_and_index_are_laid_out_as_on_the_hub(vae):
    tensors = {"b": torch.zeros(2), "a": torch.zeros(2), "c": torch.zeros(4), "d": torch.zeros(1)}
    save_tensors(vae, tensors, max_shard_bytes=16)
    assert sorted(file.name for file in vae.iterdir()) == [*SHARDS, INDEX]
    weight_map = {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1], "d": SHARDS[2]}
    index = {"metadata": {"total_size": 36}, "weight_map": weight_map}
    assert (vae / INDEX).read_text() == json.dumps(index, indent=2) + "\n"
    assert same(read_all(vae), tensors)


class Net(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 4):
        super().__init__()
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width)


@pytest.mark.parametrize("max_shard_bytes", [10_000, 100])
def test_diffusers_loads_them(vae, max_shard_bytes):
    net = Net()
    net.save_config(vae)
    save_tensors(vae, net.state_dict(), max_shard_bytes=max_shard_bytes)
    assert (vae / INDEX).exists() == (max_shard_bytes == 100)
    assert same(Net.from_pretrained(vae).state_dict(), net.state_dict())


@pytest.mark.parametrize("max_shard_size", ["10MB", "100B"])
def test_what_diffusers_saved_is_read(vae, max_shard_size):
    net = Net()
    net.save_pretrained(vae, max_shard_size=int(max_shard_size[:-1]) if max_shard_size == "100B" else max_shard_size)
    assert (vae / INDEX).exists() == (max_shard_size == "100B")
    assert same(read_all(vae), net.state_dict())


@pytest.mark.parametrize("how", ["another in its place", "written to"])
def test_a_file_without_digests_is_the_same_file_in_every_pass(vae, how):
    """Layers that lie in files are read in every pass, and half a run would be another model's of the same shapes."""
    vae.mkdir(exist_ok=True)
    file = vae / "diffusion_pytorch_model.safetensors"
    save_file(some_tensors(), file)
    files = opened(vae)
    for _ in range(2):
        assert same(dict(files.read(files.tensors)), some_tensors())
    if how == "written to":
        with file.open("r+b") as stream:
            stream.seek(-1, 2)
            last = stream.read()
            stream.seek(-1, 2)
            stream.write(last)
        later = file.stat().st_mtime_ns + 1000  # a file system's clock may stand still meanwhile
        os.utime(file, ns=(later, later))
    else:
        save_file(some_tensors(), vae / "other")
        os.replace(vae / "other", file)
    with pytest.raises(RunError, match="whole when this run began and is another file now"):
        next(files.read(files.tensors))


def test_weights_called_model_are_found(vae):
    save_tensors(vae, some_tensors(), stem="model")
    assert same(read_all(vae), some_tensors())


def test_saving_does_not_mix_with_what_is_there(sharded):
    with pytest.raises(InputError, match="already holds .*-00001-of-00003.safetensors. Choose an empty folder"):
        save_tensors(sharded, some_tensors())


def test_some_tensors_are_read_in_file_order(sharded):
    names = [name for name, _ in opened(sharded).read(["c", "a"])]
    assert names == ["a", "c"]


def test_reading_a_tensor_that_is_not_there(sharded):
    with pytest.raises(InputError, match="vae: the weights do not hold x, y. "):
        list(opened(sharded).read(["y", "a", "x"]))


# What is damaged is named.


def test_no_single_flipped_bit_goes_unnoticed(vae):
    tensors = some_tensors()
    save_tensors(vae, tensors)
    file = vae / SINGLE
    good = file.read_bytes()
    caught = 0
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        try:
            # In metadata that nobody reads, a flip does no harm.
            assert same(read_all(vae), tensors), f"byte {bit // 8} bit {bit % 8}"
        except InputError as error:
            assert error.asked == f"{vae}/{SINGLE}"
            caught += 1
    assert caught > 0.9 * 8 * len(good)


def test_a_flipped_bit_in_a_weight_names_tensor_and_file(sharded):
    data = bytearray((sharded / SHARDS[1]).read_bytes())
    data[-1] ^= 1
    (sharded / SHARDS[1]).write_bytes(data)
    error = refused(sharded)
    assert error.asked == f"{sharded}/{SHARDS[1]}"
    assert error.found.startswith("tensor b is damaged") and "digest" in error.found
    assert [name for name, _ in opened(sharded).read(["a", "c"])] == ["a", "c"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite(vae, dtype, value):
    weight = torch.zeros(50, 50, dtype=dtype)
    weight[31, 7] = float(value)
    save_file({"good": torch.ones(3), "bad": weight}, vae / SINGLE)
    error = refused(vae)
    assert error.asked == f"{vae}/{SINGLE}"
    assert error.found == "tensor bad holds NaN or infinite values"


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_file_cut_short(sharded, length):
    file = sharded / SHARDS[2]
    file.write_bytes(file.read_bytes()[:length])
    error = refused(sharded)
    assert error.asked == f"{sharded}/{SHARDS[2]}" and "cut short or damaged" in error.found
    assert error.next_step == f"Copy or download vae/{SHARDS[2]} again"


def test_an_lfs_pointer_in_place_of_a_shard(sharded):
    (sharded / SHARDS[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 1\n")
    error = refused(sharded)
    assert SHARDS[1] in error.asked and "git lfs pull" in error.next_step


def test_a_missing_shard_names_what_it_held(vae):
    save_tensors(vae, {f"t{n:02}": torch.zeros(4) for n in range(30)}, max_shard_bytes=160)
    (vae / SHARDS[1]).unlink()
    error = refused(vae)
    assert error.asked == f"{vae}/{SHARDS[1]}"
    names = ", ".join(f"t{n}" for n in range(10, 18))
    assert error.found == f"the file is missing, and the index says that it holds {names} and 2 more"


def edit_weight_map(vae: Path, **changes: object) -> None:
    index = json.loads((vae / INDEX).read_text())
    index["weight_map"] = {key: value for key, value in (index["weight_map"] | changes).items() if value is not None}
    (vae / INDEX).write_text(json.dumps(index))


def test_the_index_names_a_tensor_that_its_shard_does_not_hold(sharded):
    edit_weight_map(sharded, d=SHARDS[0])
    error = refused(sharded)
    assert error.asked == f"{sharded}/{SHARDS[0]}"
    assert error.found == "the index says that it holds d, and it does not"


def test_a_shard_holds_a_tensor_that_the_index_does_not_name(sharded):
    save_file({"b": torch.zeros(4), "d": torch.zeros(4)}, sharded / SHARDS[1])
    error = refused(sharded)
    assert error.asked == f"{sharded}/{SHARDS[1]}"
    assert error.found == "it holds d, of which the index does not know"


def test_the_same_tensor_in_two_shards(sharded):
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, sharded / SHARDS[1])
    error = refused(sharded)
    assert error.asked == f"{sharded}/{SHARDS[1]}"
    assert error.found == f"it holds a, and so does {SHARDS[0]}"


@pytest.mark.parametrize(
    "target",
    ["/etc/weights.safetensors", "../secret.safetensors", "..\\s.safetensors", "sub/a.safetensors", "a.bin", 7],
)
def test_an_index_that_points_elsewhere(sharded, target):
    edit_weight_map(sharded, b=target)
    error = refused(sharded)
    assert error.asked == f"{sharded}/{INDEX}"
    assert error.found.startswith(f"it puts b in {target!r}")


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_without_a_weight_map(sharded, index):
    (sharded / INDEX).write_text(index)
    assert refused(sharded).found == 'it has no "weight_map"'


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl"])
def test_pickled_weights_are_refused(vae, suffix):
    (vae / f"diffusion_pytorch_model.{suffix}").write_bytes(b"\x80\x04.")
    error = refused(vae)
    assert re.search("safetensors only and never unpickles", error.found)
    assert error.next_step.startswith("Convert it to safetensors")


def test_no_weights_at_all(vae):
    (vae / "other.safetensors").touch()
    assert "diffusion_pytorch_model.safetensors nor its index" in refused(vae).found
    assert "other.safetensors" in refused(vae).found
    with pytest.raises(InputError, match="sound_tokenizer: the checkpoint has no such folder"):
        open_tensors(open_repository(str(vae.parent)), "sound_tokenizer")


# Threads.


@pytest.fixture
def many(vae, monkeypatch) -> Path:
    """Tensors of which each takes a thread, in two shards."""
    monkeypatch.setattr(tensors, "FEW", 0)
    save_tensors(vae, {f"t{n:02}": torch.full((300,), float(n)) for n in range(60)}, max_shard_bytes=40 * 1200)
    return vae


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def test_what_threads_read_comes_in_the_files_order(many):
    files = opened(many)
    assert len({info.file for info in files.tensors.values()}) == 2
    assert list(read_all(many)) == list(files.tensors)
    assert all(torch.equal(tensor, torch.full((300,), float(name[1:]))) for name, tensor in read_all(many).items())
    assert not readers()


def test_a_defect_that_a_thread_finds_is_its_tensors(many):
    files = opened(many)
    file = files.tensors["t30"].file
    data = bytearray(file.read_bytes())
    data[-1200 * (40 - 30)] ^= 1
    file.write_bytes(data)
    before = []
    with pytest.raises(InputError, match="tensor t30 is damaged"):
        before += (name for name, _ in files.read(files.tensors))
    assert before == [f"t{n:02}" for n in range(30)] and not readers()


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_no_thread_outlives_who_asks(many, how):
    reading = opened(many).read([f"t{n:02}" for n in range(40)])
    next(reading), next(reading)
    assert readers()
    reading.close() if how == "closed" else None
    del reading
    assert not readers()


# Memory.

PEAK = """
import sys
from pathlib import Path
import torch
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import open_tensors

def status(key):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

files = open_tensors(open_repository(sys.argv[1]), "vae")
list(files.read(["small"]))  # so that what torch allocates at first use is there before
Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark at what is resident now
before = status("VmRSS")
kept = [tensor[: 2**18].clone() for name, tensor in files.read(files.tensors)]
print(status("VmHWM") - before, sum(part.nbytes for part in kept))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory high-water mark from /proc")
def test_host_memory_holds_one_shard_at_a_time(vae):
    mb = 2**20
    tensor = torch.ones(16 * mb // 4)
    tensors = {"small": torch.ones(1)} | {f"t{n:02}": tensor for n in range(24)}
    save_tensors(vae, tensors, max_shard_bytes=64 * mb)
    shards = sorted(file.stat().st_size for file in vae.glob("*.safetensors"))
    assert len(shards) >= 6 and shards[-1] > 64 * mb
    command = [sys.executable, "-c", PEAK, str(vae.parent)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    grown, kept = map(int, said.split())
    assert kept == 24 * mb + 4
    # Beside the one shard: the tensor that the loop still holds when the next shard opens, and 8 MB for the allocator.
    assert grown <= shards[-1] + kept + tensor.nbytes + 8 * mb
