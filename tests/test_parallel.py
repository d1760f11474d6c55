"""Several devices: layouts, what they are refused with, and that they compute what one does. All of them, and whole
runs, are in tests/parallel (`make test-parallel`)."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from command import cosmos3
from devices import DEVICES, HOST, backend
from layouts import BOUND, coded, error, of_processes, requests, settled, velocity
from processes import together
from tiny_model import TINY_MODEL

from benchmarks.scaling import Counted
from cosmos3_core.cli.plan import show
from cosmos3_core.contract import InputError, Kernel, RunError, Segment
from cosmos3_core.engine.engine import Engine
from cosmos3_core.parallel import attention, patches
from cosmos3_core.parallel.attention import kv_heads_of
from cosmos3_core.parallel.ranks import Circle, check_agreed, parts
from cosmos3_core.parallel.trial import try_out
from cosmos3_core.plan import Want, mesh, resolve
from cosmos3_core.plan.mesh import Layout, Shared
from cosmos3_core.plan.placement import OFFLOADED
from cosmos3_core.reference import BACKEND
from cosmos3_core.reference.comm import Arriving, TorchComm
from cosmos3_core.reference.ops import attention as reference
from cosmos3_core.runs.manifest import resolved
from cosmos3_core.settle import Wish, settle

NANO = Shared(
    branches=["prompt", "negative prompt"], heads=32, kv_heads=8, inner=12_288, layers=36, tokens=44_160, rows=45
)
DIAGONAL = {
    2: {"hsdp=2": "t2i", "ulysses=2": "sound", "ring=2": "transfer", "tensor=2": "policy", "pipeline=2": "transfer"},
    3: {"ring=3": "sound"},
    4: {"cfg=2,ulysses=2,hsdp=4": "transfer", "ring=2,ulysses=2": "policy", "ulysses=2,tensor=2": "t2v"},
}
"""Every axis and pair, and every kind of request, once, and a ring that has two ways round. With four ways among two
key heads these are repeated."""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return requests(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(given):
    """What one process finds of each request."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = velocity(settled(given[name]))
        return found[name]

    return of


@pytest.mark.parametrize("count", DIAGONAL)
def test_several_processes_find_what_one_does(given, alone, count):
    asked = DIAGONAL[count]
    found = of_processes([settled(given[name], layout) for layout, name in asked.items()])
    errors = {layout: error(one, alone(asked[layout])) for layout, one in zip(asked, found, strict=True)}
    assert max(errors.values()) < BOUND, errors


def test_a_text_counted_by_each_of_a_ring_is_noticed(given, alone, monkeypatch):
    """What other engines do: the error is no rounding."""
    merged = attention.Exchanged._merged

    def twice(self, before, q, text, kv, keys):
        self.text = text or self.text
        return merged(self, before, q, self.text, kv, keys)

    monkeypatch.setattr(attention.Exchanged, "_merged", twice)
    (found,) = of_processes([settled(given["t2v"], "ring=2")])
    assert error(found, alone("t2v")) > 100 * BOUND


def test_a_scale_of_each_processs_own_features_is_noticed(given, monkeypatch):
    """Activations in nvfp4 have one of all."""
    whole, asked = velocity(settled(given["t2i"], format="nvfp4")), settled(given["t2i"], "tensor=2", format="nvfp4")
    (found,) = of_processes([asked])
    assert error(found, whole) < BOUND
    monkeypatch.setattr(Circle, "largest", lambda self, x: x)
    (found,) = of_processes([asked])
    assert error(found, whole) > 100 * BOUND


def test_rows_of_a_picture_are_the_whole_one(given, monkeypatch):
    """Encoded and decoded, nine rows by two processes; and a halo that is one row short is noticed."""
    alone, asked = coded(settled(given["v2v"])), settled(given["v2v"], "vae=2")
    (found,) = of_processes([asked], coded)
    assert error(found, alone) < BOUND
    around = patches.Neighbours.around

    def short(self, x, above, below):
        rows = around(self, x, above, below)
        rows[:, -1:] *= not below
        return rows

    monkeypatch.setattr(patches.Neighbours, "around", short)
    (found,) = of_processes([asked], coded)
    assert error(found, alone) > 100 * BOUND


