"""Write the tables of docs/embedded.md, and one of docs/quantization.md, from the committed results.

python -m tools.embedded.page
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cosmos3_core.plan.cost.units import GIB

from .by_format import NONE as AS_IT_IS
from .by_format import error_of
from .faults import NONE, missed
from .ranking import SHARES

FOLDER = Path(__file__).parent
PAGES = [FOLDER.parents[1] / "docs" / name for name in ("embedded.md", "quantization.md")]
NANO = FOLDER.parents[1] / "benchmarks" / "results"
TAKEN = ("Nano's GiB", "Nano's ms: picture / 480p / 720p")
DEPTHS = {"full": "evaluation-full.json", "quick": "evaluation-quick.json"}
"""What `cosmos3 evaluate --json` printed at each depth."""


def read(name: str) -> Any:
    """A result, None where there is none yet."""
    file = FOLDER / name
    return json.loads(file.read_text()) if file.exists() else None


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def evaluation() -> str:
    parts = []
    for depth, name in DEPTHS.items():
        if found := read(name):
            rows = (
                (f"{one['task']} {one['measure']}", f"{one['value']:.4g}", bound(one), str(one["of"]))
                for one in found["measures"]
            )
            where = f"`--depth {depth}` on {found['device']} in {found['dtype']}, {found['seconds']:.0f} s:"
            parts.append(f"{where}\n\n{table(('Measure', 'Found', 'Bound', 'Of'), rows)}")
    return "\n".join(parts)


def bound(measure: dict[str, Any]) -> str:
    sides = [
        f"{said} {measure[key]:g}"
        for key, said in (("least", "at least"), ("most", "at most"))
        if measure[key] is not None
    ]
    return " ".join(sides) + ("" if measure["met"] else ", **not met**")


def again() -> str:
    """What the model in the package reaches beside one that was trained again; what both were judged by."""
    if (found := read("again/evaluation.json")) is None or (package := read(DEPTHS["full"])) is None:
        return ""
    first, second = (
        {f"{one['task']} {one['measure']}": one["value"] for one in result["measures"]} for result in (package, found)
    )
    rows = ((name, f"{first[name]:.4g}", f"{second[name]:.4g}") for name in first if name in second)
    return table(("Measure", "In the package", "Trained again"), rows)


def by_format() -> str:
    """Ascending in what the velocity loses, with the bounds that are missed, and beside it what Nano takes."""
    nano = by_name(NANO, "quantized-nano*-h200.json", "results", "works")
    found = by_name(FOLDER, "by_format*.json", "formats", "measures")
    done, as_it_is = sorted(found.values(), key=error_of), found[AS_IT_IS]
    rows = (
        (
            f"`{one['format']}`" if one["formats"] else f"none, {one['dtype']}",
            f"{error_of(one):.4f}",
            f"{error_of(one) / error_of(as_it_is) - 1:+.1%}" if one["formats"] else "",
            f"{share_of(one):.1%}",
            ", ".join(f"{m['task']} {m['measure']}" for m in one["measures"] if not m["met"]) or "none",
            *taken(nano.get(one["format"])),
        )
        for one in done
    )
    head = ("Format", "Velocity error", "More than without", "Mean of the shares", "Bounds missed", *TAKEN)
    return table(head, rows)


def by_name(folder: Path, files: str, key: str, measured: str) -> dict[str, dict[str, Any]]:
    """Results of several files by their formats, those that have what is measured. Of two the last file's counts."""
    results = (one for file in sorted(folder.glob(files)) for one in json.loads(file.read_text())[key])
    return {one["format"]: one for one in results if measured in one}


def taken(nano: dict[str, Any] | None) -> tuple[str, str]:
    """Of a format that was measured at Nano's size: its memory and times."""
    if nano is None:
        return "not measured", "not measured"
    times = (f"{1e3 * timed['median_s']:,.0f}" for timed in nano["works"].values())
    return f"{nano['peak']['reserved'] / GIB:.1f}", " / ".join(times)


def share_of(result: dict[str, Any]) -> float:
    shares = [one["value"] for one in result["measures"] if one["measure"] in SHARES]
    return sum(shares) / len(shares)


def ranking() -> str:
    if (found := read("ranking.json")) is None:
        return ""
    rows = (
        (name, f"{one['lost']:.5f}", f"{one['worse_in']:.0%}", f"{one['shares']:.1%}")
        for name, one in found["formats"].items()
    )
    head = ("Weights", "Velocity error beyond that of the weights as they are", "Worse in", "Mean of the shares")
    return f"At depth {found['depth']} on {found['device']}:\n\n{table(head, rows)}"


def faults() -> str:
    if (found := read("faults.json")) is None:
        return ""
    rows = {name: missed(values, found["depth"]) for name, values in found["found"].items()}
    right = set(rows.pop(NONE))
    caught = sum(bool(set(wrong) - right) for wrong in rows.values())
    said = table(("Fault", "Bounds missed"), ((name, ", ".join(wrong) or "none") for name, wrong in rows.items()))
    return f"{caught} of {len(rows)} are found.\n\n{said}"


def methods() -> str:
    if (found := read("methods.json")) is None:
        return ""
    errors: dict[tuple[str, ...], dict[str, str]] = {}
    for one in found["methods"]:
        group = f", groups of {one['group']}" if one["group"] else ""
        row = errors.setdefault((f"`{one['format']}`{group}", f"`{one['dialect']}`"), {})
        row[one["method"]] = f"{one['error']:.4f}"
    names = list(dict.fromkeys(one["method"] for one in found["methods"]))
    head = ("Format", "Dialect", *(f"`{name}`" for name in names))
    return table(head, ((*key, *(row[name] for name in names)) for key, row in errors.items()))


def rendered(text: str) -> str:
    """The page with its tables made anew."""
    for make in (evaluation, again, by_format, ranking, faults, methods):
        begin = f"<!-- {make.__name__}: python -m tools.embedded.page -->"
        made = f"\n{make()}" if make() else ""
        text = re.sub(
            f"({re.escape(begin)}\n).*?(<!-- end -->)", rf"\1{made}\n\2" if made else r"\1\2", text, flags=re.S
        )
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
