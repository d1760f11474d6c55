"""What a resident engine keeps for the next request: prompts that were read, passes that were captured. Counted, never
timed; and what it computes with them is what it computes without."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_engine import alternate, engine, finish, request
from tiny_model import TINY_MODEL
from torch.utils._python_dispatch import TorchDispatchMode

import cosmos3
from cosmos3_core.contract import Kernel
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.kept import Kept
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
from cosmos3_core.plan.execution import Keeping, keeping_of
from cosmos3_core.plan.placement import ALL_RESIDENT, DISK, STREAMED, Placement
from cosmos3_core.settle import Wish, settle


@pytest.fixture
def read(monkeypatch) -> list[tuple[int, ...]]:
    """The prompts that are read from now on."""
    read, seen = UnderstandingTower.read, []

    def spy(self, prompts):
        seen.extend(map(tuple, prompts))
        return read(self, prompts)

    monkeypatch.setattr(UnderstandingTower, "read", spy)
    return seen


def alone(**given) -> torch.Tensor:
    """The latents of a request on an engine of its own that keeps nothing."""
    running = engine(recorded=[])
    return finish(running, running.start(request(**given)))


def made(running: Engine, **given) -> torch.Tensor:
    """The latents of a request, after its decode, which lets go of what only it held."""
    state = running.start(request(**given))
    x = finish(running, state)
    list(running.finish(state))
    return x


def alive(recorded: list) -> int:
    return sum(function() is not None for function in recorded)


def test_what_is_used_least_recently_goes_first():
    kept: Kept[str, object] = Kept(5)
    for name in "abc":
        kept.keep(name, name.upper(), 2)
    assert [kept.get(name) for name in "abc"] == [None, "B", "C"]
    kept.get("b")
    kept.keep("d", "D", 3)
    assert [kept.get(name) for name in "bcd"] == ["B", None, "D"]
    kept.keep("d", "E", 5)
    assert [kept.get(name) for name in "bd"] == [None, "E"]
    kept.keep("f", "F", 6)  # larger than all that is kept
    assert kept.get("f") is None and kept.get("d") == "E"
    kept.make_room(1)
    assert kept.get("d") is None
    kept.close()
    kept.keep("a", "A", 1)
    assert kept.get("a") is None


def test_prompts_are_read_once_and_passes_captured_once(read):
    """With other seeds, step counts, schedules; also where another prompt came between."""
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    changes = [{"seed": seed, "steps": steps} for seed, steps in ((1, 2), (2, 3), (3, 2))]
    for given in changes:
        assert torch.equal(made(running, **given), alone(**given))
    count = len(read)
    assert len(recorded) == 1
    assert torch.equal(made(running, prompt="a plate", steps=2), alone(prompt="a plate", steps=2))
    assert len(recorded) == 2 and len(read) == count + 3, "the negative prompt is the same"
    made(running, seed=5, steps=2)
    assert len(recorded) == 2 and len(read) == count + 3


@pytest.mark.parametrize("placement", [ALL_RESIDENT, Placement(DISK, STREAMED), Placement(STREAMED, STREAMED)], ids=str)
def test_what_has_no_room_on_the_device_is_read_no_more(read, placement, monkeypatch):
    """It goes to the host, comes back with the same bits, and stays within the host's budget."""
    monkeypatch.setattr("cosmos3_core.plan.execution.KEPT_TOKENS", 0)
    running = engine(placement=placement)
    first = running.start(request(prompt="a plate")).context.texts
    count = len(read)
    again = running.start(request(prompt="a plate", seed=2)).context.texts
    assert len(read) == count == 2 and not running._prompts.kept()
    for one, other in zip(first, again, strict=True):
        assert one is not other and one.length == other.length
        for ours, theirs in zip(one.segments, other.segments, strict=True):
            assert torch.equal(ours.k_BTKD, theirs.k_BTKD) and torch.equal(ours.v_BTKD, theirs.v_BTKD)
            assert ours.static and theirs.static
    assert torch.equal(made(running, steps=2, prompt="a plate"), alone(steps=2, prompt="a plate"))
    running.close()
    running.start(request(prompt="a plate"))
    assert len(read) == count + 4, "closed, it keeps nothing; one alone read both"


def test_the_host_keeps_no_more_prompts_than_it_may(read, monkeypatch):
    monkeypatch.setattr("cosmos3_core.plan.execution.KEPT_TOKENS", 0)
    lengths = [len(engine().read_inputs(request(prompt=text)).prompt) for text in ("a", "b")]
    negative = len(engine().read_inputs(request()).negative)
    monkeypatch.setattr("cosmos3_core.plan.execution.HOST_TOKENS", negative + max(lengths))
    running = engine(placement=ALL_RESIDENT)
    for text in "aba":
        running.start(request(prompt=text))
    assert [ids == read[1] for ids in read].count(True) == 1, "the negative prompt, used every time, stays"
    assert len(read) == 4


def test_a_pass_stays_no_longer_than_the_texts_that_it_holds(read, monkeypatch):
    """Else many small passes would hold the keys and values of many long prompts, which nobody counts."""
    made(engine(placement=ALL_RESIDENT), steps=1)
    monkeypatch.setattr("cosmos3_core.plan.execution.KEPT_TOKENS", sum(map(len, read)))
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    for prompt in ("a cup", "a mug", "a pot"):
        made(running, steps=1, prompt=prompt)
        assert alive(recorded) == 1, prompt
    assert len(recorded) == 3


def test_an_engine_that_drops_what_it_loads_keeps_nothing(read):
    recorded: list = []
    running = engine(recorded=recorded)
    for _ in range(2):
        made(running, steps=1)
    assert len(read) == 4 and len(recorded) == 2 and not alive(recorded)


