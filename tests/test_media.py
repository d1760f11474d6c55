"""Pictures and clips in and out, as a user meets them: real files, a real encoder, a disk limit the kernel enforces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread, current_thread

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cosmos3_core.contract.errors import InputError, RunError
from cosmos3_core.files import video
from cosmos3_core.files.atomic import atomic
from cosmos3_core.files.images import read_image, write_image
from cosmos3_core.files.outputs import check_output, read_metadata
from cosmos3_core.files.video import WrittenVideo, read_video, write_video

LONG = json.dumps({"prompt": 'Ein "Kätzchen" läuft, 一只猫 \U0001f431\n' * 2500}, ensure_ascii=False)


def photo_clip(frames: int, height: int = 96, width: int = 160) -> np.ndarray:
    """Smooth colours, a moving disc with the soft edge a lens gives, and a little sensor noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / width
    clip = np.empty((frames, height, width, 3))
    for t in range(frames):
        p = t / 6
        clip[t] = np.stack([127 + 100 * np.sin(5 * x + p), 127 + 100 * np.cos(4 * y - p), 90 + 80 * np.sin(x + p)], -1)
        disc = (0.15 - np.hypot(x - 0.5 - 0.2 * np.sin(p), y - 0.3)) * width / 3 + 0.5
        clip[t] += disc.clip(0, 1)[..., None] * ((230, 180, 150) - clip[t])
    return (clip + rng.normal(0, 1, clip.shape)).clip(0, 255).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def numbered_clip(frames: int) -> np.ndarray:
    """Frame t has a grey level of 10 + 10 t, next to a fixed white bar."""
    clip = np.empty((frames, 32, 48, 3), np.uint8)
    clip[:] = (10 + 10 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    clip[:, :, :8] = 255
    return clip


def numbers(clip: np.ndarray) -> list[int]:
    return [round((float(frame[:, 16:].mean()) - 10) / 10) for frame in clip]


def played(path: Path, count: int, keep: str) -> tuple[np.ndarray, float]:
    """A clip's own frames, and its frames per second."""
    reading = read_video(path, count, keep)
    return reading.frames, reading.fps


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_clip_comes_back_as_it_was_written(tmp_path):
    clip = photo_clip(12)
    written = write_video(tmp_path / "out.mp4", iter(clip), 24, {})
    back, fps = played(tmp_path / "out.mp4", 100, "first")
    assert back.dtype == np.uint8 and back.shape == clip.shape and fps == 24
    assert min(psnr(a, b) for a, b in zip(clip, back, strict=True)) > 37  # 36.5 with FFmpeg's default chroma
    size = (tmp_path / "out.mp4").stat().st_size
    assert written == WrittenVideo(12, 160, 96, 24.0, "h264", "High", "yuv420p", size)
    assert names(tmp_path) == ["out.mp4"]


def test_clip_is_tagged_and_laid_out_for_players(tmp_path):
    write_video(tmp_path / "out.mp4", photo_clip(3), 24, {})
    with av.open(str(tmp_path / "out.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.profile, codec.pix_fmt) == ("h264", "High", "yuv420p")
        assert (codec.colorspace, codec.color_primaries, codec.color_trc) == (1, 1, 1)  # BT.709
        assert codec.color_range == 1  # limited
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is whole


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (200, 120, 60)])
def test_stored_samples_are_bt709_limited_range(tmp_path, colour):
    # A corner that is not of that colour, or the clip is refused as flat.
    frame = np.full((64, 64, 3), colour, np.uint8)
    frame[-8:, -8:] = 0
    write_video(tmp_path / "out.mp4", [frame], 24, {})
    with av.open(str(tmp_path / "out.mp4")) as container:
        planes = [np.frombuffer(plane, np.uint8)[0] for plane in next(container.decode(video=0)).planes]
    r, g, b = (c / 255 for c in colour)
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = [16 + 219 * luma, 128 + 224 * (b - luma) / 1.8556, 128 + 224 * (r - luma) / 1.5748]
    np.testing.assert_allclose(planes, expected, atol=2)
    back, _ = played(tmp_path / "out.mp4", 1, "first")
    np.testing.assert_allclose(back[0, 4, 4].astype(int), colour, atol=5)


@pytest.mark.parametrize(
    "fps, exact",
    [(24, "24"), (23.976, "24000/1001"), (29.97, "30000/1001"), (12.5, "25/2"), (1, "1"), (59.94, "60000/1001")],
)
@pytest.mark.parametrize("frames", [1, 5])
def test_frame_rate_is_exact(tmp_path, fps, exact, frames):
    written = write_video(tmp_path / "out.mp4", photo_clip(frames, 32, 32), fps, {})
    assert written.fps == float(Fraction(exact))
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(exact)
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx(
            [float(t / Fraction(exact)) for t in range(frames)]
        )
    assert played(tmp_path / "out.mp4", 1, "first")[1] == float(Fraction(exact))


def test_frames_may_be_any_view(tmp_path):
    clip = photo_clip(3)
    channels_first = np.ascontiguousarray(clip.transpose(3, 0, 1, 2))
    write_video(tmp_path / "out.mp4", (channels_first[:, t].transpose(1, 2, 0) for t in range(3)), 24, {})
    assert psnr(played(tmp_path / "out.mp4", 3, "first")[0], clip) > 35
    write_image(tmp_path / "out.png", clip[0, ::-1, ::2], {})
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").frames[0], clip[0, ::-1, ::2])


def test_noise_is_written_too(tmp_path):
    """An untrained or badly steered model still made a clip; the check is for broken files, not for taste."""
    noise = np.random.default_rng(0).integers(0, 2, (3, 16, 16, 3), np.uint8) * np.uint8(255)
    assert write_video(tmp_path / "out.mp4", noise, 24, {}).frames == 3


@pytest.mark.parametrize("name", ["out.mp4", "out.png"])
def test_metadata_survive(tmp_path, name):
    metadata = {"cosmos3": LONG, "comment": "made by a test", "empty_json": "{}"}
    assert len(LONG.encode()) > 100_000
    if name == "out.mp4":
        write_video(tmp_path / name, photo_clip(2), 24, metadata)
    else:
        write_image(tmp_path / name, photo_clip(1)[0], metadata)
    assert read_metadata(tmp_path / name) == metadata


def test_metadata_of_a_file_from_elsewhere(tmp_path):
    with av.open(str(tmp_path / "in.mp4"), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Kätzchen"
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(photo_clip(1)[0], format="rgb24")))
        container.mux(stream.encode())
    assert read_metadata(tmp_path / "in.mp4")["title"] == "K\ufffdtzchen"
    assert len(played(tmp_path / "in.mp4", 1, "first")[0]) == 1


