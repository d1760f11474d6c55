"""Write down what the functions of AITER take that cosmos3-rocm calls.

    python scripts/rocm_signatures.py SOURCE TARGET "what SOURCE is"

SOURCE is a wheel, or a folder with the package `aiter` in it. Nothing of it is imported or run; of each function
one line is kept: file, name and parameters, with their defaults and without annotations.
"""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

ROCM = Path(__file__).parents[1] / "backends" / "rocm"
sys.path += [str(folder) for folder in (ROCM, ROCM.parent / "triton") if str(folder) not in sys.path]
from cosmos3_rocm.signatures import FUNCTIONS, parameters  # noqa: E402

OUT = ROCM / "tests" / "signatures"


def text_of(source: Path, file: str) -> str | None:
    """A file of the package, by its path in it."""
    if source.is_dir():
        path = source / "aiter" / file
        return path.read_text("utf-8") if path.is_file() else None
    with zipfile.ZipFile(source) as wheel:
        name = f"aiter/{file}"
        return wheel.read(name).decode("utf-8") if name in wheel.namelist() else None


def bare(found: ast.arguments) -> str:
    """Parameters without annotations."""
    for one in (*found.posonlyargs, *found.args, *found.kwonlyargs):
        one.annotation = None
    return ast.unparse(found)


def lines_of(source: Path) -> list[str]:
    """Of every function that is there."""
    lines = []
    for name, function in sorted(FUNCTIONS.items(), key=lambda item: (item[1].file, item[0])):
        text = text_of(source, function.file)
        found = parameters(text).get(name) if text is not None else None
        if found is not None:
            lines.append(f"{function.file} {name}({bare(found)})")
    return lines


def recorded(file: Path) -> dict[str, tuple[str, str]]:
    """Of each function of a record: its file and its parameters."""
    lines = [line.split(" ", 1) for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
    return {text.partition("(")[0]: (path, text.partition("(")[2][:-1]) for path, text in lines}


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    source, target, said = sys.argv[1:]
    made = [f"# {said}", *lines_of(Path(source))]
    (OUT / target).write_text("\n".join(made) + "\n", "utf-8")
