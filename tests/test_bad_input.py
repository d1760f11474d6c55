"""What a stranger types or hands over by mistake: one clear message, exit code 2, nothing written, no weight read.

A row of a table is a command line, how its message begins (what was asked for) and a part of the rest (what to do
next). In a row `{files}` is a folder of bad files, `{out}` the output folder and `{model}` a damaged copy of tiny.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import av
import click
import numpy as np
import pytest
import torch
from command import cosmos3
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

import cosmos3_core
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.checkpoint.tensors import TensorFiles, save_tensors
from cosmos3_core.cli import EXIT_CODES, cli, main
from cosmos3_core.contract import InputError
from cosmos3_core.files.images import write_image
from cosmos3_core.files.video import read_video, write_video
from cosmos3_core.runs.memory import peak_host_memory
from cosmos3_core.settle import Wish, settle

RUN, CORE = cli.commands["run"], Path(cosmos3_core.__file__).parent
WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMER, VAE = f"transformer/{WEIGHTS}", f"vae/{WEIGHTS}"
PROGRESS = re.compile(
    r"backend reference: CPU, .*|check weights|load [a-z ]+|read prompts|encode input|decode|step \d+ of \d+"
)

ANY = f"--model {TINY_MODEL} --size 64x64 --steps 2 --overwrite "
PICTURE = f"'a cup on a table' {ANY} -o {{out}}/picture.png "
CLIP = f"'a cup on a table' {ANY} --frames 5 -o {{out}}/clip.mp4 "
LONGER = f"'a cup on a table' {ANY} --frames 9 -o {{out}}/clip.mp4 "


def once(words: list[str]) -> list[str]:
    """A command line with the last of each option that takes one value."""
    ones = {
        o for p in RUN.get_params(click.Context(RUN)) if not (p.multiple or getattr(p, "is_flag", 1)) for o in p.opts
    }
    last = {word: at for at, word in enumerate(words) if word in ones}
    dropped = {at for at, word in enumerate(words) if word in ones and last[word] != at}
    return [word for at, word in enumerate(words) if not dropped & {at, at - 1}]


class User:
    """Types commands in `out`, a folder with results of earlier runs. `reads` lists the checkpoint folders from which
    weights were read."""

    def __init__(
        self, out: Path, names: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ):
        self.out, self.names, self.monkeypatch, self.capfd = out, names | {"out": out}, monkeypatch, capfd
        self.reads: list[str] = []
        (out / "folder").mkdir(parents=True)
        for name in ("clip.mp4", "clip.mp4.json", "picture.png"):
            (out / name).write_text(f"an older {name}")
        read = TensorFiles.read

        def spy(files: TensorFiles, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
            self.reads.append(files.folder)
            return read(files, names)

        monkeypatch.setattr(TensorFiles, "read", spy)
        monkeypatch.chdir(out)

    def fill(self, text: str) -> str:
        """A row's text with its folders filled in."""
        return re.sub(r"\{(\w+)\}", lambda match: str(self.names[match[1]]), text)

    def argv(self, command: str) -> list[str]:
        """The words of a row. What it adds stands in the place of what it begins with."""
        return once(shlex.split(self.fill(command)))

    def holds(self) -> dict[str, bytes | None]:
        """Every file of the output folder with its bytes."""
        return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(self.out.rglob("*"))}

    def run(self, command: str) -> tuple[int, str, list[str]]:
        """(exit code, stdout, lines on stderr) of `cosmos3 run`."""
        self.monkeypatch.setattr(sys, "argv", ["cosmos3", "run", *self.argv(command)])
        self.capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        stdout, stderr = self.capfd.readouterr()
        return code, stdout, stderr.splitlines()

    def refused(self, command: str, asked: str, then: str, *, started: bool = False) -> None:
        """Run a command that must be refused. Only if `started` may lines of progress stand before the message."""
        before, start = self.holds(), f"error: {self.fill(asked)}"
        code, stdout, (*progress, message) = self.run(command)
        assert (code, stdout) == (2, ""), message
        assert message.startswith(start) and self.fill(then) in message.removeprefix(start), message
        assert all(PROGRESS.fullmatch(line) for line in progress) if started else not progress, progress
        assert self.holds() == before