def test_merged_parts_are_the_softmax_over_all():
    """In any order, also where one part has nearly all the weight."""
    stream = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 7, 4, 16, generator=stream) for _ in range(3))
    whole, lse = reference(q, [Segment(40 * k, v)], want_lse=True)
    sums = None
    for rows in (slice(5, 7), slice(0, 1), slice(1, 5)):
        sums = attention.Merged(*reference(q, [Segment(40 * k[:, rows], v[:, rows])], want_lse=True), sums)
    assert error([sums.out, sums.lse], [whole, lse]) < 1e-6


def test_a_process_with_another_seed_is_named():
    def work(rank):
        decided = {"request": {"seed": 1 + (rank == 2), "steps": 4}, "ids": [1, 2]}
        check_agreed(decided | {"request": decided["request"]})

    for found in together(3, work):
        assert isinstance(found, RunError)
        assert found.found == "process 2 has another than process 0 (request.seed)"


class Adding(TorchComm):
    """One that adds up, whatever is asked for."""

    def all_reduce(self, x, group=None, *, op="sum"):
        return super().all_reduce(x, group)


class Idle(TorchComm):
    """A vendor's collective that succeeds and moves nothing."""

    def __init__(self, name):
        self.name = name

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "name"):
            return lambda x, *_, **__: Arriving(x.clone(), [])
        return super().__getattribute__(name)


def test_a_collective_that_moves_nothing_is_named():
    names = ("all_to_all", "all_gather", "reduce_scatter", "all_reduce", "broadcast", "exchange")

    def work(rank):
        said = []
        for name in (None, *names):
            try:
                try_out(Idle(name), None, rank, 2, torch.device("cpu"), "ulysses")
                said.append("right")
            except RunError as fault:
                said.append(fault.asked)
            dist.barrier()
        return said

    for rank, found in enumerate(together(2, work)):
        told = [f"trying out {name} among the 2 processes of ulysses" for name in names]
        told[4] = "right" if rank else told[4]  # a broadcast from this one
        assert found == ["right", *told]


def test_an_all_reduce_that_knows_no_max_is_named():
    def work(_):
        try_out(Adding(), None, dist.get_rank(), 2, torch.device("cpu"), "tensor")

    for found in together(2, work):
        assert (
            isinstance(found, RunError)
            and found.asked == "trying out all_reduce by max among the 2 processes of tensor"
        )


def test_a_plan_for_several_waits_for_nobody(given):
    """In one process it is refused, before a weight is read."""
    one = settled(given["t2i"], "cfg=2")
    with pytest.raises(InputError, match="it takes 2 processes, and this is one"):
        Engine(one.model, one.plan).start(one.request)


def test_a_format_that_is_not_split_so_is_refused_by_name(given):
    """And a composite of a vendor that adds up itself what each process has a part of steps down, with its reason."""
    with pytest.raises(InputError) as raised:
        settled(given["t2i"], "tensor=2", format="nf4")
    assert raised.value.asked == "`format` pack_linear=nf4 with `parallel` tensor=2"
    assert "nf4 shares scales or bytes among 64 input features" in raised.value.found
    assert raised.value.next_step.startswith("Split another axis; formats"), "no degree is fit for it"
    with pytest.raises(InputError) as raised:
        shared(parallel="tensor=64", formats={"pack_linear": "w4a16"})
    assert raised.value.next_step.startswith("Split another axis, or type `parallel` tensor=32; formats"), raised.value
    with pytest.raises(InputError, match="fp8_static takes the activations' scales from a quantized checkpoint"):
        settled(given["t2i"], "tensor=2", format="fp8_static")
    fused = Kernel(op="finish", name="fused", build=lambda _: None, fuses=("gate",))
    backend = replace(BACKEND, kernels=(*BACKEND.kernels, fused))
    want = Want(dtype="float32", heads=4, kv_heads=2, head_dim=16, hidden=64, inner=96, tensor=2)
    plan = resolve(want, backend, HOST)
    assert next(one.kernel.name for one in plan.choices if one.op == "finish") == "composed"
    assert [one.reason for one in plan.refusals] == ["reads and adds up whole rows, of which every device has a part"]


