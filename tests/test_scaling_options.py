"""`python -m benchmarks.scaling`: what it is told wrongly is one line before anything is measured."""

from __future__ import annotations

import json

import pytest

from benchmarks import scaling
from cosmos3_core.contract import RunError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--cards", "0", "--list"), "'0' is no number of cards. Type 1 to 1024"),
        (("--cards", "2", "-4", "--list"), "error"),
        (("--out", "damaged.json"), "--out damaged.json: it has no results to go on with"),
        (("--out", "other.json"), "--out other.json: it has no results to go on with"),
        (("--out", "folder"), "writing folder: it is a folder. Pass the name of a file"),
        (("--out", "damaged.json/x.json"), "damaged.json"),
    ],
)
def test_what_cannot_be_is_one_error_before_a_layout_is_run(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "other.json").write_text("[]")
    monkeypatch.setattr(scaling, "launch", lambda *_: pytest.fail("a layout was run"))
    monkeypatch.setattr("sys.argv", ["scaling", "--backend", "reference", "--job", "embedded", *words])
    with pytest.raises(SystemExit) as raised:
        scaling.main()
    assert raised.value.code and said in f"{raised.value.code} {capsys.readouterr().err}"


def test_who_is_stopped_while_writing_leaves_the_results_that_were_there(tmp_path, monkeypatch):
    out = tmp_path / "scaling.json"
    scaling.report({"runs": {"a": 1}}, out, quiet=True)

    def half(path, text):
        path.open("w").write(text[:4])
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.write_text", half)
    with pytest.raises(KeyboardInterrupt):
        scaling.report({"runs": {"b": 2}}, out, quiet=True)
    assert json.loads(out.read_text())["runs"] == {"a": 1} and [one.name for one in tmp_path.iterdir()] == [out.name]


def test_a_layout_that_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    out, ran = tmp_path / "scaling.json", list[str]()

    def launch(cards, command):
        key = command[command.index("--only") + 1]
        ran.append(key)
        if cards == 1:
            raise RunError("process 0 of 1", "the device has no memory left", "Take more")
        row = {"step_s": {"median_s": 1.0}, "decode_s": 1.0, "sent_bytes": [0], "exchanging_s": [0.0]}
        peaks = {"step_peaks": [{"reserved": None}], "decode_peaks": [{"reserved": None}]}
        out.write_text(json.dumps({"runs": dict.fromkeys(ran[1:], row | peaks)}))

    monkeypatch.setattr(scaling, "launch", launch)
    words = ["--job", "embedded", "--cards", "1", "2", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["scaling", "--backend", "reference", *words])
    with pytest.raises(SystemExit, match="embedded cfg=1: process 0 of 1: the device has no memory left"):
        scaling.main()
    assert len(ran) == 3 and capsys.readouterr().out.count("a step 1.000 s") == 2

    def stopped(cards, command):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "launch", stopped)
    with pytest.raises(SystemExit, match="130"):
        scaling.main()
    assert "stopped in embedded cfg=1; the same command goes on" in capsys.readouterr().err
