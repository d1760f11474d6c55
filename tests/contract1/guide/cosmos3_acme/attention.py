import torch


def segment_attention(q_BSHD, segments, *, causal=False, want_lse=False):
    q, parts = q_BSHD.transpose(1, 2).float() * q_BSHD.shape[-1] ** -0.5, []
    for k_BTKD, v_BTKD in segments:
        groups = q.shape[1] // k_BTKD.shape[2]
        k, v = (t.transpose(1, 2).float().repeat_interleave(groups, dim=1) for t in (k_BTKD, v_BTKD))
        scores = q @ k.mT
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        parts.append((scores.softmax(dim=-1) @ v, scores.logsumexp(dim=-1)))
    lse_BHS = torch.stack([lse for _, lse in parts]).logsumexp(dim=0)
    out = sum(out * (lse - lse_BHS).exp().unsqueeze(-1) for out, lse in parts)
    return out.transpose(1, 2).to(q_BSHD.dtype), lse_BHS if want_lse else None
