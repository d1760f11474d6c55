"""The denoising loop: prompts read, then steps of guided forwards and the solver, here and in diffusers.

    python -m benchmarks.step --peer diffusers --model width-1024 --work 1024x1024x1 --steps 8
    python -m benchmarks.step --peer diffusers --backend cuda --model nano --dtype bfloat16 --work 1280x720x189 \\
        --guidance 1 --format pack_linear=fp8,attention=fp8

Both run on the same random weights, initial noise, prompts and schedule. The velocities of the first step are compared
before anything is timed, and the run fails if they differ by more than --tolerance; those of a quantized run are only
reported. So are the latents after all steps: with random weights at depth, guidance amplifies rounding, and two bf16
runs drift apart. Tokenizer and VAE are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.engine.engine import pass_of
from cosmos3_core.model.config import TransformerConfig, latent_size
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.rope import text_positions
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
from cosmos3_core.model.weights import generation_slots, load_slots, understanding_slots
from cosmos3_core.plan import Plan, Want, choose_backend, resolve
from cosmos3_core.plan.execution import Execution, branches_of, execution_of
from cosmos3_core.sampling.guidance import combine
from cosmos3_core.sampling.solver import Solver

from .common import alternate, report_all

HEADS = dict(action_gen=True, action_dim=64, sound_gen=True, sound_dim=64)
MODELS = {
    "width-1024": dict(
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=3072,
        vocab_size=4096,
    ),
    "nano": HEADS,
    "super": HEADS | dict(hidden_size=5120, num_hidden_layers=64, num_attention_heads=64, intermediate_size=25600),
    "edge": dict(
        hidden_size=2048,
        num_hidden_layers=28,
        num_attention_heads=16,
        intermediate_size=9216,
        vocab_size=131072,
        hidden_act="relu2",
        rms_norm_eps=1e-5,
        rope_theta=1e8,
        qk_norm_for_text=False,
        use_und_k_norm_for_gen=True,
        action_gen=True,
        action_dim=64,
    ),
}
KERNEL = "of an op that a --format names: for the runs in such a format"
SCHEDULER = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["diffusers"], required=True)
    parser.add_argument("--backend", default="reference")
    parser.add_argument("--kernel", action="append", default=[], metavar="OP=NAME", help=KERNEL)
    parser.add_argument("--format", action="append", default=[], metavar="OP=FORMAT,...", help="each is timed as well")
    parser.add_argument("--model", choices=list(MODELS), default="width-1024")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--work", action="append", required=True, metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--text", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=0, help="time a run of so many steps; 0: the passes of one step")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest relative error of a velocity")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)


def wanted(args: argparse.Namespace, config: TransformerConfig, dtype: str, format: str = "") -> Want:
    """One run's want: `format` is "" or one of --format."""
    formats, quantized = pairs(format), {op for one in args.format for op in pairs(one)}
    kernels = {op: name for op, name in pairs(",".join(args.kernel)).items() if op in formats or op not in quantized}
    return Want.of(config, dtype, kernels, formats)


def peer_model(args: argparse.Namespace, device: str):
    """diffusers' transformer, made on the device with random weights of a trained model's scale."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    with torch.device("meta"):
        module = Cosmos3OmniTransformer(**MODELS[args.model])
    module = module.to(getattr(torch, args.dtype)).to_empty(device=device).eval().requires_grad_(False)
    module.time_embedder.float()
    stream = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=stream)
    config = module.config
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    module.rotary_emb.inv_freq = 1.0 / config.rope_theta**exponents  # not a parameter, so to_empty left it unset
    return module


class Ours:
    """Our towers with the peer's weights, under a plan."""

    def __init__(self, config: TransformerConfig, plan: Plan, module):
        self.config, self.plan, self.device = config, plan, plan.backend.torch_device
        state, target = module.state_dict(), plan.target()

        def read(names):
            return ((name, state[name]) for name in names)

        def load(slots):
            return load_slots(slots(config), read, target)

        self.understanding = UnderstandingTower(config, target.kept, load(understanding_slots))
        self.generation = GenerationTower(config, target.ops, load(generation_slots), target.kept)

    def execution(self, work: Work) -> Execution:
        """How the engine would run it."""
        return execution_of(self.config, work, self.plan)

    def prepare(self, work: Work) -> list[Callable]:
        execution, tower = self.execution(work), self.generation
        texts = (self.understanding.prefill(ids) for ids in work.prompts)
        read = dict(zip(execution.branches, texts, strict=True))
        return [
            pass_of(tower, tower.branches(work.packing, [read[branch] for branch in one.branches]), one.captured)
            for one in execution.guided
        ]

    def velocities(self, prepared: list[Callable], x: torch.Tensor, timestep: float) -> list[torch.Tensor]:
        told = torch.full((1,), timestep, device=self.device)
        return [velocity.view(x.shape) for run in prepared for velocity in run(x.flatten(), told)]


