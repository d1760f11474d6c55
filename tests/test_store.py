"""Where weights lie changes nothing that is computed, and what lies elsewhere is not on the device."""

from __future__ import annotations

import itertools
import json
import shutil
import weakref

import pytest
import torch
from inputs import clip
from PIL import Image
from processes import together
from test_engine import engine, finish, finish_state, request
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.checkpoint.tensors import Told
from cosmos3_core.contract import Kernel, RunError
from cosmos3_core.engine import store
from cosmos3_core.engine.stages import Cancelled, Watch
from cosmos3_core.engine.store import BUFFERS, Gathered, Host, Streamed
from cosmos3_core.model import weights as layout
from cosmos3_core.model.host_copy import HostCopy
from cosmos3_core.model.transformer import DecoderLayer, UnderstandingTower
from cosmos3_core.parallel.ranks import Circle
from cosmos3_core.plan import execution
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED, DISK, PARTS, RESIDENT, STREAMED, Placement
from cosmos3_core.reference.comm import TorchComm
from cosmos3_core.reference.memory import TorchMemory, whole
from cosmos3_core.scenarios.families import TASKS as EVERY_TASK

HOST = torch.device("cpu")
PLACEMENTS = [Placement(*ways) for ways in itertools.product(PARTS["understanding"], PARTS["generation"])]
PLACEMENTS += [ALL_RESIDENT, Placement(DISK, STREAMED, RESIDENT)]
OTHER = Placement(STREAMED, STREAMED)


@pytest.fixture(scope="module")
def alone() -> torch.Tensor:
    running = engine()
    return finish(running, running.start(request(steps=2)))


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda one: "-".join(vars(one).values()))
def test_every_placement_gives_the_same_bytes(placement, alone):
    """In the first request and in the next, which finds what was kept."""
    running = engine(placement=placement)
    for _ in range(2):
        state = running.start(request(steps=2))
        assert torch.equal(finish(running, state), alone)
        assert sum(len(frames) for frames in running.finish(state)) == 5


