"""Which test called which of the vendor's operators, on which chips. EXERCISED keeps it; of it and of SCHEMAS the table
of docs/npu.md is made.

    python -m rehearsal.exercised            writes the table, from a checkout's root
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from . import schemas

EXERCISED = schemas.HERE / "exercised.json"
BEGIN, END = "<!-- operators: python -m rehearsal.exercised -->", "<!-- end of operators -->"
Found = dict[str, dict[str, str]]
"""By operator and chip, the first test that called it: its file and function."""


def kept() -> Found:
    found: Found = json.loads(EXERCISED.read_text("utf-8"))
    return found


def write(chip: str, found: Mapping[str, str]) -> None:
    """Keep what a whole run on a chip has found."""
    known = kept() if EXERCISED.exists() else {}
    for name in {*known, *found}:
        of_chips = {other: test for other, test in known.get(name, {}).items() if other != chip}
        known[name] = of_chips | ({chip: found[name]} if name in found else {})
    text = json.dumps({name: known[name] for name in sorted(known) if known[name]}, indent=2, sort_keys=True)
    EXERCISED.write_text(text + "\n", "utf-8")


def table() -> str:
    """Markdown."""
    lines = ["| operator, as the wheel registers it | rehearsed on | by |", "| --- | --- | --- |"]
    seen = kept()
    for name, schema in schemas.kept().items():
        tests = seen.get(name, {})
        by = ", ".join(f"`{test}`" for test in sorted(set(tests.values())))
        shown = schema.replace("|", "\\|")
        lines.append(f"| `{shown}` | {', '.join(sorted(tests))} | {by} |")
    return "\n".join(lines)


def filled(page: str) -> str:
    """A page with today's table between its marks. Raises ValueError where there are none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} or no {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> None:
    page = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/npu.md")
    page.write_text(filled(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
