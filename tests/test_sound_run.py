"""Runs with sound as a user meets them: the command line, Python, and the mistakes that cost nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import peer
import pytest
import torch
from inputs import clip, photograph
from safetensors.torch import load_file, save_file
from tiny_model import TINY, TINY_MODEL

import cosmos3
from cosmos3_core.checkpoint.model import Weights, describe, open_model
from cosmos3_core.checkpoint.tensors import TensorFiles
from cosmos3_core.files.audio import Sound, read_sound, write_sound

RATE, SAMPLES = 48_000, 18_000
FRAMES = {"size": "64x64", "frames": 9, "steps": 2, "seed": 7}
TYPED = [str(word) for name, value in FRAMES.items() for word in (f"--{name}", value)]
ON_TINY = ["--model", TINY_MODEL, "--backend", "reference", *TYPED]


@pytest.fixture(scope="module")
def pipe():
    with cosmos3.load(TINY_MODEL, backend="reference") as pipe:
        yield pipe


@pytest.fixture
def made(run):
    """The manifest of a run that goes well, in an empty folder."""

    def call(*arguments: str, output: str = "x.mp4") -> dict:
        code, out, err = run("a cup falls", *ON_TINY, "-o", output, *arguments)
        assert (code, out.strip()) == (0, output), err
        return json.loads(Path(f"{output}.json").read_text())

    return call


def waveform(file: str | Path) -> np.ndarray:
    return read_sound(Path(file), RATE, 10**9)[0].samples


def tracks(file: str) -> list[str]:
    with av.open(file) as container:
        return sorted(stream.type for stream in container.streams)


@pytest.mark.parametrize(
    ("task", "arguments"), [("t2v", []), ("i2v", ["--image", "i.png"]), ("v2v", ["--video", "i.mp4"])]
)
def test_a_video_has_the_sound_that_is_in_a_file_beside_it(made, tmp_path, task, arguments):
    photograph(64, 64).save(tmp_path / "i.png")
    clip(tmp_path / "i.mp4", frames=9, rate=24)
    manifest = made("--sound", "--save-sound", "x.flac", *arguments)
    assert manifest["request"]["task"] == task and manifest["request"]["sound"] is True
    assert manifest["origin"]["sound"] == "user" and manifest["origin"]["sound_length"] == "profile reference"
    assert manifest["plan"]["latents"]["sound"] == [8, 10] and manifest["plan"]["dtypes"]["sound"] == "bfloat16"
    assert manifest["plan"]["execution"]["sound"] == {"frames": 10, "samples": SAMPLES, "rate": RATE}
    assert manifest["tokens"]["media"] == manifest["plan"]["execution"]["tokens"] == 3 * 2 * 2 + 10
    assert {"load sound decoder", "decode sound", "decode", "total"} <= manifest["seconds"].keys()
    assert manifest["output"]["sound"] == {"codec": "aac", "rate": RATE, "channels": 2, "samples": SAMPLES}
    assert tracks("x.mp4") == ["audio", "video"]
    beside, inside = waveform("x.flac"), waveform("x.mp4")[:, :SAMPLES]
    assert beside.shape == (2, SAMPLES) and beside.std() > 0.01
    beside, inside = (x.reshape(2, -1, 8).mean(2) for x in (beside, inside))  # AAC changes what is higher
    assert (beside * inside).sum() > 0.95 * np.sqrt((beside**2).sum() * (inside**2).sum())


def test_an_output_that_is_sound_is_the_sound_alone(made, run, pipe):
    """It asks for sound by its name, decodes no frame, and is what the video has."""
    made("--sound", "--save-sound", "x.flac")
    manifest = made(output="y.wav")
    assert manifest["origin"]["sound"] == "the output" and manifest["request"]["task"] == "t2v"
    assert "decode sound" in manifest["seconds"] and not {"decode", "load vae decoder"} & manifest["seconds"].keys()
    assert "total" in manifest["seconds"]
    assert manifest["output"] == {
        "file": "y.wav",
        "codec": "pcm_s16le",
        "rate": RATE,
        "channels": 2,
        "samples": SAMPLES,
        "bytes": Path("y.wav").stat().st_size,
    }
    assert tracks("y.wav") == ["audio"] and np.array_equal(waveform("y.wav"), waveform("x.flac"))
    code, out, err = run("a cup falls", *ON_TINY, "--sound-only")
    assert (code, out.strip()) == (0, "cosmos3-7.wav"), err
    assert np.array_equal(waveform("cosmos3-7.wav"), waveform("x.flac"))
    code, _, err = run("--request", "y.wav", "-o", "z.flac")  # its manifest is in it
    assert code == 0, err
    assert np.array_equal(waveform("z.flac"), waveform("x.flac"))


def test_a_saved_run_goes_on_to_the_same_sound(made, run, pipe):
    """Half in Python, half on the command line; and all of it again from its own noise."""
    made("--sound", "--save-sound", "x.wav")
    half = pipe.start("a cup falls", sound=True, **FRAMES)
    half.step()
    half.save("half.safetensors")
    code, _, err = run("--resume", "half.safetensors", "-o", "y.mp4", "--save-sound", "y.wav")
    assert code == 0, err
    whole = half.run()
    assert np.array_equal(waveform("y.wav"), waveform("x.wav"))
    again = pipe("a cup falls", sound=True, noise=whole.noise, **{k: v for k, v in FRAMES.items() if k != "seed"})
    assert np.array_equal(again.sound, whole.sound) and np.array_equal(again.numpy, whole.numpy)
    assert [list(one.shape) for one in whole.noise] == [[48, 3, 4, 4], [8, 10]]


def test_python_makes_what_the_command_line_makes(made, pipe):
    made("--sound", "--save-sound", "x.wav", "--save-latents", "x.safetensors")
    result = pipe("a cup falls", task="t2vs", **FRAMES)
    assert result.sound.shape == (2, SAMPLES) and result.sound.dtype == np.float32 and result.sound_rate == RATE
    assert np.abs(result.sound).max() <= 1
    result.save("p.mp4", sound="p.wav", latents="p.safetensors")
    result.save("q.flac")
    assert Path("p.wav").stat().st_size and np.array_equal(waveform("p.wav"), waveform("x.wav"))
    assert np.array_equal(waveform("q.flac"), waveform("x.wav")) and np.array_equal(
        waveform("p.mp4"), waveform("x.mp4")
    )
    ours, theirs = load_file("p.safetensors"), load_file("x.safetensors")
    assert ours.keys() == {f"{when}.{what}" for when in ("noise", "final") for what in ("vision", "sound")}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert result.request["sound"] is True and cosmos3.show("q.flac")["request"] == result.request


def test_an_output_in_python_is_the_sound_alone_by_its_name(pipe, tmp_path):
    result = pipe("a cup falls", output=tmp_path / "x.wav", **FRAMES)
    assert np.array_equal(waveform(tmp_path / "x.wav"), (np.rint(result.sound * 32768) / 32768).clip(-1, 1))


def test_a_run_without_sound_has_none(pipe, made):
    result = pipe("a cup falls", **FRAMES)
    assert result.sound is None and result.sound_rate is None and result.noise.shape == (48, 3, 4, 4)
    made("--no-sound")
    assert tracks("x.mp4") == ["video"]


def given_sound(file: str) -> np.ndarray:
    """A sound a little longer than the video, at another rate."""
    t = np.arange(20_000) / 44_100
    samples = (0.3 * np.sin(2 * np.pi * np.array([[440], [554]]) * t)).astype(np.float32)
    write_sound(Path(file), Sound(samples, 44_100), {})
    return read_sound(Path(file), RATE, SAMPLES)[0].samples


def test_a_video_is_made_for_a_sound_that_is_given(made, run, pipe):
    """Its latents are what the codec makes of it from the first step to the last, and it is what is heard."""
    sound = given_sound("in.flac")
    manifest = made("--audio", "in.flac", "--save-sound", "x.wav", "--save-latents", "x.safetensors")
    assert manifest["origin"]["sound"] == "the inputs" and manifest["origin"]["audio"] == "user"
    found = manifest["inputs"]["audio"]
    assert (found["rate"], found["channels"]) == (44_100, 2) and len(found["sha256"]) == 64
    assert "load sound encoder" in manifest["seconds"] and "load sound decoder" not in manifest["seconds"]
    assert np.abs(waveform("x.wav") - sound).max() <= 1 / 32768
    weights = Weights(open_model(TINY_MODEL))
    plan = peer.reference_plan(weights.model.config, "bfloat16")
    latent = weights.sound(plan.target(weights.model.config), "encoder").encode(torch.from_numpy(sound))
    tensors = load_file("x.safetensors")
    assert torch.equal(tensors["final.sound"], latent) and not torch.equal(tensors["noise.sound"], latent)
    silent = pipe("a cup falls", **FRAMES)
    assert not torch.equal(tensors["final.vision"], silent.latents), "the video hears it"
    result = pipe("a cup falls", audio="in.flac", **FRAMES)
    assert torch.equal(result.latents, tensors["final.vision"]) and np.array_equal(result.sound, sound)
    code, _, err = run("--request", "x.mp4", "-o", "y.mp4")
    assert code == 0, err
    assert Path("y.mp4").stat().st_size and np.array_equal(waveform("y.mp4"), waveform("x.mp4"))
    Path("in.flac").unlink()
    write_sound(Path("in.flac"), Sound(sound[::-1].copy(), RATE), {})
    code, _, err = run("--request", "x.mp4", "-o", "z.mp4")
    assert code == 2 and "its audio" in err and "has changed since" in err


def test_the_codec_is_opened_for_sound_alone(run, monkeypatch, tmp_path):
    asked: list[str] = []
    read = TensorFiles.read
    monkeypatch.setattr(TensorFiles, "read", lambda self, names: read(self, asked.append(self.folder) or names))
    assert run("a cup", *ON_TINY, "-o", "a.mp4")[0] == 0 and "sound_tokenizer" not in asked
    assert run("a cup", *ON_TINY, "-o", "a.wav")[0] == 0 and asked.count("sound_tokenizer") == 1


def test_the_plan_counts_the_codec(run):
    code, out, err = run(
        "--model", "nano", "--sound", "--backend", "reference", "--dry-run", "--json", "--memory", "80"
    )
    assert code == 0, err
    plan = json.loads(out)
    assert [stage["name"] for stage in plan["estimate"]["memory"]["stages"]][-2:] == ["decode sound", "decode"]
    assert plan["plan"]["execution"]["sound"] == {"frames": 197, "samples": 378_000, "rate": RATE}
    assert plan["plan"]["execution"]["tokens"] == 44_160 + 197


def test_what_a_device_takes_of_it(pipe):
    """Twice a second of sound beside as many pixels costs what its tokens and the decode cost."""
    silent, sounding = (pipe.plan(frames=189, size="720p", sound=sound) for sound in (False, True))
    stages = {stage.name: stage for stage in sounding.stages}
    assert stages["decode sound"].peak_bytes > 0 and "decode sound" not in {stage.name for stage in silent.stages}
    assert silent.stages[-1].name == "decode" and sounding.peak_bytes >= silent.peak_bytes


def test_show_says_it(made, run, capsys, monkeypatch):
    from command import cosmos3 as typed

    made(output="x.wav")
    code, out, err = typed(capsys, monkeypatch, "show", "x.wav")
    assert code == 0, err
    said = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.strip()}
    assert said["request.sound"] == "true" and said["plan.execution.sound.samples"] == str(SAMPLES)


# --- mistakes --------------------------------------------------------------------------------------------------------


def changed(folder: Path, file: str, **values) -> None:
    """A copy of the tiny model with keys of one of its JSON files changed."""
    shutil.copytree(TINY, folder)
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Models that make no sound, each for a reason of its own."""
    folder = tmp_path_factory.mktemp("models")
    changed(folder / "headless", "transformer/config.json", sound_gen=False)
    changed(folder / "tanh", "sound_tokenizer/config.json", dec_final_tanh=True)
    changed(folder / "wide", "sound_tokenizer/config.json", vocoder_input_dim=16, enc_latent_dim=32)
    changed(folder / "fast", "sound_tokenizer/config.json", sampling_rate=44_100)
    for name in ("mute", "broken", "torn", "deaf"):
        shutil.copytree(TINY, folder / name)
    shutil.rmtree(folder / "mute/sound_tokenizer")
    (folder / "broken/sound_tokenizer/config.json").write_text("{")
    file = folder / "torn/sound_tokenizer/diffusion_pytorch_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name != "decoder.conv1.bias"}, file)
    file = folder / "deaf/sound_tokenizer/diffusion_pytorch_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name.startswith("decoder.")}, file)
    clip(folder / "silent.mp4")
    return folder


