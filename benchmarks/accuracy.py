"""What a plan's precision costs: velocities after one forward and latents after a few steps, against fp32.

    python -m benchmarks.accuracy --backend cuda --work 1024x1024x1 --format pack_linear=fp8 --format attention=fp8

Random bf16 weights of a published model's size, evaluated in fp32 by eager torch for the truth, then as the backend's
plan runs them, in bf16 and in every --format, and as eager torch does, which tells what a format loses by itself.
--sweep also keeps more or fewer layers and quantizes one part at a time, which tells what is sensitive. --outliers
makes 1 in 256 channels of every norm 16 times larger, as trained models have. Guidance is off: it multiplies any
difference.
"""

from __future__ import annotations

import argparse
import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from cosmos3_core.checkpoint.model import Model, describe
from cosmos3_core.contract import Linear
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.evidence.settle import eager_plan
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.transformer import DecoderLayer, GenerationTower, UnderstandingTower
from cosmos3_core.model.weights import (
    Target,
    generation_slots,
    load_layer,
    load_slots,
    shapes,
    understanding_slots,
)
from cosmos3_core.plan import Plan, choose_backend, resolve
from cosmos3_core.reference import layers
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.scenarios.request import Request

from .common import TransformerWeights, report_all, request_of
from .step import KERNEL, SCHEDULER, pairs, relative_error, wanted

Part = Callable[[str, str], bool]


def _ends(kind: str, tower: str, key: str) -> bool:
    return tower == "generation" and key.endswith(kind)


PARTS: dict[str, Part] = {
    "text tower": lambda tower, key: tower == "understanding",
    **{f"media {kind}": partial(_ends, kind) for kind in (".qkv", ".out", ".up", ".down")},
    "media first 4 layers": lambda tower, key: tower == "generation" and int(key.partition(".")[0]) < 4,
    "media last 4 layers": lambda tower, key: tower == "generation" and int(key.partition(".")[0]) >= 32,
}  # fmt: skip
"""What of the layers' matrices a sweep quantizes alone, by tower and key."""
MATRICES = ("qkv", "out", "up", "down")
"""In the order in which a layer packs them."""
KEPT = (0, 1, 4, 8)
"""How many of the media tower's first layers a sweep keeps."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--work", default="1024x1024x1", metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--format", action="append", default=[], metavar="OP=FORMAT,...")
    parser.add_argument("--kernel", action="append", default=[], metavar="OP=NAME", help=KERNEL)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--outliers", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


class Random:
    """Weights by name, the same whenever they are read."""

    def __init__(self, config: TransformerConfig, device: str, outliers: bool):
        self.tensors, self.device, self.outliers = shapes(config), device, outliers

    def read(self, names):
        for name in names:
            stream, norm = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode())), "norm" in name
            weight = torch.empty(self.tensors[name], device=self.device)
            weight.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.02, generator=stream)
            if norm and self.outliers:
                weight[torch.randperm(len(weight), generator=stream, device=self.device)[: len(weight) // 256]] *= 16
            yield name, weight.bfloat16()


class Keeping(TransformerWeights):
    """These weights, with another number of the media tower's first layers kept."""

    def __init__(self, model: Model, files: Random, keep: int):
        super().__init__(model, files)
        self.keep = keep

    def generation(self, target: Target) -> GenerationTower:
        return super().generation(dataclasses.replace(target, kept_layers=self.keep))


