"""What files, prompts and packages say reaches the terminal escaped, bounded and on its own line; output that cannot be
written ends nothing."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from command import cosmos3
from safetensors.torch import load_file, save_file
from test_bad_input import CONFIG, SCHEDULER, TEMPLATE, TOKENIZER, TRANSFORMER, Damage, holding, saying, weights
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.cli import main
from cosmos3_core.cli.progress import Display
from cosmos3_core.cli.terminal import LONGEST, Stream, guarded, printable, tell
from cosmos3_core.contract import InputError
from cosmos3_core.engine.stages import Loading
from cosmos3_core.settle import questions

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\nerror: forged\u202e\x7f\x00"
RUN = (
    "run",
    "a cup",
    "--model",
    TINY_MODEL,
    "--size",
    "64x64",
    "--steps",
    "1",
    "--frames",
    "1",
    "--backend",
    "reference",
)
FORBIDDEN = set("\x1b\x07\x9b\r\u202e\x7f\x00\x08\u2028\u0085")


def plain(text: str) -> bool:
    """Nothing of `EVIL` steers, and none of its lines is one."""
    return not FORBIDDEN & set(text) and not any(line.startswith("error: forged") for line in text.splitlines())


@pytest.mark.parametrize(
    ("text", "shown"),
    {
        "plain": ("a cup", "a cup"),
        "letters": ("Ümläut 日本 🎥", "Ümläut 日本 🎥"),
        "escape": ("\x1b[31m", "\\u001b[31m"),
        "bell": ("\x07", "\\u0007"),
        "c1": ("\x9b1m", "\\u009b1m"),
        "newline": ("a\nb", "a\\u000ab"),
        "return": ("a\rb", "a\\u000db"),
        "backspace": ("a\bb", "a\\u0008b"),
        "tab": ("a\tb", "a\\u0009b"),
        "delete": ("\x7f", "\\u007f"),
        "nul": ("\x00", "\\u0000"),
        "right to left": ("a\u202eb", "a\\u202eb"),
        "isolates": ("\u2066a\u2069", "\\u2066a\\u2069"),
        "line separator": ("a\u2028b", "a\\u2028b"),
        "next line": ("a\x85b", "a\\u0085b"),
        "no width": ("a\u200bb", "a\\u200bb"),
        "byte order mark": ("\ufeffa", "\\ufeffa"),
        "surrogate": ("caf\udce9", "caf\\udce9"),
        "tags": ("\U000e0041", "\\U000e0041"),
        "long": ("a" * 3000, f"{'a' * 2000}... (3,000 characters)"),
        "a number": (5, "5"),
    }.values(),
)
def test_a_text_is_one_line_that_steers_nothing(text, shown):
    assert printable(text) == shown


# ---- where such texts come from -------------------------------------------------------------------------------------


def renamed_tensor(name: str) -> Damage:
    def damage(model: Path) -> None:
        tensors = load_file(model / TRANSFORMER)
        save_file(tensors | {name: next(iter(tensors.values())).clone()}, model / TRANSFORMER)

    return damage


SOURCES: dict[str, Damage] = {
    "a pipeline's name": saying("model_index.json", _class_name=EVIL),
    "a config's word": saying(CONFIG, position_embedding_type=EVIL),
    "a config's activation": saying(CONFIG, hidden_act=EVIL),
    "a config's number": saying(CONFIG, hidden_size=EVIL),
    "a config's text of 1 MB": saying(CONFIG, hidden_act=EVIL * 50_000),
    "a dtype": saying(CONFIG, dtype=EVIL),
    "a scheduler's setting": saying(SCHEDULER, **{EVIL: 1}),
    "a scheduler's value": saying(SCHEDULER, prediction_type=EVIL),
    "a scheduler's class": saying(SCHEDULER, _class_name=EVIL),
    "a VAE's width": saying("vae/config.json", base_dim=EVIL),
    "a VAE's architecture": saying("vae/config.json", dim_mult=EVIL),
    "a token": saying("text_tokenizer/tokenizer_config.json", eos_token=EVIL),
    "a template that raises": holding(TEMPLATE, "{{ raise_exception(" + json.dumps(EVIL) + ") }}"),
    "a template that does not compile": holding(TEMPLATE, "{% " + EVIL + " %}"),
    "a tokenizer": holding(TOKENIZER, json.dumps({"version": EVIL})),
    "a tokenizer's panic": saying(TOKENIZER, normalizer={"type": EVIL}),
    "a tensor's name": renamed_tensor(EVIL),
    "a tensor's name of 1 MB": renamed_tensor(EVIL * 30_000),
    "a shard's name": holding(f"{TRANSFORMER}.index.json", json.dumps({"weight_map": {"a": f"{EVIL}.safetensors"}})),
    "a tensor's name in an index": holding(f"{TRANSFORMER}.index.json", json.dumps({"weight_map": {EVIL: "../x"}})),
    "a JSON key": holding("model_index.json", '{"' + EVIL + '": '),
    "a config of all": saying(CONFIG, hidden_size=EVIL, head_dim=EVIL, vocab_size=EVIL),
    "two tensors of one name": weights("transformer", lambda t: t.update({"\x1b[1mlora": t["norm_moe_gen.weight"]})),
}


@pytest.mark.parametrize("damage", SOURCES.values(), ids=SOURCES)
def test_a_model_cannot_steer_the_terminal(damage, tmp_path, capsys, monkeypatch):
    shutil.copytree(TINY, tmp_path / "model")
    damage(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    code, out, err = cosmos3(capsys, monkeypatch, *RUN[:2], "--model", "model", *RUN[4:], "-o", "a.png")
    *progress, message = err.splitlines()
    assert (code, out) == (2, "") and message.startswith("error: ") and progress in ([], ["check weights"])
    assert plain(err) and len(message) < 4 * LONGEST + 100
    assert message.rstrip()[-1].isalnum() or message[-1] in ")`.}']"  # what to do next is whole


EVIL_NAME = "\x1b[2J\rx\u202e\udce9"
TYPED = {
    "a prompt file": ("run", f"@{EVIL_NAME}"),
    "a model": ("run", "a", "--model", EVIL_NAME),
    "an output": ("run", "a", "--model", TINY_MODEL, "-o", EVIL_NAME),
    "a picture": ("run", "a", "--model", TINY_MODEL, "--image", EVIL_NAME, "-o", "a.mp4"),
    "a clip": ("run", "a", "--model", TINY_MODEL, "--video", EVIL_NAME, "-o", "a.mp4"),
    "a request": ("run", "--request", EVIL_NAME),
    "a state": ("run", "--resume", EVIL_NAME),
    "latents": ("run", "a", "--model", TINY_MODEL, "--latents", EVIL_NAME),
    "a field": ("run", "a", "--model", TINY_MODEL, "--set", f"{EVIL_NAME}=1"),
    "a task": ("run", "a", "--model", TINY_MODEL, "--task", EVIL_NAME),
    "a backend": ("run", "a", "--model", TINY_MODEL, "--backend", EVIL_NAME),
    "an option": ("run", f"--{EVIL_NAME}"),
    "a command": (EVIL_NAME,),
    "a number": ("run", "a", "--frames", EVIL_NAME),
    "a manifest": ("show", EVIL_NAME),
    "a recipe": ("recipes", "show", EVIL_NAME),
    "a folder of recipes": ("recipes", "--folder", EVIL_NAME, "list"),
    "a model's capabilities": ("capabilities", "--model", EVIL_NAME),
    "two faults": ("run", "a", "--model", TINY_MODEL, "--set", f"{EVIL_NAME}=1", "--set", f"task={EVIL_NAME}"),
}


@pytest.mark.parametrize("typed", TYPED.values(), ids=TYPED)
def test_what_is_typed_cannot_steer_the_terminal(typed, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cosmos3(capsys, monkeypatch, *typed)
    assert code in (1, 2) and out == "" and plain(err) and "Traceback" not in err


def test_an_error_is_one_line_in_python_too():
    """Whoever logs it has one line, whatever a file or a library's own error holds."""
    said = str(InputError("reading x", f"it is damaged: {EVIL}", "Copy it again"))
    assert said.isprintable() and "owned" in said and said.endswith(". Copy it again")


