"""The Triton kernels compiled here, without a GPU, for every generation of NVIDIA's that a row names: what
instructions, registers and shared memory they take. Fixtures: `arch` runs a test for each; `compiled` compiles for one.
For AMD's GPUs `launched.py` does that."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARED = {"sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
"""KiB of shared memory that one program can have."""


def pytest_configure(config: pytest.Config) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.exit("triton is installed for tests on Linux x86-64 only: nothing to compile here", returncode=0)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise pytest.UsageError("TRITON_INTERPRET is set: run these tests by themselves")


@dataclass(frozen=True)
class Compiled:
    """`ptx` and `sass` are assembly; `shared` (bytes) and `registers` (a thread) what a program takes; `spilled` the
    bytes of stack a thread needs because the registers did not suffice."""

    ptx: str
    sass: str
    shared: int
    registers: int
    spilled: int


@pytest.fixture(params=SHARED)
def arch(request: pytest.FixtureRequest) -> str:
    return request.param


Types = str | tuple["Types", ...]


def bare(types: Types) -> Types:
    """Without what they are multiples of."""
    return types.partition(":")[0] if isinstance(types, str) else tuple(map(bare, types))


def multiples(types: Types, place: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Where the multiples of 16 are, in tuples of tuples."""
    if isinstance(types, str):
        return [place] if types.endswith(":16") else []
    return [found for i, part in enumerate(types) for found in multiples(part, (*place, i))]


@pytest.fixture
def compiled(tmp_path):
    """compiled(kernel, "sm_90", {"x_ptr": "*bf16:16", "rows": "i32"}, {"BLOCK": 128}, num_warps=8) -> Compiled

    Types are those of the arguments that are no constants, ":16" says that a pointer or a number is a multiple of 16,
    as Triton finds out by itself at a launch. A tuple has a tuple of types; None is a constant. Fails where a program
    takes more shared memory than the architecture has, which Triton finds out at a launch only.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_for(
        kernel: Any, arch: str, types: Mapping[str, Types], constants: Mapping[str, Any], **options: int
    ) -> Compiled:
        given = [types.get(name, "constexpr") for name in kernel.arg_names]
        signature = dict(zip(kernel.arg_names, map(bare, given), strict=True))
        attributes = {place: [["tt.divisibility", 16]] for place in multiples(tuple(given))}
        source = ASTSource(kernel, signature=signature, constexprs=dict(constants), attrs=attributes)
        target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
        built = triton.compile(source, target=target, options=options)
        shared, limit = built.metadata.shared, SHARED[arch] * 1024
        assert shared <= limit, f"{kernel.__name__} takes {shared} bytes of shared memory, and {arch} has {limit}"
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        usage, sass = (
            subprocess.run([tools / "cuobjdump", option, cubin], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
        registers, spilled = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
        return Compiled(built.asm["ptx"], sass, shared, registers, spilled)

    return compile_for