def test_a_conditioned_generation_follows_its_own_input(tmp_path):
    """The clean frames go in with the latents: what is replayed sees those of its generation."""
    paths = [str(tmp_path / f"{seed}.png") for seed in (1, 2)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    found = [made(running, task="i2v", image=path, steps=2) for path in (*paths, paths[0])]
    assert len(recorded) == 2, "the encode of a picture of this size, and a pass"
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
    assert torch.equal(found[1], alone(task="i2v", image=paths[1], steps=2))
    running.close()
    assert not alive(recorded)


class NoWaiting(TorchDispatchMode):
    """Refuses what asks the device for a value: nothing that does can be recorded."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), function
        return function(*arguments, **(options or {}))


def test_nothing_that_is_captured_waits_for_the_device(tmp_path):
    """The encode of a picture, and a pass that has clean frames and actions."""
    Image.new("RGB", (96, 64)).save(tmp_path / "g.png")
    ran = []

    def strict(function):
        def run(*tensors):
            ran.append(function)
            with NoWaiting():
                return function(*tensors)

        return run

    running = engine(ours=Kernel(op="capture", name="strict", build=lambda _: strict), placement=ALL_RESIDENT)
    given = {"task": "policy", "domain": "droid_lerobot", "action_space": "joints", "chunk": 4, "frames": 5}
    given |= {"image": str(tmp_path / "g.png"), "state": [[0.1] * 8], "canvas": "96x64", "size": "96x64", "steps": 1}
    made(running, **given)
    assert len(set(ran)) == 2


def test_generations_of_two_sizes_in_turn_share_what_is_captured_and_equal_each_alone(read):
    """Two of each size, on one engine that keeps: none sees another's numbers."""
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    given = [{"seed": seed, "steps": 3, "size": size} for size in ("64x64", "96x64") for seed in (1, 2)]
    states = [running.start(request(**one)) for one in given]
    alternate(running, states)
    assert len(recorded) == 2 and len(read) == 4, "of each size two prompts, which name it"
    for one, state in zip(given, states, strict=True):
        assert torch.equal(state.x, alone(**one))


def test_what_is_captured_is_kept_within_the_plans_rows(monkeypatch):
    """Of many sizes the last ones, and all that a state still holds."""
    rows = engine().execution(request()).guided[0].rows
    monkeypatch.setattr("cosmos3_core.engine.engine.keeping_of", lambda *_: Keeping(tokens=2000, rows=3 * rows))
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    for prompt in "abcde":
        made(running, prompt=prompt, steps=1)
    assert len(recorded) == 5 and [function() is not None for function in recorded] == [False, False, True, True, True]
    held = running.step(running.start(request(prompt="f", steps=2)))
    for prompt in "ghi":
        made(running, prompt=prompt, steps=1)
    assert alive(recorded) == 4, "three are kept, and one is in use"
    assert torch.equal(finish(running, held), alone(prompt="f", steps=2))
    list(running.finish(held))
    del held
    assert alive(recorded) == 3


def test_closing_an_engine_frees_what_it_kept(loaded):
    recorded: list = []
    running = engine(recorded=recorded, placement=ALL_RESIDENT)
    state = running.start(request(steps=2))
    text = weakref.ref(state.context.texts[0])
    running.step(state)
    running.close()
    assert torch.equal(finish(running, state), alone(steps=2))
    list(running.finish(state))
    del state
    assert text() is None and not alive(recorded) and "generation" not in loaded.alive
    made(running, steps=1)
    assert not alive(recorded)


def test_what_is_kept_is_counted_where_weights_stay():
    """By the plan, for every stage."""
    wish = Wish(model="nano", described=True, backend="reference", given={"prompt": "a cup", "task": "t2i", "seed": 1})
    stays, goes = (settle(replace(wish, resident=resident)) for resident in (True, False))
    keeping = stays.execution.keeping
    assert keeping == keeping_of(ALL_RESIDENT, stays.plan.tuning) == Keeping(4096, 8192, 2048, 8192)
    assert goes.execution.keeping == Keeping()
    (counted,) = {stage.kept for stage in stays.estimate.stages}
    prompts = keeping.tokens * 147_456  # docs/model.md, section 3.4
    assert prompts + 2**29 < counted < prompts + 2**30
    assert {stage.kept for stage in goes.estimate.stages} == {0}
    assert all(stage.peak - replace(stage, kept=0).peak >= counted for stage in stays.estimate.stages)


def test_a_policy_reads_its_prompt_and_captures_once(read, monkeypatch):
    """From its second observation on it encodes and replays: what it answers is what a new pipe does."""
    branches, made = GenerationTower.branches, []
    monkeypatch.setattr(GenerationTower, "branches", lambda *given: made.append(given) or branches(*given))
    stream = np.random.default_rng(3)
    seen = [
        {
            "prompt": "pick up the cup",
            "observation/image": stream.integers(0, 256, (60, 80, 3), dtype=np.uint8),
            "observation/joint_position": stream.uniform(-1, 1, 7),
            "observation/gripper_position": np.array([0.5]),
        }
        for _ in range(3)
    ]
    options = {"steps": 1, "canvas": "256p", "chunk": 8}
    with cosmos3.load(TINY_MODEL, backend="reference") as pipe:
        policy = cosmos3.Policy(pipe, **options)
        answers = [policy.act(one) for one in seen]
        assert (len(read), len(made)) == (2, 1), "the prompt, the negative prompt, and a pass with both"
    with cosmos3.load(TINY_MODEL, backend="reference", resident=False) as pipe:
        alone = [cosmos3.Policy(pipe, **options).act(one) for one in seen]
    assert all(np.array_equal(*pair) for pair in zip(alone, answers, strict=True))
    assert len(read) == 2 + 2 * len(seen)
