"""Measure the kernels' launches on this GPU: `python -m cosmos3_triton.tune [KERNEL ...]`.

Every kernel is timed at Cosmos3-Nano's sizes, as it is launched by what ships and with one number of the launch
changed at a time, from the fastest so far, until nothing is faster. What differs in its result, or does not fit into
the GPU, is left out. The result is for this GPU and this build alone (see `tables`) and taken from the next process on;
--out writes it elsewhere, for a package to ship. Other kernels' launches in that file stay.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from cosmos3_core.contract import GROUP, Backend, Device, Residual, Segment, Unavailable

from . import layers, linears, patch_embed, row_wise, segments
from .activations import Rows, element, quantize_rows
from .attention import Flash
from .attention_8bit import build_fp8, build_int8
from .products import scaled_mm
from .rows import find_of
from .tables import KERNELS, OPTIONAL, Launch, Launches, Table, measured_here, read, triton_version, written

FASTER = 0.99
"""A launch is taken where it needs less than this part of the best time so far."""
MOST_DIFFERENCE = 1e-2
"""The largest relative difference between two launches' results: they sum in another order."""


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
    """What the kernels are called with, normally distributed, on a `device` of torch's. `int8`: whether attention in 8
    bits is all in int8, or in FP8."""

    def __init__(self, sizes: Sizes, device: str, *, int8: bool):
        self.sizes, self.device, self.int8, self.stream = sizes, device, int8, torch.Generator(device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.stream).bfloat16()

    def attention(self) -> tuple[Tensor, list[Segment]]:
        s = self.sizes
        q_BSHD, (text, media) = self.normal(1, s.tokens, s.heads, s.head_dim), (s.text, s.tokens)
        sizes = [(1, length, s.kv_heads, s.head_dim) for length in (text, media)]
        return q_BSHD, [Segment(self.normal(*size), self.normal(*size)) for size in sizes]

    def add_segment(self, table: Table) -> Callable[[], Any]:
        (q_BSHD, ((k, v), _)), s = self.attention(), self.sizes
        apart = self.normal(1, s.kv_heads, s.head_dim).float()
        q8 = segments.quantize(q_BSHD, share=s.heads // s.kv_heads, against_BGD=apart)
        k8, lse = segments.quantize(k, centre=True), torch.zeros(1, s.heads, s.tokens, device=self.device)

        def call() -> Tensor:
            segments.add_segment(q8, (k8, v), q_BSHD, lse, apart, table.launch("add_segment"))
            return q_BSHD

        return call

    def matrices(self, rows: int, out: int, width: int) -> tuple[Tensor, Tensor]:
        return self.normal(rows, width), self.normal(out, width) / width**0.5

    def product(self, format: str, out: int, table: Table, rows: int) -> Callable[[], Any]:
        """Of a layer's matrix, which applies the gate where it makes [gate | up], with rows in its format."""
        x, weight = self.matrices(rows, out, self.sizes.hidden)
        plain = layers.packed(weight, format, table, scaled_mm)
        matrix: Callable[..., Tensor] = plain
        if out == 2 * self.sizes.inner:
            matrix = layers.with_gate(plain, "silu", table)
        return partial(matrix, x if format == "none" else quantize_rows(x, format, fp8=element(table).torch))

    def a16_mm(self, table: Table, rows: int) -> Callable[[], Any]:
        x, weight = self.matrices(rows, self.sizes.hidden, self.sizes.hidden)
        return partial(linears.build_a16(table)(weight, None, format="w4a16"), x)

    def adding_mm_8bit(self, table: Table) -> Callable[[], Any]:
        x, weight = self.matrices(self.sizes.tokens, self.sizes.hidden, self.sizes.hidden)
        matrix = layers.QuantizedMatrix(weight, "fp8", table, scaled_mm)
        residual = Residual(self.normal(self.sizes.tokens, self.sizes.hidden))
        rows = quantize_rows(x, "fp8", fp8=element(table).torch)

        def call() -> Tensor:
            matrix.add(residual, rows)
            return residual.x_MI

        return call

    def patch_embed(self, table: Table) -> Callable[[], Any]:
        s = self.sizes
        latent, weight = self.normal(*s.latent).float(), self.normal(s.hidden, s.latent[0] * s.patch**2)
        bias, timestep = self.normal(s.hidden), self.normal(1, s.hidden)
        return partial(patch_embed.build_patch_embed(table), latent, weight, bias, timestep, patch=s.patch)

    def row_wise(self, kernel: str, table: Table) -> Callable[[], Any]:
        s = self.sizes
        if kernel == "norm_rope":
            (q, ((_, _), (k, _))), angles = self.attention(), self.normal(1, s.tokens, s.head_dim)
            weight = self.normal(s.head_dim)
            heads = [(q, weight), (k, weight)]
            return lambda: row_wise.build_norm_rope(table)(heads, angles, angles, eps=1e-6)
        if kernel == "norm_silu":
            x, weight = self.normal(s.vae_rows, s.vae_width), self.normal(s.vae_width)
            return lambda: row_wise.build_norm_silu(table)(x, weight)
        if kernel == "rms_norm":
            x, added, weight = (self.normal(*shape) for shape in [(s.tokens, s.hidden)] * 2 + [(s.hidden,)])
            return lambda: row_wise.norm_rows(table)(x, weight, eps=1e-6, residual_MI=added)
        x, format = self.normal(s.tokens, 2 * s.inner), "int8" if kernel == "gate_rows" else "none"
        return lambda: row_wise.gate_rows(table)(x, activation="silu", format=format)

    def call(self, kernel: str, table: Table, rows: int) -> Callable[[], Any]:
        """The kernel as `table` launches it, on so many rows where it is for a number of rows. What the first call
        starts from is always the same; a kernel that works in place goes on from there."""
        s = self.sizes
        self.stream.manual_seed(0)
        if kernel in ("flash", "eight_bit", "ranges"):
            eight_bit = build_int8 if self.int8 else partial(build_fp8, int8=False)
            return partial((Flash if kernel == "flash" else eight_bit)(table), *self.attention())
        products = {
            "scaled_mm": ("int8", s.hidden),  # on most, torch has a faster one for fp8
            "gated_mm_8bit": ("fp8", 2 * s.inner),
            "gated_mm_16bit": ("none", 2 * s.inner),
        }
        if kernel in products:
            return self.product(*products[kernel], table, rows)
        if kernel == "a16_mm":
            return self.a16_mm(table, rows)
        if kernel in ("add_segment", "adding_mm_8bit", "patch_embed"):
            return getattr(self, kernel)(table)
        return self.row_wise(kernel, table)


def neighbours(kernel: str, launch: Launch) -> Iterator[Launch]:
    """The launch with one number halved or doubled, or a stage more or less, or its other order of tiles."""
    for name in sorted(KERNELS[kernel] - {"rows"}):
        number = getattr(launch, name)
        if name == "persistent":
            others = [not number]
        else:
            others = [number - 1, number + 1] if name == "stages" else [number // 2, number * 2]
        yield from (replace(launch, **{name: other}) for other in others if other or name == "persistent")


def tune(
    kernel: str, base: Table, inputs: Inputs, time: Callable[[Callable], float], say: Callable[[str], None]
) -> list[Launch]:
    """The kernel's launches, each the fastest found for as many rows as the table's was for. Raises what the kernel
    raises where it does not run here at all. `time` gives milliseconds."""
    found = []
    for begin in base.launches[kernel]:
        rows = int(min(begin.rows, inputs.sizes.tokens))

        def call(launch: Launch, rows: int = rows) -> Callable[[], Any]:
            return inputs.call(kernel, replace(base, launches={**base.launches, kernel: (launch,)}), rows)

        best, tried = begin, {begin}
        expected, least = call(begin)(), time(call(begin))
        say(f"{kernel}, {rows:,} rows: {least:.3f} ms as it is, {spelt(kernel, begin)}")
        while fresh := [launch for launch in neighbours(kernel, best) if launch not in tried]:
            tried.update(fresh)
            for launch in fresh:
                try:
                    same = alike(call(launch)(), expected)
                    took = time(call(launch)) if same else None
                except Exception as error:  # the compiler's many ways of saying that these are no sizes for it
                    say(f"  {spelt(kernel, launch)}: {type(error).__name__}")
                    continue
                say(f"  {spelt(kernel, launch)}: {'another result' if took is None else f'{took:.3f} ms'}")
                if took is not None and took < FASTER * least:
                    best, least = launch, took
        found.append(best)
    return found


def alike(found: Any, expected: Any) -> bool:
    """Whether two results are the same but for rounding."""
    if isinstance(expected, (tuple, list)):
        return all(alike(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, Rows):
        found, expected = found.values_MI, expected.values_MI
    if expected is None:
        return found is None
    return bool((found.float() - expected.float()).norm() <= MOST_DIFFERENCE * expected.float().norm())


def spelt(kernel: str, launch: Launch) -> dict[str, Any]:
    """As a table says it."""
    usual = {field.name: field.default for field in fields(Launch)}
    said = {name: value for name, value in asdict(launch).items() if name in KERNELS[kernel]}
    return {name: value for name, value in said.items() if name not in OPTIONAL or value != usual[name]}


def median_ms(call: Callable[[], Any]) -> float:
    return triton.testing.do_bench(call, return_mode="median")


def found_here(name: str | None) -> tuple[Backend, Device]:
    """The installed backend of that name and its device; without a name, of the one backend that has a device here.
    Raises Unavailable."""
    here, reasons = [], []
    for entry in entry_points(group=GROUP):
        if name in (None, entry.name):
            backend = entry.load().cosmos3_backend()
            try:
                here.append((backend, backend.probe()))
            except Unavailable as reason:
                reasons.append(f"{entry.name}: {reason}")
    if len(here) > 1:
        raise Unavailable(f"{', '.join(backend.name for backend, _ in here)} have a device here; --backend names one")
    if not here:
        raise Unavailable("; ".join(reasons) or f"there is no backend {name or 'here'}; pip install it")
    return here[0]


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)}; without any, all")
    parser.add_argument("--backend", metavar="NAME", help="whose device; without it, the one that has a device here")
    parser.add_argument("--out", type=Path, help="a file; without it, the one that is taken here")
    args = parser.parse_args(arguments)
    try:
        backend, device = found_here(args.backend)
        out = args.out or measured_here(device.arch, device.name)
        launches = read(out)[0] if out.exists() else {}
    except (Unavailable, ValueError) as reason:
        parser.error(str(reason))
    base = find_of(backend.kernels)(device.arch)
    if unknown := set(args.kernel) - set(base.launches):
        parser.error(f"{device.arch} has no kernel {', '.join(sorted(unknown))}; it has {', '.join(base.launches)}")
    int8 = any(row.op == "attention" and "int8" in row.formats and device.arch in row.arch for row in backend.kernels)
    inputs = Inputs(Sizes(), backend.torch_device, int8=int8)
    for kernel in args.kernel or base.launches:
        try:
            found = tune(kernel, base, inputs, median_ms, lambda line: print(line, flush=True))
        except Exception as error:
            print(f"{kernel} does not run here, and stays as it is: {error}", flush=True)
            continue
        launches[kernel] = tuple(found)
        save(launches, device.name, out)
    print(out if launches else "nothing was measured")


def save(launches: Launches, device: str, out: Path) -> None:
    """After every kernel, so that an interrupted search keeps what it found."""
    spelt_out = {kernel: [spelt(kernel, launch) for launch in found] for kernel, found in launches.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_suffix(".new")
    unfinished.write_text(written(spelt_out, {"device": device, "triton": triton_version()}), "utf-8")
    os.replace(unfinished, out)


if __name__ == "__main__":
    main()
