"""What `cosmos3 run` takes in besides options, and what it says of it: prompts in files, seeds, pictures and clips."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import clip, photograph
from PIL import Image
from tiny_model import TINY_MODEL

from cosmos3_core.contract.errors import InputError
from cosmos3_core.model.packing import Item
from cosmos3_core.sampling.noise import generator, initial_noise
from cosmos3_core.scenarios.captions import check_caption
from cosmos3_core.scenarios.sizes import auto_size, keeping

SMALL = ["--model", TINY_MODEL, "--steps", "2"]
SETTLE = [*SMALL, "--dry-run", "--json"]


@pytest.fixture
def settled(run):
    """The manifest of a dry run."""

    def call(*arguments):
        code, out, err = run(*arguments, *SETTLE)
        assert code == 0, err
        return json.loads(out)

    return call


# Prompts ---------------------------------------------------------------------------------------------------------

CAPTION = '{"caption": "a red cup", "duration": "1s"}'
NO_CAPTIONS = {
    "trailing comma": ('{"caption": "a red cup", "duration": "1s",}', "line 1, column 4"),
    "cut off": ('{"caption": "a red cup", "dura', "line 1, column 26"),
    "mistake on line 3": ('{\n "caption": "a",\n "b": c\n}', "line 3, column 7"),
    "list": ('[{"prompt": "a red cup"}]', "it is a JSON list"),
    "list of words": ('["a red cup", "a table"]', "it is a JSON list"),
    "empty list of lists": ("[[]]", "it is a JSON list"),
    "JSON lines": ('{"caption": "a"}\n{"caption": "b"}\n', "a second JSON object begins at line 2"),
    "two objects": ('{"caption": "a"}, {"caption": "b"}', "line 1"),
    "text after it": ('{"caption": "a"} and so on', "line 1, column 18"),
    "a Python repr": ("{'caption': 'a red cup', 'loud': None}", "line 1, column 2"),
    "a list of it": ("[{'caption': 'a red cup'}]", "line 1, column 3"),
    "bare keys": ("{caption: 'a red cup'}", "line 1, column 2"),
    "typographic quotes": ("{“caption”: “a red cup”}", "line 1, column 2"),
    "a comment": ('{ // of mine\n"caption": "a"}', "line 1, column 3"),
    "Markdown": (f"```json\n{CAPTION}\n```", "line 1, column 1"),
    "a key twice": ('{"caption": "a", "caption": "b"}', "'caption' is there twice"),
    "a key twice inside": ('{"caption": {"a": 1, "a": 2}}', "'a' is there twice"),
    "nested deep": ('{"a":' * 30_000, "it looks like JSON"),
    "the framework's request": (
        '{"inference_type": "text2world", "name": "x", "prompt": "a red cup", "num_steps": 35}',
        "'inference_type', 'num_steps', 'prompt'",
    ),
    "a number": ("7", "it is a JSON value"),
    "a request of ours": ('{"prompt": "a red cup", "steps": 5}', "it is a whole request"),
    "a manifest": ('{"cosmos3": "0.2", "request": {"prompt": "a"}}', "it is a whole request"),
}
PROSE = {
    "a sentence": "A red cup on a table.",
    "a shot in brackets": "[wide shot] a red cup",
    "weights": "(masterpiece:1.2), a red cup",
    "a choice": "{red|blue} cup",
    "an empty pair": "() a cup",
    "quoted": '"Stop!" says the man.',
    "a number": "7 cups",
    "a caption": CAPTION,
    "a caption over lines": json.dumps(json.loads(CAPTION), indent=2) + "\n",
    "a caption with lists": '{"subjects": [{"name": "cup"}], "resolution": {"H": 720, "W": 1280}}',
}


@pytest.mark.parametrize("text, found", NO_CAPTIONS.values(), ids=NO_CAPTIONS)
def test_data_that_is_no_caption_never_becomes_prose(text, found):
    for padded in (text, f"\n  {text}"):
        with pytest.raises(InputError) as caught:
            check_caption(padded, "prompt @file")
        assert caught.value.asked == "prompt @file"
    with pytest.raises(InputError) as caught:
        check_caption(text, "prompt @file")
    assert found in caught.value.found


@pytest.mark.parametrize("text", PROSE.values(), ids=PROSE)
def test_prose_and_captions_pass(text):
    check_caption(text, "prompt")


@pytest.mark.parametrize("option", ["prompt", "negative-prompt"])
def test_either_prompt_is_read_from_a_file(settled, option):
    Path("bom.json").write_bytes(b"\xef\xbb\xbf" + CAPTION.encode() + b"\r\n")
    given = ["@bom.json"] if option == "prompt" else ["a cup", "--negative-prompt", "@bom.json"]
    manifest = settled(*given, "--size", "64x64", "-o", "a.png")
    name = option.replace("-", "_")
    assert manifest["request"][name] == CAPTION
    digest = hashlib.sha256(Path("bom.json").read_bytes()).hexdigest()
    assert manifest["inputs"] == {name: {"file": "bom.json", "sha256": digest}}


@pytest.mark.parametrize("option", ["prompt", "negative-prompt"])
def test_either_prompt_is_checked(run, option):
    Path("trailing.json").write_text('{"caption": "a red cup",}')
    given = ["@trailing.json"] if option == "prompt" else ["a cup", "--negative-prompt", "@trailing.json"]
    code, out, err = run(*given, *SETTLE)
    assert (code, out) == (2, "") and err.startswith(f"error: {option.replace('-', ' ')} @trailing.json: ")
    assert "line 1, column 2" in err


def test_a_request_given_as_a_prompt_names_the_option(run):
    Path("framework.json").write_text('{"inference_type": "text2world", "prompt": "a red cup"}')
    code, _, err = run("@framework.json", *SETTLE)
    assert code == 2 and "Give that file to --request" in err
    code, _, err = run('["a red cup"]', *SETTLE)
    assert code == 2 and "it is a JSON list" in err


def test_a_request_file_may_begin_with_a_byte_order_mark(settled):
    Path("r.json").write_bytes(b'\xef\xbb\xbf{"prompt": "a red cup", "seed": 5, "size": "64x64"}')
    assert settled("--request", "r.json", "-o", "a.mp4")["request"]["seed"] == 5


def test_utf_16_is_no_prose_either(run):
    Path("a.txt").write_text("a red cup", "utf-16")
    code, _, err = run("@a.txt", *SETTLE)
    assert code == 2 and "Save it as UTF-8" in err


def test_standard_input_serves_one_text(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cup")))
    code, _, err = run("@-", "--negative-prompt", "@-", *SETTLE)
    assert code == 2 and "it can be read once" in err


@pytest.mark.parametrize(
    "arguments",
    [["@{}"], ["a cup", "--negative-prompt", "@{}"], ["--request", "{}"], ["a cup", "--latents", "{}"]]
    + [["--resume", "{}"], ["a cup", "--image", "{}"], ["a cup", "--video", "{}"]],
    ids=lambda arguments: arguments[-2] if len(arguments) > 1 else "prompt",
)
def test_a_pipe_or_device_is_no_input(run, arguments):
    os.mkfifo("pipe")
    common = [] if "--resume" in arguments else ["--model", TINY_MODEL]
    for name, kind in (("pipe", "a pipe"), ("/dev/zero", "a device")):
        code, out, err = run(*(argument.format(name) for argument in arguments), *common)
        assert (code, out) == (2, "") and f"{kind}, not an ordinary file" in err


# Seeds -----------------------------------------------------------------------------------------------------------

ITEM = Item("vision", (4, 3, 5, 7))


def first_noise(seed: int) -> torch.Tensor:
    return initial_noise([ITEM], generator(seed))[0]


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_a_seed_below_32_bits_is_torchs_own_stream(seed):
    assert torch.equal(first_noise(seed), torch.randn(ITEM.shape, generator=torch.Generator().manual_seed(seed)))


def test_every_bit_of_a_seed_counts():
    seeds = [0, 1, *(2**bit for bit in range(1, 64)), 2**32 + 1, 4294967297 + 2**40, 2**64 - 1, 2**63 - 1]
    found = {first_noise(seed).numpy().tobytes() for seed in dict.fromkeys(seeds)}
    assert len(found) == len(dict.fromkeys(seeds))


def test_a_large_seed_is_the_array_seeding_of_the_mersenne_twister():
    """The uniforms of numpy's own twister, 24 bits of each word, as torch takes them."""
    words = np.random.RandomState([5, 3]).randint(0, 2**32, 8, dtype=np.uint64)
    found = torch.rand(8, generator=generator((3 << 32) + 5))
    assert found.tolist() == [(int(word) % 2**24) / 2**24 for word in words]


