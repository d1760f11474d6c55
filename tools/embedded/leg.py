"""What the training legs share: their clock, their learning rate, and what they leave: weights and losses."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

T = TypeVar("T")


class Clock:
    """A leg's time. `share` runs from 0 to 1 over `seconds`."""

    def __init__(self, seconds: float):
        self.began, self.seconds = time.perf_counter(), seconds

    @property
    def passed(self) -> float:
        return time.perf_counter() - self.began

    @property
    def share(self) -> float:
        return min(self.passed / self.seconds, 1.0)

    def steps(self, until: float = 1.0, first: int = 0) -> Iterator[int]:
        """`first` and the numbers after it, until this share of the time is over."""
        step = first
        while self.share < until:
            yield step
            step += 1
            if step % 20 == 0 and torch.cuda.is_available():
                torch.cuda.synchronize()  # launches run ahead of the device, whose time it is


def rate(peak: float, step: int, warm_up: int, share: float, last: float = 0.02) -> float:
    """The learning rate: up in a line over `warm_up` steps, down in a cosine to `last` of the peak over the time."""
    return peak * min(1.0, (step + 1) / warm_up) * (last + (1 - last) * (0.5 + 0.5 * math.cos(math.pi * share)))


def recorded(step: Callable[[], dict[str, Tensor]]) -> Callable[[], dict[str, Tensor]]:
    """The step as one launch, where there is a GPU: a graph of what it does there. The next call overwrites what it
    returns."""
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        said = step()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return said

    return replay


def beside(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """What each of them gives; on a GPU each on a stream of its own, since one alone does not fill it. What is computed
    backwards from it runs there too."""
    if not torch.cuda.is_available():
        return [job() for job in jobs]
    now, sides, given = torch.cuda.current_stream(), [torch.cuda.Stream() for _ in jobs], []
    for job, side in zip(jobs, sides, strict=True):
        side.wait_stream(now)
        with torch.cuda.stream(side):
            given.append(job())
    for side in sides:
        now.wait_stream(side)
    return given


class Descent:
    """AdamW on a module's parameters, whose rate can change between the replays of a recorded step."""

    def __init__(self, module: torch.nn.Module, betas: tuple[float, float], decay: float):
        self.parameters = list(module.parameters())
        device = self.parameters[0].device
        on_gpu = device.type == "cuda"
        self.rate = torch.zeros((), device=device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, self.rate, betas=betas, weight_decay=decay, capturable=on_gpu, foreach=on_gpu
        )

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


class Losses:
    """What a leg says about itself: a JSON file of its settings, its losses over time and what was measured after."""

    def __init__(self, file: Path, **settings: Any):
        self.file, self.curve = file, []
        self.said: dict[str, Any] = {"settings": settings, "torch": torch.__version__}

    def add(self, **values: Any) -> None:
        row = {
            name: round(value.item() if isinstance(value, Tensor) else float(value), 6)
            for name, value in values.items()
        }
        self.curve.append(row)
        print(" ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)

    def measured(self, **values: Any) -> None:
        self.said |= values
        print(json.dumps(values), flush=True)
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.said | {"curve": self.curve}, indent=1) + "\n")


def keep(file: Path, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write tensors for the next leg."""
    file.parent.mkdir(parents=True, exist_ok=True)
    held = {name: (t.detach().to(dtype) if dtype else t.detach()).cpu().contiguous() for name, t in tensors.items()}
    save_file(held, str(file))


def kept(file: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in load_file(str(file)).items()}