ROBOT = {"domain": "bridge_orig_lerobot", "chunk": 4, "canvas": "96x64", "size": "96x64"}
TASKS = {
    "t2i": {"task": "t2i", "frames": 1},
    "sound": {"sound": True},
    "i2v": {"task": "i2v", "image": "g.png"},
    "edit": {"task": "edit", "image": "g.png", "frames": 1},
    "v2v": {"task": "v2v", "video": "c.mp4", "frames": 9, "condition_frame_indexes": [0, 1]},
    "extend": {"task": "extend", "extend": "c.mp4", "frames": 9},
    "keyframes": {"task": "keyframes", "keyframe": {"0": "g.png", "4": "g.png"}, "frames": 9},
    "transfer": {"task": "transfer", "edge": "g.png", "control_guidance": 2.0},
    "forward": {"task": "forward-dynamics", "image": "g.png", "actions": "a.json"} | ROBOT,
    "inverse": {"task": "inverse-dynamics", "video": "c.mp4"} | ROBOT,
    "video-policy": {"task": "video-policy", "video": "c.mp4"} | ROBOT | {"chunk": 8, "frames": 9},
    "policy": {"task": "policy", "image": "g.png", "domain": "droid_lerobot", "action_space": "joints"}
    | {"chunk": 4, "state": [[0.1] * 8], "canvas": "96x64", "size": "96x64"},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_the_same_bytes(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save("g.png")
    clip(tmp_path / "c.mp4", 17)
    (tmp_path / "a.json").write_text(json.dumps([[0.1] * 10] * 4))
    wanted, found = request(**{"steps": 1} | TASKS[task]), []
    for placement in (ALL_STAGED, OTHER, Placement(DISK, DISK)):
        running = engine(placement=placement)
        state = running.start(wanted)
        found.append((finish(running, state), list(running.finish(state, state.context.made[0].name))))
    for latents, media in found[1:]:
        assert torch.equal(latents, found[0][0])
        assert all(torch.equal(*pair) for pair in zip(media, found[0][1], strict=True))


def test_every_task_is_placed_here():
    assert {given.get("task", "t2v") for given in TASKS.values()} == {*EVERY_TASK}


@pytest.mark.parametrize("placement", [ALL_RESIDENT, OTHER], ids=str)
def test_prompts_that_lie_on_the_host_come_back_bit_for_bit(placement, monkeypatch):
    """None stays on the device here, and each is read once."""
    read, reads = UnderstandingTower.read, []
    monkeypatch.setattr(execution, "KEPT_TOKENS", 0)
    monkeypatch.setattr(UnderstandingTower, "read", lambda self, ids: reads.extend(ids) or read(self, ids))
    running = engine(placement=placement)

    def made() -> list[torch.Tensor]:
        asked = [request(steps=2, prompt=prompt) for prompt in ("a cup", "a red ball", "a cup")]
        return [finish(running, running.start(one)) for one in asked]

    first = made()
    assert len(reads) == 3, "two prompts and the negative one"
    again = made()
    assert len(reads) == 3 and all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    alone = engine(placement=ALL_STAGED)
    assert torch.equal(finish(alone, alone.start(request(steps=2, prompt="a cup"))), first[0])


def test_a_host_with_little_left_keeps_no_prompts(monkeypatch):
    read, reads = UnderstandingTower.read, []
    monkeypatch.setattr(execution, "KEPT_TOKENS", 0)
    monkeypatch.setattr("cosmos3_core.engine.prompts.free_memory", lambda: 1)
    monkeypatch.setattr(UnderstandingTower, "read", lambda self, ids: reads.extend(ids) or read(self, ids))
    running = engine(placement=ALL_RESIDENT)
    for _ in range(2):
        running.start(request(steps=2))
    assert len(reads) == 4, "the prompt and the negative one, twice"


def test_what_layers_pass_through_is_given_back_after_each_part(monkeypatch):
    """A decode asks for all that there is."""
    rest, rested = Streamed.rest, []
    monkeypatch.setattr(Streamed, "rest", lambda self: rested.append(self) or rest(self))
    running = engine(placement=Placement(STREAMED, STREAMED))
    state = finish_state(running, running.start(request(steps=2)))
    next(running.finish(state))
    assert len({id(tower) for tower in rested}) == 2, "both towers"


@pytest.mark.parametrize(
    "placement, error",
    [(ALL_STAGED, OSError), (OTHER, OSError), (OTHER, KeyboardInterrupt), (Placement(DISK, DISK), OSError)],
    ids=str,
)
def test_a_load_that_is_stopped_leaves_nothing(placement, error, alone, loaded, monkeypatch):
    """Half way through a tower; the next request loads it whole."""
    load, alive = layout.load_layer, []

    def broken(config, i, *arguments, media, **options):
        if media and i:
            raise error()
        layer = load(config, i, *arguments, media=media, **options)
        alive.append(weakref.ref(layer)) if media else None
        return layer

    running = engine(placement=placement)
    state = running.start(request(steps=2))
    with monkeypatch.context() as patch:
        patch.setattr(layout, "load_layer", broken)
        try:
            running.step(state)
        except (KeyboardInterrupt, OSError):
            pass
        else:
            pytest.fail("it was not stopped")
    assert alive and state.index == 0
    assert not any(layer() for layer in alive)
    assert torch.equal(finish(running, state), alone)


@pytest.mark.parametrize("placement", [ALL_STAGED, OTHER, Placement(DISK, DISK)], ids=str)
def test_an_event_stops_a_load_between_two_tensors(placement, alone, loaded):
    """And leaves nothing; the next request loads it whole."""

    class Event:
        asked = 0

        def is_set(self):
            self.asked += running.loading is not None
            return self.asked > 5

    running, event = engine(placement=placement), Event()
    part = "generation" if placement.understanding == DISK else "understanding"  # of that one only the table is read
    with pytest.raises(Cancelled, match=f"load {part}, 0 of 1 done"):
        state = running.start(request(steps=2), watch=Watch(cancel=event))
        list(running.finish(running.step(running.step(state))))
    assert event.asked == 6 and running.loading is None
    assert not loaded.alive
    assert torch.equal(finish(running, running.start(request(steps=2))), alone)


@pytest.mark.parametrize("placement", [ALL_STAGED, Placement(DISK, DISK)], ids=str)
@pytest.mark.parametrize("part", ["understanding", "generation", "vae decoder"])
def test_what_is_read_of_a_component_is_told_whole(part, placement, monkeypatch):
    """While it is loaded, in bytes, of which there are no others."""
    running, seen = engine(placement=placement), []
    came = Told.read

    def read(files, names):
        for one in came(files, names):
            if (now := running.loading) is not None:
                seen.append((now.done, now.total))
            yield one

    monkeypatch.setattr(Told, "read", read)
    component = running._pool.lease(part)
    done, total = seen[-1]
    assert done == total > 0 and [one for one, _ in seen] == sorted(one for one, _ in seen) and component
    assert running.loading is None


def test_a_file_that_vanishes_between_layers_stops_the_run_and_no_more(tmp_path, alone):
    """As one that became shorter does. Put back, the run goes on with its state."""
    folder = tmp_path / "tiny"
    shutil.copytree(TINY_MODEL, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    running = engine(open_model(str(folder)), placement=Placement(DISK, DISK))
    state = running.step(running.start(request(steps=2)))
    whole = file.read_bytes()
    file.rename(tmp_path / "away")
    for left in (None, whole[: len(whole) // 2], whole[:-1], b""):
        if left is not None:
            file.write_bytes(left)
        with pytest.raises(RunError, match="it was whole when this run began and cannot be read now"):
            running.step(state)
    (tmp_path / "away").rename(file)
    assert state.index == 1 and torch.equal(finish(running, state), alone)


class Half:
    """A half of a layer that holds some tensors and adds them up."""

    def __init__(self, *held):
        self.held = held

    def tensors(self):
        return {str(number): tensor for number, tensor in enumerate(self.held)}


def values(layer: DecoderLayer) -> list[list[float]]:
    return [tensor.float().flatten().tolist() for tensor in layer.tensors().values()]


def made(i: int) -> DecoderLayer:
    """Dense, strided, transposed, empty and 8-bit tensors, of a size that depends on i."""
    x = torch.arange(24 + 6 * i, dtype=torch.float32) + 100 * i
    return DecoderLayer(Half(x.view(-1, 6).bfloat16().t(), x[::2], x.new_empty(0)), Half(x.to(torch.int8), x.sum()))


class Counted(TorchMemory):
    """What is fetched arrives when it is waited for, and no sooner."""

    def __init__(self):
        super().__init__()
        self.begun, self.late = [], []

    def fetch(self, target, source):
        target.fill_(255)
        self.begun.append(target.data_ptr())
        memory = self

        class Later:
            def wait(self):
                memory.late.append(target.data_ptr())
                return target.copy_(source)

        return Later()


@pytest.mark.parametrize("wraps", [False, True])
def test_a_layer_is_whole_when_it_is_asked_for_and_the_next_is_on_its_way(wraps, monkeypatch):
    monkeypatch.setattr(store, "BLOCK", 700)  # so that layers lie across blocks
    memory, count = Counted(), 5
    layers = Streamed(made, count, host := Host(memory, HOST), HOST, wraps=wraps)
    for _ in range(2):
        for i in range(count):
            assert values(layers[i]) == values(made(i))
    asked = 2 * count + wraps  # the last pass has begun to fetch the first layer
    pieces = sum(len(host.layers[i % count]) for i in range(asked))
    assert len(memory.begun) == pieces and len(set(memory.begun)) <= pieces
    assert values(layers[3]) == values(made(3)), "after a pass that was left half way"
    assert values(layers[0]) == values(made(0))
    layers.rest()
    assert all(not tensor.numel() for i in range(count) for tensor in layers._layers[i].layer.tensors().values())
    assert len(memory.late) == len(memory.begun), "memory that is given back is filled by nobody"
    assert not host._buffers, "and it is given back"
    assert values(layers[2]) == values(made(2))


def test_of_a_tower_in_host_memory_two_layers_are_on_the_device():
    layers = Streamed(made, 6, Host(TorchMemory(), HOST), HOST, wraps=True)
    for i in range(6):
        there = [j for j in range(6) if any(t.numel() for t in layers._layers[j].layer.tensors().values())]
        assert len(there) <= BUFFERS
        layers[i]


@pytest.mark.parametrize("on_host", [False, True])
def test_shares_of_a_layer_make_it_whole(on_host):
    """Of layers whose bytes are not shared out evenly: the last process has less than the others, or nothing."""

    def layer(i: int) -> DecoderLayer:
        return made(40 * i)

    def work(rank):
        circle = Circle(TorchComm(), None, rank, 3)
        shelf = Gathered(circle, Host(TorchMemory(), HOST) if on_host else None)
        layers = Streamed(layer, 3, shelf, HOST, wraps=True)
        return [[values(layers[i]) for i in range(3)] for _ in range(2)]

    whole = [values(layer(i)) for i in range(3)]
    assert together(3, work) == [[whole, whole]] * 3


def test_layers_of_one_are_one():
    layers = Streamed(made, 1, Host(TorchMemory(), HOST), HOST, wraps=True)
    assert values(layers[0]) == values(made(0)) == values(layers[0])


def test_a_layer_that_cannot_be_moved_is_an_error():
    fixed = Half()
    fixed.tensors = lambda: None
    with pytest.raises(RunError, match="cannot tell where.*staged"):
        Streamed(lambda i: DecoderLayer(fixed, Half()), 2, Host(TorchMemory(), HOST), HOST, wraps=True)


class Refusing(TorchMemory):
    def pinned(self, *_):
        raise RuntimeError("cudaHostAlloc: out of memory")


def test_what_the_host_does_not_pin_is_copied_to_ordinary_memory():
    x = torch.randn(3, 5)
    copied = HostCopy(Refusing(), x)
    assert torch.equal(copied.wait(), x) and copied.wait().data_ptr() != x.data_ptr()


def test_a_host_that_pins_no_more_is_told_of(alone):
    running = engine(ours=Kernel(op="memory", name="refusing", build=lambda _: Refusing()), placement=OTHER)
    assert torch.equal(finish(running, running.start(request(steps=2))), alone)
    assert [note.split(":")[0] for note in running.notes] == [
        f"the host refused to pin 0.1 GiB for {tower}" for tower in ("understanding", "generation")
    ]


def test_a_row_without_fetch_waits():
    class Old:
        def copy(self, target, source):
            return TorchMemory().copy(target, source)

        def total(self, device):
            return 7

    target, source = torch.zeros(3), torch.ones(3)
    assert whole(Old()).fetch(target, source).wait() is target and torch.equal(target, source)
    assert whole(Old()).total(HOST) == 7
