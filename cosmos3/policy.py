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

    def __init__(
        self, pipe: Pipeline, preset: str = "droid", *, horizon: int | None = None, overlap: int = 0, **fields: Any
    ):
        if preset not in presets():
            hint = did_you_mean(str(preset), presets(), f"Presets are {', '.join(presets())}")
            raise InputError(f"preset {shown(preset)}", "there is no such preset", hint, "preset")
        self._pipe, self._preset = pipe, presets()[preset]
        self._fields = self._preset["fields"] | fields
        chunk = self._fields["chunk"]
        self._horizon = chunk if horizon is None else horizon
        if type(self._horizon) is not int or type(overlap) is not int or not 0 < self._horizon <= chunk:
            found = f"a chunk has {chunk} actions"
            raise InputError(f"horizon {shown(horizon)}", found, f"Give a whole number from 1 to {chunk}", "horizon")
        if not 0 <= overlap <= min(self._horizon, chunk - self._horizon):
            found = f"behind {self._horizon} of {chunk} actions there are {chunk - self._horizon}"
            raise InputError(f"overlap {overlap}", found, "Give less of it, or a smaller horizon", "overlap")
        self._overlap, self._seconds = overlap, dict[str, float]()
        self._left: np.ndarray | None = None

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
        are closed in the observation and in the actions, as DROID has them. Raises InputError for what is missing.
        """
        import numpy as np

        began = time.perf_counter()
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

        domain, space = domains().get(self._fields["domain"]), self._fields.get("action_space")
        known = domain is not None and (space is None or space in domain.spaces)  # what is not, `start` refuses
        channels = (domain.channels(space) if domain and known else None) or ()
        names = channels if len(channels) == width else [""] * width
        return np.array([name in self._preset["inverted"] for name in names])

    def _state(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The row of the robot's state: the last one where there are several."""
        import numpy as np

        parts = [np.atleast_1d(np.asarray(_of(observation, key), dtype=np.float64)) for key in self._preset["state"]]
        row = np.concatenate([part[-1] if part.ndim == 2 else part for part in parts])
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


def _pixels(observation: Mapping[str, Any], key: str) -> np.ndarray:
    import numpy as np

    value = np.asarray(_of(observation, key))
    if value.ndim != 3 or value.shape[2] != 3 or value.dtype != np.uint8:
        found = f"it is {value.dtype} {list(value.shape)}"
        raise InputError(f"an observation's {key!r}", found, "Give uint8 [H, W, 3]", "observation")
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
