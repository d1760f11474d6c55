"""docs/images/speed.svg: how much faster than diffusers, from the committed results. `benchmarks.tables` writes it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "speed.svg"
DEVICES = "h200", "h100"
"""The device whose results are drawn is the first of these with all of them."""
WORKS = {
    "1024x1024x1": ("step-nano-t2i-1024", "both passes of a picture,\n1024 x 1024"),
    "832x480x93": ("step-nano-video", "a pass of 480p x 93 frames"),
    "1280x720x189": ("step-nano-video", "a pass of 720p x 189 frames"),
}
DECODE = "vae-720p189", "the decode of 720p x 189 frames"
COLOURS = {"bf16": "#3b6fb6", "FP8": "#e08a2e"}
SAME_BYTES: Any = {"svg.hashsalt": "speed", "svg.fonttype": "none", "font.family": "sans-serif"}
"""Settings of matplotlib with which a picture is the same file each time, and its words are words."""


class Bar(NamedTuple):
    """`ratio` is the time of diffusers in bf16 over ours in this `precision`."""

    work: str
    precision: str
    ratio: float


def found(device: str) -> tuple[list[Bar], dict[str, Any]]:
    """All bars of a device, from the top, and the environment of the first."""
    bars, environments = list[Bar](), list[dict[str, Any]]()
    for work, (name, title) in WORKS.items():
        result = _read(name, device)
        environments.append(result["environment"])
        ours = {"FP8" if one["formats"] else "bf16": one for one in result["results"] if one["work"] == work}
        bars += [Bar(title, precision, ours[precision]["speed_ratio"]) for precision in COLOURS]
    bars.append(Bar(DECODE[1], "bf16", _read(DECODE[0], device)["speed_ratio"]))
    return bars, environments[0]


def _read(name: str, device: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / f"{name}-{device}.json").read_text("utf-8"))
    return result


def render() -> str:
    """The picture."""
    files = {name for name, _ in (*WORKS.values(), DECODE)}
    device = next(one for one in DEVICES if all((RESULTS / f"{name}-{one}.json").exists() for name in files))
    bars, environment = found(device)
    titles = list(dict.fromkeys(bar.work for bar in bars))
    with matplotlib.rc_context(SAME_BYTES):
        figure = Figure(figsize=(8, 3.2), layout=ConstrainedLayoutEngine(w_pad=0.25))  # other fonts are wider
        axes = figure.add_subplot(frame_on=False)
        for i, (precision, colour) in enumerate(COLOURS.items()):
            own = [bar for bar in bars if bar.precision == precision]
            places = [titles.index(bar.work) + 0.38 * i for bar in own]
            drawn = axes.barh(places, [bar.ratio for bar in own], 0.36, color=colour, label=precision)
            axes.bar_label(drawn, [f"{bar.ratio:.2f}x" for bar in own], padding=3)
        axes.axvline(1, color="#444444", linestyle="--", linewidth=1)
        axes.set_yticks([0.19, 1.19, 2.19, 3], titles)
        axes.set_xticks([1], ["diffusers"])
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.legend(frameon=False, loc="lower right")
        figure.suptitle(
            f"Times the speed of diffusers {environment['versions']['diffusers']} in bf16\n"
            f"Cosmos3-Nano's size, random weights, one process, {environment['device']}",
            fontsize="medium",
        )
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