@pytest.fixture
def user(tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> User:
    return User(tmp_path / "out", {"files": files, "model": tmp_path / "model"}, monkeypatch, capfd)


# ---- the command line ----------------------------------------------------------------------------------------------

REQUESTS = {
    "size off the grid": (CLIP + "--size 100x100", "size '100x100'", "nearest is 96x96"),
    "size zero": (CLIP + "--size 0x0", "size '0x0'", "nearest is 32x32"),
    "size huge": (CLIP + "--size 99999999x64", "size '99999999x64'", "nearest is 4096x64"),
    "size of 5000 digits": (CLIP + f"--size {'9' * 5000}x64", "size '999", "Type WIDTHxHEIGHT such as 1280x720"),
    "size negative": (CLIP + "--size -64x64", "size '-64x64'", "Type WIDTHxHEIGHT"),
    "size a float": (CLIP + "--size 1e9", "size '1e9'", "Type WIDTHxHEIGHT"),
    "size a word": (CLIP + "--size foo", "size 'foo'", "TIER:ASPECT such as 720p:16:9"),
    "size empty": (CLIP + "--size ''", "--size ''", "Give it a value or leave it out"),
    "size one number": (f"x --model {TINY_MODEL} --set size=64", "size 64", "Type it as WIDTHxHEIGHT"),
    "size three numbers": (
        f"x --model {TINY_MODEL} --set size=[64,64,3]",
        "size [64, 64, 3]",
        "Type it as WIDTHxHEIGHT",
    ),
    "size an unknown tier": (CLIP + "--size 1080p", "size '1080p'", "Tiers are 256p, 480p, 704p, 720p, 768p"),
    "size an unknown aspect": (CLIP + "--size 720p:5:7", "size '720p:5:7'", "Aspect ratios are 1:1, 4:3, 3:4, 16:9"),
    "8 frames": (CLIP + "--frames 8", "8 frames", "The nearest are 5 and 9"),
    "2 frames": (CLIP + "--frames 2", "2 frames", "The nearest are 1 and 5"),
    "0 frames": (CLIP + "--frames 0", "frames = 0", "a whole number from 1 to 4001"),
    "-3 frames": (CLIP + "--frames -3", "frames = -3", "a whole number from 1 to 4001"),
    "a million frames": (CLIP + "--frames 1000001", "frames = 1000001", "a whole number from 1 to 4001"),
    "frames of a picture": (PICTURE + "--task t2i --frames 5", "5 frames with task t2i", "or use --task t2v"),
    "a clip of one frame": (CLIP + "--task t2v --frames 1", "1 frame with task t2v", "Ask for 5 frames or more"),
    "0 steps": (CLIP + "--steps 0", "steps = 0", "a whole number from 1 to 1000"),
    "-1 steps": (CLIP + "--steps -1", "steps = -1", "a whole number from 1 to 1000"),
    "5000 steps": (CLIP + "--steps 5000", "steps = 5000", "a whole number from 1 to 1000"),
    "half a step": (f"x --model {TINY_MODEL} --set steps=1.5", "steps = 1.5", "a whole number from 1 to 1000"),
    "infinite steps": (f"x --model {TINY_MODEL} --set steps=1e400", "steps = inf", "a whole number from 1 to 1000"),
    "steps of 400 digits": (
        f"x --model {TINY_MODEL} --set steps={'9' * 400}",
        "steps = 999",
        "a whole number from 1 to 1000",
    ),
    "steps of 5000 digits": (f"x --model {TINY_MODEL} --set steps={'9' * 5000}", "steps = '999", "from 1 to 1000"),
    "steps a switch": (f"x --model {TINY_MODEL} --set steps=true", "steps = True", "a whole number from 1 to 1000"),
    "steps nested deep": (f"x --model {TINY_MODEL} --set steps={'[' * 50_000}", "steps = '[[[", "from 1 to 1000"),
    "guidance NaN": (CLIP + "--guidance nan", "guidance = nan", "a number from 0 to 20"),
    "guidance infinite": (CLIP + "--guidance inf", "guidance = inf", "a number from 0 to 20"),
    "guidance negative": (CLIP + "--guidance -1", "guidance = -1", "a number from 0 to 20"),
    "guidance NaN in JSON": (f"x --model {TINY_MODEL} --set guidance=NaN", "guidance = nan", "a number from 0 to 20"),
    "interval of one end": (CLIP + "--set guidance_interval=[400]", "guidance_interval = [400]", "[400, 1000]"),
    "interval of words": (CLIP + "--set guidance_interval=low,high", "guidance_interval = 'low,high'", "[400, 1000]"),
    "interval backwards": (CLIP + "--set guidance_interval=[9,4]", "guidance_interval 9 to 4", "Did you mean [4, 9]?"),
    "fps 0": (CLIP + "--fps 0", "fps = 0", "a number from 1 to 240"),
    "fps NaN": (CLIP + "--fps nan", "fps = nan", "a number from 1 to 240"),
    "fps of a picture": (PICTURE + "--fps 12", "fps = 12", "an image has no duration. Drop fps"),
    "seed -2": (CLIP + "--seed -2", "seed = -2", "a whole number from 0 to 18446744073709551615"),
    "seed 2**64": (CLIP + f"--seed {2**64}", f"seed = {2**64}", "a whole number from 0 to 18446744073709551615"),
    "shift 0": (CLIP + "--shift 0", "shift = 0", "a number from 0.01 to 100"),
    "shift of karras": (CLIP + "--set schedule=karras --shift 5", "shift = 5", "has no shift. Drop shift"),
    "unknown schedule": (CLIP + "--set schedule=cosine", "schedule = 'cosine'", "one of native, flow, karras"),
    "distilled schedule": (CLIP + "--set schedule=distilled", "schedule 'distilled'", "Drop schedule"),
    "negative prompt unread": (CLIP + "--negative-prompt fog --guidance 1", "negative_prompt = 'fog'", "Drop negative"),
    "tile 100": (CLIP + "--tile 100", "tile = 100", "Try 256, or leave it out"),
    "tile as large as the picture": (CLIP + "--tile 64", "tile = 64", "no larger than one tile. Drop tile"),
    "switch a word": (CLIP + "--set system_prompt=maybe", "system_prompt = 'maybe'", "true or false"),
    "text a number": (CLIP + "--set negative_prompt=5", "negative_prompt = 5", "Give negative_prompt as a string"),
    "path a number": (CLIP + "--set image=5", "image = 5", "as the path of a file"),
    "misspelt field": (CLIP + "--set stesp=5", "request field 'stesp'", "Did you mean steps?"),
    "field without a name": (CLIP + "--set =5", "request field ''", "Fields are action_"),
    "unknown task": (CLIP + "--task t3v", "task 't3v'", "Tasks are t2i, edit, t2v, "),
    "task a list": (CLIP + "--set task=[1]", "task [1]", "Tasks are t2i, edit, t2v, "),
    "image and video": (CLIP + "--image a.png --video b.mp4", "--image with --video", "Drop one"),
    "image of a t2i": (
        PICTURE + "--task t2i --image a.png",
        "--image with task t2i",
        "Use --task edit or i2v or policy or forward-dynamics or drop it",
    ),
    "video of an i2v": (CLIP + "--task i2v --image a --video b.mp4", "--video with task i2v", "Use --task v2v"),
    "i2v without an image": (CLIP + "--task i2v", "task i2v", "Add --image FILE"),
    "v2v without a video": (CLIP + "--task v2v", "task v2v", "Add --video FILE"),
    "condition frames of a t2v": (
        CLIP + "--set condition_frame_indexes=[0]",
        "condition_frame_indexes = [0]",
        "Drop condition_frame_indexes",
    ),
    "a field by two options": (CLIP + "--set steps=2 --steps 3", "--set steps=2", "to 3. Drop one of them"),
    "size of 400 digits": (f"x --model {TINY_MODEL} --set size=[{10**400},64]", "size 1000", "nearest is 4096x64"),
    "no prompt": (ANY, "a run without a prompt", 'Give a PROMPT, such as "a cup on a table"'),
    "empty prompt": (f"'' {ANY}", "an empty prompt", "Describe the scene"),
    "blank prompt": (f"' \t\n ' {ANY}", "an empty prompt", "Describe the scene"),
    "prompt not UTF-8": (f"'caf\udce9' {ANY}", "prompt with a NUL or a broken character", "Give plain UTF-8 text"),
    "unknown profile": (
        CLIP + "--profile diffuser",
        "profile 'diffuser'",
        "Profiles are reference, diffusers, diffusers-docs, vllm-omni",
    ),
    "unknown backend": (CLIP + "--backend referense", "--backend referense", "Did you mean reference?"),
    "unknown dtype": (CLIP + "--dtype int8", "dtype 'int8'", "Dtypes are float32, bfloat16, float16"),
    "unknown op": (CLIP + "--kernel softmax=eager", "a kernel for 'softmax'", "Ops are attention, pack_linear"),
    "unknown kernel": (CLIP + "--kernel attention=flash", "--kernel attention=flash", "reference has eager"),
    "unknown model": (CLIP + "--model cosmos3-nano", "--model cosmos3-nano", "Did you mean nvidia/Cosmos3-Nano?"),
    "model not an id": (
        CLIP + "--model a/b/c",
        "--model a/b/c",
        "Pass embedded, a folder, or one of nvidia/Cosmos3-Nano",
    ),
    "empty model": (CLIP + "--model ''", "--model ''", "Give it a value or leave it out"),
    "empty output": (CLIP + "-o ''", "--output ''", "Give it a value or leave it out"),
    "empty latents": (CLIP + "--latents ''", "--latents ''", "Give it a value or leave it out"),
    "model a file": (CLIP + "--model {files}/text.jpg", "--model {files}/text.jpg", "Pass the folder that holds"),
    "model an empty folder": (CLIP + "--model folder", "--model folder", "with model_index.json at its top"),
    "model not in the cache": (
        CLIP + "--model nobody/nothing",
        "--model nobody/nothing",
        "Run once without HF_HUB_OFFLINE",
    ),
    "revision of the fixture": (CLIP + "--revision main", "--revision main", "Leave --revision out"),
    "revision of a folder": (CLIP + "--model folder --revision v1", "--revision v1", "Leave --revision out"),
}


@pytest.mark.parametrize("command, asked, then", REQUESTS.values(), ids=REQUESTS)
def test_a_bad_request(user: User, command: str, asked: str, then: str):
    user.refused(command, asked, then)
    assert not user.reads


USAGE = {
    "misspelt option": (CLIP + "--stpes 5", "'--steps'"),
    "prompt without quotes": ("a cup on a table", "unexpected extra arguments (cup on a table)"),
    "frames a word": (CLIP + "--frames eight", "'--frames': 'eight' is not a valid integer"),
    "seed a fraction": (CLIP + "--seed 1.5", "'--seed': '1.5' is not a valid integer"),
    "guidance a word": (CLIP + "--guidance much", "'--guidance': 'much' is not a valid float"),
    "set without a value": (CLIP + "--set steps", "'steps' is not FIELD=VALUE"),
    "a field twice": (CLIP + "--set fps=3 --set fps=4", "fps is given twice, as 3 and as 4"),
    "a kernel twice": (CLIP + "--kernel gate=a --kernel gate=eager", "gate is given twice, as a and as eager"),
    "a format twice": (CLIP + "--format fp8 --format int8", "pack_linear is given twice, as fp8 and as int8"),
    "kernel without a name": (CLIP + "--kernel attention", "'attention' is not OP=NAME"),
    "option without its value": (CLIP + "--steps", "'--steps' requires an argument"),
}


@pytest.mark.parametrize("command, message", USAGE.values(), ids=USAGE)
def test_a_command_that_cannot_be_parsed(user: User, command: str, message: str):
    before = user.holds()
    code, stdout, lines = user.run(command)
    assert (code, stdout) == (2, "")
    (line,) = lines
    assert line.startswith("error: ") and message in line
    assert line.endswith((" Type cosmos3 run --help", " Type cosmos3 --help"))
    assert user.holds() == before and not user.reads


# ---- files handed in -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files to stumble over, and a good picture and clip."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), np.uint8)
    write_image(folder / "good.png", noise[0], {})
    write_video(folder / "good.mp4", noise, 24, {})
    write_video(folder / "short.mp4", noise[:3], 24, {})
    for name in ("cut.png", "cut.mp4"):
        whole = (folder / name.replace("cut", "good")).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2 if name == "cut.png" else 400])
    for name in ("text.jpg", "text.mp4", "text.safetensors"):
        (folder / name).write_text("This is not what its name says it is.")
    (folder / "empty.png").touch()
    (folder / "folder").mkdir()
    Image.new("L", (1, 40_000)).save(folder / "thin.png")
    _bomb(folder / "bomb.png")
    _sound(folder / "sound.mp4")
    (folder / "latin.txt").write_bytes("un café".encode("latin-1"))
    (folder / "nul.txt").write_bytes(b"a cup\0on a table")
    (folder / "blank.txt").write_text("\n\n")
    (folder / "long.txt").write_text("word " * 50_000)
    for name in ("huge.txt", "huge.png", "huge.mp4", "huge.safetensors"):
        with (folder / name).open("wb") as stream:
            stream.truncate(3 << 30)  # sparse: takes no space
    for name, text in {
        "cut.json": '{"prompt": "a cup", "steps": ',
        "list.json": '["a cup"]',
        "misspelt.json": '{"prompt": "a cup", "guidence": 4}',
        "twice.json": '{"prompt": "a cup", "steps": 2, "steps": 3}',
        "words.json": '{"prompt": "a cup", "frames": "five"}',
        "surrogate.json": r'{"prompt": "a \ud800 cup"}',
        "nested.json": "[" * 200_000,
    }.items():
        (folder / name).write_text(text)
    save_file({"noise.vision": torch.zeros(48, 2, 2, 2)}, folder / "small.safetensors")
    save_file({"noise.vision": torch.full((48, 2, 4, 4), torch.nan)}, folder / "nan.safetensors")
    save_file({"noise.sound": torch.zeros(48, 2, 4, 4)}, folder / "sound.safetensors")
    save_file({"x": torch.zeros(3)}, folder / "state.safetensors", {"cosmos3.state": '{"given": {}}'})
    return folder