ELSEWHERE = "Use --model nvidia/Cosmos3-Nano or nvidia/Cosmos3-Super, or drop sound"
MISTAKES = {
    "of a picture": ("--sound -o x.png --frames 1", "sound = True", "an image has no duration. Drop sound"),
    "of one frame": (
        "--frames 1 -o x.wav",
        "--output ending in .wav",
        "an image has no duration. Use one ending in .png",
    ),
    "as a number": ("--set sound=1", "sound = 1", "sound is true or false"),
    "of no length": ("--sound --set sound_length=up", "sound_length = 'up'", "one of down, nearest, latents"),
    "length alone": ("--set sound_length=latents", "sound_length = 'latents'", "there is no sound. Drop sound_length"),
    "in its task and not": ("--task t2vs --no-sound", "task 't2vs' with sound false", "Use --task t2v"),
    "of a task unheard of": ("--task t2is", "task 't2is'", "Tasks are "),
    "off, alone": ("--no-sound -o x.wav", "writing x.wav", "this run makes no sound. Ask for --sound"),
    "off, beside": ("--save-sound x.wav", "writing x.wav", "this run makes no sound. Ask for --sound"),
    "as .mp3": ("--sound -o x.mp3", "writing x.mp3", "its sound alone as .wav or .flac. Pass --output x.mp4"),
    "beside as .mp3": ("--sound --save-sound x.mp3", "writing x.mp3", "as .wav or .flac. Pass x.wav"),
    "alone as .mp4": ("--sound-only -o x.mp4", "--sound-only with --output x.mp4", "Pass --output x.wav"),
    "twice in one file": ("--save-sound x.wav -o x.wav", "writing x.wav", "Choose another file name"),
    "over a file": ("--sound --save-sound there.wav", "writing there.wav", "it exists. Choose another name"),
    "in no folder": ("--save-sound none/x.wav --sound", "writing none/x.wav", "there is no folder none"),
    "of other noise": ("--sound --latents silent.safetensors", "--latents silent.safetensors", "no tensor noise.sound"),
    "of a resumed run": ("--resume half.safetensors --no-sound", "--sound with --resume", "settled its request"),
    "given, of no length": ("--audio short.wav", "--audio short.wav: it lasts 0.1 s", "Use a longer one"),
    "given, too short": ("--audio middling.wav", "it lasts 0.3 s, and 9 frames", "Use a longer one, or --frames 5"),
    "given, silent": ("--audio {models}/silent.mp4", "silent.mp4", "the file has no sound in it"),
    "given, no sound": ("--audio text.wav", "reading text.wav", "cannot be read as sound"),
    "given, nowhere": ("--audio none.wav", "reading none.wav", "No such file"),
    "given, by address": ("--audio https://x.org/a.wav", "audio = 'https://x.org/a.wav'", "Download it first"),
    "given and off": ("--audio short.wav --no-sound", "audio = 'short.wav'", "there is no sound. Drop audio"),
    "given to a picture": ("--audio short.wav --frames 1", "--audio with task t2i", "an image has no duration"),
    "going on from a clip": (
        "--extend short.mp4 --sound",
        "sound = True",
        "going on from a clip has no sound. Drop sound",
    ),
    "given to Edge": ("--model {models}/headless --audio short.wav", "task t2v with sound", "has no sound head"),
    "given to a decoder": ("--model {models}/deaf --audio long.wav", "--audio with {models}/deaf", "has no encoder"),
    "over its input": ("--audio long.wav --save-sound long.wav", "writing long.wav", "Choose another file name"),
    "given and written alone": ("--audio long.wav -o out.FLAC", "ending in .FLAC with --audio", "one ending in .mp4"),
    "of another engine": ("--generate-sound", "No such option '--generate-sound'", "here it is --sound"),
    "of Edge": ("--model {models}/headless --sound", "task t2v with sound", "has no sound head"),
    "without a codec": ("--model {models}/mute -o x.wav", "task t2v with sound", "has no sound_tokenizer/config.json"),
    "of another codec": ("--model {models}/tanh --sound", "task t2v with sound", "dec_final_tanh is True"),
    "of a wider codec": ("--model {models}/wide --sound", "task t2v with sound", "a sound codec of 16 channels at 25"),
    "of a faster codec": (
        "--model {models}/fast --sound",
        "task t2v with sound",
        "8 channels at 22.9688 latent frames",
    ),
    "of a broken codec": ("--model {models}/broken --sound", "task t2v with sound", "not valid JSON"),
    "of a torn codec": ("--model {models}/torn --sound", "loading {models}/torn/sound_tokenizer", "decoder.conv1.bias"),
}


