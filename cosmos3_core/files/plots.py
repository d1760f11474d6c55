"""Actions as a picture: a panel for each channel, with its name and unit, over the seconds of the video."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..contract import InputError

if TYPE_CHECKING:
    import numpy as np

LONGEST = 40
"""Characters of a channel's name that are shown."""
TALL = 8
"""Panels in a column, before there is another; of four columns as many as it takes."""
PANEL = (5.2, 1.5)
TOP, BOTTOM = 0.9, 0.5
"""Inches of a panel, and above and below all of them."""
DPI = 100


def check_matplotlib(asked: str) -> None:
    """Raises InputError where it is not installed, or does not load."""
    try:
        from matplotlib.backends import backend_agg
    except ImportError as error:
        found = "matplotlib draws it, and it is not installed"
        if (error.name or "").partition(".")[0] != "matplotlib":
            found = f"matplotlib draws it, and does not load ({error})"
        raise InputError(asked, found, "pip install matplotlib, or drop `plot`", "plot") from None
    assert backend_agg


def drawn(rows: np.ndarray, about: Mapping[str, Any], begins: Sequence[int], title: str) -> np.ndarray:
    """A picture, uint8 [H, W, 3], of actions [T, D]; `about` is what a manifest says of them.

    An action lies between two frames, and its value is drawn from the one to the other. A dashed line stands where a
    further chunk of a rollout begins, at the rows `begins`; actions between frames that were observed are shaded.
    """
    import matplotlib
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count, width = rows.shape
    columns = min(-(-width // TALL), 4)
    lines, seconds = -(-width // columns), np.arange(count + 1) / about["fps"]
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")  # of a glyph that its font lacks
        matplotlib.rcdefaults()  # and not as somebody's matplotlibrc has it: it may ask for LaTeX
        across, down = columns * PANEL[0], lines * PANEL[1] + TOP + BOTTOM
        figure = Figure((across, down), DPI)
        # matplotlib's own layouts take seconds for as many panels as a hand has joints.
        figure.subplots_adjust(0.6 / across, BOTTOM / down, 1 - 0.2 / across, 1 - TOP / down, wspace=0.15, hspace=0.6)
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, parse_math=False, fontsize=10)
        panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
        for at, panel in enumerate(panels.T.flat):
            if at >= width:
                panel.set_axis_off()
                continue
            panel.stairs(rows[:, at], seconds, baseline=None, linewidth=1.5)
            for begin in begins:
                panel.axvline(begin / about["fps"], color="0.5", linestyle="--", linewidth=1)
            if about["observed"]:
                panel.axvspan(0, min(about["observed"], count) / about["fps"], color="0.9", zorder=0)
            panel.set_title(_label(about["channels"][at], about["units"][at]), parse_math=False, fontsize=9, loc="left")
            panel.tick_params(labelsize=8)
        for panel in panels[-1]:
            panel.set_xlabel("seconds", fontsize=8)
        canvas.draw()
        return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _label(channel: str, unit: str) -> str:
    """A channel's name and its unit, as far as they can be shown on a line."""
    name, unit = ("".join(c if c.isprintable() else "?" for c in text) for text in (channel, unit))
    name = name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."
    return f"{name} [{unit[:LONGEST]}]" if unit else name
