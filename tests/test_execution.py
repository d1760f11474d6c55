"""How a request runs: branches, passes, captures, tiles, and what a backend may say of its device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import pytest
import torch
from counted import config_of, whole
from tiny_model import TINY_MODEL

from cosmos3_core import reference
from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.contract import Tuning
from cosmos3_core.engine.engine import Engine
from cosmos3_core.evidence.settle import eager_plan
from cosmos3_core.model.transformer import GenerationTower
from cosmos3_core.plan import Want, resolve
from cosmos3_core.plan.execution import HOST_TOKENS, KEPT_TOKENS, Execution, Keeping, tiling_of
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED, Placement
from cosmos3_core.runs import manifest as manifests
from cosmos3_core.settle import Wish, settle

NANO = config_of("nano")


@dataclass(frozen=True)
class Numbers:
    width: int = 1024
    height: int = 1024
    frames: int = 1
    guidance: float = 4.0
    tile: int | None = None
    other_tokens: int = 0
    control_guidance: float = 1.0
    controls: tuple[str, ...] = ()
    fps: float = 24.0
    sound: bool = False
    sound_length: str = "down"


def of(tuning: Tuning | None = None, format: str = "none", placement: Placement = ALL_STAGED, **numbers) -> Execution:
    return Execution.of(NANO, Numbers(**numbers), tuning or Tuning(), format=format, placement=placement)


def test_guidance_1_has_one_branch_and_every_other_two():
    assert of(guidance=1.0).branches == ("prompt",) and of(guidance=1.0).guidance == "none"
    for guidance in (0.0, 0.5, 6.0):
        assert of(guidance=guidance).branches == ("prompt", "negative prompt")
    alone = of(guidance=1.0)
    assert alone.guided == alone.unguided == alone.passes


def test_a_small_picture_runs_both_branches_in_one_captured_pass():
    small = of()
    assert small.tokens == 1024 and small.guidance == "one pass" and small.widest == 2
    assert [(one.rows, one.captured) for one in small.passes] == [(1024, True), (2048, True)]


def test_a_large_one_takes_two_passes_and_shares_the_first_with_unguided_steps():
    large = of(width=1280, height=720, frames=189)
    assert large.tokens == 44_160 and large.guidance == "two passes" and large.widest == 1
    assert large.guided[:1] == large.unguided and len(large.passes) == 2
    assert not any(one.captured for one in large.passes)


@pytest.mark.parametrize("off", [-1, 0])
def test_thresholds_are_the_backends(off):
    """At the threshold a pass still counts as small."""
    one_pass, capture = of(Tuning(one_pass_tokens=1024 + off)), of(Tuning(capture_rows=2048 + off))
    assert one_pass.guidance == ("one pass" if off == 0 else "two passes")
    assert capture.guided[0].captured == (off == 0) and capture.unguided[0].captured
    assert of(Tuning(chunk_area=3 * 64 * 64 + off)).tiling.chunk == 3 + off


@pytest.mark.parametrize("off", [-1, 0])
def test_a_pictures_encode_is_captured_where_it_may_stay(off):
    tuned = Tuning(chunk_area=64 * 64 + off)
    assert of(tuned, placement=ALL_RESIDENT).encode_captured == (off == 0) and not of(tuned).encode_captured


def test_a_backend_tunes_by_architecture():
    device = reference.BACKEND.probe()
    tuned = replace(reference.BACKEND, tuning={device.arch: Tuning(one_pass_tokens=7)})
    another = replace(device, arch="another")
    want, places = Want.of(NANO, "bfloat16"), [(tuned, device), (tuned, another), (reference.BACKEND, device)]
    assert [resolve(want, *place).tuning.one_pass_tokens for place in places] == [7, 4096, 4096]


def test_layers_are_kept_where_a_format_quantizes_the_others():
    assert of().kept_layers == 0 and of(format="fp8").kept_layers == 2


@pytest.mark.parametrize(("formats", "kept"), [({}, 0), ({"attention": "fp8"}, 0), ({"pack_linear": "fp8"}, 2)])
def test_weights_and_passes_keep_the_same_layers(formats, kept):
    plan = eager_plan(NANO, "bfloat16", formats, reference.BACKEND, reference.BACKEND.probe())
    assert plan.target(NANO).kept_layers == plan.execution(NANO, Numbers()).kept_layers == kept


def test_the_layers_that_are_kept_are_loaded_as_they_are():
    model = open_model(TINY_MODEL)
    device, weights = reference.BACKEND.probe(), Weights(model)
    plain, int8 = (
        eager_plan(model.config, "bfloat16", formats, reference.BACKEND, device).target(model.config)
        for formats in ({}, {"pack_linear": "int8"})
    )
    exact, kept = (weights.generation(target).layers for target in (plain, replace(int8, kept_layers=1)))
    (first, second), (kept_one, packed) = ([layer.tensors() for layer in layers] for layers in (exact, kept))
    assert torch.equal(first["finish.down.weight"], kept_one["finish.down.weight"])
    assert "finish.down.weight" in second and "finish.down.weight" not in packed
    assert packed["finish.down.values"].dtype == torch.int8


@pytest.mark.parametrize(
    ("tile", "heights", "widths", "chunk"),
    [
        (None, (45,), (80,), 1),
        (256, (16, 16, 16, 9), (16, 16, 16, 16, 16, 16, 8), 8),
        (1280, (45,), (80,), 1),
    ],
)
def test_tiles_cover_the_picture_and_overlap_by_a_quarter(tile, heights, widths, chunk):
    tiling = tiling_of(45, 80, tile, Tuning().chunk_area)
    assert (tiling.heights, tiling.widths, tiling.chunk) == (heights, widths, chunk)
    assert tiling.whole == (tile != 256)
    assert tiling.step == (12 if tile == 256 else tiling.size)


@pytest.mark.parametrize(
    "given", [{}, {"guidance": 1}, {"guidance_interval": [400, 1000]}, {"frames": 9, "size": "256x192", "tile": 128}]
)
def test_engine_estimate_and_manifest_read_the_same(given):
    settled = settle(Wish(model=TINY_MODEL, backend="reference", given={"prompt": "a cup", "frames": 1, **given}))
    assert Engine(settled.model, settled.plan).execution(settled.request) == settled.execution
    assert manifests.resolved(settled, "it was named")["plan"]["execution"] == asdict(settled.execution)
    resident = Engine(settled.model, settled.plan, placement=ALL_RESIDENT).execution(settled.request)
    keeping = Keeping(KEPT_TOKENS, Tuning().capture_rows, Tuning().chunk_area, HOST_TOKENS)
    captured = resident.encode_captured
    assert resident == replace(settled.execution, placement=ALL_RESIDENT, keeping=keeping, encode_captured=captured)


def test_the_estimate_follows_the_backends_tuning():
    """One pass holds both branches' activations; a larger chunk more frames of the decode."""
    job = whole("nano", 320, 192, 93)
    apart, larger = (replace(job, tuning=tuning) for tuning in (Tuning(one_pass_tokens=1), Tuning(chunk_area=1 << 14)))
    assert apart.stage("steps").activations < job.stage("steps").activations
    assert larger.stage("decode").activations > job.stage("decode").activations


def test_an_engine_reads_what_is_decided(monkeypatch):
    """The passes of a step are those of its execution."""
    forward, ran = GenerationTower.forward, []

    def spy(self, branches, latents, timestep, **precision):
        ran.append(len(branches.texts))
        return forward(self, branches, latents, timestep, **precision)

    monkeypatch.setattr(GenerationTower, "forward", spy)
    given = {"prompt": "a cup", "frames": 1, "size": "64x64", "steps": 1, "seed": 1}
    settled = settle(Wish(model=TINY_MODEL, backend="reference", given=given))
    for tokens, passes in ((4096, [2]), (1, [1, 1])):
        tuned = replace(settled.plan.backend, tuning={settled.plan.device.arch: Tuning(one_pass_tokens=tokens)})
        engine = Engine(settled.model, replace(settled.plan, backend=tuned))
        engine.step(engine.start(settled.request))
        assert ran == passes == [len(one.branches) for one in engine.execution(settled.request).guided]
        ran.clear()
