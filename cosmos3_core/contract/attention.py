"""What attention kernels share that read the segments as one and give no log-sum-exp of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

LSE_QUERY_CHUNK = 1024
"""Queries per block of the explicit log-sum-exp, so that its score matrix stays small next to the inputs."""


def joined(q_BSHD: Tensor, segments: Sequence[Iterable[Tensor]], causal: bool) -> tuple[Tensor, Tensor]:
    """The segments as one k_BTKD and v_BTKD. Raises ValueError for `causal` with T != S."""
    k_BTKD, v_BTKD = (parts[0] if len(parts) == 1 else torch.cat(parts, 1) for parts in zip(*segments, strict=True))
    if causal and k_BTKD.shape[1] != q_BSHD.shape[1]:
        raise ValueError(f"causal attention needs as many keys as queries, got {k_BTKD.shape[1]} and {q_BSHD.shape[1]}")
    return k_BTKD, v_BTKD


def log_sum_exp(q_BSHD: Tensor, k_BTKD: Tensor, causal: bool) -> Tensor:
    """lse_BHS, fp32, computed explicitly: the scores are made once more."""
    q_BKGSD = q_BSHD.transpose(1, 2).unflatten(1, (k_BTKD.shape[2], -1)).float() / math.sqrt(q_BSHD.shape[-1])
    k_BK1DT = k_BTKD.permute(0, 2, 3, 1).float().unsqueeze(2)
    blocks = []
    for start in range(0, q_BSHD.shape[1], LSE_QUERY_CHUNK):
        scores = q_BKGSD[..., start : start + LSE_QUERY_CHUNK, :] @ k_BK1DT
        if causal:
            scores += torch.full_like(scores, -math.inf).triu(start + 1)
        blocks.append(scores.logsumexp(dim=-1))
    return torch.cat(blocks, dim=-1).flatten(1, 2)
