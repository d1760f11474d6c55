"""A plugin for pytest: Triton's kernels run on the CPU, in Triton's interpreter. It shows faults of indexing, masks and
arithmetic, and tells nothing of speed or races.

Triton reads TRITON_INTERPRET while it is imported, so these tests have a process of their own, and this file sets it.
The interpreter of triton 3.7.1 is wrong in four places, which `repair` puts right; `test_interpreter.py` says when a
newer one no longer needs that. Arithmetic on bf16 itself stays wrong (it works on the bits): kernels compute in fp32.
"""

from __future__ import annotations

import os
import platform
import sys

import numpy as np
import pytest
import torch

INTEGERS = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def pytest_configure(config: pytest.Config) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.exit("triton is installed for tests on Linux x86-64 only: nothing to interpret here", returncode=0)
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.cdiv, InterpretedFunction):
        raise pytest.UsageError("triton was imported before TRITON_INTERPRET was set: run these tests by themselves")
    repair()


def repair() -> None:
    """Rounding to bf16 (3.7.1 truncates) and to fp8 (3.7.1 loses the carry), products of bf16 (3.7.1 multiplies the
    bits as integers), and e4m3fnuz (which 3.7.1 has a type for and does not find)."""
    import triton.language as tl
    from triton.runtime import interpreter

    types = {
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float8e4b8: torch.float8_e4m3fnuz,
        tl.float8e5: torch.float8_e5m2,
        tl.bfloat16: torch.bfloat16,
        tl.float16: torch.float16,
        tl.float32: torch.float32,
        tl.float64: torch.float64,
    }
    as_it_was = interpreter._convert_float

    def convert(data, source, target, rounding):
        nearest = rounding in (None, interpreter._ir.ROUNDING_MODE.RTNE)
        if not nearest or source not in types or target not in types:
            return as_it_was(data, source, target, rounding)
        bits = np.ascontiguousarray(data).reshape(-1).view(f"i{data.itemsize}" if data.itemsize > 1 else "u1")
        values = torch.from_numpy(bits.copy()).view(types[source])
        if target.primitive_bitwidth == 8:  # as the hardware does: the largest number in place of an infinity
            largest = torch.finfo(types[target]).max
            values = values.float().clamp(-largest, largest)
        rounded = values.to(types[target]).view(INTEGERS[target.primitive_bitwidth])
        return rounded.numpy().view(f"u{target.primitive_bitwidth // 8}").reshape(data.shape)

    def widened(handle):
        dtype = handle.dtype.scalar
        if dtype.is_floating() and dtype.primitive_bitwidth < 32:
            return convert(handle.data, dtype, tl.float32, None).view(np.float32)
        return handle.data

    def dot(self, a, b, accumulator, input_precision, max_num_imprecise_acc):
        product = np.matmul(widened(a), widened(b), dtype=accumulator.data.dtype)
        return interpreter.TensorHandle(product + accumulator.data, accumulator.dtype.scalar)

    patch_lang_core = interpreter._patch_lang_core

    def with_fnuz(lang, scope):
        patch_lang_core(lang, scope)
        found = lang.dtype.to_ir
        scope.set_attr(
            lang.dtype, "to_ir", lambda self, builder: self if self == tl.float8e4b8 else found(self, builder)
        )

    interpreter._patch_lang_core = with_fnuz
    interpreter._convert_float = convert
    interpreter.InterpreterBuilder.create_dot = dot
