"""What a run can begin from besides one picture or the beginning of a clip: keyframes, first and last, going on from a
clip's end. By the command line and from Python, beside diffusers, saved, repeated and refused."""

from __future__ import annotations

import json
from pathlib import Path

import inputs
import numpy as np
import peer
import published
import pytest
import torch
from PIL import Image
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.memory import Media
from cosmos3_core.files.video import read_video
from cosmos3_core.scenarios import request as requests
from cosmos3_core.scenarios.keyframes import held

SMALL = ("--model", TINY_MODEL, "--backend", "reference", "--size", "64x48", "--frames", "13", "--steps", "2")
NANO = "nvidia/Cosmos3-Nano"


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder with the pictures a.png and b.png and the clip c.mp4 of 9 frames, 12 a second."""
    monkeypatch.chdir(tmp_path)
    inputs.photograph(160, 120).save("a.png")
    inputs.photograph(160, 120).transpose(Image.Transpose.ROTATE_180).save("b.png")
    inputs.clip(Path("c.mp4"))
    return tmp_path


def manifest(name: str) -> dict:
    return json.loads(Path(f"{name}.json").read_text())


# Beside diffusers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """Nano at tiny width, and diffusers' pipeline of it."""
    folder = published.repository(tmp_path_factory.mktemp("model"), NANO)
    return folder, peer.pipeline_of(folder)


def pictures(count: int) -> list[np.ndarray]:
    """Different ones, 64x48."""
    return [np.asarray(inputs.photograph(64 + 16 * i, 48).crop((0, 0, 64, 48))) for i in range(count)]


def as_diffusers_takes_it(given: dict, media: list[Media], nano, **options):
    """(our state, diffusers' latents) of one request, from the same noise."""
    folder, pipeline = nano
    model = open_model(str(folder))
    given = given | {"prompt": "a robot arm pours coffee.", "negative_prompt": "blurry", "seed": 5, "steps": 4}
    request, _ = requests.resolve(given | {"size": "64x48"}, "diffusers", model.facts, pick_seed=lambda: 0)
    engine = Engine(model, peer.reference_plan(model.config))
    state = engine.start(request, engine.read_inputs(request, media=media))
    while not state.done:
        engine.step(state)
    theirs = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_frames=request.frames,
        height=request.height,
        width=request.width,
        fps=request.fps,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
        condition_frame_indexes_vision=request.clean_frames,
        **options,
    )
    return state, theirs.video[0]