class Parts(TransformerWeights):
    """Of these weights one `part` is quantized, by tower and key: the layer's number and the matrix."""

    def __init__(self, model: Model, files: Random, part: Part):
        super().__init__(model, files)
        self.part = part

    def understanding(self, target: Target) -> UnderstandingTower:
        weights = load_slots(understanding_slots(self.model.config), self.transformer.read, target)
        layers = self._layers("understanding", target)
        return UnderstandingTower(self.model.config, target.kept, weights, layers, target.device)

    def generation(self, target: Target) -> GenerationTower:
        weights = load_slots(generation_slots(self.model.config), self.transformer.read, target)
        layers = self._layers("generation", target)
        return GenerationTower(self.model.config, target.ops, target.kept, weights, layers)

    def _layers(self, tower: str, target: Target) -> list[DecoderLayer]:
        media = tower == "generation"
        return [
            load_layer(self.model.config, i, self.transformer.read, self._only(tower, i, target), media=media)
            for i in range(self.model.config.num_hidden_layers)
        ]

    def matrix(
        self, tower: str, key: str, target: Target, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, format: str
    ) -> Linear:
        if self.part(tower, key):
            return target.ops.pack_linear(weight_OI, bias_O, format=format)
        return target.kept.pack_linear(weight_OI, bias_O)

    def _only(self, tower: str, i: int, target: Target) -> Target:
        """A layer of primitives, whose matrices are packed one after another."""
        names, whole = iter(MATRICES), dataclasses.replace(target, kept_layers=0)

        def pack_linear(weight_OI: torch.Tensor, bias_O: torch.Tensor | None, *, format: str = "none") -> Linear:
            return self.matrix(tower, f"{i}.{next(names)}", target, weight_OI, bias_O, format)

        composed = dataclasses.replace(target.ops, project=layers.project, finish=layers.finish)
        return dataclasses.replace(whole, ops=dataclasses.replace(composed, pack_linear=pack_linear))


class Case:
    def __init__(self, args: argparse.Namespace, model: Model, device: str):
        self.args, self.device = args, device
        self.model = dataclasses.replace(model, scheduler=SCHEDULER)
        stream, (item,) = torch.Generator().manual_seed(1), items_of(self.request(1), model.config)
        self.noise = torch.randn(item.shape, generator=stream)
        self.prompt = torch.randint(model.config.vocab_size, (args.text,), generator=stream).tolist()

    def request(self, steps: int) -> Request:
        given = {"steps": steps, "guidance": 1.0, "schedule": "native", "shift": 3.0}
        return request_of(self.model, self.args.work, **given)

    def run(
        self, plan: Plan, *, part: Part | None = None, keep: int | None = None, steps: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(velocity of the first step, latents after `steps`)."""
        files = Random(self.model.config, self.device, self.args.outliers)
        weights = TransformerWeights(self.model, files)
        if part is not None:
            weights = Parts(self.model, files, part)
        elif keep is not None:
            weights = Keeping(self.model, files, keep)
        engine = Engine(self.model, plan, weights=weights)
        state = engine.start(self.request(steps), Inputs(self.prompt, [], noise=[self.noise]))
        (first,) = engine.predict([state])
        engine.advance(state, first)
        while not state.done:
            engine.step(state)
        return first, state.x


def main() -> None:
    args = arguments()
    model = describe(args.model)
    config = model.config
    backend, found, _ = choose_backend(args.backend)
    case = Case(args, model, backend.torch_device)
    plans = {
        "bfloat16 eager": eager_plan(config, "bfloat16", {}, backend, found),
        "bfloat16": resolve(wanted(args, config, "bfloat16"), backend, found),
    }
    for format in args.format:
        plans[format] = resolve(wanted(args, config, "bfloat16", format), backend, found)
        plans[f"{format} eager"] = eager_plan(config, "bfloat16", pairs(format), backend, found)
    truth, exact = case.run(eager_plan(config, "float32", {}, backend, found), steps=args.steps)
    results = []

    def add(name: str, plan: Plan, velocity: torch.Tensor, latents: torch.Tensor | None = None) -> None:
        errors = {"velocity": relative_error(velocity, truth)}
        errors |= {} if latents is None else {"latents": relative_error(latents, exact)}
        results.append({"run": name, "formats": plan.formats, "kernels": plan.to_json()["kernels"], "error": errors})
        print(name, errors, flush=True)

    for name, plan in plans.items():
        add(name, plan, *case.run(plan, steps=args.steps))
    for format in args.format if args.sweep else ():
        if "pack_linear" not in (plan := plans[format]).formats:
            continue  # attention is quantized in all layers
        for keep in KEPT:
            add(f"{format}, {keep} layers kept", plan, case.run(plan, keep=keep)[0])
        for name, part in PARTS.items():
            add(f"{format}, {name} only", plan, case.run(plan, part=part)[0])
    report_all("accuracy", args, results, backend.torch_device, found)


if __name__ == "__main__":
    main()