def test_picture_comes_back_exactly(tmp_path):
    frame = photo_clip(1)[0]
    write_image(tmp_path / "out.png", frame, {})
    np.testing.assert_array_equal(read_image(tmp_path / "out.png").frames[0], frame)
    assert names(tmp_path) == ["out.png"]


@pytest.mark.parametrize(
    "keep, count, expected",
    [("first", 4, [0, 1, 2, 3]), ("last", 4, [8, 9, 10, 11]), ("first", 99, [*range(12)]), ("last", 99, [*range(12)])],
)
def test_either_end_of_a_clip(tmp_path, keep, count, expected):
    write_video(tmp_path / "in.mp4", numbered_clip(12), 10, {})
    clip, fps = played(tmp_path / "in.mp4", count, keep)
    assert numbers(clip) == expected and fps == 10


def test_rate_of_a_format_that_stores_no_average(tmp_path):
    with av.open(str(tmp_path / "in.ivf"), "w") as container:
        stream = container.add_stream("libvpx", rate=12)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in numbered_clip(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    clip, fps = played(tmp_path / "in.ivf", 9, "first")
    assert numbers(clip) == [0, 1, 2] and fps == 12


def test_clip_filmed_sideways_is_turned_upright(tmp_path):
    upright = photo_clip(3)
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.set_display_rotation(90)  # counter-clockwise
        stream.height, stream.width, stream.pix_fmt = 160, 96, "yuv420p"
        for frame in upright:
            stored = np.ascontiguousarray(np.rot90(frame, -1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    clip, _ = played(tmp_path / "in.mp4", 3, "first")
    assert clip.shape == upright.shape and psnr(clip, upright) > 30


def test_clip_cut_off_gives_the_frames_there_are(tmp_path):
    write_video(tmp_path / "in.mp4", photo_clip(24), 24, {})
    data = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "in.mp4").write_bytes(data[: data.index(b"mdat") + len(data) // 2])
    clip, _ = played(tmp_path / "in.mp4", 24, "first")
    assert 0 < len(clip) < 24


def test_damage_in_the_middle_does_not_hide_the_end(tmp_path):
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "1"})  # every frame stands alone
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in numbered_clip(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        damaged = [(p.pos, p.size) for p in container.demux(video=0)][5]
    data = bytearray(path.read_bytes())
    data[damaged[0] : sum(damaged)] = b"\xff" * damaged[1]
    path.write_bytes(data)
    clip, _ = played(path, 3, "last")
    assert numbers(clip) == [9, 10, 11]
    assert 5 not in numbers(played(path, 12, "first")[0])


def audio_file(path: Path, cover: bool) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame" if cover else "aac", rate=16000)
        stream.layout = "mono"
        picture = container.add_stream("png", rate=1) if cover else None
        if picture:
            picture.width = picture.height = 16
            picture.pix_fmt = "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(photo_clip(1, 16, 16)[0], format="rgb24")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def broken_clip(folder: Path, kind: str) -> Path:
    path = folder / "in.mp4"
    if kind == "text":
        path.write_text("this is no clip\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "audio":
        audio_file(path, cover=False)
    elif kind == "audio with a cover":
        path = folder / "in.mp3"
        audio_file(path, cover=True)
    elif kind in ("no frame", "no index"):
        write_video(path, photo_clip(3), 24, {})
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"mdat") + 4 if kind == "no frame" else data.index(b"moov") + 100])
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "text", "empty", "folder", "audio", "audio with a cover", "no frame", "no index"]
)
@pytest.mark.parametrize("keep", ["first", "last"])
def test_unusable_clip_is_named(tmp_path, kind, keep):
    path = broken_clip(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read_video(path, 4, keep)
    assert str(path) in caught.value.asked
    if "audio" in kind:
        assert "no video" in caught.value.found


def test_playlist_cannot_reach_other_files(tmp_path):
    write_video(tmp_path / "secret.mp4", photo_clip(3), 24, {})
    with av.open(str(tmp_path / "secret.mp4")) as source, av.open(str(tmp_path / "secret.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path / 'secret.ts'}\n#EXT-X-ENDLIST\n"
    for name in ("in.m3u8", "in.mp4"):
        (tmp_path / name).write_text(playlist)
        with pytest.raises(InputError):
            read_video(tmp_path / name, 1, "first")


def test_exif_orientation_is_applied(tmp_path):
    frame = photo_clip(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned 90 degrees clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(frame))).save(tmp_path / "in.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "in.png").frames[0], frame)


def test_transparent_parts_are_put_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 0, 0, 255)
    rgba[0, 1] = (200, 0, 0, 0)
    rgba[1, 0] = (0, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "in.png")
    assert read_image(tmp_path / "in.png").frames[0].tolist() == [[[200, 0, 0], [255] * 3], [[127] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").frames[0].tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_a_clip_that_is_given_up_is_closed_behind_its_encoder():
    """In the encoder's thread, after the frame that it is at, and without those that wait."""
    at_work, go_on, seen = Event(), Event(), []

    class Output:
        def close(self):
            seen.append(("closed", current_thread().name))

    def frame():
        at_work.set()
        go_on.wait(60)
        seen.append(("encoded", current_thread().name))

    def let_go(last):
        while not last.cancelled():
            time.sleep(0.01)
        go_on.set()

    with ThreadPoolExecutor(1, "encoder") as encoder, pytest.raises(KeyboardInterrupt):
        waiting = deque(encoder.submit(frame) for _ in range(3))
        with video.closed_by(encoder, Output(), waiting):
            at_work.wait(60)
            Thread(target=let_go, args=(waiting[-1],), daemon=True).start()
            raise KeyboardInterrupt
    assert seen == [("encoded", "encoder_0"), ("closed", "encoder_0")]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    Image.fromarray(np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "depth.png")
    assert read_image(tmp_path / "depth.png").frames[0][0, :, 0].tolist() == [0, 64, 128, 255]


def broken_image(folder: Path, kind: str) -> Path:
    path = folder / "in.png"
    if kind == "text":
        path.write_text("this is no picture")
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        Image.fromarray(photo_clip(1)[0]).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "truncated jpeg":
        Image.fromarray(photo_clip(1)[0]).save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:1500])
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "folder", "truncated", "truncated jpeg", "bomb"])
def test_unusable_picture_is_named(tmp_path, kind):
    path = broken_image(tmp_path, kind)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in caught.value.asked


