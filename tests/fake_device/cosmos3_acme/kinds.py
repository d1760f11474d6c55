"""Faults by kind: one mistake made in every op that it can be made in, and at several sizes."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import torch

from . import kernels

ROWS = {
    "rms_norm": (("x_MI", "residual_MI"), "fused_norm"),
    "gate": (("x_MI",), "exp_gate"),
    "norm_silu": (("x_MI",), "fused_norm_silu"),
    "norm_rope": (("heads",), "complex_rope"),
    "pack_linear": (("x_MI",), "transposed"),
}
"""Ops that work by rows: where a mistake at a size can be made."""
Outputs = list[torch.Tensor]


def outputs(found: Any) -> Outputs:
    return [found] if isinstance(found, torch.Tensor) else list(found)


def by_rows(found: Any) -> Outputs:
    """Views of every output with its rows, or tokens, first."""
    return [t[0] if t.dim() == 4 else t for t in outputs(found) if t is not None]


def each_call(op: str, around: Callable[..., Any]) -> Callable[[Any], Any]:
    """A fault of an op's calls: `around(function, *arguments, **options)`."""

    def of_linear(kernel: Any) -> Any:
        def pack(weight_OI: Any, bias_O: Any, *, format: str = "none") -> Any:
            made = kernel(weight_OI, bias_O, format=format)
            call = type(made).__call__
            made.__class__ = type(
                "Faulty", (type(made),), {"__call__": lambda self, x_MI: around(partial(call, self), x_MI)}
            )
            return made

        return pack

    def of_half(kernel: Any) -> Any:
        def pack(weights: Any, layer: Any, ops: Any, *, format: str = "none") -> Any:
            made = kernel(weights, layer, ops, format=format)
            call = type(made).__call__

            def faulty(self: Any, residual: Any, *rest: Any) -> Any:
                return around(partial(call, self), residual, *rest)

            faulty.__wrapped__ = call
            made.__class__ = type("Faulty", (type(made),), {"__call__": faulty})
            return made

        return pack

    def of_attention(kernel: Any) -> Any:
        return plain(kernel) if kernel is kernels.online_softmax else kernel

    def plain(kernel: Any) -> Any:
        return wraps(kernel)(lambda *arguments, **options: around(kernel, *arguments, **options))

    return {"pack_linear": of_linear, "attention": of_attention, "project": of_half, "finish": of_half}.get(op, plain)


# Sizes -----------------------------------------------------------------------------------------------------------


def rows_after(most: int) -> Callable[..., Any]:
    def around(function, *arguments, **options):
        found = function(*arguments, **options)
        for t in by_rows(found):
            if len(t) > most:
                t[most:] = t[:1].clone()
        return found

    return around


def rows_of_whole_tiles(tile: int) -> Callable[..., Any]:
    """What is left after the last whole tile is not computed, where there is a whole one."""

    def around(function, *arguments, **options):
        found = function(*arguments, **options)
        for t in by_rows(found):
            if len(t) > tile:
                t[len(t) - len(t) % tile :] = 0
        return found

    return around


def one_row(function, *arguments, **options):
    found = function(*arguments, **options)
    for t in by_rows(found):
        if len(t) == 1:
            t.mul_(1.5)
    return found


def columns_after(most: int) -> Callable[..., Any]:
    def around(function, *arguments, **options):
        found = function(*arguments, **options)
        t = outputs(found)[0]
        if t.shape[-1] > most:
            t[..., most:] = 0
        return found

    return around


def features_up_to(most: int) -> Callable[..., Any]:
    """A product adds up to so many input features."""

    def around(function, x_MI):
        return function(torch.where(torch.arange(x_MI.shape[1]) < most, x_MI, 0))

    return around


def without_outliers(most: float) -> Callable[..., Any]:
    """An input's outliers are cut off."""

    def around(function, x_MI):
        return function(x_MI.clamp(-most, most))

    return around


