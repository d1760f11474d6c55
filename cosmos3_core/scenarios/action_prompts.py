"""The prompt of an action as the model was trained on it: a JSON caption that says where the camera is, what is done
and for how long, at which size.

docs/model.md, section 4.2; the sentences are those of NVIDIA's framework (viewpoint_utils.py), word for word.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from .sizes import TIERS

if TYPE_CHECKING:
    from .request import Request

VIEWS = {
    "ego_view": "This video is captured from a first-person perspective looking at the scene.",
    "third_person_view": "This video is captured from a third-person perspective looking towards the agent from the "
    "front.",
    "wrist_view": "This video is captured from a wrist-mounted camera.",
    "concat_view": "This video contains concatenated views from multiple camera perspectives.",
    "top_down_2d_view": "This video is captured from a top-down view of a flat 2D scene.",
    "video_game_view": "This video is captured from an in-game camera perspective in a virtual environment.",
}
"""The framing sentence by view; the last two are the framework's alone."""
JSON, TEXT = "json", "text"
"""How an action prompt is written."""
ENDS = (".", "!", "?")


def action_text(request: Request) -> str:
    """The prompt as a JSON caption, its keys in the order of training. Seconds are cut to whole ones, and rounded in
    the action's own time."""
    seconds = request.frames / request.fps
    minutes, rest = divmod(round(seconds), 60)
    description = request.prompt.strip()
    framing = VIEWS[request.view or next(iter(VIEWS))]
    width, height = request.seen_size
    caption: dict[str, Any] = {
        "cinematography": {"framing": f"{framing} {request.view_detail}".rstrip() if request.view_detail else framing},
        "actions": [
            {
                "time": f"0:00-{minutes}:{rest:02d}",
                "description": description if description.endswith(ENDS) else f"{description}.",
            }
        ],
        "duration": f"{int(seconds)}s",
        "fps": float(request.fps),
        "resolution": {"H": height, "W": width},
        "aspect_ratio": _aspect(width, height),
    }
    return json.dumps(caption)


def _aspect(width: int, height: int) -> str:
    """The aspect ratio that the tiers have for a size, else the ratio in lowest terms (the framework's rule)."""
    for tier in TIERS.values():
        for name, size in tier.items():
            if size == (width, height):
                return name.replace(":", ",")
    divisor = math.gcd(width, height)
    return f"{width // divisor},{height // divisor}"
