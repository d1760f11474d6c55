"""`cosmos3 warmup`: the same kernels at the same shapes as a run, on random weights."""

from __future__ import annotations

import json

import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.engine.engine import Engine
from cosmos3_core.model.transformer import GenerationTower

SMALL = ("--model", TINY_MODEL, "--backend", "reference", "--size", "64x64")


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (("--frames", "1"), {"read prompts", "steps", "decode"}),
        (("--frames", "17", "--guidance", "1"), {"read prompts", "steps", "decode"}),
        (("--task", "i2v", "--frames", "9"), {"read prompts", "encode input", "steps", "decode"}),
    ],
)
def test_it_tells_cold_from_warm_by_stage(capsys, monkeypatch, options, stages):
    monkeypatch.setattr(Weights, "__init__", lambda *_: pytest.fail("opened the checkpoint's weights"))
    code, out, _ = cosmos3(capsys, monkeypatch, "warmup", *SMALL, *options, "--json")
    told = json.loads(out)
    assert code == 0 and stages <= set(told["seconds"])
    assert all(set(seconds) == {"cold", "warm"} for seconds in told["seconds"].values())
    assert told["plan"]["kernels"]["attention"] == "eager"


def test_it_takes_passes_of_the_request_s_shape_through_one_layer(capsys, monkeypatch):
    seen, forward = [], GenerationTower.forward

    def watched(tower, branches, latents, timestep, **precision):
        seen.append((len(tower.layers), latents[0].numel(), [text.length for text in branches.texts]))
        return forward(tower, branches, latents, timestep, **precision)

    monkeypatch.setattr(GenerationTower, "forward", watched)
    code, out, _ = cosmos3(capsys, monkeypatch, "warmup", *SMALL, "--frames", "9")
    assert code == 0 and "cold" in out and "decode" in out
    assert seen == [(1, 48 * 3 * 4 * 4, [512, 127])] * 6


@pytest.mark.parametrize(
    ("options", "texts", "groups"),
    [
        (("--size", "64x64", "--frames", "1"), {(512, 127)}, 1),
        # Three steps of each precision.
        (("--size", "64x64", "--frames", "1", "--format", "fp8", "--high-precision-steps", "2,1"), {(512, 127)}, 1),
        (("--size", "256x256", "--frames", "81", "--guidance", "1"), {(512,)}, 3),
        # Its first steps are guided, and its last ones are not.
        (("--size", "64x64", "--frames", "1", "--set", "guidance_interval=[400,1000]"), {(512, 127), (512,)}, 1),
    ],
)
def test_it_runs_every_kind_of_step_and_of_group(capsys, monkeypatch, options, texts, groups):
    passes, decoded, forward, finish = [], [], GenerationTower.forward, Engine.finish

    def watched(tower, branches, *arguments, a16):
        passes.append((tuple(text.length for text in branches.texts), a16))
        return forward(tower, branches, *arguments, a16=a16)

    def counted(engine, state):
        for group in finish(engine, state):
            decoded.append(len(group))
            yield group

    monkeypatch.setattr(GenerationTower, "forward", watched)
    monkeypatch.setattr(Engine, "finish", counted)
    code, _, err = cosmos3(capsys, monkeypatch, "warmup", *SMALL[:-2], *options)
    assert code == 0, err
    kinds = {(text, a16) for text in texts for a16 in {False, "--high-precision-steps" in options}}
    assert {*passes} == kinds and all(passes.count(kind) == 6 for kind in kinds) and len(decoded) == 2 * groups


def test_a_recipe_is_warmed_up_by_name(capsys, monkeypatch):
    code, out, _ = cosmos3(capsys, monkeypatch, "recipes", "warmup", "embedded-t2i-128x128-cpux1")
    assert code == 0 and "read prompts" in out


def test_it_refuses_what_a_run_would(capsys, monkeypatch):
    code, _, err = cosmos3(capsys, monkeypatch, "warmup", *SMALL, "--frames", "2")
    assert code == 2 and "frames" in err
    code, _, err = cosmos3(capsys, monkeypatch, "warmup", *SMALL, "--format", "fp9")
    assert code == 2 and "--format pack_linear=fp9" in err


def test_where_nothing_compiles_there_is_nothing_to_do(capsys, monkeypatch):
    monkeypatch.setenv("COSMOS3_DISABLE_BACKENDS", "all")
    monkeypatch.setattr(Engine, "__init__", lambda *_, **__: pytest.fail("it began"))
    code, out, err = cosmos3(capsys, monkeypatch, "warmup")
    assert (code, out) == (2, "") and "(reference) compiles nothing" in err and len(err.splitlines()) == 1
