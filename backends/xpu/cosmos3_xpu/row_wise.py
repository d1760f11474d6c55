"""Norms by torch's rms_norm, which is one kernel where torch has one for XPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(
    x_MI: Tensor, weight_I: Tensor, *, eps: float, residual_MI: Tensor | None = None, weight_fp32: bool = False
) -> tuple[Tensor, Tensor]:
    """See contract.ops.RmsNorm. torch multiplies by its weight before it rounds; where the contract rounds first, the
    weight multiplies afterwards."""
    z_MI = x_MI if residual_MI is None else x_MI + residual_MI
    if weight_fp32:
        return F.rms_norm(z_MI, z_MI.shape[-1:], weight_I, eps), z_MI
    return F.rms_norm(z_MI, z_MI.shape[-1:], None, eps).mul_(weight_I), z_MI
