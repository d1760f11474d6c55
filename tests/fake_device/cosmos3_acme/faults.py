"""Mistakes that were made in real kernels, each as a change to one correct op."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from cosmos3_core.contract import Quantized

from . import kernels


def plant(fault, op, kernel):
    """The kernel, or its faulty form where the fault is about this op."""
    about, change = FAULTS.get(fault, (None, None))
    return change(kernel) if about == op else kernel


def attending(change):
    """A fault inside the 16-bit attention; the 8-bit row stays as it is."""

    def faulty(kernel):
        def attention(q_BSHD, segments, *, causal=False, want_lse=False):
            return change(q_BSHD, segments, causal, want_lse)

        return kernel if kernel is kernels.int8_kv else attention

    return faulty


def base_2_lse(q, segments, causal, want_lse):
    out, lse = kernels.attend(q, segments, causal, want_lse)
    return out, lse / 0.6931471805599453 if want_lse else None


def no_maximum(q, segments, causal, want_lse):
    """exp(score) as it is: fine until scores pass 88."""
    joined = (torch.cat(parts, dim=1).float() for parts in zip(*segments, strict=True))
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in joined)
    weights = torch.einsum("bshd,bthd->bhst", q.float(), k).mul(q.shape[3] ** -0.5).exp()
    if causal:
        weights = weights.tril()
    total = weights.sum(dim=3, keepdim=True)
    out = torch.einsum("bhst,bthd->bshd", weights / total, v).to(q.dtype)
    return out, total.log().squeeze(3) if want_lse else None


def shuffled(seed):
    """Keys in a random order: the same sum, other roundings. A seed per process, or another order in every call."""
    stream = torch.Generator().manual_seed(seed) if seed else None

    def attention(q, segments, causal, want_lse):
        if causal:
            return kernels.attend(q, segments, causal, want_lse)
        state = stream or torch.Generator().manual_seed(os.getpid())
        orders = [torch.randperm(k.shape[1], generator=state) for k, _ in segments]
        moved = [(k[:, order], v[:, order]) for (k, v), order in zip(segments, orders, strict=True)]
        return kernels.attend(q, moved, causal, want_lse)

    return attention


def one_scale(kernel):
    """One 8-bit scale for all segments together."""

    def attention(q_BSHD, segments, *, causal=False, want_lse=False):
        joined = tuple(kernels._int8(torch.cat(parts, dim=1), (1, 3)) for parts in zip(*segments, strict=True))
        return kernels.attend(q_BSHD, [joined], causal, want_lse)

    return attention if kernel is kernels.int8_kv else kernel


def square_not_transposed(kernel):
    def pack_linear(weight_OI, bias_O, *, format="none"):
        square = weight_OI.shape[0] == weight_OI.shape[1]
        return kernel(weight_OI.T if square else weight_OI, bias_O, format=format)

    return pack_linear


def dropped_bias(kernel):
    return lambda weight_OI, bias_O, *, format="none": kernel(weight_OI, None, format=format)


def stale_packing(kernel):
    packed = {}

    def pack_linear(weight_OI, bias_O, *, format="none"):
        key = (*weight_OI.shape, weight_OI.dtype, format, bias_O is None)
        if key not in packed:
            packed[key] = kernel(weight_OI, bias_O, format=format)
        return packed[key]

    return pack_linear


def one_scale_for_the_matrix(kernel):
    def pack_linear(weight_OI, bias_O, *, format="none"):
        if format == "none":
            return kernel(weight_OI, bias_O)
        scale = weight_OI.float().abs().max() / 127
        packed = (weight_OI.float() / scale).round().to(torch.int8).T.contiguous()
        return kernels.Transposed(packed, bias_O, scale)

    return pack_linear


def norm(change):
    def faulty(kernel):
        def rms_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False, format="none"):
            rows, z_MI = change(kernel, x_MI, weight_I, eps, residual_MI, weight_fp32)
            return kernels.rows_in(format, rows), z_MI

        return rms_norm

    return faulty


def adds_in_place(kernel, x, weight, eps, residual, weight_fp32):
    z = x if residual is None else x.add_(residual)
    return kernel(z, weight, eps=eps, weight_fp32=weight_fp32)


def rotation_by_pairs(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        out = []
        for x, weight in heads:
            x = x if weight is None else kernels._norm(x, weight, eps, weight_fp32)
            a, b = x[..., 0::2], x[..., 1::2]
            cos, sin = (t[..., : a.shape[-1]].unsqueeze(2) for t in (cos_BSD, sin_BSD))
            out.append(torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2))
        return out

    return norm_rope


def first_table_for_all(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        return kernel(heads, cos_BSD[:1], sin_BSD[:1], eps=eps, weight_fp32=weight_fp32)

    return norm_rope


def swapped_halves(kernel):
    def gate(x_MI, *, activation, format="none"):
        swapped = x_MI.roll(x_MI.shape[-1] // 2, -1) if activation == "silu" else x_MI
        return kernel(swapped, activation=activation, format=format)

    return gate


def up_gates(kernel):
    """The other half of what comes out goes through the activation."""

    class Faulty(kernels.Transposed):
        def gated(self):
            gated = super().gated()
            gated.weight_IO, gated.scale_O, gated.bias_O = (
                t.roll(t.shape[-1] // 2, -1) for t in (gated.weight_IO, gated.scale_O, gated.bias_O)
            )
            return gated

    return faulty_linear(kernel, Faulty)


def residual_taken_for_the_result(kernel):
    """As if beta were 0."""

    class Faulty(kernels.Transposed):
        def __call__(self, x_MI, residual_MO=None):
            return super().__call__(x_MI)

    return faulty_linear(kernel, Faulty)


def leaks(kernel):
    kept = []

    def gate(x_MI, *, activation, format="none"):
        kept.append(kernel(x_MI, activation=activation, format=format))
        return kept[-1]

    return gate


def second_build_breaks_the_first(kernel):
    plant.builds = getattr(plant, "builds", 0) + 1
    mine = plant.builds

    def gate(x_MI, *, activation, format="none"):
        return kernel(x_MI if mine == plant.builds else x_MI * 1.5, activation=activation, format=format)

    return gate


def another_signature(kernel):
    return lambda x_MI, activation="silu", format="none": kernel(x_MI, activation=activation, format=format)


def sum_quantized_too(kernel):
    def rms_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False, format="none"):
        options = dict(eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32, format=format)
        rows, z_MI = kernel(x_MI, weight_I, **options)
        z = kernels.rows_in(format, z_MI)
        return rows, z_MI if format == "none" else (z.values_MI * z.scale_M1).to(z.dtype)

    return rms_norm


def quantizing(change):
    """A fault in how a gate's or a norm's rows, a tensor, become `Quantized`."""

    def faulty(kernel):
        def gate(x_MI, *, activation, format="none"):
            rows = kernel(x_MI, activation=activation)
            return rows if format == "none" else change(rows)

        def rms_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False, format="none"):
            rows, z_MI = kernel(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32)
            return rows if format == "none" else change(rows), z_MI

        return gate if kernel is kernels.exp_gate else rms_norm

    return faulty


def one_scale_for_all_rows(x_MI):
    scale_M1 = x_MI.float().abs().max().expand(len(x_MI), 1) / 127
    return Quantized((x_MI / scale_M1).round().to(torch.int8), scale_M1, x_MI.dtype)


def scales_of_other_rows(x_MI):
    rows = kernels.rows_in("int8", x_MI)
    return replace(rows, scale_M1=rows.scale_M1.flip(0))


def truncated(x_MI):
    scale_M1 = kernels.rows_in("int8", x_MI).scale_M1
    return Quantized((x_MI / scale_M1).to(torch.int8), scale_M1, x_MI.dtype)


def zeros_without_a_scale(x_MI):
    scale_M1 = x_MI.float().abs().amax(dim=1, keepdim=True) / 127
    rows = kernels.rows_in("int8", x_MI)
    return replace(rows, scale_M1=torch.where(scale_M1 == 0, float("nan"), scale_M1))


def scales_ignored(kernel):
    """By a product whose epilogue was written for weights in 8 bits and inputs in 16."""

    class Faulty(kernels.Transposed):
        def __call__(self, x_MI):
            given = isinstance(x_MI, Quantized)
            return super().__call__(replace(x_MI, scale_M1=torch.ones_like(x_MI.scale_M1)) if given else x_MI)

    return faulty_linear(kernel, Faulty)


def faulty_linear(kernel, faulty):
    def pack_linear(weight_OI, bias_O, *, format="none"):
        packed = kernel(weight_OI, bias_O, format=format)
        return faulty(packed.weight_IO, packed.bias_O, packed.scale_O)

    return pack_linear


def timestep_everywhere(kernel):
    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        return kernel(latent_CThw, weight_OI, bias_O, timestep_1O, patch=patch)

    return patch_embed


def columns_before_rows(kernel):
    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        weight = weight_OI.unflatten(1, (patch, patch, -1)).transpose(1, 2).flatten(1)
        return kernel(latent_CThw, weight, bias_O, timestep_1O, patch=patch, noisy_T=noisy_T)

    return patch_embed


def edge_repeated(kernel):
    """As a kernel does that clamps an index where it should mask a load."""

    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        height, width = latent_CThw.shape[2:]
        padded = torch.nn.functional.pad(latent_CThw, (0, -width % patch, 0, -height % patch), mode="replicate")
        return kernel(padded, weight_OI, bias_O, timestep_1O, patch=patch, noisy_T=noisy_T)

    return patch_embed


def weight_after_silu(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, torch.ones_like(weight_I), bias_I=bias_I, residual_MI=residual_MI) * weight_I
        return y if out_MI is None else out_MI.copy_(y)

    return norm_silu


def zeros_divided(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)
        return y.masked_fill_((x_MI == 0).all(dim=-1, keepdim=True), float("nan"))

    return norm_silu


def a_tensor_of_its_own(kernel):
    return lambda x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None: kernel(
        x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI
    )


def bias_after_norm(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, residual_MI=residual_MI, out_MI=out_MI)
        return y if bias_I is None else y.add_(bias_I)

    return norm_silu


def sum_kept_to_itself(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        return kernel(x_MI.clone(), weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)

    return norm_silu


def whole_blocks_written(kernel):
    """As a kernel without a mask does for the rows that do not fill its last block."""

    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)
        if out_MI is not None:
            out_MI.as_strided((len(out_MI) // 8 * 8 + 8, *out_MI.shape[1:]), out_MI.stride())[len(out_MI) :] = 0
        return y

    return norm_silu


def capturing(take):
    """A fault in how a recording takes its inputs."""

    class Faulty(kernels.Replayed):
        pass

    Faulty.take = take
    return lambda kernel: lambda function: Faulty(function)


def only_other_tensors(recording, tensors):
    """Copies what is not the tensor of the last call: contents that changed in place are not seen."""
    last = getattr(recording, "last", [None] * len(tensors))
    recording.last = list(tensors)
    for buffer, tensor, before in zip(recording.inputs, tensors, last, strict=True):
        if tensor is not before:
            buffer.copy_(tensor)


def into_the_first_tensors(recording, tensors):
    """The first call's tensors serve as the buffers, and every later call overwrites them."""
    recording.inputs = getattr(recording, "first", tensors)
    recording.first = recording.inputs
    kernels.Replayed.take(recording, tensors)


