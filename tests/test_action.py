"""Actions as a user meets them: tables in and out, statistics, rollouts, and what is refused before a weight."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path

import numpy as np
import pytest
from command import cosmos3
from inputs import clip, photograph
from safetensors.numpy import load_file, save_file
from tiny_model import TINY_MODEL

import cosmos3 as package
from cosmos3_core.contract import InputError
from cosmos3_core.files.actions import READERS, STATES, read_rows
from cosmos3_core.files.normalizers import METHODS, read_normalizer
from cosmos3_core.runs.manifest import read_manifest
from cosmos3_core.scenarios.domains import domains
from cosmos3_core.scenarios.facts import ModelFacts
from cosmos3_core.scenarios.prompts import negative_text, positive_text
from cosmos3_core.scenarios.request import resolve

DICE = np.random.default_rng(0)
ROWS = DICE.normal(0, 1, (8, 10)).round(3)
STATS = {"q01": [-1.0 - i for i in range(10)], "q99": [2.0 + i for i in range(10)]}
FACTS = ModelFacts("x", "base", True, None)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder of inputs."""
    folder = tmp_path_factory.mktemp("files")
    photograph(96, 64).save(folder / "desk.png")
    clip(folder / "clip.mp4", frames=13, rate=5)
    write(folder, ROWS, "actions")
    write(folder, ROWS[:4], "four")
    broken = ROWS[:4].copy()
    broken[2, 1] = math.nan
    np.save(folder / "nan.npy", broken)
    np.save(folder / "wide.npy", np.zeros((4, 11)))
    np.save(folder / "flat.npy", np.zeros(4))
    np.save(folder / "words.npy", np.array([["a", "b"]]))
    np.save(folder / "state.npy", np.ones((1, 10)))
    np.savez(folder / "two.npz", a=ROWS, b=ROWS)
    (folder / "ragged.json").write_text("[[1, 2], [3]]")
    (folder / "no.json").write_text('{"rows": []}')
    (folder / "text.csv").write_text("x,y\n1,two\n")
    (folder / "stats.json").write_text(json.dumps({"method": "quantile", **STATS}))
    (folder / "unsaid.json").write_text(json.dumps({"global": STATS | {"mean": [0] * 10, "std": [1] * 10}}))
    (folder / "narrow.json").write_text(json.dumps({"method": "mean-std", "mean": [0.0], "std": [1.0]}))
    (folder / "backwards.json").write_text(json.dumps({"method": "min-max", "min": [1.0], "max": [0.0]}))
    (folder / "lacking.json").write_text(json.dumps({"method": "asinh", "q01": [0.0]}))
    (folder / "method.json").write_text(json.dumps({"method": "quantil", **STATS}))
    (folder / "empty.json").write_text("{}")
    tight = {"method": "quantile", "q01": [0.0] * 10, "q99": [0.0] * 10}
    (folder / "tight.json").write_text(json.dumps(tight))
    return folder


def write(folder: Path, rows: np.ndarray, name: str) -> None:
    """The same table in every form."""
    import pyarrow
    from pyarrow import parquet

    np.save(folder / f"{name}.npy", rows)
    np.savez(folder / f"{name}.npz", actions=rows, other=rows[:1])
    save_file({"action": rows}, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(rows.tolist()))
    names = ",".join(f"c{i}" for i in range(rows.shape[1]))
    (folder / f"{name}.csv").write_text("\n".join([names, *(",".join(map(repr, row)) for row in rows.tolist())]))
    table = {"action": rows.tolist(), "episode_index": [0] * len(rows), "timestamp": list(range(len(rows)))}
    parquet.write_table(pyarrow.table(table), folder / f"{name}.parquet")
    table["episode_index"] = [0] * 3 + [1] * (len(rows) - 3)
    parquet.write_table(pyarrow.table(table), folder / f"{name}-episodes.parquet")


# --- tables and statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", READERS)
def test_every_form_of_a_table_reads_as_the_same_numbers(files, suffix):
    rows = read_rows(files / f"actions{suffix}", "a table")
    assert np.array_equal(rows.values, ROWS) and rows.values.dtype == np.float64
    assert rows.facts == {"file": str(files / f"actions{suffix}"), "shape": [8, 10]}
    assert (rows.channels is not None) == (suffix == ".csv")


