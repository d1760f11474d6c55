"""`make test-parallel`: whole runs of `cosmos3 run --parallel`, in processes that it starts: what they write, what ends
them, and what is kept."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
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

from cosmos3_core.cli.processes import GRACE

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


def running(process: int) -> bool:
    """Whether it is there, and not only for somebody to be told of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_of_four_is_the_run_of_one():
    assert run("--steps", "3", "-o", "one.mp4", "--save-latents", "one.safetensors").returncode == 0
    several = run("--steps", "3", "-o", "four.mp4", "--save-latents", "four.safetensors", "--devices", "4")
    assert several.returncode == 0, several.stderr
    assert several.stdout == "four.mp4\n"
    one, four = (load_file(f"{name}.safetensors") for name in ("one", "four"))
    assert torch.equal(one["noise.vision"], four["noise.vision"])
    torch.testing.assert_close(one["final.vision"], four["final.vision"], rtol=1e-4, atol=1e-5)
    words = [*command()[:3], "plan", "--request", "four.mp4"]
    again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert "note: that run had 4 devices, as cfg=2,ulysses=2,vae=2, and this one has one device" in again.stderr, again
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


SLURM = """SLURM_JOB_ID=7781 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS={count} SLURM_NTASKS={count} SLURM_STEP_NUM_NODES=2
    SLURM_PROCID={rank} SLURM_LOCALID={rank} SLURM_JOB_NODELIST=localhost,n[2-4] SLURM_LAUNCH_NODE_IPADDR=10.9.9.9"""
OPEN_MPI = """PMIX_NAMESPACE=prterun-host-44@1 OMPI_COMM_WORLD_SIZE={count} OMPI_COMM_WORLD_LOCAL_SIZE={count}
    OMPI_COMM_WORLD_RANK={rank} OMPI_COMM_WORLD_LOCAL_RANK={rank}"""
HYDRA = """PMI_RANK={rank} PMI_SIZE={count} MPI_LOCALRANKID=0 MPI_LOCALNRANKS=1 MASTER_ADDR=localhost
    MASTER_PORT=29533"""


