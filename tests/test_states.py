"""States and engines as values: copies, pickles, previews, who may stop a run, two threads, and wrong types."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import inputs
import peer
import pytest
import torch
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.model import open_model
from cosmos3_core.contract import InputError, RunError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.stages import Cancelled, Watch
from cosmos3_core.files.memory import Media
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
from cosmos3_core.model.vae_blocks import Decoder
from cosmos3_core.plan.placement import ALL_RESIDENT, ALL_STAGED
from cosmos3_core.sampling.state import State
from cosmos3_core.scenarios import request as requests

TINY = open_model(TINY_MODEL)
DISTILLED = replace(TINY, scheduler={"stochastic_sampling": True}, distilled_sigmas=(1.0, 0.8, 0.6, 0.3))
SCHEDULES = pytest.mark.parametrize("schedule", ["native", "distilled"])


def engine(dtype: str = "bfloat16", *, schedule: str = "native", resident: bool = True) -> Engine:
    model = DISTILLED if schedule == "distilled" else TINY
    return Engine(model, peer.reference_plan(TINY.config, dtype), placement=ALL_RESIDENT if resident else ALL_STAGED)


@pytest.fixture(scope="module")
def running() -> Engine:
    return engine()


def request(schedule: str = "native", **given) -> requests.Request:
    values = {"task": "t2v", "prompt": "a cup", "frames": 9, "size": "64x64", "steps": 4, "seed": 1} | given
    return replace(requests.resolve(values, "reference", TINY.facts, int)[0], schedule=schedule)


def stepped(running: Engine, count: int, *arguments, schedule: str = "native", watch: Watch | None = None) -> State:
    state = running.start(request(schedule), *arguments, watch=watch)
    for _ in range(count):
        running.step(state)
    return state


def finished(running: Engine, state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """The final latents, and the frames."""
    while not state.done:
        running.step(state)
    return state.x, torch.cat(list(running.finish(state)))


def kept(state: State) -> tuple[dict, dict]:
    """What it is saved as."""
    tensors, numbers = state.to_tensors()
    return {name: tensor.tolist() for name, tensor in tensors.items()}, numbers


def same(one, other) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


# --- copies and pickles ----------------------------------------------------------------------------------------------


@SCHEDULES
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_a_copy_goes_on_by_itself(duplicate, schedule):
    """With a sampler that draws too: neither takes a number from the other's stream."""
    running = engine(schedule=schedule)
    state = stepped(running, 2, schedule=schedule)
    other = duplicate(state)
    third = duplicate(state)
    third.x.zero_()
    third.memory.update({name: tensor.zero_() for name, tensor in third.memory.items()})
    expected = finished(running, stepped(running, 2, schedule=schedule))
    assert same(finished(running, other), expected) and state.index == 2
    assert same(finished(running, state), expected)


def test_a_copy_shares_what_is_costly():
    running = engine(resident=False)
    state = stepped(running, 1)
    other = copy.deepcopy([state])[0]
    assert other.context is state.context and other.passes is state.passes


OTHER_PROCESS = """
import pickle, sys
import torch
import test_states
from cosmos3_core.checkpoint.model import Weights
Weights.understanding = lambda *_: sys.exit("the text tower was loaded")
running = test_states.engine()
state = pickle.loads(open(sys.argv[1], "rb").read())
torch.save(test_states.finished(running, state), sys.argv[2])
"""


def test_a_pickle_goes_on_in_another_process_without_reading_prompts(running, tmp_path):
    """Of a run whose picture was handed over in memory: it is not asked for again."""
    media = Media.of("image", inputs.photograph(90, 70))
    wanted = request(task="i2v", image=media.said)
    state = running.step(running.start(wanted, running.read_inputs(wanted, media=[media]), Watch(cancel=lambda: False)))
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "state"), str(tmp_path / "result")]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(torch.load(tmp_path / "result"), finished(running, state))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_half_a_step_is_not_copied(running, duplicate):
    state = stepped(running, 1)
    state.torn = True
    with pytest.raises(RunError, match="step 2: it was interrupted half way. Keep a state between two steps"):
        duplicate(state)