@pytest.mark.parametrize("name", ["missing.png", "text.png", "truncated.png", "bomb.png", "missing.mp4", "text.mp4"])
def test_metadata_of_an_unusable_file(tmp_path, name):
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("neither")
    if name.startswith("truncated"):
        Image.fromarray(photo_clip(1)[0]).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    if name.startswith("bomb"):
        info = PngImagePlugin.PngInfo()
        info.add_text("key", "v" * 2_000_000, zip=True)
        Image.fromarray(photo_clip(1)[0]).save(path, pnginfo=info)
    with pytest.raises(InputError, match=name):
        read_metadata(path)


@pytest.mark.parametrize("level", [0, 127])
def test_flat_output_is_refused(tmp_path, level):
    (tmp_path / "out.mp4").write_text("older")
    (tmp_path / "out.png").write_text("older")
    flat = np.full((5, 32, 32, 3), level, np.uint8)
    flat[:, 3, 3] += 1  # rounding
    with pytest.raises(RunError, match="one flat colour"):
        write_video(tmp_path / "out.mp4", flat, 24, {})
    with pytest.raises(RunError, match="one flat colour"):
        write_image(tmp_path / "out.png", flat[0], {})
    assert names(tmp_path) == ["out.mp4", "out.png"]
    assert (tmp_path / "out.mp4").read_text() == (tmp_path / "out.png").read_text() == "older"


