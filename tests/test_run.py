"""`cosmos3 run` as a user meets it: four tasks on real input, what is written, stopping and going on, repeating."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from inputs import clip, photograph
from PIL import Image
from safetensors.torch import load_file
from tiny_model import TINY, TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.checkpoint.tensors import TensorFiles, Told
from cosmos3_core.cli import stopping
from cosmos3_core.files import video
from cosmos3_core.files.outputs import read_metadata
from cosmos3_core.model.transformer import UnderstandingTower
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.sampling.state import State

SMALL = ["--model", TINY_MODEL, "--size", "112x80", "--steps", "3"]


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


# --- the four tasks --------------------------------------------------------------------------------------------------


def test_text_to_image(run, tmp_path):
    code, out, err = run("a red cube on a table", *SMALL, "-o", "cube.png", "--seed", 7)
    assert (code, out.strip()) == (0, "cube.png"), err
    pixels = np.asarray(Image.open("cube.png"))
    assert pixels.shape == (80, 112, 3) and pixels.std() > 1
    manifest = json.loads(Path("cube.png.json").read_text())
    assert manifest["request"]["task"] == "t2i" and manifest["request"]["frames"] == 1
    inside = json.loads(read_metadata(Path("cube.png"))["cosmos3"])
    assert inside["request"] == manifest["request"] and inside["plan"] == manifest["plan"]


@pytest.mark.parametrize("fps", [24, 12.5])
def test_text_to_video(run, fps):
    code, _, err = run("a robot arm pours coffee", *SMALL, "--frames", 9, "--fps", fps, "-o", "arm.mp4")
    assert code == 0, err
    with av.open("arm.mp4") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert stream.average_rate == Fraction(fps)
        assert (context.width, context.height) == (112, 80)
    frames = decoded(Path("arm.mp4"))
    assert len(frames) == 9
    assert all(frame.std() > 1 for frame in frames)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 0.5  # and they move
    output = json.loads(Path("arm.mp4.json").read_text())["output"]
    assert output["frames"] == 9 and output["codec"] == "h264" and output["fps"] == fps


def test_image_to_video_starts_from_the_picture(run, tmp_path):
    photograph(640, 480).save("desk.jpg")
    code, _, err = run("the cup is lifted", *SMALL, "--image", "desk.jpg", "--frames", 9, "-o", "lift.mp4", "--seed", 1)
    assert code == 0, err
    assert len(decoded(Path("lift.mp4"))) == 9
    assert json.loads(Path("lift.mp4.json").read_text())["request"]["task"] == "i2v"
    # The conditioned frame depends on the picture alone: another seed changes every other frame, not this one.
    run("the cup is lifted", *SMALL, "--image", "desk.jpg", "--frames", 9, "-o", "again.mp4", "--seed", 2)
    first, second = decoded(Path("lift.mp4")).astype(int), decoded(Path("again.mp4")).astype(int)
    assert 4 * np.abs(first[0] - second[0]).mean() < np.abs(first[4:] - second[4:]).mean()  # the file is lossy


def test_video_to_video_keeps_the_end_asked_for(run, tmp_path):
    clip(tmp_path / "pan.mp4")
    latents = {}
    for keep in ("first", "last"):
        name = f"{keep}.mp4"
        arguments = [
            "--frames",
            13,
            "--seed",
            1,
            "--set",
            f"condition_video_keep={keep}",
            "--save-latents",
            f"{keep}.st",
        ]
        code, _, err = run("the camera pans on", *SMALL, "--video", "pan.mp4", *arguments, "-o", name)
        assert code == 0, err
        assert len(decoded(Path(name))) == 13
        latents[keep] = load_file(f"{keep}.st")
    first, last = latents["first"], latents["last"]
    assert torch.equal(first["noise.vision"], last["noise.vision"])
    assert not torch.equal(first["final.vision"][:, :2], last["final.vision"][:, :2])  # two clean latent frames


def test_the_prompt_and_the_seed_matter_and_the_same_request_repeats(run):
    def pixels(*arguments):
        code, _, err = run(*arguments, *SMALL, "-o", "x.png", "--overwrite")
        assert code == 0, err
        return np.asarray(Image.open("x.png"))

    cube = pixels("a red cube", "--seed", 7)
    assert np.array_equal(cube, pixels("a red cube", "--seed", 7))
    assert not np.array_equal(cube, pixels("a red cube", "--seed", 8))
    assert not np.array_equal(cube, pixels("a blue ball", "--seed", 7))


@pytest.mark.parametrize("profile", ["reference", "diffusers"])
def test_a_manifest_repeats_its_run(run, profile):
    """Its model, profile and plan too, and a random seed."""
    plan = ["--profile", profile, "--dtype", "float32", "--kernel", "gate=eager"]
    code, _, err = run("a red cube", *SMALL, "--frames", 5, *plan, "-o", "one.mp4", "--save-latents", "one.st")
    assert code == 0, err
    code, _, err = run("--request", "one.mp4.json", "-o", "two.mp4", "--save-latents", "two.st")
    assert code == 0, err
    one, two = (json.loads(Path(f"{name}.mp4.json").read_text()) for name in ("one", "two"))
    for key in ("request", "model", "profile"):
        assert one[key] == two[key]
    assert {**one["plan"], "backend_why": ""} == {**two["plan"], "backend_why": ""} and two["plan"]["named"] == ["gate"]
    assert torch.equal(load_file("one.st")["final.vision"], load_file("two.st")["final.vision"])
    code, out, err = run(
        "--request", "one.mp4.json", "-o", "x.mp4", "--dry-run", "--json", "--dtype", "bfloat16", "--steps", 2
    )
    assert code == 0 and json.loads(out)["plan"]["dtype"] == "bfloat16" and json.loads(out)["request"]["steps"] == 2


def test_a_task_that_was_not_given_is_not_said_to_be(run):
    for typed, name, task, origin in (([], "x.PNG", "t2i", "the inputs"), (["--task", "t2v"], "x.mp4", "t2v", "user")):
        code, out, err = run("a cup", *SMALL, *typed, "-o", name, "--dry-run", "--json")
        assert code == 0, err
        assert (json.loads(out)["request"]["task"], json.loads(out)["origin"]["task"]) == (task, origin)


def test_prompts_from_a_file_and_from_standard_input(run, monkeypatch, tmp_path):
    caption = {"subjects": "a cup", "actions": []}
    Path("caption.json").write_text(json.dumps(caption))
    code, out, _ = run("@caption.json", *SMALL, "--frames", 9, "-o", "x.mp4", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["request"]["prompt"] == json.dumps(caption)
    result = subprocess.run(
        [sys.executable, "-m", "cosmos3", "run", "@-", *SMALL, "--dry-run", "--json", "-o", "x.png"],
        input="  a cup\n",
        capture_output=True,
        text=True,
    )
    assert json.loads(result.stdout)["request"]["prompt"] == "a cup"


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_done(run):
    code, _, err = run("a red cube", *SMALL, "--frames", 5, "--seed", 3, "-o", "x.mp4", "--manifest", "m.json")
    assert code == 0, err
    assert not Path("x.mp4.json").exists()
    manifest = json.loads(Path("m.json").read_text())
    assert manifest["model"] == {"name": TINY_MODEL, "revision": None, "variant": "base"}
    assert manifest["plan"]["backend"] == "reference" and manifest["plan"]["kernels"]["attention"] == "eager"
    assert manifest["plan"]["latents"] == {"vision": [48, 2, 5, 7]}
    execution = manifest["plan"]["execution"]
    assert execution["unguided"] == [{"branches": ["prompt"], "rows": 24, "captured": True}]
    assert execution["guided"] == [{"branches": ["prompt", "negative prompt"], "rows": 48, "captured": True}]
    assert execution["tiling"] == {"height": 5, "width": 7, "size": 7, "step": 7, "chunk": 58}
    assert manifest["origin"]["seed"] == "user" and manifest["origin"]["guidance"] == "profile reference"
    assert manifest["origin"]["negative_prompt"] == "checkpoint (assets/negative_prompt.json)"
    assert manifest["timesteps"] == [999, 952, 833]
    assert manifest["tokens"]["media"] == 2 * 3 * 4
    assert manifest["guardrail"] == {"requested": False, "effective": False}
    for stage in ("load understanding", "read prompts", "load generation", "steps", "load vae decoder", "decode"):
        assert manifest["seconds"][stage] > 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["peak_host_memory_bytes"] > 10**8


def test_a_dry_run_prints_the_request_and_reads_no_weight(run, monkeypatch):
    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    code, out, err = run(
        "a red cube", "--model", TINY_MODEL, "--size", "720p:9:16", "--dry-run", "--json", "-o", "x.mp4"
    )
    assert code == 0, err
    printed = json.loads(out)
    assert printed["request"]["size"] == "720x1280" and printed["request"]["frames"] == 189
    passes = [(one["branches"], one["captured"]) for one in printed["plan"]["execution"]["guided"]]
    assert passes == [(["prompt"], False), (["negative prompt"], False)]
    assert printed["plan"]["guidance"] == "two passes" and printed["plan"]["refused"] == []
    assert list(Path().iterdir()) == []


def test_only_what_the_task_needs_is_opened(run, tmp_path, monkeypatch):
    """Without a picture to encode, the VAE's encoder stays on disk; sound and vision encoder are never touched."""
    import shutil

    shutil.copytree(TINY, "model")
    shutil.rmtree("model/sound_tokenizer")
    asked: list[str] = []
    read = TensorFiles.read
    monkeypatch.setattr(TensorFiles, "read", lambda self, names: read(self, asked.append(list(names)) or asked[-1]))
    arguments = ["--model", "model", "--size", "64x64", "--steps", "1", "--frames", 5, "-o", "x.mp4", "--overwrite"]
    assert run("a cup", *arguments)[0] == 0
    names = [name for group in asked for name in group]
    assert any(name.startswith("decoder.") for name in names)
    assert not any(name.startswith(("encoder.", "quant_conv", "lm_head")) for name in names)
    asked.clear()
    photograph(64, 64).save("p.png")
    assert run("a cup", *arguments, "--image", "p.png")[0] == 0
    assert any(name.startswith("encoder.") for group in asked for name in group)


