"""Nothing is lost and nothing is overwritten: names that a run may not take, what becomes impossible while it goes on,
signals that come while it saves, and processes that are killed.

Device nodes and pipes are private ones in a temporary folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from command import cosmos3
from inputs import photograph
from PIL import Image
from safetensors.torch import load_file
from sources import ROOT
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.files import atomic, locks
from cosmos3_core.files.outputs import read_metadata
from cosmos3_core.runs import keeping, outputs, saved
from cosmos3_core.runs.generation import Generation

SMALL = ["--model", TINY_MODEL, "--size", "64x64", "--steps", "3", "--seed", "4"]
STATE = "cup.png.state.safetensors"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments):
        return cosmos3(capsys, monkeypatch, "run", *arguments)

    return call


def holds() -> dict[str, bytes | None]:
    """Every file of the current folder, the hidden ones too, with its bytes."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(Path().rglob("*"))}


def at_step(monkeypatch, number: int, act) -> None:
    """`act` once this many steps are done."""
    step = Generation.step

    def acting(self):
        done = step(self)
        if done == number:
            act()
        return done

    monkeypatch.setattr(Generation, "step", acting)


def in_a_fork(run, *arguments) -> tuple[int, str]:
    """(exit code, stderr) of a command in a process of its own, which is as warm as this one."""
    reads, writes = os.pipe()
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # OpenMP's threads are not there after a fork, and it would wait for them
        code, _, err = run(*arguments)
        os.write(writes, err.encode())
        os._exit(code)
    os.close(writes)
    with open(reads) as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def interrupt(*numbers: int):
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


# --- names ------------------------------------------------------------------------------------------------------------