def test_parquet_without_pyarrow_says_what_to_install(files, monkeypatch):
    imported = builtins.__import__

    def lacking(name, *rest, **more):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(InputError, match="pip install pyarrow, or save the table as .npy"):
        read_rows(files / "actions.parquet", "a table")


def test_a_state_is_read_where_a_file_has_it(tmp_path):
    """The column observation.state of a LeRobot episode, and not its actions; so of every form that names arrays."""
    import pyarrow
    from pyarrow import parquet

    table = {"action": [[1.0, 2.0]], "observation.state": [[3.0, 4.0]]}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", **{name: np.array(rows) for name, rows in table.items()})
    save_file({name: np.array(rows) for name, rows in table.items()}, tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(json.dumps(table))
    for form in ("parquet", "npz", "safetensors", "json"):
        assert read_rows(tmp_path / f"a.{form}", "a state", STATES).values.tolist() == [[3.0, 4.0]]
        assert read_rows(tmp_path / f"a.{form}", "actions").values.tolist() == [[1.0, 2.0]]
    parquet.write_table(pyarrow.table({"action": [[1.0, 2.0]]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="it has no column observation.state, and has action"):
        read_rows(tmp_path / "b.parquet", "a state", STATES)


def test_rows_of_one_episode_are_taken_by_their_numbers(files):
    rows = read_rows(files / "actions-episodes.parquet", "a table")
    with pytest.raises(InputError, match="2 episodes, in rows 0 to 3, 3 to 8"):
        rows.check_one_episode("a table")
    taken = rows.between(3, 7, "a table")
    taken.check_one_episode("a table")
    assert np.array_equal(taken.values, ROWS[3:7]) and taken.facts["rows"] == [3, 7]
    with pytest.raises(InputError, match="2 episodes, in rows 2 to 3, 3 to 6"):
        rows.between(2, 6, "a table").check_one_episode("a table")


@pytest.mark.parametrize("method", METHODS)
def test_statistics_undo_what_they_do(tmp_path, method):
    """And the middle, the ends and a unit beyond them by the formulas of the file's docstring."""
    stats = {"q01": [-1.0], "q99": [3.0], "min": [-1.0], "max": [3.0], "mean": [1.0], "std": [2.0]}
    (tmp_path / "stats.json").write_text(json.dumps({"action": stats}))
    made = read_normalizer(tmp_path / "stats.json", method)
    raw = np.array([[1.0], [3.0], [-1.0], [5.0], [-201.0]])
    model = made.normalize(raw, "rows")
    y = (raw - 1.0) / 2.0
    tail = np.sign(y) * (1 + np.arcsinh(abs(y) - 1))
    expected = {"asinh": np.arcsinh(y) / math.asinh(1), "piecewise-asinh": np.where(abs(y) <= 1, y, tail)}
    np.testing.assert_allclose(model, expected.get(method, y), rtol=1e-12)
    np.testing.assert_allclose(made.denormalize(model), raw, rtol=1e-9)


def test_a_domain_is_what_diffusers_and_the_framework_say():
    from diffusers.pipelines.cosmos import pipeline_cosmos3_omni as theirs

    for name, number in theirs._EMBODIMENT_TO_DOMAIN_ID.items():
        channels = domains()[name].channels()
        assert domains()[name].id == number
        assert theirs._EMBODIMENT_TO_RAW_ACTION_DIM.get(name) == (channels and len(channels))
    assert len(domains()["droid_lerobot"].channels("joints")) == 8
    assert domains()["libero"].channels() is None and domains()["behavior1k_lerobot"].id == 22


# --- prompts ---------------------------------------------------------------------------------------------------------


def asked(profile: str = "reference", **given):
    given = {"task": "policy", "image": "x.png", "domain": "pusht", "prompt": "pick it up", "canvas": "832x480"} | given
    return resolve(given, profile, FACTS, pick_seed=lambda: 0)[0]


def test_the_prompt_is_the_specifications_to_the_byte():
    text = positive_text(asked(fps=5, guidance=2.0, negative_prompt="blurry"))
    assert text == (
        '{"cinematography": {"framing": "This video is captured from a first-person perspective looking at the '
        'scene."}, "actions": [{"time": "0:00-0:03", "description": "pick it up."}], "duration": "3s", "fps": 5.0, '
        '"resolution": {"H": 480, "W": 832}, "aspect_ratio": "16,9"}'
    )
    assert negative_text(asked(guidance=2.0, negative_prompt="blurry")) == "blurry"


@pytest.mark.parametrize("view", ["third_person_view", "wrist_view", "concat_view"])
@pytest.mark.parametrize(("frames", "fps"), [(17, 24.0), (61, 10.0), (1001, 15.0)])
def test_it_is_what_diffusers_writes(view, frames, fps):
    from diffusers import Cosmos3OmniPipeline

    prompt = "lift the cup! " if view == "wrist_view" else "lift the cup"
    theirs = Cosmos3OmniPipeline._build_action_json_prompt(
        prompt, view_point=view, num_frames=frames, fps=fps, height=480, width=832
    )
    assert positive_text(asked(view=view, prompt=prompt, frames=frames, fps=fps)) == theirs


def test_the_views_of_a_policy_are_described_behind_the_framing():
    text = json.loads(positive_text(asked(view="concat_view", view_detail="The top row is a wrist.", canvas="640x544")))
    assert text["cinematography"]["framing"].endswith("camera perspectives. The top row is a wrist.")
    assert text["aspect_ratio"] == "20,17"
    assert positive_text(asked("vllm-omni")) == "pick it up"


# --- runs ------------------------------------------------------------------------------------------------------------

TINY = ("--model", TINY_MODEL, "--backend", "reference", "--steps", 2, "--seed", 3, "--chunk", 4, "--fps", 5)
BRIDGE = ("--domain", "bridge_orig_lerobot")


def test_a_policy_writes_its_actions_in_the_robots_units(run, files):
    picture, stats = ("--image", files / "desk.png"), ("--action-stats", files / "stats.json")
    code, _, err = run("pick it up", *TINY, *BRIDGE, *picture, *stats, "-o", "out.mp4", "--save-latents", "out.st")
    assert code == 0, err
    table, manifest = json.loads(Path("out.actions.json").read_text()), json.loads(Path("out.mp4.json").read_text())
    latents = load_file("out.st")["final.action"]
    middle, half = (np.array(STATS["q99"]) + STATS["q01"]) / 2, (np.array(STATS["q99"]) - STATS["q01"]) / 2
    np.testing.assert_allclose(table["actions"], latents[:, :10] * half + middle, rtol=1e-12)
    assert latents.shape == (4, 16) and not latents[:, 10:].any()
    assert (table["shape"], table["fps"], table["normalization"]) == ([4, 10], 5.0, "quantile")
    assert table["channels"][:3] == ["x", "y", "z"] and len(table["units"]) == 10
    assert np.array_equal(load_file("out.actions.safetensors")["actions"], table["actions"])
    assert manifest["output"]["actions"] == ["out.actions.json", "out.actions.safetensors"]
    assert manifest["actions"]["channels"] == table["channels"] and "action_stats" in manifest["inputs"]
    assert (manifest["output"]["width"], manifest["output"]["height"]) == (96, 64), "as large as the input"
    for name in ("out.mp4", "out.actions.json", "out.actions.safetensors"):
        assert read_manifest(name)["request"]["domain"] == "bridge_orig_lerobot"
    code, _, err = run("--request", "out.mp4", "-o", "again.json")
    assert code == 0, err
    assert json.loads(Path("again.json").read_text())["actions"] == table["actions"]
    assert sorted(path.name for path in Path().glob("again*")) == ["again.json", "again.json.json"], "no frame"


def test_forward_dynamics_takes_robots_units_and_any_form(files):
    pipe = package.load(TINY_MODEL, backend="reference")
    common = dict(task="forward-dynamics", image=files / "desk.png", domain="bridge_orig_lerobot", chunk=4, steps=2)
    common |= {"action_stats": files / "stats.json", "seed": 1, "fps": 5}
    found = pipe("lift", actions=ROWS[:4], **common)
    assert found.actions is None
    for form in (files / "four.csv", str(files / "four.parquet"), ROWS[:4].tolist()):
        assert np.array_equal(pipe("lift", actions=form, **common).numpy, found.numpy)
    other = pipe("lift", actions=ROWS[4:], **common)
    assert not np.array_equal(other.numpy, found.numpy), "the actions have a say"
    part = pipe("lift", actions=files / "actions.npy", action_rows=[0, 4], **common)
    assert np.array_equal(part.numpy, found.numpy)
    padded = pipe("lift", actions=ROWS[:3], pad_actions=True, **common)
    assert padded.manifest["notes"] == ["the last of 3 actions was repeated up to 4 (pad_actions)"]
    raw = pipe("lift", actions=np.full((4, 10), 150.0), **common | {"action_stats": "none"})
    assert raw.manifest["notes"][0].startswith("what is given of actions reaches 150 in the model's units")
    again = pipe(**padded.request)
    assert np.array_equal(again.numpy, padded.numpy)


def test_inverse_dynamics_finds_actions_for_a_clip(files):
    pipe = package.load(TINY_MODEL, backend="reference")
    given = dict(task="inverse-dynamics", video=files / "clip.mp4", domain="robomind-ur", chunk=8, steps=2, fps=5)
    result = pipe("what is done", **given)
    assert result.actions.shape == (8, 10) and result.numpy.shape == (9, 96, 160, 3)
    with pytest.raises(InputError, match="it has 13 frames, and task inverse-dynamics takes 17"):
        pipe("what is done", **given | {"chunk": 16})
    rolled = pipe("what is done", **given | {"chunk": 4, "rollout": 3})
    assert rolled.actions.shape == (12, 10) and rolled.numpy.shape[0] == 13


def test_policy_droid_has_33_rows_of_which_the_state_is_the_first(files):
    pipe = package.load(TINY_MODEL, backend="reference")
    given = dict(task="policy", image=files / "desk.png", domain="droid_lerobot", action_space="joints", chunk=32)
    run = pipe.start("pick it up", **given, steps=1, fps=15, state=[0.1] * 8, view="concat_view")
    run.step()
    item = run._generation.begun.items[1]
    assert (item.shape, item.clean, item.start, item.domain, item.used) == ((33, 16), (0,), 0, 8, 8)
    assert run.finish().actions.shape == (32, 8)


CHUNKS = 5


@pytest.mark.parametrize("history", [(), ("--history", "{files}/four.npy")])
def test_a_long_rollout_is_gone_on_with_to_the_bit(run, files, history, monkeypatch):
    """Stopped in its third chunk."""
    from cosmos3_core.engine.engine import Engine

    words = ("pick it up", *TINY, *BRIDGE, "--image", files / "desk.png", "--rollout", CHUNKS)
    words += tuple(str(word).format(files=files) for word in history)
    code, _, err = run(*words, "-o", "whole.json")
    assert code == 0, err
    step, taken = Engine.step, []

    def stopping(engine, state):
        taken.append(state)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return step(engine, state)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stopping)
        code, _, err = run(*words, "-o", "part.json")
    assert code == 130 and "5 of 10 steps are kept" in err, err
    code, _, err = run("--resume", "part.json.state.safetensors", "-o", "part.json")
    assert code == 0, err
    whole, part = (json.loads(Path(name).read_text()) for name in ("whole.json", "part.json"))
    assert whole["actions"] == part["actions"] and whole["shape"] == [4 * CHUNKS, 10]


def test_a_rollout_takes_rows_for_each_chunk_and_begins_where_the_last_one_ended(files):
    pipe = package.load(TINY_MODEL, backend="reference")
    given = dict(task="forward-dynamics", image=files / "desk.png", domain="bridge_orig_lerobot", chunk=4, steps=2)
    given |= {"fps": 5, "seed": 1}
    both = pipe("lift", actions=ROWS, rollout=2, **given)
    first = pipe("lift", actions=ROWS[:4], **given)
    assert len(both.numpy) == 9 and np.array_equal(both.numpy[:5], first.numpy)
    second = pipe("lift", actions=ROWS[4:], **given | {"image": both.numpy[4], "seed": 2})
    assert np.abs(both.numpy[5:].astype(int) - second.numpy[1:]).mean() < 8, "but for the rounding of that frame"


# --- what is refused -------------------------------------------------------------------------------------------------

POLICY = "--task policy --image {files}/desk.png --domain bridge_orig_lerobot"
FORWARD = "--task forward-dynamics --image {files}/desk.png --domain bridge_orig_lerobot --actions {files}/"
INVERSE = "--task inverse-dynamics --video {files}/clip.mp4 --domain bridge_orig_lerobot"
REFUSED = [
    ("--task policy --image {files}/desk.png", "it has no domain", "Add --domain, one of no_action, av"),
    ("--task policy --domain pusht", "there is no input image", "Add --image FILE"),
    (f"{POLICY}s", "there is no such embodiment", "Did you mean bridge_orig_lerobot?"),
    ("--task policy --image {files}/desk.png --domain libero", "nothing says how many channels", "Add `action_width`"),
    (f"{POLICY} --set action_width=9", "10 channels in its layout arm", "Drop action_width"),
    (f"{POLICY} --set action_space=joints", "bridge_orig_lerobot has arm", "Drop action_space"),
    (f"{POLICY} --actions {{files}}/four.npy", "policy predicts its actions", "or drop it"),
    (FORWARD.removesuffix(" --actions {files}/"), "there is no --actions", "Add --actions FILE"),
    (
        f"{FORWARD}actions.npy",
        "8 rows, and a chunk of 4 takes 4",
        "--chunk 8, --rollout 2, --action-rows [0, 4], or --pad",
    ),
    (f"{FORWARD}four.npy --rollout 2", "4 rows, and 2 chunks of 4 takes 8", "--rollout 1, or --pad-actions"),
    (f"{FORWARD}nan.npy", "row 2, channel 1 is nan", "Fill such gaps"),
    (f"{FORWARD}wide.npy", "11 channels, and bridge_orig_lerobot (arm) has 10", "Give 10 columns: x, y, z"),
    (f"{FORWARD}flat.npy", "it is of shape [4]", "Give rows of equally many numbers"),
    (f"{FORWARD}words.npy", "it is not of numbers alone", "Give rows of equally many numbers"),
    (f"{FORWARD}two.npz", "none is called actions: a, b", "Give a table of numbers"),
    (f"{FORWARD}ragged.json", "its rows are of several lengths", "Give rows of equally many numbers"),
    (f"{FORWARD}no.json", "an object without actions", "Give a table of numbers"),
    (f"{FORWARD}text.csv", "row 0 has 'two' where a number is wanted", "Give a table of numbers"),
    (f"{FORWARD}desk.png", "tables of actions end in .json", "Give a table of numbers"),
    (f"{FORWARD}none.npy", "No such file", "Give a table of numbers"),
    (f"{FORWARD}four-episodes.parquet", "2 episodes, in rows 0 to 3, 3 to 4", "as --action-rows, such as [0, 16]"),
    (f"{FORWARD}four.npy --action-rows [2,9]", "there are 4 rows", "Name rows from 0 to 4"),
    (f"{FORWARD}four.npy --action-rows [3,2]", "it ends before it begins", "Give the lower one first"),
    (f"{POLICY} --chunk 6", "a chunk is a multiple of 4", "The nearest are 4 and 8"),
    (f"{POLICY} --frames 9 --chunk 16", "a chunk of 16 actions has 17 frames", "Drop one of them"),
    (f"{POLICY} --canvas 300p", "canvases have no tier 300p", "Give 256p or 480p or 704p or 720p"),
    (f"{POLICY} --size 320x256", "comes 96x64", "Give --canvas in its place"),
    (f"{POLICY} --view side_view", "there is no such choice", "view is one of ego_view"),
    (f"{POLICY} --state {{files}}/four.npy", "it has 4 rows, and a state is one", "Give the row of the first frame"),
    (f"{POLICY} --state [1,2,3]", "its rows have 3 channels", "Give 10 columns"),
    (f"{POLICY} --state {{files}}/state.npy --rollout 2", "the state is not known", "Drop --state"),
    (f"{POLICY} --set history_length=2", "there is no history", "Add --history FILE"),
    (f"{POLICY} --history {{files}}/four.npy --set history_length=9", "it has 4 rows", "Give a longer one"),
    (f"{POLICY} --action-stats {{files}}/narrow.json", "statistics are of 1 channels", "Give those of this embodiment"),
    (f"{POLICY} --action-stats {{files}}/unsaid.json", "serve quantile or mean-std", "Add `action_normalization`"),
    (f"{POLICY} --action-stats {{files}}/backwards.json", "channel 0 ends at 0, before it begins at 1", "Give stati"),
    (f"{POLICY} --action-stats {{files}}/lacking.json", "it has no q99, which asinh needs", "Give statistics"),
    (f"{POLICY} --action-stats {{files}}/method.json", "Did you mean quantile?", "Give statistics"),
    (f"{POLICY} --action-stats {{files}}/empty.json", "it has no statistics of quantile", "Give statistics"),
    (
        f"{POLICY} --action-stats checkpoint",
        f"{TINY_MODEL} has no statistics of bridge_orig_lerobot",
        "Give a file of them",
    ),
    (f"{FORWARD}four.npy --action-stats {{files}}/tight.json", "its statistics say 0 within 5e-09", "of this robot's"),
    (
        f"{INVERSE} --chunk 16",
        "it has 13 frames, and task inverse-dynamics takes 17",
        "Use a longer clip, or frames 13",
    ),
    (f"{INVERSE} --set condition_frame_indexes=[0]", "takes all of its clip", "Drop condition_frame_indexes"),
    ("--task t2v --domain pusht", "text to video has no actions", "Drop domain"),
    (f"{POLICY} -o {{files}}/x.avi", "and actions, which alone are .json or .safetensors", "Pass"),
    (f"{POLICY} -o {{files}}/x.wav", "policy has no sound", "Use one ending in .mp4"),
    ("--task policy --image {files}/desk.png --domain hand_pose", "take 16 channels", "Use another --model"),
]


@pytest.mark.parametrize(("command", "found", "then"), REFUSED)
def test_a_mistake_costs_one_line(run, files, monkeypatch, command, found, then):
    from cosmos3_core.checkpoint.tensors import TensorFiles

    monkeypatch.setattr(TensorFiles, "read", lambda *_: pytest.fail("a weight was read"))
    words = command.format(files=files).split()
    words += [] if "--chunk" in words else ["--chunk", "4"]
    words = words[:-2] if "t2v" in words else words
    words += [] if "-o" in words else ["-o", "out.mp4"]
    code, out, err = run("pick it up", "--model", TINY_MODEL, "--backend", "reference", "--fps", 5, *words)
    assert (code, out) == (2, ""), err
    (line,) = err.splitlines()
    assert found in line and then in line, line
    assert not list(Path().iterdir())


def test_a_checkpoint_without_action_heads_names_some_that_have_them(capsys, monkeypatch):
    words = "plan --model nvidia/Cosmos3-Super-Image2Video-4Step --task policy --domain av".split()
    code, _, err = cosmos3(capsys, monkeypatch, *words)
    assert code == 2 and "nvidia/Cosmos3-Nano" in err, err


# --- a policy in a loop ----------------------------------------------------------------------------------------------


def observation(seed: int = 0) -> dict:
    dice = np.random.default_rng(seed)
    pictures = ("wrist_image_left", "exterior_image_1_left", "exterior_image_2_left")
    found = {f"observation/{name}": dice.integers(0, 255, (36, 64, 3), dtype=np.uint8) for name in pictures}
    joints = {"observation/joint_position": np.zeros(7), "observation/gripper_position": np.array([1.0])}
    return {"prompt": "pick up the cup", **found, **joints}


def test_a_policy_acts_on_an_observation_of_droid():
    pipe = package.load(TINY_MODEL, backend="reference")
    policy = package.Policy(pipe, steps=1, canvas="256p", chunk=8)
    actions = policy.act(observation())
    assert actions.shape == (8, 8) and policy.seconds["total"] >= policy.seconds["steps"] > 0
    assert "decode" not in policy.seconds or "load vae decoder" not in policy.seconds
    plain = pipe.start("pick up the cup", image=policy._picture(observation()), state=[0.0] * 8, **policy._fields)
    for _ in plain:
        pass
    expected = plain.actions()
    expected[:, 7] = 1 - expected[:, 7]
    np.testing.assert_allclose(
        actions, expected, err_msg="the gripper is the other way round for the model, in and out"
    )


def test_chunks_of_a_policy_overlap():
    pipe = package.load(TINY_MODEL, backend="reference")
    given = dict(steps=1, canvas="256p", chunk=8)
    whole = package.Policy(pipe, **given)
    first, second = whole.act(observation()), whole.act(observation(1))
    policy = package.Policy(pipe, horizon=4, overlap=2, **given)
    assert np.array_equal(policy.act(observation()), first[:4])
    blended = policy.act(observation(1))
    np.testing.assert_allclose(blended[0], 2 / 3 * first[4] + 1 / 3 * second[0])
    np.testing.assert_allclose(blended[1], 1 / 3 * first[5] + 2 / 3 * second[1])
    assert np.array_equal(blended[2:], second[2:4])
    policy.reset()
    assert np.array_equal(policy.act(observation(1)), second[:4])


@pytest.mark.parametrize(
    ("options", "changes", "said"),
    [
        ({"preset": "droyd"}, {}, "Did you mean droid?"),
        ({"domain": "pusht"}, {}, "action_space joints: pusht has plane"),
        ({"domain": "droid"}, {}, "there is no such embodiment"),
        ({"horizon": 99}, {}, "Give a whole number from 1 to 8"),
        ({"horizon": 6, "overlap": 3}, {}, "behind 6 of 8 actions there are 2"),
        ({}, {"prompt": None}, "Add 'prompt'"),
        ({}, {"observation/wrist_image_left": None}, "Add 'observation/wrist_image_left'"),
        ({}, {"observation/wrist_image_left": np.zeros((4, 4))}, "Give uint8"),
        ({}, {"observation/joint_position": np.zeros(6)}, "6 and 1 numbers, and droid_lerobot .joints. has 8"),
    ],
)
def test_what_a_policy_cannot_act_on_is_said(options, changes, said):
    pipe = package.load(TINY_MODEL, backend="reference")
    seen = {key: value for key, value in (observation() | changes).items() if value is not None}
    with pytest.raises(InputError, match=said):
        package.Policy(pipe, **{"steps": 1, "canvas": "256p", "chunk": 8} | options).act(seen)


def test_what_a_model_can_do_lists_the_domains(capsys, monkeypatch):
    code, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", TINY_MODEL, "--json")
    found = json.loads(out)["domains"]
    assert code == 0 and found["droid_lerobot"]["id"] == 8 and len(found["droid_lerobot"]["spaces"]["joints"]) == 8
    code, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", TINY_MODEL)
    assert "  droid_lerobot  arm of 10 channels, joints of 8 channels" in out.splitlines()
    code, out, _ = cosmos3(
        capsys, monkeypatch, "capabilities", "--model", "nvidia/Cosmos3-Super-Image2Video-4Step", "--json"
    )
    assert code == 0 and not json.loads(out)["domains"]


def test_warming_up_takes_what_a_run_with_actions_is_given(capsys, monkeypatch):
    words = ["--model", TINY_MODEL, "--backend", "reference", "--steps", 1, "--chunk", 4, "--canvas", "256p", "--json"]
    words += ["--set", "state=[1, 2]", "--set", "domain=pusht", "--task", "forward-dynamics"]
    code, out, err = cosmos3(capsys, monkeypatch, "warmup", *words)
    assert code == 0 and {"encode input", "steps", "decode"} <= json.loads(out)["seconds"].keys(), err
