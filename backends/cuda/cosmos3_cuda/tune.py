"""Measure the kernels' launches on this GPU: `python -m cosmos3_cuda.tune [KERNEL ...]`.

Every kernel is timed at Cosmos3-Nano's sizes, as it is launched now and with one number of the launch changed at a
time, from the fastest so far, until nothing is faster. What differs in its result, or does not fit into the GPU, is
left out. The result is for this build alone (see `tables`) and taken from the next process on; --out writes it
elsewhere, for a package to ship.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from cosmos3_core.contract import Quantized

from . import fa3, fused, linear, patch_embed, triton_attention, triton_linear
from .tables import Launch, Table, measured_here, table, triton_version, written

LESS = 0.99
"""Of the time so far: what is not at least this much faster is as fast."""
MOST_DIFFERENCE = 1e-2
"""Relative, of two launches' results, which sum in another order."""


@dataclass(frozen=True)
class Sizes:
    """Of a layer, and of what it works on; Nano's and a clip's of 93 frames of 832x480."""

    tokens: int = 9360
    text: int = 512
    hidden: int = 4096
    inner: int = 12288
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    latent: tuple[int, ...] = (48, 24, 30, 52)
    patch: int = 2
    vae_rows: int = 480 * 832
    vae_width: int = 256


class Inputs:
    """What the kernels are called with, normally distributed."""

    def __init__(self, sizes: Sizes, device: str):
        self.sizes, self.device, self.stream = sizes, device, torch.Generator(device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.stream).bfloat16()

    def attention(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        s = self.sizes
        q_BSHD, (text, media) = self.normal(1, s.tokens, s.heads, s.head_dim), (s.text, s.tokens)
        kv = [[self.normal(1, length, s.kv_heads, s.head_dim) for _ in "kv"] for length in (text, media)]
        return q_BSHD, [tuple(pair) for pair in kv]

    def add_segment(self, table: Table, rows: int) -> Callable[[], Any]:
        (q_BSHD, ((k, v), _)), s = self.attention(), self.sizes
        apart = self.normal(1, s.kv_heads, s.head_dim).float()
        q8 = fa3.quantize(q_BSHD, share=s.heads // s.kv_heads, against_BGD=apart)
        k8, lse = fa3.quantize(k, centre=True), torch.zeros(1, s.heads, s.tokens, device=self.device)

        def call() -> Tensor:
            out = q_BSHD.clone()
            fa3.add_segment(q8, (k8, v), out, lse.clone(), apart, table.launch("add_segment"))
            return out

        return call

    def matrices(self, rows: int, out: int, width: int) -> tuple[Tensor, Tensor]:
        return self.normal(rows, width), self.normal(out, width) / width**0.5

    def packed(self, build: Callable, format: str, out: int, table: Table, rows: int) -> Callable[[], Any]:
        x, weight = self.matrices(rows, out, self.sizes.hidden)
        product = build(table)(weight, None, format=format)
        if out == 2 * self.sizes.inner:
            product = product.gated()
        return partial(product, triton_linear.quantize_rows(x, format) if format == "fp8" else x)

    def patch_embed(self, table: Table, rows: int) -> Callable[[], Any]:
        s = self.sizes
        x, weight = self.matrices(1, s.hidden, s.latent[0] * s.patch**2)
        latent, op = self.normal(*s.latent).float(), patch_embed.build_patch_embed(table)
        return partial(op, latent, weight, weight[:, 0].contiguous(), weight[:, 1].contiguous(), patch=s.patch)

    def row_wise(self, kernel: str, table: Table, rows: int) -> Callable[[], Any]:
        s = self.sizes
        if kernel == "norm_rope":
            (q, ((_, _), (k, _))), angles = self.attention(), self.normal(1, s.tokens, s.head_dim)
            weight = self.normal(s.head_dim)
            heads = [(q, weight), (k, weight)]
            return lambda: fused.build_norm_rope(table)(heads, angles, angles, eps=1e-6)
        if kernel == "norm_silu":
            x, weight = self.normal(s.vae_rows, s.vae_width), self.normal(s.vae_width)
            return lambda: fused.build_norm_silu(table)(x, weight)
        if kernel == "rms_norm":
            x, added, weight = (self.normal(*shape) for shape in [(s.tokens, s.hidden)] * 2 + [(s.hidden,)])
            return lambda: fused.build_rms_norm(table)(x, weight, eps=1e-6, residual_MI=added)
        x, format = self.normal(s.tokens, 2 * s.inner), "fp8" if kernel == "gate_rows" else "none"
        # In place without a format: a clone, whose time is the same for every launch.
        return lambda: fused.build_gate(table)(x.clone(), activation="silu", format=format)

    def call(self, kernel: str, table: Table, rows: int) -> Callable[[], Any]:
        """The kernel as `table` launches it, on so many rows where it is for a number of rows; always on the same."""
        s = self.sizes
        self.stream.manual_seed(0)
        if kernel in ("flash", "eight_bit"):
            op = triton_attention.Flash(table) if kernel == "flash" else triton_attention.build_int8(table)
            return partial(op, *self.attention())
        products = {
            "scaled_mm": (linear.build_triton_scaled_mm, "fp8", s.hidden),
            "gated_mm_8bit": (linear.build_triton_scaled_mm, "fp8", 2 * s.inner),
            "gated_mm_16bit": (linear.build_cublas, "none", 2 * s.inner),
            "a16_mm": (linear.build_triton_a16, "w4a16", s.hidden),
        }
        if kernel in products:
            return self.packed(*products[kernel], table, rows)
        if kernel in ("add_segment", "patch_embed"):
            return getattr(self, kernel)(table, rows)
        return self.row_wise(kernel, table, rows)


def neighbours(launch: Launch) -> Iterator[Launch]:
    """The launch with one number halved or doubled, or a stage more or less, or its other order of tiles."""
    for name in ("block_m", "block_n", "block_k", "elements", "warps"):
        number = getattr(launch, name)
        yield from (replace(launch, **{name: other}) for other in (number // 2, number * 2) if number and other)
    if launch.block_m:
        yield from (replace(launch, stages=other) for other in (launch.stages - 1, launch.stages + 1) if other)
    if launch.block_k:
        yield replace(launch, persistent=not launch.persistent)


def tune(
    kernel: str, base: Table, inputs: Inputs, time: Callable[[Callable], float], say: Callable[[str], None]
) -> list[Launch]:
    """The kernel's launches, each the fastest found for as many rows as the table's was for. Raises what the kernel
    raises where it does not run here at all. `time` gives milliseconds."""
    found = []
    for begin in base.launches[kernel]:
        rows = min(begin.rows, inputs.sizes.tokens)

        def measured(launch: Launch, rows: int = rows) -> tuple[float, Any]:
            call = inputs.call(kernel, replace(base, launches={**base.launches, kernel: (launch,)}), rows)
            return time(call), call()

        best, tried = begin, {begin}
        least, expected = measured(begin)
        say(f"{kernel}, {rows:,} rows: {least:.3f} ms as it is, {spelt(begin)}")
        while fresh := [launch for launch in neighbours(best) if launch not in tried]:
            tried.update(fresh)
            for launch in fresh:
                try:
                    took, result = measured(launch)
                except Exception as error:  # the compiler's many ways of saying that these are no sizes for it
                    say(f"  {spelt(launch)}: {type(error).__name__}")
                    continue
                same = equal(result, expected)
                say(f"  {spelt(launch)}: {took:.3f} ms{'' if same else ', and another result'}")
                if same and took < LESS * least:
                    best, least = launch, took
        found.append(best)
    return found


def equal(found: Any, expected: Any) -> bool:
    """Whether two results are the same but for rounding."""
    if isinstance(expected, (tuple, list)):
        return all(equal(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, Quantized):
        found, expected = found.values_MI, expected.values_MI
    if expected is None:
        return found is None
    return bool((found.float() - expected.float()).norm() <= MOST_DIFFERENCE * expected.float().norm())


def spelt(launch: Launch) -> dict[str, Any]:
    """What of it is not a launch's default."""
    usual = {field.name: field.default for field in fields(Launch)}
    return {name: value for name, value in asdict(launch).items() if value != usual[name]}


def kernels_of(base: Table) -> list[str]:
    return sorted(base.launches)


def median_ms(call: Callable[[], Any]) -> float:
    return triton.testing.do_bench(call, return_mode="median")


def main(arguments: Iterable[str] | None = None) -> None:
    from .plugin import probe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = probe()
    base = table(device.arch)
    parser.add_argument(
        "kernel", nargs="*", metavar="KERNEL", help=f"of {', '.join(kernels_of(base))}; without any, all"
    )
    parser.add_argument("--out", type=Path, default=measured_here(device.arch))
    args = parser.parse_args(arguments)
    if unknown := set(args.kernel) - set(kernels_of(base)):
        parser.error(f"no kernel {', '.join(sorted(unknown))}; there are {', '.join(kernels_of(base))}")
    inputs = Inputs(Sizes(), "cuda")
    launches = {}
    for kernel in args.kernel or kernels_of(base):
        try:
            found = tune(kernel, base, inputs, median_ms, lambda line: print(line, flush=True))
        except Exception as error:
            print(f"{kernel} does not run here, and stays as it is: {error}", flush=True)
        else:
            launches[kernel] = [spelt(launch) for launch in found]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(written(launches, {"device": device.name, "triton": triton_version()}), "utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
