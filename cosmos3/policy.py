"""A policy in a robot's loop: an observation in, the next actions out."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cosmos3_core.scenarios
from cosmos3_core.contract import InputError
from cosmos3_core.spelling import did_you_mean, shown

from .words import Answering, bound

if TYPE_CHECKING:
    import numpy as np

    from .pipeline import Pipeline

OBSERVED = ("prompt", "image", "state")
"""Fields of a request that each observation brings."""
SMALLEST, LARGEST = 2, 4096
"""Pixels of a camera's side: half of it is shown, and what is larger is no camera's."""
IMAGE = "observation/image"
WRIST = "observation/wrist_image_left"
SIDES = ("observation/exterior_image_1_left", "observation/exterior_image_2_left")


@cache
def presets() -> dict[str, dict[str, Any]]:
    """presets.toml of cosmos3_core.scenarios, by name."""
    folder = Path(cosmos3_core.scenarios.__file__).parent
    rows = tomllib.loads((folder / "presets.toml").read_text(encoding="utf-8"))
    return {name: rows.get(row.get("like"), {}) | row for name, row in rows.items()}


class Policy(Answering):
    """Actions for observations, one chunk at a time.

    `preset` is "droid" or "robolab": their request fields and observation keys. `fields` replace the preset's, and any
    others of docs/fields.md may stand beside them, such as `action_stats`. `act` returns the first `horizon` actions of
    a chunk (None: all). Of the rest the first `overlap` are kept, and the next chunk begins as a blend from them to its
    own, so that a robot that moves while the next chunk is made does not jump. Raises InputError.
    """

    @bound
    def __init__(
        self, pipe: Pipeline, preset: str = "droid", *, horizon: int | None = None, overlap: int = 0, **fields: Any
    ):
        if preset not in presets():
            hint = did_you_mean(str(preset), presets(), f"Presets are {', '.join(presets())}")
            raise InputError(f"preset {shown(preset)}", "there is no such preset", hint, "preset")
        if not callable(getattr(pipe, "start", None)):
            found = "it is no loaded model"
            raise InputError(f"a policy of {shown(pipe)}", found, "Give what cosmos3.load returns", "pipe")
        self._pipe, self._preset = pipe, presets()[preset]
        self._fields = self._preset["fields"] | fields
        self._asked = self._settled()
        chunk = self._asked["chunk"]
        self._horizon = chunk if horizon is None else horizon
        if type(self._horizon) is not int or not 0 < self._horizon <= chunk:
            found = f"a chunk has {chunk} actions"
            raise InputError(f"horizon {shown(horizon)}", found, f"Give a whole number from 1 to {chunk}", "horizon")
        if type(overlap) is not int or not 0 <= overlap <= min(self._horizon, chunk - self._horizon):
            found = f"behind {self._horizon} of {chunk} actions there are {chunk - self._horizon}"
            next_step = f"Give a whole number from 0 to {min(self._horizon, chunk - self._horizon)}"
            raise InputError(f"overlap {shown(overlap)}", found, f"{next_step}, or a smaller horizon", "overlap")
        self._overlap, self._seconds = overlap, dict[str, float]()
        self._left: np.ndarray | None = None

    def _settled(self) -> dict[str, Any]:
        """The request of every observation, as far as it is known before one. Raises InputError."""
        for name in OBSERVED:
            if name in self._fields:
                found = "each observation brings its own"
                raise InputError(f"`{name}` of a policy", found, f"Drop {name}", name)
        if (task := self._fields["task"]) != "policy":
            raise InputError(f"task {shown(task)} of a policy", "a policy's is policy", "Drop task", "task")
        others = {name: value for name, value in self._fields.items() if name not in ("noise", "anyway")}
        asked: dict[str, Any] = dict(self._pipe.plan(**others).request)
        if asked["rollout"] not in (None, 1):
            found = "what follows a chunk is seen by the robot, and not made up"
            raise InputError(f"rollout {asked['rollout']} of a policy", found, "Drop rollout", "rollout")
        return asked

    @property
    def seconds(self) -> dict[str, float]:
        """How long the last `act` took, by stage, and from the observation to its actions in `total`."""
        return dict(self._seconds)

    @bound
    def reset(self) -> None:
        """Forget the chunk before: a new episode begins."""
        self._left = None

    @bound
    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next actions, fp64 [horizon, D].

        An observation is a dict with `prompt`, the cameras' pictures as uint8 [H, W, 3] under "observation/image", or
        the three of DROID, which are put together, and the joints [7] and the gripper [1]. Grippers are 1 where they
        are closed in the observation and in the actions, as DROID has them. Raises InputError for what is missing or
        is not so.
        """
        import numpy as np

        began = time.perf_counter()
        if not isinstance(observation, Mapping):
            found = "it is no dict"
            raise InputError(f"observation {shown(observation)}", found, "Give the prompt, pictures and state by name")
        image, state = self._picture(observation), self._state(observation)
        run = self._pipe.start(_of(observation, "prompt"), image=image, state=state, **self._fields)
        for _ in run:
            pass
        rows = run.actions()
        rows = np.where(self._inverted(rows.shape[1]), 1 - rows, rows)
        if self._left is not None:
            share = (np.arange(len(self._left)) + 1)[:, None] / (len(self._left) + 1)
            rows[: len(self._left)] = (1 - share) * self._left + share * rows[: len(self._left)]
        end = self._horizon + self._overlap
        self._left = rows[self._horizon : end].copy() if self._overlap else None
        self._seconds = run._generation.lasted() | {"total": time.perf_counter() - began}
        return rows[: self._horizon]

    def _inverted(self, width: int) -> np.ndarray:
        """Which channels the model has the other way round."""
        import numpy as np

        from cosmos3_core.scenarios.domains import domains

        channels = domains()[self._asked["domain"]].channels(self._asked["action_space"]) or ()
        names = channels if len(channels) == width else [""] * width
        return np.array([name in self._preset["inverted"] for name in names])

    def _state(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The row of the robot's state: the last one where there are several."""
        import numpy as np

        parts = {key: _numbers(observation, key) for key in self._preset["state"]}
        row, width = np.concatenate(list(parts.values())), self._asked["action_width"]
        if len(row) != width:
            asked = f"an observation's {' and '.join(map(repr, parts))}"
            found = f"they have {' and '.join(str(len(part)) for part in parts.values())} numbers"
            where = f"{self._asked['domain']} ({self._asked['action_space']})"
            raise InputError(asked, f"{found}, and {where} has {width}", f"Give {width} in all", "observation")
        return np.where(self._inverted(len(row)), 1 - row, row)

    def _picture(self, observation: Mapping[str, Any]) -> np.ndarray:
        """uint8 [H, W, 3]: the one picture, or the wrist's above the two others of half its size."""
        import numpy as np

        height, width = self._preset["picture"]
        if IMAGE in observation:
            return _sized(_pixels(observation, IMAGE), height, width)
        wrist = _pixels(observation, WRIST)
        half = wrist.shape[0] // 2, wrist.shape[1] // 2
        below = np.concatenate([_sized(_pixels(observation, key), *half) for key in SIDES], axis=1)
        return _sized(np.concatenate([wrist[:, : below.shape[1]], below]), height, width)


def _of(observation: Mapping[str, Any], key: str) -> Any:
    if key not in observation:
        found = f"it has {', '.join(map(str, observation)) or 'nothing'}"
        raise InputError(f"an observation without {key!r}", found, f"Add {key!r}", "observation")
    return observation[key]


def _array(observation: Mapping[str, Any], key: str, form: str) -> np.ndarray:
    """What stands under a key. Raises InputError for what is no array."""
    import numpy as np

    try:
        return np.asarray(_of(observation, key))
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, or a tensor on a device
        found = f"it is no array ({str(error).partition(chr(10))[0]})"
        raise InputError(f"an observation's {key!r}", found, f"Give {form}", "observation") from None


def _numbers(observation: Mapping[str, Any], key: str) -> np.ndarray:
    """A row of finite numbers, fp64: the last one of several."""
    import numpy as np

    form = "a row of finite numbers"
    value = np.atleast_1d(_array(observation, key, form))
    fits = value.dtype.kind in "fiu" and value.ndim <= 2 and value.size
    if not fits or not np.isfinite(value := value.astype(np.float64)).all():
        found = "it holds NaN or infinity" if fits else f"it is {value.dtype} {list(value.shape)}"
        raise InputError(f"an observation's {key!r}", found, f"Give {form}", "observation")
    return value[-1] if value.ndim == 2 else value


def _pixels(observation: Mapping[str, Any], key: str) -> np.ndarray:
    import numpy as np

    value = _array(observation, key, "uint8 [H, W, 3]")
    if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8:
        found = f"it is {value.dtype} {list(value.shape)}"
        raise InputError(f"an observation's {key!r}", found, "Give uint8 [H, W, 3]", "observation")
    if not SMALLEST <= min(value.shape[:2]) <= max(value.shape[:2]) <= LARGEST:
        found = f"it has {value.shape[1]}x{value.shape[0]} pixels"
        raise InputError(
            f"an observation's {key!r}", found, f"Give sides from {SMALLEST} to {LARGEST} pixels", "observation"
        )
    return value


def _sized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scaled without regard to aspect, by a bilinear filter without antialiasing, as vllm-omni has it."""
    if pixels.shape[:2] == (height, width):
        return pixels
    import torch

    chw = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(chw, size=(height, width), mode="bilinear", align_corners=False)
    result: np.ndarray = scaled[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return result
