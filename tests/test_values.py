"""Values that no request can have, and how a message shows them: whatever the object is, one clear error of bounded
length, from Python and from the command line."""

from __future__ import annotations

import decimal
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from command import cosmos3 as command_line
from tiny_model import TINY_MODEL

import cosmos3
from cosmos3_core.cli import cli
from cosmos3_core.scenarios.families import INPUTS, TASKS
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.spelling import SHOWN, shown


class Unshown:
    """Raises for whatever it is asked."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    @property
    def tolist(self) -> Any:
        raise RuntimeError("no")


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(2000):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "a meta tensor": torch.empty(2, device="meta"),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "5001 digits": 10**5000,
    "a list of 5001 digits": [10**5000, 64],
    "a list of itself": _cycle(),
    "2000 lists": _deep(),
    "unshown": Unshown(),
    "a list of unshown": [Unshown()],
    "a signalling NaN": decimal.Decimal("sNaN"),
    "no date": np.datetime64("NaT"),
    "a list of no date": [np.datetime64("NaT"), 64],
    "an array of None": np.array(None, dtype=object),
    "half a character": "\ud800.png",
    "a path of half a character": Path("\ud800.png"),
    "bytes": b"x",
    "a complex number": 2 + 3j,
    "5000 digits and auto": "9" * 5000 + ":auto",
}
TEXTS = ("prompt", "negative_prompt")


@pytest.fixture(scope="module")
def pipe() -> cosmos3.Pipeline:
    return cosmos3.load(TINY_MODEL, backend="reference")


def refused(use: Any, *arguments: Any, **fields: Any) -> cosmos3.InputError:
    with pytest.raises(cosmos3.InputError) as raised:
        use(*arguments, **fields)
    return raised.value


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("field", [*FIELDS, "n"])
def test_no_value_ends_in_a_traceback(field, name, pipe):
    if field in TEXTS and name == "5000 digits and auto" or field in INPUTS and name == "bytes":
        return  # text is text, and bytes are those of a file
    given = {"prompt": "a cup", "size": "64x64", "frames": 5, field: VALUES[name]}
    given |= {"task": next(task.name for task in TASKS.values() if task.input == field)} if field in INPUTS else {}
    error = refused(pipe if field == "n" else pipe.plan, **given)
    assert error.asked and error.found and error.next_step and len(str(error)) < 8 * SHOWN
    assert error.field == field


@pytest.mark.parametrize("argument", ["model", "revision", "backend", "dtype", "formats", "kernels", "resident", "foo"])
@pytest.mark.parametrize("name", ["unshown", "a list of itself", "half a character", "a signalling NaN"])
def test_a_load_shows_any_value(argument, name):
    error = refused(cosmos3.load, **{"model": TINY_MODEL, argument: VALUES[name]})
    assert len(str(error)) < 8 * SHOWN


def test_a_load_shows_any_value_by_op():
    for argument, op in (("formats", "pack_linear"), ("kernels", "attention")):
        assert "Unshown" in str(refused(cosmos3.load, TINY_MODEL, **{argument: {op: Unshown()}}))


@pytest.mark.parametrize("profile", [None, [], 3, Unshown()])
def test_capabilities_of_no_profile(profile):
    assert refused(cosmos3.capabilities, TINY_MODEL, profile=profile).next_step.startswith("Profiles are reference, ")


def test_a_name_that_no_file_has(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"frames": 1, "size": "64x64", "steps": 1}
    run = pipe.start("a cup", **small)
    result = run.run()
    uses = [
        cosmos3.load,
        cosmos3.show,
        result.save,
        run.save,
        pipe.resume,
        lambda name: pipe("a", output=name, **small),
    ]
    for use in uses:
        for name in ("\ud800.png", "x" * 5000):
            error = refused(use, name)
            assert error.found == "it is not a path" and len(str(error)) < 8 * SHOWN
    assert not list(tmp_path.iterdir())


def test_shown_is_short_and_is_pythons():
    assert [shown(value) for value in (1, "a", None, [1, 2], {"a": (1,)})] == [
        "1",
        "'a'",
        "None",
        "[1, 2]",
        "{'a': (1,)}",
    ]
    assert all(len(shown(value)) <= 2 * SHOWN + 3 for value in (*VALUES.values(), "x" * 5000, ["x" * 300] * 300))
    assert shown("x" * 5000).startswith("'xxx") and "whole number" in shown(10**5000)


@pytest.mark.parametrize(
    ("fields", "asked", "found"),
    [
        ({"steps": "2"}, "steps = '2'", "it is text"),
        ({"steps": True}, "steps = True", "it is a switch"),
        ({"steps": [2]}, "steps = [2]", "it is a list"),
        ({"steps": {"a": 1}}, "steps = {'a': 1}", "it is an object"),
        ({"steps": 2.5}, "steps = 2.5", "it is not whole"),
        ({"steps": 0}, "steps = 0", "it is out of range"),
        ({"steps": decimal.Decimal(2)}, "steps = Decimal('2')", "it is of type Decimal"),
        ({"guidance": float("nan")}, "guidance = nan", "it is not a number"),
        ({"system_prompt": "true"}, "system_prompt = 'true'", "it is text, and no switch"),
        ({"tile": "64"}, "tile = '64'", "it is text"),
        ({"tile": 100}, "tile = 100", "tiles are multiples of 64 pixels"),
        ({"tile": 8192}, "tile = 8192", "it is out of range"),
        ({"prompt": Path("cup.txt")}, "prompt = PosixPath('cup.txt')", "it is a path and no text"),
        ({"size": Path("64x64")}, "size PosixPath('64x64')", "it is no size"),
        ({"prompt": "@cup.json"}, "prompt '@cup.json'", "files of prompts are read for the command line's"),
        ({"negative_prompt": "@cup.json"}, "negative_prompt '@cup.json'", "files of prompts are read"),
        ({"image": "https://example.com/a.png"}, "image = 'https://example.com/a.png'", "it is a URL"),
        ({"image": Path("https://example.com/a.png")}, "image = 'https:/example.com/a.png'", "it is a URL"),
        ({"video": "s3://bucket/a.mp4"}, "video = 's3://bucket/a.mp4'", "it is a URL"),
        ({"image": "data:image/png;base64,AA"}, "image = 'data:image/png;base64,AA'", "it is a URL"),
        ({"video": "a.mp4", "condition_frame_indexes": [0, 0]}, "condition_frame_indexes = [0, 0]", "once"),
        ({"video": "a.mp4", "condition_frame_indexes": [1, 0]}, "condition_frame_indexes = [1, 0]", "in their order"),
        ({"task": "t2v", "frames": 1}, "1 frame with task t2v", "one frame is an image"),
    ],
)
def test_what_is_wrong_with_a_value(fields, asked, found, pipe):
    error = refused(pipe.plan, **{"prompt": "a cup"} | fields)
    assert error.asked == asked and found in error.found


@pytest.mark.parametrize("tile", ["none", None, 256, 256.0])
def test_a_tile_may_be_none_or_whole(tile, pipe):
    run = pipe.start("a cup", size="832x480", frames=5, tile=tile, anyway=True)
    assert run.request["tile"] == (None if tile in ("none", None) else 256)


def test_none_is_typed_as_the_pages_say(capsys, monkeypatch):
    code, out, _ = command_line(capsys, monkeypatch, "plan", "--model", TINY_MODEL, "--set", "tile=none", "--json")
    assert code == 0 and json.loads(out)["request"]["tile"] is None


def test_text_that_begins_with_an_at_sign(pipe, tmp_path, capsys, monkeypatch):
    """@FILE is a file's text and @@text a text, of an argument; a text of several words is one everywhere."""
    monkeypatch.chdir(tmp_path)
    Path("cup").write_text("a red cup")
    for typed, text in (("@cup", "a red cup"), ("@@cup", "@cup"), ("@@@cup", "@@cup"), ("a @cup", "a @cup")):
        line = ["plan", typed, "--negative-prompt", typed, "--model", TINY_MODEL, "--json"]
        code, out, err = command_line(capsys, monkeypatch, *line)
        told = json.loads(out)["request"]
        assert (code, told["prompt"], told["negative_prompt"]) == (0, text, text), err
    assert pipe.start("@cup is a cup", size="64x64", frames=1).request["prompt"] == "@cup is a cup"
    Path("q.json").write_text('{"prompt": "@cup"}')
    for line in (["--set", "prompt=@cup"], ["--request", "q.json"]):
        code, _, err = command_line(capsys, monkeypatch, "plan", "--model", TINY_MODEL, *line)
        assert code == 2 and "Give the text of 'cup' itself" in err


