"""What a call launches on a GPU of AMD's, compiled as Triton would at the launch, without a GPU: to the code object
that a driver loads. Nothing is run, so of results and of speed this says nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from cosmos3_triton.targets import TARGETS
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature


@dataclass(frozen=True)
class Launched:
    """A compiled kernel, by its name. `vector` and `accumulation` are the registers of a thread, `spilled` those that
    did not suffice and `scratch` the bytes of memory that a thread has for them. `shared` bytes (LDS) and `threads` are
    of a program; `wave`: threads that the code takes together; `occupancy`: waves that a SIMD holds by its registers.
    `products` are the matrix instructions, `stores` those that write to device memory. `target` is whom the code object
    is for, "" where there is none. `key` is a digest of what was compiled, `seconds` how long that took."""

    kernel: str
    seconds: float
    vector: int
    accumulation: int
    spilled: int
    scratch: int
    shared: int
    threads: int
    wave: int
    occupancy: int
    target: str
    products: tuple[str, ...]
    stores: tuple[str, ...]
    key: str


@contextmanager
def compiling(arch: str) -> Iterator[list[Launched]]:
    """Within it kernels are compiled for the architecture instead of launched; yields the list of what was. What they
    would write is not written."""
    target = GPUTarget("hip", arch, TARGETS[arch].warp)
    found: list[Launched] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        """What triton 3.7's own does up to the launch, for our target instead of the device that is here."""
        backend = make_backend(target)
        bind = create_function_from_signature(self.signature, self.params, backend)
        parsed, signature, constants, attributes = self._pack_args(backend, options, *bind(*args, **options))
        source = ASTSource(self, signature, constants, attributes)
        begin = time.perf_counter()
        built = compile(source, target=target, options=vars(parsed))
        found.append(read(self.fn.__name__, built, target, time.perf_counter() - begin))

    with patch.object(JITFunction, "run", run):
        yield found


def launched(arch: str, call: Callable[[], Any]) -> list[Launched]:
    """Every kernel that the call launches."""
    with compiling(arch) as found:
        call()
    return found


def read(kernel: str, built: CompiledKernel, target: GPUTarget, seconds: float) -> Launched:
    text = built.asm["amdgcn"]

    def number(pattern: str) -> int:
        match = re.search(pattern + r":\s+(\d+)", text)
        return int(match.group(1)) if match else 0

    return Launched(
        kernel=kernel,
        seconds=seconds,
        vector=number(r"\.vgpr_count"),
        accumulation=number(r"\.agpr_count"),
        spilled=number(r"\.vgpr_spill_count"),
        scratch=number(r"\.private_segment_fixed_size"),
        shared=built.metadata.shared,
        threads=built.metadata.num_warps * built.metadata.warp_size,
        wave=number(r"\.wavefront_size"),
        occupancy=number(r"; Occupancy"),
        target=match.group(1) if (match := re.search(r'\.amdgcn_target "amdgcn-amd-amdhsa--(\w+)"', text)) else "",
        products=tuple(sorted(set(re.findall(r"^\s+(v_(?:mfma|wmma|swmmac)_\w+)", text, re.M)))),
        key=built.hash,
        stores=tuple(sorted(set(re.findall(r"\b(?:global|buffer|flat)_store_\w+", text)))),
    )