def test_every_fault_of_a_request_has_its_line(tmp_path, capsys, monkeypatch):
    forged = "x\nerror: forged"
    code, _, err = cosmos3(capsys, monkeypatch, "run", "a", "--model", TINY_MODEL, "--set", f"{forged}=1", "--fps", "0")
    assert code == 2 and plain(err) and len(err.splitlines()) == 3
    assert err.startswith("error: 2 faults in one request:\n  ")


# ---- commands that answer -------------------------------------------------------------------------------------------


def test_a_manifest_cannot_steer_the_terminal(tmp_path, capsys, monkeypatch):
    said = {"request": {"prompt": EVIL, EVIL: EVIL}, "plan": {EVIL: [EVIL], "refused": [{"reason": EVIL}]}, EVIL: EVIL}
    (tmp_path / "a.json").write_text(json.dumps(said | {"origin": {"prompt": EVIL}}))
    code, out, err = cosmos3(capsys, monkeypatch, "show", tmp_path / "a.json")
    assert code == 0 and plain(out) and err == "" and "\\u001b[2J" in out
    code, out, _ = cosmos3(capsys, monkeypatch, "show", tmp_path / "a.json", "--json")
    assert code == 0 and plain(out) and json.loads(out)["request"]["prompt"] == EVIL


def test_a_plan_cannot_steer_the_terminal(capsys, monkeypatch):
    command = ("plan", "a\x1b[2J\rcup\u202e", *RUN[2:], "--negative-prompt", "\x9b31m")
    code, out, _ = cosmos3(capsys, monkeypatch, *command)
    assert code == 0 and plain(out) and "prompt" in out
    code, out, _ = cosmos3(capsys, monkeypatch, *command, "--json")
    assert code == 0 and plain(out) and json.loads(out)["request"]["prompt"] == "a\x1b[2J\rcup\u202e"