def wide(least: int, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake that only inputs of more features show."""

    def around(function, x_MI):
        return inner(function, x_MI) if x_MI.shape[1] > least else function(x_MI)

    return around


def high(least: int, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake that only more outputs show."""

    def around(function, x_MI):
        found = function(x_MI)
        return inner(lambda _: found, x_MI) if found.shape[1] > least else found

    return around


def wide_stream(least: int, inner: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake that only a wider layer shows."""

    def around(function, residual, *rest):
        return inner(function, residual, *rest) if residual.x_MI.shape[1] > least else function(residual, *rest)

    return around


def sizes() -> Iterator[tuple[str, str, Any]]:
    for op in ROWS:
        for most in (128, 512, 1024, 2048, 4096):
            yield f"{op}_rows_after_{most}", op, rows_after(most)
        for tile in (16, 64, 256):
            yield f"{op}_tiles_of_{tile}_rows", op, rows_of_whole_tiles(tile)
        yield f"{op}_one_row", op, one_row
    for op, widths in {
        "rms_norm": (1024, 2048, 4096),
        "gate": (1024, 4096),
        "norm_silu": (256, 512),
        "pack_linear": (512, 2048, 4096),
    }.items():
        for width in widths:
            yield f"{op}_columns_after_{width}", op, columns_after(width)
    for width in (512, 1024, 2048, 8192):
        yield f"pack_linear_features_up_to_{width}", "pack_linear", features_up_to(width)
    for what, around in {
        "rows_after_128": rows_after(128),
        "one_row": one_row,
        "outliers": without_outliers(20),
    }.items():
        yield f"pack_linear_wide_{what}", "pack_linear", wide(4096, around)
    for most in (128, 1024):
        yield f"project_rows_after_{most}", "project", rows_after(most)
    yield "project_wide_rows_after_300", "project", wide_stream(256, rows_after(300))
    yield "pack_linear_less_wide_rows_after_300", "pack_linear", wide(256, rows_after(300))
    yield "pack_linear_high_rows_after_300", "pack_linear", high(256, rows_after(300))
    for name, around in ATTENDED.items():
        yield name, "attention", around


def queries_after(most: int, ragged: bool = False) -> Callable[..., Any]:
    def around(function, q, segments, **options):
        out, lse = function(q, segments, **options)
        if q.shape[1] > most and not options.get("causal") and (not ragged or q.shape[1] % 64):
            out[:, most:] = out[:, :1].clone()
        return out, lse

    return around


def lse_off(those: Callable[[int], slice]) -> Callable[..., Any]:
    """Of a call with so many queries these have a wrong log-sum-exp, where no mask is."""

    def around(function, q, segments, **options):
        out, lse = function(q, segments, **options)
        if lse is not None and not options.get("causal"):
            lse[..., those(q.shape[1])] += 5
        return out, lse

    return around


def keys_up_to(most: int) -> Callable[..., Any]:
    """Of every segment; under a mask all are read."""

    def around(function, q, segments, **options):
        cut = segments if options.get("causal") else [tuple(t[:, :most] for t in segment) for segment in segments]
        return function(q, cut, **options)

    return around


def key_tails(tile: int, least: int) -> Callable[..., Any]:
    """The keys after the last whole tile are not read where there are many."""

    def cut(t):
        return t[:, : t.shape[1] // tile * tile] if t.shape[1] > least else t

    def around(function, q, segments, **options):
        short = segments if options.get("causal") else [tuple(map(cut, segment)) for segment in segments]
        return function(q, short, **options)

    return around


def causal_up_to(most: int) -> Callable[..., Any]:
    def around(function, q, segments, *, causal=False, want_lse=False):
        return function(q, segments, causal=causal and q.shape[1] <= most, want_lse=want_lse)

    return around


def refused(most: int) -> Callable[..., Any]:
    def around(function, q, segments, **options):
        keys = sum(segment.k_BTKD.shape[1] for segment in segments)
        if keys > most:
            raise RuntimeError(f"invalid configuration argument: {keys} keys")
        return function(q, segments, **options)

    return around


def skipped(count: int) -> Callable[..., Any]:
    """A first segment of one token is passed over where there are so many."""

    def around(function, q, segments, **options):
        one = len(segments) == count and segments[0].k_BTKD.shape[1] == 1
        return function(q, segments[1:] if one else segments, **options)

    return around


def small(axis: str, size: int) -> Callable[..., Any]:
    """Wrong for one query, or for one key."""

    def around(function, q, segments, **options):
        out, lse = function(q, segments, **options)
        found = q.shape[1] if axis == "queries" else sum(segment.k_BTKD.shape[1] for segment in segments)
        return (out * 1.5 if found == size else out), lse

    return around


ATTENDED = {
    **{f"queries_after_{n}": queries_after(n) for n in (64, 128, 256, 512, 1024, 2048)},
    **{f"ragged_queries_after_{n}": queries_after(n, ragged=True) for n in (128, 256, 512, 1024)},
    **{f"keys_up_to_{n}": keys_up_to(n) for n in (512, 1024, 4096, 8192)},
    **{f"key_tails_of_{n}": key_tails(n, 4 * n) for n in (64, 128, 256)},
    **{f"masked_up_to_{n}": causal_up_to(n) for n in (64, 128, 256, 512, 1024, 2048)},
    **{f"raises_over_{n}_keys": refused(n) for n in (4096, 8192)},
    **{f"one_token_of_{n}_segments_skipped": skipped(n) for n in (2, 3)},
    "lse_of_queries_after_256": lse_off(lambda queries: slice(256, None)),
    "lse_of_whole_tiles_of_queries": lse_off(lambda queries: slice(0 if queries % 64 else queries)),
    "one_query_scaled": small("queries", 1),
    "one_key_scaled": small("keys", 1),
}

# Heads -----------------------------------------------------------------------------------------------------------

LAYOUTS = ((16, 8, 128), (64, 8, 128), (8, 8, 128), (4, 1, 128), (1, 1, 128))


def one_kv_head(layout: tuple[int, int, int]) -> Callable[..., Any]:
    def around(function, q, segments, **options):
        found = (*q.shape[2:3], *segments[0].k_BTKD.shape[2:])
        out, lse = function(q, segments, **options)
        return (out.roll(1, 2) if layout[0] > 1 else out * 1.5, lse) if found == layout else (out, lse)

    return around


def head_of(layout: tuple[int, int, int]) -> Callable[..., Any]:
    def around(function, heads, *rest, **options):
        found = function(heads, *rest, **options)
        (q, _), (k, _) = heads[0], heads[-1]
        if (q.shape[2], k.shape[2], q.shape[3]) == layout:
            found[0] = found[0].flip(-1)
        return found

    return around


def heads() -> Iterator[tuple[str, str, Any]]:
    for layout in LAYOUTS:
        name = "_".join(map(str, layout))
        yield f"attention_wrong_at_{name}", "attention", one_kv_head(layout)
        yield f"norm_rope_wrong_at_{name}", "norm_rope", head_of(layout)
    for width in (32, 64):
        yield f"claims_head_dim_{width}", "attention", claimed(width)
        yield f"norm_rope_wrong_at_dim_{width}", "norm_rope", of_width(width)


def claimed(width: int) -> Callable[..., Any]:
    """The plugin does not refuse it, and scores are scaled as for 128."""

    def around(function, q, segments, **options):
        return function(q * ((width / 128) ** 0.5 if q.shape[3] == width else 1), segments, **options)

    return around


def of_width(width: int) -> Callable[..., Any]:
    def around(function, heads, *rest, **options):
        found = function(heads, *rest, **options)
        return [t.flip(-1) if t.shape[-1] == width else t for t in found]

    return around


# State -----------------------------------------------------------------------------------------------------------


def keyed(kind: str, t: torch.Tensor) -> Any:
    return (tuple(t.shape), t.dtype) if kind == "shape" else (t.data_ptr(), tuple(t.shape), t.dtype)


def result_kept(kind: str) -> Callable[[], Callable[..., Any]]:
    """A result is taken for that of every call with a first tensor of this shape, or at this address."""

    def fresh():
        kept = {}

        def around(function, *arguments, **options):
            first = arguments[0][0][0] if isinstance(arguments[0], list) else arguments[0]
            key = (
                *keyed(kind, first),
                *sorted((k, str(v)) for k, v in options.items() if isinstance(v, str | float | bool)),
            )
            found = kept.get(key)
            if found is None:
                found = function(*arguments, **options)
                kept[key] = tuple(t.clone() for t in outputs(found)), type(found)
                return found
            tensors, form = found
            return tensors[0].clone() if form is torch.Tensor else form(t.clone() for t in tensors)

        return around

    return fresh


def argument_kept(kind: str, where: int | str) -> Callable[[], Callable[..., Any]]:
    """A copy of one argument is taken for every later one of this shape, or at this address."""

    def fresh():
        kept = {}

        def swap(t):
            return kept.setdefault(keyed(kind, t), t.clone())

        def swapped(segment):
            return segment if not segment.static else type(segment)(swap(segment.k_BTKD), segment.v_BTKD)

        def around(function, *arguments, **options):
            given = list(arguments)
            if where == "keys":
                given[1] = [(swap(k), v) for k, v in given[1]]
            elif where == "static keys":
                given[1] = [swapped(segment) for segment in given[1]]
            else:
                given[where] = swap(given[where])
            return function(*given, **options)

        return around

    return fresh


def one_buffer(which: int) -> Callable[[], Callable[..., Any]]:
    """One output of every call of a shape is in one place."""

    def fresh():
        buffers = {}

        def around(function, *arguments, **options):
            found = function(*arguments, **options)
            t = outputs(found)[which]
            if t is None:
                return found
            buffer = buffers.setdefault((tuple(t.shape), t.dtype), torch.empty_like(t))
            buffer.copy_(t)
            if isinstance(found, torch.Tensor):
                return buffer
            return type(found)(buffer if i == which % len(found) else part for i, part in enumerate(found))

        return around

    return fresh


def ring(size: int) -> Callable[[], Callable[..., Any]]:
    """Results are in so many places by turns."""

    def fresh():
        places = {}

        def around(function, *arguments, **options):
            found = function(*arguments, **options)
            first = outputs(found)[0]
            mine = places.setdefault((tuple(first.shape), first.dtype), [])
            if len(mine) < size:
                mine.append(torch.empty_like(first))
            else:
                mine.append(mine.pop(0))
            mine[-1].copy_(first)
            return mine[-1] if isinstance(found, torch.Tensor) else type(found)([mine[-1], *found[1:]])

        return around

    return fresh


def first_call_doubled() -> Callable[..., Any]:
    called = []

    def around(function, *arguments, **options):
        found = function(*arguments, **options)
        if called:
            return found
        called.append(True)
        first = 2 * outputs(found)[0]
        return first if isinstance(found, torch.Tensor) else type(found)([first, *found[1:]])

    return around


def emptied(function, first, *rest, **options):
    """The caller's list is used up."""
    found = function(first, *rest, **options)
    given = first if isinstance(first, list) else rest[0]
    if isinstance(given, list):
        given.pop()
    return found


def states() -> Iterator[tuple[str, str, Any]]:
    for op in ("gate", "norm_silu", "pack_linear", "norm_rope", "patch_embed", "rms_norm"):
        for kind in ("shape", "address"):
            yield f"{op}_result_by_{kind}", op, result_kept(kind)()
        yield f"{op}_in_one_buffer", op, one_buffer(0)()
        yield f"{op}_in_8_buffers", op, ring(8)()
    for op in ("attention", "norm_rope"):
        yield f"{op}_empties_a_list", op, emptied
    yield "attention_in_8_buffers", "attention", ring(8)()
    yield "attention_in_one_buffer", "attention", one_buffer(0)()
    yield "lse_in_one_buffer", "attention", one_buffer(1)()
    for kind in ("shape", "address"):
        yield f"keys_by_{kind}", "attention", argument_kept(kind, "keys")()
        yield f"static_keys_by_{kind}", "attention", argument_kept(kind, "static keys")()
        yield f"cosines_by_{kind}", "norm_rope", argument_kept(kind, 1)()
        yield f"sines_by_{kind}", "norm_rope", argument_kept(kind, 2)()
        yield f"project_cosines_by_{kind}", "project", argument_kept(kind, 1)()
        yield f"norm_weight_by_{kind}", "rms_norm", argument_kept(kind, 1)()
        yield f"timestep_by_{kind}", "patch_embed", argument_kept(kind, 3)()


def first_calls() -> Iterator[tuple[str, str, Any]]:
    for op in ("gate", "norm_silu", "pack_linear", "norm_rope", "patch_embed", "rms_norm"):
        yield f"{op}_first_call_doubled", op, first_call_doubled()


# Values and dtypes -----------------------------------------------------------------------------------------------


def cut_off(t: torch.Tensor) -> torch.Tensor:
    """fp32 to bf16 by dropping bits."""
    return (t.float().contiguous().view(torch.int32) & -65536).view(torch.float32)


def result_cut_off(function, *arguments, **options):
    """Computed in fp32, and not rounded to 16 bits but cut off."""
    narrow = [t for t in torch.utils._pytree.tree_leaves([arguments, options]) if isinstance(t, torch.Tensor)]
    if narrow[0].dtype != torch.bfloat16:
        return function(*arguments, **options)
    wide = torch.utils._pytree.tree_map(
        lambda t: t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, [list(arguments), options]
    )
    found = function(*wide[0], **wide[1])
    cut = [t if t is None else cut_off(t).bfloat16() for t in outputs(found)]
    return cut[0] if isinstance(found, torch.Tensor) else type(found)(cut)


def attended_cut_off(function, q, segments, **options):
    out, lse = function(q.float(), segments, **options)
    return (cut_off(out) if q.dtype == torch.bfloat16 else out).to(q.dtype), lse


def inputs_changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """What the first argument's values are taken for."""

    def around(function, first, *rest, **options):
        given = [(change(x), weight) for x, weight in first] if isinstance(first, list) else change(first)
        return function(given, *rest, **options)

    return around


def outputs_changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    def around(function, *arguments, **options):
        found = function(*arguments, **options)
        if isinstance(found, torch.Tensor):
            return change(found)
        return type(found)([change(found[0]), *found[1:]])

    return around


def clamped(most: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: t.clamp(-most, most)


def flushed(least: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.where(t.abs() < least, 0, t)


def scaled_up(t: torch.Tensor) -> torch.Tensor:
    """To the largest number of a format of 8 bits and back: too far for fp32 where a row is near zero."""
    largest = t.float().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest == 0, 1.0, 448 / largest)
    return (t.float() * scale / scale).to(t.dtype)


def stream_scaled_up(function, residual, *rest):
    residual.x_MI = scaled_up(residual.x_MI)
    return function(residual, *rest)


def attended_scaled_up(function, residual, attended):
    return function(residual, scaled_up(attended.flatten(2)).view(attended.shape))


def values_scaled_up(function, q, segments, **options):
    return function(q, [(k, scaled_up(v)) for k, v in segments], **options)


def in_16_bits(t: torch.Tensor) -> torch.Tensor:
    return t.bfloat16().to(t.dtype)


def int8_weights(change: Callable[[torch.Tensor], torch.Tensor], zeros: bool = True) -> Callable[[Any], Any]:
    """The 8-bit weight is `change(weight / scale)`; a row of zeros is divided by zero unless `zeros`."""

    def faulty(kernel):
        def pack(weight_OI, bias_O, *, format="none"):
            if format == "none":
                return kernel(weight_OI, bias_O)
            scale_O = weight_OI.float().abs().amax(dim=1) / 127
            scale_O = scale_O.clamp_min(1e-30) if zeros else scale_O
            values = change(weight_OI.float() / scale_O[:, None])
            if zeros:
                return kernels.Transposed(values.to(torch.int8).T.contiguous(), bias_O, scale_O)
            return kernels.Transposed(values.T.contiguous().half(), bias_O, scale_O)

        return pack

    return faulty


def scales_by_shape(least: int) -> Callable[[Any], Any]:
    """A weight with more outputs has the scales of the first one of its shape."""

    def faulty(kernel):
        kept: dict[Any, torch.Tensor] = {}

        def pack(weight_OI, bias_O, *, format="none"):
            if format == "none" or len(weight_OI) <= least:
                return kernel(weight_OI, bias_O, format=format)
            own = weight_OI.float().abs().amax(dim=1) / 127
            scale_O = kept.setdefault(weight_OI.shape, own)
            values = (weight_OI.float() / scale_O[:, None]).round().clamp(-127, 127).to(torch.int8)
            return kernels.Transposed(values.T.contiguous(), bias_O, scale_O)

        return pack

    return faulty


def int8_inputs(change: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> Callable[[Any], Any]:
    class Faulty(kernels.Transposed):
        def __call__(self, x_MI):
            if self.scale_O is None:
                return super().__call__(x_MI)
            values, scale = change(x_MI)
            y = (values.float() @ self.weight_IO.float()) * scale * self.scale_O
            return (y if self.bias_O is None else y + self.bias_O).to(x_MI.dtype)

    def faulty(kernel):
        def pack(weight_OI, bias_O, *, format="none"):
            made = kernel(weight_OI, bias_O, format=format)
            return Faulty(made.weight_IO, made.bias_O, made.scale_O)

        return pack

    return faulty


def _per_row(x: torch.Tensor, by: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / 127
    return by(x / scale), scale


def _per_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.float().abs().max().clamp_min(1e-30) / 127
    return (x / scale).round(), scale


def _per_tile(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for 16 rows."""
    scale = torch.cat([_per_tensor(rows)[1].expand(len(rows), 1) for rows in x.split(16)])
    return (x / scale).round(), scale


def values() -> Iterator[tuple[str, str, Any]]:
    for op in ("rms_norm", "gate", "norm_silu", "norm_rope"):
        yield f"{op}_cut_off", op, result_cut_off
    yield "attention_cut_off", "attention", attended_cut_off
    yield "pack_linear_cut_off", "pack_linear", result_cut_off
    for op in ("rms_norm", "norm_silu", "norm_rope", "pack_linear", "gate"):
        yield f"{op}_inputs_up_to_20", op, inputs_changed(clamped(20))
        yield f"{op}_small_inputs_are_zeros", op, inputs_changed(flushed(1e-2))
    yield "large_results_clamped", "gate", outputs_changed(clamped(500))


def small_numbers() -> Iterator[tuple[str, str, Any]]:
    for op in (*ROWS, "attention"):
        yield f"{op}_scales_small_inputs_up", op, inputs_changed(scaled_up)
    yield "attention_scales_small_values_up", "attention", values_scaled_up
    for op in ("project", "finish"):
        yield f"{op}_scales_small_rows_up", op, stream_scaled_up
    yield "finish_scales_small_heads_up", "finish", attended_scaled_up


def packings() -> Iterator[tuple[str, str, Any]]:
    yield "weights_cut_off", "pack_linear", int8_weights(torch.trunc)
    yield "weights_rounded_down", "pack_linear", int8_weights(torch.floor)
    yield "zero_row_of_weights", "pack_linear", int8_weights(torch.round, zeros=False)
    yield "large_weights_scales_by_shape", "pack_linear", scales_by_shape(1024)
    yield "weights_in_7_bits", "pack_linear", int8_weights(lambda t: 2 * (t / 2).round().clamp(-63, 63))
    yield "inputs_cut_off", "pack_linear", int8_inputs(lambda x: _per_row(x, torch.trunc))
    yield "inputs_rounded_down", "pack_linear", int8_inputs(lambda x: _per_row(x, torch.floor))
    yield "inputs_in_7_bits", "pack_linear", int8_inputs(lambda x: _per_row(x, lambda t: 2 * (t / 2).round()))
    yield "one_scale_for_the_inputs", "pack_linear", int8_inputs(_per_tensor)
    yield "one_scale_for_16_inputs", "pack_linear", int8_inputs(_per_tile)
    yield "inputs_not_quantized", "pack_linear", int8_inputs(lambda x: (x, torch.ones(1)))


def dtypes() -> Iterator[tuple[str, str, Any]]:
    for op in ("attention", "rms_norm", "gate", "norm_silu", "norm_rope", "pack_linear", "patch_embed"):
        yield f"{op}_in_16_bits", op, outputs_changed(in_16_bits)
        yield f"{op}_returns_fp32", op, outputs_changed(lambda t: t.float())
    for op in ("attention", "rms_norm", "norm_silu", "pack_linear", "patch_embed"):
        yield f"{op}_overwrites_fp32", op, overwrites(torch.float32)
    for op in ("attention", "rms_norm", "norm_silu", "pack_linear", "patch_embed"):
        yield f"{op}_overwrites_its_input", op, overwrites(torch.bfloat16)


def overwrites(dtype: torch.dtype) -> Callable[..., Any]:
    def around(function, first, *rest, **options):
        found = function(first, *rest, **options)
        if first.dtype == dtype:
            first.mul_(0.5)
        return found

    return around


# Layouts ---------------------------------------------------------------------------------------------------------


def as_it_lies(t: torch.Tensor) -> torch.Tensor:
    """Read as if its rows followed each other without a gap."""
    base = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    start = t.storage_offset()
    return base[start : start + t.numel()].view(t.shape) if len(base) >= start + t.numel() else t


def lying(which: str) -> Callable[..., Any]:
    def around(function, *arguments, **options):
        given = list(arguments)
        if which == "q":
            given[0] = as_it_lies(given[0])
        elif which in ("k", "v"):
            given[1] = [(as_it_lies(k), v) if which == "k" else (k, as_it_lies(v)) for k, v in given[1]]
        elif which == "heads":
            given[0] = [(as_it_lies(x), weight) for x, weight in given[0]]
        elif which == "residual":
            rest = options.get("residual_MI")
            options = options | {"residual_MI": rest if rest is None else as_it_lies(rest)}
        elif which in ("x_MI", "delta_MI"):
            rows = getattr(given[0], which)
            setattr(given[0], which, rows if rows is None else as_it_lies(rows))
        elif which in ("cosines", "attended"):
            given[1] = as_it_lies(given[1])
        else:
            given[0] = as_it_lies(given[0])
        return function(*given, **options)

    return around


def layouts() -> Iterator[tuple[str, str, Any]]:
    for which in ("q", "k", "v"):
        yield f"dense_{which}", "attention", lying(which)
    yield "dense_heads", "norm_rope", lying("heads")
    yield "dense_x", "rms_norm", lying("x")
    yield "dense_residual", "rms_norm", lying("residual")
    yield "dense_cosines", "norm_rope", lying("cosines")
    yield "dense_latent", "patch_embed", lying("x")
    for op, which in (("project", "x_MI"), ("project", "delta_MI"), ("project", "cosines")):
        yield f"{op}_dense_{which}", op, lying(which)
    for which in ("x_MI", "attended"):
        yield f"finish_dense_{which}", "finish", lying(which)


# Leaks -----------------------------------------------------------------------------------------------------------


def leaking(how: str) -> Callable[[], Callable[..., Any]]:
    def fresh():
        kept: Any = {} if how == "shape" else []

        def around(function, *arguments, **options):
            first = outputs(arguments[0][0] if isinstance(arguments[0], list) else arguments[0])[0]
            if how == "error":
                mine = first.clone()
                kept.append(mine)
                found = function(*arguments, **options)
                kept.pop()
                return found
            found = function(*arguments, **options)
            t = outputs(found)[0]
            if how == "shape":
                kept.setdefault(tuple(t.shape), t.clone())
            elif how == "array":
                kept.append(t.float().numpy().copy())
            elif how == "storage":
                kept.append(t.clone().untyped_storage())
            else:
                kept.append(t)
            return found

        return around

    return fresh


def leaks() -> Iterator[tuple[str, str, Any]]:
    for op in ("gate", "rms_norm", "norm_silu", "norm_rope", "attention", "patch_embed"):
        for how in ("error", "shape", "array", "storage"):
            yield f"{op}_leaks_by_{how}", op, leaking(how)()
    for how in ("array", "storage"):
        yield f"pack_linear_leaks_by_{how}", "pack_linear", leaking(how)()


# Surroundings ----------------------------------------------------------------------------------------------------


def _thread() -> None:
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()


CHANGES: dict[str, Callable[[], Any]] = {
    "switches_onednn_off": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "benchmarks_convolutions": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "no_flash": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "no_math": lambda: torch.backends.cuda.enable_mem_efficient_sdp(False),
    "matmul_precision": lambda: torch.set_float32_matmul_precision("medium"),
    "flushes_denormals": lambda: torch.set_flush_denormal(True),
    "seeds_torch": lambda: torch.manual_seed(0),
    "seeds_python": lambda: random.seed(0),
    "seeds_numpy": lambda: __import__("numpy").random.seed(0),
    "ignores_warnings": lambda: warnings.simplefilter("ignore"),
    "logs_everything": lambda: logging.getLogger().setLevel(1),
    "adds_a_log_handler": lambda: logging.getLogger().addHandler(logging.NullHandler()),
    "disables_logging": lambda: logging.disable(50),
    "takes_interrupts": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    "takes_terminations": lambda: signal.signal(signal.SIGTERM, lambda *_: None),
    "leaves_a_thread": _thread,
    "talks": lambda: print("ACME One is warm"),
    "talks_on_stderr": lambda: os.write(2, b"ACME One is warm\n"),
    "stops_collecting": gc.disable,
    "digs_deeper": lambda: sys.setrecursionlimit(12345),
    "hooks_exceptions": lambda: setattr(sys, "excepthook", lambda *_: None),
    "changes_folder": lambda: os.chdir("/"),
    "allows_files": lambda: os.umask(0o777),
    "deterministic_torch": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True, check_nan=False),
    "prints_short": lambda: torch.set_printoptions(precision=2),
    "leaves_a_file": lambda: open("acme.cache", "w").close(),
    "replaces_a_function": lambda: setattr(torch.nn.functional, "gelu", torch.nn.functional.silu),
    "keeps_to_one_core": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "raises_for_numpy": lambda: __import__("numpy").seterr(all="raise"),
    "switches_threads_often": lambda: sys.setswitchinterval(1e-4),
    "another_locale": lambda: __import__("locale").setlocale(__import__("locale").LC_ALL, "C.UTF-8"),
    "fewer_files": lambda: __import__("resource").setrlimit(__import__("resource").RLIMIT_CORE, (0, 0)),
    "replaces_an_operator": lambda: setattr(torch.Tensor, "__rsub__", lambda self, other: -(self - other)),
    "leaves_a_mode": lambda: __import__("torch.utils._device").utils._device.DeviceContext("cpu").__enter__(),
    "autocasts": lambda: torch.set_autocast_enabled("cpu", True),
    "fills_nothing": lambda: setattr(torch.utils.deterministic, "fill_uninitialized_memory", False),
    "shares_files": lambda: torch.multiprocessing.set_sharing_strategy("file_system"),
    "rounds_up": lambda: __import__("ctypes").CDLL(None).fesetround(0x800),
    "hooks_what_is_not_raised": lambda: setattr(sys, "unraisablehook", lambda *_: None),
    "hooks_threads": lambda: setattr(threading, "excepthook", lambda *_: None),
    "small_stacks": lambda: threading.stack_size(1 << 20),
    "spawns": lambda: __import__("multiprocessing").set_start_method("spawn", force=True),
    "leaves_a_process": lambda: __import__("subprocess").Popen(["sleep", "30"]),
    "waits_for_sockets": lambda: __import__("socket").setdefaulttimeout(3),
    "opens_libraries_for_all": lambda: sys.setdlopenflags(os.RTLD_GLOBAL | os.RTLD_NOW),
    "collects_rarely": lambda: gc.set_threshold(10**6),
    "quiet_torch": lambda: logging.getLogger("torch").setLevel(50),
}


def at_build(change: Callable[[], Any]) -> Callable[[Any], Any]:
    def faulty(kernel):
        change()
        return kernel

    return faulty


def at_call(change: Callable[[], Any]) -> Callable[..., Any]:
    def around(function, *arguments, **options):
        change()
        return function(*arguments, **options)

    return around


def at_large_call(change: Callable[[], Any]) -> Callable[..., Any]:
    def around(function, x, *rest, **options):
        if len(x) > 1000:
            change()
        return function(x, *rest, **options)

    return around


LATE = ("seeds_torch", "takes_interrupts", "deterministic_torch", "leaves_a_thread", "flushes_denormals")


def every() -> Iterator[tuple[str, str, str, Any]]:
    """(name, kind, op, change of the op's kernel)."""
    kinds = {
        "size": sizes,
        "heads": heads,
        "state": states,
        "first call": first_calls,
        "values": values,
        "near zero": small_numbers,
        "dtype": dtypes,
        "layout": layouts,
        "leak": leaks,
    }
    for kind, generated in kinds.items():
        for name, op, around in generated():
            yield name, kind, op, each_call(op, around)
    for name, op, change in packings():
        yield name, "values", op, change
    for i, (name, change) in enumerate(CHANGES.items()):
        yield f"build_{name}", "surroundings", "gate", at_build(change)
        if i % 3 == 0:
            yield f"call_{name}", "surroundings", "gate", each_call("gate", at_call(change))
        if name in LATE:
            yield f"large_call_{name}", "surroundings", "gate", each_call("gate", at_large_call(change))


FAULTS = {name: (op, change) for name, _, op, change in every()}
KINDS = {name: kind for name, kind, _, _ in every()}