@pytest.mark.parametrize("frames", [(0, 12), (0, 6, 12), (12,)], ids=["first and last", "three", "the last alone"])
def test_keyframes_run_as_diffusers_runs_a_clip_of_them(frames, nano):
    """v2v with indices anywhere is the oracle: a clip of stills, each as long as it takes to the next."""
    stills = dict(zip(frames, pictures(len(frames)), strict=True))
    media = [Media.of(f"keyframe.{frame}", still) for frame, still in stills.items()]
    given = {"task": "keyframes", "frames": 13, "keyframe": {one.field.partition(".")[2]: one.said for one in media}}
    clip = [next(still for frame, still in stills.items() if i <= held(frame)[1]) for i in range(13)]
    state, theirs = as_diffusers_takes_it(given, media, nano, video=[Image.fromarray(frame) for frame in clip])
    ours = state.latents()[0]
    assert peer.relative_error(ours, theirs) <= 1e-4
    assert state.items[0].clean == tuple(-(-frame // 4) for frame in frames)
    for frame in state.items[0].clean:
        assert torch.equal(ours[:, frame], state.context.clean.view(ours.shape)[:, frame])


def test_going_on_from_a_clip_is_v2v_from_its_last_frames(nano):
    clip = np.stack(pictures(9))
    media = [Media.of("extend", clip)]
    given = {"task": "extend", "frames": 13, "extend": media[0].said}
    options = {"video": [Image.fromarray(frame) for frame in clip], "condition_video_keep": "last"}
    state, theirs = as_diffusers_takes_it(given, media, nano, **options)
    assert peer.relative_error(state.latents()[0], theirs) <= 1e-4
    clean = state.context.clean.view(state.items[0].shape)
    assert all(torch.equal(state.latents()[0][:, frame], clean[:, frame]) for frame in (0, 1))


# The command line ------------------------------------------------------------------------------------------------


def test_keyframes_go_through_the_command_line(files, run):
    code, out, err = run("a cup", *SMALL, "--keyframe", "0=a.png", "--keyframe", "-1=b.png", "-o", "k.mp4")
    assert code == 0 and out == "k.mp4\n", err
    told = manifest("k.mp4")
    assert told["request"]["task"] == "keyframes"
    assert told["request"]["keyframe"] == {"0": str(files / "a.png"), "12": str(files / "b.png")}
    assert {label: fact["file"] for label, fact in told["inputs"].items()} == {
        "keyframe.0": "a.png",
        "keyframe.12": "b.png",
    }
    assert len({fact["sha256"] for fact in told["inputs"].values()}) == 2
    code, _, err = run("--request", "k.mp4", "-o", "again.mp4", "--save-latents", "again.safetensors")
    assert code == 0, err
    assert manifest("again.mp4")["request"] == told["request"]


def test_what_a_crop_costs_is_said_of_every_picture(files, run):
    Image.open("b.png").resize((200, 48)).save("b.png")
    Image.open("a.png").resize((48, 200)).save("a.png")
    code, _, err = run("a cup", *SMALL, "--keyframe", "0=a.png", "--keyframe", "12=b.png", "-o", "k.mp4")
    assert code == 0
    assert "note: keyframe 0: the picture of 48x200 loses" in err
    assert "note: keyframe 12: the picture of 200x48 loses" in err


@pytest.mark.parametrize(
    "typed",
    [
        '{"0": "a.png", "12": "b.png"}',
        '[{"frame": 0, "image": "a.png"}, {"frame": -1, "image": "b.png"}]',
        '["first=a.png", "last=b.png"]',
        '[[0, "a.png"], [12, "b.png"]]',
    ],
)
def test_keyframes_have_several_spellings_in_a_file(typed, files, run):
    Path("r.json").write_text(f'{{"prompt": "a cup", "keyframe": {typed}}}')
    code, out, err = run("--request", "r.json", *SMALL, "--dry-run", "--set", "seed=3")
    assert code == 0, err
    assert "keyframes 64x48" in out


def test_another_file_at_a_keyframes_name_is_noticed(files, run):
    run("a cup", *SMALL, "--keyframe", "0=a.png", "--keyframe", "12=b.png", "-o", "k.mp4")
    inputs.photograph(80, 60).save("b.png")
    code, _, err = run("--request", "k.mp4", "-o", "again.mp4")
    assert code == 2 and f"its keyframe.12 {files / 'b.png'} has changed since the run of that manifest" in err
    code, _, err = run("--request", "k.mp4", "-o", "again.mp4", "--changed")
    assert code == 0 and "note: its keyframe.12" in err
    code, _, err = run("--request", "k.mp4", "-o", "b.png", "--overwrite")
    assert code == 2 and "another file of this run has that name" in err


def test_extend_writes_the_clip_and_what_goes_on_from_it(files, run):
    code, _, err = run("it goes on", *SMALL, "--extend", "c.mp4", "--fps", "12", "-o", "e.mp4")
    assert code == 0, err
    told = manifest("e.mp4")
    assert told["request"]["task"] == "extend" and told["request"]["with_input"] is True
    assert told["output"]["frames"] == 9 + 13 - 5, "the five frames that it begins with are the clip's own"
    whole, clip = (read_video(Path(name), 100, "first").frames for name in ("e.mp4", "c.mp4"))
    shown = np.stack([np.asarray(Image.fromarray(frame).resize((64, 48))) for frame in clip])
    # The clip is cropped from 160x96 to 4:3, so only the middle of it is compared.
    assert np.abs(whole[:9, :, 24:40].astype(float) - _cropped(clip)[:, :, 24:40]).mean() < 4
    assert shown.shape == whole[:9].shape
    code, _, err = run("it goes on", *SMALL, "--extend", "c.mp4", "--set", "with_input=false", "-o", "new.mp4")
    assert code == 0 and manifest("new.mp4")["output"]["frames"] == 13, err


def _cropped(clip: np.ndarray) -> np.ndarray:
    scaled = [Image.fromarray(frame).resize((80, 48), Image.Resampling.BILINEAR) for frame in clip]
    return np.stack([np.asarray(frame.crop((8, 0, 72, 48)), dtype=float) for frame in scaled])


def test_auto_size_is_that_of_the_first_keyframe_or_the_clip(files, run):
    for given in (("--keyframe", "0=a.png", "--keyframe", "12=b.png"), ("--extend", "c.mp4")):
        code, out, err = run("a", "--model", TINY_MODEL, *given, "--size", "256p:auto", "--dry-run", "--json")
        assert code == 0, err
        assert json.loads(out)["request"]["size"] == ("320x256" if given[0] == "--keyframe" else "320x192")


# Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return cosmos3.load(TINY_MODEL, backend="reference", dtype="float32")


FIELDS = {"size": "64x48", "frames": 13, "steps": 3, "seed": 4}


def test_a_dict_of_pictures_is_the_same_as_their_files(files, pipe):
    a, b = Image.open("a.png"), np.asarray(Image.open("b.png"))
    handed = pipe("a cup", keyframe={0: a, -1: b}, **FIELDS)
    named = pipe("a cup", keyframe={0: "a.png", 12: Path("b.png")}, **FIELDS)
    assert torch.equal(handed.latents, named.latents)
    said = handed.request["keyframe"]
    assert list(said) == ["0", "12"] and said["0"].startswith("memory: PIL image RGB, 160x120, sha256 ")
    assert pipe(**named.request).numpy.shape == (13, 48, 64, 3)


def test_a_run_from_keyframes_is_saved_and_goes_on(files, pipe):
    stills = {0: Image.open("a.png"), 12: Image.open("b.png")}
    whole = pipe("a cup", keyframe=stills, **FIELDS)
    run = pipe.start("a cup", keyframe=stills, **FIELDS)
    run.step()
    run.save("half.safetensors")
    again = pipe.resume("half.safetensors", keyframe=stills).run()
    assert torch.equal(again.latents, whole.latents)
    with pytest.raises(cosmos3.InputError, match="so no file has it. Hand the same one over again"):
        pipe.resume("half.safetensors")
    with pytest.raises(cosmos3.InputError, match="the picture or clip that it began with has changed since"):
        pipe.resume("half.safetensors", keyframe={0: stills[12], 12: stills[0]})
    with pytest.raises(cosmos3.InputError, match="its keyframe differ"):
        pipe.resume("half.safetensors", keyframe={0: stills[0], 8: stills[12]})


def test_a_run_from_files_goes_on_in_another_folder(files, pipe, monkeypatch):
    run = pipe.start("a cup", keyframe={0: "a.png", 12: "b.png"}, **FIELDS)
    run.step()
    run.save("half.safetensors")
    (files / "elsewhere").mkdir()
    monkeypatch.chdir(files / "elsewhere")
    assert pipe.resume(files / "half.safetensors").run().numpy.shape == (13, 48, 64, 3)


def test_extend_in_python_has_both(files, pipe):
    clip = np.stack([np.asarray(Image.open("a.png").resize((64, 48)))] * 9)
    clip = (clip * np.linspace(0.5, 1, 9)[:, None, None, None]).astype(np.uint8)
    both = pipe("it goes on", extend=clip, **FIELDS)
    assert both.numpy.shape == (17, 48, 64, 3) and np.array_equal(both.numpy[:9], clip)
    alone = pipe("it goes on", extend=clip, with_input=False, **FIELDS)
    assert np.array_equal(alone.numpy[5:], both.numpy[9:]) and torch.equal(alone.latents, both.latents)
    assert both.save("both.mp4") and manifest("both.mp4")["output"]["frames"] == 17


# Other programs' words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["last_image", "image_end", "end_frame", "last-frame"])
def test_other_names_of_a_last_picture_are_answered(name, files, run):
    code, _, err = run("a cup", *SMALL, f"--{name.replace('_', '-')}", "b.png")
    assert code == 2 and "here it is --keyframe INDEX=FILE, such as 188=b.png; -1 is the last frame" in err


def test_a_request_with_a_first_and_a_last_picture_becomes_keyframes(files, run):
    theirs = {"prompt": "a cup", "image": "a.png", "last_image": "b.png", "num_frames": 13, "width": 64, "height": 48}
    Path("r.json").write_text(json.dumps(theirs | {"num_inference_steps": 2}))
    code, out, err = run("--request", "r.json", "--model", TINY_MODEL, "--dry-run", "--json")
    assert code == 0, err
    request = json.loads(out)["request"]
    assert request["task"] == "keyframes" and list(request["keyframe"]) == ["0", "12"]
    assert "last_image → keyframe -1" in err and "image → keyframe 0" in err


@pytest.mark.parametrize(("word", "task"), [("fl2v", "keyframes"), ("FLF2V", "keyframes"), ("continuation", "extend")])
def test_other_names_of_the_tasks_are_known(word, task, files, run):
    given = {"keyframes": ("--keyframe", "0=a.png"), "extend": ("--extend", "c.mp4")}[task]
    code, out, err = run("a", *SMALL, "--task", word, *given, "--dry-run")
    assert code == 0 and f"{task} 64x48" in out, err


# Mistakes --------------------------------------------------------------------------------------------------------

BAD = {
    "a keyframe without a frame": (["--keyframe", "a.png"], "keyframe = 'a.png': it is no frame with its picture"),
    "a keyframe that is no number": (["--keyframe", "end=a.png"], "keyframe 'end': a frame is a whole number"),
    "a keyframe without a picture": (["--keyframe", "0="], "keyframe = '': it is not a path"),
    "a keyframe after the end": (["--keyframe", "13=a.png"], "the clip has 13 frames. Use indices from 0 to 12"),
    "a keyframe before the beginning": (["--keyframe", "-14=a.png"], "the clip has 13 frames"),
    "a frame twice": (["--keyframe", "0=a.png", "--keyframe", "0=b.png"], "the frame is named twice"),
    "a frame twice, once from the end": (
        ["--keyframe", "12=a.png", "--keyframe", "-1=b.png"],
        "frames 9 to 12 are one latent frame, which holds one picture. Drop one, or move it",
    ),
    "two keyframes of one latent frame": (
        ["--keyframe", "5=a.png", "--keyframe", "8=b.png"],
        "frames 5 to 8 are one latent frame",
    ),
    "nothing left to make": (
        [f"--keyframe={frame}=a.png" for frame in (0, 4, 8, 12)],
        "there is nothing left to generate",
    ),
    "no such picture": (["--keyframe", "0=c.png"], "reading c.png: No such file or directory"),
    "a keyframe that is a clip": (["--keyframe", "0=c.mp4"], "c.mp4"),
    "a keyframe at a URL": (["--keyframe", "0=https://x.org/a.png"], "it is a URL, and only files are read"),
    "a picture and keyframes": (
        ["--image", "a.png", "--keyframe", "12=b.png"],
        "Give the first picture as --keyframe 0=FILE too",
    ),
    "a clip and keyframes": (["--video", "c.mp4", "--keyframe", "12=b.png"], "a run starts from one of them"),
    "keyframes of a picture": (["--keyframe", "0=a.png", "--frames", "1"], "one frame is an image"),
    "keyframes for i2v": (["--task", "i2v", "--keyframe", "0=a.png"], "image to video takes no keyframe"),
    "the task without its pictures": (["--task", "keyframes"], "there is no input keyframe. Add --keyframe"),
    "extend without a clip": (["--task", "extend"], "there is no input extend. Add --extend FILE"),
    "extend a picture": (["--extend", "a.png"], "it is a still picture, and this takes a clip"),
    "extend with the other end": (
        ["--extend", "c.mp4", "--set", "condition_video_keep=first"],
        "they are taken from its end",
    ),
    "extend and a clip": (["--extend", "c.mp4", "--video", "c.mp4"], "a run starts from one of them"),
    "with_input without a clip": (["--set", "with_input=false"], "it would change nothing"),
    "an object of nothing": (["--set", "keyframe={}"], "it names no picture"),
    "an object with other keys": (['--set=keyframe=[{"index": 0, "file": "a.png"}]'], "it is no frame with its"),
    "extend on the output's name": (["--extend", "c.mp4", "-o", "c.mp4", "--overwrite"], "has that name"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_error(name, files, run):
    typed, said = BAD[name]
    small = SMALL if "--frames" not in typed else tuple(word for word in SMALL if word not in ("--frames", "13"))
    code, out, err = run("a cup", *small, *typed, *(() if "-o" in typed else ("-o", "out.mp4")))
    assert (code, out) == (2, "") and said in err, err
    assert err.count("error:") == 1 and "load " not in err.partition("error:")[0] and "Traceback" not in err
    assert {path.name for path in files.iterdir()} == {"a.png", "b.png", "c.mp4"}