class Theirs:
    """diffusers' transformer, called as its pipeline calls it: one forward per prompt and step."""

    def __init__(self, args: argparse.Namespace, module, device: str):
        self.module, self.device, self.dtype = module, device, getattr(torch, args.dtype)
        if device == "cuda":  # of what it finds without another package
            module.set_attention_backend("_native_cudnn")

    def prepare(self, work: Work) -> list[dict]:
        return [self._static(work.packing, ids) for ids in work.prompts]

    def _static(self, packing: Packing, ids: list[int]) -> dict:
        (item,), length, device = packing.items, len(ids), self.device
        indices = torch.arange(length, length + packing.length, device=device)
        return dict(
            input_ids=torch.tensor(ids, device=device),
            text_indexes=torch.arange(length, device=device),
            position_ids=torch.cat([text_positions(length), packing.positions(length)], dim=1).to(device),
            und_len=length,
            sequence_length=length + packing.length,
            vision_token_shapes=[item.grid(packing.config.latent_patch_size)],
            vision_sequence_indexes=indices,
            vision_mse_loss_indexes=indices,
            vision_noisy_frame_indexes=[torch.arange(item.frames, device=device)],
            return_dict=False,
        )

    def velocities(self, prepared: list[dict], x: torch.Tensor, timestep: float) -> list[torch.Tensor]:
        rows = len(prepared[0]["vision_sequence_indexes"])
        varying = dict(
            vision_tokens=[x[None].to(self.dtype)],
            vision_timesteps=torch.full((rows,), float(timestep), device=self.device),
        )
        return [self.module(**static, **varying)[0][0][0].float() for static in prepared]


class Work:
    """The inputs that both get, and what is timed. The numbers are those of a request, as `execution_of` takes them."""

    tile = None

    def __init__(self, args: argparse.Namespace, name: str, config: TransformerConfig, device: str):
        self.guidance, self.steps = args.guidance, args.steps
        self.width, self.height, self.frames = map(int, name.split("x"))
        shape = (config.latent_channel, *latent_size(self.width, self.height, self.frames))
        self.packing = Packing([Item("vision", shape)], config, device)
        stream = torch.Generator().manual_seed(1)
        self.noise = torch.randn(shape, generator=stream).to(device)
        # Prompts of different lengths, as a prompt and a negative prompt are.
        lengths = (args.text, args.text - 3)[: len(branches_of(args.guidance))]
        self.prompts = [torch.randint(0, config.vocab_size, (n,), generator=stream).tolist() for n in lengths]

    def solver(self, steps: int) -> Solver:
        return Solver("native", steps, 3.0, SCHEDULER)

    @torch.inference_mode()
    def prepare(self, side: Ours | Theirs) -> Callable[[], torch.Tensor]:
        """What is timed: the velocities of the first step, prompts read before; or the whole loop."""
        if self.steps:
            return lambda: self.run(side)
        prepared, timestep = side.prepare(self), self.solver(8).timesteps[0]
        return lambda: self.velocities(side, prepared, timestep)

    @torch.inference_mode()
    def velocities(self, side: Ours | Theirs, prepared: list, timestep: float) -> torch.Tensor:
        return torch.stack(side.velocities(prepared, self.noise, timestep))

    @torch.inference_mode()
    def first_velocities(self, side: Ours | Theirs) -> torch.Tensor:
        """Each branch's velocity at the first step: what equality is judged by."""
        return self.velocities(side, side.prepare(self), self.solver(8).timesteps[0])

    @torch.inference_mode()
    def run(self, side: Ours | Theirs) -> torch.Tensor:
        """The latents after all steps."""
        prepared, solver, x = side.prepare(self), self.solver(self.steps), self.noise
        for i, timestep in enumerate(solver.timesteps):
            velocities = side.velocities(prepared, x, timestep)
            velocity = combine(*velocities, self.guidance) if len(velocities) > 1 else velocities[0]
            x = solver.step(velocity.flatten(), x.flatten(), i, None).view(x.shape)
        return x


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def compare(args: argparse.Namespace, work: Work, ours: Ours, theirs: Theirs) -> dict[str, Any]:
    """One work under one plan: the error first, then the times."""
    error = relative_error(work.first_velocities(ours), work.first_velocities(theirs))
    if not error <= args.tolerance and not ours.plan.formats:
        raise SystemExit(f"the velocities differ by {error:.2e}, more than {args.tolerance:g}; nothing was timed")
    sides = {"cosmos3": work.prepare(ours), args.peer: work.prepare(theirs)}
    captures = any(one.captured for one in ours.execution(work).guided)
    for _ in range(3 if captures else 1):  # load, compile and capture
        finals = [function() for function in sides.values()]
    timed = alternate(sides, ours.device, args.repeats)
    return {
        "tokens": {"media": work.packing.length, "text": [len(ids) for ids in work.prompts]},
        "relative_error": error,
        **({"relative_error_after_all_steps": relative_error(*finals)} if work.steps else {}),
        "seconds": timed,
        "speed_ratio": timed[args.peer]["median_s"] / timed["cosmos3"]["median_s"],
    }


def main() -> None:
    args = arguments()
    backend, device, _ = choose_backend(args.backend)
    module = peer_model(args, backend.torch_device)
    config = TransformerConfig.from_json(dict(module.config), "the peer's config")
    theirs, results = Theirs(args, module, backend.torch_device), []
    for format in ["", *args.format]:
        ours = Ours(config, resolve(wanted(args, config, args.dtype, format), backend, device), module)
        for name in args.work:
            work = Work(args, name, config, backend.torch_device)
            found = compare(args, work, ours, theirs)
            results.append(
                {"work": name, "formats": ours.plan.formats, "kernels": ours.plan.to_json()["kernels"], **found}
            )
            print(
                name,
                format or args.dtype,
                f"{found['speed_ratio']:.3f}x, error {found['relative_error']:.1e}",
                flush=True,
            )
        del ours
    report_all("step", args, results, backend.torch_device, device)


if __name__ == "__main__":
    main()
