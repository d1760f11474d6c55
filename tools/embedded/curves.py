"""Draw the losses of the legs that the model in the package had: docs/images/embedded-losses.png.

python -m tools.embedded.curves
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

LEGS = Path(__file__).with_name("legs")
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "embedded-losses.png"
SMOOTHED = 5
"""Values that one of the curve is the mean of: each is of one batch."""

TITLES: dict[str, tuple[str, dict[str, str]]] = {
    "vae": ("video codec: PSNR of a batch, dB", {"psnr": "PSNR"}),
    "sound": ("sound codec: signal to error, dB", {"decibels": "signal to error"}),
    "towers": (
        "towers: squared error of the velocity",
        {
            "pictures.vision": "pictures",
            "clips.vision": "clips",
            "clips.sound": "their sound",
            "actions.vision": "clips of the agent",
            "actions.action": "its actions",
        },
    ),
}


def curve(panel: Axes, legs: list[dict[str, Any]], name: str, label: str) -> None:
    """A measure over the seconds of all legs of a part, one after the other."""
    begin, xs, ys = 0.0, [], []
    for leg in legs:
        xs += [begin + row["seconds"] for row in leg["curve"] if name in row]
        ys += [row[name] for row in leg["curve"] if name in row]
        begin += leg["settings"]["seconds"]
    means = [sum(ys[max(i - SMOOTHED, 0) : i + 1]) / len(ys[max(i - SMOOTHED, 0) : i + 1]) for i in range(len(ys))]
    panel.plot(xs, means, label=label, linewidth=1.2)


def drawn() -> Figure:
    figure = Figure((11, 3.2), 100, layout="constrained")
    panels = figure.subplots(1, 3)
    parts = {name: [json.loads(file.read_text()) for file in sorted(LEGS.glob(f"{name}-*.json"))] for name in TITLES}
    for panel, (part, (title, shown)) in zip(panels, TITLES.items(), strict=True):
        for name, label in shown.items():
            curve(panel, parts[part], name, label)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("seconds on one H200", fontsize=8)
        panel.tick_params(labelsize=8)
        if len(shown) > 1:
            panel.set_yscale("log")
            panel.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    drawn().savefig(PICTURE)
