"""Every format of the layers' products at a model's real size: memory, load time, latency and the velocity's error.

    python -m benchmarks.quantized --backend cuda --seconds 400 --out benchmarks/results/quantized-nano-h200.json

Random bf16 weights, 1 in 256 channels of every norm 16 times larger, as trained models have, are written once to
--folder, which should be in memory: reading them is then what a checkpoint in the page cache takes. Each format is
quantized while loading, both towers after each other, as `cosmos3 run --format` does it. A picture's latency is that of
a guided step, both branches; a video's that of one prompt's pass. The error is that of the first velocity of the first
work's prompt against fp32 in eager torch. The peak is the largest that the allocator reserved in any of the works.
Where the activations have a stored scale, it is that of the largest inputs which the matrices met in one pass of every
work, in bf16. What does not begin in --seconds is listed as left out, and --out has what there is after every format.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cosmos3_core.checkpoint.model import Model, Weights, describe
from cosmos3_core.checkpoint.repository import open_repository
from cosmos3_core.checkpoint.tensors import STEM, TensorFiles, open_tensors
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.evidence.quantizing.collect import Sums
from cosmos3_core.evidence.quantizing.seam import KERNELS, Seam, places
from cosmos3_core.evidence.settle import eager_plan
from cosmos3_core.model.weights import ReadMatrices
from cosmos3_core.plan import Plan, Want, choose_backend, resolve
from cosmos3_core.plan.execution import kept_layers_of
from cosmos3_core.quant import FORMATS, Format
from cosmos3_core.quant.joining import join
from cosmos3_core.quant.numerics import Packed, pack
from cosmos3_core.runs.memory import peak_device_memory
from cosmos3_core.sampling.state import Context
from cosmos3_core.scenarios.items import items_of
from cosmos3_core.scenarios.request import Request

from .accuracy import Random
from .common import TransformerWeights, alternate, report_all, request_of, seconds, served, waiting
from .step import FIRST_OF, KERNEL, SCHEDULER, pairs, relative_error

ROUNDS = {True: 9, False: 2}
"""How often a picture's passes are timed, and a video's."""
WARM_SECONDS = 1.5
"""A GPU that waited for weights takes as long to reach its clocks."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--model", default="nano", help="as for cosmos3 plan")
    parser.add_argument("--format", action="append", default=[], metavar="FORMAT", help="all that a kernel of it has")
    parser.add_argument("--kernel", action="append", default=[], metavar="OP=NAME", help=KERNEL)
    parser.add_argument("--work", action="append", default=[], metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--text", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def written(model: Model, device: str, folder: Path) -> TensorFiles:
    """The random weights as the shards of a published checkpoint, a layer in each."""
    files, where = Random(model.config, device, outliers=True), folder / "transformer"
    shards = {name: f"{STEM}-{'-'.join(name.split('.')[:2])}.safetensors" for name in files.tensors}
    where.mkdir()
    for shard in dict.fromkeys(shards.values()):
        names = [name for name in shards if shards[name] == shard]
        save_file({name: tensor.cpu() for name, tensor in files.read(names)}, where / shard)
    (where / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return open_tensors(open_repository(str(folder)), "transformer")


class Watched(TransformerWeights, Seam):
    """The largest magnitude that each matrix is multiplied by, by the name of its first module."""

    def __init__(self, model: Model, files: TensorFiles):
        super().__init__(model, files)
        self.instead, self.sums = {}, Sums(frozenset())
        self.watch = self.sums.see

    def largest(self) -> dict[str, Tensor]:
        return {name: features.amax() for name, features in self.sums.largest.items()}


class Calibrated(TransformerWeights):
    """Weights that are packed module by module while they are read, as those of a calibrated checkpoint are: in a
    format with a stored scale of the inputs, by the `largest` of each matrix. The media tower's first layers stay as
    they are, as in a run with --format, and so do matrices that no pass reads."""

    def __init__(self, model: Model, files: TensorFiles, format: Format, largest: Mapping[str, Tensor]):
        super().__init__(model, files)
        kept = kept_layers_of(model.config, format.name)
        packed = (place.name for place in places(model.config) if not place.media or place.layer >= kept)
        self.format = format
        self.scales = {name: largest[name] / format.of_elements.most for name in packed if name in largest}

    @property
    def _matrices(self) -> ReadMatrices:
        return lambda wanted, device, dtype: [self._packed(modules, device) for modules in wanted]

    def _packed(self, modules: Sequence[str], device: torch.device | str) -> Packed | None:
        if (scale := self.scales.get(modules[0])) is None:
            return None
        parts = {
            name: pack(weight_OI.to(device), self.format, weight=True, input_scale=scale.to(device))
            for name, weight_OI in self.transformer.read(f"{module}.weight" for module in modules)
        }
        return join([parts[f"{module}.weight"] for module in modules])


class Case:
    """What all formats get: prompts, noise and works."""

    def __init__(self, args: argparse.Namespace, model: Model, files: TensorFiles):
        self.model, self.files, self.weights = model, files, TransformerWeights(model, files)
        self.requests = {work: self._request(work) for work in args.work}
        stream = torch.Generator().manual_seed(1)
        self.prompt = torch.randint(model.config.vocab_size, (args.text,), generator=stream).tolist()
        self.noise = {
            work: torch.randn(items_of(request, model.config)[0].shape, generator=stream)
            for work, request in self.requests.items()
        }

    def _request(self, work: str) -> Request:
        guidance = 4.0 if work.endswith("x1") else 1.0
        given = {"steps": FIRST_OF, "guidance": guidance, "schedule": "native", "shift": 3.0}
        return replace(request_of(self.model, work, **given), guidance_interval=None)

    def prepare(self, engine: Engine) -> dict[str, Context]:
        """Each work's: all prompts are read before the media tower is there, as in a run."""
        return {
            work: engine.prepare(request, Inputs(self.prompt, self.prompt[:-3], noise=[self.noise[work]]))
            for work, request in self.requests.items()
        }

    @torch.inference_mode()
    def largest(self, plan: Plan) -> dict[str, Tensor]:
        """What each matrix is multiplied by at most in a pass of each work, as this plan runs it."""
        watched = Watched(self.model, self.files)
        engine = Engine(self.model, plan, weights=watched)
        for work, context in self.prepare(engine).items():
            engine.predict([engine.begin(context, self.requests[work])])
        return watched.largest()

    def velocity(self, engine: Engine, contexts: dict[str, Context]) -> Tensor:
        """The prompt's alone, of the first work's first step."""
        work, context = next(iter(contexts.items()))
        (velocity,) = engine.predict([engine.begin(context, replace(self.requests[work], guidance=1.0))])
        return velocity


@torch.inference_mode()
def measured(case: Case, plan: Plan, weights: Weights, truth: Tensor) -> dict[str, Any]:
    """One format's: the error first, which loads, then each work."""
    engine = Engine(case.model, plan, weights=weights)
    memory, device = engine.target.ops.memory, torch.device(engine.device)
    memory.empty(device)
    memory.peak(device, reset=True)
    contexts, wait = case.prepare(engine), waiting(memory, device)
    found: dict[str, Any] = {"error": relative_error(case.velocity(engine, contexts), truth), "works": {}}
    for work, request in case.requests.items():
        passes, begun = partial(engine.predict, [engine.begin(contexts[work], request)]), time.monotonic()
        for _ in range(3 if engine.execution(request).captured else 1):  # compile and capture
            seconds(passes, wait)
        while time.monotonic() < begun + WARM_SECONDS:
            seconds(passes, wait)
        found["works"][work] = alternate({"": passes}, wait, ROUNDS[work.endswith("x1")])[""]
    found["load_s"] = {
        name.removeprefix("load "): took for name, took in engine.seconds.items() if name.startswith("load ")
    }
    return found | {"peak": peak_device_memory(memory, device) or {}}


def main() -> None:
    args, begun = arguments(), time.monotonic()
    folder = vars(args).pop("folder")  # where it was is the machine's business
    args.work = args.work or ["1024x1024x1", "832x480x93", "1280x720x189"]
    model = replace(describe(args.model), scheduler=SCHEDULER)
    backend, found, _ = choose_backend(args.backend)
    results: list[dict[str, Any]] = []

    def planned(kernels: Mapping[str, str], **given: Any) -> Plan:
        return resolve(replace(Want.of(model.config, "bfloat16", kernels), **given), backend, found)

    def plans() -> Iterator[tuple[str, Plan, Weights]]:
        yield "none", planned({}), case.weights
        largest: dict[str, Tensor] = {}  # measured once, where a format needs it
        for name in args.format or served(backend, found.arch):
            static, weights = FORMATS[name].static, case.weights
            if static:
                largest = largest or case.largest(planned(KERNELS))
                weights = Calibrated(model, case.files, FORMATS[name], largest)
            yield name, planned(pairs(",".join(args.kernel)), formats={"pack_linear": name}, packed=static), weights

    with tempfile.TemporaryDirectory(dir=folder, prefix="cosmos3-") as made:
        case = Case(args, model, written(model, backend.torch_device, Path(made)))
        exact = Engine(model, eager_plan(model.config, "float32", {}, backend, found), weights=case.weights)
        truth = case.velocity(exact, case.prepare(exact)).clone()
        del exact
        for name, plan, weights in plans():
            if time.monotonic() - begun > args.seconds:
                results.append({"format": name, "left_out": f"no time: {args.seconds:g} s were over"})
            else:
                kernels = plan.to_json()["kernels"]
                results.append({"format": name, "kernels": kernels} | measured(case, plan, weights, truth))
            print(results[-1], flush=True)
            report_all("quantized", args, results, backend.torch_device, found)


if __name__ == "__main__":
    main()
