"""What a row launches for a GPU of AMD's, compiled as Triton would at the launch, without a GPU: to the code object
that a driver loads. Nothing is run, so of results and of speed this says nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

SHARED = {"gfx90a": 64, "gfx942": 64, "gfx950": 160, "gfx1100": 64, "gfx1151": 64, "gfx1201": 64}
"""KiB of shared memory (LDS) that one program can have. AMD's compiler does not look."""
MOST_THREADS = 1024
"""Of one program, on each."""


@dataclass(frozen=True)
class Launched:
    """`assembly` is the kernel's; `elf` the code object; `shared` the bytes and `threads` what a program takes;
    `spilled` the vector registers that did not suffice and `scratch` the bytes of memory that a thread has for them."""

    assembly: str
    elf: bytes
    shared: int
    threads: int
    spilled: int
    scratch: int

    @property
    def stores(self) -> set[str]:
        """Instructions that write to device memory."""
        return set(re.findall(r"\b(?:global|buffer|flat)_store_\w+", self.assembly))


def launched(monkeypatch: pytest.MonkeyPatch, arch: str, call: Callable[[], Any]) -> list[Launched]:
    """Every kernel that the call launches, which are compiled and not run: the call's results are not written."""
    target = GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    found: list[Launched] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """What triton 3.7's own does up to the launch, for our target instead of the device that is here."""
        backend = make_backend(target)
        bind = create_function_from_signature(self.signature, self.params, backend)
        packed = self._pack_args(backend, options, *bind(*args, **options))
        parsed, signature, constants, attributes = packed
        source = ASTSource(self, signature, constants, attributes)
        found.append(read(compile(source, target=target, options=vars(parsed)), target))

    with monkeypatch.context() as patched:
        patched.setattr(JITFunction, "run", run)
        call()
    return found


def read(built: CompiledKernel, target: GPUTarget) -> Launched:
    text = built.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text).group(1))

    return Launched(
        assembly=text,
        elf=built.asm["hsaco"],
        shared=built.metadata.shared,
        threads=built.metadata.num_warps * target.warp_size,
        spilled=number("vgpr_spill_count"),
        scratch=number("private_segment_fixed_size"),
    )
