"""Run in a process of its own by the kit: what a backend changes around itself, and the bits its rows give here.

    python -m cosmos3_core.testing.watch NAME

prints {"probe": [what changed], "rows": {"op-name": {"changed": [...], "digest": "...", "error": "..."}}} as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

import torch

from ..checkpoint.tensors import tensor_digest
from .subject import Subject, environment, row_id
from .suite import CASES

TORCH_S_OWN = ("TORCHINDUCTOR_CACHE_DIR",)
"""Environment variables that torch sets to its own default when a library first asks it to compile."""


def surroundings() -> dict[str, Any]:
    """Everything a kernel shares with the program around it, by the name a vendor knows it by."""
    shared = {name: value for name, value in environment().items() if name not in TORCH_S_OWN}
    return {f"environment variable {name}": value for name, value in shared.items()} | {
        "torch.get_default_dtype()": str(torch.get_default_dtype()),
        "torch.get_default_device()": str(torch.get_default_device()),
        "torch.get_float32_matmul_precision()": torch.get_float32_matmul_precision(),
        "torch.get_num_threads()": torch.get_num_threads(),
        "torch.get_num_interop_threads()": torch.get_num_interop_threads(),
        "torch.get_rng_state()": tensor_digest(torch.get_rng_state()),
        "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "random.getstate()": hash(random.getstate()),
        "os.getcwd()": os.getcwd(),
        "sys.path": list(sys.path),
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what changed, came or went, with both values."""
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]


def watch(name: str) -> dict[str, Any]:
    """Probe, then build and use every row that can serve here, and say what each changed."""
    subject = Subject(name)
    before = surroundings()
    device = subject.present
    seen: dict[str, Any] = {"probe": difference(before, surroundings()), "rows": {}}
    for kernel in subject.backend.kernels:
        if subject.why_not(kernel, kernel.dtypes[0]) is not None:
            continue
        before, row = surroundings(), {}
        try:
            case, op = CASES[kernel.op], kernel.build(device)
            if case.use or case.make:  # others take more than one process
                row["digest"] = tensor_digest(*case.job(op, subject.here(kernel)))
        except Exception as error:  # a row that fails is reported for that row; the others are still watched
            row["error"] = f"{type(error).__name__}: {error}"
        seen["rows"][row_id(kernel)] = row | {"changed": difference(before, surroundings())}
    return seen


if __name__ == "__main__":
    with torch.inference_mode():
        print("\n" + json.dumps(watch(sys.argv[1])))