def as_started(variables: str, count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Processes that have what a launcher sets, and no launcher that ends them."""
    found = []
    for rank in range(count):
        words = variables.format(rank=rank, count=count).split()
        environment = os.environ | dict(word.split("=", 1) for word in words)
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        found.append(subprocess.Popen(command(*arguments), **options))
    return found


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    return [(one.returncode, *said) for one in started for said in [one.communicate(timeout=240)]]


@pytest.mark.parametrize("variables", [SLURM, OPEN_MPI, HYDRA], ids=["srun", "mpirun", "mpiexec"])
def test_the_variables_of_other_launchers_are_met_as_they_are(variables):
    """And where there are others than the plan is for, one says so, and none waits for another."""
    first, second = ended(as_started(variables, 2, "--steps", "2", "--parallel", "cfg=2", "-o", "a.mp4"))
    assert first[:2] == (0, "a.mp4\n") and second == (0, "", ""), (first, second)
    assert json.loads(Path("a.mp4.json").read_text())["plan"]["parallel"]["layout"]["cfg"] == 2
    if variables == SLURM:
        said = ended(as_started(variables, 2, "--steps", "2", "--parallel", "ring=3", "-o", "c.mp4"))
        assert [code for code, _, _ in said] == [2, 2] and not Path("c.mp4").exists()
        assert "2 processes of a launcher: the plan is for 3, as ring=3. Add --devices 2" in said[0][2], said
        assert said[1][1:] == ("", "")


def test_processes_whose_launcher_does_not_end_them_end_themselves():
    """As those of srun without --kill-on-bad-exit. The first one says that another is gone, and keeps its steps."""
    started = as_started(OPEN_MPI, 4, "--steps", "1000", "-o", "long.mp4", "--parallel", "cfg=2,ulysses=2")
    wait_for(started[0], "step 100 ")
    started[2].kill()
    found = ended(started)
    assert [code for code, _, _ in found] == [1, 1, -signal.SIGKILL, 1]
    assert [said.count("error: ") for _, _, said in found] == [1, 0, 0, 0], found
    assert re.search("error: (exchanging with the other processes|asking process 0): .* ended", found[0][2]), found[0]
    assert "steps are kept; go on with: cosmos3 run --resume long.mp4.state.safetensors" in found[0][2]


def test_a_signal_that_a_launcher_sends_to_all_stops_all_after_the_same_step():
    """As scancel does, and Ctrl-C at srun and mpirun."""
    started = as_started(SLURM, 2, "--steps", "1000", "-o", "long.mp4", "--parallel", "cfg=2")
    wait_for(started[0], "step 100 ")
    for one in started:
        one.send_signal(signal.SIGTERM)
    (code, _, said), (other, *rest) = ended(started)
    assert (code, other) == (130, 130) and "steps are kept" in said and "error" not in said, said
    assert rest == ["", "stopped\n"], rest


def test_processes_that_do_not_meet_say_where_they_tried():
    taken = "SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_PROCID=0 SLURM_LOCALID=0 MASTER_ADDR=localhost MASTER_PORT={}"
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        found = ended(as_started(taken.format(other.getsockname()[1]), 1, "--parallel", "cfg=2", "-o", "a.mp4"))
    (code, _, said) = found[0]
    assert code == 1 and "meeting the 2 processes of srun at localhost:" in said, said
    assert said.count("error: ") == 1 and "MASTER_PORT to a port that is free there" in said


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
    """From four processes to two, and to one. The launcher alone is told to stop, as by Ctrl-C in a terminal, of which
    its processes hear nothing, or by whoever started it."""
    asked = ((100, "cfg=2,tensor=2,hsdp=2", signal.SIGINT), (500, "pipeline=2", signal.SIGTERM))
    for steps, parallel, number in asked:
        words = command("--steps", "1000", "-o", "a.mp4", "--parallel", parallel)
        if steps > 100:
            words = [*words[:4], "--resume", "a.mp4.state.safetensors", "-o", "a.mp4", "--parallel", parallel]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
            wait_for(started, f"step {steps} ")
            processes = workers(started.pid)
            started.send_signal(number)
            _, said = started.communicate(timeout=60)
        assert started.returncode == 130, said
        assert "steps are kept" in said and "error" not in said and said.count("stopped\n") == 1, said
        assert not [one for one in processes if Path(f"/proc/{one}").exists()]
    words = [sys.executable, "-m", "cosmos3", "run", "--resume", "a.mp4.state.safetensors", "-o", "a.mp4"]
    ended = subprocess.run([*words, "--save-latents", "a.safetensors"], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert run("--steps", "1000", "-o", "b.mp4", "--save-latents", "b.safetensors").returncode == 0
    one, two = (load_file(f"{name}.safetensors")["final.vision"] for name in "ab")
    assert float((one - two).norm() / two.norm()) < 1e-4


def test_a_launcher_that_is_stopped_before_its_processes_are_there_leaves_none():
    with subprocess.Popen(command("--steps", "1000", "--parallel", "cfg=2"), stderr=subprocess.PIPE) as started:
        while len(processes := workers(started.pid)) < 2:
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=60)
    assert started.returncode == 130
    assert not [one for one in processes if Path(f"/proc/{one}").exists()]


def test_processes_whose_launcher_was_killed_end_after_a_step():
    words = command("--steps", "1000", "-o", "long.mp4", "--parallel", "cfg=2")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        wait_for(started, "step 100 ")
        processes = workers(started.pid)
        started.kill()
        began = time.monotonic()
        _, said = started.communicate(timeout=60)  # to the end of the last process that has the pipe
        while any(map(running, processes)) and time.monotonic() - began < GRACE:  # they close the pipe as they end
            time.sleep(0.1)
    assert "steps are kept" in said
    assert len(processes) == 2 and not [one for one in processes if running(one)], "one waited for who is gone"