def test_latents_are_saved_and_injected(run):
    code, _, err = run("a cup", *SMALL, "-o", "x.png", "--seed", 1, "--save-latents", "l.safetensors")
    assert code == 0, err
    saved = load_file("l.safetensors")
    expected = torch.randn(48, 1, 5, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(saved["noise.vision"], expected)
    code, _, err = run("a cup", *SMALL, "-o", "y.png", "--latents", "l.safetensors")
    assert code == 0, err
    digest = hashlib.sha256(Path("l.safetensors").read_bytes()).hexdigest()
    assert json.loads(Path("y.png.json").read_text())["latents"] == {
        "file": str(Path("l.safetensors").absolute()),
        "sha256": digest,
    }
    code, _, err = run("a cup", *SMALL, "-o", "z.png", "--latents", "l.safetensors", "--seed", 99)
    assert code == 2 and "--seed 99 with --latents: it would change nothing" in err
    assert np.array_equal(np.asarray(Image.open("x.png")), np.asarray(Image.open("y.png")))


def test_a_cut_prompt_is_said_so(run):
    cut = ["--profile", "vllm-omni", "--set", "max_text_tokens=20"]
    code, out, err = run("a cup " * 50, *SMALL, *cut, "-o", "x.png", "--dry-run", "--json")
    assert code == 0 and "note: " not in out
    assert any("the prompt was cut from" in note and "to 20 tokens" in note for note in json.loads(out)["notes"])
    code, _, err = run("a cup " * 50, *SMALL, *cut, "-o", "x.png")
    assert code == 0 and "note: the prompt was cut from" in err
    assert json.loads(Path("x.png.json").read_text())["notes"]


def test_from_the_hub_only_what_the_task_needs_is_downloaded(tmp_path):
    """The whole command in a process of its own, against a hub on this machine; then again without any network."""
    from fake_hub import FakeHub

    command = [sys.executable, "-m", "cosmos3", "run", "a cup", "--model", "acme/Cosmos3-Small"]
    command += ["--revision", "stable", "--size", "64x64", "--steps", "1", "--seed", "1"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {"NO_PROXY": "127.0.0.1"}
    with FakeHub() as hub:
        commit = hub.push("acme/Cosmos3-Small", TINY, "stable")
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        first = subprocess.run([*command, "-o", "a.png"], cwd=tmp_path, env=env, capture_output=True, text=True)
        fetched = {
            path.split(f"{commit}/")[1]
            for method, path, _ in hub.requests
            if method == "GET" and commit in path and "/resolve/" in path
        }
    assert first.returncode == 0, first.stderr
    assert {"transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"} <= fetched
    assert not any(path.startswith("vision_encoder/") for path in fetched)
    assert {path for path in fetched if path.startswith("sound_tokenizer/")} == {"sound_tokenizer/config.json"}
    assert json.loads((tmp_path / "a.png.json").read_text())["model"]["revision"] == commit
    env["HF_HUB_OFFLINE"] = "1"
    again = subprocess.run([*command, "-o", "b.png"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    assert np.array_equal(a, b)


def test_tiled_decode(run):
    big = ["--model", TINY_MODEL, "--size", "256x192", "--steps", "1", "--frames", 5, "--seed", 1]
    assert run("a cup", *big, "-o", "whole.mp4")[0] == 0
    code, _, err = run("a cup", *big, "-o", "tiled.mp4", "--tile", "128")
    assert code == 0, err
    whole, tiled = (decoded(Path(f"{name}.mp4")).astype(int) for name in ("whole", "tiled"))
    assert tiled.shape == whole.shape and not np.array_equal(whole, tiled)


# --- stopping and going on -------------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_run_goes_on_to_the_same_result(run, tmp_path, number):
    """Ctrl-C, or a scheduler's request to end, in a real process: exit code 130, one line that says how to go on, and
    then the same file as unstopped."""
    request = ["--model", TINY_MODEL, "--size", "320x192", "--frames", "5", "--steps", "24", "--seed", "4"]
    with open("log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cosmos3", "run", "a cup", *request, "-o", "cup.mp4"],
            stderr=log,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    wait_for(lambda: "step 6 of 24" in Path("log").read_text())
    process.send_signal(number)
    assert process.wait(60) == 130
    log = Path("log").read_text()
    assert "Traceback" not in log and "cosmos3 run --resume cup.mp4.state.safetensors -o cup.mp4" in log
    assert not Path("cup.mp4").exists() and not list(Path().glob(".*"))

    code, _, err = run("--resume", "cup.mp4.state.safetensors", "-o", "cup.mp4", "--save-latents", "cup.st")
    assert code == 0, err
    assert not Path("cup.mp4.state.safetensors").exists()
    assert run("a cup", *request, "-o", "unstopped.mp4", "--save-latents", "unstopped.st")[0] == 0
    assert torch.equal(load_file("cup.st")["final.vision"], load_file("unstopped.st")["final.vision"])
    # The latents decide: x264's own choices vary a little from run to run.
    assert decoded(Path("cup.mp4")).shape == decoded(Path("unstopped.mp4")).shape


def test_a_stop_during_the_decode_keeps_all_steps(run, monkeypatch):
    """The steps are what cost time; a stop while frames are written must not lose them."""
    stop_at = iter(range(100))
    check = video.check_frame

    def interrupt(frame):
        if next(stop_at) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        check(frame)

    monkeypatch.setattr(video, "check_frame", interrupt)
    code, _, err = run("a cup", *SMALL, "--frames", 9, "--seed", 2, "-o", "cup.mp4")
    assert code == 130 and "3 of 3 steps are kept" in err
    assert not Path("cup.mp4").exists()
    monkeypatch.setattr(video, "check_frame", check)
    code, _, err = run("--resume", "cup.mp4.state.safetensors", "-o", "cup.mp4")
    assert code == 0, err
    assert len(decoded(Path("cup.mp4"))) == 9


@pytest.mark.parametrize(
    "option",
    ["prompt", "--steps 4", "--negative-prompt x", f"--model {TINY_MODEL}", "--set fps=3"]
    + ["--backend reference", "--dtype float32", "--kernel gate=eager", "--format fp8"],
)
def test_resuming_refuses_what_the_stopped_run_has_settled(run, option):
    Path("s.safetensors").write_bytes(b"")
    code, _, err = run("--resume", "s.safetensors", *option.split())
    assert code == 2 and "with --resume: the stopped run has settled its" in err


STEPS = ["--model", TINY_MODEL, "--size", "320x192", "--frames", "5", "--steps", "3"]


@pytest.fixture
def full(monkeypatch):
    """A device whose memory the decode does not fit into."""

    def decode(self, latents, tiling):
        raise torch.OutOfMemoryError("Acme out of memory. Tried to allocate 20.00 GiB. Device 0 has 4 GiB. Try less.")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(VideoVAE, "decode", decode)
        yield patch


def test_too_small_a_memory_costs_no_step(run, full):
    """The steps go on in the same dtype, with the same assertions, and in tiles if need be. Its line names the files
    again: a state names none that is written."""
    files = ["--save-latents", "cup.st", "--manifest", "cup.json"]
    options = ["--dtype", "float32", "--require", "gate=eager", *files]
    code, _, err = run("a cup", *STEPS, "--seed", 2, "-o", "cup.mp4", *options)
    assert "-o cup.mp4 --manifest cup.json --save-latents cup.st" in err
    assert code == 1 and err.splitlines()[-2].startswith("3 of 3 steps are kept; go on with: cosmos3 run --resume cup")
    assert "Acme out of memory. Tried to allocate 20.00 GiB" in err and "--tile" in err and "Traceback" not in err
    full.undo()
    code, _, err = run("--resume", "cup.mp4.state.safetensors", "-o", "cup.mp4", "--tile", 128, *files)
    assert code == 0, err
    manifest = json.loads(Path("cup.json").read_text())
    assert manifest["plan"]["dtypes"]["generation"] == "float32" and manifest["resumed_at_step"] == 3
    assert manifest["request"]["tile"] == 128 and not Path("cup.mp4.state.safetensors").exists()
    assert (
        run("a cup", *STEPS, "--seed", 2, "-o", "whole.mp4", "--dtype", "float32", "--save-latents", "whole.st")[0] == 0
    )
    assert torch.equal(load_file("cup.st")["final.vision"], load_file("whole.st")["final.vision"])
    assert "resumed_at_step" not in json.loads(Path("whole.mp4.json").read_text())


def test_a_stop_before_the_first_step_loads_no_more(run, monkeypatch):
    read = UnderstandingTower.read

    def stopped(self, prompts):
        os.kill(os.getpid(), signal.SIGINT)
        return read(self, prompts)

    monkeypatch.setattr(UnderstandingTower, "read", stopped)
    code, _, err = run("a cup", *STEPS, "-o", "cup.mp4")
    assert code == 130 and "load generation" not in err and not list(Path().iterdir())
    assert err.splitlines()[-2:] == ["nothing was computed yet, so nothing is kept", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("tensor", [5, 45])
def test_a_signal_stops_a_load_between_two_tensors(run, monkeypatch, number, tensor):
    """Of the text tower, which has 23, and of the media tower; nothing is left."""
    came, read = Told.read, []

    def signalled(files, names):
        for one in came(files, names):
            read.append(one[0])
            if len(read) == tensor:
                os.kill(os.getpid(), number)
            yield one

    monkeypatch.setattr(Told, "read", signalled)
    code, _, err = run("a cup", *STEPS, "-o", "cup.mp4")
    assert code == 130 and len(read) == tensor and not list(Path().iterdir()), err
    assert err.splitlines()[-2:] == ["nothing was computed yet, so nothing is kept", "stopped"]
    assert ("load generation" in err) is (tensor == 45)


def test_half_a_step_is_undone(run, monkeypatch):
    """So that the whole ones before it can be kept."""
    pin, calls = State.pin, iter(range(9))

    def interrupted(self):
        if next(calls) == 2:
            raise KeyboardInterrupt
        pin(self)

    monkeypatch.setattr(State, "pin", interrupted)
    code, _, err = run("a cup", *STEPS, "--seed", 3, "-o", "cup.mp4")
    assert code == 130 and "1 of 3 steps are kept" in err
    monkeypatch.setattr(State, "pin", pin)
    state = "cup.mp4.state.safetensors"
    assert run("--resume", state, "-o", "cup.mp4", "--save-latents", "cup.st")[0] == 0
    assert run("a cup", *STEPS, "--seed", 3, "-o", "whole.mp4", "--save-latents", "whole.st")[0] == 0
    assert torch.equal(load_file("cup.st")["final.vision"], load_file("whole.st")["final.vision"])


def test_a_run_goes_on_with_its_own_picture(run, full, tmp_path, monkeypatch):
    """From any folder, but not with another picture."""
    photograph(64, 64).save("in.png")
    assert run("a cup", *STEPS, "--image", "in.png", "-o", "cup.mp4")[0] == 1
    full.undo()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resume = ["--resume", "../cup.mp4.state.safetensors", "-o", "cup.mp4"]
    photograph(64, 48).save("../in.png")
    code, _, err = run(*resume)
    assert code == 2 and "the picture or clip that it began with has changed since" in err
    code, _, err = run(*resume, "--save-latents", "../cup.mp4.state.safetensors")
    assert code == 2 and "another file of this run has that name" in err
    photograph(64, 64).save("../in.png")
    code, _, err = run(*resume)
    assert code == 0, err


def test_a_run_that_goes_on_uses_up_its_own_state(run, full):
    for name in "ab":
        assert run("a cup", *STEPS, "-o", f"{name}.mp4")[0] == 1
    full.undo()
    code, _, err = run("--resume", "a.mp4.state.safetensors", "-o", "b.mp4")
    assert code == 0, err
    assert Path("b.mp4.state.safetensors").exists() and not Path("a.mp4.state.safetensors").exists()


def test_a_run_that_goes_on_leaves_a_file_that_somebody_named(run, full):
    assert run("a cup", *STEPS, "-o", "a.mp4")[0] == 1
    full.undo()
    Path("a.mp4.state.safetensors").rename("mine.safetensors")
    before = Path("mine.safetensors").read_bytes()
    code, _, err = run("--resume", "mine.safetensors", "-o", "a.mp4")
    assert code == 0 and Path("mine.safetensors").read_bytes() == before, err


def test_another_stopped_run_stays_where_it_is_kept(run, full):
    """Typed again and stopped again, a command does not write over the steps that it had."""
    assert run("a cup", *STEPS, "-o", "cup.mp4")[0] == 1
    first = Path("cup.mp4.state.safetensors").read_bytes()
    code, _, err = run("a bowl", *STEPS, "-o", "cup.mp4")
    assert code == 1 and "go on with: cosmos3 run --resume cup.mp4.state-2.safetensors -o cup.mp4" in err
    assert Path("cup.mp4.state.safetensors").read_bytes() == first
    assert run("--resume", "cup.mp4.state-2.safetensors", "-o", "cup.mp4")[0] == 1  # its own it replaces
    assert sorted(Path().glob("*.safetensors")) == [
        Path("cup.mp4.state-2.safetensors"),
        Path("cup.mp4.state.safetensors"),
    ]


def test_a_run_that_was_told_to_survive_its_terminal_does():
    """As under nohup: a signal that is ignored stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.stop_signal() as check:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not check()
            os.kill(os.getpid(), signal.SIGTERM)
            assert check()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_does_not_break_the_step_in_hand(monkeypatch):
    class Closed:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    monkeypatch.setattr(sys, "stderr", Closed())
    with stopping.stop_signal() as check:
        os.kill(os.getpid(), signal.SIGTERM)
        assert check()


def test_a_run_goes_on_with_its_own_kernels(run, full, monkeypatch):
    """Chosen or named; a repeated run says what differs."""
    assert run("a cup", *STEPS, "-o", "cup.mp4")[0] == 1
    full.undo()
    assert run("a cup", *STEPS, "--seed", 3, "-o", "one.mp4")[0] == 0
    (gate,) = [row for row in reference.BACKEND.kernels if row.op == "gate"]
    others = tuple(replace(row, name="fast") if row is gate else row for row in reference.BACKEND.kernels)
    monkeypatch.setattr(reference, "BACKEND", replace(reference.BACKEND, kernels=others))
    code, _, err = run("--resume", "cup.mp4.state.safetensors", "-o", "cup.mp4")
    assert code == 2 and "its gate ran on eager, and here it would be fast" in err
    code, _, err = run("--request", "one.mp4.json", "-o", "two.mp4", "--dry-run", "--json")
    assert code == 0 and "note: gate ran on eager in that run, and is fast here" in err


def test_a_run_from_latents_is_repeated_from_them(run):
    assert run("a cup", *SMALL, "-o", "x.png", "--seed", 1, "--save-latents", "l.st")[0] == 0
    assert run("a cup", *SMALL, "-o", "y.png", "--latents", "l.st", "--save-latents", "y.st")[0] == 0
    code, _, err = run("--request", "y.png.json", "-o", "z.png", "--save-latents", "z.st")
    assert code == 0, err
    assert torch.equal(load_file("y.st")["final.vision"], load_file("z.st")["final.vision"])
    assert run("a cup", *SMALL, "-o", "x.png", "--seed", 2, "--save-latents", "l.st", "--overwrite")[0] == 0
    code, _, err = run("--request", "y.png.json", "-o", "z.png", "--overwrite")
    assert code == 2 and "l.st has changed since the run of that manifest" in err


def test_a_manifest_and_typed_kernels_are_joined(run):
    assert run("a cup", *SMALL, "-o", "x.png", "--kernel", "gate=eager")[0] == 0
    code, out, err = run("--request", "x.png.json", "-o", "y.png", "--dry-run", "--json", "--kernel", "rms_norm=eager")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan["named"] == ["gate", "rms_norm"] and plan["backend_why"] == "the manifest has it"


def test_steps_that_cannot_be_kept_are_said_to_be_lost(run, full):
    def write(state):
        raise OSError("the disk is full")

    full.setattr(State, "to_tensors", write)
    code, _, err = run("a cup", *STEPS, "-o", "cup.mp4")
    assert code == 1 and "3 of 3 steps are lost: the disk is full" in err and "out of memory" in err


# --- the command itself ----------------------------------------------------------------------------------------------


def test_weights_that_give_nan_are_a_failed_run_not_a_black_file(run, monkeypatch):
    from cosmos3_core.model.transformer import GenerationTower

    forward = GenerationTower.forward

    def broken(self, *arguments, **precision):
        return [[v * float("nan") for v in items] for items in forward(self, *arguments, **precision)]

    monkeypatch.setattr(GenerationTower, "forward", broken)
    code, _, err = run("a cup", *SMALL, "-o", "x.png")
    assert code == 1 and "NaN" in err and not list(Path().iterdir())


def test_an_existing_file_is_replaced_only_by_a_finished_one(run):
    Path("x.png").write_bytes(b"precious")
    code, _, _ = run("a cup", *SMALL, "-o", "x.png", "--steps", "0")
    assert code == 2 and Path("x.png").read_bytes() == b"precious"
    assert run("a cup", *SMALL, "-o", "x.png", "--overwrite")[0] == 0
    assert Path("x.png").read_bytes()[:4] == b"\x89PNG"


def test_transformers_is_not_imported(tmp_path):
    """Whole runs of every task work without it, as it is no dependency."""
    photograph(64, 64).save(tmp_path / "p.png")
    program = (
        "import sys; sys.modules['transformers'] = None; from cosmos3_core.cli import main;"
        f"sys.argv = ['cosmos3', 'run', 'a cup', '--model', {TINY_MODEL!r}, '--size', '64x64', '--frames', '5',"
        "'--steps', '1',"
        "'--image', 'p.png', '-o', 'x.mp4']; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
