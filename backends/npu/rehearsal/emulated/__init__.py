"""What the vendor's operators compute, on the host, as the wheel's documentation has it: shapes, scales and layouts are
theirs; sums are in fp32. A documented limit that a call exceeds is an error, since the wheel's Meta kernels check few.

How a kernel rounds, orders its sums and saturates is the device's, and none of this says anything about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import attention, products, quantization, rows

OPS: dict[str, Callable[..., Any]] = {
    "npu_dynamic_quant": quantization.dynamic_quant,
    "npu_dynamic_mx_quant": quantization.dynamic_mx_quant,
    "npu_dynamic_dual_level_mx_quant": quantization.dynamic_dual_level_mx_quant,
    "npu_quant_matmul": products.quant_matmul,
    "npu_dual_level_quant_matmul": products.dual_level_quant_matmul,
    "npu_convert_weight_to_int4pack": products.convert_weight_to_int4pack,
    "npu_weight_quant_batchmatmul": products.weight_quant_batchmatmul,
    "npu_rms_norm": rows.rms_norm,
    "npu_add_rms_norm": rows.add_rms_norm,
    "npu_add_rms_norm_dynamic_quant": rows.add_rms_norm_dynamic_quant,
    "npu_rms_norm_dynamic_mx_quant": rows.rms_norm_dynamic_mx_quant,
    "npu_add_rms_norm_dynamic_mx_quant": rows.add_rms_norm_dynamic_mx_quant,
    "npu_rotary_mul": rows.rotary_mul,
    "npu_apply_rotary_pos_emb": rows.apply_rotary_pos_emb,
    "npu_swiglu": rows.swiglu,
    "npu_swiglu_mx_quant": rows.swiglu_mx_quant,
    "npu_dequant_swiglu_quant": rows.dequant_swiglu_quant_910,
    "npu_fusion_attention": lambda *args, **options: (*attention.fusion_attention(*args, **options), 0, 0, 0),
    "npu_fusion_attention_v3": lambda *args, **options: (
        *attention.fusion_attention(*args, **options),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
    ),
    "npu_fused_infer_attention_score": attention.fused_infer_attention_score,
    "npu_fused_infer_attention_score_v2": attention.fused_infer_attention_score_v2,
    "npu_format_cast": products.format_cast,
    "_npu_format_cast": products.format_cast,
}

A2, A3, A5 = 220, 250, 260
"""The wheel's numbers of the first chip of a generation: 910B, 910C, 950."""
ONLY_950 = ("mx_", "dual_level", "attention_score_v2")
"""In names of operators. Of the attention MXFP8 alone is emulated."""
SINCE = {name: A5 if any(part in name for part in ONLY_950) else A2 for name in OPS}
ON_950: dict[str, Callable[..., Any]] = {
    "npu_add_rms_norm": rows.add_rms_norm_950,
    "npu_dequant_swiglu_quant": rows.dequant_swiglu_quant,
}