def test_places_and_groups():
    layout = Layout(cfg=2, ring=2, ulysses=2)
    assert [layout.coordinates(rank) for rank in (0, 1, 2, 5)] == [
        {"copy": 0, "cfg": 0, "pipeline": 0, "ring": 0, "ulysses": 0, "tensor": 0},
        {"copy": 0, "cfg": 0, "pipeline": 0, "ring": 0, "ulysses": 1, "tensor": 0},
        {"copy": 0, "cfg": 0, "pipeline": 0, "ring": 1, "ulysses": 0, "tensor": 0},
        {"copy": 0, "cfg": 1, "pipeline": 0, "ring": 0, "ulysses": 1, "tensor": 0},
    ]
    assert layout.groups("ulysses") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert layout.groups("ring") == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert layout.groups("ring", "ulysses") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert layout.groups("cfg") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert str(layout) == "cfg=2,ring=2,ulysses=2" and mesh.typed(str(layout)) == layout
    assert replace(layout, hsdp=4).groups("hsdp") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert Layout(cfg=2, tensor=2, hsdp=2).groups("hsdp") == [[0, 2], [1, 3]]
    more = Layout(cfg=2, hsdp=4)
    assert more.size == 4 and more.groups("cfg") == [[0, 1], [2, 3]] and more.groups("hsdp") == [[0, 1, 2, 3]]


def test_key_heads_are_shared_or_repeated_in_order():
    def found(count, kv_heads):
        return [(one.start, one.stop) for one in (kv_heads_of(count, i, kv_heads) for i in range(count))]

    assert found(2, 8) == [(0, 4), (4, 8)] and found(2, 2) == [(0, 1), (1, 2)]
    assert found(4, 2) == [(0, 1), (0, 1), (1, 2), (1, 2)] and found(2, 1) == [(0, 1), (0, 1)]


def test_parts_are_even_and_ragged():
    for length, count in itertools.product((1, 7, 197, 200), (1, 2, 3, 8)):
        found = parts(length, count)
        assert sum(found) == length and max(found) - min(found) <= 1


