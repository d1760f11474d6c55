"""Pictures and clips as others make them: what is read is what a viewer or a player shows, or it is said."""

from __future__ import annotations

import math
import os
import struct
import sys
import types
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from PIL import Image, ImageCms, ImageFile

from cosmos3_core.contract.errors import InputError
from cosmos3_core.files.images import read_image
from cosmos3_core.files.video import read_video

# Pictures --------------------------------------------------------------------------------------------------------


def corners(width: int = 24, height: int = 16) -> np.ndarray:
    """Each quarter has a colour of its own: no turn and no mirror leaves it as it is."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (250, 10, 10)
    picture[: height // 2, width // 2 :] = (10, 250, 10)
    picture[height // 2 :, : width // 2] = (10, 10, 250)
    picture[height // 2 :, width // 2 :] = (240, 240, 20)
    return picture


def pixel(path: Path) -> list[int]:
    return read_image(path).frames[0, 0, 0].tolist()


def matrix_profile(primaries: Iterable[tuple[float, float]], gamma: float) -> bytes:
    """An ICC v2 profile of three primaries (x, y), D50 white and one gamma."""
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    d65, d50 = np.array([0.9505, 1, 1.089]), np.array([0.9642, 1, 0.8249])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford
    colours = adapt @ (xyz * np.linalg.solve(xyz, d65))

    def fixed(values: Iterable[float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    name = b"Wide\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(8 + 3 + 67),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": fixed(d50),
        **{key: fixed(colours[:, i]) for i, key in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256))),
    }
    table, data, at = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", at + len(data), len(value))
        data += value
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(d50)[8:] + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data


ADOBE = matrix_profile([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], 563 / 256)


def test_an_embedded_profile_is_applied_and_said(tmp_path):
    Image.new("RGB", (8, 8), (60, 180, 60)).save(tmp_path / "a.png", icc_profile=ADOBE)
    reading = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(reading.frames[0, 0, 0].astype(int), (0, 181, 42), atol=2)
    assert reading.facts["icc_profile"] == "Wide" and "'Wide' to sRGB" in reading.notes[0]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_a_profile_of_srgb_changes_nothing(tmp_path, suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"quality": 100} if suffix == ".jpg" else {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    Image.fromarray(corners()).save(path, **options)
    plain = read_image(path)
    Image.fromarray(corners()).save(path, icc_profile=profile, **options)
    tagged = read_image(path)
    assert np.array_equal(plain.frames, tagged.frames)
    assert not plain.notes and not tagged.notes and "sRGB" in tagged.facts["icc_profile"]


def test_alpha_and_palettes_go_through_a_profile(tmp_path):
    rgba = Image.new("RGBA", (4, 1), (60, 180, 60, 255))
    rgba.putpixel((1, 0), (60, 180, 60, 0))
    rgba.save(tmp_path / "a.png", icc_profile=ADOBE)
    Image.new("RGB", (4, 1), (60, 180, 60)).quantize(4).save(tmp_path / "p.png", icc_profile=ADOBE)
    for name in ("a.png", "p.png"):
        np.testing.assert_allclose(pixel(tmp_path / name), (0, 181, 42), atol=2)
    assert read_image(tmp_path / "a.png").frames[0, 0, 1].tolist() == [255, 255, 255]


def test_transparent_parts_are_said_to_be_on_white(tmp_path):
    for alpha, notes in ((255, 0), (254, 1), (0, 1)):
        Image.new("RGBA", (4, 4), (60, 180, 60, alpha)).save(tmp_path / "a.png")
        assert len(read_image(tmp_path / "a.png").notes) == notes


def test_a_camera_that_wrote_adobe_rgb_without_a_profile_is_told_on(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.new("RGB", (8, 8), (60, 180, 60)).save(tmp_path / "a.jpg", exif=exif)
    assert "Adobe RGB" in read_image(tmp_path / "a.jpg").notes[0]
    Image.new("RGB", (8, 8), (60, 180, 60)).save(tmp_path / "a.jpg", exif=exif, icc_profile=ADOBE)
    assert "'Wide' to sRGB" in read_image(tmp_path / "a.jpg").notes[0]


@pytest.mark.parametrize("profile", [b"no profile", ADOBE[:200]], ids=["text", "cut off"])
def test_a_broken_profile_costs_a_note_and_no_picture(tmp_path, profile):
    Image.new("RGB", (4, 4), (60, 180, 60)).save(tmp_path / "a.png", icc_profile=profile)
    reading = read_image(tmp_path / "a.png")
    assert reading.frames[0, 0, 0].tolist() == [60, 180, 60] and "taken as sRGB" in reading.notes[0]


def test_a_profile_of_another_kind_than_the_picture_costs_a_note(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.jpg", icc_profile=ADOBE)
    reading = read_image(tmp_path / "a.jpg")
    assert reading.frames[0, 0, 0].tolist() == [255, 255, 255] and "taken as sRGB" in reading.notes[0]


def test_grey_with_a_profile_of_srgb(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("L", (4, 4), 100).save(tmp_path / "a.png", icc_profile=profile)
    reading = read_image(tmp_path / "a.png")
    assert reading.frames[0, 0, 0].tolist() == [100, 100, 100] and not reading.notes


def test_cmyk_without_a_profile_is_a_guess_and_says_so(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    reading = read_image(tmp_path / "a.jpg")
    np.testing.assert_allclose(reading.frames[0, 0, 0].astype(int), (255, 0, 0), atol=3)
    assert "a guess" in reading.notes[0]


def test_lab_is_converted(tmp_path):
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "a.tif")
    np.testing.assert_allclose(pixel(tmp_path / "a.tif"), (255, 255, 255), atol=4)


def test_a_png_of_linear_light_is_converted(tmp_path):
    Image.new("RGB", (4, 4), (55, 55, 55)).save(tmp_path / "a.png")
    chunked(tmp_path / "a.png", b"gAMA", struct.pack(">I", 100_000))
    reading = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(reading.frames[0, 0, 0].astype(int), 128, atol=1)  # 55/255 is 0.2157: sRGB's 0.502
    assert "gamma 1 to sRGB" in reading.notes[0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_every_exif_orientation(tmp_path, orientation, suffix):
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation](corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a{suffix}", exif=exif, **options)
    reading = read_image(tmp_path / f"a{suffix}")
    assert reading.frames.shape == (1, 16, 24, 3)
    assert np.abs(reading.frames[0, 2::11, 2::19].astype(int) - corners()[2::11, 2::19]).max() < 12
    assert reading.facts.get("exif_orientation", 1) == orientation


def chunked(path: Path, name: bytes, data: bytes) -> None:
    """Puts a chunk into a PNG, before its pixels."""
    png, chunk = path.read_bytes(), name + data
    chunk = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(png[:33] + chunk + png[33:])


def test_an_hdr_png_is_shown_as_on_an_sdr_screen_and_said(tmp_path):
    picture = Image.new("RGB", (4, 1), (148, 148, 148))
    picture.putpixel((1, 0), (97, 97, 97))
    picture.save(tmp_path / "a.png", icc_profile=ADOBE)
    chunked(tmp_path / "a.png", b"cICP", bytes([9, 16, 0, 1]))
    reading = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(reading.frames[0, 0, :2, 0].astype(int), (255, 101), atol=3)
    assert "HDR (PQ)" in reading.notes[0] and reading.facts["transfer"] == "PQ"


def test_a_png_tagged_as_srgb_changes_nothing(tmp_path):
    Image.new("RGB", (4, 4), (60, 180, 60)).save(tmp_path / "a.png")
    chunked(tmp_path / "a.png", b"cICP", bytes([1, 13, 0, 1]))
    reading = read_image(tmp_path / "a.png")
    assert reading.frames[0, 0, 0].tolist() == [60, 180, 60] and not reading.notes


def test_primaries_of_a_png_without_a_profile_are_applied_and_said(tmp_path):
    def written(mode, colour, places):
        Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
        chunked(tmp_path / "a.png", b"gAMA", struct.pack(">I", 45455))
        chunked(tmp_path / "a.png", b"cHRM", struct.pack(">8I", *(round(place * 1e5) for place in places)))
        return read_image(tmp_path / "a.png")

    adobe = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    reading = written("RGB", (60, 180, 60), adobe)
    np.testing.assert_allclose(reading.frames[0, 0, 0].astype(int), (0, 181, 42), atol=3)
    assert "primaries of its own" in reading.notes[0] and reading.facts["primaries"][1] == [0.21, 0.71]
    srgb = written("RGB", (60, 180, 60), (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06))
    assert srgb.frames[0, 0, 0].tolist() == [60, 180, 60] and not srgb.notes
    grey = written("L", 60, adobe)
    assert grey.frames[0, 0, 0].tolist() == [60, 60, 60] and not grey.notes
    none = written("RGB", (60, 180, 60), (0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0))
    assert none.frames[0, 0, 0].tolist() == [60, 180, 60] and "cannot be used" in none.notes[0]
    chunked(tmp_path / "a.png", b"sRGB", b"\0")
    assert not read_image(tmp_path / "a.png").notes


def test_a_png_of_limited_range_is_stretched_and_said(tmp_path):
    picture = Image.new("RGB", (3, 1), (16, 16, 16))
    picture.putpixel((1, 0), (235, 235, 235))
    picture.putpixel((2, 0), (126, 126, 126))
    picture.save(tmp_path / "a.png")
    chunked(tmp_path / "a.png", b"cICP", bytes([1, 13, 0, 0]))
    reading = read_image(tmp_path / "a.png")
    assert reading.frames[0, 0, :, 0].tolist() == [0, 255, 128]
    assert reading.facts["range"] == "limited" and "16 to 235" in reading.notes[0]


@pytest.mark.parametrize("unit", [0, 1])
def test_pixels_that_are_not_square_are_said(tmp_path, unit):
    for across, down, notes in ((2000, 1000, 1), (1000, 1000, 0)):
        Image.new("RGB", (4, 4), (60, 180, 60)).save(tmp_path / "a.png")
        chunked(tmp_path / "a.png", b"pHYs", struct.pack(">2IB", across, down, unit))
        Image.new("RGB", (4, 4), (60, 180, 60)).save(tmp_path / "a.jpg", dpi=(across // 10, down // 10))
        data = bytearray((tmp_path / "a.jpg").read_bytes())
        data[data.index(b"JFIF") + 7] = unit
        (tmp_path / "a.jpg").write_bytes(data)
        for name in ("a.png", "a.jpg"):
            reading = read_image(tmp_path / name)
            assert reading.frames.shape == (1, 4, 4, 3) and ("pixel_density" in reading.facts) == bool(notes)
            assert [("not square" in note) for note in reading.notes] == [True] * notes


def test_an_avif_in_pq(tmp_path):
    Image.new("RGB", (16, 16), (148, 148, 148)).save(tmp_path / "a.avif", quality=100)
    data = (tmp_path / "a.avif").read_bytes()
    at = data.index(b"colrnclx") + 8
    (tmp_path / "a.avif").write_bytes(data[:at] + struct.pack(">2H", 9, 16) + data[at + 4 :])
    np.testing.assert_allclose(pixel(tmp_path / "a.avif"), (255, 255, 255), atol=4)
    assert "HDR (PQ)" in read_image(tmp_path / "a.avif").notes[0]


def greys(path: Path) -> list[int]:
    return read_image(path).frames[0, 0, :, 0].tolist()


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16), [0, 64, 128, 255]),
        (np.array([[0, 2**14, 2**15, 65535]], np.int32), [0, 64, 128, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[0, 51, 255]], np.int32), [0, 51, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 51, 255]], np.float32), [0, 51, 255]),
        (np.array([[0, 13107, 65535]], np.float32), [0, 51, 255]),
    ],
)
def test_deep_grey_keeps_its_shades(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert greys(tmp_path / "a.tif") == expected
    notes = read_image(tmp_path / "a.tif").notes
    assert bool(notes) == (values.itemsize == 4) and all("32-bit values are taken to reach" in note for note in notes)


def test_unsigned_32_bits_are_not_taken_as_negative(tmp_path):
    Image.fromarray(np.array([[0, -(2**31), -1]], np.int32)).save(tmp_path / "a.tif")
    data, signed, unsigned = (tmp_path / "a.tif").read_bytes(), *(struct.pack("<HHIH", 339, 3, 1, n) for n in (2, 1))
    assert signed in data
    (tmp_path / "a.tif").write_bytes(data.replace(signed, unsigned))
    assert greys(tmp_path / "a.tif") == [0, 128, 255]


def test_grey_whose_zero_is_white(tmp_path):
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert greys(tmp_path / "a.tif") == [255, 191, 0]


def test_a_16_bit_pgm(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 200, 65535))
    assert greys(tmp_path / "a.pgm") == [1, 255]


def test_deep_grey_with_a_value_that_stands_for_nothing(tmp_path):
    Image.fromarray(np.array([[0, 0x8000]], np.uint16)).save(tmp_path / "a.png", transparency=0)
    assert greys(tmp_path / "a.png") == [255, 128]


@pytest.mark.parametrize("values", [[[-1.0, 1.0]], [[0.0, np.nan]], [[0.0, 1e6]]])
def test_numbers_without_a_known_range_are_refused(tmp_path, values):
    Image.fromarray(np.array(values, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no known range"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.eps"])
def test_postscript_starts_no_interpreter(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(InputError, match="not a picture of a kind that is read"):
        read_image(tmp_path / name)
    assert not started.exists()


@pytest.mark.parametrize("suffix", [".pcx", ".ico", ".tga", ".pdf", ".sgi"])
def test_formats_that_nobody_asked_for_are_not_opened(tmp_path, suffix):
    Image.fromarray(corners()).save(tmp_path / f"a{suffix}")
    with pytest.raises(InputError, match="not a picture of a kind that is read"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("read", [read_image, lambda path: read_video(path, 1, "first")], ids=["picture", "clip"])
def test_a_pipe_or_device_is_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a pipe"), (Path("/dev/zero"), "a device")):
        with pytest.raises(InputError, match=f"{kind}, not an ordinary file"):
            read(path)


def test_a_picture_that_is_too_large_says_what_to_do(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="too large") as caught:
        read_image(tmp_path / "a.png")
    assert "Scale it down" in caught.value.next_step


def test_heic_needs_a_library_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match="HEIC") as caught:
        read_image(path)
    assert "pip install pillow-heif" in caught.value.next_step

    class Heic(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self):
            self._mode, self._size, self.tile = "RGB", (8, 6), []

        def load(self):
            self.im = Image.new("RGB", self.size, (9, 8, 7)).im
            return None

    def register_heif_opener():
        Image.register_open("HEIF", Heic, lambda head: head[4:12] == b"ftypheic")

    library = types.SimpleNamespace(register_heif_opener=register_heif_opener)
    monkeypatch.setitem(sys.modules, "pillow_heif", library)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    assert pixel(path) == [9, 8, 7]


def test_what_pillow_warns_of_is_a_note(tmp_path, recwarn):
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    assert any("a.jpg: Corrupt EXIF data" in note for note in read_image(tmp_path / "a.jpg").notes)
    assert not recwarn.list


def test_an_animation_given_as_a_picture_says_that_its_first_is_taken(tmp_path):
    save_animation(tmp_path / "a.gif", [100, 100])
    reading = read_image(tmp_path / "a.gif")
    assert reading.frames.shape == (1, 16, 24, 3) and "first picture is taken" in reading.notes[0]


# Animated pictures as clips --------------------------------------------------------------------------------------


def shade(index: int) -> Image.Image:
    picture = np.full((16, 24, 3), 20 + 40 * index, np.uint8)
    picture[:, :4] = 255
    return Image.fromarray(picture)


def shades(frames: np.ndarray) -> list[int]:
    return [round((float(frame[8, 16].mean()) - 20) / 40) for frame in frames]


def save_animation(path: Path, durations: list[int], **options) -> None:
    first, *others = [shade(i) for i in range(len(durations))]
    options |= {"lossless": True} if path.suffix == ".webp" else {"quality": 95} if path.suffix == ".avif" else {}
    first.save(path, save_all=True, append_images=others, duration=durations, **options)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_an_animated_picture_is_a_clip(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_animation(path, [100] * 4)
    reading = read_video(path, 9, "first")
    assert shades(reading.frames) == [0, 1, 2, 3] and reading.fps == pytest.approx(10)
    assert shades(read_video(path, 2, "last").frames) == [2, 3]
    assert shades(read_video(path, 99, "first", 20.0).frames) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_animation_keeps_its_own_times(tmp_path):
    save_animation(tmp_path / "a.gif", [100, 300, 100, 100])
    assert shades(read_video(tmp_path / "a.gif", 99, "first", 10.0).frames) == [0, 1, 1, 1, 2, 3]
    assert shades(read_video(tmp_path / "a.gif", 3, "last", 10.0).frames) == [1, 2, 3]


def test_a_picture_for_those_who_cannot_play_a_png_is_no_frame(tmp_path):
    save_animation(tmp_path / "a.png", [100] * 3, default_image=True)
    assert shades(read_video(tmp_path / "a.png", 9, "first").frames) == [1, 2]


def test_an_animation_cut_off_is_what_there_is_of_it(tmp_path):
    save_animation(tmp_path / "a.gif", [100] * 6)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) * 3 // 5])
    assert shades(read_video(tmp_path / "a.gif", 99, "first").frames) in ([0, 1, 2], [0, 1, 2, 3])


# Clips -----------------------------------------------------------------------------------------------------------


def save_clip(path: Path, frames: Iterable[np.ndarray], rate: float = 24, **settings) -> Path:
    """Lossless YCbCr without chroma subsampling; `settings` are those of the encoder's context."""
    pixels = settings.pop("pix_fmt", "yuv444p")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001), options={"qp": "0"})
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], pixels
                for name, value in settings.items():
                    setattr(stream.codec_context, name, value)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def save_samples(
    path: Path, yuv: tuple[int, int, int], size: tuple[int, int], pix_fmt: str = "yuv444p", **tags
) -> Path:
    """One frame of these very samples."""
    width, height = size
    frame = av.VideoFrame(width, height, pix_fmt)
    for plane, sample in zip(frame.planes, yuv, strict=True):
        deep = "10le" in pix_fmt
        values = np.full(plane.buffer_size // (2 if deep else 1), sample, np.uint16 if deep else np.uint8)
        plane.update(values.tobytes())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(path: Path) -> list[int]:
    return read_video(path, 1, "first").frames[0, 8, 8].astype(int).tolist()


def rgb_of(yuv: tuple[int, int, int], kr: float, kb: float, full: bool = False) -> list[float]:
    """By BT.601's and BT.709's own formula."""
    y, u, v = yuv
    luma, scale = (y / 255, 255) if full else ((y - 16) / 219, 224)
    cb, cr = (u - 128) / scale, (v - 128) / scale
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    return [255 * value for value in (red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue)]


BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)


