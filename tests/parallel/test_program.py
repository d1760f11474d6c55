"""`make test-parallel`: a Python program that torchrun starts once for each device, as docs/parallel.md has it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sources import ROOT
from tiny_model import TINY_MODEL

import cosmos3

SMALL = {"frames": 5, "size": "80x48", "steps": 3, "guidance": 3, "seed": 7}
PROGRAM = """
import os
import threading
import cosmos3
import torch

pipe = cosmos3.load(MODEL, backend="reference", dtype="float32", parallel="cfg=2,vae=2")
clip = pipe("a cup", **SMALL)
clip.save("cup.mp4")
try:
    clip.save("cup.mp4")
except cosmos3.InputError as error:
    said = error.found  # in both, though one has looked
picture = pipe("a cup", **SMALL | {"frames": 1, "seed": None}, output="cup.png", image=None)
event = threading.Event()
try:  # the first one's decides
    pipe("a cup", **SMALL, cancel=event, on_step=lambda run: event.set() if os.environ["RANK"] == "0" else None)
except cosmos3.Cancelled as stop:
    done = stop.run.index
    stop.run.save("half.safetensors")
    again = pipe.resume("half.safetensors").run()
rank = os.environ["RANK"]
try:
    pipe("a cup", **SMALL | {"seed": int(rank)})
except cosmos3.RunError as error:
    other = error.found
try:
    pipe("a cup", **SMALL | {"guidance": 1})
except cosmos3.InputError as error:
    refused = error.found
facts = dict(said=said, seed=picture.seed, done=done, same=torch.equal(again.latents, clip.latents), other=other,
             refused=refused)
torch.save((clip.latents, clip.tensor, facts), f"{rank}.pt")
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def torchrun(count: int, program: str) -> subprocess.CompletedProcess[str]:
    text = program.replace("MODEL", repr(str(TINY_MODEL))).replace("SMALL", repr(SMALL))
    Path("program.py").write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--master-port", "29519"]
    return subprocess.run([*command, "program.py"], capture_output=True, text=True, timeout=240)


def test_a_program_of_two_processes_makes_what_one_does_in_each():
    done = torchrun(2, PROGRAM)
    assert done.returncode == 0, done.stderr
    alone = cosmos3.load(TINY_MODEL, backend="reference", dtype="float32")("a cup", **SMALL)
    (latents, frames, facts), (*others, same) = (torch.load(f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(latents, others[0]) and torch.equal(frames, others[1])
    torch.testing.assert_close(latents, alone.latents, rtol=1e-4, atol=1e-5)
    assert abs(frames.numpy().astype(int) - alone.numpy.astype(int)).mean() < 0.01
    assert facts == same and facts["same"] and facts["done"] == 1, (facts, same)
    assert facts["said"] == "it exists"
    assert facts["other"] == "process 1 has another than process 0 (request.seed)"
    assert "the request has no guidance" in facts["refused"]
    layout = json.loads(Path("cup.png.json").read_text())["plan"]["parallel"]["layout"]
    assert (layout["cfg"], layout["vae"]) == (2, 2)


def test_the_page_s_program_runs():
    page = (ROOT / "docs" / "parallel.md").read_text()
    done = torchrun(2, re.findall("^```python\n(.*?)^```$", page, re.M | re.S)[0])
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("ball.mp4.json").read_text())["plan"]["parallel"]["layout"]["cfg"] == 2


def test_a_program_of_another_number_of_processes_says_so():
    done = torchrun(3, 'import cosmos3\ncosmos3.load(MODEL, backend="reference", parallel="cfg=2")')
    assert done.returncode != 0
    assert "3 processes of torchrun: `parallel` cfg=2 takes 2. Start 2, or name a layout of 3" in done.stderr
