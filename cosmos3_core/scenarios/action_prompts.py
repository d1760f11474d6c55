"""The prompt of an action as the model was trained on it: a JSON caption that says where the camera is, what is done
and for how long, at which size.

docs/model.md, section 4.2.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from .action_kinds import VIEWS
from .sizes import TIERS

if TYPE_CHECKING:
    from .request import Request

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
