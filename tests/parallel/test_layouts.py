"""`make test-parallel`: every layout of 2, 3, 4 and 8 processes over every kind of request, in fp32, against one.
There is one group of processes for each number of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from layouts import BOUND, error, of_processes, requests, settled, velocity
from peer import TINY, diffusers_transformer, save_repository

from cosmos3_core.contract import InputError
from cosmos3_core.plan.mesh import Layout
from cosmos3_core.plan.placement import DISK, RESIDENT, STREAMED, TOWERS, Placement

COUNTS = 2, 3, 4, 8


@pytest.fixture(scope="module", params=["two key heads", "eight key heads"])
def model(request, tmp_path_factory):
    """The tests' model, of which four processes repeat key heads, and one of ordinary scale with eight."""
    config = TINY | dict(num_attention_heads=16, num_key_value_heads=8 if request.param == "eight key heads" else 2)
    return str(save_repository(tmp_path_factory.mktemp("model"), diffusers_transformer(config, seed=11, scale=0.12)))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    long = {"prompt": "a bell", "frames": 189, "sound": True, "size": "64x64", "guidance": 1.0, "steps": 2, "seed": 2}
    return requests(tmp_path_factory.mktemp("inputs")) | {"189 frames with sound": long}


@pytest.fixture(scope="module")
def alone(model, given):
    return {name: velocity(settled(values, model=model)) for name, values in given.items()}


def layouts(count: int) -> list[str]:
    found = []
    for cfg in (1, 2, 3):
        for ring in range(1, count + 1):
            if count % (cfg * ring) == 0:
                one = Layout(cfg, ring, count // (cfg * ring))
                found += [str(one), str(replace(one, hsdp=count)), str(replace(one, hsdp=2))]
    return found + [f"hsdp={count}", f"cfg=2,hsdp={count}"]


@pytest.mark.parametrize("count", COUNTS)
def test_every_layout_finds_what_one_process_does(model, given, alone, count):
    cases = []
    for layout in layouts(count):
        for name, values in given.items():
            try:
                settled(values, layout, model)
            except InputError:  # as many branches, heads or tokens are not there
                continue
            cases.append((layout, name))
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
    found = of_processes(plans, [layout for layout, _ in cases], placement)
    assert max(error(one, alone[name]) for one, (_, name) in zip(found, cases, strict=True)) < BOUND
