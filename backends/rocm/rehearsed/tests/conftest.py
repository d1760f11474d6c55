"""Of the kit, what judges numbers, in bfloat16, over our own kernels: an interpreter takes seconds for what a GPU does
in microseconds, and float16 goes through the same kernels."""

from __future__ import annotations

import time
from collections import Counter

import pytest

NUMBERS = (
    "test_attention_parity",
    "test_attention_log_sum_exp",
    "test_attention_computes_in_its_format",
    "test_attention_reads_every_segment",
    "test_attention_sizes",
    "test_causal_attention_sees_its_own_key",
    "test_causal_attention_sees_no_later_key",
    "test_gate_parity",
    "test_gate_sizes",
    "test_linear_of_a_packed_weight",
    "test_linear_parity",
    "test_linear_sizes",
    "test_norm_rope_parity",
    "test_norm_rope_sizes",
    "test_norm_silu_parity",
    "test_norm_silu_sizes",
    "test_patch_embed_parity",
    "test_project_parity",
    "test_finish_parity",
    "test_rms_norm_parity",
    "test_rms_norm_sizes",
)
SECONDS = 300
"""Of the processor's time, for the kit. What is not begun by then is skipped, and says so."""


def group(item: pytest.Item) -> tuple[str, ...]:
    """A test, a row and a format."""
    asked = item.callspec.params
    return item.originalname, asked["kernel"].op, asked["kernel"].name, str(asked.get("format"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The first case of every test, row and format before the second of any, so that each kernel is reached in each
    format; then attention's calls, of 32 heads and more, which test_attention.py has with fewer; all sizes of a row at
    the end."""
    kept, left, others, seen = [], [], [], Counter()
    for item in items:
        asked = item.callspec.params if hasattr(item, "callspec") else {}
        row, dtype = asked.get("kernel"), asked.get("dtype", "bfloat16")
        if item.path.name != "test_kit.py":
            others.append(item)
        elif item.originalname in NUMBERS and row is not None and row.name.startswith("triton") and dtype == "bfloat16":
            late = item.originalname.endswith("_sizes"), row.op == "attention"
            kept.append((*late, seen[group(item)], len(kept), item))
            seen[group(item)] += 1
        else:
            left.append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = [item for *_, item in sorted(kept, key=lambda one: one[:-1])] + others


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.path.name == "test_kit.py" and time.process_time() > SECONDS:
        pytest.skip(f"beyond {SECONDS} seconds of the processor's time")
