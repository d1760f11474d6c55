"""What stands between matrix products of the towers and convolutions of the video codec, forwards and backwards, each
as one kernel on a GPU.

Written out as torch operations these are two thirds of a step of the towers and a third of one of the codec. The
formulas are those of the plain functions in `towers` and `codecs`, which run everywhere and which
tests/test_embedded.py compares with these, in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 528
"""That share a backward pass's rows: each leaves one partial sum of a weight's gradient."""
EPSILON = 1e-12
"""Of the video codec's norms."""


@triton.jit
def _added(x_at, delta_at, weight_at, sum_at, out_at, scale_at, rows, eps, D: tl.constexpr, R: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    d = tl.arange(0, D)
    at = row[:, None] * D + d[None, :]
    there = (row < rows)[:, None]
    x = tl.load(x_at + at, mask=there, other=0.0).to(tl.float32)
    x += tl.load(delta_at + at, mask=there, other=0.0).to(tl.float32)
    x = x.to(sum_at.dtype.element_ty)
    tl.store(sum_at + at, x, mask=there)
    x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / D + eps)
    weight = tl.load(weight_at + d).to(tl.float32)
    tl.store(out_at + at, x * scale[:, None] * weight[None, :], mask=there)
    tl.store(scale_at + row, scale, mask=row < rows)


