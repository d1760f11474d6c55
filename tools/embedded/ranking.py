"""What quantizing the weights costs, as the evaluation sees it: the linear weights of both towers through a round trip
of each format, one scale for a row, and the same cases again.

    python -m tools.embedded.ranking [--model FOLDER] [--depth full] [--out tools/embedded/ranking.json]

In float32, so that nothing else is rounded. `lost` is the velocity's error beyond that of the weights as they are, the
mean over the same clips, noise and noise levels; formats stand in its order.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor

from cosmos3_core.checkpoint.model import Weights
from cosmos3_core.checkpoint.repository import EMBEDDED
from cosmos3_core.evidence.embedded.evaluation import evaluate
from cosmos3_core.evidence.embedded.measures import depths
from cosmos3_core.quant import FORMATS
from cosmos3_core.quant.numerics import fake_quant
from cosmos3_core.settle import Wish

OUT = Path(__file__).with_name("ranking.json")
SHARES = ("colour", "shape", "count", "direction", "sound", "reached", "within")


def integers(weight: Tensor, bits: int) -> Tensor:
    """The round trip of a matrix [O, I] through symmetric integers of so many bits, -1, 0 and 1 for two."""
    most = 2 ** (bits - 1) - 1
    scale = (weight.abs().amax(dim=1, keepdim=True) / most).clamp_min(1e-12)
    return (weight / scale).round().clamp(-most, most) * scale


TRIPS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda weight: weight,
    "fp8": lambda weight: fake_quant(weight, FORMATS["fp8"], weight=True),
    "int8": partial(integers, bits=8),
    "int4": partial(integers, bits=4),
    "int2": partial(integers, bits=2),
}


def through(trip: Callable[[Tensor], Tensor]) -> Any:
    """Checkpoints are read with the matrices of their layers after a round trip."""
    right = Weights._read

    def read(weights: Weights, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in right(weights, names):
            linear = tensor.ndim == 2 and name.startswith("layers.")
            yield name, trip(tensor.float()) if linear else tensor

    return patch.object(Weights, "_read", read)


def row(found: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What is told of one format."""
    errors, before = ([c["error"] for c in one["cases"] if c["task"] == "velocity"] for one in (found, base))
    shares = [one["value"] for one in found["measures"] if one["measure"] in SHARES]
    values = {f"{one['task']} {one['measure']}": one["value"] for one in found["measures"]}
    lost = np.subtract(errors, before)
    return {
        "lost": round(float(lost.mean()), 6),
        "worse_in": round(float((lost > 0).mean()), 4),
        "shares": round(float(np.mean(shares)), 4),
        "values": values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--backend")
    parser.add_argument("--depth", default="quick", choices=tuple(depths()))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    wish, found = Wish(model=args.model, backend=args.backend, dtype="float32"), {}
    for name, trip in TRIPS.items():
        with through(trip):
            found[name] = evaluate(wish, depths()[args.depth])
        print(f"{name}: {json.dumps(row(found[name], next(iter(found.values()))))}", flush=True)
    base = found["as they are"]
    rows = {name: row(one, base) for name, one in found.items()}
    ordered = dict(sorted(rows.items(), key=lambda one: one[1]["lost"]))
    args.out.write_text(
        json.dumps(
            {"weights": base["weights"], "device": base["device"], "depth": args.depth, "formats": ordered}, indent=1
        )
        + "\n"
    )
    print(f"| Weights | velocity error lost | worse in | mean of shares |\n|{'---|' * 4}")
    for name, one in ordered.items():
        print(f"| {name} | {one['lost']:.5f} | {one['worse_in']:.0%} | {one['shares']:.1%} |")


if __name__ == "__main__":
    main()
