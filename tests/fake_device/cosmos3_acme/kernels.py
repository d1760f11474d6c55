"""Every op in a way of its own: segments one after another with a running softmax, a transposed weight, rotation by
complex numbers."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from cosmos3_core.contract import Bytes, Projected, Unavailable

BLOCK = 64


def online_softmax(q_BSHD, segments, *, causal=False, want_lse=False):
    return attend(q_BSHD, segments, causal, want_lse)


def attend(q_BSHD, segments, causal, want_lse, *, scale=None, seen=0, interleaved=False):
    """Block by block over every segment, fp32, with a running maximum. `seen` moves the causal diagonal."""
    batch, queries, heads, width = q_BSHD.shape
    q = q_BSHD.transpose(1, 2).float() * (scale or 1 / math.sqrt(width))
    top = q.new_full((batch, heads, queries, 1), -math.inf)
    total, out = torch.zeros_like(top), torch.zeros_like(q)
    positions = torch.arange(queries).unsqueeze(1)
    for k_BTKD, v_BTKD in segments:
        groups = heads // k_BTKD.shape[2]
        for start in range(0, k_BTKD.shape[1], BLOCK):
            k, v = (t[:, start : start + BLOCK].transpose(1, 2).float() for t in (k_BTKD, v_BTKD))
            if interleaved:
                k, v = (t.repeat(1, groups, 1, 1) for t in (k, v))
            else:
                k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
            scores = q @ k.transpose(2, 3)
            if causal:
                keys = start + torch.arange(k.shape[2])
                scores = scores.masked_fill(keys > positions + seen, -math.inf)
            new_top = torch.maximum(top, scores.amax(dim=3, keepdim=True))
            weights, old = torch.exp(scores - new_top), torch.exp(top - new_top)
            total = total * old + weights.sum(dim=3, keepdim=True)
            out, top = out * old + weights @ v, new_top
    lse_BHS = (top + total.log()).squeeze(3) if want_lse else None
    return (out / total).transpose(1, 2).to(q_BSHD.dtype), lse_BHS


def few_queries(q_BSHD, segments, *, causal=False, want_lse=False):
    """All scores at once."""
    k, v = (torch.cat(parts, dim=1).float() for parts in zip(*segments, strict=True))
    k, v = (t.repeat_interleave(q_BSHD.shape[2] // t.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q_BSHD.float(), k) / math.sqrt(q_BSHD.shape[3])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    out = torch.einsum("bhst,bthd->bshd", scores.softmax(dim=-1), v)
    return out.to(q_BSHD.dtype), scores.logsumexp(dim=-1) if want_lse else None


class Int8KeysAndValues:
    """Keys and values in 8 bits, one scale for each segment and head."""

    def __call__(self, q_BSHD, segments, *, causal=False, want_lse=False):
        return attend(q_BSHD, [self.read(segment) for segment in segments], causal, want_lse)

    def read(self, segment):
        return self.prepare(*segment) if segment.prepared is None else segment.prepared

    def prepare(self, k_BTKD, v_BTKD):
        return tuple(_int8(t, (1, 3)) for t in (k_BTKD, v_BTKD))


int8_kv = Int8KeysAndValues()


def _int8(x, axes):
    scale = x.abs().float().amax(dim=axes, keepdim=True).clamp_min(1e-12) / 127
    return (x.float() / scale).round() * scale


def rows_in_8_bits(x_MI):
    scale_M1 = x_MI.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return (x_MI / scale_M1).round(), scale_M1


class Transposed:
    """The weight as [I, O]; `scale_O` where it is in 8 bits, and its input then too."""

    def __init__(self, weight_IO, bias_O, scale_O=None):
        self.weight_IO, self.bias_O, self.scale_O = weight_IO, bias_O, scale_O

    def __call__(self, x_MI):
        if self.scale_O is None:
            # In fp32: torch's bf16 product takes up to ten times as long on processors without AVX-512.
            y = x_MI.float() @ self.weight_IO.float()
            return (y if self.bias_O is None else y + self.bias_O.float()).to(x_MI.dtype)
        values_MI, scale_M1 = rows_in_8_bits(x_MI)
        y = (values_MI.float() @ self.weight_IO.float()) * scale_M1 * self.scale_O
        return (y if self.bias_O is None else y + self.bias_O).to(x_MI.dtype)

    def tensors(self):
        held = {"weight": self.weight_IO, "bias": self.bias_O, "scale": self.scale_O}
        return {name: tensor for name, tensor in held.items() if tensor is not None}


def transposed(weight_OI, bias_O, *, format="none"):
    if format == "none":
        return Transposed(weight_OI.T.contiguous(), bias_O)
    scale_O = weight_OI.float().abs().amax(dim=1) / 127
    return Transposed((weight_OI.float() / scale_O[:, None]).round().to(torch.int8).T.contiguous(), bias_O, scale_O)


def _norm(x, weight, eps, weight_fp32):
    mean = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square() / x.shape[-1]
    y = x.float() / (mean + eps).sqrt()
    return (y * weight.float()).to(x.dtype) if weight_fp32 else y.to(x.dtype) * weight


def fused_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False):
    z_MI = x_MI if residual_MI is None else residual_MI + x_MI
    return _norm(z_MI, weight_I, eps, weight_fp32), z_MI


def complex_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
    half = cos_BSD.shape[-1] // 2
    turn = torch.complex(cos_BSD[..., :half].float(), sin_BSD[..., :half].float()).unsqueeze(2)
    out = []
    for x_BSHD, weight_D in heads:
        x = x_BSHD if weight_D is None else _norm(x_BSHD, weight_D, eps, weight_fp32)
        turned = torch.complex(*x.float().chunk(2, dim=-1)) * turn
        out.append(torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype))
    return out


def exp_gate(x_MI, *, activation):
    if activation == "relu2":
        return x_MI.clamp_min(0) ** 2
    if activation != "silu":
        raise ValueError(f"there is no activation {activation!r}")
    gate, up = x_MI.float().chunk(2, dim=-1)
    return (gate / (1 + torch.exp(-gate)) * up).to(x_MI.dtype)


def strided_convolution(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
    channels, frames, height, width = latent_CThw.shape
    weight = weight_OI.view(-1, patch, patch, channels).permute(0, 3, 1, 2)
    padded = F.pad(latent_CThw.transpose(0, 1).to(weight.dtype), (0, -width % patch, 0, -height % patch))
    y_TNO = F.conv2d(padded, weight, bias_O, stride=patch).flatten(2).transpose(1, 2)
    shift = timestep_1O.expand(frames, 1, -1)
    if noisy_T is not None:
        shift = torch.where(noisy_T.view(-1, 1, 1), shift, 0)
    return (y_TNO + shift).flatten(0, 1)


def fused_norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
    x = x_MI.float() if bias_I is None else x_MI.float() + bias_I
    if residual_MI is not None:
        x = x + residual_MI
        x_MI.copy_(x)
    scale = x.shape[-1] ** 0.5 / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
    y = scale * x * weight_I.float()
    out = torch.empty_like(x_MI) if out_MI is None else out_MI
    return out.copy_(y / (1 + torch.exp(-y)))


class Replayed:
    """Inputs are copied to where the first call's were, results are overwritten by the next call: what a recording
    on an accelerator does to its surroundings."""

    def __init__(self, function):
        self.function, self.inputs, self.results = function, None, None

    def __call__(self, *tensors):
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in tensors]
        self.take(tensors)
        results = self.function(*self.inputs)
        if self.results is None:
            self.results = results
        for kept, result in zip(self.results, results, strict=True):
            kept.copy_(result)
        return list(self.results)

    def take(self, tensors):
        for buffer, tensor in zip(self.inputs, tensors, strict=True):
            buffer.copy_(tensor)


def replayed(function):
    return Replayed(function)


class NormedHeads:
    """The half before attention: its own norms and rotation, and the plan's product between them."""

    def __init__(self, weights, layer, ops, format):
        norms = weights.norm_I, weights.norm_q_D, weights.norm_k_D, weights.norm_k_for_gen_D
        self.norms = dict(zip(("norm", "q", "k", "k_for_gen"), norms, strict=True))
        self.layer, self.qkv = layer, self.pack(weights.qkv_OI, ops, format)

    def pack(self, qkv_OI, ops, format):
        return ops.pack_linear(qkv_OI, None, format=format)

    def __call__(self, residual, cos_BSD, sin_BSD):
        c, norms = self.layer, self.norms
        options = {"eps": c.eps, "weight_fp32": c.weight_fp32}
        h_MI, residual.x_MI = fused_norm(residual.x_MI, norms["norm"], residual_MI=residual.delta_MI, **options)
        residual.delta_MI = None
        heads = self.qkv(h_MI).view(len(cos_BSD), -1, c.heads + 2 * c.kv_heads, c.head_dim)
        q, k, v = heads.split([c.heads, c.kv_heads, c.kv_heads], dim=2)
        normed = [(q, norms["q"]), (k, norms["k"])]
        normed += [] if norms["k_for_gen"] is None else [(k, norms["k_for_gen"])]
        q, k, *k_for_gen = complex_rope(normed, cos_BSD, sin_BSD, **options)
        return Projected(q, k, v, k_for_gen[0] if k_for_gen else None)

    def tensors(self):
        return {name: t for name, t in self.norms.items() if t is not None} | self.qkv.tensors()


