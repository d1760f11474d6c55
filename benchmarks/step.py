"""The denoising loop: prompts read, then steps of guided forwards and the solver, here and in diffusers.

    python -m benchmarks.step --peer diffusers --model width-1024 --size 1024x1024 --frames 1 --text 512 --steps 8

Both run on the same random weights, initial noise, prompts and schedule. The latents after all steps are compared
before anything is timed, and the run fails if they differ by more than --tolerance. Tokenizer and VAE are left out:
both sides would call the same library.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import torch

from cosmos3_core import reference
from cosmos3_core.engine.engine import ONE_PASS_TOKENS
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.packing import Item, Packing
from cosmos3_core.model.rope import text_positions
from cosmos3_core.model.transformer import GenerationTower, UnderstandingTower
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
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest relative error of the final latents")
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


def our_model(args: argparse.Namespace, module) -> SimpleNamespace:
    """Our towers with the peer's weights, on the reference backend's ops."""
    config = TransformerConfig.from_json(dict(module.config), "the peer's config")
    backend = dataclasses.replace(reference.BACKEND, torch_device=args.device)
    plan = resolve(Want.of(config, args.dtype), backend)
    ops, state, dtype = plan.build_ops(), module.state_dict(), getattr(torch, args.dtype)

    def read(names):
        return ((name, state[name]) for name in names)

    def tower(cls, slots):
        return cls(config, ops, load_slots(slots(config), read, ops, args.device, dtype))

    return SimpleNamespace(
        config=config,
        plan=plan,
        understanding=tower(UnderstandingTower, understanding_slots),
        generation=tower(GenerationTower, generation_slots),
    )


class Work:
    """The inputs both sides get, and each side's loop over them. `ours` and `theirs` return the final latents."""

    def __init__(self, args: argparse.Namespace, module, model: SimpleNamespace):
        self.args, self.module, self.model = args, module, model
        width, height = parse_size(args.size, "1:1")
        shape = (model.config.latent_channel, (args.frames - 1) // 4 + 1, height // 16, width // 16)
        self.item = Item("vision", shape)
        self.packing = Packing([self.item], model.config, args.device)
        stream = torch.Generator().manual_seed(1)
        self.noise = torch.randn(shape, generator=stream).to(args.device)
        vocabulary = model.config.vocab_size
        # Prompts of different lengths, as a prompt and a negative prompt are.
        lengths = (args.text, args.text - 3) if args.guidance != 1 else (args.text,)
        self.prompts = [torch.randint(0, vocabulary, (n,), generator=stream).tolist() for n in lengths]

    def solver(self) -> Solver:
        return Solver("native", self.args.steps, 3.0, SCHEDULER)

    @torch.inference_mode()
    def ours(self) -> torch.Tensor:
        model, solver, x = self.model, self.solver(), self.noise.flatten()
        texts = [model.understanding.prefill(ids) for ids in self.prompts]
        if self.packing.length <= ONE_PASS_TOKENS:
            passes = [model.generation.branches(self.packing, texts)]
        else:
            passes = [model.generation.branches(self.packing, [text]) for text in texts]
        for i, timestep in enumerate(solver.timesteps):
            latents = [x.view(self.item.shape)]
            runs = [run for branches in passes for run in model.generation.forward(branches, latents, timestep)]
            velocities = [run[0].float().flatten() for run in runs]
            velocity = combine(*velocities, self.args.guidance) if len(velocities) > 1 else velocities[0]
            x = solver.step(velocity, x, i, None)
        return x.view(self.item.shape)

    def _static(self, ids: list[int]) -> dict:
        """What diffusers' pipeline prepares once per prompt."""
        device, length, rows = self.args.device, len(ids), self.packing.length
        indices = torch.arange(length, length + rows, device=device)
        return dict(
            input_ids=torch.tensor(ids, device=device),
            text_indexes=torch.arange(length, device=device),
            position_ids=torch.cat([text_positions(length), self.packing.positions(length)], dim=1).to(device),
            und_len=length,
            sequence_length=length + rows,
            vision_token_shapes=[self.item.grid(2)],
            vision_sequence_indexes=indices,
            vision_mse_loss_indexes=indices,
            vision_noisy_frame_indexes=[torch.arange(self.item.frames, device=device)],
            return_dict=False,
        )

    @torch.inference_mode()
    def theirs(self) -> torch.Tensor:
        solver, x, rows = self.solver(), self.noise, self.packing.length
        statics = [self._static(ids) for ids in self.prompts]
        for i, timestep in enumerate(solver.timesteps):
            varying = dict(
                vision_tokens=[x[None].to(getattr(torch, self.args.dtype))],
                vision_timesteps=torch.full((rows,), float(timestep), device=self.args.device),
            )
            velocities = [self.module(**static, **varying)[0][0][0].float() for static in statics]
            velocity = combine(*velocities, self.args.guidance) if len(velocities) > 1 else velocities[0]
            x = solver.step(velocity, x, i, None)
        return x


def main() -> None:
    args = arguments()
    module = peer_model(args)
    model = our_model(args, module)
    work = Work(args, module, model)
    ours, theirs = work.ours(), work.theirs()
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= args.tolerance:
        raise SystemExit(
            f"the results differ: relative error {error:.2e} is above {args.tolerance:.0e}; nothing was timed"
        )
    timed = alternate({"cosmos3": work.ours, args.peer: work.theirs}, args.device, args.repeats, warmups=0)
    report(
        {
            "benchmark": "step",
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "tokens": {"media": work.packing.length, "text": [len(ids) for ids in work.prompts]},
            "kernels": model.plan.to_json()["kernels"],
            "relative_error": error,
            "seconds": timed,
            "speed_ratio": timed[args.peer]["median_s"] / timed["cosmos3"]["median_s"],
            "environment": environment(args.device),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