def test_the_noise_of_a_large_seed_is_normal_and_goes_on():
    stream = generator(2**63 + 17)
    noise = torch.randn(100_000, generator=stream)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    saved = stream.get_state()
    after = torch.randn(5, generator=stream)
    assert torch.equal(after, torch.randn(5, generator=torch.Generator().set_state(saved)))


def test_two_seeds_that_share_32_bits_are_two_pictures(run):
    pictures = []
    for seed in (1, 4294967297, 18446744073709551615):
        code, _, err = run("a cup", *SMALL, "--size", "64x64", "--seed", seed, "-o", f"{seed}.png")
        assert code == 0, err
        assert json.loads(Path(f"{seed}.png.json").read_text())["request"]["seed"] == seed
        pictures.append(np.asarray(Image.open(f"{seed}.png")).tobytes())
    assert len(set(pictures)) == 3


# Pictures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def portrait(tmp_path) -> str:
    photograph(108, 192).save(tmp_path / "portrait.jpg")
    return "portrait.jpg"


def test_what_a_picture_loses_is_said_with_a_size_that_keeps_it(settled, portrait):
    (note,) = settled("a cup", "--image", portrait)["notes"]
    assert "108x192 loses 68% of itself to the size 1280x720" in note and "size 720x1280 loses 0%" in note
    (note,) = settled("a cup", "--image", portrait, "--size", "112x80", "--frames", 5)["notes"]
    assert "size 64x128 loses 11%" in note
    assert settled("a cup", "--image", portrait, "--size", "720x1280")["notes"] == []


