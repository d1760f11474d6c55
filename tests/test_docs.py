"""What the pages say is so: Python blocks and commands run, links point at files, cited sections exist, tables are
current.

A block of commands or Python below `<!-- device -->`, `<!-- network -->`, `<!-- install -->` or `<!-- diffusers -->`
needs that, and is only parsed. MARKED lists those commands, so that none is left out by accident.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import linecache
import math
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest
from command import cosmos3
from sources import ROOT

from benchmarks import chart, tables
from cosmos3_core.cli import cli

README = (ROOT / "README.md").read_text()
PAGES = [
    str(path.relative_to(ROOT))
    for folder in (
        ".",
        "docs",
        "benchmarks",
        *(f"backends/{name}" for name in ("cuda", "rocm", "npu", "xpu", "triton")),
    )
    for path in sorted((ROOT / folder).glob("*.md"))
]

# --- blocks and commands ---------------------------------------------------------------------------------------------

RUN = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "sh", "toml", "text", "yaml"}
BLOCK = re.compile(r"(?:<!-- (\w+) -->\n\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
CHECKED = ("cosmos3", "make", "python -m")
"""How a command begins that is run, or parsed where it is marked; others (pip) are for the reader."""

MARKED: dict[tuple[str, str], list[str]] = {
    ("README.md", "install"): ["make demo"],
    ("README.md", "network"): [
        "cosmos3 run 'a robot arm pours coffee' -o coffee.mp4",
        "cosmos3 run 'a red cube on a wooden table' -o cube.png",
        "cosmos3 run 'the arm lifts the cup' --image desk.jpg -o lift.mp4",
        "cosmos3 run 'the camera pans on' --video pan.mp4 -o on.mp4",
        "cosmos3 run 'rain on a tin roof' --sound -o rain.mp4",
        "cosmos3 run 'pick up the cup' --image desk.jpg --domain droid_lerobot --fps 15 --chunk 16 -o pick.mp4",
        "cosmos3 run 'a robot of glass' --edge auto --video pan.mp4 -o glass.mp4",
        "cosmos3 run @caption.json --size 480p:16:9 --frames 93 --seed 7 -o x.mp4",
        "cosmos3 plan 'a cup' -o cup.mp4",
        "cosmos3 run --request cup.mp4 -o again.mp4",
        "cosmos3 run 'a cup' --profile vllm-omni -o cup.png",
        "cosmos3 run 'a cup' --format fp8 --format attention=fp8 -o cup.mp4",
    ],
    ("README.md", "device"): [
        "cosmos3 warmup --size 720p",
        "cosmos3 check --backend cuda",
        "cosmos3 plan --device all --size 480p",
        "cosmos3 plan --backend cuda --arch sm_89 --memory 12 --format fp8",
    ],
    ("CONTRIBUTING.md", "install"): [
        "make install",
        "make quick",
        "make test",
        "make fuzz",
        "make test-slow",
        "make stops",
        "make faults",
        "make mutate",
        "make release",
        "python -m pytest -q -x tests/test_run.py",
    ],
    ("docs/parallel.md", "device"): [  # tests/parallel runs the program
        "python -m benchmarks.scaling --backend cuda --cards 1 2 4 8 --axes --list",
        "python -m benchmarks.scaling --backend cuda --cards 1 2 4 8 --axes --out benchmarks/results/scaling.json",
    ],
    ("docs/python.md", "diffusers"): [],
    ("docs/quantization.md", "network"): [
        "cosmos3 quantize --model nano --format w4a16 --method gptq --calibrate prompts.txt -o Cosmos3-Nano-W4A16",
        "cosmos3 quantize --model nano --format fp8 --method gptq "
        "--calibrate Cosmos3-Nano-W4A16.calibration.safetensors -o Fp8",
    ],
    ("docs/rocm.md", "device"): [
        "cosmos3 backends",
        "cosmos3 check --backend rocm --depth full --record check-mi300x.json",
        "cosmos3 evaluate --backend rocm",
        "python -m cosmos3_rocm.tune",
        "cosmos3 warmup --backend rocm --task t2v --size 1280x720 --frames 189",
        "cosmos3 plan --backend rocm --device MI300X --task t2v --size 1280x720 --frames 189",
        "cosmos3 recipes validate nano-t2v-1280x720-mi300xx1 --random-weights",
    ],
    ("docs/xpu.md", "device"): [
        "cosmos3 backends",
        "cosmos3 check --backend xpu --depth full --record check-b580.json",
        "cosmos3 plan --backend xpu --device 'Arc B580' --task t2v --size 832x480 --frames 93 --format w4a16",
        "cosmos3 recipes validate nano-t2v-832x480-w4a16-arcb580x1 --random-weights",
    ],
    ("docs/writing-a-backend.md", "device"): [
        "cosmos3 backends",
        "cosmos3 run 'two green squares' --model embedded --backend acme --steps 4 --size 64x64 -o squares.png",
        "cosmos3 check --backend acme --record acme.json",
        "cosmos3 evaluate --backend acme",
        "cosmos3 recipes validate embedded-t2i-64x64-acmeonex1",
        "cosmos3 check --backend acme --depth full --record cosmos3_acme/recipes/checks/acme-one.json",
        "cosmos3 recipes list",
        "cosmos3 matrix --installed",
    ],
}


@dataclass(frozen=True)
class Block:
    page: str
    marker: str | None
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines that begin like a command to check, less their comments."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(CHECKED)]


BLOCKS = [
    Block(page, marker or None, language, text)
    for page in RUN
    for marker, language, text in BLOCK.findall((ROOT / page).read_text())
]


def test_every_block_says_its_language():
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert sum((ROOT / page).read_text().count("\n```") for page in RUN) == 2 * len(BLOCKS)


def test_the_marked_commands_are_those_listed():
    found: dict[tuple[str, str], list[str]] = {}
    for block in BLOCKS:
        if block.marker:
            found.setdefault((block.page, block.marker), []).extend(block.commands)
    assert found == MARKED


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for number, block in enumerate(BLOCKS):
        if (block.page, block.language) == (page, "python"):
            name = f"<{page}, block {number}>"  # where inspect finds the source of a kernel, and not the page's prose
            monkeypatch.setitem(linecache.cache, name, (len(block.text), None, block.text.splitlines(True), name))
            code = compile(block.text, name, "exec")
            if block.marker is None:
                exec(code, names)
    if page == "README.md":
        assert names["clip"].numpy.shape == (17, 128, 128, 3)
        assert (tmp_path / "clip.mp4").is_file() and (tmp_path / "clip.mp4.json").is_file()


TASKS = [
    "Save",
    "Many prompts on one load",
    "Progress and preview",
    "Cancel",
    "Resume, in another process or on the command line",
    "Interleave two runs",
    "Your own noise",
    "Forms of the output",
    "Inputs in memory",
    "A web handler",
    "An own kernel",
    "The plan's numbers",
    "Errors",
]
SHORT = 9
"""Lines of code, beside imports and what is asserted."""


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_few_lines_of_python(task):
    page = (ROOT / "docs" / "python.md").read_text()
    section = page.split(f"\n## {task}\n")[1].split("\n## ")[0]
    _, language, text = BLOCK.search(section).groups()
    lines = [
        line for line in text.splitlines() if line.strip() and not line.startswith(("import ", "from ", "assert "))
    ]
    assert language == "python" and 0 < len(lines) <= SHORT


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.commands and not block.marker}))
def test_the_commands_of_a_page_run(page, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cosmos3_core").symlink_to(ROOT / "cosmos3_core")  # as in a checkout
    for block in BLOCKS:
        for command in block.commands if block.page == page and block.marker is None else ():
            program, *arguments = shlex.split(command)
            if program == "cosmos3":
                # A reader is shown pictures; that the command runs is seen of two steps as well.
                few = ["--steps", "2"] if arguments[0] == "run" and "--steps" not in arguments else []
                code, _, err = cosmos3(capsys, monkeypatch, *arguments, *few)
            else:
                run = [sys.executable, *arguments] if program == "python" else [program, *arguments]
                done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
                code, err = done.returncode, done.stderr
            assert code == 0, f"{command}\n{err}"


@pytest.mark.parametrize("command", [command for block in BLOCKS if block.marker for command in block.commands])
def test_a_marked_command_parses(command):
    program, *arguments = shlex.split(command)
    if program == "cosmos3":
        name, *arguments = arguments
        cli.commands[name].make_context(name, arguments)  # raises on an unknown option or a value of the wrong type
    elif program == "make":
        make = ["make", "--dry-run", "--assume-old=.venv/installed", *arguments]
        assert subprocess.run(make, cwd=ROOT, capture_output=True).returncode == 0
    else:
        # The repository's backends need not be installed.
        here = [*ROOT.glob(f"backends/*/{arguments[1].replace('.', '/')}.py")]
        assert here or importlib.util.find_spec(arguments[1])


# --- links, paths and citations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_point_at_files(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


CITED = re.compile(r"docs/model\.md,\s+sections?\s+((?:\d+(?:\.\d+)?(?:,\s+|\s+and\s+|\s+to\s+)?)+)")
UNRESOLVED = re.compile(r"\bspec (?:sections? )?\d", re.I)


def test_the_results_that_the_page_of_support_names_exist():
    named = set(re.findall(r"benchmarks/results/[\w.-]+\.json", (ROOT / "docs/SUPPORT.md").read_text()))
    assert named and not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_the_sections_that_the_code_cites_exist():
    headings = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", (ROOT / "docs" / "model.md").read_text(), re.M))
    folders = [ROOT / name for name in ("cosmos3_core", "backends", "scripts", "tests")]
    cited = {}
    for path in [path for folder in folders for path in folder.rglob("*.py")]:
        text = re.sub(r"\n\s*#?\s*", " ", path.read_text("utf-8"))
        assert not UNRESOLVED.search(text), f"{path} cites a specification that is not in the repository"
        cited |= {number: path for found in CITED.findall(text) for number in re.findall(r"\d+(?:\.\d+)?", found)}
    assert len(cited) > 10
    assert not {number: path for number, path in cited.items() if number not in headings}


def test_the_paths_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in set(re.findall(r"`((?:[a-z]+/)[a-z_/]*\.?[a-z]*)[:`]", text)):
        assert (ROOT / "cosmos3_core" / path).exists() or (ROOT / path).exists(), path


def test_the_pages_made_of_rows_are_current():
    check = [sys.executable, ROOT / "scripts" / "pages.py", "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), f"type python scripts/pages.py {done.stderr}"


RESULTS = {path.name: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}


def test_the_chart_is_the_results():
    assert chart.PICTURE.read_text("utf-8") == chart.render(), "type python -m benchmarks.tables"
    assert (chart.PICTURE.relative_to(ROOT)).as_posix() in README


def test_the_tables_of_the_benchmarks_are_the_results():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    written = page.split(tables.BEGIN)[1].split(tables.END)[0]
    assert written.strip() == tables.render().strip(), "type python -m benchmarks.tables"
    for name, result in RESULTS.items():
        assert f"(results/{name})" in page
        assert result["environment"]["command"] and result["environment"]["versions"]["torch"]


@pytest.mark.parametrize("name", [name for name, result in RESULTS.items() if result["benchmark"] == "step"])
def test_what_was_timed_gave_the_same(name):
    for one in RESULTS[name]["results"]:
        # bf16 at Nano's depth is 3 to 4 % from fp32, and as far from itself.
        assert one["formats"] or one["relative_error"] <= min(RESULTS[name]["settings"]["tolerance"], 0.05)
        if name in README:
            assert f"{one['speed_ratio']:.2f}x" in chart.render()


# ---- numbers ---------------------------------------------------------------------------------------------------------

BAD_INPUTS = ("test_bad_input", "test_bounds")


def cases(module: str) -> int:
    """Of the tests in a module: a row of each table of a test, or the test itself."""
    count = 0
    for name, test in vars(importlib.import_module(module)).items():
        if name.startswith("test_") and callable(test):
            marks = getattr(test, "pytestmark", ())
            count += math.prod(len(tuple(mark.args[1])) for mark in marks if mark.name == "parametrize")
    return count


def test_the_readme_says_how_many_bad_inputs_are_tried():
    said = int(re.search(r"about ([\d,]+) bad inputs", README)[1].replace(",", ""))
    tried = sum(map(cases, BAD_INPUTS))
    assert abs(tried - said) <= tried // 20, f"write about {tried // 10 * 10} bad inputs"
