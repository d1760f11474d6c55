"""`python -m benchmarks.all`: what is measured anew, and what stays."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import devices
import pytest

from benchmarks import all as every
from benchmarks.all import JOBS, Job, chosen, run, slug
from benchmarks.common import served


@pytest.mark.parametrize(
    ("device", "name"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("AMD Instinct MI300X", "mi300x"), ("CPU", "cpu")],
)
def test_a_device_has_a_short_name(device, name):
    assert slug(device) == name


def test_jobs_are_of_modules_that_are_there_and_fit_into_a_call():
    assert len({job.name for job in JOBS}) == len(JOBS)
    for job in JOBS:
        module, *options = job.command.format(backend="cuda").split()
        assert find_spec(module) and job.costs < 600, job.name
        known = Path(find_spec(module).origin).read_text()
        assert all(f'"{option}"' in known for option in options if option.startswith("--")), job.name


def test_no_job_begins_that_does_not_fit():
    jobs = [Job("a", 50, ""), Job("b", 30, ""), Job("c", 10, "")]
    assert [job.name for job in chosen(jobs, 65)] == ["a", "c"]


def test_a_result_is_fresh_while_the_sources_are(tmp_path):
    job = Job("a", 1, "")
    assert not job.fresh(tmp_path, "h200", "1")
    (tmp_path / "a-h200.json").write_text(json.dumps({"environment": {"sources_sha256": "1"}}))
    assert job.fresh(tmp_path, "h200", "1") and not job.fresh(tmp_path, "h200", "2")
    assert not job.fresh(tmp_path, "h100", "1")


def test_a_job_that_fails_says_why_and_keeps_the_result(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")
    assert run(Job("a", 1, "benchmarks.nothing"), "cuda", file).endswith("No module named benchmarks.nothing")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_a_list_measures_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["all", "--backend", "reference", "--list", "--results", str(tmp_path)])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was run"))
    every.main()
    said = capsys.readouterr().out
    assert all(re.search(rf"^{job.name} +{job.costs} s  to be measured$", said, re.M) for job in JOBS)


def test_every_format_that_an_h200_has_a_kernel_for_is_measured():
    jobs = " ".join(job.command for job in JOBS if job.name.startswith("quantized-"))
    assert sorted(re.findall(r"--format (\S+)", jobs)) == sorted(served(devices.backend("cuda"), "sm_90"))
