from __future__ import annotations

import torch

from . import _vllm_fa2_C  # noqa: F401 (it registers the operator)


def flash_attn_varlen_func(
    q,
    k,
    v,
    max_seqlen_q,
    cu_seqlens_q,
    max_seqlen_k,
    cu_seqlens_k=None,
    *,
    causal=False,
    return_softmax_lse=False,
):
    """With the parameters that cosmos3-xpu uses, and the package's own values for the rest."""
    nothing = dict.fromkeys(("seqused_k", "leftpad_k", "block_table", "alibi_slopes"))
    out, lse = torch.ops._vllm_fa2_C.varlen_fwd(
        q, k, v, None, cu_seqlens_q, cu_seqlens_k, *nothing.values(), max_seqlen_q, max_seqlen_k, 0.0, None, None, None,
        q.shape[-1] ** -0.5, None, False, causal, -1, -1, 0.0, return_softmax_lse, None, None, True, None, None,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out
