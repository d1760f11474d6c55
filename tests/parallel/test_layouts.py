"""`make test-parallel`: every layout of 2, 3, 4 and 8 processes over every kind of request, in fp32, against one.
There is one group of processes for each number of them."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from layouts import BOUND, coded, error, of_processes, requests, settled, velocity
from peer import TINY, diffusers_transformer, save_repository

from cosmos3_core.contract import InputError
from cosmos3_core.parallel import tensor
from cosmos3_core.plan.mesh import AXES, Layout
from cosmos3_core.plan.placement import DISK, RESIDENT, STREAMED, TOWERS, Placement

COUNTS = 2, 3, 4, 8


@pytest.fixture(scope="module", params=["two key heads", "eight key heads"])
def model(request, tmp_path_factory):
    """The tests' model, of which four processes repeat key heads, and one of ordinary scale with eight."""
    config = TINY | dict(num_attention_heads=16, intermediate_size=128)
    config |= dict(num_key_value_heads=8, num_hidden_layers=3) if request.param == "eight key heads" else {}
    return str(save_repository(tmp_path_factory.mktemp("model"), diffusers_transformer(config, seed=11, scale=0.12)))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    long = {"prompt": "a bell", "frames": 189, "sound": True, "size": "64x64", "guidance": 1.0, "steps": 2, "seed": 2}
    return requests(tmp_path_factory.mktemp("inputs")) | {"189 frames with sound": long}


@pytest.fixture(scope="module")
def alone(model, given):
    return {name: velocity(settled(values, model=model)) for name, values in given.items()}


def layouts(count: int) -> list[Layout]:
    """Every mesh of so many."""
    ways = [way for way in range(1, count + 1) if count % way == 0]
    found = [Layout(*degrees) for degrees in itertools.product(ways, repeat=len(AXES)) if math.prod(degrees) == count]
    return found


def beside(count: int) -> list[Layout]:
    """What lies beside the mesh, with each of its axes."""
    shared = [replace(one, hsdp=2) for one in layouts(count) if one.apart * 2 <= count]
    return [*shared, Layout(hsdp=count), Layout(cfg=2, hsdp=count)]


@pytest.mark.parametrize("count", COUNTS)
def test_every_layout_finds_what_one_process_does(model, given, alone, count):
    cases = []
    few = dict(list(given.items())[:: len(given) // 2])
    for layout, name in [*itertools.product(layouts(count), given), *itertools.product(beside(count), few)]:
        with suppress(InputError):  # as many branches, heads or tokens are not there
            settled(given[name], str(layout), model)
            cases.append((str(layout), name))
    assert len({layout for layout, _ in cases}) >= 2
    plans = [settled(given[name], model=model) for _, name in cases]
    found = of_processes(plans, [layout for layout, _ in cases])
    errors = {case: error(one, alone[case[1]]) for case, one in zip(cases, found, strict=True)}
    worst = max(errors, key=errors.__getitem__)
    print(f"\n{count} processes, {len(cases)} cases, worst {worst}: {errors[worst]:.1e}")
    assert errors[worst] < BOUND, {case: one for case, one in errors.items() if one >= BOUND}


@pytest.mark.parametrize("way", [RESIDENT, STREAMED, DISK])
def test_shared_weights_lie_anywhere(model, given, alone, way):
    """Each process streams its share of what lies in host memory; what lies in files is everyone's own."""
    cases = [("cfg=2,hsdp=2", "transfer"), ("ulysses=2,hsdp=2", "sound"), ("hsdp=2", "t2i")]
    plans = [settled(given[name], model=model) for _, name in cases]
    placement = Placement.alike(RESIDENT).with_parts(dict.fromkeys(TOWERS, way))
    found = of_processes(plans, [layout for layout, _ in cases], partial(velocity, placement=placement))
    assert max(error(one, alone[name]) for one, (_, name) in zip(found, cases, strict=True)) < BOUND


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_vae_by_rows_is_the_whole_one(given, count):
    """Pictures of an odd number of rows, clips, and one of fewer rows than processes."""
    cases = [*itertools.product([f"vae={count}", f"hsdp={count},vae={count}"], ["t2i", "v2v", "transfer", "policy"])]
    if count == 4:
        cases = [("cfg=2,ulysses=2,vae=2", "transfer"), ("cfg=2,tensor=2,vae=2", "policy"), ("ring=4,vae=2", "v2v")]
    plans = [settled(given[name]) for _, name in cases]
    found = of_processes(plans, [layout for layout, _ in cases], coded)
    whole = {name: coded(settled(given[name])) for name in {name for _, name in cases}}
    errors = {case: error(one, whole[case[1]]) for case, one in zip(cases, found, strict=True)}
    assert max(errors.values()) < BOUND, errors


EXACT = ("mxfp4a16", "nvfp4a16", "q8_0", "int8a16", "mxfp8")
OWN = ("fp8_tensor", "int8", "nvfp4")
"""Of each kind. Activations that have a scale for a whole token have one for a process's features of it here."""


@pytest.fixture(scope="module")
def quantized(model, given):
    return {name: velocity(settled(given["policy"], model=model, format=name)) for name in EXACT + OWN}


def test_layers_in_a_format_are_split_with_their_scales(model, given, alone, quantized):
    """Where the activations' scales are a process's own, it loses no more than one does."""
    plans = [settled(given["policy"], "tensor=2", model, name) for name in quantized]
    found = dict(zip(quantized, of_processes(plans, ["tensor=2"] * len(plans)), strict=True))
    errors = {name: error(found[name], quantized[name]) for name in EXACT}
    assert max(errors.values()) < BOUND, errors
    lost = {name: [error(one[name], alone["policy"]) for one in (found, quantized)] for name in OWN}
    print(lost)
    assert all(several < 1.25 * one for several, one in lost.values()), lost


def test_a_scale_split_along_the_wrong_axis_is_noticed(model, given, quantized, monkeypatch):
    columns_of = tensor.columns_of

    def wrong(weight, part):
        own = columns_of(weight, part)
        return replace(own, scales=weight.scales[:, : own.scales.shape[1]])

    monkeypatch.setattr(tensor, "columns_of", wrong)
    (found,) = of_processes([settled(given["policy"], "tensor=2", model, "mxfp4a16")], ["tensor=2"])
    assert error(found, quantized["mxfp4a16"]) > 100 * BOUND
