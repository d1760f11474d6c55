"""`make test-parallel`: every layout of 2, 3, 4 and 8 processes, in fp32, against one process; every task, weights
anywhere and every format with each axis. There is one group of processes for each number of them.

What is found is kept in the record that `cosmos3 matrix` makes a table of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pytest
from layouts import BOUND, error, of_processes, requests, settled, velocity
from peer import TINY, diffusers_transformer, save_repository
from records import Found, keep

from cosmos3_core.contract import InputError
from cosmos3_core.evidence.layouts import PLACED, SOUND
from cosmos3_core.model.packing import Packing
from cosmos3_core.parallel import tensor
from cosmos3_core.plan.mesh import BESIDE, DEGREES, Layout
from cosmos3_core.plan.placement import DISK, RESIDENT, TOWERS, Placement
from cosmos3_core.quant import FORMATS, Format
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.settle import Settled

COUNTS = 2, 3, 4, 8
TURNS = "t2i", "sound", "policy", "transfer"
"""What is dealt out to the layouts: all modalities, two and three branches, one picture."""
PAIRS = [Layout(**dict.fromkeys(pair, 2)) for pair in itertools.combinations_with_replacement(DEGREES, 2)]
MODELS = {
    "two key heads": {"num_attention_heads": 16, "intermediate_size": 128},
    "eight key heads": {
        "num_attention_heads": 16,
        "intermediate_size": 128,
        "num_key_value_heads": 8,
        "num_hidden_layers": 3,
    },
    "wide": {
        "hidden_size": 256,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 32,
        "rope_axes_dim": [8, 4, 4],
        "intermediate_size": 512,
    },
}
"""The tests' model, of which four processes repeat key heads; one of ordinary scale with eight; and one whose halves
hold whole groups of every format."""


@dataclass(frozen=True)
class Case:
    """A request on a layout, where its weights lie and its format, if a test is of these."""

    name: str
    asked: Settled
    placed: str = ""
    format: str = ""

    @property
    def layout(self) -> Layout:
        return self.asked.plan.layout

    def found(self, error: float, bound: float) -> Found:
        axes = (axis for axis, degree in asdict(self.layout).items() if degree > 1)
        others = SOUND if self.asked.request.sound else "", self.placed, self.format
        features = *axes, self.asked.request.task, *filter(None, others)
        return Found(features, self.layout.size, error, bound, self.format)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    def saved(name: str) -> str:
        module = diffusers_transformer(TINY | MODELS[name], seed=11, scale=0.12)
        return str(save_repository(tmp_path_factory.mktemp("model"), module))

    return {name: saved(name) for name in MODELS}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return requests(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(models, given):
    """What one process finds."""
    known: dict[tuple[str, ...], Any] = {}

    def of(model: str, name: str, format: str = "none") -> Any:
        key = model, name, format
        if key not in known:
            known[key] = velocity(settled(given[name], model=models[model], format=format))
        return known[key]

    return of


def layouts(count: int) -> list[Layout]:
    """Every one of so many processes."""
    ways = [way for way in range(1, count + 1) if count % way == 0]
    every = (Layout(*degrees) for degrees in itertools.product(ways, repeat=len(DEGREES)))
    return [one for one in every if one.size == count]


def able(layout: Layout, names: Sequence[str], given: Mapping[str, Any], model: str) -> Iterator[Case]:
    """Of these requests those for which a layout can be: as many branches, heads, tokens and rows are there."""
    for name in names:
        with suppress(InputError):
            yield Case(name, settled(given[name], str(layout), model))


def held(
    part: str,
    cases: Sequence[Case],
    expected: Callable[[Case], list[Any]],
    bound: Callable[[Case, list[Any]], float] = lambda *_: BOUND,
    refused: Mapping[tuple[str, str], str] | None = None,
    **how: Any,
) -> None:
    """Run them in groups of as many processes as each takes, keep what was found, and hold it against the bound."""
    results: list[tuple[Case, float, float]] = []
    for count in sorted({case.layout.size for case in cases}):
        some = [case for case in cases if case.layout.size == count]
        found = of_processes([case.asked for case in some], partial(velocity, **how))
        results += [(case, error(one, expected(case)), bound(case, one)) for case, one in zip(some, found, strict=True)]
    keep(part, [case.found(*errors) for case, *errors in results], refused)
    worst, most, _ = max(results, key=lambda one: one[1])
    print(f"\n{part}: {len(cases)} cases, worst {worst.name} on {worst.layout}: {most:.1e}")
    assert not [
        (case.name, str(case.layout), case.placed, case.format, one) for case, one, bound in results if one >= bound
    ]


def test_tokens_divide_nothing(given):
    """Sound of 197 tokens, 17 actions and pictures of one frame are among the requests, and odd numbers of tokens."""
    lengths = {}
    for name in given:
        one = settled(given[name])
        packing = Packing(items_of(one.request, one.model.config), one.model.config, "cpu")
        each = zip(packing.items, packing.rows, strict=True)
        lengths[name] = {item.modality: rows.stop - rows.start for item, rows in each} | {"all": packing.length}
    assert lengths["sound"]["sound"] == 197 and lengths["policy"]["action"] == 17
    assert lengths["t2i"] == {"vision": 5, "all": 5} and lengths["transfer"]["all"] == 45
    assert sum(one["all"] % 2 for one in lengths.values()) >= len(lengths) / 2


@pytest.mark.parametrize(("count", "vae"), [(2, None), (3, None), (4, None), (8, 1), (8, 2), (8, 4), (8, 8)])
def test_every_layout_finds_what_one_process_does(models, given, alone, count, vae):
    """The requests are dealt out to them. Of eight processes those of each degree of `vae` are kept apart."""
    model, cases = "eight key heads", []
    for turn, layout in enumerate(layouts(count)):
        names = TURNS[turn % len(TURNS) :] + TURNS
        if vae in (None, layout.vae):
            cases += itertools.islice(able(layout, names, given, models[model]), 1)
    part = f"every layout of {count} processes" + (f", vae={vae}" if vae else "")
    held(part, cases, lambda case: alone(model, case.name))


@pytest.mark.parametrize("count", COUNTS)
def test_every_mesh_finds_what_one_process_does(models, given, alone, count):
    """Where key heads are repeated, and with all of the requests."""
    model, cases = "two key heads", []
    for layout in layouts(count):
        if all(getattr(layout, name) == 1 for name in BESIDE):
            cases += able(layout, TURNS, given, models[model])
    held(f"every mesh of {count} processes", cases, lambda case: alone(model, case.name))


def test_every_task_is_made_on_every_pair_of_axes(models, given, alone):
    model, cases = "eight key heads", []
    for layout in PAIRS:
        cases += able(layout, list(given), given, models[model])
    assert len(cases) > 0.9 * len(given) * len(PAIRS)
    held("every task on every pair of axes", cases, lambda case: alone(model, case.name))


@pytest.mark.parametrize("way", PLACED)
def test_weights_lie_anywhere(models, given, alone, way):
    """Each process streams its share of what lies in host memory; what lies in files is everyone's own, and not shared
    out."""
    model, cases, refused = "two key heads", [], {}
    placement = Placement.alike(RESIDENT).with_parts(dict.fromkeys(TOWERS, way))
    for turn, layout in enumerate(PAIRS):
        name = TURNS[turn % len(TURNS)]
        try:
            one = settled(given[name], str(layout), models[model], placement=str(placement))
        except InputError as fault:
            assert layout.hsdp > 1 and way == DISK
            refused["hsdp", PLACED[way]] = fault.found
        else:
            cases.append(Case(name, one, PLACED[way]))
    assert bool(refused) == (way == DISK)
    held(
        f"{PLACED[way]} on every pair of axes",
        cases,
        lambda case: alone(model, case.name),
        refused=refused,
        placement=placement,
    )


def exact(format: Format, axis: str) -> bool:
    """Whether a pass in a format is what it is in one process. A sum in another order, by its last bits, rounds
    activations otherwise, and what a layer rounds otherwise the next ones do more; a scale of all rows is of those of
    a pass, and a process has fewer."""
    inputs = format.of_inputs
    if inputs is None or axis in BESIDE:
        return True
    return axis not in ("ring", "tensor") and not inputs.tensor_scale


def test_every_format_is_split_along_every_axis(models, given, alone):
    """What is not exact loses no more than one process does: tests/test_parallel.py has the products themselves."""
    model, name, cases, refused = "wide", "t2i", [], {}
    for format, axis in itertools.product(FORMATS, DEGREES):
        try:
            one = settled(given[name], f"{axis}=2", models[model], format)
        except InputError as fault:
            refused[format, axis] = fault.found
        else:
            cases.append(Case(name, one, format=format))
    assert {format for format, _ in refused} == {"int8_static", "fp8_static", "mxfp4_dual"}, refused

    def lost(case: Case, found: list[Any]) -> float:
        (axis,) = (axis for axis in DEGREES if getattr(case.layout, axis) > 1)
        if exact(FORMATS[case.format], axis):
            return BOUND
        plain, own = alone(model, name), alone(model, name, case.format)
        return math.inf if error(found, plain) < 1.25 * error(own, plain) else 0.0

    held("every format on every axis", cases, lambda case: alone(model, name, case.format), lost, refused=refused)


def test_a_scale_split_along_the_wrong_axis_is_noticed(models, given, alone, monkeypatch):
    columns_of = tensor.columns_of

    def wrong(weight, part):
        own = columns_of(weight, part)
        return replace(own, scales=weight.scales[:, : own.scales.shape[1]])

    monkeypatch.setattr(tensor, "columns_of", wrong)
    (found,) = of_processes([settled(given["policy"], "tensor=2", models["wide"], "mxfp4a16")])
    assert error(found, alone("wide", "policy", "mxfp4a16")) > 100 * BOUND