@pytest.mark.parametrize(
    "size, tags, constants",
    [
        ((64, 48), {}, BT601),
        ((64, 48), {"colorspace": 1}, BT709),
        ((64, 720), {}, BT709),
        ((1280, 48), {}, BT709),
        ((64, 720), {"colorspace": 6}, BT601),
        ((64, 720), {"colorspace": 5}, BT601),
    ],
)
def test_the_matrix_is_the_tag_or_that_of_the_size(tmp_path, size, tags, constants):
    samples = (120, 100, 170)
    path = save_samples(tmp_path / "a.mp4", samples, size, **tags)
    np.testing.assert_allclose(seen(path), rgb_of(samples, *constants), atol=2)
    assert ("assumed" in read_video(path, 1, "first").facts["matrix"]) == (not tags)


@pytest.mark.parametrize("full", [True, False])
def test_full_and_limited_range(tmp_path, full):
    samples = (120, 100, 170)
    wanted = ColorRange.JPEG if full else ColorRange.MPEG
    path = save_samples(tmp_path / "a.mp4", samples, (64, 48), color_range=wanted, colorspace=1)
    np.testing.assert_allclose(seen(path), rgb_of(samples, *BT709, full=full), atol=2)
    assert read_video(path, 1, "first").facts["range"] == ("full" if full else "limited")