def test_half_a_step_does_not_go_on(running):
    state = stepped(running, 1)
    velocity, state.torn = state.x.clone(), True
    calls: list[Callable] = [running.step, running.preview, running.finish, lambda s: running.advance(s, velocity)]
    for call in calls:
        with pytest.raises(RunError, match="it was interrupted half way"):
            call(state)


def test_a_state_is_moved_whole(running):
    """As one from a pickle is to the device of its engine; what is drawn stays on the host."""
    media = Media.of("image", inputs.photograph(90, 70))
    wanted = request(task="i2v", image=media.said)
    state = running.step(running.start(wanted, running.read_inputs(wanted, media=[media])))
    state.place("meta")
    context = state.context
    keys = [t for text in context.texts for segment in text.segments for t in segment]
    moved = [state.x, *state.memory.values(), state.solver.update, context.pinned, context.clean, *keys]
    moved += [*context.packing.noisy, *context.packing.noisy_frames]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert {tensor.device.type for tensor in state.noise} == {"cpu"} and state.stream.device.type == "cpu"


# --- previews --------------------------------------------------------------------------------------------------------


@SCHEDULES
def test_previews_change_nothing_and_end_at_the_result(schedule):
    running, plain = (engine(schedule=schedule, resident=False) for _ in range(2))
    state, expected = running.start(request(schedule)), finished(plain, plain.start(request(schedule)))
    while not state.done:
        running.step(state)
        before = kept(state)
        whole, first = running.preview(state), running.preview(state, latent_frames=1)
        assert whole.shape == (9, 64, 64, 3) and whole.dtype == torch.uint8 and first.shape == (1, 64, 64, 3)
        assert torch.equal(whole[:1], first) and kept(state) == before
    x, frames = finished(running, state)
    assert torch.equal(x, expected[0]) and torch.equal(frames, expected[1])
    # UniPC's last step and the sampler's end at what the last prediction foresees.
    assert (whole.float() - frames.float()).abs().mean() < 1


def test_a_preview_shows_what_the_rest_of_the_way_would_be_if_it_were_straight(running):
    state = stepped(running, 1)
    x, sigma = state.x, state.solver.sigmas[1]
    (velocity,) = running.predict([state])
    assert torch.allclose(state.foreseen, x - sigma * velocity, atol=1e-5)


def test_a_preview_leaves_the_media_tower_and_drops_the_decoder(loaded):
    running = engine(resident=False)
    state = stepped(running, 1)
    running.preview(state)
    assert loaded.alive == ["generation"]
    running.step(state)
    assert loaded.names == ["understanding", "generation", "vae decoder"]


def test_a_preview_needs_a_prediction(running):
    fresh = running.start(request())
    for state in (fresh, pickle.loads(pickle.dumps(stepped(running, 1)))):
        with pytest.raises(InputError, match="nothing was predicted since it began or was restored. Take a step first"):
            running.preview(state)
    running.step(fresh)
    for wrong in (0, 4, 1.0, True, "all"):
        with pytest.raises(InputError, match="Give a whole number from 1 to 3"):
            running.preview(fresh, wrong)


# --- who may stop it -------------------------------------------------------------------------------------------------


def stops_at(stage: str, done: int) -> tuple[Watch, list]:
    """A watch whose event is set once a part of a stage is told; what it was told."""
    event, told = threading.Event(), []

    def progress(*part):
        told.append(part)
        if part[:2] == (stage, done):
            event.set()

    return Watch(progress, event), told


@pytest.mark.parametrize(("stage", "done"), [("check weights", 0), ("read prompts", 0), ("encode input", 1)])
def test_a_run_is_cancelled_before_it_begins(stage, done, loaded):
    """Between two layers, between two chunks of the input. The engine goes on with other requests."""
    running = engine(resident=False)
    clip = Media.of("video", [inputs.photograph(90, 70)] * 9)
    given = {"task": "v2v", "video": clip.said, "frames": 13, "condition_frame_indexes": [0, 1, 2]}
    wanted = request(**given)
    watch, told = stops_at(stage, done)
    with pytest.raises(Cancelled, match=f"{'load understanding' if stage == 'check weights' else stage}, "):
        running.start(wanted, running.read_inputs(wanted, media=[clip]), watch)
    assert told[-1][:2] in ((stage, done), (stage, 1))
    gc.collect()  # the exception is gone, and its traceback
    assert not loaded.alive and (loaded.names or stage == "check weights")
    assert stepped(running, 1).index == 1


