"""How the model calls our rows, with fewer tokens: kernels are not compiled for how many there are. Widths are Nano's
where a kernel is compiled for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from cosmos3_rocm import kernels
from cosmos3_triton import row_wise
from cosmos3_triton.rows import EIGHT_BITS
from torch import Tensor

from cosmos3_core.contract import Device, FinishWeights, Kernel, Layer, Ops, ProjectWeights, Residual, Segment
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import Packed
from cosmos3_core.reference import layers as composed
from cosmos3_core.testing import cases

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 4096, 12288, 32, 8, 128
TOKENS = 300
OURS = [row for part in vars(kernels.OURS).values() for row in part]


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def device_of(arch: str) -> Device:
    return Device(arch=arch, name="a GPU", count=1, memory=2**34, unified=False)


def attention(op: Any) -> None:
    """The media's call, and the text's."""
    q = empty(1, TOKENS, HEADS, HEAD_DIM)
    text, media = empty(1, 40, KV_HEADS, HEAD_DIM), empty(1, TOKENS, KV_HEADS, HEAD_DIM)
    op(q, [Segment(text, text), Segment(media, media)], want_lse=True)
    op(q, [Segment(media, media)], causal=True)


def norm_rope(op: Any) -> None:
    qkv, angles, weight = empty(1, 16, 48, HEAD_DIM), empty(1, 16, HEAD_DIM), empty(HEAD_DIM)
    q, k, _ = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=2)
    op([(q, weight), (k, weight)], angles, angles, eps=1e-6)


def patch_embed(op: Any) -> None:
    noisy = torch.tensor([False, True, True])
    op(empty(48, 3, 30, 52).float(), empty(HIDDEN, 192), empty(HIDDEN), empty(1, HIDDEN), patch=2, noisy_T=noisy)


def gate(op: Any) -> None:
    op(empty(16, 2 * INNER), activation="silu")


def norm_silu(op: Any) -> None:
    op(empty(64, 256), empty(256), bias_I=empty(256), residual_MI=empty(64, 256))


def rms_norm(op: Any) -> None:
    op(empty(16, HIDDEN), empty(HIDDEN), eps=1e-6, residual_MI=empty(16, HIDDEN))


PLAIN: dict[str, Callable[[Any], Any]] = {
    "attention": attention,
    "rms_norm": rms_norm,
    "norm_rope": norm_rope,
    "gate": gate,
    "patch_embed": patch_embed,
    "norm_silu": norm_silu,
}


def blank(out: int, width: int, format: str) -> Packed:
    """A weight in 8 bits with scales of rows that nobody has filled in."""
    dtype = torch.int8 if format.startswith("int8") else torch.float8_e4m3fn
    given = torch.ones(()) if FORMATS[format].static else None
    return Packed(FORMATS[format], torch.empty(out, width, dtype=dtype), torch.ones(out, 1), input_scale=given)


def pack_linear(op: Any, row: Kernel, arch: str, format: str) -> None:
    """With a bias, for as many rows as each launch is for and for more."""
    table = kernels.find_table(arch)
    if format in EIGHT_BITS and row.name == "triton-scaled-mm":
        packed, launches = blank(256, 256, format), table.launches["scaled_mm"]
    else:
        packed, launches = weight(format), table.launches["a16_mm"] if row.name == "triton-a16" else ()
    linear = op(packed, empty(256), format=format)
    for rows in [*(int(launch.rows) for launch in launches if launch.rows < TOKENS), TOKENS]:
        linear(empty(rows, 256))


def weight(format: str) -> Packed:
    return cases.packed(torch.ones(256, 256), FORMATS[format])


def project(op: Any, table: Any, format: str) -> None:
    weights = ProjectWeights(
        norm_I=empty(HIDDEN),
        qkv_OI=blank((HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, format),  # type: ignore[arg-type]
        norm_q_D=empty(HEAD_DIM),
        norm_k_D=empty(HEAD_DIM),
    )
    half = op(weights, LAYER, ops_of(table), format=format)
    half(stream(), *(empty(1, TOKENS, HEAD_DIM) for _ in range(2)))


def finish(op: Any, table: Any, format: str) -> None:
    weights = FinishWeights(
        out_OI=blank(HIDDEN, HEADS * HEAD_DIM, format),  # type: ignore[arg-type]
        norm_I=empty(HIDDEN),
        up_OI=blank(2 * INNER, HIDDEN, format),  # type: ignore[arg-type]
        down_OI=blank(HIDDEN, INNER, format),  # type: ignore[arg-type]
    )
    op(weights, LAYER, ops_of(table), format=format)(stream(), empty(1, TOKENS, HEADS, HEAD_DIM))


LAYER = Layer(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, eps=1e-6, weight_fp32=False, activation="silu")


def stream() -> Residual:
    return Residual(empty(TOKENS, HIDDEN), empty(TOKENS, HIDDEN))


def ops_of(table: Any) -> Ops:
    """Our row-wise kernels and the default halves of a layer."""
    ours = {name: getattr(row_wise, f"build_{name}")(table) for name in ("rms_norm", "norm_rope", "gate")}
    defaults = {"project": composed.project, "finish": composed.finish}
    return Ops(**{**dict.fromkeys(field.name for field in fields(Ops)), **ours, **defaults})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """A row in a format on an architecture."""

    row: Kernel
    format: str
    arch: str

    @property
    def name(self) -> str:
        return f"{self.row.op} {self.row.name}" + ("" if self.format == "none" else f" {self.format}")

    def call(self) -> None:
        row, format = self.row, self.format
        op = row.build(device_of(self.arch))
        if row.op in PLAIN:
            PLAIN[row.op](op)
        elif row.op == "pack_linear":
            pack_linear(op, row, self.arch, format)
        else:
            {"project": project, "finish": finish}[row.op](op, kernels.find_table(self.arch), format)


def cases_of(arch: str) -> Iterator[Case]:
    """Every row that serves there, in every format in which it does."""
    has_fp8 = arch in kernels.WITH_FP8
    for row in OURS:
        if arch in row.arch:
            for format in row.formats:
                in_8_bits = row.name == "triton-scaled-mm"
                refused = (row.name, format, arch) in kernels.SLOW
                if not refused and (has_fp8 or not (in_8_bits and format.startswith("fp8"))):
                    yield Case(row, format, arch)