def hdr(path: Path, code: float, transfer: int) -> Path:
    """A grey whose signal is `code`, 0 to 1."""
    tags = {"color_trc": transfer, "color_primaries": ColorPrimaries.BT2020, "colorspace": 9, "color_range": 1}
    return save_samples(path, (round(64 + 876 * code), 512, 512), (64, 48), "yuv444p10le", **tags)


@pytest.mark.parametrize(
    "transfer, name, code, shown",
    [
        (ColorTrc.SMPTE2084, "PQ", 0.5806, 255),  # 203 cd/m2
        (ColorTrc.SMPTE2084, "PQ", 0.75, 255),  # 983 cd/m2
        (ColorTrc.SMPTE2084, "PQ", 0.3812, 101),  # 26 cd/m2: 0.128 of white
        (ColorTrc.SMPTE2084, "PQ", 0.0, 0),
        (ColorTrc.ARIB_STD_B67, "HLG", 0.75, 255),  # reference white
        (ColorTrc.ARIB_STD_B67, "HLG", 0.38, 100),  # 26 cd/m2, too
        (ColorTrc.ARIB_STD_B67, "HLG", 1.0, 255),
    ],
)
def test_hdr_is_shown_as_on_an_sdr_screen_and_said(tmp_path, transfer, name, code, shown):
    path = hdr(tmp_path / "a.mp4", code, transfer)
    np.testing.assert_allclose(seen(path), shown, atol=3)
    reading = read_video(path, 1, "first")
    assert reading.facts["transfer"] == name and f"HDR ({name})" in reading.notes[0]


