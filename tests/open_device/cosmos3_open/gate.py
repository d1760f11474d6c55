from __future__ import annotations

import torch
from torch import Tensor


def by_halves(x_MI: Tensor, *, activation: str) -> Tensor:
    if activation == "relu2":
        return x_MI.relu_().square_()
    gate_MI, up_MI = x_MI.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate_MI, inplace=True).mul_(up_MI)


def on_the_first(x_MI: Tensor, *, activation: str) -> Tensor:
    """A fault: its results are in a buffer that was made for the first device."""
    return by_halves(x_MI, activation=activation).to("opendev:0")
