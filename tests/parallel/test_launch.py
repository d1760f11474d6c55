"""`make test-parallel`: whole runs of `cosmos3 run --parallel`, in processes that it starts: what they write, what ends
them, and what is kept."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import TINY_MODEL

REQUEST = ["a cup", "--model", str(TINY_MODEL), "--size", "80x48", "--frames", "5", "--seed", "3", "--guidance", "3"]
REQUEST += ["--backend", "reference", "--dtype", "float32"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cosmos3", "run", *REQUEST, *arguments]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(*arguments: str, prefix: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    words = command(*arguments)
    return subprocess.run([*(prefix or []), *words[1 if prefix else 0 :]], capture_output=True, text=True, timeout=240)


def wait_for(started: subprocess.Popen[str], line: str) -> None:
    """Read what it says up to a line that begins so."""
    assert started.stderr
    said = ""
    for found in started.stderr:
        said += found
        if found.startswith(line):
            return
    raise AssertionError(said)


def workers(parent: int) -> list[int]:
    """The processes that a launcher has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(status[1]) == parent:
                found.append(int(entry.name))
    return sorted(found)


def test_a_run_of_four_is_the_run_of_one():
    assert run("--steps", "3", "-o", "one.mp4", "--save-latents", "one.safetensors").returncode == 0
    several = run("--steps", "3", "-o", "four.mp4", "--save-latents", "four.safetensors", "--devices", "4")
    assert several.returncode == 0, several.stderr
    assert several.stdout == "four.mp4\n"
    one, four = (load_file(f"{name}.safetensors") for name in ("one", "four"))
    assert torch.equal(one["noise.vision"], four["noise.vision"])
    torch.testing.assert_close(one["final.vision"], four["final.vision"], rtol=1e-4, atol=1e-5)
    parallel = json.loads(Path("four.mp4.json").read_text())["plan"]["parallel"]
    assert {axis: degree for axis, degree in parallel["layout"].items() if degree > 1} == {
        "cfg": 2,
        "ulysses": 2,
        "vae": 2,
    }


def test_options_of_other_programs_share_weights_and_rows():
    """The frames are those of one process, put together by the first one."""
    shared = ["--cfg-parallel-size", "2", "--vae-patch-parallel-size", "2", "--use-hsdp"]
    for name, words in (("one.mp4", []), ("two.mp4", shared)):
        assert (done := run("--steps", "2", "-o", name, *words)).returncode == 0, done.stderr
    one, two = (
        np.stack([frame.to_ndarray(format="rgb24") for frame in av.open(f"{name}.mp4").decode(video=0)]).astype(int)
        for name in ("one", "two")
    )
    assert one.shape == two.shape and abs(one - two).mean() < 0.01


def test_torchrun_is_met_as_it_is():
    prefix = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    assert (done := run("--steps", "2", "-o", "a.mp4", "--parallel", "cfg=2", prefix=prefix)).returncode == 0, done
    other = run("--steps", "2", "-o", "b.mp4", "--parallel", "cfg=2,ulysses=2", prefix=prefix)
    assert other.returncode != 0 and not Path("b.mp4").exists()
    assert other.stderr.count("error: ") == 1, other.stderr
    assert "2 processes of a launcher: the plan is for 4, as cfg=2,ulysses=2" in other.stderr


def test_processes_with_other_seeds_end_before_a_step():
    """A launcher may start each by another command line."""
    prefix = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29518"]
    words = command("--steps", "2", "-o", "a.mp4", "--parallel", "cfg=2")
    prefix += ["--no-python", "sh", "-c", "exec " + shlex.join(words).replace("--seed 3", "--seed $((3 + RANK))")]
    done = subprocess.run(prefix, capture_output=True, text=True, timeout=240)
    assert done.returncode != 0 and not list(Path().glob("a.mp4*"))
    assert "process 1 has another than process 0 (request.seed)" in done.stderr, done.stderr
    assert "step 1" not in done.stderr


@pytest.mark.parametrize(("rank", "parallel"), [(0, "cfg=2,ulysses=2,hsdp=4"), (1, "pipeline=2,tensor=2")])
def test_a_process_that_is_killed_ends_all(rank, parallel):
    words = command("--steps", "1000", "-o", "long.mp4", "--parallel", parallel)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        wait_for(started, "step 100 ")
        processes = workers(started.pid)
        assert len(processes) == 4
        began = time.monotonic()
        os.kill(processes[rank], signal.SIGKILL)
        _, said = started.communicate(timeout=60)
        took = time.monotonic() - began
    assert started.returncode == 1 and took < 20, (took, said)
    assert not [one for one in processes if Path(f"/proc/{one}").exists()]
    assert said.count("error: ") == 1, said
    assert f"error: process {rank} of 4: it was ended by SIGKILL" in said
    if rank:  # the first one holds the state
        assert "steps are kept; go on with: cosmos3 run --resume long.mp4.state.safetensors" in said


def test_what_was_kept_goes_on_on_fewer():
    """From four processes to two, and to one."""
    for steps, parallel in ((100, "cfg=2,tensor=2,hsdp=2"), (500, "pipeline=2")):
        words = command("--steps", "1000", "-o", "a.mp4", "--parallel", parallel)
        if steps > 100:
            words = [*words[:4], "--resume", "a.mp4.state.safetensors", "-o", "a.mp4", "--parallel", parallel]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
            wait_for(started, f"step {steps} ")
            started.send_signal(signal.SIGTERM)
            _, said = started.communicate(timeout=60)
        assert started.returncode == 130, said
        assert "steps are kept" in said
    words = [sys.executable, "-m", "cosmos3", "run", "--resume", "a.mp4.state.safetensors", "-o", "a.mp4"]
    ended = subprocess.run([*words, "--save-latents", "a.safetensors"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert run("--steps", "1000", "-o", "b.mp4", "--save-latents", "b.safetensors").returncode == 0
    one, two = (load_file(f"{name}.safetensors")["final.vision"] for name in "ab")
    assert float((one - two).norm() / two.norm()) < 1e-4
