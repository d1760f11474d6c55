"""What the towers take, against the specification's tables and the modules themselves."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from alive import Alive
from counted import OPS, TINY_CONFIG, config_of, whole

from cosmos3_core.contract import Residual
from cosmos3_core.model import transformer as towers
from cosmos3_core.model.config import TransformerConfig, latent_size
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.weights import (
    Slot,
    Target,
    generation_slots,
    layer_slots,
    load_generation,
    load_understanding,
    shapes,
    understanding_slots,
)
from cosmos3_core.plan.cost import transformer

# --- the tables of the specification ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers", "embedding", "timestep", "action", "heads", "total"),
    [
        ("nano", 6.946, 0.622, 17.8, 16.9, 2.1, 15.174),
        ("super", 31.206, 0.778, 27.5, 21.1, 2.7, 64.020),
        ("edge", 1.409, 0.268, 4.7, 8.5, 0.8, 3.370),
    ],
)
def test_weights_are_those_of_the_table(name, layers, embedding, timestep, action, heads, total):
    config = config_of(name)
    found = transformer.weights(config, "bfloat16")
    assert round(found["understanding"] / 2e9, 3) == round(found["generation"] / 2e9, 3) == layers
    assert round(found["embedding"] / 2e9, 3) == embedding
    assert round(found["timestep"] / 4e6, 1) == timestep
    assert round(found["action"] / 2e6, 1) == action
    # The table counts the text's unused final norm and the action's modality vector with these.
    assert round((found["heads"] / 2 + 2 * config.hidden_size) / 1e6, 1) == heads
    without_timestep = sum(found[part] / 2 for part in ("understanding", "generation", "embedding", "heads", "action"))
    unused = config.vocab_size * config.hidden_size + config.hidden_size
    assert round((without_timestep + found["timestep"] / 4 + unused) / 1e9, 3) == total
    twice = transformer.weights(config, "float32")
    assert twice["generation"] == 2 * found["generation"] and twice["timestep"] == found["timestep"]


@pytest.mark.parametrize("media", [False, True])
@pytest.mark.parametrize("name", ["nano", "edge"])
def test_a_layers_matrices_are_those_that_are_loaded(name, media):
    """By the names of their modules."""
    config = config_of(name)
    loaded = [slot for slot in layer_slots(config, 0, media=media) if slot.matrix]
    parts = {part.removesuffix(".weight"): shape for slot in loaded for part, shape in slot.parts}
    counted = transformer.sides(config, media)
    assert {f"layers.0.{tail}": (outputs, inputs) for tail, (inputs, outputs) in counted.items()} == parts


@pytest.mark.parametrize(("name", "a_token"), [("nano", 147_456), ("super", 262_144), ("edge", 114_688)])
def test_text_keys_and_values_are_those_of_the_table(name, a_token):
    assert transformer.und_kv_bytes(config_of(name), 1, "bfloat16") == a_token


@pytest.mark.parametrize(
    ("name", "size", "linear", "attention", "prefill", "petaflop"),
    [
        ("nano", (1024, 1024, 1, 50), 14.2, 0.9, 7.2, 1.53),
        ("super", (1024, 1024, 1, 50), 63.9, 3.3, 32.2, 6.79),
        ("edge", (1024, 1024, 1, 50), 2.9, 0.4, 1.5, 0.33),
        ("nano", (1280, 720, 189), 613, 1164, 7.2, 124.4),
        ("super", (1280, 720, 189), 2756, 4137, 32.2, 482.6),
        ("nano", (832, 480, 189), 260, 212, 7.2, 33.1),
        ("super", (832, 480, 189), 1168, 755, 32.2, 134.7),
        ("edge", (832, 480, 121), 34.1, 34.9, 1.5, 4.84),
        ("nano", (320, 192, 189), 40.0, 5.8, 7.2, 3.22),
        ("super", (320, 192, 189), 179.7, 20.5, 32.2, 14.1),
        ("nano", (1280, 720, 93), 307, 294, 7.2, 42.1),
    ],
)
def test_arithmetic_is_that_of_the_worked_table(name, size, linear, attention, prefill, petaflop):
    counted = whole(name, *size)
    one = transformer.forward_work(counted.config, counted.execution.tokens, 512, "bfloat16")
    text = transformer.forward_work(counted.config, 512, 0, "bfloat16", causal=True)
    found = [one[0].flops / 1e12, one[1].flops / 1e12, sum(work.flops for work in text) / 1e12]
    found.append(sum(work.flops for part in ("read prompts", "steps") for work in counted.parts[part]) / 1e15)
    for value, expected in zip(found, (linear, attention, prefill, petaflop), strict=True):
        digits = len(str(expected).partition(".")[2]) if isinstance(expected, float) else 0
        assert value == pytest.approx(expected, rel=0.01, abs=0.5 * 10**-digits)


@pytest.mark.parametrize(
    ("size", "tokens"), [((1024, 1024, 1), 1024), ((1280, 720, 189), 44_160), ((832, 480, 121), 12_090)]
)
def test_tokens_are_those_of_the_table(size, tokens):
    assert whole("nano", *size).execution.tokens == tokens


# --- the modules themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"hidden_act": "relu2", "qk_norm_for_text": False, "sound_gen": False}])
def test_weights_are_those_of_the_slots(changes):
    config = replace(TINY_CONFIG, use_und_k_norm_for_gen=bool(changes), **changes)
    found = transformer.weights(config, "bfloat16")
    counted = {
        tower: sum((4 if slot.fp32 else 2) * prod(shape) for slot in slots for shape in slot.tensors().values())
        for tower, slots in (
            ("text", understanding_slots(config) + layers_of(config, media=False)),
            ("media", generation_slots(config) + layers_of(config, media=True)),
        )
    }
    assert counted["text"] == found["understanding"] + found["embedding"]
    assert counted["media"] == sum(found[part] for part in ("generation", "heads", "action", "timestep"))


def layers_of(config: TransformerConfig, *, media: bool) -> list[Slot]:
    return [slot for i in range(config.num_hidden_layers) for slot in layer_slots(config, i, media=media)]


def tower(load, config: TransformerConfig, dtype: torch.dtype):
    """A tower without memory behind it: every op gives a tensor of the right size, and none is computed."""
    named = shapes(config)

    def read(names):
        return ((name, torch.empty(named[name], device="meta")) for name in names)

    return load(config, read, Target.plain(OPS, "meta", dtype))


@pytest.mark.parametrize("name", ["nano", "super", "edge"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_what_the_towers_allocate(name, dtype):
    """At the published widths, within 3 % for steps and 15 % for a prompt; two layers are as good as 64."""
    config, kind = replace(config_of(name), num_hidden_layers=2), getattr(torch, dtype)
    reader = tower(load_understanding, config, kind)
    with torch.inference_mode(), Alive() as alive:
        text = reader.prefill(list(range(512)))
    kept = transformer.und_kv_bytes(config, 512, dtype)
    assert sum(k.nbytes + v.nbytes for k, v in text.segments) == kept
    # The last layer only leaves its keys and values: when they come, the others' peak is over.
    assert alive.peak == pytest.approx(transformer.layer_bytes(config, 512, 0, kind.itemsize) + kept / 2, rel=0.15)
    maker = tower(load_generation, config, kind)
    for size, branches in (((1280, 720, 93), 1), ((1024, 1024, 1), 2), ((1280, 720, 189), 1)):
        item = Item("vision", (48, *latent_size(*size)))
        packing = Packing((item,), config, "meta")
        passed = maker.branches(packing, [text] * branches)
        latent = torch.empty(item.shape, device="meta")
        with torch.inference_mode(), Alive() as alive:
            maker.forward(passed, [latent], 500.0)
        rows, seen = branches * packing.length, (latent, passed.cos, passed.sin)
        expected = transformer.layer_bytes(config, rows, 512, kind.itemsize, branches) + sum(t.nbytes for t in seen)
        assert alive.peak == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("weights", [(None, None), (1.0, 2.0), (1.0, 1.0, 3.0)], ids=str)
@pytest.mark.parametrize("name", ["nano", "super"])
def test_activations_of_controls_are_what_the_towers_allocate(name, weights):
    """Where there are weights, attention goes to one control at a time, with copies, and the results are summed up."""
    config, kind = replace(config_of(name), num_hidden_layers=3), torch.bfloat16
    text, maker = tower(load_understanding, config, kind).prefill([*range(512)]), tower(load_generation, config, kind)
    shape = (48, *latent_size(1280, 720, 93))
    clean = tuple(range(shape[1]))
    controls = zip(("edge", "blur", "depth"), weights, strict=False)
    items = [Item("vision", shape, clean=clean, control=hint, weight=weight) for hint, weight in controls]
    packing = Packing((*items, Item("vision", shape)), config, "meta")
    passed, latents = maker.branches(packing, [text]), [torch.empty(shape, device="meta") for _ in (*items, shape)]
    with torch.inference_mode(), Alive() as alive:
        maker.forward(passed, latents, 500.0)
    weighted = len(items) if weights[0] else 0
    how = transformer.Attending(controls=weighted)
    expected = transformer.layer_bytes(config, packing.length, 512, kind.itemsize, 1, how)
    expected += sum(t.nbytes for t in (*latents, passed.cos, passed.sin))
    assert alive.peak == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("name", "most"), [("nano", 4), ("super", 6), ("edge", 2)])
def test_a_layer_of_the_longest_720p_takes_few_gibibytes(name, most):
    """Of eager torch's tensors, which concatenates and repeats keys and values; in bfloat16."""
    assert transformer.layer_bytes(config_of(name), 44_160, 512, 2) < most * 2**30


