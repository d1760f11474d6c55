"""docs/images/speed.svg: how much faster than diffusers, from the committed results. `benchmarks.tables` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "speed.svg"
DEVICES = "h200", "h100"
"""The device whose results are drawn is the first of these with all of them."""
WORKS = {
    "1024x1024x1": ("step-nano-t2i-1024", "both passes of a picture, 1024 x 1024"),
    "832x480x93": ("step-nano-video", "a pass of 480p x 93 frames"),
    "1280x720x189": ("step-nano-video", "a pass of 720p x 189 frames"),
}
DECODE = "vae-720p189", "the decode of 720p x 189 frames"
COLOURS = {"bf16": "#3b6fb6", "FP8": "#e08a2e"}
LEFT, RIGHT, TOP, BAR, GAP, WIDTH = 290, 70, 62, 18, 16, 760
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


class Bar(NamedTuple):
    """`ratio` is the time of diffusers in bf16 over ours in this `precision`."""

    work: str
    precision: str
    ratio: float


def found(device: str) -> tuple[list[Bar], dict[str, Any]]:
    """All bars of a device, and the environment of the first."""
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
    return "\n".join(_lines(bars, environment)) + "\n"


def _lines(bars: list[Bar], environment: dict[str, Any]) -> Iterator[str]:
    titles = list(dict.fromkeys(bar.work for bar in bars))
    height = TOP + sum(BAR for _ in bars) + GAP * len(titles) + 30
    scale = (WIDTH - LEFT - RIGHT) / max(bar.ratio for bar in bars)
    peer = environment["versions"]["diffusers"]
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="{FONT}" font-size="13">'
    yield f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    yield _text(16, 26, f"Times the speed of diffusers {peer} in bf16", size=16, weight=600)
    yield _text(16, 46, f"Cosmos3-Nano's size, random weights, one process, {environment['device']}", fill="#666666")
    for i, (precision, colour) in enumerate(COLOURS.items()):
        yield f'<rect x="{WIDTH - 150 + 70 * i}" y="14" width="13" height="13" fill="{colour}"/>'
        yield _text(WIDTH - 132 + 70 * i, 25, precision)
    y = TOP
    for title in titles:
        own = [bar for bar in bars if bar.work == title]
        yield _text(LEFT - 10, y + BAR * len(own) / 2 + 5, title, anchor="end")
        for bar in own:
            width = bar.ratio * scale
            yield f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[bar.precision]}"/>'
            yield _text(LEFT + width + 6, y + 12.5, f"{bar.ratio:.2f}x")
            y += BAR
        y += GAP
    one, ends = LEFT + scale, f'y1="{TOP - 6}" y2="{y - GAP + 6}"'
    yield f'<line x1="{one:.1f}" x2="{one:.1f}" {ends} stroke="#444444" stroke-dasharray="4 3"/>'
    yield _text(one, y - GAP + 21, "diffusers", anchor="middle", fill="#444444")
    yield "</svg>"


def _text(
    x: float, y: float, words: str, *, size: int = 13, weight: int = 400, fill: str = "#222222", anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>'