def test_a_run_is_cancelled_between_steps_and_goes_on(running):
    expected = finished(running, running.start(request()))
    watch, told = stops_at("steps", 2)
    state = running.start(request(), watch=watch)
    with pytest.raises(Cancelled, match="steps, 2 of 4 done: the generation was cancelled"):
        while True:
            running.step(state)
    assert state.index == 2 and told[-1] == ("steps", 2, 4)
    state.watch = None
    assert same(finished(running, state), expected)


def test_a_run_is_cancelled_between_groups_of_frames_and_finishes_later(running):
    expected = finished(running, running.start(request()))
    watch, told = stops_at("decode", 1)
    state = running.start(request(), watch=watch)
    while not state.done:
        running.step(state)
    frames = running.finish(state)
    assert len(next(frames)) == 1 and len(next(frames)) == 4 or told[-1][0] == "decode"
    with pytest.raises(Cancelled, match="decode, "):
        list(frames)
    state.watch = Watch(cancel=lambda: False)  # a function will do
    assert same(finished(running, state), expected)


def test_a_cancelled_error_is_one_of_ours():
    error = Cancelled("steps, 2 of 4 done", "the generation was cancelled", "Go on")
    again = pickle.loads(pickle.dumps(error))
    assert (error.exit_code, again.asked, again.next_step, str(again)) == (130, error.asked, "Go on", str(error))


# --- two threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_two_threads_on_one_engine_equal_each_alone(resident, monkeypatch):
    """And the device works on one piece at a time."""
    inside, most = [], []
    for kind, name in ((UnderstandingTower, "read"), (GenerationTower, "forward"), (Decoder, "__call__")):
        work = getattr(kind, name)

        def alone_in_it(*arguments, work=work, **precision):
            inside.append(work)
            most.append(len(inside))
            time.sleep(0.001)
            try:
                return work(*arguments, **precision)
            finally:
                inside.pop()

        monkeypatch.setattr(kind, name, alone_in_it)
    running, alone = engine(resident=resident), engine()
    wanted = [request("karras", prompt="a cup", seed=1), request(prompt="a bowl", seed=2, size="80x64")]
    expected = [finished(alone, alone.start(one)) for one in wanted]
    found: list = [None, None]
    together = threading.Barrier(2)

    def generate(i: int) -> None:
        together.wait()
        state = running.start(wanted[i])
        while not state.done:
            running.step(state)
            running.preview(state, 1)
        found[i] = finished(running, state)

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(*pair) for pair in zip(found, expected, strict=True)) and set(most) == {1}


# --- one error with words --------------------------------------------------------------------------------------------


def test_a_state_goes_on_only_from_its_own_request(running):
    state = stepped(running, 2)
    tensors, numbers = state.to_tensors()
    for other, names in (({"prompt": "a bowl", "seed": 2}, "prompt, seed"), ({"steps": 5}, "steps")):
        with pytest.raises(InputError, match=f"saved from another request: its {names} differ. Begin from"):
            running.start(request(**other)).restore(tensors, numbers)
    with pytest.raises(InputError, match="its schedule differ"):
        running.check_saved(request("karras"), tensors, numbers)
    running.check_saved(request(size="64x64", tile=None), tensors, numbers)
    for wrong in ([tensors, numbers], [list(tensors), numbers], [tensors, [2]], [None, None]):
        with pytest.raises(InputError, match="Pass both parts|do not fit"):
            running.start(request()).restore(
                {"x": 1} if wrong[0] is tensors and wrong[1] is numbers else wrong[0], wrong[1]
            )


def test_finishing_early_is_refused_with_the_way_to_look(running):
    with pytest.raises(InputError, match="has 4 steps, and had 2. Take the others, or look with preview"):
        running.finish(stepped(running, 2))


def test_finishing_what_a_generation_has_not_is_refused(running):
    with pytest.raises(InputError, match="finishing 'sound': the generation has vision. Ask for vision"):
        running.finish(stepped(running, 4), "sound")


