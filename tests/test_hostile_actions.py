"""Tables, statistics and observations that do not say what they seem to: one error each, before a weight is read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from inputs import photograph
from safetensors.numpy import save_file
from test_action import observation
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core.contract import InputError

ROWS = [[0.0, 0.0], [0.1, 0.0], [0.2, 0.0], [0.2, 0.1]]
CLIP = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)
STATS = {"method": "quantile", "q01": [-1, -1], "q99": [1, 1]}
ACTING = {"steps": 1, "canvas": "256p", "chunk": 8}


@pytest.fixture(scope="module")
def pipe():
    with cosmos3.load(TINY_MODEL, backend="reference") as found:
        yield found


@pytest.fixture
def refused(pipe, monkeypatch):
    """What is said of a request that has to be refused before a weight is read."""
    monkeypatch.setattr(type(pipe._engine), "open_weights", lambda *_, **__: pytest.fail("weights were read"))

    def said(**fields) -> InputError:
        with pytest.raises(InputError) as caught:
            pipe("push", **{"steps": 1, "seed": 7} | fields)
        return caught.value

    return said


def shown(**fields) -> dict:
    """Forward dynamics with a table."""
    return {"task": "forward-dynamics", "image": photograph(64, 64), "domain": "pusht", "chunk": 4, "fps": 5, **fields}


@pytest.mark.parametrize("form", ["rows", "an array", "text", "a file"])
def test_rows_are_taken_by_their_numbers_from_any_form(pipe, tmp_path, form):
    many = [[9.0, 9.0], *ROWS, [9.0, 9.0]]
    (tmp_path / "six.json").write_text(json.dumps(many))
    forms = {"rows": many, "an array": np.array(many), "text": json.dumps(many), "a file": tmp_path / "six.json"}
    given = pipe("push", **shown(actions=forms[form], action_rows=[1, 5], steps=1, seed=7))
    assert np.array_equal(given.numpy, pipe("push", **shown(actions=ROWS, steps=1, seed=7)).numpy)
    with pytest.raises(InputError, match="there are 6 rows"):
        pipe("push", **shown(actions=forms[form], action_rows=[3, 7], steps=1))


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("swapped.csv", "y,x\n0,0\n0,0.1\n0,0.2\n0.1,0.2\n", "channel 0 is 'y', and that of an action is 'x'"),
        ("swapped.json", json.dumps({"actions": ROWS, "channels": ["y", "x"]}), "channel 0 is 'y'"),
        ("metres.json", json.dumps({"actions": ROWS, "units": ["m", "m"]}), "a robot's units, and without"),
        ("unsaid.json", json.dumps({"actions": ROWS, "units": ["", ""]}), "a robot's units, and without"),
        ("one.json", json.dumps({"actions": ROWS, "units": ["m"]}), "names 1 units, and its rows have 2"),
        ("shape.json", json.dumps({"actions": ROWS, "shape": [4, 3]}), "its shape says otherwise"),
        ("python.csv", "0,1_0\n0,0\n0,0\n0,0\n", "'1_0' where a number is wanted"),
        ("large.json", json.dumps([[1e300, 0], *ROWS[1:]]), "is 1e+300, and the model's own values are about 1"),
        ("far.json", json.dumps([*ROWS[:3], [0, -2e6]]), "row 3, channel 1 is -2e+06"),
    ],
)
def test_a_table_that_says_otherwise_is_refused(refused, tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    error = refused(**shown(actions=tmp_path / name))
    assert found in str(error) and error.field == "actions"


def test_the_models_own_values_are_not_read_in_a_robots_units(refused, tmp_path):
    (tmp_path / "stats.json").write_text(json.dumps(STATS))
    about = {"channels": ["x", "y"], "units": ["normalised", "normalised"]}
    save_file({"actions": np.array(ROWS)}, tmp_path / "own.safetensors", {"about": json.dumps(about)})
    error = refused(**shown(actions=tmp_path / "own.safetensors", action_stats=tmp_path / "stats.json"))
    assert "the model's own values, and `action_stats` are for a robot's" in str(error)


def test_a_header_that_lies_is_an_error_of_the_file(refused, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    monkeypatch.setattr(np, "load", lambda *_, **__: (_ for _ in ()).throw(MemoryError("59.6 GiB")))
    assert "more than fits in memory" in str(refused(**shown(actions=tmp_path / "rows.npy")))


@pytest.mark.parametrize(
    ("stats", "found"),
    [
        (STATS | {"channels": ["y", "x"]}, "channel 0 is 'y', and that of an action is 'x'"),
        (STATS | {"channels": ["x", "x"]}, "channel 1 is 'x', and that of an action is 'y'"),
        (STATS | {"q01": [-1e308, 0], "q99": [1e308, 1]}, "channel 0 has numbers too large to compute with"),
    ],
)
def test_statistics_of_other_channels_are_refused(refused, tmp_path, stats, found):
    (tmp_path / "stats.json").write_text(json.dumps(stats))
    error = refused(**shown(actions=ROWS, action_stats=tmp_path / "stats.json"))
    assert found in str(error) and error.field == "action_stats"


@pytest.mark.parametrize("weights", ["depth=1,depth=2", [("depth", 1), ("depth", 2)]])
def test_a_control_has_one_weight(refused, weights):
    error = refused(depth=CLIP, seg=CLIP, frames=9, size="64x64", fps=24, control_weights=weights)
    assert "'depth': it is named twice" in str(error) and error.field == "control_weights"


def test_too_many_first_frames_are_one_fault(refused):
    error = refused(depth=CLIP, video=CLIP, frames=9, size="64x64", fps=24, chunk_frames=9, first_frames=9)
    assert [fault.field for fault in error.faults] == ["first_frames"]


def test_a_clip_that_is_shown_is_used(pipe):
    given = {"depth": CLIP, "video": CLIP, "frames": 9, "size": "64x64", "fps": 24, "steps": 1, "seed": 7}
    compared = pipe("push", **given, show_input=True)
    assert np.array_equal(compared.numpy[:, :, :64], CLIP) and compared.numpy.shape == (9, 64, 128, 3)


def test_a_keyframes_index_may_be_numpys(pipe):
    given = {"frames": 9, "size": "64x64", "steps": 1, "seed": 7}
    numpys, own = (pipe("push", keyframe={at: CLIP[0]}, **given).numpy for at in (np.int64(8), 8))
    assert np.array_equal(numpys, own)


@pytest.mark.parametrize(
    ("fields", "field", "found"),
    [
        ({"condition_frame_indexes": [0, 1, 2]}, "condition_frame_indexes", "or use `task` inverse-dynamics"),
        ({"condition_frame_indexes": [0, 2], "rollout": 2}, "rollout", "a chunk of 9 frames has no later one"),
    ],
)
def test_a_clip_of_which_all_is_observed_is_no_video_policy(refused, fields, field, found):
    error = refused(task="video-policy", video=CLIP, domain="pusht", chunk=8, fps=24, **fields)
    assert found in str(error) and error.field == field


def test_a_video_policy_may_observe_the_end(pipe):
    given = {"task": "video-policy", "video": CLIP, "domain": "pusht", "chunk": 8, "fps": 24}
    assert pipe("push", **given, condition_frame_indexes=[0, 2], steps=1, seed=7).actions.shape == (8, 2)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"observation/wrist_image_left": np.zeros((1, 1, 3), np.uint8)}, "1x1 pixels"),
        ({"observation/wrist_image_left": np.zeros((0, 64, 3), np.uint8)}, "64x0 pixels"),
        ({"observation/exterior_image_1_left": np.broadcast_to(np.uint8(0), (5000, 9, 3))}, "9x5000 pixels"),
        ({"observation/wrist_image_left": [[1], [1, 2]]}, "it is no array"),
        ({"observation/joint_position": [object()] * 7}, "it is object [7]"),
        ({"observation/joint_position": "0"}, "it is <U1 [1]"),
        ({"observation/joint_position": np.zeros(7, complex)}, "it is complex128 [7]"),
        ({"observation/joint_position": np.zeros(7, bool)}, "it is bool [7]"),
        ({"observation/joint_position": np.full(7, np.nan)}, "NaN or infinity"),
        ({"observation/joint_position": np.zeros((1, 1, 7))}, "it is float64 [1, 1, 7]"),
        ({"observation/gripper_position": []}, "it is float64 [0]"),
        ({"observation/gripper_position": [0.0, 0.0]}, "7 and 2 numbers, and droid_lerobot (joints) has 8"),
        ({"observation/joint_position": np.full(7, 1e300)}, "is 1e+300"),
    ],
)
def test_what_is_wrong_with_an_observation_is_said_of_it(pipe, changes, found):
    policy = cosmos3.Policy(pipe, **ACTING)
    with pytest.raises(InputError) as caught:
        policy.act(observation() | changes)
    assert found in str(caught.value) and caught.value.field in ("observation", "state")


@pytest.mark.parametrize("seen", [None, 3, [observation()], "observation"])
def test_an_observation_is_a_dict(pipe, seen):
    with pytest.raises(InputError, match="it is no dict"):
        cosmos3.Policy(pipe, **ACTING).act(seen)


@pytest.mark.parametrize(
    ("options", "field", "found"),
    [
        ({"steps": 0}, "steps", "out of range"),
        ({"guidnce": 3}, "guidnce", "Did you mean guidance"),
        ({"chunk": 6}, "chunk", "The nearest are 4 and 8"),
        ({"chunk": "8"}, "chunk", "it is text"),
        ({"task": "t2v"}, "task", "a policy's is policy"),
        ({"rollout": 2}, "rollout", "Drop rollout"),
        ({"image": CLIP[0]}, "image", "each observation brings its own"),
        ({"state": [0] * 8}, "state", "each observation brings its own"),
        ({"prompt": "push"}, "prompt", "each observation brings its own"),
        ({"output": "x.mp4"}, "output", "an argument of a call"),
        ({"domain": "pusht"}, "action_space", "pusht has plane"),
        ({"overlap": 0.5}, "overlap", "Give a whole number from 0 to 0"),
        ({"horizon": 4, "overlap": True}, "overlap", "Give a whole number from 0 to 4"),
    ],
)
def test_a_policy_is_checked_when_it_is_made(pipe, options, field, found):
    with pytest.raises(InputError) as caught:
        cosmos3.Policy(pipe, **ACTING | options)
    assert found in str(caught.value) and caught.value.field == field


@pytest.mark.parametrize(("given", "found"), [((), "calling Policy()"), (("embedded",), "it is no loaded model")])
def test_a_policy_needs_a_pipe(given, found):
    with pytest.raises(InputError) as caught:
        cosmos3.Policy(*given)
    assert found in str(caught.value)


def test_a_policys_domain_may_be_written_as_a_requests_is(pipe):
    policy = cosmos3.Policy(pipe, **ACTING, domain="DROID_LeRobot")
    assert np.array_equal(policy.act(observation()), cosmos3.Policy(pipe, **ACTING).act(observation()))


def test_only_embodiments_that_the_heads_take_are_listed(pipe):
    told = cosmos3.capabilities("embedded")
    widths = [len(channels) for row in told["domains"].values() for channels in row["spaces"].values()]
    assert max(widths) <= 16 and "hand_pose" not in told["domains"] and "pusht" in told["domains"]
    assert set(told["fields"]["domain"]["schema"]["enum"]) == told["domains"].keys()
    assert "hand_pose" in cosmos3.capabilities("nano")["domains"]
