"""Pictures about a run: the plot of its actions and the contact sheet of its clip, and what there can be neither of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import cosmos3
from inputs import photograph
from matplotlib.figure import Figure
from PIL import Image
from tiny_model import TINY_MODEL

import cosmos3 as package
from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.contract import InputError, RunError
from cosmos3_core.files import plots, sheets
from cosmos3_core.files.outputs import read_metadata

TINY = ("--model", TINY_MODEL, "--backend", "reference", "--steps", 1)
BRIDGE = ("--image", "desk.png", "--domain", "bridge_orig_lerobot", "--fps", 5, "--chunk", 4)
STATS = {"method": "quantile", "q01": [0, 0], "q99": [10, 20], "channels": ["$x_{", "y\n側"], "units": ["m", ""]}
PUSHED = [[1.0, 2.0], [2.0, 4.0], [3.0, 8.0], [4.0, 16.0]]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    photograph(96, 64).save("desk.png")
    Path("stats.json").write_text(json.dumps(STATS))

    def call(*words):
        prompt = () if "--resume" in words else ("pick it up",)  # which a run that goes on has already
        return cosmos3(capsys, monkeypatch, "run", *prompt, *map(str, words))

    return call


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn: what its panels show is asked of them."""
    made, init = [], Figure.__init__
    monkeypatch.setattr(Figure, "__init__", lambda self, *a, **k: (made.append(self), init(self, *a, **k))[1])
    return made


def panels(figure: Figure) -> list:
    """Those that show something, in the order of the channels: one column after the other."""
    shown = [panel for panel in figure.axes if panel.axison]
    return sorted(
        shown, key=lambda panel: [getattr(panel.get_subplotspec(), f"{way}span").start for way in ("col", "row")]
    )


def test_a_rollouts_actions_are_drawn_by_channel_with_its_chunks_and_a_sheet_of_its_clip(run, figures):
    code, _, err = run(*BRIDGE, "--rollout", 3, *TINY, "-o", "a.mp4", "--plot", "a.png", "--sheet", "s.png")
    assert code == 0, err
    table = json.loads(Path("a.actions.json").read_text())
    (figure,) = figures
    assert [panel.get_title(loc="left").split(" [")[0] for panel in panels(figure)] == table["channels"]
    assert all(panel.get_title(loc="left").endswith("[normalised]") for panel in panels(figure))
    for at, panel in enumerate(panels(figure)):
        (stairs,) = panel.patches
        values, edges, _ = stairs.get_data()
        assert np.array_equal(values, np.array(table["actions"])[:, at])
        assert np.allclose(edges, np.arange(13) / 5)  # an action lies between two frames
        assert [line.get_xdata()[0] for line in panel.lines] == [4 / 5, 8 / 5]
    for name in ("a.png", "s.png"):
        assert json.loads(read_metadata(Path(name))["cosmos3"])["request"]["rollout"] == 3
    assert Image.open("s.png").width > 4 * 96


def test_given_actions_are_drawn_in_the_robots_units_whatever_its_channels_are_called(run, figures):
    code, _, err = run(
        *("--image", "desk.png", "--domain", "pusht", "--actions", json.dumps(PUSHED), "--action-stats", "stats.json"),
        *("--fps", 5, "--chunk", 4, *TINY, "-o", "c.mp4", "--plot", "c.png"),
    )
    assert code == 0, err
    (figure,) = figures
    assert [panel.get_title(loc="left") for panel in panels(figure)] == ["$x_{ [m]", "y?側"]
    drawn = np.stack([panel.patches[0].get_data()[0] for panel in panels(figure)], axis=1)
    assert np.allclose(drawn, PUSHED, atol=1e-5)
    assert "4 actions given" in figure.get_suptitle()


def test_observed_actions_are_shaded(figures):
    about = {"channels": ["x"], "units": ["m"], "fps": 10.0, "observed": 4}
    found = plots.drawn(np.arange(8.0)[:, None], about, [], "title")
    (panel,) = panels(figures[0])
    shaded = panel.patches[-1]
    assert (shaded.get_x(), shaded.get_width()) == (0, 0.4)
    assert found.dtype == np.uint8 and found.shape[2] == 3 and found.std() > 0