class Doubling:
    """A second half whose sums can be told by hand: x becomes x + delta + what was attended, and twice that is left to
    add or added at once; in place or not."""

    def __init__(self, in_place: bool, leaves_delta: bool):
        self.in_place, self.leaves_delta, self.sizes = in_place, leaves_delta, []

    def __call__(self, residual: Residual, attended_BSHD: torch.Tensor) -> None:
        rows = attended_BSHD.reshape(len(residual.x_MI), -1)
        self.sizes.append(len(rows))
        added = rows if residual.delta_MI is None else rows + residual.delta_MI
        more = 2 * (residual.x_MI + added)
        residual.x_MI = residual.x_MI.add_(added) if self.in_place else residual.x_MI + added
        residual.delta_MI = more if self.leaves_delta else None
        if not self.leaves_delta:
            residual.x_MI += more


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("leaves_delta", [False, True])
@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize(("rows", "sizes"), [(4, [4]), (5, [5]), (6, [5, 1]), (12, [5, 5, 2])])
def test_the_second_half_takes_rows_in_parts(monkeypatch, rows, sizes, delta, leaves_delta, in_place):
    monkeypatch.setattr(towers, "FINISH_ROWS", 5)
    x, given, attended = (torch.randn(rows, 8) for _ in range(3))
    residual, half = Residual(x.clone(), given.clone() if delta else None), Doubling(in_place, leaves_delta)
    towers.finish(towers.DecoderLayer(None, half), residual, attended.view(1, rows, 2, 4))
    assert half.sizes == sizes
    left = torch.zeros_like(x) if residual.delta_MI is None else residual.delta_MI
    assert (residual.delta_MI is not None) == leaves_delta
    whole = x + (attended + given if delta else attended)
    assert torch.equal(residual.x_MI + left, whole + 2 * whole)
