"""Sound in files: beside a clip's frames, at the same moment; alone, to the bit; and read from what people have."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cosmos3_core.contract import InputError, RunError
from cosmos3_core.files import audio, outputs
from cosmos3_core.files.audio import Sound, read_sound, write_sound
from cosmos3_core.files.video import write_video
from cosmos3_core.scenarios.sound import SOUND_SUFFIXES

RATE = 48_000
TEXT = {"cosmos3": json.dumps({"prompt": 'a "cup" — 杯', "filler": "x" * 9000})}


def tone(seconds: float = 1.0, rate: int = RATE) -> Sound:
    """Two notes with some noise, other ones left and right."""
    t = np.arange(int(seconds * rate)) / rate
    hiss = np.random.default_rng(0).normal(0, 0.02, (2, len(t)))
    return Sound((0.3 * np.sin(2 * np.pi * np.array([[440], [660]]) * t) + hiss).astype(np.float32), rate)


def pictures(count: int, bright: int = -1) -> list[np.ndarray]:
    """Frames with a slope in them, one of which is bright."""
    slope = np.arange(64, dtype=np.uint8)[:, None, None].repeat(64, 1).repeat(3, 2)
    return [slope + (180 if i == bright else 0) for i in range(count)]


@pytest.mark.parametrize("rate", [48_000, 1000])
@pytest.mark.parametrize("fps", [10, 16, 23.976, 24, 30])
def test_a_click_and_a_flash_are_at_the_same_moment(tmp_path, fps, rate):
    """Decoded again, a flash in the middle and its click are less than a frame apart; and so is the end."""
    frames = int(1.6 * fps) // 4 * 4 + 1
    flash = frames // 2
    samples = np.zeros((2, int(frames / fps * rate)), np.float32)
    click = int(flash / fps * rate)
    samples[:, click : click + max(1, rate // 1000)] = 0.9
    written = write_video(tmp_path / "x.mp4", pictures(frames, flash), fps, {}, Sound(samples, rate))
    assert (written.sound.codec, written.sound.rate, written.sound.channels) == ("aac", 48_000, 2)
    with av.open(str(tmp_path / "x.mp4")) as container:
        shown = [(frame.time, frame.to_ndarray(format="gray").mean()) for frame in container.decode(video=0)]
    with av.open(str(tmp_path / "x.mp4")) as container:
        heard = [(frame.time, frame.to_ndarray()) for frame in container.decode(audio=0)]
    wave, begin = np.concatenate([part for _, part in heard], axis=1), heard[0][0]
    flashed = max(shown, key=lambda one: one[1])[0]
    clicked = begin + np.abs(wave).mean(0).argmax() / RATE
    assert abs(clicked - flashed) < 1 / fps and abs(clicked - flash / fps) < 0.004
    assert abs(begin + wave.shape[1] / RATE - frames / fps) < 1 / fps and len(shown) == frames


def test_both_tracks_lie_side_by_side_in_the_file(tmp_path):
    """A player that has the file's first half has both of that half."""
    write_video(tmp_path / "x.mp4", pictures(49), 24, TEXT, tone(49 / 24))
    with av.open(str(tmp_path / "x.mp4")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
        assert container.metadata["cosmos3"] == TEXT["cosmos3"]
    half = len(kinds) // 2
    assert kinds[:half].count("audio") > 0.3 * kinds.count("audio")
    assert kinds[half:].count("video") > 0.2 * kinds.count("video")


def test_the_track_is_256_kilobits(tmp_path):
    write_video(tmp_path / "x.mp4", pictures(49), 24, {}, tone(49 / 24))
    with av.open(str(tmp_path / "x.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.rate, stream.layout.name) == ("aac", 48_000, "stereo")
        assert 150_000 < stream.bit_rate <= 280_000


def test_what_is_left_is_heard_left(tmp_path):
    samples = tone().samples.copy()
    samples[1] = 0
    write_video(tmp_path / "x.mp4", pictures(25), 25, {}, Sound(samples, RATE))
    found, facts = read_sound(tmp_path / "x.mp4", RATE, RATE)
    assert facts["channels"] == 2 and np.abs(found.samples[0]).mean() > 100 * np.abs(found.samples[1]).mean()


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
@pytest.mark.parametrize("rate", [48_000, 1000])
def test_sound_alone_is_kept_to_the_bit(tmp_path, suffix, rate):
    file, sound = tmp_path / f"x{suffix}", tone(1.37, rate)
    sound.samples[0, :3] = (-1, 1, 0)
    written = write_sound(file, sound, TEXT)
    assert written == {
        "codec": {".wav": "pcm_s16le", ".flac": "flac"}[suffix],
        "rate": rate,
        "channels": 2,
        "samples": sound.length,
        "bytes": file.stat().st_size,
    }
    assert outputs.read_metadata(file) == TEXT
    found, facts = read_sound(file, rate, 10**9)
    assert np.abs(found.samples - sound.samples).max() <= 1 / 32768
    assert facts == {"file": str(file), "rate": rate, "channels": 2}
    assert read_sound(file.read_bytes(), rate, 100)[0].samples.shape == (2, 100)


def test_there_is_one_list_of_suffixes():
    assert tuple(audio.CODECS) == SOUND_SUFFIXES


def test_another_rate_and_one_channel_become_ours(tmp_path):
    with av.open(str(tmp_path / "x.mka"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        t = np.arange(16_000) / 16_000
        values = (20_000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(values, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found, facts = read_sound(tmp_path / "x.mka", RATE, 10**9)
    assert (facts["rate"], facts["channels"]) == (16_000, 1)
    assert np.array_equal(found.samples[0], found.samples[1]) and abs(found.length - RATE) < 100
    assert np.abs(np.fft.rfft(found.samples[0, :RATE])).argmax() == pytest.approx(440, abs=2)


@pytest.mark.parametrize(
    ("content", "found"),
    [(None, "No such file"), (b"", "cannot be read as sound"), (b"not a sound" * 99, "cannot be read as sound")],
)
def test_what_is_no_sound_is_refused(tmp_path, content, found):
    if content is not None:
        (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(InputError, match=found) as raised:
        read_sound(tmp_path / "x.wav", RATE, 100)
    assert raised.value.asked == f"reading {tmp_path / 'x.wav'}" and "Pass a file with sound" in raised.value.next_step


def test_a_silent_clip_has_no_sound_to_read(tmp_path):
    write_video(tmp_path / "x.mp4", pictures(5), 24, {})
    with pytest.raises(InputError, match="the file has no sound in it"):
        read_sound(tmp_path / "x.mp4", RATE, 100)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros((2, 9600), np.float32),
        np.ones((2, 9600), np.float32),
        np.random.default_rng(1).uniform(-1, 1, (2, 9600)).astype(np.float32),
        np.sin(np.arange(9600) * 2.9).astype(np.float32)[None].repeat(2, 0),  # 22 kHz, which AAC leaves out
        np.full((2, 9600), 1e-5, np.float32),
        np.stack([np.ones(9600), -np.ones(9600)]).astype(np.float32),
    ],
    ids=["silence", "full", "noise", "too high to hear", "next to silence", "opposite"],
)
def test_whatever_a_model_makes_of_sound_is_written(tmp_path, samples):
    """The check of the finished file takes no loss of the encoder's for a fault."""
    assert write_video(tmp_path / "x.mp4", pictures(5), 25, {}, Sound(samples, RATE)).sound.samples == 9600


LATE = ["a packet late", "swapped", "silent", "another"]


@pytest.mark.parametrize("fault", LATE)
def test_a_track_that_is_another_is_found_out(tmp_path, monkeypatch, fault):
    """What the file holds is compared with what was to be in it."""
    noise = np.random.default_rng(2).normal(0, 0.2, (2, RATE)).clip(-1, 1).astype(np.float32)
    other = {
        "a packet late": np.roll(noise, 1024, axis=1),
        "swapped": noise[::-1].copy(),
        "silent": noise * 0,
        "another": np.random.default_rng(3).normal(0, 0.2, noise.shape).clip(-1, 1).astype(np.float32),
    }[fault]
    real = audio._frames
    monkeypatch.setattr(audio, "_frames", lambda sound, *how: real(Sound(other, sound.rate), *how))
    with pytest.raises(RunError, match="its sound is another one"):
        write_video(tmp_path / "x.mp4", pictures(25), 25, {}, Sound(noise, RATE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, suffix):
    def full(*arguments):
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(audio, "_encode", full)
    with pytest.raises(InputError, match="No space left"):
        write_sound(tmp_path / f"x{suffix}", tone(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_colon_in_a_name_is_no_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sound(Path("a:b.wav"), tone(), {})
    assert outputs.read_metadata(Path("a:b.wav")) == {}
