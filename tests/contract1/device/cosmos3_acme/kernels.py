"""Every op in a way of its own: segments one after another with a running softmax, a transposed weight, rotation by
complex numbers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from cosmos3_core.contract import Quantized

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


def int8_kv(q_BSHD, segments, *, causal=False, want_lse=False):
    """Keys and values in 8 bits, one scale for each segment and head."""
    return attend(q_BSHD, [tuple(_int8(t, (1, 3)) for t in segment) for segment in segments], causal, want_lse)


def _int8(x, axes):
    scale = x.abs().float().amax(dim=axes, keepdim=True).clamp_min(1e-12) / 127
    return (x.float() / scale).round() * scale


def rows_in(format, x_MI):
    """What a kernel returns when it is asked for this format."""
    if format == "none":
        return x_MI
    scale_M1 = x_MI.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return Quantized((x_MI / scale_M1).round().to(torch.int8), scale_M1, x_MI.dtype)


class Transposed:
    """The weight as [I, O], added to a residual; `scale_O` where it is in 8 bits, multiplies rows in 8 bits and can
    apply the gate."""

    def __init__(self, weight_IO, bias_O, scale_O=None, gates=False):
        self.weight_IO, self.bias_O, self.scale_O, self.gates = weight_IO, bias_O, scale_O, gates
        self.takes, self.adds = "none" if scale_O is None else "int8", not gates

    def gated(self):
        return type(self)(self.weight_IO, self.bias_O, self.scale_O, gates=self.scale_O is not None)

    def __call__(self, x_MI, residual_MO=None):
        if residual_MO is not None:
            return residual_MO.add_(self(x_MI))
        if self.scale_O is None:
            return x_MI @ self.weight_IO if self.bias_O is None else torch.addmm(self.bias_O, x_MI, self.weight_IO)
        x = x_MI if isinstance(x_MI, Quantized) else rows_in("int8", x_MI)
        y = (x.values_MI.float() @ self.weight_IO.float()) * x.scale_M1 * self.scale_O
        y = y if self.bias_O is None else y + self.bias_O
        if self.gates:
            gate, up = y.chunk(2, dim=-1)
            y = gate * gate.sigmoid() * up
        return y.to(x.dtype)


def transposed(weight_OI, bias_O, *, format="none"):
    if format == "none":
        return Transposed(weight_OI.T.contiguous(), bias_O)
    scale_O = weight_OI.float().abs().amax(dim=1) / 127
    return Transposed((weight_OI.float() / scale_O[:, None]).round().to(torch.int8).T.contiguous(), bias_O, scale_O)


def _norm(x, weight, eps, weight_fp32):
    mean = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True).square() / x.shape[-1]
    y = x.float() / (mean + eps).sqrt()
    return (y * weight.float()).to(x.dtype) if weight_fp32 else y.to(x.dtype) * weight


def fused_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False, format="none"):
    z_MI = x_MI if residual_MI is None else residual_MI + x_MI
    return rows_in(format, _norm(z_MI, weight_I, eps, weight_fp32)), z_MI


def complex_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
    half = cos_BSD.shape[-1] // 2
    turn = torch.complex(cos_BSD[..., :half].float(), sin_BSD[..., :half].float()).unsqueeze(2)
    out = []
    for x_BSHD, weight_D in heads:
        x = x_BSHD if weight_D is None else _norm(x_BSHD, weight_D, eps, weight_fp32)
        turned = torch.complex(*x.float().chunk(2, dim=-1)) * turn
        out.append(torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype))
    return out


def exp_gate(x_MI, *, activation, format="none"):
    if activation == "relu2":
        return rows_in(format, x_MI.clamp_min(0) ** 2)
    gate, up = x_MI.float().chunk(2, dim=-1)
    return rows_in(format, (gate / (1 + torch.exp(-gate)) * up).to(x_MI.dtype))


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