def test_the_size_auto_is_the_tiers_nearest_to_the_picture(settled, portrait):
    manifest = settled("a cup", "--image", portrait, "--size", "auto")
    assert manifest["request"]["size"] == "720x1280" and manifest["notes"] == []
    assert manifest["origin"]["size"] == "auto: nearest to the input's 108x192"
    assert settled("a cup", "--image", portrait, "--size", "256p:auto")["request"]["size"] == "192x320"
    clip(Path("pan.mp4"))
    found = settled("a cup", "--video", "pan.mp4", "--size", "480p:auto", "--frames", 13)
    assert found["request"]["size"] == "832x480"


def test_the_size_auto_needs_an_input_and_a_tier_that_exists(run, portrait):
    code, _, err = run("a cup", "--size", "auto", *SETTLE)
    assert code == 2 and "this run starts from none" in err
    code, _, err = run("a cup", "--image", portrait, "--size", "999p:auto", *SETTLE)
    assert code == 2 and "there is no tier 999p" in err
    code, _, err = run("a cup", "--image", "none.png", "--size", "auto", *SETTLE)
    assert code == 2 and "reading none.png: No such file" in err


@pytest.mark.parametrize(
    "source, like, size",
    [
        ((1080, 1920), (1280, 720), (720, 1280)),
        ((4000, 3000), (1280, 720), (1104, 832)),
        ((3000, 3000), (832, 480), (640, 640)),
        ((1920, 1080), (640, 640), (832, 480)),
        ((1080, 1920), (1024, 1024), (768, 1360)),
        ((300, 100), (112, 80), (160, 48)),
    ],
)
def test_the_size_that_keeps_most(source, like, size):
    assert keeping(source, like) == size
    if like != (112, 80):
        assert auto_size("auto", source, like) == size


