"""`cosmos3 quantize --sweep`: what each group of matrices costs, and the policy that is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.checkpoint.policy import read_policy
from cosmos3_core.evidence.quantizing.errors import Errors
from cosmos3_core.evidence.quantizing.quantize import Asked, job_of
from cosmos3_core.evidence.quantizing.session import Session
from cosmos3_core.evidence.quantizing.sweep import Budget, Group, _within, groups_of, sweep

Call = Callable[..., tuple[int, str, str]]
GIVEN = {"size": "64x64", "steps": 2, "frames": 1}
SMALL = ("--backend", "reference", *(part for name, value in GIVEN.items() for part in ("--set", f"{name}={value}")))
INT4 = ("--model", TINY_MODEL, "--format", "w4a16", "--group", 16)
SWEEP = (*INT4, "--calibrate", "prompts.txt", *SMALL, "--sweep", "made.toml")


@pytest.fixture
def quantize(capsys, monkeypatch, tmp_path: Path) -> Call:
    """`cosmos3 quantize ARGUMENTS` in a folder with prompts.txt: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("waves\n")
    return lambda *arguments: cosmos3(capsys, monkeypatch, "quantize", *arguments)


def test_a_policy_keeps_the_worst_groups(quantize: Call) -> None:
    Path("base.toml").write_text('keep_first_layers = 1\nkeep = ["*.add_v_proj"]\n')
    code, out, err = quantize(*SWEEP, "--policy", "base.toml", "--keep-share", 0.4, "--json")
    said, policy = json.loads(out), read_policy(Path("made.toml"))
    groups, kept = said["groups"], [group for group in said["groups"] if group["kept"]]
    assert code == 0 and "group 4 of 4" in err
    assert {group["name"] for group in groups} == {
        f"media {key}, middle layers" for key in ("qkv", "out", "up", "down")
    }
    total = sum(group["bytes"] for group in groups)
    assert 0 < said["kept_share"] <= 0.4 and said["kept_share"] == sum(group["bytes"] for group in kept) / total
    assert 0 < said["error"] < said["error_of_all"] and all(group["error"] > 0 for group in groups)
    assert policy.keep == ("*.add_v_proj", *(module for group in kept for module in group["modules"]))
    assert policy.keep_understanding and policy.keep_first_layers == 1
    # The same again has the same bytes, and quantizing takes the policy.
    before = Path("made.toml").read_bytes()
    code, out, _ = quantize(*SWEEP, "--policy", "base.toml", "--keep-share", 0.4, "--overwrite", "-q")
    assert code == 0 and Path("made.toml").read_bytes() == before
    assert out.splitlines()[-1] == "made.toml" and out.count("  kept\n") == len(kept)
    code, out, _ = quantize(*INT4, "--policy", "made.toml", "-o", "out", "--json", "-q")
    left = {module for group in groups if not group["kept"] for module in group["modules"]}
    assert code == 0 and set(json.loads(out)["quantized"]) == left


def test_a_bound_on_the_error_is_measured(quantize: Call) -> None:
    code, out, _ = quantize(*SWEEP, "--max-error", 0.999, "--json", "-q")
    said = json.loads(out)
    assert code == 0 and said["kept_share"] == 0 and said["error"] == said["error_of_all"]
    bound = 0.8 * said["error_of_all"]
    code, out, _ = quantize(*SWEEP, "--max-error", bound, "--overwrite", "--json", "-q")
    again = json.loads(out)
    assert code == 0 and again["error"] <= bound and 0 < again["kept_share"] < 1
    kept = [group["kept"] for group in again["groups"]]
    assert kept == sorted(kept, reverse=True)
    code, _, err = quantize(*SWEEP, "--max-error", 1e-9, "--overwrite")
    assert code == 1 and "with all but media" in err and "Allow more, or choose a format of more bits" in err


