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
from pathlib import Path

import torch

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.engine.engine import pass_of
from cosmos3_core.evidence.settle import eager_plan
from cosmos3_core.model.config import TransformerConfig, latent_size
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
from cosmos3_core.model.weights import Slot, generation_slots, load_slots, understanding_slots
from cosmos3_core.plan import Plan, choose_backend, resolve
from cosmos3_core.plan.execution import execution_of
from cosmos3_core.sampling.solver import Solver

from .common import report_all
from .step import KERNEL, SCHEDULER, pairs, relative_error, wanted

PARTS: dict[str, Callable[[str, str], bool]] = {
    "text tower": lambda tower, key: tower == "understanding",
    **{f"media {kind}": lambda tower, key, kind=kind: tower == "generation" and key.endswith(kind)
       for kind in (".qkv", ".out", ".up", ".down")},
    "media first 4 layers": lambda tower, key: tower == "generation" and int(key.partition(".")[0]) < 4,
    "media last 4 layers": lambda tower, key: tower == "generation" and int(key.partition(".")[0]) >= 32,
}  # fmt: skip
"""What of the quantized slots a sweep quantizes alone, by tower and key."""
KEPT = (0, 1, 4, 8)
"""How many of the media tower's first layers a sweep keeps."""


@dataclasses.dataclass(frozen=True)
class Keeping(TransformerConfig):
    """A config that keeps another number of the media tower's first layers."""

    keep: int = 0
    kept_layers = property(lambda self: self.keep)

    @classmethod
    def of(cls, config: TransformerConfig, keep: int) -> Keeping:
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, keep=keep)


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

    def __init__(self, slots: list[Slot], device: str, outliers: bool):
        self.shapes = {name: shape for slot in slots for name, shape in slot.tensors().items()}
        self.device, self.outliers = device, outliers

    def __call__(self, names):
        for name in names:
            stream, norm = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode())), "norm" in name
            weight = torch.empty(self.shapes[name], device=self.device)
            weight.normal_(1.0 if norm else 0.0, 0.1 if norm else 0.02, generator=stream)
            if norm and self.outliers:
                weight[torch.randperm(len(weight), generator=stream, device=self.device)[: len(weight) // 256]] *= 16
            yield name, weight.bfloat16()


class Case:
    """What every run gets. The numbers are those of a request, as `execution_of` takes them."""

    guidance, tile = 1.0, None

    def __init__(self, args: argparse.Namespace, config: TransformerConfig, device: str):
        self.args, self.config, self.device = args, config, device
        self.width, self.height, self.frames = map(int, args.work.split("x"))
        shape = (config.latent_channel, *latent_size(self.width, self.height, self.frames))
        self.packing, stream = Packing([Item("vision", shape)], config, device), torch.Generator().manual_seed(1)
        self.noise = torch.randn(shape, generator=stream).flatten().to(device)
        self.prompt = torch.randint(config.vocab_size, (args.text,), generator=stream).tolist()

    @torch.inference_mode()
    def run(
        self,
        plan: Plan,
        part: Callable[[str, str], bool] = lambda *_: True,
        config: TransformerConfig | None = None,
        steps: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(velocity of the first step, latents after `steps`)."""
        config = config or self.config
        target = plan.target()

        def load(slots: list[Slot], tower: str):
            read = Random(slots, self.device, self.args.outliers)
            slots = [dataclasses.replace(slot, quantized=slot.quantized and part(tower, slot.key)) for slot in slots]
            return load_slots(slots, read, target)

        understanding = UnderstandingTower(config, target.kept, load(understanding_slots(config), "understanding"))
        text = understanding.prefill(self.prompt)
        tower = GenerationTower(config, target.ops, load(generation_slots(config), "generation"), target.kept)
        (only,) = execution_of(config, self, plan).unguided
        run = pass_of(tower, tower.branches(self.packing, [text]), only.captured)
        solver, x, first = Solver("native", steps, 3.0, SCHEDULER), self.noise, None
        for i, timestep in enumerate(solver.timesteps):
            (velocity,) = run(x, torch.full((1,), timestep, device=self.device))
            first = velocity.clone() if i == 0 else first
            x = solver.step(velocity, x, i, None)
        return first, x


def main() -> None:
    args = arguments()
    config = describe(args.model).config
    backend, found, _ = choose_backend(args.backend)
    case = Case(args, config, backend.torch_device)
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
            add(f"{format}, {keep} layers kept", plan, case.run(plan, config=Keeping.of(config, keep))[0])
        for name, part in PARTS.items():
            add(f"{format}, {name} only", plan, case.run(plan, part, Keeping.of(config, 0))[0])
    report_all("accuracy", args, results, backend.torch_device, found)


if __name__ == "__main__":
    main()
