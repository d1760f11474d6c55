"""The vendor's operators that this package calls: which they are, and their schemas as a wheel of torch_npu registers
them, read from its library without loading it.

    python -m rehearsal.schemas WHEEL            compares a wheel with SCHEMAS; exit code 1 where one differs
    python -m rehearsal.schemas WHEEL --write    makes SCHEMAS from it
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SCHEMAS = HERE / "schemas.txt"
SOURCES = HERE.parent / "cosmos3_npu"
BY_TORCH = ("npu_fusion_attention_v3",)
"""What torch_npu calls for torch's scaled_dot_product_attention on the 910s; the 950 has npu_fusion_attention there."""
LIBRARY = "torch_npu/lib/libtorch_npu.so"
REGISTERED = re.compile(rb"(?<![\w:])(npu_[a-z0-9_]+\([^\x00]*?\) -> [^\x00]+)\x00")


class Call(NamedTuple):
    """A call of an operator: how many arguments by position, and which by name."""

    operator: str
    positional: int
    named: tuple[str, ...]
    where: str


def registered(wheel: Path) -> dict[str, str]:
    """Schemas by operator, of a wheel or of a folder where one is installed. Overloads with a name are left out."""
    if wheel.is_dir():
        held = (wheel / LIBRARY).read_bytes()
    else:
        with zipfile.ZipFile(wheel) as archive:
            held = archive.read(LIBRARY)
    found = (text.decode() for text in REGISTERED.findall(held))
    return {schema.partition("(")[0]: schema for schema in found}


def kept() -> dict[str, str]:
    """Those of SCHEMAS."""
    lines = SCHEMAS.read_text("utf-8").splitlines()
    return {line.partition("(")[0]: line for line in lines if not line.startswith("#")}


def calls(sources: Path = SOURCES) -> Iterator[Call]:
    """Calls of torch_npu's operators in this package. `**options` count as the keys of what is written in the file."""
    for path in sorted(sources.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch_npu":
                named = tuple(keyword.arg for keyword in node.keywords if keyword.arg)
                yield Call(node.func.attr, len(node.args), named, f"{path.name}:{node.lineno}")


def used() -> list[str]:
    """Operators that this package calls, and those that torch does for it."""
    return sorted({*BY_TORCH, *(call.operator for call in calls())})


def parameters(schema: str) -> tuple[list[str], list[str]]:
    """Names that may be given by position, and all names."""
    inside = schema[schema.index("(") + 1 : schema.index(") -> ")]
    parts = [part.strip() for part in re.split(r",\s*(?![^\[]*\])", inside)]
    names = [part if part == "*" else part.partition("=")[0].split()[-1] for part in parts]
    by_position = names[: names.index("*")] if "*" in names else names
    return by_position, [name for name in names if name != "*"]


def misfit(call: Call, schema: str) -> str | None:
    """Why a call does not fit a schema."""
    by_position, names = parameters(schema)
    if call.positional > len(by_position):
        return f"{call.where}: {call.operator} takes {len(by_position)} arguments by position, not {call.positional}"
    unknown = [name for name in call.named if name not in names]
    return f"{call.where}: {call.operator} takes no {', '.join(unknown)}" if unknown else None


def changed(wheel: dict[str, str], ours: dict[str, str]) -> list[str]:
    """What a wheel has otherwise."""
    return [
        f"{name}\n  was {schema}\n  is  {wheel.get(name)}" for name, schema in ours.items() if wheel.get(name) != schema
    ]


def main() -> None:
    wheel, *options = sys.argv[1:]
    found = registered(Path(wheel))
    if options == ["--write"]:
        SCHEMAS.write_text("\n".join([f"# {Path(wheel).name}", *(found[name] for name in used())]) + "\n", "utf-8")
        return
    differences = changed(found, kept())
    print("\n".join(differences) or f"{len(kept())} schemas are the same")
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