def _bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that says it has 30,000 x 30,000 pixels."""
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    data = b"".join((len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _sound(path: Path) -> None:
    """An .mp4 with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        for packet in itertools.chain(stream.encode(frame), stream.encode()):
            container.mux(packet)


PICTURES = {
    "text": ("text.jpg", "not a picture of a kind that is read (PNG, JPEG, WEBP, "),
    "empty": ("empty.png", "not a picture of a kind that is read (PNG, JPEG, WEBP, "),
    "truncated": ("cut.png", "truncated"),
    "missing": ("missing.png", "No such file or directory"),
    "folder": ("folder", "Is a directory"),
    "clip": ("good.mp4", "not a picture of a kind that is read (PNG, "),
    "3 GB of zeros": ("huge.png", "not a picture of a kind that is read (PNG, "),
    "decompression bomb": ("bomb.png", "exceeds limit"),
}
FILES = {
    **{
        f"picture {name}": (CLIP + f"--image {{files}}/{file}", f"reading {{files}}/{file}", then)
        for name, (file, then) in PICTURES.items()
    },
    "picture thin as a thread": (CLIP + "--image {files}/thin.png", "an input of 1x40000 pixels", "Crop it"),
    "picture in a dry run": (
        CLIP + "--dry-run --image {files}/text.jpg",
        "reading {files}/text.jpg",
        "Pass a whole PNG",
    ),
    "clip text": (LONGER + "--video {files}/text.mp4", "reading {files}/text.mp4", "Pass a whole clip"),
    "clip cut off in its header": (LONGER + "--video {files}/cut.mp4", "reading {files}/cut.mp4", "Pass a whole clip"),
    "clip of sound only": (
        LONGER + "--video {files}/sound.mp4",
        "reading {files}/sound.mp4",
        "no video in it. Pass a clip",
    ),
    "clip missing": (LONGER + "--video {files}/none.mp4", "reading {files}/none.mp4", "No such file or directory"),
    "clip a folder": (LONGER + "--video {files}/folder", "reading {files}/folder", "Is a directory"),
    "clip 3 GB of zeros": (LONGER + "--video {files}/huge.mp4", "reading {files}/huge.mp4", "Pass a whole clip"),
    "clip too short": (LONGER + "--video {files}/short.mp4", "--video {files}/short.mp4", "has 3 frames"),
    "clip a picture": (LONGER + "--video {files}/good.png", "--video {files}/good.png", "Give it as --image"),
    "conditioning out of range": (
        LONGER + "--video {files}/good.mp4 --set condition_frame_indexes=[0,3]",
        "condition_frame_indexes [0, 3]",
        "Use indices from 0 to 2",
    ),
    "conditioning everything": (CLIP + "--video {files}/good.mp4", "every frame as conditioning", "9 frames or more"),
    **{
        f"conditioning {text}": (
            LONGER + f"--video {{files}}/good.mp4 --set condition_frame_indexes={shlex.quote(text)}",
            "condition_frame_indexes = ",
            "Give a list such as [0, 1]",
        )
        for text in ("[]", '["a"]', "[-1]", "[0.5]", "0,x", "0")
    },
    "prompt file missing": (f"@none.txt {ANY}", "prompt @none.txt", "No such file or directory. Check the path"),
    "prompt file a folder": (f"@folder {ANY}", "prompt @folder", "Is a directory. Check the path"),
    "prompt file without a name": (f"@ {ANY}", "prompt @", "No such file or directory. Check the path"),
    "prompt file not UTF-8": (f"@{{files}}/latin.txt {ANY}", "prompt @{files}/latin.txt", "Save it as UTF-8"),
    "prompt file with NUL": (f"@{{files}}/nul.txt {ANY}", "prompt with a NUL", "Give plain UTF-8 text"),
    "prompt file blank": (f"@{{files}}/blank.txt {ANY}", "an empty prompt", "Describe the scene"),
    "prompt file too long": (f"@{{files}}/long.txt {ANY}", "a prompt of 249,999 characters", "Keep it under 100,000"),
    "request file missing": ("--request none.json", "--request none.json", "No such file or directory. Check the path"),
    "request file cut off": ("--request {files}/cut.json", "--request {files}/cut.json", "Give a JSON object"),
    "request file a list": ("--request {files}/list.json", "--request {files}/list.json", 'Write it like {"prompt": '),
    "request file misspelt": ("--request {files}/misspelt.json", "request field 'guidence'", "Did you mean guidance?"),
    "request file with a key twice": (
        "--request {files}/twice.json",
        "--request {files}/twice.json",
        "'steps' is there twice",
    ),
    "request file of words": (
        f"--model {TINY_MODEL} --request {{files}}/words.json",
        "frames = 'five'",
        "a whole number from 1 to 4001",
    ),
    "request file not Unicode": (
        "--request {files}/surrogate.json",
        "--request {files}/surrogate.json",
        "half a character",
    ),
    "request file nested deep": (
        "--request {files}/nested.json",
        "--request {files}/nested.json",
        "Give a JSON object",
    ),
    "request file a picture": ("--request {files}/good.png", "--request {files}/good.png", "that cosmos3 run wrote"),
    **{
        f"latents {name}": (CLIP + f"--latents {{files}}/{file}", f"--latents {{files}}/{file}", then)
        for name, file, then in (
            ("missing", "none.safetensors", "Give a safetensors file that cosmos3 wrote"),
            ("text", "text.safetensors", "Give a safetensors file that cosmos3 wrote"),
            ("folder", "folder", "Is a directory. Give a safetensors file that cosmos3 wrote"),
            ("3 GB of zeros", "huge.safetensors", "Give a safetensors file that cosmos3 wrote"),
            ("of sound", "sound.safetensors", "Use a file that --save-latents wrote"),
        )
    },
    "latents of another size": (
        CLIP + "--latents {files}/small.safetensors",
        "initial vision noise of shape [48, 2, 2, 2]",
        "shape [48, 2, 4, 4]. Save it from a request of the same size and length",
    ),
    "latents NaN": (CLIP + "--latents {files}/nan.safetensors", "initial vision noise", "finite values"),
    **{
        f"resume {name}": (f"--resume {{files}}/{file}", f"--resume {{files}}/{file}", then)
        for name, file, then in (
            ("missing", "none.safetensors", "Give a safetensors file that cosmos3 wrote"),
            ("text", "text.safetensors", "Give a safetensors file that cosmos3 wrote"),
            ("latents", "small.safetensors", "Give the file a stopped run named"),
            ("half a state", "state.safetensors", "Give the file a stopped run named"),
        )
    },
    **{
        f"resume with {option}": (f"{option} --resume {{files}}/state.safetensors", asked, then)
        for option, asked, then in (
            ("'a cup'", "a prompt with --resume", "Drop a prompt"),
            ("--seed 0", "--seed with --resume", "Drop --seed"),
            ("--negative-prompt ''", "--negative-prompt with --resume", "Drop --negative-prompt"),
            ("--set steps=5", "--set with --resume", "Drop --set"),
            (f"--model {TINY_MODEL}", "--model with --resume", "Drop --model"),
        )
    },
}


