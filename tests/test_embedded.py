"""The world of the embedded model, its inverse, and that what is trained is what the engine runs."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from peer import relative_error
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.evidence.embedded.captions import sentence, structured
from cosmos3_core.evidence.embedded.inverse import Part, agent_path, judge, moved, onsets, parts, see, shape_of, turn
from cosmos3_core.evidence.embedded.render import draw, play
from cosmos3_core.evidence.embedded.world import (
    ACTIVE,
    COLOURS,
    EXTENT,
    MARGIN,
    PASSIVE,
    SHAPES,
    SIZE,
    Scenes,
    count_of,
    make,
)
from cosmos3_core.model.config import Tiling, TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.vae import VideoVAE
from cosmos3_core.model.weights import Target, load_generation, load_understanding
from cosmos3_core.reference import build_ops
from tools.embedded import page, train_towers
from tools.embedded.assemble import SUMS, sums
from tools.embedded.bank import MIX, padded
from tools.embedded.codecs import SoundCodec, VideoCodec
from tools.embedded.text import REPOSITORY, SEEN_FROM, SPECIAL_TOKENS, ids_of, texts_of, tokenizer, train_tokenizer
from tools.embedded.towers import Flat, Sample, Towers, drawn

ALL = dict.fromkeys(PASSIVE + ACTIVE, 1.0)
FIRST = make(0, 400, 17, {"move": 1.0})


def in_unit(scenes: Scenes) -> torch.Tensor:
    return (draw(scenes) + 1) / 2


def test_a_seed_gives_the_same_scenes_everywhere():
    scenes = make(7, 200, 17, ALL)
    digest = hashlib.sha256()
    for name in ("colour", "shape", "subject", "direction"):
        digest.update(getattr(scenes, name).astype(np.int64).tobytes())
    digest.update(np.round(scenes.path * 16).astype(np.int64).tobytes())
    assert digest.hexdigest()[:16] == "de560f2847e86d19"
    assert not np.array_equal(make(8, 200, 17, ALL).path, scenes.path)


def test_wrong_frames_and_kinds_are_refused():
    with pytest.raises(ValueError, match="scenes of 16 frames: give one of 1, 17, 33"):
        make(0, 1, 16)
    with pytest.raises(ValueError, match="no kind of scene is called rain"):
        make(0, 1, 17, {"rain": 1.0})


@pytest.mark.parametrize("frames", [1, 17, 33])
def test_shapes_stay_in_the_picture_and_impacts_in_the_clip(frames):
    scenes = make(11, 600, frames, ALL if frames == 17 else None)
    there = scenes.colour >= 0
    reach = (scenes.radius * np.array(EXTENT)[scenes.shape])[there][:, None, None]
    path = scenes.path[there]
    assert (path - reach).min() > -0.01 and (path + reach).max() < SIZE + 0.01
    length = ((frames - 1) / scenes.fps)[:, None] if frames > 1 else 1.0
    assert not (scenes.events < 0).any() and not (scenes.events > length).any()
    assert MARGIN > 0 and {count_of(scenes, row) for row in range(600)} == {1, 2, 3}


@pytest.mark.parametrize("kind", PASSIVE + ACTIVE)
def test_the_inverse_reads_what_was_drawn(kind):
    scenes = make(23, 3, 17, {kind: 1.0})
    for row, clip in enumerate(in_unit(scenes)):
        verdict = judge(see(clip), scenes, row)
        assert verdict.colour and verdict.shape and verdict.count and verdict.direction in (True, None)


def test_the_inverse_measures_places_and_turns():
    scenes = make(5, 4, 17, {"bounce": 1.0})
    for row, clip in enumerate(in_unit(scenes)):
        path = see(clip).path[int(scenes.colour[row, 0])]
        assert np.abs(path - scenes.path[row, 0]).max() <= 1.0  # of the box, in pixels
        assert abs(turn(path) - scenes.events[row, 0] * scenes.fps[row]) <= 0.5
    straight = make(6, 2, 17, {"move": 1.0})
    for row, clip in enumerate(in_unit(straight)):
        path = see(clip).path[int(straight.colour[row, 0])]
        assert turn(path) is None and moved(path)[0] == straight.direction[row]
        assert turn(np.repeat(path[:1], 17, axis=0)) is None


def test_the_inverse_can_say_no():
    """Another colour, another shape, one too many, the other way, nothing at all."""
    scenes = make(31, 6, 17, {"move": 1.0})
    clips = in_unit(scenes)
    for row, clip in enumerate(clips):
        other = Scenes(**(vars(scenes) | {"colour": (scenes.colour + 1) % 6}))
        assert not judge(see(clip), other, row).colour
        assert not judge(see(clip), Scenes(**(vars(scenes) | {"shape": (scenes.shape + 1) % 3})), row).shape
        assert judge(see(clip.flip(1)), scenes, row).direction is False
        empty = judge(see(torch.full_like(clip, 0.15)), scenes, row)
        assert not (empty.colour or empty.shape or empty.count or empty.direction)
    two = make(32, 1, 17, {"group": 1.0})
    one = Scenes(**(vars(two) | {"colour": np.where(np.arange(3) == 1, two.colour, -1)}))
    assert not judge(see(in_unit(one)[0]), two, 0).count


def test_parts_that_touch_nothing_are_counted_apart():
    picture = torch.full((3, 1, SIZE, SIZE), 0.15)
    red = torch.tensor(COLOURS["red"]).view(3, 1, 1, 1)
    picture[:, :, 10:30, 10:30] = red
    picture[:, :, 50:70, 40:60] = red
    picture[:, :, 100:103, 100:103] = red  # nine pixels are no shape
    assert parts(picture) == [[Part(0, 1, 1.0, 400, (10, 29, 10, 29)), Part(0, 1, 1.0, 400, (40, 59, 50, 69))]]
    assert [(part.x, part.y) for part in parts(picture)[0]] == [(20.0, 20.0), (50.0, 60.0)]
    assert [SHAPES[shape_of(fill)] for fill in (1.0, 0.785, 0.5)] == ["square", "circle", "triangle"]


def test_sounds_begin_at_impacts():
    scenes = make(41, 12, 17, {"bounce": 1.0, "dribble": 1.0, "collide": 1.0})
    for row, wave in enumerate(play(scenes, 120_000)):
        expected = scenes.events[row][~np.isnan(scenes.events[row])]
        assert np.allclose(onsets(wave.numpy()), expected, atol=0.012)
        assert 0.9 < wave.abs().max() < 0.951
    assert not play(make(1, 3, 17, {"move": 1.0}), 4800).any()


def test_the_agent_is_where_its_actions_send_it():
    scenes = make(51, 4, 17, dict.fromkeys(ACTIVE, 1.0))
    for row, clip in enumerate(in_unit(scenes)):
        sent = (scenes.actions[row] + 1) * SIZE / 2
        assert np.abs(agent_path(see(clip))[1:] - sent).max() <= 1.0


def test_captions_say_what_is_there():
    scenes, stream = make(61, 400, 17, dict.fromkeys(PASSIVE, 1.0)), np.random.default_rng(0)
    for row in range(400):
        text, value = sentence(scenes, row, stream), structured(scenes, row)
        for colour in scenes.colour[row][scenes.colour[row] >= 0]:
            assert list(COLOURS)[colour] in text and list(COLOURS)[colour] in json.dumps(value)
        if scenes.kind[row] in ("still", "group") and count_of(scenes, row) > 1:
            assert ("two", "three")[count_of(scenes, row) - 2] in text.lower()


def test_the_tokenizer_is_what_its_script_makes_and_has_the_special_tokens(tmp_path):
    train_tokenizer(tmp_path)
    file = "text_tokenizer/tokenizer.json"
    assert (tmp_path / file).read_bytes() == (REPOSITORY / file).read_bytes()
    made = tokenizer()
    assert made.tokenizer.get_vocab_size() == 640
    ids = [made.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(640 - len(SPECIAL_TOKENS), 640))
    assert made.tokenizer.decode(made.tokenizer.encode("Größe: 3 Würfel ☃").ids) == "Größe: 3 Würfel ☃"


def test_prompts_are_those_of_the_engine():
    from cosmos3_core.scenarios.prompts import negative_text, positive_text
    from cosmos3_core.settle import Wish, settle

    scenes = make(71, 5, 17, {"move": 1.0})
    for row in range(5):
        text, dropped, _ = texts_of(scenes, row, np.random.default_rng(row))
        prompt = sentence(scenes, row, _after_one(np.random.default_rng(row)))
        negative = "" if dropped.startswith("The video") else json.dumps(json.loads(dropped[: dropped.index("}") + 1]))
        given = {"prompt": prompt, "negative_prompt": negative, "frames": 17, "fps": float(scenes.fps[row])}
        request = settle(Wish(model=TINY_MODEL, given=given | {"size": "128x128"})).request
        assert (positive_text(request), negative_text(request)) == (text, dropped)


def test_instructions_are_those_of_the_engine(tmp_path):
    from PIL import Image

    from cosmos3_core.scenarios.prompts import negative_text, positive_text
    from cosmos3_core.settle import Wish, settle

    Image.new("RGB", (SIZE, SIZE)).save(picture := tmp_path / "seen.png")
    scenes, views = make(72, 4, 17, {"push": 1.0}), set()
    for row in range(4):
        stream = np.random.default_rng(row)
        view = SEEN_FROM[int(stream.integers(2))]
        given = {"prompt": sentence(scenes, row, stream), "image": str(picture), "task": "policy", "view": view}
        given |= {"domain": "pusht", "fps": float(scenes.fps[row]), "chunk": 16}
        request = settle(Wish(model=TINY_MODEL, given=given)).request
        text, dropped, system = texts_of(scenes, row, np.random.default_rng(row))
        assert (positive_text(request), negative_text(request), system) == (text, dropped, None)
        views.add(view)
    assert len(views) == 2


def _after_one(stream: np.random.Generator) -> np.random.Generator:
    stream.uniform()  # whether the caption is JSON
    return stream


def test_prompts_fit_their_width():
    for group in MIX:
        scenes = make(81, 60, group.frames, dict.fromkeys(group.kinds, 1.0))
        lengths = [len(ids) for pair in ids_of(scenes, 1, group.structured) for ids in pair]
        assert np.mean(np.array(lengths) <= group.text) > 0.9, (group.name, max(lengths))
    ids, counts = padded([[1, 2, 3], [4]], 2)
    assert ids.tolist() == [[2, 3], [4, 0]] and counts.tolist() == [2, 1]


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """All parameters random, at sizes that keep a signal's: zeros and ones would hide mistakes."""
    stream = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=stream)
        if "norm" in name or name.endswith(("gamma", "weight_g")):
            parameter.data = 0.5 + 0.1 * noise
        else:
            parameter.data = noise * (0.1 if noise.ndim == 1 or "snake" in name else noise[0].numel() ** -0.5)
    return module.requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_the_video_codec_is_the_engines(frames):
    config = json.loads((REPOSITORY / "vae/config.json").read_text()) | {"base_dim": 8, "decoder_base_dim": 12}
    config |= {
        "latents_mean": [0.0] * config["z_dim"],
        "latents_std": [1.0] * config["z_dim"],
    }  # the engine's come last
    codec = randomised(VideoCodec(**config))
    assert {n: tuple(t.shape) for n, t in codec.state_dict().items()} == VideoVAE.names(config, "test")
    vae = VideoVAE.load(
        config, codec.state_dict().items(), build_ops(), source="test", device="cpu", dtype=torch.float32
    )
    x = torch.rand(2, 3, frames, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, _ = codec.encode(x)
    assert relative_error(mean[1], vae.encode(x[1])) <= 1e-5
    theirs = torch.cat(list(vae.decode(mean[1], Tiling(2, 3, 16, 12, 1))))
    ours = ((codec.decode(mean)[1].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 3, 0)
    assert (theirs.float() - ours).abs().max() <= 1


def test_the_sound_codec_is_diffusers():
    from diffusers import Cosmos3AVAEAudioTokenizer

    config = json.loads((REPOSITORY / "sound_tokenizer/config.json").read_text())
    codec = randomised(SoundCodec(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = Cosmos3AVAEAudioTokenizer.from_config(config).eval()
    theirs.load_state_dict(codec.state_dict())
    wave = torch.randn(1, 2, 7 * 1920 - 13, generator=torch.Generator().manual_seed(2))
    mean, _ = codec.encode(wave)
    assert relative_error(mean, theirs.encode(wave).latent_dist.mean.view_as(mean)) <= 1e-5
    decoded = theirs.decode(mean)
    assert relative_error(codec.decode(mean).clamp(-1, 1), getattr(decoded, "sample", decoded)) <= 1e-5


@torch.no_grad()
def test_the_towers_are_the_engines():
    """Three samples at once, of their own prompt's length, rate, noise level and task, against each by itself."""
    config = train_towers.config()
    stream = torch.Generator().manual_seed(0)
    weights = {
        name: value
        + 0.1 * torch.randn(value.shape, generator=stream) * (value.shape[-1] ** -0.5 if value.ndim > 1 else 1)
        for name, value in drawn(config, 0).items()
    }
    towers = Towers(config, Flat.of(config, weights, "cpu", torch.float32).leaves)
    ids, text = torch.randint(600, (3, 12), generator=stream), torch.tensor([12, 7, 9])
    frames = torch.tensor([[0] * 5, [1, 0, 0, 0, 0], [1] * 5]).bool()
    acts = torch.tensor([0, 1, 0]).bool()[:, None].expand(-1, 16)
    s = Sample(
        *(ids, text, torch.tensor([24.0, 8.0, 10.0]), torch.tensor([0.9, 0.31, 0.5])),
        *(torch.randn(3, 48, 5, 8, 8, generator=stream), frames),
        *(torch.randn(3, 20, 16, generator=stream), torch.tensor([20, 13, 0])),
        *(torch.randn(3, 16, 16, generator=stream), acts),
    )
    found = towers.forward(s)

    def read(names):
        return ((name, weights[name]) for name in names)

    target = Target.plain(build_ops(), "cpu", torch.float32)
    reading, making = load_understanding(config, read, target), load_generation(config, read, target)
    for row in range(3):
        fps, count = float(s.fps[row]), int(s.sounds[row])
        clean = tuple(frames[row].nonzero().flatten().tolist())
        given = tuple(range(16)) if acts[row, 0] else ()
        items = [Item("vision", (48, 5, 8, 8), clean, fps), Item("action", (16, 16), given, fps, domain=4)]
        latents = [s.vision[row], s.action[row]]
        ours = [found["vision"][row] * ~frames[row].view(1, 5, 1, 1), found["action"][row] * ~acts[row][:, None]]
        if count:
            items.insert(1, Item("sound", (16, count)))
            latents.insert(1, s.sound[row, :count].T)
            ours.insert(1, found["sound"][row, :count].T)
        prompt = reading.prefill(ids[row, : text[row]].tolist())
        branches = making.branches(Packing(items, config, "cpu"), [prompt])
        for mine, theirs in zip(ours, making.forward(branches, latents, float(s.t[row] * 1000))[0], strict=True):
            assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


FUSED = """
import torch
from tools.embedded import codecs, fused, towers

def same(ours, theirs, *given):
    first, second = (out if isinstance(out, tuple) else (out,) for out in (ours(), theirs()))
    grads = [torch.randn_like(out) for out in first]
    first += torch.autograd.grad(first, given, grads)
    second += torch.autograd.grad(second, given, grads)
    for a, b in zip(first, second, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm(), (ours, (a - b).norm())

torch.manual_seed(0)
def leaf(*shape):
    return torch.randn(shape, requires_grad=True)
heads, q, k, angle = leaf(2, 7, 12, 32), leaf(32), leaf(32), torch.randn(2, 7, 1, 16).repeat(1, 1, 1, 2)
turn = angle.cos(), angle.sin()
given = heads, q, k, *turn, 8, 1e-6
same(lambda: fused.Rotated.apply(*given), lambda: towers.rotated(*given), heads, q, k)
x, more, weight = leaf(3, 5, 256), leaf(3, 5, 256), leaf(256)
same(lambda: fused.Added.apply(x, more, weight, 1e-6), lambda: towers.added(x, more, weight, 1e-6), x, more, weight)
h = leaf(3, 5, 128)
same(lambda: fused.Gated.apply(h), lambda: towers.gated(h), h)
clip, gamma = leaf(2, 20, 3, 4, 6), leaf(20, 1, 1, 1)
frame, weight = leaf(5, 80, 4, 6), leaf(80, 1, 1)
for given in ((clip, gamma, True, 2), (clip, gamma, False, 0), (frame, weight, False, 0)):
    same(lambda: fused.Normed.apply(*given), lambda: codecs.normed(*given), *given[:2])
"""


def test_the_fused_kernels_are_the_plain_functions():
    done = subprocess.run(
        [sys.executable, "-c", FUSED],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_config_is_a_cosmos3s():
    assert isinstance(train_towers.config(), TransformerConfig)


def test_the_checkpoint_in_the_package_is_whole():
    """Every file is the one whose checksum was written, no shard has more than 15 MB, and all have at most 24."""
    files = [file for file in REPOSITORY.rglob("*") if file.is_file()]
    assert (REPOSITORY / SUMS).read_text() == sums(REPOSITORY)
    assert sum(file.stat().st_size for file in files) <= 24_000_000
    assert max(file.stat().st_size for file in files) <= 15_000_000
    assert {file.suffix for file in files} <= {".json", ".jinja", ".md", ".safetensors", ""}
    Weights(open_model("embedded")).open_sound(encoder=True)


def test_the_first_command_of_the_readme_is_in_its_words():
    words = {word for row in range(400) for word in sentence(FIRST, row, np.random.default_rng(row)).lower().split()}
    assert set("a red ball rolls to the left".split()) <= {word.strip(".") for word in words}


def test_the_pages_have_the_results():
    assert all(one.read_text() == page.rendered(one.read_text()) for one in page.PAGES)


@pytest.mark.parametrize("name", ["faults.json", "ranking.json", "methods.json", *page.DEPTHS.values()])
def test_the_results_are_of_the_checkpoint_in_the_package(name):
    assert (page.FOLDER / name).exists(), "measure it: tools/embedded/README.md says how"
    assert page.read(name)["weights"] == Weights(open_model("embedded")).identity_with_sound
