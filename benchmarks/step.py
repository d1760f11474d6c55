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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cosmos3_core.checkpoint.model import Model, open_model
from cosmos3_core.engine.engine import Engine
from cosmos3_core.engine.inputs import Inputs
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.packing import Packing
from cosmos3_core.model.rope import text_positions
from cosmos3_core.plan import Plan, Want, choose_backend, resolve
from cosmos3_core.plan.placement import ALL_RESIDENT
from cosmos3_core.sampling.guidance import combine
from cosmos3_core.sampling.noise import generator
from cosmos3_core.sampling.solver import solver_of
from cosmos3_core.sampling.state import Context
from cosmos3_core.scenarios.branches import branches_of
from cosmos3_core.scenarios.items import items_of

from .common import TransformerWeights, alternate, report_all, request_of, waiting

HEADS: dict[str, Any] = dict(action_gen=True, action_dim=64, sound_gen=True, sound_dim=64)
MODELS: dict[str, dict[str, Any]] = {
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
FIRST_OF = 8
"""Steps of the schedule whose first one is timed alone."""


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


class Work:
    """The inputs that both get: prompts, initial noise and a schedule."""

    def __init__(self, args: argparse.Namespace, name: str, model: Model):
        given = {"steps": args.steps or FIRST_OF, "guidance": args.guidance, "schedule": "native", "shift": 3.0}
        self.request = replace(request_of(model, name, **given), guidance_interval=None)
        self.whole, (item,) = bool(args.steps), items_of(self.request, model.config)
        stream = torch.Generator().manual_seed(1)
        self.noise = torch.randn(item.shape, generator=stream)
        # Prompts of different lengths, as a prompt and a negative prompt are.
        lengths = (args.text, args.text - 3)[: len(branches_of(args.guidance))]
        self.prompts = [torch.randint(0, model.config.vocab_size, (n,), generator=stream).tolist() for n in lengths]
        self.packing = Packing([item], model.config, "meta")


class Held:
    """A module's tensors, as files that hold them."""

    def __init__(self, module):
        self.tensors = module.state_dict()

    def read(self, names):
        return ((name, self.tensors[name]) for name in names)


class Ours:
    """An engine with the peer's weights, under a plan."""

    def __init__(self, model: Model, plan: Plan, module):
        self.plan = plan
        self.engine = Engine(model, plan, placement=ALL_RESIDENT, weights=TransformerWeights(model, Held(module)))

    def prepare(self, work: Work) -> Context:
        negative = work.prompts[1] if len(work.prompts) > 1 else []
        return self.engine.prepare(work.request, Inputs(work.prompts[0], negative, noise=[work.noise]))

    def first_velocities(self, work: Work) -> torch.Tensor:
        """Each branch's velocity at the first step: what equality is judged by. Guidance 1 is the prompt's alone, and
        guidance 0 the negative prompt's."""
        context, alone = self.prepare(work), (1.0, 0.0)[: len(work.prompts)]
        states = [self.engine.begin(context, replace(work.request, guidance=one)) for one in alone]
        return torch.stack(self.engine.predict(states))

    def timed(self, work: Work) -> Callable[[], torch.Tensor]:
        """The first step's velocity, prompts read before; or the whole loop."""
        if work.whole:
            return lambda: self.run(work)
        state = self.engine.begin(self.prepare(work), work.request)
        return lambda: self.engine.predict([state])[0]

    def run(self, work: Work) -> torch.Tensor:
        """The latents after all steps."""
        state = self.engine.begin(self.prepare(work), work.request)
        while not state.done:
            self.engine.step(state)
        return state.x


class Theirs:
    """diffusers' transformer, called as its pipeline calls it: one forward per prompt and step."""

    def __init__(self, args: argparse.Namespace, module, model: Model, device: str):
        self.module, self.model, self.device, self.dtype = module, model, device, getattr(torch, args.dtype)
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
        """A velocity for each branch, of the shape of x."""
        rows = len(prepared[0]["vision_sequence_indexes"])
        varying = dict(
            vision_tokens=[x[None].to(self.dtype)],
            vision_timesteps=torch.full((rows,), float(timestep), device=self.device),
        )
        return [self.module(**static, **varying)[0][0][0].float() for static in prepared]

    def first_velocities(self, work: Work) -> torch.Tensor:
        """As ours."""
        solver, x = solver_of(work.request, self.model), work.noise.to(self.device)
        return torch.stack([v.flatten() for v in self.velocities(self.prepare(work), x, solver.timesteps[0])])

    def timed(self, work: Work) -> Callable[[], torch.Tensor]:
        """As ours."""
        if work.whole:
            return lambda: self.run(work)
        solver, prepared = solver_of(work.request, self.model), self.prepare(work)
        x = work.noise.to(self.device)
        return lambda: self.guided(self.velocities(prepared, x, solver.timesteps[0]), work)

    @staticmethod
    def guided(velocities: list[torch.Tensor], work: Work) -> torch.Tensor:
        if len(velocities) == 1:
            return velocities[0]
        prompt, negative = velocities
        return combine(prompt, negative, work.request.guidance)

    def run(self, work: Work) -> torch.Tensor:
        """As ours."""
        prepared, solver = self.prepare(work), solver_of(work.request, self.model).to(self.device)
        x = work.noise.flatten().to(self.device)
        memory = solver.start(x)
        for i, timestep in enumerate(solver.timesteps):
            velocity = self.guided(self.velocities(prepared, x.view(work.noise.shape), timestep), work)
            x, memory = solver.step(velocity.flatten(), x, i, memory, generator(work.request.seed))
        return x


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.inference_mode()
def compare(args: argparse.Namespace, work: Work, ours: Ours, theirs: Theirs) -> dict[str, Any]:
    """One work under one plan: the error first, then the times."""
    error = relative_error(ours.first_velocities(work), theirs.first_velocities(work))
    if not error <= args.tolerance and not ours.plan.formats:
        raise SystemExit(f"the velocities differ by {error:.2e}, more than {args.tolerance:g}; nothing was timed")
    sides = {"cosmos3": ours.timed(work), args.peer: theirs.timed(work)}
    for _ in range(3 if ours.engine.execution(work.request).captured else 1):  # load, compile and capture
        finals = [function() for function in sides.values()]
    timed = alternate(sides, waiting(ours.engine.target.ops.memory, theirs.device), args.repeats)
    return {
        "tokens": {"media": work.packing.length, "text": [len(ids) for ids in work.prompts]},
        "relative_error": error,
        **({"relative_error_after_all_steps": relative_error(*finals)} if work.whole else {}),
        "seconds": timed,
        "speed_ratio": timed[args.peer]["median_s"] / timed["cosmos3"]["median_s"],
    }


def main() -> None:
    args = arguments()
    backend, device, _ = choose_backend(args.backend)
    module = peer_model(args, backend.torch_device)
    config = TransformerConfig.from_json(dict(module.config), "the peer's config")
    model = replace(open_model("embedded"), config=config, scheduler=SCHEDULER)
    theirs, results = Theirs(args, module, model, backend.torch_device), []
    for format in ["", *args.format]:
        ours = Ours(model, resolve(wanted(args, config, args.dtype, format), backend, device), module)
        for name in args.work:
            work = Work(args, name, model)
            found = compare(args, work, ours, theirs)
            results.append(
                {
                    "work": name,
                    "formats": ours.plan.formats,
                    "kernels": ours.plan.to_json(work.packing.length)["kernels"],
                    **found,
                }
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
