"""What every format loses, by module group, on layers of a published model's widths.

    python -m benchmarks.formats --backend cuda --out benchmarks/results/formats-nano-outliers-h200.json

A few layers of both towers with random weights, 1 in 256 channels of every norm 16 times larger, as trained models
have. Eager torch computes in fp32, so that nothing but the format is rounded. For each group of matrices: the ratio of
signal to error, in dB, of the weights and of the products with the inputs that they meet there, activations quantized
as the format says; and the relative error of the first velocity when this group alone is quantized. Formats whose
activations have a stored scale need a calibration and are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.checkpoint.model import Model, describe
from cosmos3_core.contract import Linear
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.evidence.settle import eager_plan
from cosmos3_core.model.weights import Target
from cosmos3_core.plan import Plan, choose_backend
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import fake_quant

from .accuracy import MATRICES, Case, Parts, Random
from .common import report_all
from .step import relative_error

GROUPS = {f"{tower} {kind}": (tower, kind) for tower in ("understanding", "generation") for kind in MATRICES}
"""By what is shown: the tower and the matrix of a layer."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--model", default="nano", help="whose widths, as for cosmos3 plan")
    parser.add_argument("--layers", type=int, default=2, help="2 or more: of the last the prompt's keys alone are used")
    parser.add_argument("--work", default="256x256x1", metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--text", type=int, default=64, help="tokens of the prompt")
    parser.add_argument("--format", action="append", choices=list(FORMATS), help="all that need no calibration")
    parser.add_argument("--no-velocity", dest="velocity", action="store_false", help="leave the runs by group out")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


@dataclasses.dataclass
class Energy:
    """Sums of squares over all matrices and tokens of a group."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, exact: torch.Tensor, found: torch.Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.error += float((found.double() - exact.double()).square().sum())

    @property
    def decibels(self) -> float:
        return 10 * math.log10(self.signal / self.error) if self.error else math.inf


class Beside:
    """A quantized product, compared with the exact one, which is what goes on: every group meets exact inputs."""

    def __init__(self, quantized: Linear, exact: Linear, energy: Energy):
        self.quantized, self.exact, self.energy = quantized, exact, energy

    def __call__(self, x_MI: torch.Tensor) -> torch.Tensor:
        y_MO = self.exact(x_MI)
        self.energy.add(y_MO, self.quantized(x_MI))
        return y_MO

    def tensors(self) -> None:
        return None


class Judged(Parts):
    """These weights; what the format loses at each matrix is added up by group."""

    def __init__(self, model: Model, files: Random):
        super().__init__(model, files, lambda tower, key: True)
        self.weights, self.products = defaultdict[str, Energy](Energy), defaultdict[str, Energy](Energy)

    def matrix(
        self, tower: str, key: str, target: Target, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, format: str
    ) -> Linear:
        group = f"{tower} {key.partition('.')[2]}"
        self.weights[group].add(weight_OI, fake_quant(weight_OI.float(), FORMATS[format], weight=True))
        quantized = target.ops.pack_linear(weight_OI, bias_O, format=format)
        return Beside(quantized, target.kept.pack_linear(weight_OI, bias_O), self.products[group])


def _of(tower: str, kind: str, found: str, key: str) -> bool:
    return (found, key.partition(".")[2]) == (tower, kind)


def velocity(case: Case, weights: Parts, plan: Plan) -> torch.Tensor:
    engine = Engine(case.model, plan, weights=weights)
    (first,) = engine.predict([engine.start(case.request(1), Inputs(case.prompt, [], noise=[case.noise]))])
    return first


def rows(case: Case, format: str, plan: Plan, truth: torch.Tensor) -> Iterator[dict[str, Any]]:
    """One format's, by group, and of all of them together."""
    files = Random(case.model.config, case.device, outliers=True)
    velocity(case, judged := Judged(case.model, files), plan)
    for group, (tower, kind) in GROUPS.items():
        found = {"weight_db": judged.weights[group].decibels, "product_db": judged.products[group].decibels}
        if case.args.velocity:
            alone = Parts(case.model, files, partial(_of, tower, kind))
            found["velocity"] = relative_error(velocity(case, alone, plan), truth)
        yield {"format": format, "group": group, **found}
    whole = velocity(case, Parts(case.model, files, lambda tower, key: True), plan)
    yield {"format": format, "group": "all", "velocity": relative_error(whole, truth)}


def main() -> None:
    args = arguments()
    model = describe(args.model)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, num_hidden_layers=args.layers))
    backend, found, _ = choose_backend(args.backend)
    case, results = Case(args, model, backend.torch_device), []
    exact = eager_plan(model.config, "float32", {}, backend, found)
    files = Random(model.config, case.device, outliers=True)
    truth = velocity(case, Parts(case.model, files, lambda tower, key: False), exact)
    for name in args.format or [name for name, format in FORMATS.items() if not format.static]:
        plan = eager_plan(model.config, "float32", {"pack_linear": name}, backend, found)
        for row in rows(case, name, plan, truth):
            results.append(row)
            print(row, flush=True)
    report_all("formats", args, results, backend.torch_device, found)


if __name__ == "__main__":
    main()
