"""The reference ops against their definitions, written out in fp64: they are what every other kernel is judged by."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cosmos3_core.contract import COMPOSITES, OPS, Device, FinishWeights, Layer, ProjectWeights, Residual
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import multiply
from cosmos3_core.reference import BACKEND, build_ops, layers, ops
from cosmos3_core.reference.comm import TorchComm
from cosmos3_core.reference.memory import TorchMemory
from cosmos3_core.testing import cases

B, S, D = 2, 7, 16
HEADS = [(4, 4), (4, 1), (32, 8), (64, 8)]
SEGMENTS = [(S,), (3, 9), (1, 8, 4)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def attention_inputs(heads: int, kv_heads: int, lengths: tuple[int, ...], queries: int = S):
    """q, and one (k, v) for each length; sharp scores, so that a wrong key shows."""
    segments = [
        (2 * normal(B, n, kv_heads, D, seed=10 * i), normal(B, n, kv_heads, D, seed=10 * i + 5))
        for i, n in enumerate(lengths)
    ]
    return normal(B, queries, heads, D, seed=99), segments


def own_attention(q: Tensor, segments: list[tuple[Tensor, Tensor]], causal: bool = False) -> tuple[Tensor, Tensor]:
    """(out [B, S, H, D], lse [B, H, S]) in fp64, head by head and query by query."""
    q, k, v = q.double(), *(torch.cat(parts, dim=1).double() for parts in zip(*segments, strict=True))
    batch, queries, heads, width = q.shape
    out, lse = torch.empty_like(q), torch.empty(batch, heads, queries, dtype=torch.float64)
    for b in range(batch):
        for head in range(heads):
            kv = head * k.shape[2] // heads
            for i in range(queries):
                seen = i + 1 if causal else k.shape[1]
                scores = k[b, :seen, kv] @ q[b, i, head] / math.sqrt(width)
                weights = (scores - scores.max()).exp()
                out[b, i, head] = weights @ v[b, :seen, kv] / weights.sum()
                lse[b, head, i] = scores.max() + weights.sum().log()
    return out, lse


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("lengths", SEGMENTS)
def test_attention_is_a_softmax_over_all_segments(heads, kv_heads, lengths):
    q, segments = attention_inputs(heads, kv_heads, lengths)
    out, lse = ops.attention(q, segments, want_lse=True)
    expected, expected_lse = own_attention(q, segments)
    assert out.shape == q.shape and out.dtype == q.dtype and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_causal_attention_sees_itself_and_the_past(heads, kv_heads):
    q, [(k, v)] = attention_inputs(heads, kv_heads, (S,))
    out, lse = ops.attention(q, [(k, v)], causal=True, want_lse=True)
    expected, expected_lse = own_attention(q, [(k, v)], causal=True)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=3e-6)

    later_k, later_v = k.clone(), v.clone()
    later_k[:, 4:], later_v[:, 4:] = 50.0, -50.0
    changed, _ = ops.attention(q, [(later_k, later_v)], causal=True)
    torch.testing.assert_close(changed[:, :4], out[:, :4], rtol=0, atol=1e-6)
    assert (changed[:, 4:] - out[:, 4:]).abs().amax() > 1


def test_causal_attention_needs_as_many_keys_as_queries():
    q, segments = attention_inputs(4, 2, (S + 1,))
    with pytest.raises(ValueError, match="as many keys as queries"):
        ops.attention(q, segments, causal=True)


def test_a_query_head_reads_the_key_head_of_its_group():
    """Key heads hold distinct constants: what comes out of head j names the key head it read."""
    k, v = torch.zeros(1, 5, 8, D), torch.arange(8.0).view(1, 1, 8, 1).expand(1, 5, 8, D).contiguous()
    for heads in (32, 64):
        out, _ = ops.attention(normal(1, 3, heads, D), [(k, v)])
        assert out[0, 0, :, 0].round().int().tolist() == [head // (heads // 8) for head in range(heads)]


def test_lse_is_only_made_when_wanted():
    q, segments = attention_inputs(4, 2, (S,))
    out, lse = ops.attention(q, segments)
    assert lse is None and torch.equal(out, ops.attention(q, segments, want_lse=True)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_lse_in_blocks_is_lse(monkeypatch, causal):
    q, segments = attention_inputs(32, 8, (S,))
    monkeypatch.setattr("cosmos3_core.contract.attention.LSE_QUERY_CHUNK", 3)
    _, lse = ops.attention(q, segments, causal=causal, want_lse=True)
    torch.testing.assert_close(lse.double(), own_attention(q, segments, causal)[1], rtol=0, atol=3e-6)


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_partial_results_merge_by_their_lse(heads, kv_heads):
    """The contract's promise to kernels that attend to one segment at a time."""
    q, segments = attention_inputs(heads, kv_heads, (3, 9, 2))
    parts = [ops.attention(q, [segment], want_lse=True) for segment in segments]
    lse_BHS = torch.stack([lse for _, lse in parts])
    whole = lse_BHS.logsumexp(dim=0)
    weights = (lse_BHS - whole).exp().transpose(2, 3).unsqueeze(-1)
    merged = sum(weight * out for weight, (out, _) in zip(weights, parts, strict=True))
    out, lse = ops.attention(q, segments, want_lse=True)
    torch.testing.assert_close(merged, out, rtol=0, atol=3e-6)
    torch.testing.assert_close(whole, lse, rtol=0, atol=3e-6)


