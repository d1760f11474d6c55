"""Recipes of runs that make more than a picture: each modality is judged by itself, and the record is held to that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from inputs import clip, photograph

from cosmos3_core.contract import InputError
from cosmos3_core.engine.engine import Engine
from cosmos3_core.evidence import quality, recipe, record, settle, state, verdict, worker
from cosmos3_core.evidence.recipe import Recipe, load_all
from cosmos3_core.evidence.validate import validate
from cosmos3_core.sampling.state import views
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.settle import Wish
from cosmos3_core.settle import settle as settle_wish

pytestmark = pytest.mark.usefixtures("one_picture")
ROOT = Path(__file__).parents[1]
OURS = load_all(ROOT / "cosmos3_core" / "recipes")
EMBEDDED = [one for one in OURS if isinstance(one, Recipe) and one.run["model"] == "embedded"]
HEAD = 'title = "t"\n[run]\nmodel = "embedded"\nbackend = "reference"\nsteps = 2\nseed = 3\n'
TAIL = '\n[device]\nname = "CPU"\n[plan]\nattention = "eager"\n'
POLICY = 'task = "policy"\nsize = "80x80"\nframes = 5\n[run.request]\nimage = "a.png"\ndomain = "pusht"\nrollout = 2\n'
SOUND = 'task = "t2v"\nsize = "64x64"\nframes = 5\n[run.request]\nsound = true\n'


@pytest.fixture
def written(tmp_path):
    photograph(80, 80).save(tmp_path / "a.png")
    clip(tmp_path / "c.mp4")

    def write(name: str, run: str) -> Recipe:
        (tmp_path / f"{name}.toml").write_text(HEAD + run + TAIL)
        return recipe.load(tmp_path / f"{name}.toml")

    return write


@pytest.mark.parametrize("one", EMBEDDED, ids=lambda one: one.name)
def test_what_is_judged_is_what_the_request_leaves_to_the_model(one):
    given = one.given()
    settled = settle_wish(Wish(model="embedded", given=given, backend="reference"))
    items = items_of(settled.request.of_chunk(0), settled.model.config)
    made = [item.modality for item in items if not item.control and len(item.clean) < item.frames]
    assert list(one.made) == made


def test_every_scenario_of_the_embedded_model_has_a_recipe_with_a_record():
    scenarios = {one.scenario for one in EMBEDDED if one.validated}
    assert scenarios >= {"t2i", "t2v", "i2v", "v2v", "t2vs", "i2vs", "v2vs", "transfer"}
    assert scenarios >= {
        "forward-dynamics",
        "policy",
        "inverse-dynamics",
        "video-policy",
        "edit",
        "keyframes",
        "extend",
    }


def test_sound_and_actions_are_judged_by_themselves_and_in_the_record(written):
    wanted = {
        "embedded-policy-80x80-cpux1": (POLICY, "action", "error"),
        "embedded-t2vs-64x64-cpux1": (SOUND, "sound", "snr_db"),
    }
    for name, (run, modality, compared) in wanted.items():
        one = written(name, run)
        ((_, found),) = validate([one], launch=worker.measure)
        one = recipe.load(one.path)
        names = verdict.quantities(("vision", modality))
        assert tuple(check["quantity"] for check in found["verdict"]["checks"]) == names
        assert all(check["value"] > 0 for check in found["verdict"]["checks"])
        assert compared in found["comparisons"]["output"]["restart"] and set(names) <= set(
            found["samples"]["candidate"]
        )
        assert state.state_of(one).name == "validated"
        for change, message in tampered(modality, compared).items():
            bent = json.loads(record.path_of(one).read_text())
            raw = {key: entry["raw"] for key, entry in bent["measurements"].items()}
            take_out(change, bent, raw)
            bent = {key: value for key, value in bent.items() if key != "sha256"} | {"measurements": raw}
            record.write(one, record.seal(bent))
            with pytest.raises(InputError, match=message):
                record.load(recipe.load(one.path))
            record.write(one, found)


def tampered(modality: str, compared: str) -> dict[tuple, str]:
    """What is taken out of a record, by where it stands, and what is said of it."""
    first = f"{modality}_velocity_first"
    return {
        ("comparisons", "error", "candidate", first): f"it judges {first} otherwise",
        ("comparisons", "output", "candidate", compared): f"is not compared in {compared}",
        ("samples", "candidate", first): f"samples of its {first} are missing",
        ("raw", "candidate", "tensors", first): f"has no {first}",
    }


def take_out(change: tuple, bent: dict, raw: dict) -> None:
    *way, last = change
    place = {"raw": raw}.get(way[0]) or bent[way[0]]
    for key in way[1:]:
        place = place[key]
    del place[last]


def test_a_fault_in_the_actions_alone_fails_the_verdict(written, monkeypatch):
    """A hundredth of the latents: over all of them together it would be within the bound."""
    one, predict, shares = written("embedded-policy-80x80-cpux1", POLICY), Engine.predict, []

    @torch.inference_mode()
    def wrong(engine, states):
        velocities = predict(engine, states)
        for velocity, one in zip(velocities, states, strict=True):
            (part,) = (view for view, item in zip(views(velocity, one.items), one.items, strict=True) if item.used)
            before = velocity.clone()
            part.mul_(1.1)
            shares.append(quality.relative_l1(velocity, before))
        return velocities

    def launch(job, say):
        with monkeypatch.context() as patch:
            if job.role == settle.CANDIDATE:
                patch.setattr(Engine, "predict", wrong)
            worker.measure(job, say)

    ((_, found),) = validate([one], launch=launch)
    held = {check["quantity"]: check["held"] for check in found["verdict"]["checks"]}
    assert [name for name, good in held.items() if not good][0] == "action_velocity_first" and held["velocity_first"]
    assert found["state"] == "runs" and max(shares) < found["verdict"]["checks"][0]["bound"]


def test_files_of_every_kind_are_digests_in_the_record_and_make_it_stale(written, tmp_path):
    run = 'task = "keyframes"\nsize = "64x64"\nframes = 9\n[run.request]\nkeyframe = { 0 = "a.png", 8 = "b.png" }\n'
    photograph(90, 80).save(tmp_path / "b.png")
    one = written("embedded-keyframes-64x64-cpux1", run)
    ((_, found),) = validate([one], launch=worker.measure)
    assert all(one.startswith("sha256:") for one in found["request"]["keyframe"].values())
    one = recipe.load(one.path)
    assert state.state_of(one).name == "validated"
    photograph(91, 80).save(one.path.parent / "b.png")
    assert state.state_of(one).why.endswith("since then the keyframe.8 b.png changed")


def test_keyframes_in_one_text_are_refused_with_what_to_write(written):
    run = 'task = "keyframes"\nsize = "64x64"\nframes = 9\n[run.request]\nkeyframe = "0=a.png"\n'
    with pytest.raises(InputError, match="Write a table: keyframe = "):
        written("embedded-keyframes-64x64-cpux1", run)


def test_a_given_sound_is_not_judged_and_names_the_scenario(written):
    given = SOUND.replace("sound = true", 'audio = "c.mp4"')
    assert written("embedded-t2vs-64x64-cpux1", given).made == ("vision",)


def test_the_ratio_of_sound_to_its_difference_against_known_values():
    sound = torch.sin(torch.arange(2000.0))[None].repeat(2, 1)
    assert quality.snr(sound, sound) is None
    assert quality.snr(1.1 * sound, sound) == pytest.approx(20)
    assert quality.snr(sound, torch.zeros_like(sound)) == 0
