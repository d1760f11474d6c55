"""Where a run's weights lie, as its user meets it: chosen, named, refused, and changed half way."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import devices
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import TINY_MODEL

import cosmos3 as public
from cosmos3_core.contract import Bytes, InputError, Tuning
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.limits import limited
from cosmos3_core.model.transformer import GenerationTower
from cosmos3_core.plan.cost.fit import LINK_EFFICIENCY
from cosmos3_core.plan.cost.placing import Room, lack_as_it_is
from cosmos3_core.plan.cost.units import GIB
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED, DISK, RESIDENT, STREAMED, Placement, candidates, typed
from cosmos3_core.runs import room
from cosmos3_core.settle import Wish, settle

SMALL = ("--model", TINY_MODEL, "--backend", "reference", "--size", "64x64", "--frames", 5, "--steps", 3, "--seed", 1)
BACKEND, CARD = devices.backend("cuda"), devices.DEVICES["rtx5090"][1]


def wish(**given) -> Wish:
    values = {
        "model": "nano",
        "described": True,
        "partial": True,
        "chooses": True,
        "given": {},
        "host_memory": 64 * GIB,
    }
    return Wish(**values | given)


def settled(gib: float, **given):
    return settle(wish(**given), on=(BACKEND, replace(CARD, memory=int(gib * GIB))))


@pytest.mark.parametrize(
    "gib, given, placement",
    [
        (80, {}, ALL_STAGED),
        (80, {"resident": True}, ALL_RESIDENT),
        (34, {"resident": True}, Placement(STREAMED, RESIDENT, RESIDENT)),
        (34, {"resident": True, "host_memory": 4 * GIB}, Placement(DISK, RESIDENT, RESIDENT)),
        (12, {}, Placement(DISK, STREAMED)),
        (12, {"host_memory": 8 * GIB}, Placement(DISK, DISK)),
        (80, {"placement": "generation=streamed"}, Placement(generation=STREAMED)),
        (12, {"formats": {"pack_linear": "fp8"}, "given": {"size": "480p"}}, ALL_STAGED),
    ],
    ids=str,
)
def test_the_plan_takes_what_fits_and_costs_least(gib, given, placement):
    found = settled(gib, **given)
    assert found.fits and found.placement == found.execution.placement == placement
    assert bool(found.passed) == (gib == 12 and "formats" not in given or gib == 34)
    if placement.generation in (STREAMED, DISK):
        assert not found.execution.captured


def test_the_plan_says_what_a_placement_holds_and_costs():
    """Two layers of 36, what is no layer, and of the host all of them."""
    found, ceiling = settled(12), BACKEND.ceilings["RTX 5090"]
    estimate, parts = found.estimate, found.estimate.weights
    rest = sum(parts[name] for name in ("heads", "action", "timestep"))
    assert estimate.stage("steps").weights == pytest.approx(parts["generation"] / 18 + rest, rel=1e-3)
    assert estimate.stage("read prompts").weights == pytest.approx(parts["understanding"] / 18 + rest, rel=0.01)
    assert 0 <= estimate.host - parts["generation"] - parts["embedding"] < 64 << 20
    assert all("'steps' takes" in said and "there are 12.0 GiB" in said for said in found.passed)
    assert estimate.waiting(ceiling) == 0, "a pass of 720p x 189 outlasts its weights' way"
    picture = settled(12, given={"task": "t2i", "size": "256p"}).estimate
    crossing = parts["generation"] / (LINK_EFFICIENCY * 63e9)
    assert picture.waiting(ceiling) == pytest.approx(picture.job.steps * crossing, rel=0.5)
    unknown = replace(ceiling, link=0.0)
    assert 2 * picture.waiting(ceiling) < picture.waiting(unknown) < 20 * picture.waiting(ceiling)
    narrow = replace(ceiling, link=ceiling.link / 100)
    crossing = parts["generation"] / (LINK_EFFICIENCY * narrow.link)
    computes = sum(work.seconds(narrow) for work in estimate.step(True))
    assert len(estimate.execution.guided) == 2, "each pass waits for all layers"
    assert estimate.waiting(narrow) == pytest.approx(estimate.job.steps * (2 * crossing - computes), rel=0.01)
    slow = replace(picture, placement=Placement(DISK, DISK))
    assert slow.waiting(ceiling) > 8 * picture.waiting(ceiling)
    assert slow.seconds(ceiling)["total"] > picture.seconds(ceiling)["total"] > picture.waiting(ceiling)


def test_on_a_device_that_shares_the_hosts_memory_nothing_is_streamed():
    assert not any(STREAMED in vars(one).values() for one in candidates(True, {}, unified=True))
    found = settle(wish(), on=(BACKEND, replace(CARD, memory=12 * GIB, unified=True)))
    assert found.placement == Placement(DISK, DISK)


WRONG = {
    "generation": "'generation' is not PART=WAY. Type understanding=disk",
    "generation=": "generation cannot be placed ''. It can be resident, staged, streamed, disk",
    "generation=stream": "Did you mean streamed?",
    "generaton=disk": "Did you mean generation?",
    "vae=disk": "Parts are understanding, generation, codecs",
    "codecs=disk": "codecs cannot be placed 'disk'. It can be resident, staged",
    "generation=disk,generation=staged": "generation is placed twice",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_placement_that_is_none_is_an_error(text):
    with pytest.raises(InputError) as error:
        typed(text)
    assert WRONG[text] in str(error.value) and f"`placement` {text}" in str(error.value)


BAD = {
    "--placement generation=stream": "Did you mean streamed?",
    "--placement generation=disk --resident": "--placement with --resident: each says where weights lie",
    "--resident --enable-layerwise-offload": "--resident with --enable-layerwise-offload",
    "--memory-limit 0": "--memory-limit 0: that is no memory",
    "--memory-limit nan": "--memory-limit nan: that is no memory",
    "--memory-limit -4": "--memory-limit -4: that is no memory",
    "--memory-limit 100000": "so that it would change nothing. Drop it, or give less",
    "--placement generation=disk,generation=staged": "generation is placed twice",
    "--memory-limit 4": "torch cannot limit the memory of a device of type cpu",
    "--host-memory 4": "a run that is no dry run",
}


@pytest.mark.parametrize("options", BAD)
def test_what_cannot_be_met_is_refused_before_a_weight_is_read(run, options, monkeypatch):
    monkeypatch.setattr("cosmos3_core.checkpoint.model.Weights.__init__", lambda *_: pytest.fail("weights were opened"))
    code, out, err = run("a cup", *SMALL, *options.split(), "-o", "cup.mp4")
    assert (code, out) == (2, "") and BAD[options] in err and len(err.splitlines()) == 1


def test_a_host_that_is_too_small_for_what_was_named_is_told_of():
    found = settled(12, placement="generation=streamed", host_memory=8 * GIB)
    assert not found.fits and "of the host's memory, of which 8.0 GiB are free" in found.lack
    assert found.lower == Placement(DISK, DISK)
    refused = room.refusal(found)
    assert refused.exit_code == 2 and "Place it by `placement` understanding=disk,generation=disk" in str(refused)
    changes = found.nearest()  # a smaller picture or clip has as much of its weights on the host
    assert [set(change.values) for change in changes] == [{"format"}] and changes[0].estimate.host < 7 * GIB


def test_of_a_device_with_the_hosts_memory_weights_on_the_host_are_counted():
    estimate = replace(settled(12, placement="generation=streamed").estimate, placement=Placement(DISK, STREAMED))
    enough = estimate.peak + estimate.host
    assert not lack_as_it_is(estimate, Room(enough, None, unified=True))
    assert "of the same memory" in lack_as_it_is(estimate, Room(enough - 1, None, unified=True))
    assert not lack_as_it_is(estimate, Room(enough - 1, None))


def test_a_run_needs_more_of_the_host_than_its_weights():
    estimate = replace(settled(12).estimate, placement=Placement(DISK, STREAMED))
    assert "of the host's memory" in lack_as_it_is(estimate, Room(estimate.peak, estimate.host))
    assert not lack_as_it_is(estimate, Room(estimate.peak, int(1.2 * estimate.host)))


def test_what_fits_in_no_placement_is_refused_with_what_would():
    found = settled(2)
    refused = str(room.refusal(found))
    assert found.placement == Placement(DISK, DISK) and found.lower is None
    assert "takes" in refused and "there are 2.0 GiB" in refused and "larger device" in refused
    named = settled(12, placement="generation=resident,understanding=staged")
    said = str(room.refusal(named))
    assert "Place it by `placement` understanding=disk,generation=streamed,codecs=staged, which fits" in said


@pytest.mark.parametrize("named", [{"resident": True}, {"placement": "generation=resident"}], ids=str)
def test_where_the_named_placement_leaves_room_for_nothing_another_one_is_proposed_with_what_fits_there(named):
    found = settled(4, chooses=False, **named)
    assert not found.fits and found.lower is None and found.nearest()
    said, first = str(room.refusal(found)), found.nearest()[0].values
    assert "in the place of the placement you named, which fits" in said and str(first["placement"]) in said
    assert "placement" not in str(room.refusal(found, placeable=False))
    again = {"size": f"{first['width']}x{first['height']}"} if "width" in first else {}
    again |= {name: first[name] for name in ("frames", "tile") if name in first}
    assert settled(4, given=again, chooses=False, placement=str(first["placement"])).fits


def test_a_placement_is_not_proposed_in_its_own_place():
    """Longer texts than a plan expects may take what the decode of whole frames needs: a tile is what helps."""
    found = settled(11)
    full = replace(found, room=found.room._replace(device=found.estimate.stage("decode").peak - 1))
    assert full.lower is None and [*full.nearest()[0].values] == ["tile"]


def test_a_run_is_placed_as_it_is_told_and_says_so(run):
    code, _, err = run("a cup", *SMALL, "--enable-layerwise-offload", "-o", "cup.mp4", "--save-latents", "cup.st")
    assert code == 0, err
    placed = json.loads(Path("cup.mp4.json").read_text())["plan"]["placement"]
    assert (placed["understanding"], placed["generation"], placed["codecs"]) == (STREAMED, STREAMED, "staged")
    assert placed["named"] == ["generation", "understanding"] and placed["host_bytes"] > 0
    assert run("a cup", *SMALL, "-o", "whole.mp4", "--save-latents", "whole.st")[0] == 0
    assert torch.equal(load_file("cup.st")["final.vision"], load_file("whole.st")["final.vision"])


def test_a_run_that_memory_ran_out_for_goes_on_elsewhere(run, monkeypatch):
    """What the device holds is told, and the latents are those of a run that was never stopped."""
    forward, steps = GenerationTower.forward, iter(range(9))

    def full(self, *arguments, **options):
        if next(steps) == 2:
            raise torch.OutOfMemoryError("Acme out of memory. Tried to allocate 20.00 GiB. Try less.")
        return forward(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationTower, "forward", full)
        code, _, err = run("a cup", *SMALL, "-o", "cup.mp4")
    assert code == 1 and "Acme out of memory. Tried to allocate 20.00 GiB" in err and "2 of 3 steps are kept" in err
    resume = ("--resume", "cup.mp4.state.safetensors", "-o", "cup.mp4", "--placement", "generation=streamed")
    code, _, err = run(*resume, "--save-latents", "cup.st")
    assert code == 0, err
    assert run("a cup", *SMALL, "-o", "whole.mp4", "--save-latents", "whole.st")[0] == 0
    assert torch.equal(load_file("cup.st")["final.vision"], load_file("whole.st")["final.vision"])


def test_a_pipe_is_placed_when_it_is_loaded():
    fields = {"size": "64x64", "frames": 1, "steps": 2, "seed": 1}
    pictures = []
    for given in ({}, {"placement": "generation=streamed,understanding=disk"}):
        with public.load(TINY_MODEL, backend="reference", **given) as pipe:
            pictures += [pipe("a cup", **fields).numpy, pipe("a cup", **fields).numpy]
    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])
    with pytest.raises(InputError, match="placement"):
        public.load(TINY_MODEL, backend="reference", placement="generation")
    told = public.plan(backend="reference", size="720p", memory=18 * GIB, resident=False)
    assert told.nearest[0] == "`placement` understanding=disk,generation=disk,codecs=staged"


class Limited:
    """A device of 16 GiB whose context takes half a GiB."""

    def __init__(self):
        self.limits = []

    def total(self, device):
        return 16 * GIB

    def free(self, device):
        return 15 * GIB

    def used(self, device):
        return Bytes(GIB // 4, GIB // 2)

    def limit(self, device, size):
        self.limits.append(size)


def test_a_limit_leaves_room_for_the_context_and_is_lifted():
    memory, device = Limited(), torch.device("cpu")
    limit = limited(memory, device, 8 * GIB)
    limit.lift()
    assert memory.limits == [8 * GIB - GIB // 2, 16 * GIB]
    limited(memory, device, None).lift()
    assert len(memory.limits) == 2


@pytest.mark.parametrize(("grow", "said"), [(True, ""), (True, "PYTORCH_CUDA_ALLOC_CONF"), (False, "")])
def test_segments_grow_where_a_device_says_so_and_no_user_told_the_allocator_otherwise(monkeypatch, grow, said):
    told = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append)
    for name in [name for name in os.environ if name.endswith("ALLOC_CONF")]:
        monkeypatch.delenv(name)
    if said:
        monkeypatch.setenv(said, "max_split_size_mb:512")
    found = settle(Wish(model=str(TINY_MODEL), backend="reference", given={"prompt": "a"}))
    tuned = replace(found.plan.backend, tuning={"*": Tuning(expandable_segments=grow)})
    Engine(found.model, replace(found.plan, backend=tuned))
    assert told == ["expandable_segments:True"] * (grow and not said)


def test_a_limit_is_the_devices_memory_in_the_plan():
    found = settled(80, memory_limit=12 * GIB)
    assert found.plan.device.memory == 12 * GIB and found.placement == Placement(DISK, STREAMED)
    with pytest.raises(InputError, match=r"`memory_limit` 12.0 GiB: .* has 8.0 GiB, so that it would change nothing"):
        settled(8, memory_limit=12 * GIB)
    refused = room.refusal(settled(80, memory_limit=3 * GIB))
    assert "there are 3.0 GiB" in str(refused) and refused.exit_code == 2


@pytest.mark.parametrize(("free", "placement"), [(9, "understanding=disk,generation=streamed"), (2, None)])
def test_a_device_that_others_use_is_told_of_before_a_weight_is_read(free, placement):
    class Shared(Limited):
        def free(self, device):
            return free * GIB

    found = settled(16, formats={"pack_linear": "fp8"})
    engine = SimpleNamespace(ops=SimpleNamespace(memory=Shared()), device="cuda")
    assert found.fits and found.placement == ALL_STAGED
    refused = room.crowded(found, engine)
    assert refused.exit_code == 2 and f"other processes hold {15.5 - free:.1f} GiB of 16.0 GiB" in str(refused)
    assert (f"`placement` {placement}" if placement else "Wait for them, or end them") in str(refused)
    Shared.free = lambda self, device: 15 * GIB
    assert room.crowded(found, engine) is None
    engine.device = "cpu"
    free = 1
    assert room.crowded(found, engine) is None


def test_a_device_without_memory_says_what_holds_it():
    """By the plan, and by its own count; with the placement that takes less than what others left."""

    class Full(Limited):
        def free(self, device):
            return 3 * GIB

        def synchronize(self, device):
            pass

        empty = synchronize

    found = settled(80)
    engine = SimpleNamespace(
        ops=SimpleNamespace(memory=Full()), device="cpu", seconds={}, plan=found.plan, begun="load x"
    )
    engine.give_back = lambda: None
    error = room.out_of_memory(torch.OutOfMemoryError("Acme is full. Tried 3 GiB. More."), engine, found, None)
    said = str(error)
    assert said.startswith(
        "running on NVIDIA GeForce RTX 5090: Acme is full. Tried 3 GiB. By the plan, 'read prompts' "
    )
    assert "weights 14.1 GiB" in said and "other processes and drivers hold 12.5 GiB of 16.0 GiB" in said
    assert "cosmos3 plan says what fits" in said and "`placement`" not in said, "nothing fits in 3.5 GiB"
    Full.free = lambda self, device: 12 * GIB
    said = str(room.out_of_memory(torch.OutOfMemoryError("full"), engine, found, None))
    assert "`placement` understanding=disk,generation=streamed,codecs=staged takes less, also with `resume`" in said
    engine.begun = "decode"
    said = str(room.out_of_memory(torch.OutOfMemoryError("full"), engine, found, None))
    assert "By the plan, 'decode' holds" in said
