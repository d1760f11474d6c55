"""Kinds of input that were once taken in silence, waited for without an end, or ended in a report: each is said now."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from command import cosmos3
from inputs import photograph
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.cli import unexpected
from cosmos3_core.contract import InputError
from cosmos3_core.files.images import read_image
from cosmos3_core.files.video import length_of, read_video
from cosmos3_core.scenarios.captions import check_caption

TINY = ("--model", TINY_MODEL, "--size", "64x64", "--steps", "1", "--backend", "reference")
NOT_UTF8 = os.fsdecode(b"\xff\xfe")

# Prompts ---------------------------------------------------------------------------------------------------------

VALUES = (
    ("[1, 2]", "a JSON value"),
    ('"a cup"', "a JSON value"),
    ("null", "a JSON value"),
    ("42", "a JSON value"),
    ('"a cup"\n"a plate"\n', "2 lines of JSON"),
    ("('a cup', 'a plate')", "a Python value"),
    ("('a cup',)", "a Python value"),
    ("b'a cup'", "a Python value"),
    ("'a cup'", "a Python value"),
    ("None", "a Python value"),
)


@pytest.mark.parametrize(("text", "what"), VALUES)
def test_a_value_of_a_program_is_no_prompt(text, what):
    with pytest.raises(InputError, match=f"it is {what}, which no caption is"):
        check_caption(text, "prompt")


@pytest.mark.parametrize(
    "text",
    [
        "OrderedDict([('subject', 'a cup')])",
        "dict(subject='a cup')",
        '// a comment\n{"subject": "a cup",}',
        'Here it is:\n```json\n{"subject": "a cup"}\n```',
        "{}",
        '{"messages": [{"role": "user", "content": "a cup"}]}',
        '{"model_mode": "text2video", "prompt_path": "a.txt"}',
        '\ufeff{"subject": "a cup"}',
        '\u200b{"subject": "a cup"}',
    ],
)
def test_what_looks_like_a_programs_text_is_no_prompt(text):
    with pytest.raises(InputError):
        check_caption(text, "prompt")


@pytest.mark.parametrize(
    "text",
    [
        "a cup",
        "[wide shot] a cup",
        '"A cup" is what the sign says',
        "{a cup} on a table",
        "# a cup",
        "two (2) cups, `blue`",
        "'Round the corner",
        "A sign says f(x)",
        '{"subject": "a cup"}',
        "1984 in Berlin",
    ],
)
def test_prose_and_captions_are_prompts(text):
    check_caption(text, "prompt")


# Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("a cup", "-o", f"{NOT_UTF8}.png"),
        ("a cup", "-o", "a.png", "--manifest", f"{NOT_UTF8}.json"),
        ("a cup", "-o", "a.png", "--save-latents", f"{NOT_UTF8}.safetensors"),
        ("a cup", "-o", "a.mp4", "--frames", "5", "--image", f"{NOT_UTF8}.png"),
        (f"@{NOT_UTF8}.txt", "-o", "a.png"),
    ],
)
def test_a_name_that_no_manifest_could_hold_is_refused_before_the_run(capsys, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(f"{NOT_UTF8}.png")
    Path(f"{NOT_UTF8}.txt").write_text("a cup")
    if words[2] == f"{NOT_UTF8}.png":
        os.unlink(words[2])
    before = sorted(os.listdir())
    code, _, err = cosmos3(capsys, monkeypatch, "run", *words, *TINY)
    assert code == 2 and "its path is not UTF-8 text" in err and sorted(os.listdir()) == before


@pytest.mark.parametrize("name", [".", "/", "./", ".."])
def test_a_folder_is_no_output(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", "-o", name, *TINY)
    assert code == 2 and "it is a folder" in err


@pytest.mark.parametrize(
    "option",
    ["--seed", "--steps", "--backend", "--format", "--kernel", "--set", "--dtype", "--task", "--profile", "-o"],
)
def test_a_value_of_thousands_of_digits_is_not_repeated_whole(capsys, monkeypatch, tmp_path, option):
    monkeypatch.chdir(tmp_path)
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a cup", "--model", TINY_MODEL, option, "9" * 5000)
    assert code == 2 and "9999" in err and len(err) < 700


def test_a_long_path_is_repeated_whole(capsys, monkeypatch):
    path = "/".join(["a" * 255] * 4)
    code, _, err = cosmos3(capsys, monkeypatch, "run", f"@{path}", *TINY, "-o", "a.png")
    assert code == 2 and path in err


# Files that are waited for or read without an end -------------------------------------------------------------------


def test_a_record_that_is_a_pipe_breaks_no_list(capsys, monkeypatch, tmp_path):
    recipe = Path(__file__).parents[1] / "cosmos3_core" / "recipes" / "embedded-t2i-128x128-cpux1.toml"
    (tmp_path / recipe.name).write_text(recipe.read_text())
    (tmp_path / "evidence").mkdir()
    os.mkfifo(tmp_path / "evidence" / f"{recipe.stem}.json")
    code, out, _ = cosmos3(capsys, monkeypatch, "recipes", "--folder", tmp_path, "list")
    assert code == 0 and "it is a pipe" in out


def test_a_recipe_that_is_a_folder_is_not_said_to_be_missing(capsys, monkeypatch, tmp_path):
    (tmp_path / "x.toml").mkdir()
    code, _, err = cosmos3(capsys, monkeypatch, "recipes", "--folder", tmp_path, "show", "x")
    assert code == 2 and "Is a directory" in err and "Did you mean" not in err


def test_show_is_bounded(capsys, monkeypatch, tmp_path):
    manifest = tmp_path / "a.json"
    kernels = {f"k{i}": "eager" for i in range(30_000)}
    manifest.write_text(json.dumps({"request": {}, "plan": {"kernels": kernels}}))
    code, out, _ = cosmos3(capsys, monkeypatch, "show", manifest)
    assert code == 0 and "and more than 2,000 rows" in out and len(out.splitlines()) < 2100
    manifest.write_text(" " * (5 << 20) + "{}")
    code, _, err = cosmos3(capsys, monkeypatch, "show", manifest)
    assert code == 2 and "larger than 4 MiB" in err


FILES_OF_A_MODEL = (
    "model_index.json",
    "transformer/config.json",
    "scheduler/scheduler_config.json",
    "assets/negative_prompt.json",
    "assets/action_stats.json",
    "text_tokenizer/chat_template.jinja",
)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [(name, "pipe", "it is a pipe") for name in FILES_OF_A_MODEL]
    + [("assets/negative_prompt.json", "folder", "Is a directory")]
    + [("assets/negative_prompt.json", "device", "it is a device")],
)
def test_a_file_of_a_model_that_is_none_is_refused(capsys, monkeypatch, tmp_path, name, kind, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY_MODEL, "model")
    path = Path("model", name)
    path.unlink(missing_ok=True)
    makers = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/null")}
    makers[kind](path)
    words = ("a cup", "-o", "a.mp4", "--dry-run", "--frames", "5", *TINY[2:], "--model", "model")
    code, _, err = cosmos3(capsys, monkeypatch, "run", *words)
    assert code == 2 and f"model/{name}: {said}" in err and len(err.splitlines()) == 1


# What a run says ----------------------------------------------------------------------------------------------------


def test_what_became_of_another_programs_request_is_in_the_manifest(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text('{"prompt": "a cup", "num_inference_steps": 1, "output_type": "image"}')
    words = ("--request", "q.json", "-o", "a.png", "--model", TINY_MODEL, "--size", "64x64", "--backend", "reference")
    code, _, err = cosmos3(capsys, monkeypatch, "run", *words)
    (note,) = json.loads(Path("a.png.json").read_text())["notes"]
    assert code == 0 and "num_inference_steps → steps" in note and err.count(f"note: {note}") == 1


@pytest.mark.parametrize("text", ["could not create a primitive", "could not create a memory object"])
def test_onednn_out_of_memory_is_memory(text):
    assert unexpected.explained(RuntimeError(text)).startswith("the machine's memory ran out")


def test_a_report_outlives_a_hub_library_that_fails(monkeypatch):
    class Hub:
        def get_token(self):
            raise ValueError("invalid literal for int()")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub())
    assert unexpected.without_secrets("token=abc") == "token=[left out]"


def test_a_setting_of_the_hubs_library_that_is_no_number_is_a_line():
    words = [sys.executable, "-m", "cosmos3", "run", "a cup", "--model", "nano", "--steps", "1"]
    done = subprocess.run(words, env=os.environ | {"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, capture_output=True, text=True)
    assert done.returncode == 2 and "huggingface_hub cannot read its settings" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


# Pictures and clips -------------------------------------------------------------------------------------------------


def test_a_picture_with_damaged_exif_data_is_read_and_said(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(data, "PNG")
    body = b"eXIfgarbage"
    chunk = struct.pack(">I", 7) + body + struct.pack(">I", zlib.crc32(body))
    path = tmp_path / "a.png"
    path.write_bytes(data.getvalue()[:33] + chunk + data.getvalue()[33:])
    reading = read_image(path)
    assert reading.frames[0, 0, 0].tolist() == [9, 9, 9] and "EXIF data is damaged" in reading.notes[0]


def clip(path: Path, times=None, pixels="bgr0", codec="ffv1", primaries=None) -> Path:
    ramp = np.arange(64, dtype=np.uint8)
    picture = np.stack([ramp[None] * 3 + 20 + 0 * ramp[:, None], ramp[:, None] * 3 + 10 + 0 * ramp[None]] * 2, -1)
    frames = [np.roll(picture, 9 * index, 1) for index in range(12)]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=24, options={"qp": "0"} if "264" in codec else {})
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        if primaries:
            stream.codec_context.color_primaries = primaries
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = (
                (index, Fraction(1, 24)) if times is None else (times[index], Fraction(1, 1000))
            )
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_uneven_frames_are_said(tmp_path):
    times = [0, 42, 83, 125, 500, 1000, 1042, 1083, 1500, 2000, 2500, 3000]
    path = clip(tmp_path / "a.mkv", times)
    assert "do not come evenly" in read_video(path, 9, "first", 24.0).notes[0]
    assert "one by one" in read_video(path, 9, "first").notes[0]
    assert read_video(clip(tmp_path / "b.mkv"), 9, "first", 24.0).notes == ()


def test_transparent_parts_of_a_clip_are_said(tmp_path):
    notes = read_video(clip(tmp_path / "a.mov", pixels="argb", codec="qtrle"), 5, "first").notes
    assert notes == ("the clip's transparent parts are put on white",)


def test_a_damaged_clip_is_said(tmp_path):
    data = bytearray(clip(tmp_path / "a.mkv", pixels="rgb24", codec="libx264rgb").read_bytes())
    for place in np.random.default_rng(5).integers(1200, len(data) // 2, 8):
        data[place] ^= 16
    assert any("is damaged" in note for note in read_video(bytes(data), 9, "first").notes)


@pytest.mark.parametrize(("number", "name"), [(4, "BT.470 M"), (6, "BT.601 525"), (8, "film"), (1, "BT.709")])
def test_the_primaries_are_those_that_the_file_says(tmp_path, number, name):
    path = clip(tmp_path / "a.mp4", pixels="yuv444p", codec="libx264", primaries=number)
    assert read_video(path, 5, "first").facts["primaries"] == name


@pytest.mark.parametrize(
    ("matrix", "said"),
    [((0.985, 0.174, -0.174, 0.985), True), ((1, 0.3, 0, 1), True), ((0, 0, 0, 0), True)]
    + [((0, 1, -1, 0), False), ((-1, 0, 0, -1), False), ((2, 0, 0, 1), False)],
)
def test_a_turn_that_is_no_quarter_is_said(tmp_path, matrix, said):
    path = clip(tmp_path / "a.mp4", pixels="rgb24", codec="libx264rgb")
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (int(value * 65536) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert any("no quarter" in note for note in read_video(path, 5, "first").notes) == said


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "jp2", "ppm"])
@pytest.mark.parametrize("field", ["video", "extend"])
def test_a_still_picture_is_no_clip(capsys, monkeypatch, tmp_path, suffix, field):
    monkeypatch.chdir(tmp_path)
    photograph(64, 64).save(f"a.{suffix}")
    words = ("a cup", f"--{field}", f"a.{suffix}", "--frames", "13", "-o", "a.mp4", "--dry-run", *TINY)
    code, _, err = cosmos3(capsys, monkeypatch, "run", *words)
    assert code == 2 and "it is a still picture" in err and "Give it as --image, or use a clip" in err


def test_a_still_picture_is_a_control(tmp_path):
    for suffix in ("jpg", "bmp", "tif"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(path)
        reading = read_video(path, 9, "first", 24.0)
        assert length_of(path, 9)[0] == 1 and reading.facts["pictures"] == 1
        assert reading.fps is None and "fps" not in reading.facts and not reading.notes
    pictures = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (9, 90)]
    for suffix, form in (("tif", "TIFF"), ("jpg", "MPO")):  # pages, and a phone's preview
        pictures[0].save(tmp_path / f"b.{suffix}", form, save_all=True, append_images=pictures[1:])
        assert length_of(tmp_path / f"b.{suffix}", 9)[0] == 1
    many = b""
    for picture in pictures:
        data = io.BytesIO()
        picture.resize((64, 64)).save(data, "JPEG")
        many += data.getvalue()
    assert length_of(many * 4, 9)[0] == 8


def test_a_second_video_stream_and_alpha_beside_the_colours_are_said(tmp_path):
    def written(path, streams, codec, pixels="yuv420p"):
        with av.open(str(path), "w") as file:
            made = [file.add_stream(codec, rate=24) for _ in range(streams)]
            for stream in made:
                stream.width = stream.height = 64
                stream.pix_fmt = pixels
            for stream in made:
                for index in range(3):
                    frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 + 50 * index, np.uint8))
                    file.mux(stream.encode(frame))
                file.mux(stream.encode(None))
        return read_video(path, 3, "first")

    two = written(tmp_path / "a.mp4", 2, "libx264")
    assert two.facts["video_streams"] == 2 and "2 video streams: the first is taken" in two.notes[0]
    one = written(tmp_path / "b.mp4", 1, "libx264")
    assert "video_streams" not in one.facts and not one.notes
    clear = written(tmp_path / "a.webm", 1, "libvpx-vp9", "yuva420p")
    assert clear.facts["alpha"] == "left out" and "transparency is beside its colours" in clear.notes[0]