@pytest.mark.parametrize(("arguments", "asked", "then"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_loaded(run, monkeypatch, tmp_path, models, arguments, asked, then):
    read: list[str] = []
    monkeypatch.setattr(TensorFiles, "read", lambda self, names: read.append(self.folder))
    (tmp_path / "there.wav").touch()
    (tmp_path / "text.wav").write_text("This is not what its name says it is.")
    for name, length in {"short": 4800, "middling": 14_400, "long": RATE}.items():
        write_sound(tmp_path / f"{name}.wav", Sound(np.zeros((2, length), np.float32), RATE), {})
    save_file({"noise.vision": torch.zeros(48, 3, 4, 4)}, tmp_path / "silent.safetensors")
    before = sorted(tmp_path.iterdir())
    words, asked, then = (text.replace("{models}", str(models)) for text in (arguments, asked, then))
    typed = words.split()
    plain = [] if "--resume" in typed else ["a cup", *ON_TINY]
    for option in [word for word in plain if word in typed or (word == "--seed" and "--latents" in typed)]:
        at = plain.index(option)
        del plain[at : at + 2]
    code, out, err = run(*plain, *typed)
    line = err.splitlines()[-1]
    assert (code, out) == (2, "") and not read
    assert line.startswith("error: ") and asked in line and then in line, err
    assert not asked.endswith("with sound") or ELSEWHERE in line
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_makes_no_sound_makes_a_video(run, models):
    for name in ("mute", "broken", "torn"):
        assert run("a cup", "--model", str(models / name), *ON_TINY[2:], "-o", f"{name}.mp4")[0] == 0


def test_which_published_models_have_sound():
    names = ("Nano", "Super", "Edge", "Super-Image2Video-4Step")
    facts = {name: describe(f"nvidia/Cosmos3-{name}").facts for name in names}
    assert [name for name in names if "sound" in facts[name].modalities] == ["Nano", "Super"]
    lacking = {facts[name].lacks["sound"] for name in names[2:]}
    assert lacking == {"has no sound head (sound_gen in its transformer/config.json)"}
    row = cosmos3.capabilities("nvidia/Cosmos3-Edge")["fields"]["sound"]
    assert row["tasks"] == [] and {row["lacking"]} == lacking


PYTHON = {
    "a word": ({"sound": "yes"}, "sound = 'yes'", "sound is true or false"),
    "one noise of two": ({"sound": True, "noise": torch.zeros(48, 3, 4, 4)}, "initial noise", "this request needs 2"),
    "noise of another length": (
        {"sound": True, "noise": [torch.zeros(48, 3, 4, 4), torch.zeros(8, 9)]},
        "initial sound noise of shape [8, 9]",
        "[8, 10]",
    ),
    "a file of no sound": ({"output": "x.wav", "sound": False}, "writing x.wav", "this run makes no sound"),
    "diffusers' word": ({"enable_sound": True}, "enable_sound", "`sound`"),
}


@pytest.mark.parametrize(("given", "asked", "then"), PYTHON.values(), ids=PYTHON)
def test_a_mistake_in_python_is_an_input_error(pipe, monkeypatch, tmp_path, given, asked, then):
    monkeypatch.chdir(tmp_path)
    fields = {k: v for k, v in FRAMES.items() if not (k == "seed" and "noise" in given)}
    with pytest.raises(cosmos3.InputError) as raised:
        pipe("a cup", **(fields | given))
    assert asked in str(raised.value) and then in str(raised.value)