def test_the_paths_of_a_request_of_ours_begin_in_this_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/q.json").write_text('{"prompt": "a cup", "image": "first.png", "frames": 5}')
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line(capsys, monkeypatch, "plan", "--model", TINY_MODEL, "--request", "specs/q.json")
    assert code == 2 and "reading first.png: No such file" in err


# --- the command line ------------------------------------------------------------------------------------------------


def _commands(command: click.Command, context: click.Context, words: tuple[str, ...] = ()):
    yield words, command, context
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, click.Context(inner, context, name), (*words, name))


def test_an_option_is_given_once_whatever_the_command(capsys, monkeypatch):
    """The last of two values would win without a word."""
    seen = []
    for words, command, context in _commands(cli, click.Context(cli)):
        for option in command.get_params(context):
            if isinstance(option, click.Option) and not (option.is_flag or option.multiple):
                first, last = option.opts[0], option.opts[-1]
                code, out, err = command_line(capsys, monkeypatch, *words, first, "1", last, "1")
                said = f"Option '{max(option.opts, key=len)}' is given 2 times. Keep one"
                assert (code, out) == (2, "") and err.startswith(f"error: {said}. Type "), (words, option.opts)
                seen.append((*words, last))
    assert {("run", "--seed"), ("run", "--output"), ("warmup", "--profile"), ("recipes", "--folder")} <= set(seen)
    assert len(seen) > 50


def test_a_flag_and_a_repeated_option_may_be_given_twice(capsys, monkeypatch):
    line = ["plan", "--model", TINY_MODEL, "--json", "--json", "--set", "seed=1", "--set", "fps=12"]
    code, out, _ = command_line(capsys, monkeypatch, *line)
    assert code == 0 and json.loads(out)["request"]["seed"] == 1
