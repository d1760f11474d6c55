"""What a model makes of the world's cases, through the engine that everybody runs, and how far that is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...contract import Backend, Device
from ...engine.engine import Engine
from ...files.memory import Media
from ...runs import generation
from ...runs.generation import Generation
from ...settle import Settled, Wish, ground_of, settle
from .cases import FRAMES, HITTING, Case, pictures
from .inverse import agent_path, judge, onsets, see, turn
from .world import SIZE

Values = Mapping[str, float | None]
"""By measure what one case comes to: 1 or 0 where it is right or wrong, else a number; None where it is not judged."""
REACHED = 10.0
"""Pixels from its goal within which an agent has reached it: less than a ring's radius."""
NEAR = 0.05
"""Of the picture's width, within which forward dynamics puts the agent."""
IN_TIME = 2.0
"""Frames between the impact that is seen and the one that is heard."""
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
        self.engine = Engine(self.ground.model, self.ground.plan, resident=True)
        self.vae = self.engine.open_weights().vae(self.engine.target, "encoder", "decoder")

    def settled(self, case: Case, **fields: Any) -> Settled:
        """A request for a case, of the world's own size and rate."""
        given = {"prompt": case.prompt, "seed": case.seed, **fields, **self.given}
        return settle(replace(self.wish, given=given), ground=self.ground)

    def prepared(self, case: Case, media: Mapping[str, Any], **fields: Any) -> Generation:
        """A run before its first step, which begins with `media` by field."""
        handed = [Media.of(name, value) for name, value in media.items()]
        said = {one.field: one.said for one in handed}
        return generation.prepare(self.engine, self.settled(case, **said, **fields), media=handed)

    def run(self, case: Case, media: Mapping[str, Any] | None = None, **fields: Any) -> Generation:
        """A run after its last step."""
        made = self.prepared(case, media or {}, **fields)
        while not made.done:
            made.step()
        return made


def shown(made: Generation) -> Tensor:
    """A run's picture or clip as fp32 [3, F, H, W] in [0, 1]."""
    frames = torch.from_numpy(np.stack(list(made.frames())))
    return frames.permute(3, 0, 1, 2).float() / 255


def of_clips(runner: Runner, case: Case, task: str) -> Values:
    """Colour, shape, number and direction of what is seen, and when an impact is heard."""
    name, sound = task.removesuffix("s"), task.endswith("s")
    fields: dict[str, Any] = {"task": name, "size": f"{SIZE}x{SIZE}"}
    if name != "t2i":
        fields |= {"frames": FRAMES, "fps": case.fps} | ({"sound": True} if sound else {})
    media: dict[str, Any] = {}
    if name == "i2v":
        media["image"] = pictures(case.clip)[0]
    elif name == "v2v":
        media["video"] = pictures(case.clip)[:GIVEN_FRAMES]
    made = runner.run(case, media, **fields)
    seen = see(shown(made))
    verdict = judge(seen, case.scenes, 0)
    values: dict[str, float | None] = {
        key: None if said is None else float(said) for key, said in vars(verdict).items()
    }
    if sound and case.kind in HITTING:
        values["sound"] = float(_in_time(made, seen.path.get(case.subject), case.fps))
    return values


def _in_time(made: Generation, path: np.ndarray | None, fps: float) -> bool:
    """Whether the first sound begins where the subject is seen to turn."""
    sound, turned = made.sound(), None if path is None else turn(path)
    begins = onsets(np.asarray(sound.samples)) if sound else []
    return bool(begins) and turned is not None and abs(begins[0] * fps - turned) <= IN_TIME


def _acted(runner: Runner, case: Case, task: str, media: Mapping[str, Any], **fields: Any) -> Generation:
    return runner.run(case, media, task=task, domain="pusht", fps=case.fps, chunk=FRAMES - 1, **fields)


def of_policy(runner: Runner, case: Case, task: str) -> Values:
    """Where the agent is sent last, against where it had to go."""
    rows, _ = _acted(runner, case, task, {"image": pictures(case.clip)[0]}).actions()
    away = np.hypot(*((rows[-1] + 1) * SIZE / 2 - case.agent[-1]))
    return {"reached": float(away <= REACHED), "pixels": float(away)}


def of_inverse(runner: Runner, case: Case, task: str) -> Values:
    """The error of the actions that a clip is said to show, as a share of their range."""
    rows, _ = _acted(runner, case, task, {"video": pictures(case.clip)}).actions()
    return {"error": float(np.abs(rows - case.scenes.actions[0]).mean()) / 2}


def of_forward(runner: Runner, case: Case, task: str) -> Values:
    """How far the agent is from where its actions lead, at the last frame, as a share of the picture's width: all of it
    where no agent is seen."""
    rows = case.scenes.actions[0].tolist()
    made = _acted(runner, case, task, {"image": pictures(case.clip)[0]}, actions=rows)
    path = agent_path(see(shown(made)))
    gone = path is None or bool(np.isnan(path[-1]).any())
    away = 1.0 if path is None or gone else float(np.hypot(*(path[-1] - case.agent[-1]))) / SIZE
    return {"error": away, "within": float(away <= NEAR)}


def of_velocity(runner: Runner, case: Case, task: str) -> Values:
    """The error of the velocity that is predicted for a clip of the world under noise, as a share of the true one's
    norm: a number that moves where shares of right clips do not yet."""
    fields = {"task": "t2v", "size": f"{SIZE}x{SIZE}", "frames": FRAMES, "fps": case.fps, "guidance": 1.0}
    state = runner.prepared(case, {}, **fields).begin()
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
    fields = {"task": "t2v", "size": f"{SIZE}x{SIZE}", "frames": FRAMES, "fps": case.fps}
    tiling = runner.settled(case, **fields).execution.tiling
    found = torch.cat(list(runner.vae.decode(runner.vae.encode(case.clip), tiling))).float() / 255
    wanted = torch.from_numpy(np.stack(pictures(case.clip))).float() / 255
    return {"psnr": float(-10 * torch.log10((found - wanted).square().mean()))}


JUDGES: dict[str, Callable[[Runner, Case, str], Values]] = {
    "policy": of_policy,
    "inverse-dynamics": of_inverse,
    "forward-dynamics": of_forward,
    "velocity": of_velocity,
    "codec": of_codec,
}
"""By task; all others make pictures and clips."""