def test_what_was_read_is_in_the_manifest(run):
    photograph(128, 96).convert("CMYK").save("a.jpg")
    arguments = ["--image", "a.jpg", *SMALL, "--size", "64x48", "--frames", 5, "-o", "a.mp4"]
    code, _, err = run("a cup", *arguments)
    assert code == 0 and "note: the picture is CMYK without a profile" in err
    manifest = json.loads(Path("a.mp4.json").read_text())
    facts = manifest["inputs"]["image"]
    digest = hashlib.sha256(Path("a.jpg").read_bytes()).hexdigest()
    assert facts == {"file": "a.jpg", "format": "JPEG", "mode": "CMYK", "width": 128, "height": 96, "sha256": digest}
    assert any("CMYK" in note for note in manifest["notes"])


# Clips -----------------------------------------------------------------------------------------------------------

CLIP = ["a cup", "--video", "a.mp4", "--frames", 13, "--size", "160x96"]


@pytest.mark.parametrize("rate", [60, 10])
def test_a_clip_of_another_rate_is_resampled_and_said(settled, rate):
    clip(Path("a.mp4"), frames=2 * rate, rate=rate)
    manifest = settled(*CLIP)
    facts = manifest["inputs"]["video"]
    assert (facts["fps"], facts["resampled_to_fps"], facts["width"], facts["height"]) == (rate, 24, 160, 96)
    (note,) = manifest["notes"]
    assert f"{rate} frames a second were resampled to 24" in note and "video_fps keep" in note
    assert manifest["request"]["video_fps"] == "resample"


def test_a_clip_is_taken_frame_by_frame_on_demand(settled):
    clip(Path("a.mp4"), frames=20, rate=60)
    manifest = settled(*CLIP, "--video-fps", "keep")
    assert "resampled_to_fps" not in manifest["inputs"]["video"]
    assert "60 frames a second are shown at 24: 2.5 times slower (fps 60 keeps its pace)" in manifest["notes"][0]
    assert settled(*CLIP, "--video-fps", "keep", "--fps", 60)["notes"] == []
    assert settled(*CLIP, "--fps", 60)["notes"] == []


@pytest.mark.parametrize(
    ("rate", "fps", "pace"),
    [(25, 24, "4.2 % slower"), (24, 25, "4.2 % faster"), (24, 24.2, "0.83 % faster"), (240, 1, "240 times slower")],
)
def test_the_pace_of_a_clip_is_said_whatever_the_ratio(settled, rate, fps, pace):
    clip(Path("a.mp4"), frames=13, rate=rate)
    (note,) = settled(*CLIP, "--video-fps", "keep", "--fps", fps)["notes"]
    assert f"shown at {fps:g}: {pace} (" in note


def test_a_clip_that_is_too_short_once_resampled_says_so(run):
    clip(Path("a.mp4"), frames=9, rate=60)
    code, _, err = run(*CLIP, *SETTLE)
    assert code == 2 and "it has 4 frames at 24 a second" in err


def test_only_a_clip_has_a_rate(run):
    photograph(64, 64).save("a.png")
    code, _, err = run("a cup", "--image", "a.png", "--video-fps", "keep", *SETTLE)
    assert code == 2 and "image to video has no input clip" in err


def test_an_animated_picture_is_a_clip(settled):
    frames = [photograph(160, 96).rotate(i) for i in range(8)]
    frames[0].save("a.webp", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    manifest = settled("a cup", "--video", "a.webp", "--frames", 13, "--size", "160x96")
    assert manifest["inputs"]["video"]["fps"] == 20 and manifest["inputs"]["video"]["format"] == "WEBP"


def test_a_stretched_clip_says_by_how_much(settled):
    clip(Path("a.mp4"), rate=24)
    arguments = ["a cup", "--video", "a.mp4", "--frames", 13, "--size", "96x96", "--set", "video_fit=stretch"]
    (note,) = settled(*arguments)["notes"]
    assert "the clip of 160x96 is stretched by 67%" in note