def test_wide_primaries_are_converted_and_said(tmp_path):
    """BT.2020's (0.4, 0.7, 0.3) in sRGB's curve is a green beyond sRGB's red: 0 there. A grey stays."""
    tags = {"color_primaries": ColorPrimaries.SMPTE432, "colorspace": 1, "color_trc": 1}
    path = save_samples(tmp_path / "grey.mp4", (126, 128, 128), (64, 48), **tags)
    np.testing.assert_allclose(seen(path), 128, atol=2)
    assert "Display P3 to sRGB" in read_video(path, 1, "first").notes[0]
    # Display P3 (60, 180, 60): sRGB would need -48 of red.
    r, g, b = 60 / 255, 180 / 255, 60 / 255
    luma = 0.2126 * r + 0.7152 * g + 0.0722 * b
    samples = [round(16 + 219 * luma), round(128 + 224 * (b - luma) / 1.8556), round(128 + 224 * (r - luma) / 1.5748)]
    path = save_samples(tmp_path / "green.mp4", tuple(samples), (64, 48), **tags)
    profile = matrix_profile([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], 2.2)
    Image.new("RGB", (8, 8), (60, 180, 60)).save(tmp_path / "green.png", icc_profile=profile)
    np.testing.assert_allclose(seen(path), pixel(tmp_path / "green.png"), atol=5)