@pytest.mark.parametrize(
    ("parallel", "shared", "found", "next_step"),
    [
        (
            "pipeline=48",
            NANO,
            "the model has 36 layers, fewer than the 48 devices of a pipeline",
            "The nearest that can be is `parallel` pipeline=36",
        ),
        ("cfg", NANO, "cfg has no degree", "Type cfg=2, or another number of parts"),
        (
            "tensor=1000",
            NANO,
            "the model's 32 heads are not split evenly among 1000",
            "The nearest that can be is `parallel` ring=31,tensor=32",
        ),
        ("ulises=2", NANO, "'ulises=2' names no axis of the mesh", "Did you mean ulysses?"),
        ("cfg=2,cfg=2", NANO, "cfg is given twice", "Keep one of them"),
        ("cfg=0", NANO, "'0' is no number of parts", "Type 1 to 1024"),
        ("ring=99,ulysses=99", NANO, "it takes 9801 devices", "Type up to 1024 in all"),
        (
            "cfg=3",
            NANO,
            "a step has 2 guidance branches: prompt, negative prompt",
            "The nearest that can be is `parallel` cfg=2",
        ),
        (
            "cfg=2",
            replace(NANO, branches=["prompt"]),
            "the request has no guidance, and so one branch: there is nothing to deal out",
            "The nearest that can be is `parallel` ulysses=2",
        ),
        (
            "cfg=2,ulysses=3",
            NANO,
            "the model's 32 heads are not split evenly among 3",
            "The nearest that can be is `parallel` cfg=2,ulysses=2",
        ),
        (
            "ulysses=6",
            replace(NANO, heads=24),
            "the model's 8 key heads are neither split among 6 nor repeated evenly",
            "The nearest that can be is `parallel` ulysses=4",
        ),
        (
            "tensor=32",
            replace(NANO, inner=12_280),
            "the MLP's 12280 features are not split evenly among 32",
            "The nearest that can be is `parallel` cfg=2,ulysses=2,tensor=8",
        ),
        (
            "cfg=2,vae=4",
            replace(NANO, rows=3),
            "the latents have 3 rows, fewer than the 4 devices that encode and decode",
            "The nearest that can be is `parallel` cfg=2,ulysses=2,vae=2",
        ),
        (
            "cfg=2,hsdp=3",
            NANO,
            "the 4 devices with the same weights are not divided evenly into groups of 3",
            "The nearest that can be is `parallel` cfg=2,ulysses=2,hsdp=2",
        ),
        (
            "cfg=2,tensor=64",
            replace(NANO, splits=lambda count: count < 4),  # as a format does whose groups more devices would cut
            "the model's 32 heads are not split evenly among 64",
            "The nearest that can be is `parallel` cfg=2,ring=2,ulysses=16,tensor=2",
        ),
        (
            "ring=8",
            replace(NANO, tokens=6),
            "the request has 6 media tokens, fewer than the 8 devices of a branch",
            "The nearest that can be is `parallel` ring=6",
        ),
        (
            "tensor=8",
            replace(NANO, tokens=6),
            "the request has 6 media tokens, fewer than the 8 devices of a branch",
            "The nearest that can be is `parallel` cfg=2,tensor=4",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(parallel, shared, found, next_step):
    with pytest.raises(InputError) as raised:
        mesh.settled(parallel, None, shared, None)
    assert (raised.value.found, raised.value.next_step) == (found, next_step)


TINY_PLAN = ("plan", "--model", TINY_MODEL, "--backend", "reference", "--size", "80x48", "--frames", 5, "--guidance", 3)
SINGLE = {
    "--use-hsdp --cfg-parallel-size 2 --ulysses-degree 2": "4: cfg 2, ulysses 2, hsdp 4",
    "--use-hsdp --cfg-parallel-size 2 --vae-patch-parallel-size 2": "2: cfg 2, hsdp 2, vae 2",
    "--use-hsdp --cfg-parallel-size 2 --tensor-parallel-size 2": "4: cfg 2, tensor 2, hsdp 2",
    "--cfg-parallel-size 2": "2: cfg 2",
    "--ulysses-degree 2": "2: ulysses 2",
    "--ring-degree 2": "2: ring 2",
    "--tensor-parallel-size 2": "2: tensor 2",
    "--pipeline-parallel-size 2": "2: pipeline 2",
    "--cfg-parallel-size 2 --ulysses-degree 4 --use-hsdp --hsdp-shard-size 8": "8: cfg 2, ulysses 4, hsdp 8",
    "--cfg-parallel-size 2 --use-hsdp --hsdp-shard-size 2 --vae-patch-parallel-size 2": "2: cfg 2, hsdp 2, vae 2",
    "--use-hsdp --vae-patch-parallel-size 3": "3: hsdp 3, vae 3",
    "--use-hsdp --tensor-parallel-size 2": "no two devices of tensor=2 have the same weights",
    "--use-hsdp --cfg-parallel-size 0": "--parallel cfg=0: '0' is no number of parts",
    "--use-hsdp --devices 4": "it does not say among how many devices. Add --hsdp-shard-size 4, or another degree",
    "--hsdp-shard-size 2 --placement understanding=disk,generation=disk": "--parallel hsdp=2 with --placement "
    "understanding=disk,generation=disk: what is read from files is shared out by nobody",
    "--hsdp-shard-size 2 --ulysses-degree 3 --placement understanding=disk,generation=disk": "what is read from files",
    "--hsdp-shard-size 2 --placement generation=disk": "2: hsdp 2",
    "--use-hsdp --parallel ring=2": "--use-hsdp with --parallel ring=2: both split the run among devices",
    "--ring-degree 0 --parallel ring=2": "--ring-degree with --parallel ring=2: both split the run among devices",
    "--objective memory": "--objective memory: no number of devices is given, so that it would change nothing",
    "--objective speed": "--objective 'speed': no such objective. Type latency or throughput or memory",
}


@pytest.mark.parametrize(
    ("options", "said"),
    [("--devices 2", "2: cfg 2"), ("--ulysses-degree 3", "The nearest that can be is --parallel ulysses=2")],
)
def test_a_format_that_tensor_splits_nowhere_is_shared_along_other_axes(options, said, capsys, monkeypatch):
    """The embedded model's key heads are half a group wide, in one device's matrix, too."""
    command = f"plan --model embedded --backend reference --size 64x64 --guidance 3 --format fp8_block {options}"
    _, out, err = cosmos3(capsys, monkeypatch, *command.split())
    assert said in out + err, err


@pytest.mark.parametrize("options", SINGLE)
def test_options_of_single_degrees_are_a_layout_or_an_error(options, capsys, monkeypatch):
    code, out, err = cosmos3(capsys, monkeypatch, *TINY_PLAN, *options.split())
    if SINGLE[options][0].isdigit():
        assert code == 0 and f"devices    {SINGLE[options]} (" in out, err
    else:
        assert (code, out) == (2, "") and SINGLE[options] in err and len(err.splitlines()) == 1


def test_a_plan_says_why_one_of_several_devices_has_a_request_alone(capsys, monkeypatch):
    command = "plan --model embedded --backend reference --size 64x64 --devices 8 --objective throughput"
    code, out, err = cosmos3(capsys, monkeypatch, *command.split())
    assert code == 0 and "devices    1 (of 8 devices, most requests in a time" in out, err


def test_devices_choose_the_layout_that_exchanges_least():
    chosen = {count: str(mesh.settled(None, count, NANO, None)[0]) for count in (1, 2, 3, 8, 16, 64)}
    assert chosen == {
        1: "cfg=1",
        2: "cfg=2",
        3: "ring=3",
        8: "cfg=2,ulysses=4",
        16: "cfg=2,ulysses=8",
        64: "cfg=2,ulysses=32",
    }
    assert str(mesh.settled(None, 2, replace(NANO, branches=["prompt"]), None)[0]) == "ulysses=2"
    with pytest.raises(InputError, match="it takes 8 devices, and here are 4. Type `parallel` cfg=2,ulysses=2"):
        mesh.settled("cfg=2,ulysses=4", None, NANO, 4)


H100S = ("cuda", replace(DEVICES["h100"][1], count=8))


def shared(*, model="nvidia/Cosmos3-Nano", **said):
    wish = Wish(model=model, described=True, partial=True, given={"task": "t2v"}, chooses=True, host_memory=10**12)
    return settle(replace(wish, **said), (backend(H100S[0]), H100S[1]))


def test_devices_are_shared_for_what_is_wanted_of_them():
    """The layouts of the tracking table come out, what does not fit comes last, and a plan names what it passed by."""
    least = shared(devices=8)
    assert str(least.plan.layout) == "cfg=2,ulysses=4,vae=8"
    assert least.layout_why.startswith("of 8 devices, one request in the least time: ")
    assert "; instead: cfg=2,ulysses=4,hsdp=8,vae=8 " in least.layout_why
    assert str(shared(devices=8, objective="throughput").plan.layout) == "cfg=2,vae=2"
    memory = shared(devices=8, objective="memory")
    assert memory.estimate.peak < least.estimate.peak < shared(devices=2).estimate.peak
    small = shared(devices=2, model="nvidia/Cosmos3-Super", memory=60 * 2**30, chooses=False)
    assert small.plan.layout.hsdp == 2 and small.fits
    assert any(one.lacks for one in small.alternatives)
    with pytest.raises(InputError, match="no such objective"):
        shared(devices=2, objective="speed")


def test_a_plan_tells_what_devices_exchange():
    """Of ring and HSDP beside the work; of Ulysses and tensor parallel, a ninth of the other's, before it goes on."""
    ulysses, tensor, ring, hsdp = (
        shared(parallel=f"{axis}=8").estimate.exchange(True) for axis in ("ulysses", "tensor", "ring", "hsdp")
    )
    assert not ulysses.beside and not tensor.beside and ring.beside > ulysses.waited
    assert len(shared(parallel="hsdp=8").estimate.execution.guided) == 2, "at this size each branch has a pass"
    assert hsdp.beside == pytest.approx(2 * 7 / 8 * shared().estimate.weights["generation"])
    assert 6 < tensor.waited / ulysses.waited < 12
    assert not shared(parallel="hsdp=8", placement="generation=disk").estimate.exchange(True).beside, "read by each"
    hidden, waited = ring.seconds(450e9, 10.0)
    assert hidden == ring.beside / 450e9 and waited == ring.waited / 450e9
    slow = ring.seconds(1e9, 1.0)
    assert slow[0] == 1.0 and slow[1] == pytest.approx(ring.beside / 1e9 - 1.0 + ring.waited / 1e9)
    ceiling = backend("cuda").ceilings["H100 80GB HBM3"]
    piped = shared(parallel="pipeline=2").estimate
    step = piped.seconds(ceiling)["step"]
    assert piped.bubbles(True, False, ceiling) == pytest.approx(step / 3, rel=0.02)


SENT = {2: ("cfg=2", "ulysses=2", "ring=2", "tensor=2", "hsdp=2", "cfg=2,hsdp=2"), 4: ("ring=2,ulysses=2", "hsdp=4")}


@pytest.mark.parametrize("count", SENT)
def test_devices_send_what_the_plan_counts(given, count):
    """Bytes of every collective of a step, of the process that sends most: parts are not quite even."""
    plans = [settled(given["sound"], parallel) for parallel in SENT[count]]

    def sent(one):
        engine = Engine(one.model, one.plan)
        comm = engine._others._comm = Counted(engine.ops.comm, lambda: None)
        state = engine.step(engine.start(one.request))
        comm.counting = True
        engine.predict([state])
        return comm.bytes

    most = [max(found) for found in zip(*together(count, lambda rank: list(map(sent, plans))), strict=True)]
    for plan, found in zip(plans, most, strict=True):
        exchange = plan.estimate.exchange(True)
        assert found == pytest.approx(exchange.waited + exchange.beside, rel=0.04), plan.plan.layout


def test_a_plan_prints_what_is_waited_for_and_hidden_at_each_links_speed(capsys):
    plan = shared(parallel="cfg=2,ring=4")
    show(plan, resolved(plan, "it was named"), [], as_json=False)
    told = [line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("exchange")]
    number = r"[\d.e-]+"
    assert re.fullmatch(
        rf"a device sends {number} \w+ a step that others wait for, and {number} \w+ beside its work", told[0]
    )
    speeds = ["25 GB/s", "64 GB/s", "450 GB/s, these devices'"]
    for line, speed in zip(told[1:], speeds, strict=True):
        assert re.fullmatch(rf"at {speed}: {number} s a step, and {number} s hidden", line), line


def test_a_plan_counts_what_one_device_does(given):
    one, two, four = (settled(given["sound"], parallel) for parallel in (None, "cfg=2", "cfg=2,ulysses=2"))
    flops = [sum(work.flops for work in plan.estimate.step(True)) for plan in (one, two, four)]
    assert flops[0] > flops[1] > flops[2] and flops[1] == pytest.approx(2 * flops[2], rel=0.1)
    assert four.estimate.stage("steps").activations < two.estimate.stage("steps").activations
    assert four.estimate.stage("steps").text_kv == two.estimate.stage("steps").text_kv // 2


def test_a_plan_counts_shared_weights():
    """The recipe for two devices: half of the layers, and two of them whole."""

    def weights(parallel, placement=None):
        wish = Wish(model="nvidia/Cosmos3-Super", described=True, partial=True, given={"task": "t2v"})
        wish = replace(
            wish, memory=141 * 2**30, host_memory=10**12, backend="reference", parallel=parallel, placement=placement
        )
        return settle(wish).estimate

    one, two = weights("cfg=2"), weights("cfg=2,hsdp=2")
    share = two.stage("steps").weights / one.stage("steps").weights
    assert 0.5 < share < 0.6
    split = weights("tensor=2")
    assert 0.49 < split.stage("steps").weights / one.stage("steps").weights < 0.53
    patches = weights("cfg=2,vae=2")
    assert patches.stage("decode").activations < 0.7 * one.stage("decode").activations
    (own,), (whole,) = patches.parts["decode"], one.parts["decode"]
    assert own.flops == pytest.approx(whole.flops / 2, rel=0.05)
    offloaded, shared = weights("cfg=2", OFFLOADED), weights("cfg=2,hsdp=2", OFFLOADED)
    assert shared.host == pytest.approx(offloaded.host / 2, rel=0.05)
    assert shared.stage("steps").weights < two.stage("steps").weights / 5