def one_recording_for_a_shape(kernel):
    recordings = {}

    def capture(function):
        def call(*tensors):
            key = tuple(tensor.shape for tensor in tensors)
            return recordings.setdefault(key, kernel(function))(*tensors)

        return call

    return capture


def stale_after_an_error(kernel):
    """What goes wrong while recording is taken for a device that cannot record: the last results are given again."""

    def capture(function):
        recording, results = kernel(function), None

        def call(*tensors):
            nonlocal results
            try:
                results = recording(*tensors)
            except LookupError:
                if results is None:
                    raise
            return results

        return call

    return capture


def recordings_kept(kernel):
    kept = []

    def capture(function):
        kept.append(kernel(function))
        return kept[-1]

    return capture


def while_building(change):
    def faulty(kernel):
        change()
        return kernel

    return faulty


attend = kernels.attend
FAULTS = {
    "not_causal": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, False, lse))),
    "causal_sees_the_next": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, causal, lse, seen=1))),
    "causal_misses_itself": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, causal, lse, seen=-1))),
    "no_scale": ("attention", attending(lambda *arguments: attend(*arguments, scale=1.0))),
    "interleaved_heads": ("attention", attending(lambda *arguments: attend(*arguments, interleaved=True))),
    "first_segment_only": ("attention", attending(lambda q, kv, *rest: attend(q, kv[:1], *rest))),
    "base_2_lse": ("attention", attending(base_2_lse)),
    "softmax_without_maximum": ("attention", attending(no_maximum)),
    "one_scale_for_all_segments": ("attention", one_scale),
    "random_order": ("attention", attending(shuffled(int.from_bytes(os.urandom(4)) or 1))),
    "order_by_process": ("attention", attending(shuffled(0))),
    "square_weight_transposed": ("pack_linear", square_not_transposed),
    "dropped_bias": ("pack_linear", dropped_bias),
    "stale_packing": ("pack_linear", stale_packing),
    "one_scale_for_the_matrix": ("pack_linear", one_scale_for_the_matrix),
    "fixed_eps": ("rms_norm", norm(lambda f, x, w, eps, r, fp32: f(x, w, eps=1e-6, residual_MI=r, weight_fp32=fp32))),
    "sum_not_returned": (
        "rms_norm",
        norm(lambda f, x, w, eps, r, fp32: (f(x, w, eps=eps, residual_MI=r, weight_fp32=fp32)[0], x)),
    ),
    "one_rounding_order": ("rms_norm", norm(lambda f, x, w, eps, r, fp32: f(x, w, eps=eps, residual_MI=r))),
    "overwrites_its_input": ("rms_norm", norm(adds_in_place)),
    "sum_quantized_too": ("rms_norm", sum_quantized_too),
    "one_scale_for_all_rows": ("rms_norm", quantizing(one_scale_for_all_rows)),
    "zeros_without_a_scale": ("rms_norm", quantizing(zeros_without_a_scale)),
    "scales_of_other_rows": ("gate", quantizing(scales_of_other_rows)),
    "truncated": ("gate", quantizing(truncated)),
    "scales_ignored": ("pack_linear", scales_ignored),
    "up_gates": ("pack_linear", up_gates),
    "residual_taken_for_the_result": ("pack_linear", residual_taken_for_the_result),
    "rotation_by_pairs": ("norm_rope", rotation_by_pairs),
    "first_table_for_all": ("norm_rope", first_table_for_all),
    "swapped_halves": ("gate", swapped_halves),
    "timestep_everywhere": ("patch_embed", timestep_everywhere),
    "columns_before_rows": ("patch_embed", columns_before_rows),
    "edge_repeated": ("patch_embed", edge_repeated),
    "weight_after_silu": ("norm_silu", weight_after_silu),
    "zeros_divided": ("norm_silu", zeros_divided),
    "a_tensor_of_its_own": ("norm_silu", a_tensor_of_its_own),
    "whole_blocks_written": ("norm_silu", whole_blocks_written),
    "bias_after_norm": ("norm_silu", bias_after_norm),
    "sum_kept_to_itself": ("norm_silu", sum_kept_to_itself),
    "first_inputs_only": ("capture", capturing(lambda recording, tensors: None)),
    "only_other_tensors": ("capture", capturing(only_other_tensors)),
    "into_the_first_tensors": ("capture", capturing(into_the_first_tensors)),
    "one_recording_for_a_shape": ("capture", one_recording_for_a_shape),
    "stale_after_an_error": ("capture", stale_after_an_error),
    "recordings_kept": ("capture", recordings_kept),
    "leaks": ("gate", leaks),
    "second_build_breaks_the_first": ("gate", second_build_breaks_the_first),
    "another_signature": ("gate", another_signature),
    "sets_environment": ("gate", while_building(lambda: os.environ.update(OMP_PROC_BIND="close"))),
    "sets_default_dtype": ("gate", while_building(lambda: torch.set_default_dtype(torch.bfloat16))),
    "sets_threads": ("gate", while_building(lambda: torch.set_num_threads(torch.get_num_threads() + 1))),
}