def test_a_quantized_text_tower_is_felt() -> None:
    """Its keys and values are read anew."""
    asked = Asked(model=TINY_MODEL, format="w4a16", group=16)
    job, session = job_of(asked), Session.of(TINY_MODEL, None, "reference", ["waves"], GIVEN, "float32")
    errors = Errors.of(session, lambda steps: None)
    assert errors.error(job.choosing, [f"layers.0.self_attn.to_{x}" for x in "qkv"]) > 0
    assert errors.error(job.choosing, ["layers.1.mlp.up_proj"]) == 0  # which nothing reads
    assert errors.error(job.choosing, []) == 0


def test_groups_are_thirds_of_a_towers_layers() -> None:
    job = job_of(Asked(model="embedded", format="w4a16"))
    groups = groups_of(job)
    assert len(groups) == 12 and sorted(m for group in groups for m in group.modules) == sorted(job.modules)
    down = next(group for group in groups if group.name == "media down, last layers")
    assert (
        down.modules == tuple(f"layers.{i}.mlp_moe_gen.down_proj" for i in (4, 5)) and down.bytes == 2 * 256 * 512 * 2
    )


def test_prompts_that_are_no_file_are_not_looked_for_on_the_disk(tmp_path: Path) -> None:
    asked = Asked(model=TINY_MODEL, format="fp8", calibrate=["waves"], given=GIVEN, backend="reference")
    (tmp_path / "made.toml").touch()
    made = sweep(asked, Budget(share=0.5), tmp_path / "made.toml", lambda *_: None, overwrite=True)
    assert made["prompts"] == 1


def test_a_byte_is_worth_the_square_of_the_error() -> None:
    assert Group("a", (), 100, 0.2).worth > Group("b", (), 40, 0.1).worth


def test_a_share_is_spent_on_the_largest_squares() -> None:
    groups = [Group("a", (), 40, 0.13), Group("b", (), 40, 0.11), Group("c", (), 80, 0.15), Group("d", (), 240, 0.01)]
    assert [group.name for group in _within(groups, 0.2)] == ["a", "b"]
    assert [group.name for group in _within(groups, 0.3)] == ["a", "c"]
    assert _within(groups, 0.05) == []
    assert _within([Group("a", (), 1004, 0.1), Group("b", (), 8996, 0.1)], 0.1) == []  # by less than a part too large


BAD = {
    (*SWEEP,): "--sweep: nothing says how much may stay. Say --keep-share, such as 0.1, or --max-error",
    (*SWEEP, "--keep-share", 0.1, "--max-error", 0.1): "both a share and an error are given",
    (*SWEEP, "--keep-share", 1.5): "--keep-share 1.5: it is a share. Choose a number between 0 and 1",
    (*SWEEP, "--max-error", 0): "--max-error 0.0: it is a share",
    (*SWEEP, "--keep-share", 0.1, "-o", "out"): "Give -o for a checkpoint, or --sweep for a policy",
    (*INT4,): "Give -o for a checkpoint, or --sweep for a policy",
    (*INT4, "-o", "out", "--max-error", 0.1): "--max-error 0.1: nothing is measured. Add --sweep",
    (*INT4, "--sweep", "made.toml", "--keep-share", 0.1): "--sweep: it compares runs of prompts, and there are none",
    (*INT4, "--sweep", "prompts.txt", "--keep-share", 0.1, "--calibrate", "prompts.txt"): "prompts.txt: it exists",
    (*SWEEP[:-1], "prompts.txt", "--keep-share", 0.1, "--overwrite"): "prompts.txt: it is the file of the prompts",
    (*SWEEP, "--keep-share", 0.1, "--policy", "unknown.toml"): "keep has 'layers.9.*', and no module has such a name",
}


@pytest.mark.parametrize("arguments", BAD, ids=lambda arguments: " ".join(map(str, arguments[4:])))
def test_bad_input_is_one_error_before_anything_runs(arguments, quantize: Call, tmp_path: Path) -> None:
    Path("unknown.toml").write_text('keep = ["layers.9.*"]\n')
    before = sorted(tmp_path.iterdir())
    code, out, err = quantize(*arguments)
    assert code == 2 and not out and BAD[arguments] in err
    assert sorted(tmp_path.iterdir()) == before
