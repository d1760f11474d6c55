"""Attention at Cosmos3's shapes: every row of a backend that serves this device, and torch's own as diffusers calls it.

    python -m benchmarks.attention --backend cuda --queries 44160 9360 1024 --text 512 --out FILE

Queries attend to the text's keys and to their own. Each contestant is compared with fp32 on a sample of queries before
anything is timed, and the run ends without a number if one is out of the kit's bound. Rows get the two segments as the
model has them; the peer's keys and values are concatenated before the clock starts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos3_core.contract import Backend, Device, Segment
from cosmos3_core.plan import Want, choose_backend, resolve
from cosmos3_core.plan.choice import rows
from cosmos3_core.plan.resolve import why_not
from cosmos3_core.reference import ops as reference
from cosmos3_core.testing import cases

from .common import alternate, environment, report, waiting

HEAD_DIM = 128
SAMPLE = 64
"""Queries whose result is compared: their scores against 45,000 keys in fp32 take a third of a GB."""
PREFERRED = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
LONG, CALLS = 4 * 9360**2 * 32 * HEAD_DIM, 64
"""Floating-point operations of work that is timed alone. Shorter work is repeated until it is as much, or so often, so
that reading the clock does not count."""

Segments = list[Segment]
Attend = Callable[[Tensor, Segments], tuple[Tensor, Any]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--queries", type=int, nargs="+", default=[44160, 9360, 1024], help="media tokens")
    parser.add_argument("--text", type=int, default=512, help="text tokens")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def inputs(args: argparse.Namespace, queries: int, device: str) -> tuple[Tensor, Segments]:
    """q_BSHD and the segments (text, media) as the model hands them over: the media's values are a view of its whole
    projection, the rest has been written by another kernel."""
    stream = torch.Generator(device).manual_seed(queries)
    cast, heads = dict(device=device, dtype=getattr(torch, args.dtype)), [args.heads, args.kv_heads, args.kv_heads]
    text, media = (
        torch.randn(1, tokens, sum(heads), HEAD_DIM, generator=stream, **cast).split(heads, dim=2)
        for tokens in (args.text, queries)
    )
    return media[0].clone(), [
        Segment(text[1].clone(), text[2].clone(), static=True),
        Segment(media[1].clone(), media[2]),
    ]


def contestants(backend: Backend, device: Device, want: Want) -> tuple[dict[str, tuple[Attend, float]], dict[str, str]]:
    """(rows that serve, with what each may lose to quantization; why the others do not)."""
    serving, refused = {}, {}
    for row in rows(backend, "attention"):
        if reason := why_not(row, want, device):
            refused[row.name] = reason
        else:
            serving[row.name] = (row.build(device), cases.allowance(row))
    return serving, refused


def peer(segments: Segments) -> Attend:
    """scaled_dot_product_attention on these segments, whichever kernel torch takes of those that it can."""
    k_BTKD, v_BTKD = (torch.cat(parts, dim=1).transpose(1, 2) for parts in zip(*segments, strict=True))

    def attend(q_BSHD: Tensor, _: Segments) -> tuple[Tensor, None]:
        with sdpa_kernel(PREFERRED, set_priority=True):
            out = F.scaled_dot_product_attention(q_BSHD.transpose(1, 2), k_BTKD, v_BTKD, enable_gqa=True)
        return out.transpose(1, 2), None

    return attend


def errors(contest: dict[str, tuple[Attend, float]], q: Tensor, segments: Segments, dtype: str) -> dict[str, float]:
    """Relative errors on the sample. Ends the run at one that is out of bound."""
    sample = torch.linspace(0, q.shape[1] - 1, min(SAMPLE, q.shape[1]), device=q.device).long()
    exact = reference.attention(q[:, sample].float(), cases.wider(segments))[0].cpu()
    eager, found = reference.attention(q[:, sample], segments)[0].cpu(), {}
    for name, (attend, allowed) in contest.items():
        out = attend(q, segments)[0][:, sample].cpu()
        found[name] = cases.Loss.of(out, exact).whole
        try:
            cases.check(out, exact, eager, dtype, allowed)
        except AssertionError as error:
            raise SystemExit(f"{name}, {q.shape[1]} queries: {error}; nothing was timed") from None
    return found


def compare(
    args: argparse.Namespace,
    queries: int,
    device: str,
    serving: dict[str, tuple[Attend, float]],
    wait: Callable[[], None],
) -> dict:
    """Error, seconds, TFLOP/s and ratio to the peer, by contestant."""
    q, segments = inputs(args, queries, device)
    contest = {**serving, "torch-sdpa": (peer(segments), 0.0)}
    lost = errors(contest, q, segments, args.dtype)
    work = 4 * queries * (queries + args.text) * args.heads * HEAD_DIM
    calls = min(CALLS, max(1, LONG // work))

    def often(attend: Attend) -> None:
        for _ in range(calls):
            attend(q, segments)

    timed = alternate({name: partial(often, attend) for name, (attend, _) in contest.items()}, wait, args.repeats)
    median = {name: times["median_s"] / calls for name, times in timed.items()}
    return {
        name: {
            "relative_error": lost[name],
            "seconds": median[name],
            "tflops": work / median[name] / 1e12,
            "speed_ratio": median["torch-sdpa"] / median[name],
            "calls_per_round": calls,
            "rounds_s": timed[name]["rounds_s"],
        }
        for name in contest
    }


@torch.inference_mode()
def main() -> None:
    args = arguments()
    backend, found, _ = choose_backend(args.backend)
    want = Want(args.dtype, args.heads, args.kv_heads, HEAD_DIM)
    serving, refused = contestants(backend, found, want)
    wait = waiting(resolve(want, backend, found).build_ops().memory, backend.torch_device)
    results = {queries: compare(args, queries, backend.torch_device, serving, wait) for queries in args.queries}
    report(
        {
            "benchmark": "attention",
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "results": results,
            "refused": refused,
            "environment": environment(backend.torch_device, found),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