@pytest.mark.parametrize("command, asked, then", FILES.values(), ids=FILES)
def test_a_bad_file(user: User, command: str, asked: str, then: str):
    user.refused(command, asked, then)
    assert not user.reads


FOLLOW = f"'a cup on a table' {ANY} -o {{out}}/clip.mp4 "
EDGE = FOLLOW + "--edge {files}/good.mp4 "
CONTROLS = {
    "no control": (FOLLOW + "--task transfer", "transfer without a control", "Add --edge, --blur, --depth"),
    "depth made here": (FOLLOW + "--depth auto --video {files}/good.mp4", "depth = 'auto'", "Give --depth the path"),
    "edge of nothing": (FOLLOW + "--edge auto", "--edge auto", "Add --video FILE, or give --edge a clip of its own"),
    "a control that is not there": (
        FOLLOW + "--edge {files}/none.mp4",
        "reading {files}/none.mp4",
        "Pass a whole clip",
    ),
    "a control that is text": (FOLLOW + "--seg {files}/text.mp4", "reading {files}/text.mp4", "Pass a whole clip"),
    "a control by URL": (FOLLOW + "--edge https://x.org/e.mp4", "edge = 'https://x.org/e.mp4'", "Download it first"),
    "controls of a picture's task": (EDGE + "--task t2i --frames 1", "--edge with task t2i", "Use --task transfer"),
    "more frames than the control": (EDGE + "--frames 21", "21 frames", "Use frames 9, or a longer clip"),
    "a picture without a length": (FOLLOW + "--edge {files}/good.png", "controls edge as pictures", "Give --frames"),
    "a clip of no use": (
        EDGE + "--video {files}/good.mp4 --fps 24",
        "--video {files}/good.mp4",
        "Drop it, or make a control of it: --edge auto",
    ),
    "a picture to begin with": (EDGE + "--image {files}/good.png", "--image with task transfer", "drop it"),
    "control guidance of 11": (EDGE + "--control-guidance 11", "control_guidance = 11", "is a number from 0 to 10"),
    "control guidance without controls": (
        CLIP + "--control-guidance 2",
        "control_guidance = 2",
        "Drop control_guidance",
    ),
    "an interval of no guidance": (
        EDGE + "--control-guidance 1 --set control_guidance_interval=[0,500]",
        "control_guidance_interval",
        "Drop control_guidance_interval",
    ),
    "weights of one control": (EDGE + "--set control_weights=edge=2", "control_weights", "Drop control_weights"),
    "a weight of another": (
        EDGE + "--depth {files}/good.mp4 --set control_weights=seg=2",
        "a control weight of seg",
        "Give --seg FILE, or drop its weight",
    ),
    "a weight of 0": (
        EDGE + "--depth {files}/good.mp4 --set control_weights=edge=0",
        "control_weights of edge = 0",
        "is a number from 0.001 to 1000",
    ),
    "a weight named twice": (
        EDGE + "--depth {files}/good.mp4 --set control_weights=edge=1,edge=2",
        "control_weights of 'edge': it is named twice",
        "Give each control one weight",
    ),
    "weights of words": (
        EDGE + "--depth {files}/good.mp4 --set control_weights=much",
        "control_weights = ",
        "Give control_weights like edge=2,depth=1",
    ),
    "a preset of a file": (EDGE + "--set edge_preset=low", "edge_preset", "Drop edge_preset"),
    "no such preset": (
        FOLLOW + "--edge auto --video {files}/good.mp4 --set edge_preset=wild",
        "edge_preset = 'wild'",
        "edge_preset is one of none, very_low",
    ),
    "a chunk of 10": (EDGE + "--set chunk_frames=10", "10 frames", "The nearest are 9 and 13"),
    "a chunk carried whole": (EDGE + "--set chunk_frames=5 --set carry_frames=5", "carry_frames = 5", "Use at most 4"),
    "carrying in one chunk": (EDGE + "--set carry_frames=3", "carry_frames = 3", "Drop carry_frames"),
    "first frames of nothing": (EDGE + "--set first_frames=3", "first_frames = 3", "Add --video FILE"),
    "more first frames than there are": (
        EDGE + "--frames 9 --video {files}/short.mp4 --set first_frames=5",
        "first_frames = 5",
        "Use 3 or fewer",
    ),
    "a picture for a result": (
        EDGE.replace("clip.mp4", "clip.png"),
        "writing {out}/clip.png",
        "Pass --output {out}/clip.mp4",
    ),
    "noise for several chunks": (
        EDGE + "--set chunk_frames=5 --latents {files}/noise.safetensors",
        "--latents {files}/noise.safetensors",
        "",
    ),
}