@pytest.mark.parametrize("tags", [{"color_trc": ColorTrc.LINEAR}, {"color_trc": ColorTrc.LOG}, {"colorspace": 14}])
def test_colours_that_cannot_be_undone_are_refused(tmp_path, tags):
    path = save_samples(tmp_path / "a.mp4", (120, 100, 170), (64, 48), **tags)
    with pytest.raises(InputError, match="cannot be undone here"):
        read_video(path, 1, "first")


def test_text_that_ffmpeg_would_draw_is_no_clip(tmp_path):
    (tmp_path / "a.ans").write_bytes(b"\x1b[31mred\x1b[0m\r\n" * 50)
    with pytest.raises(InputError, match="cannot be read as video"):
        read_video(tmp_path / "a.ans", 1, "first")


MATRICES = {
    "as it is": ((1, 0, 0, 1), lambda a: a),
    "quarter to the left": ((0, -1, 1, 0), lambda a: np.rot90(a, 1)),
    "half": ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    "quarter to the right": ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),
    "mirrored": ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda a: a[::-1]),
    "transposed": ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    "other diagonal": ((0, -1, -1, 0), lambda a: a.swapaxes(0, 1)[::-1, ::-1]),
}


@pytest.mark.parametrize("matrix, shown", MATRICES.values(), ids=MATRICES)
def test_every_transform_of_a_container(tmp_path, matrix, shown):
    path = save_clip(tmp_path / "a.mp4", [corners()] * 2)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    reading = read_video(path, 2, "first")
    expected = shown(corners()).astype(int)
    assert reading.frames.shape[1:] == expected.shape
    assert np.abs(reading.frames[1, 2::3, 2::3] - expected[2::3, 2::3]).mean() < 4
    assert (reading.facts["transform"] == "none") == (matrix == (1, 0, 0, 1))


