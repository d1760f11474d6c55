"""What a model makes of the world's cases, through the engine that everybody runs, and how far that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...contract import Backend, Device
from ...engine.engine import Engine
from ...files.memory import Media
from ...model.vae import VideoVAE
from ...plan.placement import ALL_RESIDENT
from ...runs import generation
from ...runs.generation import Generation
from ...settle import Settled, Wish, ground_of, settle
from .cases import FRAMES, Case, cases_of, pictures
from .inverse import Seen, agent_path, judge, onsets, pitch, see, turn
from .render import PITCHES
from .world import HITTING, QUIET, SHAPES, SIZE

Values = Mapping[str, float | None]
"""By measure what one case comes to: 1 or 0 where it is right or wrong, else a number; None where it is not judged."""
REACHED = 10.0
"""Pixels from its goal within which an agent has reached it: less than a ring's radius."""
NEAR = 0.05
"""Of the picture's width, within which forward dynamics puts the agent."""
IN_TIME = 2.0
"""Frames between the impact that is seen and the one that is heard."""
IN_TUNE = 0.06
"""Of its frequency, by which a tone may be off: a semitone, and less than resampling from 44.1 to 48 kHz by mistake."""
GIVEN_FRAMES = 5
"""Of the clip that v2v goes on with: two latent frames."""
LEVELS = (0.2, 0.5, 0.8)
"""Where in the schedule velocities are compared, as shares of its steps."""


class Runner:
    """One model, loaded once, and requests on it. `given` are fields of every request; `wish` and `on` are as for
    `settle`."""

    def __init__(self, wish: Wish, given: Mapping[str, Any], on: tuple[Backend, Device] | None = None):
        self.wish, self.given = replace(wish, resident=True), given
        self.ground = ground_of(self.wish, on)
        self.engine = Engine(self.ground.model, self.ground.plan, placement=ALL_RESIDENT)

    @cached_property
    def vae(self) -> VideoVAE:
        return self.engine.open_weights().vae(self.engine.target, "encoder", "decoder")

    def check(self, task: str) -> None:
        """Raises InputError if the model or the plan cannot serve what a task asks for. Reads no weight."""
        (case,) = cases_of(task, 1)
        fields, media = asked(case, task)
        self._settled(case, _handed(media), fields)

    def _settled(self, case: Case, handed: Sequence[Media], fields: Mapping[str, Any]) -> Settled:
        said = {one.field: one.said for one in handed}
        given = {"prompt": case.prompt, "seed": case.seed, **said, **fields, **self.given}
        return settle(replace(self.wish, given=given), ground=self.ground)

    def settled(self, case: Case, **fields: Any) -> Settled:
        """A request for a case."""
        return self._settled(case, (), fields)

    def prepared(self, case: Case, media: Mapping[str, Any], **fields: Any) -> Generation:
        """A run before its first step, which begins with `media` by field."""
        handed = _handed(media)
        return generation.prepare(self.engine, self._settled(case, handed, fields), media=handed)

    def run(self, case: Case, media: Mapping[str, Any] | None = None, **fields: Any) -> Generation:
        """A run after its last step."""
        made = self.prepared(case, media or {}, **fields)
        while not made.done:
            made.step()
        return made


def _handed(media: Mapping[str, Any]) -> list[Media]:
    return [Media.of(name, value) for name, value in media.items()]


def asked(case: Case, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the fields of the request by which a case of a task is judged, of the world's own size and rate, and the media
    that it begins with, by field)."""
    frames = pictures(case.clip)
    if task in ("policy", "inverse-dynamics", "forward-dynamics"):
        fields = {"task": task, "domain": "pusht", "fps": case.fps, "chunk": FRAMES - 1}
        if task == "forward-dynamics":
            fields["actions"] = case.scenes.actions[0].tolist()
        return fields, {"video": frames} if task == "inverse-dynamics" else {"image": frames[0]}
    name = "t2v" if task in ("velocity", "codec") else task.removesuffix("s")
    fields = {"task": name, "size": f"{SIZE}x{SIZE}"}
    if name != "t2i":
        fields |= {"frames": FRAMES, "fps": case.fps}
    if task.endswith("s") and task != name:
        fields["sound"] = True
    if task == "velocity":
        fields["guidance"] = 1.0
    if name == "i2v":
        return fields, {"image": frames[0]}
    return fields, {"video": frames[:GIVEN_FRAMES]} if name == "v2v" else {}


def shown(made: Generation) -> Tensor:
    """A run's picture or clip as fp32 [3, F, H, W] in [0, 1]."""
    return _drawn(list(made.frames()))


def _watched(pixels: Tensor, frames: int) -> Seen:
    """What is seen of a clip that should have so many frames: of another length nothing counts."""
    return see(pixels) if pixels.shape[1] == frames else Seen({}, {}, {})


def _psnr(found: Tensor, wanted: Tensor) -> float:
    """In dB, of pixels in [0, 1]; 0 where there are not so many as there should be."""
    if found.shape != wanted.shape:
        return 0.0
    return float(-10 * torch.log10((found - wanted).square().mean().clamp_min(1e-10)))