def test_half_precision_attention_keeps_its_type_and_an_exact_lse():
    q, segments = attention_inputs(32, 8, (3, 9))
    q, segments = q.bfloat16(), [(k.bfloat16(), v.bfloat16()) for k, v in segments]
    out, lse = ops.attention(q, segments, want_lse=True)
    expected, expected_lse = own_attention(q, segments)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=3e-6)


# Norms -----------------------------------------------------------------------------------------------------------


def normalised(x: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def rounded_first(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Qwen: to the dtype, then times the weight (a product of two bf16 numbers is exact in fp64)."""
    return (normalised(x, eps).to(x.dtype).double() * weight.double()).to(x.dtype)


def rounded_once(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Nemotron: times the weight in full precision, then to the dtype."""
    return (normalised(x, eps) * weight.double()).to(x.dtype)


ORDERS = {False: rounded_first, True: rounded_once}


def share_unequal(a: Tensor, b: Tensor) -> float:
    return (a != b).double().mean().item()


@pytest.mark.parametrize("weight_fp32", [False, True])
def test_both_rounding_orders_of_the_norm_in_bf16(weight_fp32):
    x, weight = normal(300, 64).bfloat16(), (1 + normal(64)).bfloat16()
    out, z = ops.rms_norm(x, weight, eps=1e-5, weight_fp32=weight_fp32)
    assert torch.equal(z, x) and out.dtype == torch.bfloat16
    # fp32 and fp64 fall on different sides of a rounding boundary once in about 2**16.
    assert share_unequal(out, ORDERS[weight_fp32](x, weight, 1e-5)) < 1e-3
    assert share_unequal(out, ORDERS[not weight_fp32](x, weight, 1e-5)) > 0.1


@pytest.mark.parametrize("weight_fp32", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 1.0])
def test_the_norm_in_fp32(weight_fp32, eps):
    x, weight = 3 * normal(5, 64), 1 + normal(64)
    out, _ = ops.rms_norm(x, weight, eps=eps, weight_fp32=weight_fp32)
    torch.testing.assert_close(out.double(), normalised(x, eps) * weight.double(), rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_fp32", [False, True])
def test_the_norm_adds_the_residual_and_returns_the_sum(dtype, weight_fp32):
    x, residual, weight = (normal(40, 64, seed=i).to(dtype) for i in (1, 2, 3))
    before = x.clone(), residual.clone()
    out, z = ops.rms_norm(x, weight[0], eps=1e-6, residual_MI=residual, weight_fp32=weight_fp32)
    expected_z = (x.double() + residual.double()).to(dtype)
    assert torch.equal(z, expected_z) and z.dtype == out.dtype == dtype
    expected = ORDERS[weight_fp32](expected_z, weight[0], 1e-6)
    if dtype == torch.float32:
        torch.testing.assert_close(out, expected, rtol=3e-6, atol=1e-6)
    else:
        assert share_unequal(out, expected) < 1e-3
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1]), "inputs are left alone"