@pytest.mark.parametrize("width, columns", [(1, 1), (8, 1), (10, 2), (33, 4)])
def test_many_channels_stand_in_columns(figures, width, columns):
    about = {"channels": [f"c{i}" for i in range(width)], "units": ["m"] * width, "fps": 5, "observed": 0}
    plots.drawn(np.random.default_rng(0).normal(size=(3, width)), about, [1, 2], "title")
    assert figures[0].axes[0].get_gridspec().ncols == columns and len(panels(figures[0])) == width


def test_somebodys_matplotlibrc_changes_nothing():
    import matplotlib

    about = {"channels": ["x"], "units": ["m"], "fps": 5, "observed": 0}
    expected = plots.drawn(np.ones((2, 1)), about, [], "t")
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red"}):
        assert np.array_equal(plots.drawn(np.ones((2, 1)), about, [], "t"), expected)
        assert matplotlib.rcParams["text.usetex"] is True


@pytest.mark.parametrize("count", [2, 5, 16, 17, 64, 65, 189, 1000])
def test_a_sheet_has_the_first_frame_the_last_and_evenly_spaced_ones(count):
    sheet = sheets.Sheet(24)
    frames = (np.full((8, 12, 3), i % 251, np.uint8) for i in range(count))
    assert [frame[0, 0, 0] for frame in sheet.watching(frames)] == [i % 251 for i in range(count)]  # as they came
    chosen = sheet.chosen()
    assert list(chosen)[0] == 0 and list(chosen)[-1] == count - 1 and len(chosen) == min(count, sheets.MOST)
    assert all(np.asarray(one)[0, 0, 0] == index % 251 for index, one in chosen.items())
    steps = np.diff(list(chosen))
    assert steps.max() - steps.min() <= max(2, 0.7 * count / sheets.MOST)
    drawn, rows = sheet.drawn(), -(-len(chosen) // sheets.COLUMNS)
    assert drawn.dtype == np.uint8 and (drawn.shape[0] - sheets.GAP) % rows == 0 and drawn.shape[0] > rows * 8


def test_a_sheet_that_is_asked_for_twice_begins_anew():
    sheet = sheets.Sheet(24)
    for count in (9, 5):
        list(sheet.watching(np.zeros((8, 8, 3), np.uint8) for _ in range(count)))
    assert list(sheet.chosen()) == [0, 1, 2, 3, 4]


def test_large_frames_are_scaled_down_and_small_ones_are_not():
    for size, expected in (((720, 1280), (320, 180)), ((100, 200), (200, 100)), ((2000, 10), (2, 320))):
        sheet = sheets.Sheet(24)
        list(sheet.watching([np.zeros((*size, 3), np.uint8)]))
        assert sheet.chosen()[0].size == expected


WRONG = [
    ("--frames 5 --plot p.png", "--plot p.png: text to video has no actions", "Drop --plot, or use --task policy or f"),
    ("--sheet s.png -o x.png", "this run makes one picture, and a sheet shows frames", "Drop --sheet"),
    ("--frames 5 --sheet s.png -o x.wav", "of an output that is sound alone no frame is decoded", "ending in .mp4"),
    ("{bridge} --sheet s.png -o x.json", "of an output that is actions alone no frame is decoded", "ending in .mp4"),
    ("--frames 5 --sheet s.jpg", "--sheet s.jpg: it is written as .png", "Pass --sheet s.png"),
    ("{bridge} --plot p.svg", "--plot p.svg: it is written as .png", "Pass --plot p.png"),
    ("--frames 5 --sheet desk.png", "writing desk.png: it exists", "add --overwrite"),
    ("{bridge} --sheet desk.png --overwrite", "another file of this run has that name", "Choose another file name"),
    ("{bridge} --sheet s.png --plot s.png", "writing s.png: another file of this run has that name", "another file"),
    ("--frames 5 --sheet x.mp4.json", "x.mp4.json: another file of this run has that name", "Choose another file name"),
    ("--frames 5 --sheet gone/s.png", "writing gone/s.png", "folder"),
    ("--frames 5 --sheet folder.png", "writing folder.png: it is a folder", "Pass the name of a file"),
    ("--frames 5 --sheet=", "--sheet '': it is empty", "Give it a value or leave it out"),
]


@pytest.mark.parametrize("words, found, next_step", WRONG, ids=[words for words, *_ in WRONG])
def test_a_picture_that_there_cannot_be_is_one_line_before_a_weight(run, monkeypatch, words, found, next_step):
    monkeypatch.setattr(Weights, "__init__", lambda *_: pytest.fail("weights were opened"))
    Path("folder.png").mkdir()
    words = words.format(bridge=" ".join(map(str, BRIDGE))).split()
    sized = [] if "--image" in words else ["--size", "64x64"]
    code, out, err = run(*words, *sized, *TINY, *([] if "-o" in words else ["-o", "x.mp4"]))
    assert (code, out) == (2, "") and found in err and next_step in err and err.count("\n") == 1, err
    assert not Path("x.mp4").exists()


def test_clips_beside_each_other_that_no_encoder_takes_are_refused(run, monkeypatch):
    monkeypatch.setattr(Weights, "__init__", lambda *_: pytest.fail("weights were opened"))
    controls = [word for hint in ("edge", "blur", "depth", "seg") for word in (f"--{hint}", "desk.png")]
    wide = ("--size", "3296x64", "--frames", 5, "--set", "show_controls=true", *TINY, "-o", "x.mp4")
    code, _, err = run(*controls, *wide)
    assert code == 2 and err.count("\n") == 1, err
    assert "5 clips of 3296 pixels beside each other: they are 16,480 wide, and an .mp4 is 16,384 at most" in err


def test_without_matplotlib_nothing_is_begun(run, monkeypatch):
    monkeypatch.setattr(Weights, "__init__", lambda *_: pytest.fail("weights were opened"))
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(*BRIDGE, *TINY, "-o", "b.mp4", "--plot", "b.png")
    assert code == 2 and err.count("\n") == 1
    assert "--plot b.png: matplotlib draws it, and it is not installed. pip install matplotlib, or drop" in err


def test_what_cannot_be_drawn_costs_nothing_else(run, monkeypatch):
    monkeypatch.setattr(plots, "drawn", lambda *_: 1 / 0)
    code, _, err = run(*BRIDGE, *TINY, "-o", "b.mp4", "--plot", "b.png")
    assert code == 1 and "drawing the actions: matplotlib could not draw it" in err
    assert Path("b.mp4").exists() and Path("b.mp4.json").exists() and Path("b.actions.json").exists()


def test_python_saves_both_and_refuses_the_same(run, figures):
    pipe = package.load(TINY_MODEL, backend="reference")
    result = pipe("pick", image="desk.png", domain="pusht", actions=PUSHED, fps=5, chunk=4, steps=1)
    assert result.actions is None
    result.save("c.mp4", plot="c.png", sheet="s.png")
    assert np.allclose(panels(figures[0])[1].patches[0].get_data()[0], [row[1] for row in PUSHED])
    assert Path("c.png").exists() and Path("s.png").exists()
    with pytest.raises(InputError, match="it exists"):
        result.save("d.mp4", plot="c.png")
    picture = pipe("a cup", frames=1, size="64x64", steps=1)
    with pytest.raises(InputError, match="text to image has no actions"):
        picture.save("p.png", plot="q.png")
    with pytest.raises(InputError, match="one picture"):
        picture.save("p.png", sheet="q.png")
    assert not Path("p.png").exists()


def test_a_resumed_run_draws_and_its_command_line_says_so(run, monkeypatch):
    from cosmos3_core.runs.generation import Generation

    write = Generation.write
    monkeypatch.setattr(Generation, "write", lambda *_: (_ for _ in ()).throw(RunError("a", "b", "c")))
    words = ("-o", "a.mp4", "--plot", "a.png", "--sheet", "s.png")
    code, _, err = run(*BRIDGE, *TINY, *words)
    assert code == 1 and "--plot a.png --sheet s.png" in err
    monkeypatch.setattr(Generation, "write", write)
    code, _, err = run("--resume", "a.mp4.state.safetensors", *words)
    assert code == 0 and Path("a.png").exists() and Path("s.png").exists(), err