@triton.jit
def _added_back(
    sum_at, scale_at, weight_at, dsum_at, dout_at, dx_at, part_at, rows, blocks, D: tl.constexpr, R: tl.constexpr
):
    d = tl.arange(0, D)
    weight = tl.load(weight_at + d).to(tl.float32)
    part = tl.zeros((D,), dtype=tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block * R + tl.arange(0, R)
        at = row[:, None] * D + d[None, :]
        there = (row < rows)[:, None]
        scale = tl.load(scale_at + row, mask=row < rows, other=0.0)[:, None]
        normed = tl.load(sum_at + at, mask=there, other=0.0).to(tl.float32) * scale
        dout = tl.load(dout_at + at, mask=there, other=0.0).to(tl.float32)
        part += tl.sum(dout * normed, axis=0)
        dout = dout * weight[None, :]
        dx = scale * (dout - normed * (tl.sum(dout * normed, axis=1) / D)[:, None])
        dx += tl.load(dsum_at + at, mask=there, other=0.0).to(tl.float32)
        tl.store(dx_at + at, dx, mask=there)
    tl.store(part_at + tl.program_id(0) * D + d, part)


class Added(torch.autograd.Function):
    """towers.added, of rows [..., D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, delta = x.contiguous(), delta.contiguous()
        total, out = torch.empty_like(x), torch.empty_like(x)
        width, rows = x.shape[-1], x.numel() // x.shape[-1]
        scale = torch.empty(rows, dtype=torch.float32, device=x.device)
        _added[(triton.cdiv(rows, 4),)](x, delta, weight, total, out, scale, rows, eps, D=width, R=4)
        ctx.save_for_backward(total, scale, weight)
        return total, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        total, scale, weight = ctx.saved_tensors
        dsum, dout = (grad.contiguous() for grad in grads)
        dx, rows, width = torch.empty_like(total), len(scale), total.shape[-1]
        blocks = triton.cdiv(rows, 4)
        part = torch.empty(min(blocks, PROGRAMS), width, dtype=torch.float32, device=total.device)
        _added_back[(len(part),)](total, scale, weight, dsum, dout, dx, part, rows, blocks, D=width, R=4)
        return dx, dx, part.sum(0).to(weight.dtype), None


@triton.jit
def _rotated(
    heads_at, wq_at, wk_at, cos_at, sin_at, q_at, k_at, v_at, rows, eps,
    Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    H: tl.constexpr = D // 2
    row = tl.program_id(0) * R + tl.arange(0, R)
    token, head = row // (Q + 2 * K), row % (Q + 2 * K)
    h = tl.arange(0, H)
    there = (row < rows)[:, None]
    at = row[:, None] * D + h[None, :]
    a = tl.load(heads_at + at, mask=there, other=0.0).to(tl.float32)
    b = tl.load(heads_at + at + H, mask=there, other=0.0).to(tl.float32)
    is_q, is_k = (head < Q)[:, None], ((head >= Q) & (head < Q + K))[:, None]
    scale = (1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / D + eps))[:, None]
    wa = tl.where(is_q, tl.load(wq_at + h)[None, :], tl.load(wk_at + h)[None, :]).to(tl.float32)
    wb = tl.where(is_q, tl.load(wq_at + H + h)[None, :], tl.load(wk_at + H + h)[None, :]).to(tl.float32)
    turn = token[:, None] * D + h[None, :]
    cos = tl.load(cos_at + turn, mask=there, other=0.0).to(tl.float32)
    sin = tl.load(sin_at + turn, mask=there, other=0.0).to(tl.float32)
    na, nb = a * scale * wa, b * scale * wb
    ya, yb = na * cos - nb * sin, nb * cos + na * sin
    to_q = (token * Q + head)[:, None] * D + h[None, :]
    to_k = (token * K + head - Q)[:, None] * D + h[None, :]
    tl.store(q_at + to_q, ya, mask=there & is_q)
    tl.store(q_at + to_q + H, yb, mask=there & is_q)
    tl.store(k_at + to_k, ya, mask=there & is_k)
    tl.store(k_at + to_k + H, yb, mask=there & is_k)
    is_v = (head >= Q + K)[:, None]
    to_v = (token * K + head - Q - K)[:, None] * D + h[None, :]
    tl.store(v_at + to_v, a, mask=there & is_v)
    tl.store(v_at + to_v + H, b, mask=there & is_v)


@triton.jit
def _rotated_back(
    heads_at, wq_at, wk_at, cos_at, sin_at, dq_at, dk_at, dv_at, dheads_at, part_at, rows, blocks, eps,
    Q: tl.constexpr, K: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    H: tl.constexpr = D // 2
    h = tl.arange(0, H)
    qa, qb = tl.zeros((H,), dtype=tl.float32), tl.zeros((H,), dtype=tl.float32)
    ka, kb = tl.zeros((H,), dtype=tl.float32), tl.zeros((H,), dtype=tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block * R + tl.arange(0, R)
        token, head = row // (Q + 2 * K), row % (Q + 2 * K)
        there = (row < rows)[:, None]
        is_q, is_k = there & (head < Q)[:, None], there & ((head >= Q) & (head < Q + K))[:, None]
        is_v = there & (head >= Q + K)[:, None]
        at = row[:, None] * D + h[None, :]
        a = tl.load(heads_at + at, mask=there, other=0.0).to(tl.float32)
        b = tl.load(heads_at + at + H, mask=there, other=0.0).to(tl.float32)
        scale = (1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / D + eps))[:, None]
        wa = tl.where(is_q, tl.load(wq_at + h)[None, :], tl.load(wk_at + h)[None, :]).to(tl.float32)
        wb = tl.where(is_q, tl.load(wq_at + H + h)[None, :], tl.load(wk_at + H + h)[None, :]).to(tl.float32)
        turn = token[:, None] * D + h[None, :]
        cos = tl.load(cos_at + turn, mask=there, other=0.0).to(tl.float32)
        sin = tl.load(sin_at + turn, mask=there, other=0.0).to(tl.float32)
        from_q = (token * Q + head)[:, None] * D + h[None, :]
        from_k = (token * K + head - Q)[:, None] * D + h[None, :]
        from_v = (token * K + head - Q - K)[:, None] * D + h[None, :]
        ya = tl.load(dq_at + from_q, mask=is_q, other=0.0).to(tl.float32)
        yb = tl.load(dq_at + from_q + H, mask=is_q, other=0.0).to(tl.float32)
        ya += tl.load(dk_at + from_k, mask=is_k, other=0.0).to(tl.float32)
        yb += tl.load(dk_at + from_k + H, mask=is_k, other=0.0).to(tl.float32)
        na, nb = ya * cos + yb * sin, yb * cos - ya * sin
        xa, xb = a * scale, b * scale
        qa += tl.sum(tl.where(is_q, na * xa, 0.0), axis=0)
        qb += tl.sum(tl.where(is_q, nb * xb, 0.0), axis=0)
        ka += tl.sum(tl.where(is_k, na * xa, 0.0), axis=0)
        kb += tl.sum(tl.where(is_k, nb * xb, 0.0), axis=0)
        na, nb = na * wa, nb * wb
        mean = ((tl.sum(na * xa, axis=1) + tl.sum(nb * xb, axis=1)) / D)[:, None]
        da, db = scale * (na - xa * mean), scale * (nb - xb * mean)
        va = tl.load(dv_at + from_v, mask=is_v, other=0.0).to(tl.float32)
        vb = tl.load(dv_at + from_v + H, mask=is_v, other=0.0).to(tl.float32)
        tl.store(dheads_at + at, tl.where(is_v, va, da), mask=there)
        tl.store(dheads_at + at + H, tl.where(is_v, vb, db), mask=there)
    part = part_at + tl.program_id(0) * 2 * D + h
    tl.store(part, qa)
    tl.store(part + H, qb)
    tl.store(part + D, ka)
    tl.store(part + D + H, kb)


class Rotated(torch.autograd.Function):
    """towers.rotated, of heads [N, S, Q + 2 K, D] and cos, sin [N, S, 1, D]: q, k and v, each of its own memory."""

    @staticmethod
    def forward(
        ctx: Any, heads: Tensor, norm_q: Tensor, norm_k: Tensor, cos: Tensor, sin: Tensor, queries: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads, cos, sin = heads.contiguous(), cos.contiguous(), sin.contiguous()
        n, s, both, width = heads.shape
        keys = (both - queries) // 2
        q, k, v = (heads.new_empty(n, s, count, width) for count in (queries, keys, keys))
        rows = n * s * both
        _rotated[(triton.cdiv(rows, 64),)](
            heads, norm_q, norm_k, cos, sin, q, k, v, rows, eps, Q=queries, K=keys, D=width, R=64
        )
        ctx.save_for_backward(heads, norm_q, norm_k, cos, sin)
        ctx.queries, ctx.eps = queries, eps
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads, norm_q, norm_k, cos, sin = ctx.saved_tensors
        dq, dk, dv = (grad.contiguous() for grad in grads)
        dheads, (n, s, both, width) = torch.empty_like(heads), heads.shape
        keys, rows = (both - ctx.queries) // 2, n * s * both
        blocks = triton.cdiv(rows, 64)
        part = torch.empty(min(blocks, PROGRAMS), 2, width, dtype=torch.float32, device=heads.device)
        _rotated_back[(len(part),)](
            heads, norm_q, norm_k, cos, sin, dq, dk, dv, dheads, part, rows, blocks, ctx.eps,
            Q=ctx.queries, K=keys, D=width, R=64,
        )  # fmt: skip
        of_q, of_k = part.sum(0).to(norm_q.dtype)
        return dheads, of_q, of_k, None, None, None, None


@triton.jit
def _gated(h_at, out_at, count, width, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    row, column = at // width, at % width
    gate = tl.load(h_at + row * 2 * width + column, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(h_at + row * 2 * width + width + column, mask=at < count, other=0.0).to(tl.float32)
    tl.store(out_at + at, gate * tl.sigmoid(gate) * up, mask=at < count)


@triton.jit
def _gated_back(h_at, dout_at, dh_at, count, width, B: tl.constexpr):
    at = tl.program_id(0) * B + tl.arange(0, B)
    row, column = at // width, at % width
    here = row * 2 * width + column
    gate = tl.load(h_at + here, mask=at < count, other=0.0).to(tl.float32)
    up = tl.load(h_at + here + width, mask=at < count, other=0.0).to(tl.float32)
    dout = tl.load(dout_at + at, mask=at < count, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    tl.store(dh_at + here, dout * up * share * (1 + gate * (1 - share)), mask=at < count)
    tl.store(dh_at + here + width, dout * gate * share, mask=at < count)


class Gated(torch.autograd.Function):
    """towers.gated, of rows [..., 2 I]."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        h = h.contiguous()
        out = h.new_empty(*h.shape[:-1], h.shape[-1] // 2)
        _gated[(triton.cdiv(out.numel(), 2048),)](h, out, out.numel(), out.shape[-1], B=2048)
        ctx.save_for_backward(h)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (h,), dout = ctx.saved_tensors, grads[0].contiguous()
        dh = torch.empty_like(h)
        _gated_back[(triton.cdiv(dout.numel(), 2048),)](h, dout, dh, dout.numel(), dout.shape[-1], B=2048)
        return dh


@triton.jit
def _normed(x_at, gamma_at, out_at, rows, clip, lead, eps, C, D: tl.constexpr, R: tl.constexpr, LIT: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    c = tl.arange(0, D)
    inside = row % (clip + lead) - lead
    source = row // (clip + lead) * clip + inside
    there = ((row < rows) & (inside >= 0))[:, None] & (c < C)[None, :]
    x = tl.load(x_at + source[:, None] * C + c[None, :], mask=there, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / C + eps)
    y = x * scale[:, None] * tl.load(gamma_at + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if LIT:
        y = y * tl.sigmoid(y)
    # Frames of zeros before a clip come out of the zeros that are loaded for them.
    tl.store(out_at + row[:, None] * C + c[None, :], y, mask=(row < rows)[:, None] & (c < C)[None, :])


@triton.jit
def _normed_back(
    x_at, gamma_at, dout_at, dx_at, part_at, rows, blocks, clip, lead, eps, C,
    D: tl.constexpr, R: tl.constexpr, LIT: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, D)
    gamma = tl.load(gamma_at + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    part = tl.zeros((D,), dtype=tl.float32)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        row = block * R + tl.arange(0, R)
        there = (row < rows)[:, None] & (c < C)[None, :]
        at = row[:, None] * C + c[None, :]
        behind = (row + (row // clip + 1) * lead)[:, None] * C + c[None, :]
        x = tl.load(x_at + at, mask=there, other=0.0).to(tl.float32)
        dy = tl.load(dout_at + behind, mask=there, other=0.0).to(tl.float32)
        scale = (1.0 / tl.sqrt(tl.sum(x * x, axis=1) / C + eps))[:, None]
        normed = x * scale
        if LIT:
            y = normed * gamma
            share = tl.sigmoid(y)
            dy = dy * share * (1 + y * (1 - share))
        part += tl.sum(dy * normed, axis=0)
        dy = dy * gamma
        dx = scale * (dy - normed * (tl.sum(dy * normed, axis=1) / C)[:, None])
        tl.store(dx_at + at, dx, mask=there)
    tl.store(part_at + tl.program_id(0) * D + c, part)


class Normed(torch.autograd.Function):
    """codecs.normed, of maps [B, C, ..., H, W] whose channels lie beside each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, lit: bool, lead: int) -> Tensor:
        rows = x.movedim(1, -1).contiguous()
        channels, clip = rows.shape[-1], rows[0].numel() // rows.shape[-1]
        shape = list(rows.shape)
        shape[1] += lead
        out = rows.new_empty(shape)
        ctx.how = clip, lead * clip // rows.shape[1], lit
        width = triton.next_power_of_2(channels)
        _normed[(triton.cdiv(out.numel() // channels, 2048 // width),)](
            rows, gamma, out, out.numel() // channels, *ctx.how[:2], EPSILON, channels,
            D=width, R=2048 // width, LIT=lit,
        )  # fmt: skip
        ctx.save_for_backward(rows, gamma)
        return out.movedim(-1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, gamma = ctx.saved_tensors
        dout, dx, channels = grads[0].movedim(1, -1).contiguous(), torch.empty_like(rows), rows.shape[-1]
        width, count, (clip, lead, lit) = triton.next_power_of_2(channels), rows.numel() // channels, ctx.how
        blocks = triton.cdiv(count, 2048 // width)
        part = torch.empty(min(blocks, PROGRAMS), width, dtype=torch.float32, device=rows.device)
        _normed_back[(len(part),)](
            rows, gamma, dout, dx, part, count, blocks, clip, lead, EPSILON, channels,
            D=width, R=2048 // width, LIT=lit,
        )  # fmt: skip
        return dx.movedim(-1, 1), part.sum(0)[:channels].view(gamma.shape).to(gamma.dtype), None, None