@pytest.mark.parametrize("black", [slice(0, 5), slice(1, 6)], ids=["fade in", "fade out"])
def test_fade_is_not_flat(tmp_path, black):
    clip = photo_clip(6)
    clip[black] = 0
    assert write_video(tmp_path / "out.mp4", clip, 24, {}).frames == 6


@pytest.mark.parametrize("error", [ValueError("decoder failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 3, 60])
def test_failure_midway_leaves_the_old_file_alone(tmp_path, error, after):
    (tmp_path / "out.mp4").write_text("older")

    def frames():
        yield from photo_clip(after)
        raise error

    with pytest.raises(type(error)) as caught:
        write_video(tmp_path / "out.mp4", frames(), 24, {})
    assert caught.value is error
    assert names(tmp_path) == ["out.mp4"] and (tmp_path / "out.mp4").read_text() == "older"


@pytest.mark.parametrize(
    "frames",
    [[], [np.zeros((33, 32, 3), np.uint8)], [np.zeros((32, 32, 3))], [photo_clip(1)[0], photo_clip(1, 32, 32)[0]]],
    ids=["none", "odd height", "floats", "two sizes"],
)
def test_frames_that_cannot_be_a_clip(tmp_path, frames):
    with pytest.raises(ValueError, match="frame"):
        write_video(tmp_path / "out.mp4", frames, 24, {})
    assert names(tmp_path) == []


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif how == "unreadable":
        path.write_bytes(bytes(len(data)))
    elif how == "other clip":
        write_video(path, photo_clip(12)[:, ::-1], 24, {"a": "b"})
    elif how == "other rate":
        write_video(path, photo_clip(12), 25, {"a": "b"})
    elif how == "other metadata":
        write_video(path, photo_clip(12), 24, {"a": "c"})


@pytest.mark.parametrize("how", ["truncated", "unreadable", "other clip", "other rate", "other metadata"])
def test_file_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch, how):
    """The bytes go bad between the encoder and the check, as on a failing disk."""
    encode = video.encode

    def encode_and_damage(temp, *args):
        result = encode(temp, *args)
        monkeypatch.setattr(video, "encode", encode)
        damage(temp, how)
        return result

    monkeypatch.setattr(video, "encode", encode_and_damage)
    (tmp_path / "out.mp4").write_text("older")
    with pytest.raises(RunError, match="does not read back"):
        write_video(tmp_path / "out.mp4", photo_clip(12), 24, {"a": "b"})
    assert names(tmp_path) == ["out.mp4"] and (tmp_path / "out.mp4").read_text() == "older"


@pytest.mark.parametrize("how", ["truncated", "unreadable", "other picture"])
def test_picture_that_does_not_read_back_is_not_kept(tmp_path, monkeypatch, how):
    save = Image.Image.save

    def save_and_damage(image, target, **options):
        save(Image.fromarray(photo_clip(2)[1]) if how == "other picture" else image, target, **options)
        damage(target, how)

    monkeypatch.setattr(Image.Image, "save", save_and_damage)
    with pytest.raises(RunError, match="does not read back"):
        write_image(tmp_path / "out.png", photo_clip(1)[0], {})
    assert names(tmp_path) == []


# What fails is a write by the encoder, the muxer's trailer or Python; each at its own size.
@pytest.mark.parametrize("limit", [0, 100, 50_000, 300_000])
@pytest.mark.parametrize("writer", ["video", "image", "text"])
def test_full_disk(tmp_path, limit, writer):
    pytest.importorskip("resource", reason="file size limits are a POSIX feature")
    script = """
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from cosmos3_core.contract.errors import InputError
        from cosmos3_core.files.atomic import atomic
        from cosmos3_core.files.images import write_image
        from cosmos3_core.files.video import write_video

        path, limit, writer = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        noise = np.random.default_rng(0).integers(0, 255, (40, 192, 192, 3), np.uint8)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            if writer == "video":
                write_video(path, noise, 24, {"a": "b"})
            elif writer == "image":
                write_image(path, noise.reshape(1280, 1152, 3), {"a": "b"})
            else:
                with atomic(path) as temp:
                    temp.write_bytes(noise.tobytes())
        except InputError as error:
            print(error)
    """
    path = tmp_path / {"video": "out.mp4", "image": "out.png", "text": "out.json"}[writer]
    path.write_text("older")
    command = [sys.executable, "-c", textwrap.dedent(script), str(path), str(limit), writer]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"writing {path}: the disk is full (needed more than " in result.stdout, result.stderr
    assert "another folder for `output`" in result.stdout
    assert names(tmp_path) == [path.name] and path.read_text() == "older"


def test_atomic_replaces_in_one_step(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("older")
    with atomic(path) as temp:
        assert temp.parent == tmp_path and temp.suffix == ".json" and temp.name.startswith(".")
        temp.write_text("newer")
        assert path.read_text() == "older"
    assert path.read_text() == "newer" and names(tmp_path) == ["out.json"]
    with pytest.raises(KeyError), atomic(path) as temp:
        temp.write_text("half")
        raise KeyError
    assert path.read_text() == "newer" and names(tmp_path) == ["out.json"]


def test_good_outputs_pass_the_check_and_nothing_is_left(tmp_path, monkeypatch):
    check_output(tmp_path / "out.mp4", clip=True)
    check_output(tmp_path / "out.PNG", clip=False)
    check_output(tmp_path / ("x" * 251 + ".mp4"), clip=True)
    assert names(tmp_path) == []
    (tmp_path / "old.mp4").write_text("older")
    check_output(tmp_path / "old.mp4", clip=True)
    assert names(tmp_path) == ["old.mp4"]
    monkeypatch.chdir(tmp_path)
    check_output(Path("out.mp4"), clip=True)
    Path("take:1").mkdir()
    write_video(Path("take:1/out.MP4"), photo_clip(2), 24, {})
    assert names(tmp_path / "take:1") == ["out.MP4"]


@pytest.mark.parametrize(
    "name, clip, found",
    [
        ("out.png", True, "makes a clip, which is written as .mp4"),
        ("out.mp4", False, "makes a picture, which is written as .png"),
        ("out.jpg", False, "makes a picture, which is written as .png"),
        ("out", True, "makes a clip, which is written as .mp4"),
        ("out.json", True, "makes a clip, which is written as .mp4"),
        ("folder.mp4", True, "it is a folder"),
        ("pipe.mp4", True, "not an ordinary file"),
        ("missing/out.mp4", True, "there is no folder"),
        ("file/out.png", False, "there is no folder"),
        ("x" * 252 + ".mp4", True, "name cannot be used"),
    ],
)
def test_bad_output_is_found_before_the_run(tmp_path, name, clip, found):
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "file").touch()
    before = names(tmp_path)
    with pytest.raises(InputError) as caught:
        check_output(tmp_path / name, clip)
    assert (
        found in caught.value.found
        and str(tmp_path / name) in caught.value.asked
        and "`output`" in caught.value.next_step
        and ("`domain`" in caught.value.next_step) == name.endswith(".json")
    )
    assert names(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self/fdinfo").is_dir(), reason="needs a folder that even root cannot write to")
def test_unwritable_folder():
    path = Path("/proc/self/fdinfo/out.mp4")
    for attempt in (
        lambda: check_output(path, clip=True),
        lambda: write_video(path, photo_clip(2), 24, {}),
        lambda: write_image(path.with_suffix(".png"), photo_clip(1)[0], {}),
    ):
        with pytest.raises(InputError, match="folder"):
            attempt()


def test_importing_what_writes_files_loads_no_codec():
    script = "import sys, cosmos3_core.files.outputs; print({'av', 'PIL', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "set()\n"