OPTIONS = ["-o", "--manifest", "--save-latents"]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_never_replaced(run, option, kind):
    """Nor through a link, and by --overwrite neither."""
    if kind == "pipe":
        os.mkfifo("node.png")
    else:
        try:
            os.mknod("node.png", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this account makes no device nodes")
    os.symlink("node.png", "link.png")
    before = os.lstat("node.png")
    for name in ("node.png", "./link.png"):
        others = [] if option == "-o" else ["-o", "cup.png"]
        code, _, err = run("a cup", *SMALL, *others, option, name, "--overwrite")
        assert code == 2 and "it exists and is not an ordinary file" in err
    assert os.lstat("node.png") == before and sorted(os.listdir()) == ["link.png", "node.png"]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_that_is_there_asks_for_overwrite(run, option):
    Path("old.png").write_bytes(b"precious")
    before, others = holds(), [] if option == "-o" else ["-o", "cup.png"]
    code, _, err = run("a cup", *SMALL, *others, option, "old.png")
    assert code == 2 and "old.png: it exists. Choose another name, or add --overwrite" in err and holds() == before
    code, _, err = run("a cup", *SMALL, *others, option, "old.png", "--overwrite")
    assert code == 0 and Path("old.png").read_bytes() != b"precious", err


def test_a_name_that_nobody_chose_is_a_free_one(run):
    picture = ["a cup", *SMALL, "--frames", "1"]
    names = [run(*picture)[1].strip() for _ in range(2)]
    Path("cosmos3-4-3.png.json").touch()
    names.append(run(*picture)[1].strip())
    assert names == ["cosmos3-4.png", "cosmos3-4-2.png", "cosmos3-4-4.png"]
    assert run(*picture, "--overwrite")[1].strip() == "cosmos3-4.png"


def _inputs() -> dict[str, list[str]]:
    """An input by each way to name one: the options that read it."""
    photograph(64, 64).save("in.png")
    Path("prompt.png").write_text("a cup")
    Path("request.png").write_text(json.dumps({"prompt": "a cup"}))
    shutil.copytree(TINY, "model")
    return {
        "in.png": ["a cup", "--image", "in.png", "--frames", "5"],
        "prompt.png": ["@prompt.png"],
        "request.png": ["--request", "request.png"],
        "model/model_index.json": ["a cup", "--model", "model"],
        "model/transformer/config.json": ["a cup", "--model", "model"],
    }


def test_no_input_is_overwritten_by_whatever_name(run):
    for name, reads in _inputs().items():
        os.link(name, "hard.json")
        os.symlink(name, "soft.json")
        output = ["-o", "cup.mp4" if "--image" in reads else "cup.png"]
        before = holds()
        for spelling in (name, f"./{name}", f"../here/{name}", os.path.abspath(name), "hard.json", "soft.json"):
            for option in ("--manifest", "--save-latents"):
                small = SMALL[2:] if "--model" in reads else SMALL
                code, _, err = run(*small, *reads, *output, option, spelling, "--overwrite")
                assert code == 2 and f"writing {Path(spelling)}" in err and "Choose another file name" in err, err
        assert holds() == before
        os.unlink("hard.json"), os.unlink("soft.json")


def test_a_link_is_written_through(run):
    Path("real").mkdir()
    Path("real/cup.png").touch()
    os.symlink("real/cup.png", "cup.png")
    code, _, err = run("a cup", *SMALL, "-o", "cup.png", "--overwrite")
    assert code == 0 and Path("cup.png").is_symlink() and read_metadata(Path("real/cup.png")), err


def test_names_that_fit_but_for_a_stopped_run_s(run):
    """The longest that the file system takes, with all that a stop adds to it."""
    code, _, err = run("a cup", *SMALL, "-o", f"{'a' * 232}.png")
    assert code == 2 and ".state-9999.safetensors: the name cannot be used" in err and not os.listdir()


def test_what_is_protected_is_found_before_the_run(run, monkeypatch):
    """A file of another user in a sticky folder, and one that not even root may replace."""
    Path("cup.png").touch()
    os.chmod(".", 0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    code, _, err = run("a cup", *SMALL, "-o", "cup.png", "--overwrite")
    assert code == 2 and "it belongs to another user" in err
    monkeypatch.undo()


@pytest.mark.parametrize(("flag", "name"), locks.FLAGS.items())
def test_an_immutable_file_is_found_before_the_run(tmp_path, monkeypatch, flag, name):
    """As the kernel answers where a file has the flag: to set it needs rights that few test machines give."""
    (tmp_path / "cup.png").touch()
    monkeypatch.setattr(locks.fcntl, "ioctl", lambda *arguments: flag.to_bytes(8, sys.byteorder))
    with pytest.raises(atomic.InputError, match=f"it is {name}"):
        atomic.check_writable(tmp_path / "cup.png")


# --- two runs, and what dead ones left --------------------------------------------------------------------------------


def test_of_two_runs_to_one_name_one_is_refused(run, monkeypatch):
    """Whichever of its names the two share, and whether they may overwrite or not."""
    seen = []

    def second():
        monkeypatch.undo()
        monkeypatch.chdir(here)
        for other in (["-o", "cup.png"], ["-o", "b.png", "--manifest", "cup.png.json"], ["-o", "b.png"]):
            seen.append(in_a_fork(run, "a cup", *SMALL, *other, "--overwrite"))

    here = os.getcwd()
    at_step(monkeypatch, 1, second)
    code, out, err = run("a cup", *SMALL, "-o", "cup.png", "--overwrite")
    assert (code, out) == (0, "cup.png\n"), err
    assert [code for code, _ in seen] == [2, 2, 0], seen
    assert all("another run is writing to that name" in said for _, said in seen[:2])
    assert sorted(os.listdir()) == ["b.png", "b.png.json", "cup.png", "cup.png.json"]


def test_a_file_that_came_meanwhile_stays(run, monkeypatch, tmp_path):
    """The result is put elsewhere and named, and no steps are left to go on with."""
    (tmp_path / "out").mkdir()
    at_step(monkeypatch, 2, lambda: (tmp_path / "out" / "cup.png").write_bytes(b"precious"))
    code, out, err = run("a cup", *SMALL, "-o", tmp_path / "out" / "cup.png")
    assert code == 1 and "another file got that name meanwhile" in err and f"It is in {os.getcwd()}/cup.png" in err
    assert (tmp_path / "out" / "cup.png").read_bytes() == b"precious" and read_metadata(Path("cup.png"))
    assert sorted(os.listdir(tmp_path / "out")) == ["cup.png", "cup.png.json"] and os.listdir() == ["cup.png"]


def test_what_dead_runs_left_goes_and_what_is_alive_stays(run):
    program = (
        "import os, sys; from pathlib import Path; from cosmos3_core.files.atomic import alone, atomic\n"
        "with alone((Path('x.png'),)), atomic(Path('y.png')) as temp:\n"
        "    temp.write_bytes(b'half'); print(flush=True); sys.stdin.read()"
    )
    own = [f".cosmos3-part-{locks.HERE}-nothex", f".cosmos3-part-{'0' * 6}-00000000.png", ".cosmos3-notes.txt"]
    for name in own:
        Path(name).touch()  # of another machine, or of nobody of ours
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        alive = sorted(set(os.listdir()) - set(own))
        locks.sweep(Path())
        assert sorted(set(os.listdir()) - set(own)) == alive and len(alive) == 2
        process.kill()
    locks.sweep(Path("nowhere"))
    assert run("a cup", *SMALL, "-o", "cup.png")[0] == 0
    assert sorted(os.listdir()) == sorted([*own, "cup.png", "cup.png.json"])


def test_a_dead_measurements_folder_goes_with_the_next_one(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import sys; from cosmos3_core.files.locks import workspace\n"
        "with workspace() as folder:\n"
        "    (folder / 'job').mkdir(); (folder / 'job' / 'a').touch(); print(flush=True); sys.stdin.read()"
    )
    here = {"env": os.environ | {"TMPDIR": str(tmp_path)}, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], **here) as process:
        process.stdout.readline()
        (other,) = os.listdir(tmp_path)
        with locks.workspace() as folder:
            assert sorted(os.listdir(tmp_path)) == sorted([other, folder.name])
        assert os.listdir(tmp_path) == [other]
        process.kill()
    with locks.workspace() as folder:
        assert os.listdir(tmp_path) == [folder.name] and folder.stat().st_mode & 0o77 == 0
    assert os.listdir(tmp_path) == []


# --- what becomes impossible -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["removed", "a folder in its place"])
def test_a_result_that_cannot_be_written_any_more_is_put_elsewhere(run, monkeypatch, tmp_path, what):
    def spoil():
        shutil.rmtree(tmp_path / "out")
        if what != "removed":
            (tmp_path / "out" / "cup.png").mkdir(parents=True)

    (tmp_path / "out").mkdir()
    at_step(monkeypatch, 3, spoil)
    code, out, err = run("a cup", *SMALL, "-o", tmp_path / "out" / "cup.png", "--save-latents", "cup.st")
    assert code == 1 and f"It is in {os.getcwd()}/cup.png instead" in err and "Traceback" not in err
    assert Image.open("cup.png").size == (64, 64) and len(load_file("cup.st")) == 2
    beside = Path("cup.png.json") if what == "removed" else tmp_path / "out" / "cup.png.json"
    assert json.loads(beside.read_text())["output"]["file"] == "cup.png"


def test_a_result_that_is_put_elsewhere_has_its_manifest_beside_it(run, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    Path("cup.png").write_bytes(b"precious")
    at_step(monkeypatch, 3, lambda: shutil.rmtree(tmp_path / "out"))
    code, _, err = run("a cup", *SMALL, "-o", tmp_path / "out" / "cup.png")
    assert code == 1 and f"It is in {os.getcwd()}/cup-2.png instead" in err
    assert sorted(os.listdir()) == ["cup-2.png", "cup-2.png.json", "cup.png"]


def test_steps_that_cannot_be_kept_beside_the_output_are_kept_elsewhere(run, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    stop = interrupt(signal.SIGTERM)
    at_step(monkeypatch, 2, lambda: (shutil.rmtree(tmp_path / "out"), stop()))
    code, _, err = run("a cup", *SMALL, "-o", tmp_path / "out" / "cup.png")
    state = f"{os.getcwd()}/{STATE}"
    assert code == 130 and f"2 of 3 steps are kept; go on with: cosmos3 run --resume {state} -o {tmp_path}/out" in err
    monkeypatch.undo()
    assert Path(state).is_file()


def test_an_input_output_error_is_a_line(tmp_path):
    with pytest.raises(atomic.Unwritable, match="cannot be written to"), atomic.atomic(tmp_path / "x.json") as temp:
        temp.unlink()
        raise OSError(errno.EIO, "Input/output error")


# --- signals ----------------------------------------------------------------------------------------------------------

THREE = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.fixture
def whole(run) -> torch.Tensor:
    """The final latents of the request, undisturbed."""
    assert run("a cup", *SMALL, "-o", "whole.png", "--save-latents", "whole.st")[0] == 0
    return load_file("whole.st")["final.vision"]


OUTPUTS = ["cup.png", "cup.png.json", "cup.st"]


def resumed(run, state: str = STATE) -> torch.Tensor:
    code, _, err = run("--resume", state, "-o", "cup.png", "--save-latents", "cup.st")
    assert code == 0, err
    assert sorted(path.name for path in (*Path().glob("cup*"), *Path().glob(".*"))) == OUTPUTS
    return load_file("cup.st")["final.vision"]


@pytest.mark.parametrize("where", ["in a step", "in a prediction", "while saving", "in the decode"])
def test_three_signals_lose_nothing(run, whole, monkeypatch, where):
    shoot = interrupt(*THREE)
    with monkeypatch.context() as patch:
        if where == "in a step":
            at_step(patch, 2, shoot)
        elif where == "in a prediction":
            from cosmos3_core.engine.passes import Passes

            velocity, calls = Passes.velocity, iter(range(9))
            patch.setattr(
                Passes, "velocity", lambda self, state: (next(calls) == 2 and shoot(), velocity(self, state))[1]
            )
        elif where == "while saving":
            write = saved.write_tensors
            patch.setattr(saved, "write_tensors", lambda *a, **k: (shoot(), write(*a, **k), shoot()))
            at_step(patch, 2, interrupt(signal.SIGTERM))
        else:
            frames = Generation.frames
            patch.setattr(Generation, "frames", lambda self: (shoot(), (yield from frames(self)))[1])
        code, _, err = run("a cup", *SMALL, "-o", "cup.png")
    done = 3 if where == "in the decode" else 2
    assert code == 130 and f"{done} of 3 steps are kept" in err and "Traceback" not in err, err
    assert not list(Path().glob(".*"))
    assert torch.equal(resumed(run), whole)


def test_signals_while_the_result_is_written_do_not_undo_it(run, monkeypatch):
    put = outputs.write_image
    monkeypatch.setattr(
        outputs, "write_image", lambda *a, **k: (interrupt(*THREE)(), put(*a, **k), interrupt(*THREE)())
    )
    code, out, err = run("a cup", *SMALL, "-o", "cup.png")
    assert (code, out) == (0, "cup.png\n"), err
    assert sorted(os.listdir()) == ["cup.png", "cup.png.json"]


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_run_is_saved_while_it_goes_on_and_is_named_at_the_next(run, whole, monkeypatch, capsys):
    """As SIGKILL leaves it: in a process of its own, after the second step."""
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "EVERY", 0.0)
        patch.setattr(keeping, "SHARE", 1e9)

        def die():
            while not Path(STATE).exists() or list(Path().glob(".cosmos3-part*")):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        at_step(patch, 2, die)
        assert in_a_fork(run, "a cup", *SMALL, "-o", "cup.png")[0] == -signal.SIGKILL
    assert Path(STATE).exists() and not Path("cup.png").exists() and list(Path().glob(".cosmos3-lock*"))
    code, _, err = run("a cup", *SMALL, "-o", "cup.png", "--dry-run")
    assert code == 0 and not list(Path().glob(".*"))
    first = Path(STATE).read_bytes()
    code, _, err = run("a bowl", *SMALL, "-o", "cup.png", "--frames", "1")
    resume = f"cosmos3 run --resume {STATE} -o cup.png"
    assert code == 0 and f"note: an earlier run of cup.png was stopped; to go on with it instead: {resume}" in err
    assert Path(STATE).read_bytes() == first
    os.unlink("cup.png"), os.unlink("cup.png.json")
    assert torch.equal(resumed(run), whole)


def test_saving_is_bounded(monkeypatch):
    """A saving that took 2 s comes every 200 s, a fast one every minute, and a run of less than one has none."""
    keeper = keeping.Keeper(None, Path("x"))
    assert keeper.interval == 60
    keeper.cost = 2.0
    assert keeper.interval == 200


def test_a_run_that_was_saved_leaves_nothing_behind(run, monkeypatch):
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    monkeypatch.setattr(keeping, "SHARE", 1e9)
    saves = []
    save = saved.save
    monkeypatch.setattr(saved, "save", lambda *a: (saves.append(a[2]["index"]), save(*a))[1])
    Path(STATE).write_bytes(b"of an earlier run")
    assert run("a cup", *SMALL, "-o", "cup.png")[0] == 0
    assert saves and sorted(os.listdir()) == ["cup.png", "cup.png.json", STATE]
    assert Path(STATE).read_bytes() == b"of an earlier run"


def test_a_saving_that_fails_does_not_end_the_run(run, monkeypatch):
    monkeypatch.setattr(keeping, "EVERY", 0.0)
    monkeypatch.setattr(keeping, "SHARE", 1e9)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saved, "save", full)
    code, _, err = run("a cup", *SMALL, "-o", "cup.png")
    assert code == 0 and "Traceback" not in err, err


def test_a_measurement_ends_with_its_parent(tmp_path):
    """A worker of `recipes validate` whose parent was killed."""
    (tmp_path / "slow.py").write_text(
        "import time; from cosmos3_core.evidence import worker\n"
        "worker.measure = lambda job, say: (print('measuring', flush=True), time.sleep(600))\n"
        "worker.main()"
    )
    program = (
        "from functools import partial\nfrom cosmos3_core.evidence import worker\n"
        "worker.__name__ = 'slow'\n"
        f"job = worker.Job('x', 'baseline', True, 'x', None, {str(tmp_path)!r}, 0.0)\n"
        "worker.launch(job, partial(print, flush=True))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout.readline() == "measuring\n"
    parent.kill()
    assert parent.communicate(timeout=60)[0] == ""  # ends when both have closed it