def test_backends_cannot_steer_the_terminal(capsys, monkeypatch):
    described = questions.backends
    odd = {"version": EVIL, "reason": EVIL}
    monkeypatch.setattr(questions, "backends", lambda *a: [row | odd for row in described(*a)])
    for json_too in ((), ("--json",)):
        code, out, _ = cosmos3(capsys, monkeypatch, "backends", *json_too)
        assert code == 0 and plain(out)


def test_capabilities_cannot_steer_the_terminal(tmp_path, capsys, monkeypatch):
    shutil.copytree(TINY, tmp_path / "m\x1b[2J")
    saying(CONFIG, dtype=EVIL)(tmp_path / "m\x1b[2J")
    code, out, _ = cosmos3(capsys, monkeypatch, "capabilities", "--model", tmp_path / "m\x1b[2J")
    assert code == 0 and plain(out) and "\\u001b[2J" in out


def test_an_error_of_a_recipe_cannot_steer_the_terminal(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.toml").write_text(f"title = {json.dumps(EVIL.replace(chr(127), '').replace(chr(0), ''))}\n[odd]\n")
    for command in (("list",), ("show", "a")):
        code, out, err = cosmos3(capsys, monkeypatch, "recipes", "--folder", tmp_path, *command)
        assert plain(out) and plain(err) and "Traceback" not in err


def test_what_a_module_prints_by_itself_is_escaped_too(capsys):
    with guarded():
        print("a\x1b[2Jb")
        print("a\x1b[2Jb", file=sys.stderr)
        sys.stderr.write("caf\udce9\n")
    assert capsys.readouterr() == ("a\\u001b[2Jb\n", "a\\u001b[2Jb\ncaf\\udce9\n")


def test_a_bar_of_a_download_moves_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in (
        (Terminal(), "\rweights\\u001b[2J: 5%\n\x1b[A"),
        (io.StringIO(), "\\u000dweights\\u001b[2J: 5%\n\\u001b[A"),
    ):
        guard = Stream(stream)
        guard.write("\rweights\x1b[2J: 5%")
        guard.write("\n\x1b[A")
        assert stream.getvalue() == shown


@pytest.mark.parametrize(
    "name, value", [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1"), ("NO_COLOR", "1"), ("TERM", "dumb")]
)
def test_lines_are_plain_where_there_is_no_terminal(capsys, monkeypatch, tmp_path, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    code, out, err = cosmos3(capsys, monkeypatch, *RUN, "-o", "a.png")
    assert code == 0 and plain(out + err) and "step 1 of 1" in err.splitlines()
    for command in (("plan", *RUN[1:]), ("show", "a.png"), ("--help",)):
        code, out, err = cosmos3(capsys, monkeypatch, *command)
        assert code == 0 and plain(out + err)


@pytest.mark.parametrize("term, moves", [("xterm", True), ("dumb", False)])
def test_a_terminal_has_a_bar(monkeypatch, term, moves):
    monkeypatch.setenv("TERM", term)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", Stream(terminal))
        with Display() as display:
            display.show("steps", 1, 2)
            tell("note: \x1b[2Jodd")
        terminal.flush()
        shown = ""
        while "Jodd" not in shown:
            shown += os.read(ours, 100_000).decode()
    os.close(ours)
    assert ("\x1b[" in shown) is moves and "\x1b[2J" not in shown and "\\u001b[2Jodd" in shown


def test_a_terminal_shows_the_bytes_of_a_load_and_the_time_left(monkeypatch):
    """Of a component that is being loaded, and else nothing of it."""
    ours, theirs = pty.openpty()
    now = [Loading(2 * 10**9, 8 * 10**9, time.perf_counter() - 2), None]
    monkeypatch.setenv("COLUMNS", "150")
    with open(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", Stream(terminal))
        with Display(lambda: now[0]) as display:
            display.show("load generation", 0, 1)
            display.progress.refresh()
            now.pop(0)
            display.show("steps", 1, 2)
            display.progress.refresh()
        terminal.flush()
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    loading, steps = shown[: (at := shown.rindex("steps"))], shown[at:]
    assert re.search(r"2.0 of 8.0 GB, [01].\d GB/s, \d+ s left", loading) and "GB" not in steps


# ---- output that cannot be written ----------------------------------------------------------------------------------


class Broken(io.StringIO):
    """Every write fails."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def called(monkeypatch, out, err, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["cosmos3", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "a full disk": lambda: Broken(errno.ENOSPC),
    "a closed pipe": lambda: Broken(errno.EPIPE),
    "a terminal that is gone": lambda: Broken(errno.EIO),
    "a closed stream": closed,
    "none": lambda: None,
    "the device full": lambda: open("/dev/full", "w", buffering=1),
}


@pytest.mark.parametrize("which", ["stdout", "stderr", "both"])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_run_ends_well_whoever_listens(monkeypatch, tmp_path, stream, which):
    monkeypatch.chdir(tmp_path)
    out = stream() if which != "stderr" else io.StringIO()
    err = stream() if which != "stdout" else io.StringIO()
    assert called(monkeypatch, out, err, *RUN, "-o", "a.png") == 0
    assert Path("a.png").stat().st_size and Path("a.png.json").stat().st_size
    assert which != "stderr" or out.getvalue() == "a.png\n"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 1), (errno.EIO, 1)], ids=["pipe", "full", "terminal"]
)
def test_an_answer_that_does_not_arrive(monkeypatch, number, code):
    err = io.StringIO()
    assert called(monkeypatch, Broken(number), err, "capabilities", "--model", TINY_MODEL) == code
    assert err.getvalue().startswith("error: writing to standard output: ") is bool(code)


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_bad_input_keeps_its_code_whoever_listens(monkeypatch, stream):
    assert called(monkeypatch, stream(), stream(), "run", "a", "--model", TINY_MODEL, "--frames", "8") == 2


SHELL = {
    "full": ("{run} >/dev/full 2>/dev/full", 0),
    "closed": ("{run} <&- >&- 2>&-", 0),
}


def test_a_process_whoever_listens(tmp_path):
    """At its end the interpreter writes what is left in its buffers: only a process shows that."""
    program = f"{sys.executable} -B -m cosmos3"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    lines = []
    for number, (line, code) in enumerate(SHELL.values()):
        run = f"{program} {' '.join(RUN).replace('a cup', 'cup')} -o {number}.png"
        lines.append(f"( {line.format(run=run)} ); test $? = {code} || echo {number}")
    lines.append(f"( {program} capabilities --model {TINY_MODEL} >/dev/full ); test $? = 1 || echo full")
    lines.append(
        f"( {program} capabilities --model {TINY_MODEL} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}} ) || echo head"
    )
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert [line for line in done.stdout.splitlines() if not line.endswith(".png")] == []
    assert all((tmp_path / f"{number}.png").exists() for number in range(len(SHELL)))


# ---- what libraries say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("category", "told"),
    [(UserWarning, True), (RuntimeWarning, True), (DeprecationWarning, False), (FutureWarning, False)],
)
def test_a_warning_of_a_library_is_a_note(capsys, category, told):
    with guarded():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn_explicit("odd\x1b[2J\nsecond", category, "/x/site-packages/PIL/Image.py", 3)
    assert capsys.readouterr().err == ("note: PIL: odd\\u001b[2J\n" if told else "")


def test_a_message_of_a_library_is_a_note(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's
    with guarded():
        logging.getLogger("huggingface_hub.file_download").warning("slow %s", "\x1b[2J")
        logging.getLogger("odd.module").error("broken\nsecond")
        logging.getLogger("odd.module").info("chatter")
    assert capsys.readouterr().err == "note: huggingface_hub: slow \\u001b[2J\nnote: odd: broken\n"


def test_the_streams_and_the_warnings_are_as_before_afterwards(capsys, monkeypatch):
    before = sys.stdout, sys.stderr, logging.lastResort, warnings.showwarning
    cosmos3(capsys, monkeypatch, "--help")
    assert (sys.stdout, sys.stderr, logging.lastResort, warnings.showwarning) == before


def test_a_long_error_keeps_what_to_do_next(capsys, monkeypatch):
    def raising(*_):
        raise InputError("a" * 10_000, "b" * 10_000, "Type the next step")

    monkeypatch.setattr(questions, "backends", raising)
    code, _, err = cosmos3(capsys, monkeypatch, "backends")
    assert code == 2 and err.endswith("Type the next step\n") and len(err) < 5000