@pytest.mark.parametrize("name", ["ops", "plan", "target", "model", "device", "placement", "on_stage"])
def test_an_engine_stays_what_it_is(running, name):
    with pytest.raises(InputError, match=f"setting `{name}` of an engine.*Make another Engine"):
        setattr(running, name, None)


def test_a_state_of_another_engine_is_refused(running):
    """Of another dtype, of another model under the same plan; so is its context."""
    state = stepped(running, 1)
    small = replace(TINY, config=replace(TINY.config, num_hidden_layers=1))
    named = replace(TINY, facts=replace(TINY.facts, name="other/model"))
    others = {
        "dtype 'bfloat16' where this engine's is 'float32'": engine("float32"),
        "another config of the model": Engine(small, running.plan),
        f"model {TINY_MODEL!r} where this engine's is 'other/model'": Engine(named, running.plan),
    }
    velocity = state.x.clone()
    for words, other in others.items():
        for call in (
            lambda: other.predict([state]),  # noqa: B023
            lambda: other.advance(state, velocity),  # noqa: B023
            lambda: other.preview(state),  # noqa: B023
            lambda: other.finish(state),  # noqa: B023
            lambda: other.begin(state.context, state.request),  # noqa: B023
        ):
            with pytest.raises(InputError, match=words):
                call()
    assert same(finished(running, state), finished(running, running.start(request())))


def wrong_calls(running: Engine, state: State) -> dict[str, Callable[[], object]]:
    context, wanted, x = state.context, state.request, state.x
    return {
        "Engine(7, plan)": lambda: Engine(7, running.plan),
        "Engine(model, None)": lambda: Engine(running.model, None),
        "execution({})": lambda: running.execution({}),
        "read_inputs('a cup')": lambda: running.read_inputs("a cup"),
        "read_inputs(media=picture)": lambda: running.read_inputs(wanted, media=inputs.photograph(8, 8)),
        "read_inputs(noise=7)": lambda: running.read_inputs(wanted, 7),
        "read_inputs(noise=tensor)": lambda: running.read_inputs(wanted, x),
        "start({})": lambda: running.start({}),
        "start(inputs)": lambda: running.start(wanted, {"prompt": [1]}),
        "start(watch)": lambda: running.start(wanted, None, print),
        "prepare(None)": lambda: running.prepare(None),
        "begin(None)": lambda: running.begin(None, wanted),
        "begin(context, dict)": lambda: running.begin(context, wanted.to_json()),
        "begin(watch)": lambda: running.begin(context, wanted, lambda: None),
        "predict(state)": lambda: running.predict(state),
        "predict(None)": lambda: running.predict(None),
        "predict([None])": lambda: running.predict([None]),
        "advance(None)": lambda: running.advance(None, x),
        "advance([state])": lambda: running.advance([state], x),
        "advance(list)": lambda: running.advance(state, [0.0]),
        "advance(array)": lambda: running.advance(state, x.numpy()),
        "advance(meta)": lambda: running.advance(state, x.to("meta")),
        "step([state])": lambda: running.step([state]),
        "finish(None)": lambda: running.finish(None),
        "preview(7)": lambda: running.preview(7),
        "check_saved({})": lambda: running.check_saved({}, {}, {}),
        "check_saved([])": lambda: running.check_saved(wanted, [], {}),
        "open_weights(7)": lambda: running.open_weights(7),
        "restore([])": lambda: state.restore([], []),
        "restore(numbers)": lambda: state.restore({"x": 1}, {"index": "2"}),
        "place(7)": lambda: state.place("moon"),
        "Watch(7)": lambda: Watch(7),
        "Watch(cancel)": lambda: Watch(cancel="stop"),
    }


def test_wrong_types_are_one_error_with_words(running):
    state = stepped(running, 1)
    before = kept(state)
    for name, call in wrong_calls(running, state).items():
        with pytest.raises(InputError) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1, name
    assert kept(state) == before


def test_a_pickle_has_no_more_than_the_next_step_reads(running):
    """Neither weights nor what is rendered again."""
    file = io.BytesIO()
    pickle.dump(stepped(running, 2), file)
    state = stepped(running, 2)
    held = sum(tensor.nbytes for tensor in state.to_tensors()[0].values())
    held += sum(t.nbytes for text in state.context.texts for segment in text.segments for t in segment)
    assert file.tell() < held + 200_000