@pytest.mark.parametrize(("command", "asked", "then"), CONTROLS.values(), ids=CONTROLS)
def test_a_bad_control(user: User, command: str, asked: str, then: str):
    user.refused(command, asked, then)
    assert not user.reads


@pytest.mark.parametrize("model", ["nvidia/Cosmos3-Edge", "nvidia/Cosmos3-Super-Image2Video-4Step"])
def test_models_without_transfer_name_some_with_it(model: str):
    wish = Wish(model=model, described=True, partial=True, given={"edge": "e.mp4", "frames": 9, "fps": 24})
    with pytest.raises(InputError, match="task transfer: .* Use `model` nvidia/Cosmos3-Nano"):
        settle(wish)


def test_without_opencv_no_control_is_made(user: User, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    user.refused(
        FOLLOW + "--blur auto --video {files}/good.mp4",
        "--blur auto",
        "pip install opencv-python-headless, or give --blur a clip of its own",
    )
    assert not user.reads


@pytest.mark.parametrize("option", ["@", "--request "])
def test_a_text_of_3_gb_is_not_read(user: User, files: Path, option: str):
    before = peak_host_memory()
    user.refused(f"{option}{files}/huge.txt", "", "larger than 1 MiB. Prompts are a few thousand characters")
    assert peak_host_memory() - before < 1 << 30


def test_standard_input_without_a_prompt(user: User):
    for data, asked, then in ((b"", "an empty prompt", "Describe"), (b"\xff\xfe", "prompt @-", "Save it as UTF-8")):
        user.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        user.refused(f"@- {ANY}", asked, then)


# ---- where it should go --------------------------------------------------------------------------------------------

OUTPUTS = {
    "clip as .png": (CLIP + "--task t2v -o a.png", "writing a.png", "Pass --output a.mp4"),
    "clip as .webm": (CLIP + "-o a.webm", "writing a.webm", "Pass --output a.mp4"),
    "clip without a suffix": (CLIP + "-o a", "writing a", "Pass --output a.mp4"),
    "picture as .mp4": (CLIP + "--frames 1", "writing {out}/clip.mp4", "Pass --output {out}/clip.png"),
    "picture as .jpg": (PICTURE + "--task t2i -o a.jpg", "writing a.jpg", "Pass --output a.png"),
    "folder missing": (
        CLIP + "-o none/a.mp4",
        "writing none/a.mp4",
        "there is no folder none. Create it with mkdir -p",
    ),
    "folder a file": (CLIP + "-o clip.mp4/a.mp4", "writing clip.mp4/a.mp4", "there is no folder clip.mp4"),
    "a folder": (CLIP + "-o folder", "writing folder", "Pass a file name, such as --output folder/out.mp4"),
    "the folder itself": (CLIP + "-o .", "writing .", "Pass a file name, such as --output out.mp4"),
    "the root": (CLIP + "-o /", "writing /", "Pass a file name, such as --output /out.mp4"),
    "name too long": (CLIP + f"-o {'a' * 300}.mp4", "writing aaa", "File name too long). Choose another --output"),
    "manifest in a missing folder": (CLIP + "--manifest none/a.json", "writing none/a.json", "there is no folder none"),
    "manifest a folder": (CLIP + "--manifest folder", "writing folder", "Pass the name of a file"),
    "manifest name too long": (CLIP + f"--manifest {'a' * 300}", "writing aaa", "File name too long). Choose another"),
    "name too long for a manifest": (
        CLIP + f"-o {'a' * 250}.mp4",
        "writing aaa",
        "File name too long). Choose another",
    ),
    "name too long for a state": (CLIP + f"-o {'a' * 240}.mp4", "writing aaa", "Choose another --output"),
    "latents where a stop would keep the run": (
        CLIP + "--save-latents clip.mp4.state.safetensors",
        "writing {out}/clip.mp4.state.safetensors",
        "Choose another file name",
    ),
    "manifest over the output": (
        CLIP + "--manifest {out}/clip.mp4",
        "writing {out}/clip.mp4",
        "Choose another file name",
    ),
    "latents in a missing folder": (CLIP + "--save-latents none/a", "writing none/a", "there is no folder none"),
    "latents over the output": (CLIP + "--save-latents {out}/clip.mp4", "writing {out}/clip.mp4", "Choose another"),
    "output over its input": (LONGER + "--video clip.mp4", "writing {out}/clip.mp4", "Choose another file name"),
    "manifest over the picture": (CLIP + "--image a --manifest ./a", "writing a", "Choose another file name"),
    "latents over the manifest": (CLIP + "--save-latents a --manifest a", "writing a", "Choose another file name"),
}
for option in ("-o", "--manifest", "--save-latents"):
    # Even root cannot make a file in /proc.
    OUTPUTS[f"{option} not writable"] = (CLIP + f"{option} /proc/a.mp4", "writing /proc/a.mp4", "cannot be written to")


@pytest.mark.parametrize("command, asked, then", OUTPUTS.values(), ids=OUTPUTS)
def test_a_bad_output(user: User, command: str, asked: str, then: str):
    if "/proc/" in command and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    user.refused(command, asked, then)
    assert not user.reads


def test_all_faults_of_a_request_come_together(user: User):
    """By options, by --set and in a file, and before a model is looked for."""
    user.out.joinpath("bad.json").write_text('{"guidence": 3, "fps": 0, "size": "99x99"}')
    before = user.holds()
    command = "--request bad.json --model no/such-model --frames 8 --set sede=5 --set shift=-1"
    code, stdout, (first, *faults) = user.run(command)
    assert (code, stdout, first) == (2, "", "error: 7 faults in one request:") and user.holds() == before
    begins = ("request field 'guidence': ", "fps = 0: ", "size '99x99': ", "request field 'sede': ", "shift = -1: ")
    for fault, begin in zip(faults, (*begins, "8 frames: "), strict=False):
        assert fault.startswith(f"  {begin}")
    assert faults[-1].startswith("  a run without a prompt: there is nothing to generate. Give a PROMPT, such as ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_command_that_is_ended_before_its_run(user: User, number: int, code: int):
    """While it reads its prompt. What Python has as -15 a shell has as 143."""
    program = [sys.executable, "-B", "-m", "cosmos3", "run", "@-", "--model", TINY_MODEL, "-o", "x.png"]
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, **pipes, text=True, cwd=user.out) as reading:
        reading.stdin.write("a cup " * 50_000)  # more than a pipe holds: it is being read once that is written
        reading.stdin.flush()
        while reading.poll() is None:  # one between two reads waits for the next
            reading.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                reading.wait(2)
        assert reading.returncode == code
        assert reading.stderr.read().split() == (["stopped"] if number == signal.SIGINT else [])
    assert str(code if code > 0 else 128 - code) in " ".join(EXIT_CODES)


def test_messages_below_the_command_line_name_fields():
    """Python and a server have no options: the command line writes its own in their place."""
    own = {name for option in RUN.get_params(click.Context(RUN)) for name in option.opts}
    found = []
    for path in sorted(CORE.rglob("*.py")):
        if path.relative_to(CORE).parts[0] in ("cli", "testing"):
            continue
        tree = ast.parse(path.read_text())
        joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
        others = {id(part) for node in joined if "hf download" in ast.unparse(node) for part in ast.walk(node)}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in others | docs:
                found += [f"{path.name}: {node.value}"] * bool(own & set(re.findall(r"(?<!\S)--?[a-z-]+", node.value)))
    assert not found


def test_only_a_run_has_a_prompt_to_put_in_quotes(capsys, monkeypatch):
    named = (("run a cup", True), ("capabilities nano", False), ("recipes list all", False), ("recipes run a b", False))
    for command, said in named:
        code, _, err = cosmos3(capsys, monkeypatch, *command.split())
        assert code == 2 and "unexpected extra argument" in err and ("Put the prompt in quotes" in err) is said


@pytest.mark.parametrize("option", ["-o", "--manifest", "--save-latents"])
def test_a_pipe_is_not_replaced(user: User, option: str):
    """Nor a device: as root, --manifest /dev/null would be the end of it."""
    os.mkfifo(user.out / "pipe.mp4")
    user.refused(CLIP + f"{option} pipe.mp4", "writing pipe.mp4", "it exists and is not an ordinary file")
    assert (user.out / "pipe.mp4").is_fifo() and not user.reads


# ---- damaged checkpoints -------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]


def removed(path: str) -> Damage:
    return lambda model: (model / path).unlink()


def holding(path: str, data: str | bytes) -> Damage:
    return lambda model: (model / path).write_bytes(data if isinstance(data, bytes) else data.encode())


def cut_to(path: str, size: int) -> Damage:
    return lambda model: (model / path).write_bytes((model / path).read_bytes()[:size])


def flipped(path: str, where: Callable[[bytes], int]) -> Damage:
    """One bit of the byte at `where(data)` is the other way."""

    def damage(model: Path) -> None:
        data = bytearray((model / path).read_bytes())
        data[where(data)] ^= 4
        (model / path).write_bytes(data)

    return damage


def first_byte_of(name: str) -> Callable[[bytes], int]:
    def where(data: bytes) -> int:
        start = 8 + int.from_bytes(data[:8], "little")
        return start + json.loads(data[8:start])[name]["data_offsets"][0]

    return where


def saying(path: str, **values: object) -> Damage:
    """A JSON file with other values; `...` takes a key out."""

    def damage(model: Path) -> None:
        config = json.loads((model / path).read_text()) | values
        (model / path).write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return damage


def weights(folder: str, edit: Callable[[dict[str, torch.Tensor]], object], **options: int) -> Damage:
    """Well-formed files with fitting digests, which hold other tensors."""

    def damage(model: Path) -> None:
        tensors = load_file(model / folder / WEIGHTS)
        edit(tensors)
        (model / folder / WEIGHTS).unlink()
        save_tensors(model / folder, tensors, **options)

    return damage


def sharded(then: Callable[[Path, dict[str, str]], object]) -> Damage:
    """The transformer in shards; `then` damages the folder or its weight map (tensor to shard)."""

    def damage(model: Path) -> None:
        weights("transformer", lambda tensors: None, max_shard_bytes=200_000)(model)
        index = model / f"{TRANSFORMER}.index.json"
        content = json.loads(index.read_text())
        then(model / "transformer", content["weight_map"])
        index.write_text(json.dumps(content))

    return damage


class Trap:
    """Unpickled, it leaves a file in the working folder."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def pickled(model: Path) -> None:
    (model / TRANSFORMER).unlink()
    (model / "transformer/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap()))


Q = "layers.0.self_attn.to_q.weight"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 610120\n"
CONFIG, TOKENIZER = "transformer/config.json", "text_tokenizer/tokenizer.json"
TEMPLATE, SCHEDULER = "text_tokenizer/chat_template.jinja", "scheduler/scheduler_config.json"
BELONG, AGAIN = "Check that config.json and the tensor files belong together", "Copy or download {} again"
FETCH = "Get the {} again from the model's repository"
DESCRIPTIONS: dict[str, tuple[Damage, str, str]] = {
    "no model_index.json": (removed("model_index.json"), "--model {model}", "with model_index.json at its top"),
    "model_index.json no JSON": (
        holding("model_index.json", "{"),
        "{model}/model_index.json",
        AGAIN.format("model_index.json"),
    ),
    "model_index.json a list": (holding("model_index.json", "[]"), "{model}/model_index.json", "object was expected"),
    "model_index.json nested deep": (
        holding("model_index.json", "[" * 100_000),
        "{model}/model_index.json",
        AGAIN.format("model_index.json"),
    ),
    "another pipeline": (
        saying("model_index.json", _class_name="FluxPipeline"),
        "--model {model}",
        "describes a 'FluxPipeline'. Cosmos3 checkpoints say Cosmos3OmniPipeline",
    ),
    "no config.json": (removed(CONFIG), "--model {model}", f"it has no {CONFIG}. Point --model at a folder"),
    "config.json no JSON": (holding(CONFIG, '{"hidden_size": 64,'), f"{{model}}/{CONFIG}", AGAIN.format(CONFIG)),
    "config.json not UTF-8": (holding(CONFIG, b"\xff\xfe{}"), f"{{model}}/{CONFIG}", AGAIN.format(CONFIG)),
    "config.json an LFS pointer": (holding(CONFIG, LFS), f"{{model}}/{CONFIG}", "Run `git lfs pull` in {model}"),
    "quantized": (
        saying(CONFIG, quantization_config={"quant_method": "fp8"}),
        "loading {model}/transformer",
        "It reads modelopt, compressed-tensors, auto-round",
    ),
    "another kind of transformer": (
        saying(CONFIG, position_embedding_type="learned"),
        f"loading {{model}}/{CONFIG}",
        "Check that --model names a Cosmos3 generator",
    ),
    **{
        f"{key} {value!r}": (saying(CONFIG, **{key: value}), f"loading {{model}}/{CONFIG}", then)
        for key, value, then in (
            ("hidden_size", "wide", "hidden_size is 'wide', not a number. Get the file again"),
            ("num_hidden_layers", 0, "num_hidden_layers is 0, not a positive whole number"),
            ("num_key_value_heads", 3, "4 query heads do not divide by 3"),
            ("rope_axes_dim", 8, "rope_axes_dim is 8, not three whole numbers"),
            ("rope_axes_dim", [8, 8, 8], "do not add up to head_dim / 2"),
            ("sound_dim", "x", "sound_dim is 'x', not a number"),
            ("hidden_size", 64.0, "hidden_size is 64.0, not a positive whole number"),
            ("rms_norm_eps", -1, "rms_norm_eps is -1, not a positive number"),
            ("base_fps", 0, "base_fps is 0, not a positive number"),
            ("hidden_act", "gelu", "hidden_act is 'gelu', not 'silu' or 'relu2'"),
        )
    },
    "rope_scaling a word": (
        saying(CONFIG, rope_axes_dim=..., rope_scaling="x"),
        f"loading {{model}}/{CONFIG}",
        "rope_axes_dim is 'x', not three whole numbers",
    ),
    "dtype unknown": (saying(CONFIG, dtype="int4"), "dtype 'int4'", "Dtypes are float32, bfloat16, float16"),
    "no scheduler": (removed(SCHEDULER), "--model {model}", f"it has no {SCHEDULER}"),
    "scheduler of another model": (
        saying(SCHEDULER, use_flow_sigmas=..., prediction_type="epsilon"),
        "loading {model}/scheduler",
        "prediction_type is 'epsilon', and Cosmos3's is 'flow_prediction'; use_flow_sigmas is missing, and Cosmos3's "
        "is True. Use the scheduler folder of the model's own repository",
    ),
    "a scheduler's setting unknown": (
        saying(SCHEDULER, sigma_mix=1),
        "loading {model}/scheduler",
        "the setting 'sigma_mix' is unknown",
    ),
    "distilled without sigmas": (
        holding("modular_model_index.json", '{"is_distilled": true, "distilled_sigmas": "four"}'),
        "--model {model}",
        "it has no distilled sigmas",
    ),
    "distilled sigmas that rise": (
        holding("modular_model_index.json", '{"is_distilled": true, "distilled_sigmas": [0.2, 0.9]}'),
        "--model {model}",
        "its distilled sigmas are [0.2, 0.9], and noise levels fall from at most 1",
    ),
    "a vae of another model": (
        saying("vae/config.json", z_dim=16, latents_mean=[0.0] * 16, latents_std=[1.0] * 16),
        "--model {model}",
        "its VAE has 16 latent channels, and its transformer 48",
    ),
    "no vae/config.json": (removed("vae/config.json"), "--model {model}", "it has no vae/config.json"),
    "no tokenizer": (removed(TOKENIZER), "--model {model}", f"it has no {TOKENIZER}"),
    "tokenizer no JSON": (holding(TOKENIZER, "{"), "loading {model}/text_tokenizer", FETCH.format("folder")),
    "tokenizer with half a token": (
        saying("text_tokenizer/tokenizer_config.json", pad_token={"foo": 1}),
        "loading {model}/text_tokenizer",
        "tokenizer_config.json cannot be understood (KeyError: 'content')",
    ),
    "tokenizer without its end": (
        saying("text_tokenizer/tokenizer_config.json", eos_token="<end>"),
        "loading {model}/text_tokenizer",
        "no eos_token token ('<end>')",
    ),
    "tokenizer of another model": (
        saying(CONFIG, vocab_size=100),
        "--model {model}",
        "its vocabulary ends at 99. text_tokenizer and transformer belong to different models",
    ),
    "no chat template": (removed(TEMPLATE), "loading {model}/text_tokenizer", "there is no chat template"),
    "chat template does not compile": (
        holding(TEMPLATE, "{% for %}"),
        "loading {model}/text_tokenizer",
        "the chat template does not compile",
    ),
    "chat template fails": (
        holding(TEMPLATE, "{{ messages + 1 }}"),
        "loading {model}/text_tokenizer",
        "the chat template fails",
    ),
    "chat template breaks out": (
        holding(TEMPLATE, "{{ messages.__class__.__mro__ }}"),
        "loading {model}/text_tokenizer",
        "the chat template fails",
    ),
}
HEADERS: dict[str, tuple[Damage, str, str]] = {
    **{
        f"weights {name}": (damage, f"{{model}}/{TRANSFORMER}", then)
        for name, damage, then in (
            ("empty", cut_to(TRANSFORMER, 0), "cut short or damaged"),
            ("cut in the header", cut_to(TRANSFORMER, 1000), "cut short or damaged"),
            (
                "cut by one byte",
                cut_to(TRANSFORMER, (TINY / TRANSFORMER).stat().st_size - 1),
                AGAIN.format(TRANSFORMER),
            ),
            ("flipped in the length", flipped(TRANSFORMER, lambda data: 1), AGAIN.format(TRANSFORMER)),
            ("flipped in an offset", flipped(TRANSFORMER, lambda d: d.index(b"_offsets") + 11), "cut short or damaged"),
            (
                "flipped in a name",
                flipped(TRANSFORMER, lambda d: d.rindex(Q.encode()) + 3),
                "digests are those of other",
            ),
            ("an LFS pointer", holding(TRANSFORMER, LFS), "Run `git lfs pull` in {model}"),
        )
    },
    "no weights": (removed(TRANSFORMER), "{model}/transformer", f"neither {WEIGHTS} nor its index"),
    "pickled weights": (pickled, "{model}/transformer", "never unpickles. Convert it to safetensors first"),
    "no VAE weights": (removed(VAE), "{model}/vae", AGAIN.format(VAE)),
    "VAE weights cut": (cut_to(VAE, 500_000), f"{{model}}/{VAE}", AGAIN.format(VAE)),
    "a shard missing": (
        sharded(lambda folder, shards: (folder / shards[Q]).unlink()),
        "{model}/transformer/diffusion_pytorch_model-0000",
        "the file is missing, and the index says that it holds layers.0.",
    ),
    "a shard outside the checkpoint": (
        sharded(lambda folder, shards: shards.update({Q: "../../elsewhere.safetensors"})),
        f"{{model}}/{TRANSFORMER}.index.json",
        f"it puts {Q} in '../../elsewhere.safetensors'",
    ),
    "an index of another model": (
        sharded(lambda folder, shards: shards.update(other=shards[Q])),
        "{model}/transformer/diffusion_pytorch_model-0000",
        "the index says that it holds other, and it does not",
    ),
    "an index no JSON": (
        holding(f"{TRANSFORMER}.index.json", "{"),
        f"{{model}}/{TRANSFORMER}.index.json",
        AGAIN.format(f"{TRANSFORMER}.index.json"),
    ),
    **{
        name: (weights("transformer", edit), "loading {model}/transformer", f"{found}. {BELONG}")
        for name, edit, found in (
            ("a tensor missing", lambda t: t.pop(Q), f"1 tensor missing: {Q} [64, 64]"),
            ("a tensor too many", lambda t: t.update(lora=torch.zeros(2)), "1 tensor not part of this model: lora"),
            (
                "a tensor of another shape",
                lambda t: t.update({Q: t[Q][:32]}),
                f"1 tensor of the wrong shape: {Q} is [32, 64] instead of [64, 64]",
            ),
        )
    },
    "the layers alone": (
        weights("transformer", lambda t: [t.pop(name) for name in [*t] if not name.startswith("layers.")]),
        "loading {model}/transformer",
        "AutoRound saves no more of what it calibrates. Add the other tensors of the checkpoint",
    ),
    "a quantized tensor": (
        weights("transformer", lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})),
        "loading {model}/transformer",
        f"it holds {Q} of float8_e4m3fn, so it is quantized, and no file says how. Get the config.json",
    ),
    "config.json of a deeper model": (saying(CONFIG, num_hidden_layers=3), "loading {model}/transformer", BELONG),
    "a VAE tensor missing": (
        weights("vae", lambda t: t.pop("quant_conv.bias")),
        "loading {model}/vae",
        f"1 tensor missing: quant_conv.bias [96]. {BELONG}",
    ),
    "a VAE tensor that was quantized": (
        weights("vae", lambda t: t.update({"quant_conv.bias": t["quant_conv.bias"].to(torch.float8_e4m3fn)})),
        "loading {model}/vae",
        "quant_conv.bias is torch.float8_e4m3fn",
    ),
    "a tensor under both of its names": (
        weights("transformer", lambda t: t.update({"vae2llm.bias": t["proj_in.bias"]})),
        "loading {model}/transformer",
        "two names of one tensor. Keep one of them",
    ),
    "a VAE tensor of another shape": (
        weights("vae", lambda t: t.update({"quant_conv.bias": torch.zeros(5)})),
        "loading {model}/vae",
        "quant_conv.bias is [5] instead of [96]",
    ),
    "a VAE of another kind": (
        saying("vae/config.json", scale_factor_spatial=8),
        "loading {model}/vae",
        "by 4 and space by 8, and Cosmos3's VAE by 4 and 16. Use the vae folder of the model's own repository",
    ),
    "a VAE without its statistics": (
        saying("vae/config.json", latents_mean=...),
        "loading {model}/vae",
        FETCH.format("vae folder"),
    ),
    "a VAE of nonsense": (saying("vae/config.json", base_dim="x"), "loading {model}/vae", FETCH.format("vae folder")),
}
VALUES: dict[str, tuple[Damage, str, str]] = {
    "a bit flipped": (
        flipped(TRANSFORMER, first_byte_of(Q)),
        f"{{model}}/{TRANSFORMER}",
        f"tensor {Q} is damaged: its bytes do not have the digest written beside them. {AGAIN.format(TRANSFORMER)}",
    ),
    "a weight NaN": (
        weights("transformer", lambda t: t[Q][5].fill_(torch.nan)),
        f"{{model}}/{TRANSFORMER}",
        f"tensor {Q} holds NaN or infinite values. {AGAIN.format(TRANSFORMER)}",
    ),
    "a weight infinite": (
        weights("transformer", lambda t: t["norm_moe_gen.weight"][0].fill_(-torch.inf)),
        f"{{model}}/{TRANSFORMER}",
        "tensor norm_moe_gen.weight holds NaN or infinite values",
    ),
}


def refused_checkpoint(user: User, damage: Damage, asked: str, then: str, *, started: bool) -> None:
    model = user.names["model"]
    shutil.copytree(TINY, model)
    damage(model)
    user.refused(CLIP + "--model {model}", asked, then, started=started)


@pytest.mark.parametrize("damage, asked, then", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_checkpoint_with_a_damaged_description(user: User, damage: Damage, asked: str, then: str):
    refused_checkpoint(user, damage, asked, then, started=False)
    assert not user.reads


@pytest.mark.parametrize("damage, asked, then", HEADERS.values(), ids=HEADERS)
def test_a_checkpoint_whose_tensors_are_not_its_own(user: User, damage: Damage, asked: str, then: str):
    refused_checkpoint(user, damage, asked, then, started=True)
    assert not user.reads


@pytest.mark.parametrize("damage, asked, then", VALUES.values(), ids=VALUES)
def test_a_checkpoint_with_damaged_values(user: User, damage: Damage, asked: str, then: str):
    refused_checkpoint(user, damage, asked, then, started=True)
    assert user.reads


def test_a_damaged_decoder_does_not_cost_the_steps(user: User):
    """It shows when it is read, after the steps, which are kept and go on once it is repaired."""
    model, before = user.names["model"], user.holds()
    shutil.copytree(TINY, model)
    flipped(VAE, first_byte_of("decoder.conv_in.weight"))(model)
    code, stdout, lines = user.run(CLIP + "--model {model} --seed 1")
    state = user.out / "clip.mp4.state.safetensors"
    assert (code, stdout) == (2, "")
    assert lines[-1].startswith(f"error: {model}/{VAE}: tensor ") and AGAIN.format(VAE) in lines[-1]
    resume = f"cosmos3 run --resume {state} -o {user.out}/clip.mp4 --overwrite"
    assert lines[-2] == f"2 of 2 steps are kept; go on with: {resume}"
    assert user.holds().keys() == before.keys() | {str(state)}

    shutil.copy(TINY / VAE, model / VAE)
    code, stdout, lines = user.run(f"--resume {state} -o {{out}}/clip.mp4 --overwrite")
    assert (code, stdout) == (2, "") and "have changed since. Put the old one back, or add --changed" in lines[-1]
    code, stdout, lines = user.run(f"--resume {state} -o {{out}}/clip.mp4 --overwrite --changed")
    assert (code, stdout.strip()) == (0, f"{user.out}/clip.mp4"), lines
    assert user.holds().keys() == before.keys()
    clip = read_video(user.out / "clip.mp4", 9, "first").frames
    assert clip.shape == (5, 64, 64, 3)
    # What shows that the other tests would have seen a weight being read.
    # With no step left, nothing needs the media tower. A tower reads its layers one after the other, then the rest.
    tower = ["transformer"] * (describe(TINY_MODEL).config.num_hidden_layers + 1)
    assert user.reads == [*tower, *tower, "vae", *tower, "vae"]


# ---- as a process --------------------------------------------------------------------------------------------------


def process(user: User, command: str, **options: object) -> subprocess.CompletedProcess:
    program = [sys.executable, "-B", "-m", "cosmos3", "run", *user.argv(command)]
    return subprocess.run(program, capture_output=True, text=True, cwd=user.out, **options)


def test_8_frames_as_a_process(user: User):
    before = user.holds()
    result = process(user, CLIP + "--frames 8")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: 8 frames: frames come as 4k+1: one, then groups of 4. The nearest are 5 and 9\n"
    assert user.holds() == before


@pytest.mark.parametrize("command, name", [(CLIP, "clip.mp4"), (PICTURE, "picture.png")], ids=("clip", "picture"))
def test_a_full_disk(user: User, command: str, name: str):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    before = user.holds()
    result = process(user, command + "--steps 1", preexec_fn=limit)
    *progress, lost, message = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert lost.startswith(f"1 of 1 steps are lost: writing {user.out}/{name}.state.safetensors: the disk is full")
    assert message.startswith(f"error: writing {user.out}/{name}: the disk is full (needed more than ")
    assert message.endswith("Free space or choose another folder for --output")
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert user.holds() == before