def test_the_mean_is_taken_in_fp32():
    """The squares of these overflow fp16, and their sum loses its small part in bf16."""
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    out, _ = ops.rms_norm(x, torch.ones(64, dtype=torch.float16), eps=1e-6)
    torch.testing.assert_close(out, torch.ones_like(out))


# Norm and rotation -----------------------------------------------------------------------------------------------


def tables(batch: int, length: int = S, width: int = D) -> tuple[Tensor, Tensor]:
    """cos and sin of angles that repeat in both halves, as rotary tables do."""
    angles = normal(batch, length, width // 2, seed=3)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def own_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + D/2) turned by its angle, in fp64."""
    x, half, out = x.double(), x.shape[-1] // 2, torch.empty(x.shape, dtype=torch.float64)
    for i in range(half):
        c, s = cos[:, :, None, i].double(), sin[:, :, None, i].double()
        out[..., i] = x[..., i] * c - x[..., i + half] * s
        out[..., i + half] = x[..., i + half] * c + x[..., i] * s
    return out


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("weight_fp32", [False, True])
def test_heads_are_normed_and_rotated(batch, weight_fp32):
    q, k, plain = normal(B, S, 6, D, seed=1), normal(B, S, 2, D, seed=2), normal(B, S, 3, D, seed=3)
    q_weight, k_weight = 1 + normal(D, seed=4), 1 + normal(D, seed=5)
    cos, sin = tables(batch)
    heads = [(q, q_weight), (k, k_weight), (plain, None)]
    found = ops.norm_rope(heads, cos, sin, eps=1e-2, weight_fp32=weight_fp32)
    assert [tensor.shape for tensor in found] == [x.shape for x, _ in heads]
    for tensor, (x, weight) in zip(found, heads, strict=True):
        y = x.double() if weight is None else normalised(x, 1e-2) * weight.double()
        torch.testing.assert_close(tensor.double(), own_rotation(y, cos, sin), rtol=0, atol=3e-6)


def test_a_head_without_a_weight_is_rotated_only():
    """A rotation keeps the length of every pair, which a norm would not."""
    x = 5 * normal(B, S, 3, D)
    (found,) = ops.norm_rope([(x, None)], *tables(1), eps=1e-6)
    for y, z in zip(x.chunk(2, dim=-1), found.chunk(2, dim=-1), strict=True):
        assert not torch.allclose(y, z, atol=0.1)
    lengths, found_lengths = (t.unflatten(-1, (2, D // 2)).norm(dim=-2) for t in (x, found))
    torch.testing.assert_close(lengths, found_lengths, rtol=1e-5, atol=1e-5)


def test_half_of_the_head_is_the_other_coordinate():
    """A quarter turn sends the first half to the second and minus the second to the first: halves, not pairs."""
    x = torch.arange(float(D)).view(1, 1, 1, D)
    quarter = torch.ones(1, 1, D)
    (found,) = ops.norm_rope([(x, None)], torch.zeros_like(quarter), quarter, eps=1e-6)
    assert found.flatten().tolist() == [*range(-8, -16, -1), *range(8)]


@pytest.mark.parametrize("weight_fp32", [False, True])
def test_both_rounding_orders_of_the_head_norm_in_bf16(weight_fp32):
    x, weight = normal(1, 200, 4, D).bfloat16(), (1 + normal(D)).bfloat16()
    still = torch.ones(1, 200, D).bfloat16()
    (found,) = ops.norm_rope([(x, weight)], still, torch.zeros_like(still), eps=1e-6, weight_fp32=weight_fp32)
    assert found.dtype == torch.bfloat16
    assert share_unequal(found, ORDERS[weight_fp32](x, weight, 1e-6)) < 1e-3
    assert share_unequal(found, ORDERS[not weight_fp32](x, weight, 1e-6)) > 0.1


# Linear and gate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_is_x_times_the_transposed_weight(with_bias):
    weight, bias, x = normal(6, 4), normal(6, seed=9) if with_bias else None, normal(5, 4, seed=7)
    found = ops.pack_linear(weight, bias)(x)
    expected = torch.einsum("mi,oi->mo", x.double(), weight.double()) + (bias.double() if with_bias else 0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_linear_keeps_the_type_and_any_leading_axes():
    linear = ops.pack_linear(normal(6, 4).bfloat16(), None)
    assert linear(normal(2, 3, 4).bfloat16()).shape == (2, 3, 6)
    assert linear(normal(5, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_linear_in_every_format_is_the_formats_product(format):
    """From a plain weight, and from a packed one, which is kept as it is; no full weight stays beside it."""
    weight, bias, x = normal(256, 512, seed=1), normal(256, seed=2), normal(5, 512, seed=3).bfloat16()
    packed = cases.packed(weight, format)
    expected = multiply(x, packed, bias)
    given = packed if format.static else weight
    for handed in (packed, given):
        linear = ops.pack_linear(handed, bias, format=format.name)
        assert torch.equal(linear(x), expected) and linear(x).dtype == torch.bfloat16
        assert sum(t.nbytes for t in linear.tensors().values()) == packed.bytes + bias.nbytes
        assert packed.bytes < weight.nbytes / 3
    with pytest.raises(ValueError, match=f"a weight in {format.name} is asked for in none"):
        ops.pack_linear(packed, bias)


def test_silu_gates_the_second_half_with_the_first():
    x = 2 * normal(5, 12)
    gate, up = x[:, :6].double(), x[:, 6:].double()
    found = ops.gate(x, activation="silu")
    assert found.shape == (5, 6) and found.dtype == x.dtype
    torch.testing.assert_close(found.double(), gate / (1 + (-gate).exp()) * up, rtol=1e-6, atol=1e-6)


def test_relu2_squares_what_is_positive():
    x = torch.tensor([[-2.0, -0.5, 0.0, 0.5, 3.0]])
    assert ops.gate(x, activation="relu2").tolist() == [[0.0, 0.0, 0.0, 0.25, 9.0]]


# Norm and activation, capture -------------------------------------------------------------------------------------


def own_norm_silu(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    y = x.shape[-1] ** 0.5 * x / x.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-12) * weight.double()
    return y / (1 + (-y).exp())


def test_norm_and_silu():
    """The norm has no eps: a small row comes out as a large one does. Zeros stay zeros."""
    x, weight = normal(5, 64) * torch.tensor([1.0, 1e3, 1e-6, 0.0, 1e-14]).unsqueeze(1), 1 + normal(64)
    found = ops.norm_silu(x, weight)
    torch.testing.assert_close(found.double(), own_norm_silu(x, weight), rtol=3e-6, atol=1e-9)
    assert not found[3].any() and found[2].abs().amax() > 1 > 0.2 > found[4].abs().amax() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_and_silu_round_once(dtype):
    x, weight = (100 * normal(300, 64)).to(dtype), (1 + normal(64)).to(dtype)
    found = ops.norm_silu(x, weight)
    assert found.dtype == dtype and share_unequal(found, own_norm_silu(x, weight).to(dtype)) < 1e-3


def test_norm_and_silu_add_first_and_round_once():
    """With a residual, what was added takes x's place."""
    x, rest, bias, weight = (3 * normal(*shape) for shape in ((5, 64), (5, 64), (64,), (64,)))
    given = x.clone()
    found = ops.norm_silu(given, weight, bias_I=bias)
    torch.testing.assert_close(found.double(), own_norm_silu(x + bias, weight), rtol=3e-6, atol=1e-6)
    assert torch.equal(given, x)
    found = ops.norm_silu(given, weight, bias_I=bias, residual_MI=rest)
    torch.testing.assert_close(found.double(), own_norm_silu(x + bias + rest, weight), rtol=3e-6, atol=1e-6)
    assert torch.equal(given, x + bias + rest)
    low = [t.bfloat16() for t in (x, rest, bias, weight)]
    ops.norm_silu(low[0], low[3], bias_I=low[2], residual_MI=low[1])
    assert torch.equal(low[0], (x.bfloat16().float() + bias.bfloat16() + rest.bfloat16()).bfloat16())


def test_norm_and_silu_write_where_they_are_told():
    x, weight, padded = normal(5, 64), 1 + normal(64), torch.full((9, 64), 7.0)
    before = x.clone()
    found = ops.norm_silu(x, weight, out_MI=padded[2:7])
    assert found.data_ptr() == padded[2:].data_ptr() and torch.equal(padded[2:7], ops.norm_silu(x, weight))
    assert bool((padded[[0, 1, 7, 8]] == 7).all()) and torch.equal(x, before)


def test_nothing_is_captured():
    def function(x):
        return [x + 1]

    assert ops.capture(function) is function


def test_the_backend_offers_each_op_once():
    """Primitives are functions of this module, composites are made of them, and the system's are torch's."""
    device = Device(arch="any", name="any", count=1, memory=0, unified=True)
    built = {kernel.op: kernel.build(device) for kernel in BACKEND.kernels}
    assert set(built) == set(OPS) and len(BACKEND.kernels) == len(OPS)
    assert (type(built.pop("memory")), type(built.pop("comm"))) == (TorchMemory, TorchComm)
    for op, found in built.items():
        assert found == getattr(layers if op in COMPOSITES else ops, op)


# Composites ---------------------------------------------------------------------------------------------------------


def own_finish(x: Tensor, attended: Tensor, weights: FinishWeights) -> Tensor:
    """The stream after the half, in fp64, formula by formula."""
    x, rows = x.double(), attended.double().flatten(0, 1).flatten(1)
    x = x + rows @ weights.out_OI.double().T
    gate, up = (normalised(x, 1e-6) * weights.norm_I.double() @ weights.up_OI.double().T).chunk(2, dim=1)
    return x + (gate / (1 + (-gate).exp()) * up) @ weights.down_OI.double().T


def own_project(x: Tensor, weights: ProjectWeights, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """q, k and v of 4 and 2 heads, and k for gen."""
    heads = (normalised(x, 1e-6) * weights.norm_I.double() @ weights.qkv_OI.double().T).view(B, S, 8, D)
    q, k, v = heads.split([4, 2, 2], dim=2)
    norms = ((q, weights.norm_q_D), (k, weights.norm_k_D), (k, weights.norm_k_for_gen_D))
    q, k, k_for_gen = (own_rotation(normalised(y, 1e-6) * weight.double(), cos, sin) for y, weight in norms)
    return [q, k, v, k_for_gen]


LAYER = Layer(heads=4, kv_heads=2, head_dim=D, eps=1e-6, weight_fp32=False, activation="silu")


def test_the_first_half_of_a_layer():
    x, delta = normal(B * S, 24, seed=1), normal(B * S, 24, seed=2)
    weights = ProjectWeights(1 + normal(24), normal(8 * D, 24, seed=3), *(1 + normal(D, seed=i) for i in (4, 5, 6)))
    residual, (cos, sin) = Residual(x, delta), tables(B)
    found = layers.project(weights, LAYER, build_ops())(residual, cos, sin)
    assert torch.equal(residual.x_MI, x + delta) and residual.delta_MI is None
    for ours, expected in zip(found, own_project(x + delta, weights, cos, sin), strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_second_half_of_a_layer():
    x, attended = normal(B * S, 24, seed=1), normal(B, S, 4, D, seed=2)
    shapes = (24, 4 * D), (24,), (2 * 40, 24), (24, 40)
    weights = FinishWeights(*(normal(*shape, seed=i) / shape[-1] ** 0.5 for i, shape in enumerate(shapes)))
    residual = Residual(x.clone())
    assert layers.finish(weights, LAYER, build_ops())(residual, attended) is None
    found = residual.x_MI.double() + residual.delta_MI.double()
    torch.testing.assert_close(found, own_finish(x, attended, weights), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_16_bits_is_rounded_once(dtype):
    """On a processor that takes long for one; on others it is made to."""
    x, weight, bias = normal(ops.WIDENED, 96).to(dtype), normal(48, 96).to(dtype), normal(48).to(dtype)
    linear = ops.PackedLinear(weight, bias)
    linear.slow = True
    exact = x.double() @ weight.double().T + bias.double()
    error = (linear(x).double() - exact).abs() / exact.abs().clamp_min(1)
    assert linear(x).dtype == dtype and float(error.max()) <= torch.finfo(dtype).eps / 2 + 1e-5