def normed_heads(weights, layer, ops, *, format="none"):
    return NormedHeads(weights, layer, ops, format)


class WholeHalf:
    """The half after attention, none of it by anybody else: both sums are left in x, and nothing in delta."""

    def __init__(self, weights, layer, ops, format):
        self.norm_I, self.layer, self.ops = weights.norm_I, layer, ops
        parts = {"out": weights.out_OI, "up": weights.up_OI, "down": weights.down_OI}
        self.parts = {name: transposed(weight, None, format=format) for name, weight in parts.items()}

    def __call__(self, residual, attended_BSHD):
        c = self.layer
        x_MI = residual.x_MI + self.parts["out"](attended_BSHD.reshape(len(residual.x_MI), -1))
        h_MI = self.parts["up"](_norm(x_MI, self.norm_I, c.eps, c.weight_fp32))
        residual.x_MI = x_MI + self.parts["down"](self.gate(h_MI))

    def gate(self, x_MI):
        return exp_gate(x_MI, activation=self.layer.activation)

    def tensors(self):
        named = [(f"{part}.{name}", t) for part, one in self.parts.items() for name, t in one.tensors().items()]
        return {"norm": self.norm_I} | dict(named)


def whole_half(weights, layer, ops, *, format="none"):
    return WholeHalf(weights, layer, ops, format)


class Arrived:
    def __init__(self, target):
        self.target = target

    def wait(self):
        return self.target


class HostMemory:
    """The device is the host: copies are done when they are asked for, and nobody counts what tensors take."""

    def _read(self, name):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def free(self, device):
        return self._read("MemAvailable:")

    def total(self, device):
        return self._read("MemTotal:")

    def used(self, device):
        return Bytes(None, None)

    def peak(self, device, *, reset=False):
        return Bytes(None, None)

    def empty(self, device):
        pass

    def limit(self, device, size):
        raise Unavailable("the ACME One takes what the host gives it")

    def pinned(self, shape, dtype, device):
        return torch.empty(shape, dtype=dtype)

    def copy(self, target, source):
        return Arrived(target.copy_(source))

    def synchronize(self, device):
        pass


host = HostMemory()