@pytest.mark.parametrize("aspect, shape", [(Fraction(16, 11), (16, 35)), (Fraction(1, 2), (32, 24)), (1, (16, 24))])
def test_pixels_become_square_without_losing_any(tmp_path, aspect, shape):
    path = save_clip(tmp_path / "a.mp4", [corners()], sample_aspect_ratio=Fraction(aspect))
    reading = read_video(path, 1, "first")
    assert reading.frames.shape[1:3] == shape
    assert bool(reading.notes) == (aspect != 1) and all("square" in note for note in reading.notes)


def test_alpha_of_a_clip_is_put_on_white(tmp_path):
    rgba = np.zeros((16, 24, 4), np.uint8)
    rgba[:, :12] = (200, 0, 0, 255)
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("qtrle", rate=24)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "argb"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="argb")))
        container.mux(stream.encode())
    frame = read_video(tmp_path / "a.mov", 1, "first").frames[0]
    assert frame[8, 4].tolist() == [200, 0, 0] and frame[8, 20].tolist() == [255, 255, 255]


def test_a_photograph_given_as_a_clip_may_have_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "camera"
    Image.fromarray(corners()).save(tmp_path / "a.jpg", exif=exif)
    assert read_video(tmp_path / "a.jpg", 2, "first").frames.shape == (1, 16, 24, 3)