def _drawn(frames: Sequence[np.ndarray]) -> Tensor:
    """Frames uint8 [H, W, 3] as `shown`."""
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 255


def of_clips(runner: Runner, case: Case, task: str) -> Values:
    """Colour, shape, number, direction and motion of what is seen; the PSNR in dB of the frames that were given; and
    whether an impact is heard in time and in tune, and nothing where there is none."""
    fields, media = asked(case, task)
    made = runner.run(case, media, **fields)
    pixels = shown(made)
    seen = _watched(pixels, case.scenes.frames)
    verdict = judge(seen, case.scenes, 0)
    values: dict[str, float | None] = {
        key: None if said is None else float(said) for key, said in vars(verdict).items()
    }
    if before := media.get("video") or [one for one in (media.get("image"),) if one is not None]:
        values["given"] = _psnr(pixels[:, : len(before)], _drawn(before))
    return values | _heard(made, case, seen.path.get(case.subject)) if "sound" in fields else values


def _heard(made: Generation, case: Case, path: np.ndarray | None) -> dict[str, float | None]:
    """Whether the first sound begins where the subject is seen to turn, whether its pitch is that of something which
    hits, and whether a scene without an impact is silent."""
    sound, turned = made.sound(), None if path is None else turn(path)
    wave = np.asarray(sound.samples) if sound else np.zeros((2, 0), dtype=np.float32)
    begins = onsets(wave) if sound else []
    if case.kind in QUIET:
        return {"silence": float(sound is not None and not begins)}
    if case.kind not in HITTING:
        return {}
    in_time = bool(begins) and turned is not None and abs(begins[0] * case.fps - turned) <= IN_TIME
    shapes = case.scenes.shape[0][case.scenes.shape[0] >= 0]
    tones = [PITCHES[SHAPES[shape]] for shape in shapes]
    in_tune = bool(begins) and any(abs(pitch(wave, begins[0]) / tone - 1) <= IN_TUNE for tone in tones)
    return {"sound": float(in_time), "pitch": float(in_tune)}


def _acted(runner: Runner, case: Case, task: str) -> Generation:
    fields, media = asked(case, task)
    return runner.run(case, media, **fields)


def of_policy(runner: Runner, case: Case, task: str) -> Values:
    """Where the agent is sent last, against where it had to go."""
    rows, _ = _acted(runner, case, task).actions()
    away = np.hypot(*((rows[-1] + 1) * SIZE / 2 - case.agent[-1]))
    return {"reached": float(away <= REACHED), "pixels": float(away)}


def of_inverse(runner: Runner, case: Case, task: str) -> Values:
    """The error of the actions that a clip is said to show, as a share of their range."""
    rows, _ = _acted(runner, case, task).actions()
    return {"error": float(np.abs(rows - case.scenes.actions[0]).mean()) / 2}


def of_forward(runner: Runner, case: Case, task: str) -> Values:
    """How far the agent is from where its actions lead, as a share of the picture's width, at the last frame and in the
    mean of all: all of it where no agent is seen."""
    path = agent_path(_watched(shown(_acted(runner, case, task)), FRAMES))
    away = np.ones(FRAMES) if path is None else np.nan_to_num(np.hypot(*(path - case.agent).T) / SIZE, nan=1.0)
    return {"error": float(away[-1]), "within": float(away[-1] <= NEAR), "path": float(away.mean())}


def of_velocity(runner: Runner, case: Case, task: str) -> Values:
    """The error of the velocity that is predicted for a clip of the world under noise, as a share of the true one's
    norm: a number that moves where shares of right clips do not yet."""
    fields, media = asked(case, task)
    state = runner.prepared(case, media, **fields).begin()
    clean = runner.vae.encode(case.clip).flatten().to(state.x)
    noise, errors = state.x.clone(), []
    for level in LEVELS:
        state.index = int(level * state.steps)
        sigma = float(state.solver.sigmas[state.index])
        state.x = (1 - sigma) * clean + sigma * noise
        (velocity,) = runner.engine.predict([state])
        true = noise - clean  # docs/model.md, section 4.6
        errors.append(float((velocity - true).norm() / true.norm()))
    return {"error": float(np.mean(errors))}


def of_codec(runner: Runner, case: Case, task: str) -> Values:
    """PSNR in dB of a clip that went through the video codec."""
    fields, _ = asked(case, task)
    tiling = runner.settled(case, **fields).execution.tiling
    found = torch.cat(list(runner.vae.decode(runner.vae.encode(case.clip), tiling)))
    return {"psnr": _psnr(found.permute(3, 0, 1, 2).float() / 255, _drawn(pictures(case.clip)))}


JUDGES: dict[str, Callable[[Runner, Case, str], Values]] = {
    "policy": of_policy,
    "inverse-dynamics": of_inverse,
    "forward-dynamics": of_forward,
    "velocity": of_velocity,
    "codec": of_codec,
}
"""By task; all others make pictures and clips."""
