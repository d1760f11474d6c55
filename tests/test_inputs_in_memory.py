"""Pictures and clips that a program hands over: the same pixels in every form, and one error for what is neither."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import inputs
import numpy as np
import peer
import pytest
import torch
from command import cosmos3
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract import InputError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.memory import Media
from cosmos3_core.files.video import read_video
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.runs import saved
from cosmos3_core.runs.saved import Earlier
from cosmos3_core.settle import Wish, settle

PLAN = peer.reference_plan(open_model(TINY_MODEL).config, "bfloat16")
COMMON = {"prompt": "a cup", "frames": 9, "size": "64x64", "steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def running() -> Engine:
    return Engine(open_model(TINY_MODEL), PLAN, placement=ALL_RESIDENT)


def settled(field: str, said: str, **given):
    return settle(Wish(model=TINY_MODEL, backend="reference", given=COMMON | {field: said} | given))


def pixels(running: Engine, field: str, value, **given) -> torch.Tensor:
    """Of a path, or of what is handed over."""
    if isinstance(value, Path):
        return running.read_inputs(settled(field, str(value), **given).request).given[0]
    media = Media.of(field, value)
    return running.read_inputs(settled(field, media.said, **given).request, media=[media]).given[0]


def data_of(picture: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def forms(array: np.ndarray) -> dict[str, object]:
    """uint8 [..., H, W, 3], handed over in each way that says so."""
    moved = np.moveaxis(array, -1, -3)
    return {
        "array": array,
        "channels first": moved,
        "tensor": torch.from_numpy(array.copy()),
        "tensor, channels first": torch.from_numpy(moved.copy()),
        "float32": array.astype(np.float32) / 255,
        "float64": array / 255,
        "float tensor": torch.from_numpy(moved / 255).float().requires_grad_(),
    }


def test_a_picture_is_the_same_pixels_in_every_form(running, tmp_path):
    picture = inputs.photograph(90, 70)
    picture.save(tmp_path / "cup.png")
    expected = pixels(running, "image", tmp_path / "cup.png")
    whole = {"bytes": data_of(picture), "bytearray": bytearray(data_of(picture)), "PIL": picture}
    opened = {"an opened file": Image.open(tmp_path / "cup.png")}
    said = set()
    for name, value in (whole | opened | forms(np.asarray(picture))).items():
        assert torch.equal(pixels(running, "image", value), expected), name
        said.add(Media.of("image", value).sha256)
    assert len(said) == 1  # so any of them is "the same picture" to a run that goes on


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "turned"])
def test_colour_and_orientation_are_as_in_files(running, tmp_path, mode):
    picture, options = inputs.photograph(90, 70), {}
    if mode == "turned":
        options["exif"] = picture.getexif()
        options["exif"][0x0112] = 6
    elif mode == "I;16":
        picture = Image.fromarray(np.arange(90 * 70, dtype=np.uint16).reshape(70, 90) * 10)
    elif mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    else:
        picture = picture.convert(mode)
    data = data_of(picture, **options)
    (tmp_path / "x.png").write_bytes(data)
    expected = pixels(running, "image", tmp_path / "x.png")
    handed = [data, Image.open(io.BytesIO(data))]
    if mode in ("L", "RGBA"):
        handed += [np.asarray(picture), np.asarray(picture) / np.float32(255)]
    for value in handed:
        assert torch.equal(pixels(running, "image", value), expected)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_clip_is_the_same_pixels_in_every_form(running, tmp_path, keep):
    path = inputs.clip(tmp_path / "pan.mp4", frames=12)
    given = {"condition_frame_indexes": [0, 1], "condition_video_keep": keep, "video_fps": "keep"}
    expected = pixels(running, "video", path, **given)
    frames = read_video(path, 12, "first").frames
    pictures = [Image.fromarray(frame) for frame in frames]
    handed = {"bytes": path.read_bytes(), "pictures": pictures, "arrays": tuple(frames)}
    handed |= forms(frames) | {"files": [data_of(picture) for picture in pictures]}
    for name, value in handed.items():
        assert torch.equal(pixels(running, "video", value, **given), expected), name


def test_the_pixels_are_those_of_the_moment(running):
    array = np.asarray(inputs.photograph(90, 70)).copy()
    expected = pixels(running, "image", array.copy())
    media = Media.of("image", array)
    array[:] = 0
    request = settled("image", media.said).request
    assert torch.equal(running.read_inputs(request, media=[media]).given[0], expected)


RGB = np.full((8, 8, 3), 0.5)
REFUSED = {
    "a number": ("image", 7, "`image` handed over as a value of type int: that is no picture. Give a path"),
    "a list of pictures": ("image", [RGB, RGB], "a list of 2: that is no picture"),
    "values of the VAE": ("image", RGB - 0.9, r"from -0.4 to -0.4. Values in \[-1, 1\] are the VAE's: give \(x \+ 1\)"),
    "floats to 255": ("image", RGB * 510, "go from 255 to 255. Give floats from 0 to 1, or uint8 from 0 to 255"),
    "NaN": ("image", RGB * np.nan, "holds NaN"),
    "int64": ("image", np.zeros((8, 8, 3), np.int64), "its values are int64. Give uint8"),
    "booleans": ("image", torch.zeros(8, 8, 3, dtype=torch.bool), "its values are bool. Give uint8"),
    "complex": ("image", RGB * 1j, "its values are complex128"),
    "both ways": ("image", np.zeros((3, 8, 3), np.uint8), r"\[3, 8, 3\] could be \[H, W, C\] and \[C, H, W\]"),
    "no channels": ("image", np.zeros((8, 8, 5), np.uint8), "none of its axes can be the channels"),
    "a batch": ("image", RGB[None], r"2 or 3 axes, not 4. .*such as x\[0\]"),
    "nothing": ("image", np.zeros((0, 8, 3), np.uint8), "it is empty"),
    "no picture's bytes": ("image", b"hello", "reading 5 bytes in memory: the file is not a picture"),
    "half a picture": ("image", data_of(inputs.photograph(90, 70))[:900], "the picture cannot be read"),
    "32-bit grey": ("image", Image.new("F", (8, 8), -1.0), "32-bit values, from -1 to -1, have no known range"),
    "a picture as clip": ("video", Image.new("RGB", (8, 8)), "that is no clip"),
    "a frame as clip": ("video", RGB, "a clip has 4 axes, not 3"),
    "no frames": ("video", [], "it has no frames"),
    "two sizes": ("video", [RGB, RGB[:6]], "of different sizes, 8x6 and 8x8. Give frames of one size"),
    "a word among frames": ("video", [RGB, "x"], "`video` handed over as a value of type str: that is no clip"),
}


@pytest.mark.parametrize(("field", "value", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_or_clip_is_named(field, value, message):
    with pytest.raises(InputError, match=message) as caught:
        Media.of(field, value)
    assert caught.value.field in (field, None) and len(str(caught.value).splitlines()) == 1


def test_bytes_that_are_no_clip_are_refused_when_they_are_read(running):
    with pytest.raises(InputError, match="reading 5 bytes in memory: it cannot be read as video"):
        pixels(running, "video", b"hello")


def test_a_clip_that_is_too_short_is_refused_as_a_file_is(running):
    with pytest.raises(InputError, match="it has 4 frames, and condition_frame_indexes .* cover 5"):
        pixels(running, "video", [RGB] * 4, condition_frame_indexes=[1])


def test_the_request_and_what_is_handed_over_belong_together(running, tmp_path):
    cup, bowl = (Media.of("image", inputs.photograph(*size)) for size in ((90, 70), (80, 70)))
    request = settled("image", cup.said).request
    assert json.loads(json.dumps(request.to_json()))["image"].startswith("memory: PIL image RGB, 90x70, sha256 ")
    with pytest.raises(InputError, match="so no file has it. Hand the same one over again in Python"):
        running.read_inputs(request)
    with pytest.raises(InputError, match="the request was made for another one.*Hand over the same one"):
        running.read_inputs(request, media=[bowl])
    with pytest.raises(InputError, match=r"the request's image is 'cup.png'. Drop one"):
        running.read_inputs(settled("image", "cup.png").request, media=[cup])


def test_a_stopped_run_goes_on_with_the_same_picture_and_not_in_the_command_line(
    running, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    picture = inputs.photograph(90, 70)
    media = Media.of("image", picture)
    settled_ = settled("image", media.said)
    read = running.read_inputs(settled_.request, media=[media])
    state = running.step(running.start(settled_.request, read))
    saved.save(Path("stopped.st"), *state.to_tensors(), Earlier.of(settled_, read, None))
    expected = running.step(state).x

    stopped = saved.read_stopped("stopped.st", "the state")
    assert stopped.earlier.given["image"] == media.said
    again = settled("image", stopped.earlier.given["image"]).request
    resumed = running.start(again, running.read_inputs(again, media=[Media.of("image", np.asarray(picture))]))
    resumed.restore(stopped.tensors, stopped.numbers)
    assert torch.equal(running.step(resumed).x, expected)

    code, out, err = cosmos3(capsys, monkeypatch, "run", "--resume", "stopped.st", "-o", "x.mp4")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "a Python program handed it over in memory, so no file has it. Hand the same one over again in Python" in err


SDE = {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}
DISTILLED = replace(open_model(TINY_MODEL), scheduler=SDE, distilled_sigmas=(1.0, 0.8, 0.6, 0.3))


@pytest.mark.parametrize("schedule", ["native", "karras", "distilled"])
@pytest.mark.parametrize(("field", "clean"), [("image", [0]), ("video", [0, 1])])
def test_clean_frames_are_the_input_to_the_bit_after_every_step(running, field, clean, schedule):
    value = np.random.default_rng(0).integers(0, 256, (len(clean) * 4, 64, 64, 3), np.uint8)
    media = Media.of(field, value[0] if field == "image" else np.concatenate([value, value]))
    asked = replace(settled(field, media.said, steps=4).request, schedule=schedule)
    engine = Engine(DISTILLED, PLAN) if schedule == "distilled" else running
    state = engine.start(asked, engine.read_inputs(asked, media=[media]))
    before = state.latents()[0][:, clean].clone()
    while not state.done:
        engine.step(state)
        assert torch.equal(state.latents()[0][:, clean], before)