def test_a_codec_that_nobody_decodes_is_a_line(tmp_path):
    path = save_clip(tmp_path / "a.mp4", [corners()] * 2)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(InputError, match="no decoder for its video"):
        read_video(path, 1, "first")


def test_a_clip_that_says_it_is_a_wall_is_not_decoded(tmp_path):
    save_animation(tmp_path / "a.gif", [100, 100])
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = struct.pack("<2H", 12_000, 12_000)
    (tmp_path / "a.gif").write_bytes(data)
    with pytest.raises(InputError, match="12000x12000 pixels. Scale it down"):
        read_video(tmp_path / "a.gif", 2, "first")


# Times -----------------------------------------------------------------------------------------------------------


def numbered(count: int) -> list[np.ndarray]:
    frames = [np.full((16, 24, 3), 10 + 4 * i, np.uint8) for i in range(count)]
    for frame in frames:
        frame[:, :4] = 255
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame[8, 16].mean()) - 10) / 4) for frame in frames]


@pytest.mark.parametrize("rate", [60, 10, 25, 30, 12])
@pytest.mark.parametrize("keep", ["first", "last"])
def test_a_clip_is_resampled_by_what_is_on_the_screen(tmp_path, rate, keep):
    path = save_clip(tmp_path / "a.mp4", numbered(48), rate)
    whole = read_video(path, 999, keep, 24.0)
    shown = [int(Fraction(k, 24) * Fraction(rate)) for k in range(math.ceil(48 / Fraction(rate) * 24))]
    assert numbers(whole.frames) == shown
    part = numbers(read_video(path, 7, keep, 24.0).frames)
    assert part == (numbers(whole.frames)[:7] if keep == "first" else numbers(whole.frames)[-7:])
    assert whole.fps == float(rate) and whole.facts["resampled_to_fps"] == 24


@pytest.mark.parametrize("rate", [24, Fraction(24000, 1001)])
def test_the_same_rate_is_played_frame_by_frame(tmp_path, rate):
    path = save_clip(tmp_path / "a.mp4", numbered(48), rate)
    reading = read_video(path, 99, "first", 24.0)
    assert numbers(reading.frames) == [*range(48)] and "resampled_to_fps" not in reading.facts


def test_times_rounded_to_milliseconds_drop_no_frame(tmp_path):
    path = save_clip(tmp_path / "a.mkv", numbered(48), 24)
    assert numbers(read_video(path, 99, "first", 24.0).frames) == [*range(48)]


def test_a_clip_of_varying_rate_keeps_its_times(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 10)
        for frame, at in zip(numbered(4), (0, 1, 5, 6), strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = at, Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert numbers(read_video(tmp_path / "a.mp4", 99, "first", 10.0).frames)[:7] == [0, 1, 1, 1, 1, 2, 3]
    assert numbers(read_video(tmp_path / "a.mp4", 99, "first").frames) == [0, 1, 2, 3]


def test_a_hole_of_a_century_is_no_work(tmp_path):
    save_clip(tmp_path / "b.mkv", numbered(4), 10)
    with av.open(str(tmp_path / "b.mkv")) as source, av.open(str(tmp_path / "a.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                later = 10**12 if i > 2 else 0
                packet.pts, packet.dts, packet.stream = packet.pts + later, packet.dts + later, stream
                target.mux(packet)
    assert len(read_video(tmp_path / "a.mp4", 5, "last", 24.0).frames) == 5
