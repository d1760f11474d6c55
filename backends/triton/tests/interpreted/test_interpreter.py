"""The interpreter after its repair, and the faults that make the repair necessary."""

from __future__ import annotations

import inspect

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def cast(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def product(a_ptr, b_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(y_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


NARROW = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_casts_round_to_nearest_even(dtype):
    """Of normal and subnormal numbers, of ties and of what carries into the exponent."""
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    x[:256] *= smallest
    x[256:512] *= largest / 8
    x[512:768] = x[512:768].to(dtype).float() * (1 + 2.0 ** -torch.arange(2, 10).repeat(32))
    x[768:776] = torch.tensor([0.0, -0.0, 1.9999999, -1.9999999, 255.99, 0.06249, 1.5, largest])
    y = torch.empty(1024, dtype=dtype)
    cast[(1,)](x.clamp(-largest, largest), y, 1024)
    expected = x.clamp(-largest, largest).to(dtype)
    assert torch.equal(y.float(), expected.float())
    back = torch.empty(1024)
    cast[(1,)](y, back, 1024)
    assert torch.equal(back, expected.float())


def test_a_cast_to_8_bits_saturates():
    y = torch.empty(4, dtype=torch.float8_e4m3fn)
    cast[(1,)](torch.tensor([449.0, -1e9, torch.inf, torch.nan]), y, 4)
    assert y[:3].tolist() == [448.0, -448.0, 448.0] and y[3].isnan()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_products_of_narrow_floats(dtype):
    a, b = (torch.randn(32, 32, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (1, 2))
    y = torch.empty(32, 32)
    product[(1,)](a, b, y, 32)
    torch.testing.assert_close(y, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_the_repair_is_still_needed():
    """When triton's own interpreter gets one of these right, that part of `conftest.repair` can go."""
    source = inspect.getsource(interpreter)
    namespace = dict(vars(interpreter))
    exec(compile(source, interpreter.__file__, "exec"), namespace)  # as triton ships it, beside the repaired module
    x, half = torch.tensor([1.9999999, 1.0 + 2**-8 + 2**-12]), tl.float32
    rounding = interpreter._ir.ROUNDING_MODE.RTNE
    bits = namespace["_convert_float"](x.numpy(), half, tl.bfloat16, None)
    assert bits.view("i2").tolist() != x.bfloat16().view(torch.int16).tolist(), "casts to bf16 are right now"
    bits = namespace["_convert_float"](x.numpy(), half, tl.float8e4nv, rounding)
    assert bits.tolist() != x.to(torch.float8_e4m3fn).view(torch.uint8).tolist(), "casts to fp8 are right now"
    ones = namespace["TensorHandle"](torch.ones(2, 2).bfloat16().view(torch.int16).numpy(), tl.bfloat16)
    zeros = namespace["TensorHandle"](torch.zeros(2, 2).numpy(), tl.float32)
    found = namespace["InterpreterBuilder"]().create_dot(ones, ones, zeros, None, None)
    assert found.data.tolist() != [[2.0, 2.0], [2.0, 2.0]], "products of bf16 are right now"
    assert "get_fp8e4b8_ty" not in inspect.getsource(namespace["_patch_lang_core"]), "e4m3fnuz is found now"
