"""A stand-in for MindIE-SD's function of this name, as mindiesd 3.1 has it, on the host: in fp16, with a head of keys
for every one of queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Queries whose scores are there at once."""


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    fused: bool = True,
    head_first: bool = False,
    **kwargs: Any,
) -> Tensor:
    assert query.shape[2] == key.shape[2] == value.shape[2], "it takes a head of keys for every one of queries"
    assert attn_mask is None and scale is not None and not head_first, "only what cosmos3-npu asks for is emulated"
    q, k, v = (x.cpu().transpose(1, 2).half().float() for x in (query, key, value))
    parts = [(part @ k.mT * scale).softmax(-1) @ v for part in q.split(CHUNK, 2)]
    return torch.cat(parts, 2).half().transpose(1, 2).to("npu", query.dtype)
