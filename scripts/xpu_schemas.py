"""Write down what cosmos3-xpu calls of the package vllm-xpu-kernels, as its wheels have it.

    python scripts/xpu_schemas.py WHEEL ...

Of each wheel backends/xpu/tests/schemas/NAME-VERSION.txt holds the schemas of the operators, the parameters of
flash_attn_varlen_func, and by head dim for which of its flags (paged, causal, local, sink, lse) attention was compiled.
Nothing of a wheel is loaded: it takes a GPU's libraries to do so.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from zipfile import ZipFile

OUT = Path(__file__).parents[1] / "backends" / "xpu" / "tests" / "schemas"
OPERATORS = {
    "_C": ("dynamic_per_token_scaled_fp8_quant", "relu2_no_mul", "rms_norm", "silu_and_mul"),
    "_xpu_C": ("apply_rotary_emb", "fp4_gemm", "fp8_gemm", "fp8_gemm_w8a16"),
    "_vllm_fa2_C": ("varlen_fwd",),
}
FLAGS = re.compile(rb"chunk_policy_head(\d+)_[A-Za-z0-9_]*?Lb([01])ELb([01])ELb([01])ELb([01])ELb([01])E")


def operators(wheel: ZipFile) -> list[str]:
    """As `library::schema`, spaces folded."""
    found = []
    for library, names in OPERATORS.items():
        data = wheel.read(f"vllm_xpu_kernels/{library}.abi3.so")
        for name in names:
            schemas = set(re.findall(rb"\0(" + name.encode() + rb"\([^\0]*\) *-> *[^\0]+)\0", data))
            (schema,) = schemas
            found.append(f"{library}::{' '.join(schema.decode().split())}")
    return found


def parameters(wheel: ZipFile) -> str:
    """Of the Python function, in order."""
    module = ast.parse(wheel.read("vllm_xpu_kernels/flash_attn_interface.py"))
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef))
    function = next(node for node in functions if node.name == "flash_attn_varlen_func")
    return f"flash_attn_varlen_func({', '.join(argument.arg for argument in function.args.args)})"


def attention(wheel: ZipFile) -> list[str]:
    """A line for each architecture and head dim: the combinations of flags that there are."""
    found = []
    for library in ("xe_2", "xe_3"):
        combinations: dict[int, set[str]] = {}
        for head, *kind in FLAGS.findall(wheel.read(f"vllm_xpu_kernels/libattn_kernels_{library}.so")):
            combinations.setdefault(int(head), set()).add(b"".join(kind).decode())
        found += [
            f"attention {library} {head}: {' '.join(sorted(combinations[head]))}" for head in sorted(combinations)
        ]
    return found


def main(wheels: list[str]) -> None:
    if not wheels:
        sys.exit("name the wheels")
    for path in map(Path, wheels):
        name, version = path.name.split("-")[:2]
        with ZipFile(path) as wheel:
            lines = [*operators(wheel), parameters(wheel), *attention(wheel)]
        (OUT / f"{name}-{version}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
