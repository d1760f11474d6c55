"""The denoising loop: prompts read, then steps of guided forwards and the solver, here and in diffusers.

    python -m benchmarks.step --peer diffusers --model width-1024 --size 1024x1024 --frames 1 --text 512 --steps 8

Both run on the same random weights, initial noise, prompts and schedule. The velocities of the first step are compared
before anything is timed, and the run fails if they differ by more than --tolerance. (Not the latents after all steps,
which are only reported: with random weights at depth, guidance amplifies rounding, and two bf16 runs drift apart.)
Tokenizer and VAE are left out: both sides would call the same library.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from cosmos3_core import reference
from cosmos3_core.model.config import ONE_PASS_TOKENS, TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.rope import text_positions
from cosmos3_core.model.transformer import Branches, GenerationTower, UnderstandingTower
from cosmos3_core.model.weights import generation_slots, load_slots, understanding_slots
from cosmos3_core.plan import Want, resolve
from cosmos3_core.sampling.guidance import combine
from cosmos3_core.sampling.solver import Solver
from cosmos3_core.scenarios.sizes import parse_size

from .common import alternate, environment, report

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
SCHEDULER = dict(use_flow_sigmas=True, prediction_type="flow_prediction")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["diffusers"], required=True)
    parser.add_argument("--device", default="cpu", help="a torch device type")
    parser.add_argument("--model", choices=list(MODELS), default="width-1024")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--text", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest relative error of a velocity")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def peer_model(args: argparse.Namespace):
    """diffusers' transformer, made on the device with random weights of a trained model's scale."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    with torch.device("meta"):
        module = Cosmos3OmniTransformer(**MODELS[args.model])
    module = module.to(getattr(torch, args.dtype)).to_empty(device=args.device).eval().requires_grad_(False)
    module.time_embedder.float()
    stream = torch.Generator(args.device).manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.normal_(1.0 if "norm" in name else 0.0, 0.02, generator=stream)
    config = module.config
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=args.device) / config.head_dim
    module.rotary_emb.inv_freq = 1.0 / config.rope_theta**exponents  # not a parameter, so to_empty left it unset
    return module


class Ours:
    """Our towers with the peer's weights, on the reference backend's ops."""

    def __init__(self, args: argparse.Namespace, module):
        config = TransformerConfig.from_json(dict(module.config), "the peer's config")
        backend = dataclasses.replace(reference.BACKEND, torch_device=args.device)
        self.config, self.plan = config, resolve(Want.of(config, args.dtype), backend, backend.probe())
        ops, state, dtype = self.plan.build_ops(), module.state_dict(), getattr(torch, args.dtype)

        def read(names):
            return ((name, state[name]) for name in names)

        def tower(cls, slots):
            return cls(config, ops, load_slots(slots(config), read, ops, args.device, dtype))

        self.understanding = tower(UnderstandingTower, understanding_slots)
        self.generation = tower(GenerationTower, generation_slots)

    def prepare(self, packing: Packing, prompts: list[list[int]]) -> list[Branches]:
        texts = [self.understanding.prefill(ids) for ids in prompts]
        if packing.length <= ONE_PASS_TOKENS:
            return [self.generation.branches(packing, texts)]
        return [self.generation.branches(packing, [text]) for text in texts]

    def velocities(self, prepared: list[Branches], x: torch.Tensor, timestep: float) -> list[torch.Tensor]:
        return [v.float() for branches in prepared for (v,) in self.generation.forward(branches, [x], timestep)]


class Theirs:
    """diffusers' transformer, called as its pipeline calls it: one forward per prompt and step."""

    def __init__(self, args: argparse.Namespace, module):
        self.module, self.device, self.dtype = module, args.device, getattr(torch, args.dtype)

    def prepare(self, packing: Packing, prompts: list[list[int]]) -> list[dict]:
        return [self._static(packing, ids) for ids in prompts]

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
    """The inputs that both get, and the loop over them."""

    def __init__(self, args: argparse.Namespace, config: TransformerConfig):
        self.args = args
        width, height = parse_size(args.size, "1:1")
        shape = (config.latent_channel, (args.frames - 1) // 4 + 1, height // 16, width // 16)
        self.packing = Packing([Item("vision", shape)], config, args.device)
        stream = torch.Generator().manual_seed(1)
        self.noise = torch.randn(shape, generator=stream).to(args.device)
        # Prompts of different lengths, as a prompt and a negative prompt are.
        lengths = (args.text, args.text - 3) if args.guidance != 1 else (args.text,)
        self.prompts = [torch.randint(0, config.vocab_size, (n,), generator=stream).tolist() for n in lengths]

    def solver(self) -> Solver:
        return Solver("native", self.args.steps, 3.0, SCHEDULER)

    @torch.inference_mode()
    def first_velocities(self, side: Ours | Theirs) -> torch.Tensor:
        """Each branch's velocity at the first step: what equality is judged by."""
        prepared = side.prepare(self.packing, self.prompts)
        return torch.stack(side.velocities(prepared, self.noise, self.solver().timesteps[0]))

    @torch.inference_mode()
    def run(self, side: Ours | Theirs) -> torch.Tensor:
        """The latents after all steps."""
        prepared, solver, x = side.prepare(self.packing, self.prompts), self.solver(), self.noise
        for i, timestep in enumerate(solver.timesteps):
            velocities = side.velocities(prepared, x, timestep)
            velocity = combine(*velocities, self.args.guidance) if len(velocities) > 1 else velocities[0]
            x = solver.step(velocity, x, i, None)
        return x


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def main() -> None:
    args = arguments()
    module = peer_model(args)
    ours, theirs = Ours(args, module), Theirs(args, module)
    work = Work(args, ours.config)
    error = relative_error(work.first_velocities(ours), work.first_velocities(theirs))
    if not error <= args.tolerance:
        raise SystemExit(
            f"the velocities differ: relative error {error:.2e} is above {args.tolerance:g}; nothing was timed"
        )
    final_error = relative_error(work.run(ours), work.run(theirs))
    sides = {"cosmos3": lambda: work.run(ours), args.peer: lambda: work.run(theirs)}
    timed = alternate(sides, args.device, args.repeats)
    report(
        {
            "benchmark": "step",
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "tokens": {"media": work.packing.length, "text": [len(ids) for ids in work.prompts]},
            "kernels": ours.plan.to_json()["kernels"],
            "relative_error": error,
            "relative_error_after_all_steps": final_error,
            "seconds": timed,
            "speed_ratio": timed[args.peer]["median_s"] / timed["cosmos3"]["median_s"],
            "environment": environment(args.device),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
