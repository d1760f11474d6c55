"""The run: read the inputs, read the prompts, take steps, hand out frames.

    engine = Engine(open_model("tiny"), plan)
    state = engine.start(request)
    while not state.done:
        engine.step(state)
    for frames in engine.finish(state): ...

Between two calls a caller may stop, save, resume, look at the latents, or take a step of another generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.model import Model, Weights
from ..contract import InputError, RunError
from ..files import media
from ..model.config import TEMPORAL_COMPRESSION, latent_size
from ..model.packing import Item, Packing
from ..model.text import SYSTEM_PROMPTS
from ..model.transformer import Branches, GenerationTower, TextContext
from ..plan import Plan
from ..plan.execution import NEGATIVE, PROMPT, RESIDENT, SEQUENTIAL, Execution, execution_of
from ..sampling.guidance import combine, guided
from ..sampling.noise import generator, initial_noise
from ..sampling.solver import solver_of
from ..sampling.state import State, views
from ..scenarios.conditioning import fit
from ..scenarios.prompts import negative_text, positive_text
from ..scenarios.request import Request

IDLE_BYTES = 1 << 30
"""Less idle memory is not worth the time that it takes to get it again."""


@dataclass(frozen=True)
class Inputs:
    """What a request brings: its prompts as token ids, its picture or clip as fp32 [3, F, H, W] in [-1, 1] or None, the
    initial noise per item (fp32, or None: drawn from the seed), and `notes`, sentences a user should read."""

    prompt: list[int]
    negative: list[int]
    pixels: Tensor | None
    noise: list[Tensor] | None = None
    notes: tuple[str, ...] = ()


def items_of(request: Request, model: Model) -> tuple[Item, ...]:
    """The latents that a request asks for."""
    shape = (model.config.latent_channel, *latent_size(request.width, request.height, request.frames))
    return (Item("vision", shape, clean=request.clean_frames, fps=request.fps),)


def pass_of(tower: GenerationTower, branches: Branches, captured: bool) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """The forward pass of these branches, captured or not: (flat fp32 latents, timestep as fp32 [1]), both on the
    device, to a flat fp32 velocity for each branch."""
    items = branches.packing.items

    def run(x: Tensor, timestep: Tensor) -> list[Tensor]:
        predicted = tower.forward(branches, views(x, items), timestep)
        return [torch.cat([velocity.flatten() for velocity in per_item]).float() for per_item in predicted]

    return tower.ops.capture(run) if captured else run


class Engine:
    """Runs requests on one model under one plan.

    With `resident` every component stays loaded for the next request; without it each is dropped once its part is done
    (the text tower after the prompts, the media tower before the decode), so that no two are in memory together.
    `weights` are the model's own, opened when needed, unless they are handed over. `seconds` collects how long each
    stage took, summed over the engine's life; `on_stage` is told a stage's name as it begins.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        resident: bool = False,
        weights: Weights | None = None,
        on_stage: Callable[[str], None] = lambda name: None,
    ):
        self.model, self.plan, self.resident, self.on_stage = model, plan, resident, on_stage
        self.target = plan.target()
        self.device = self.target.device
        self.tokenizer = model.tokenizer()
        self.seconds: dict[str, float] = {}
        self._loaded: dict[str, Any] = {"weights": weights} if weights else {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.on_stage(name)
        with self._timed(name):
            yield

    def open_weights(self) -> Weights:
        """Download the weight files if need be and check their headers; nothing is loaded. Components call this
        themselves; a caller does so to have the download behind it."""
        if "weights" not in self._loaded:
            with self._stage("check weights"):
                self._loaded["weights"] = Weights(self.model)
        return self._loaded["weights"]

    def _component(self, name: str, load: Callable[[Weights], Any]) -> Any:
        weights = self.open_weights()
        if name not in self._loaded:
            with self._stage(f"load {name}"):
                self._loaded[name] = load(weights)
        return self._loaded[name]

    def _generation(self):
        return self._component("generation", lambda w: w.generation(self.target))

    def _vae(self, half: str):
        return self._component(f"vae {half}", lambda w: w.vae(self.target, half))

    def _done_with(self, name: str) -> None:
        """Drop a component, unless everything stays, and give back what the allocator holds and nothing uses: the next
        part wants blocks of other sizes."""
        if not self.resident:
            self._loaded.pop(name, None)
        here = torch.accelerator
        if not here.is_available() or here.current_accelerator().type != self.device:
            return
        if here.memory_reserved() - here.memory_allocated() > IDLE_BYTES:
            here.empty_cache()

    def execution(self, request: Request) -> Execution:
        """How this request runs here."""
        return execution_of(self.model.config, request, self.plan, RESIDENT if self.resident else SEQUENTIAL)

    def read_inputs(self, request: Request, noise: list[Tensor] | None = None) -> Inputs:
        """Tokenize the prompts, read the picture or clip, check the `noise` that replaces the request's own (one tensor
        per item of `items_of`). Reads no weight; raises InputError for what is unusable."""
        if noise is not None:
            noise = self._checked_noise(noise, items_of(request, self.model))
        kind = "video" if request.is_video else "image"
        system, notes = SYSTEM_PROMPTS[kind] if request.system_prompt else None, []
        written = {PROMPT: positive_text, NEGATIVE: negative_text}
        texts = {branch: written[branch](request) for branch in self.execution(request).branches}
        ids = {name: self.tokenizer.encode(text, system) for name, text in texts.items()}
        for name, whole in ids.items() if request.max_text_tokens else ():
            ids[name] = self.tokenizer.encode(texts[name], system, request.max_text_tokens)
            if len(ids[name]) < len(whole):
                notes.append(f"the {name} was cut from {len(whole) - 2} to {request.max_text_tokens} tokens")
        prompt, negative = ids[PROMPT], ids.get(NEGATIVE, [])
        longest, vocabulary = max(prompt + negative), self.model.config.vocab_size
        if longest >= vocabulary:
            raise InputError(
                f"--model {self.model.name}",
                f"its tokenizer makes token {longest} and its vocabulary ends at {vocabulary - 1}",
                "text_tokenizer and transformer belong to different models; get both from one repository",
            )
        return Inputs(prompt, negative, self._read_pixels(request), noise, tuple(notes))

    def _read_pixels(self, request: Request) -> Tensor | None:
        count = request.conditioning_pixel_frames
        if request.task == "i2v":
            frames = media.read_image(Path(request.image))[None]
        elif request.task == "v2v":
            frames, _ = media.read_video(Path(request.video), count, request.condition_video_keep)
            if len(frames) < count:
                raise InputError(
                    f"--video {request.video}",
                    f"it has {len(frames)} frames, and condition_frame_indexes {list(request.condition_frame_indexes)} "
                    f"cover {count}",
                    f"Use a longer clip, or condition_frame_indexes up to {(len(frames) - 1) // TEMPORAL_COMPRESSION}",
                )
        else:
            return None
        return fit(
            torch.from_numpy(frames),
            request.width,
            request.height,
            image_filter=request.image_filter,
            stretch=request.task == "v2v" and request.video_fit == "stretch",
        )

    @torch.inference_mode()
    def start(self, request: Request, inputs: Inputs | None = None) -> State:
        """Read the prompts, encode the conditioning, draw the noise: the state before step 0. `inputs` is what
        `read_inputs` returned, if the caller has it."""
        inputs = inputs or self.read_inputs(request)
        items, stream, solver = items_of(request, self.model), generator(request.seed), solver_of(request, self.model)
        drawn = initial_noise(items, stream)  # whatever noise is taken: what a sampler draws comes after it
        noise = inputs.noise or drawn
        execution, ids = self.execution(request), {PROMPT: inputs.prompt, NEGATIVE: inputs.negative}
        texts = self._read_prompts([ids[branch] for branch in execution.branches])
        clean = pinned = None
        if inputs.pixels is not None:
            clean, pinned = self._encode(inputs.pixels, items[0])
        cond, with_guidance = self._branches(execution, texts, items)
        x = torch.cat([n.flatten() for n in noise]).to(self.device)
        state = State(request, items, x, solver, stream, noise, cond, with_guidance, execution, pinned, clean)
        state.pin()
        return state

    @staticmethod
    def _checked_noise(noise: list[Tensor], items: tuple[Item, ...]) -> list[Tensor]:
        for tensor, item in zip(noise, items, strict=True):
            if tuple(tensor.shape) != item.shape or not torch.isfinite(tensor).all():
                raise InputError(
                    f"initial {item.modality} noise of shape {list(tensor.shape)}",
                    f"this request needs finite values of shape {list(item.shape)}",
                    "Save it from a request of the same size and length",
                )
        return [tensor.float() for tensor in noise]

    def _read_prompts(self, prompts: list[list[int]]) -> list[TextContext]:
        tower = self._component("understanding", lambda w: w.understanding(self.target))
        with self._stage("read prompts"):
            texts = [tower.prefill(ids) for ids in prompts]
        del tower
        self._done_with("understanding")
        return texts

    def _branches(self, execution: Execution, texts: list[TextContext], items: tuple[Item, ...]):
        """(branches for unguided steps, branches for guided steps): each a list of passes."""
        tower, packing = self._generation(), Packing(items, self.model.config, self.device)
        read = dict(zip(execution.branches, texts, strict=True))
        made = {one: tower.branches(packing, [read[branch] for branch in one.branches]) for one in execution.passes}
        return [made[one] for one in execution.unguided], [made[one] for one in execution.guided]

    def _encode(self, pixels: Tensor, item: Item) -> tuple[Tensor, Tensor]:
        """(flat values, flat mask) of the clean frames. Only the frames given are encoded: the VAE is causal."""
        vae = self._vae("encoder")
        with self._stage("encode input"):
            latents = vae.encode(pixels)
        del vae
        self._done_with("vae encoder")
        clean = torch.zeros(item.shape, device=self.device)
        pinned = torch.zeros(item.shape, dtype=torch.bool, device=self.device)
        for frame in item.clean:
            clean[:, frame], pinned[:, frame] = latents[:, frame], True
        return clean.flatten(), pinned.flatten()

    @torch.inference_mode()
    def step(self, state: State) -> State:
        """One solver step, in place."""
        request, timestep = state.request, state.solver.timesteps[state.index]
        use_guidance = guided(request.guidance, request.guidance_interval, timestep)
        if not state.passes:  # loading the tower is no part of the step; they hold it until `finish`
            tower, how = self._generation(), state.execution
            every = zip((*state.cond, *state.guided), (*how.unguided, *how.guided), strict=True)
            state.passes.update({id(branches): pass_of(tower, branches, one.captured) for branches, one in every})
        with self._timed("steps"):
            told = torch.full((1,), timestep, device=self.device)
            chosen = state.guided if use_guidance else state.cond
            passes = [state.passes[id(branches)] for branches in chosen]
            velocities = [velocity for run in passes for velocity in run(state.x, told)]
            velocity = combine(*velocities, request.guidance) if use_guidance else velocities[0]
            state.torn = True
            state.x = state.solver.step(velocity, state.x, state.index, state.stream)
            state.pin()
            state.index += 1
            state.torn = False
        return state

    def finish(self, state: State) -> Iterator[Tensor]:
        """Decode: uint8 [F, H, W, 3] on the host, in groups as they are ready. Raises RunError for latents that are
        not finite, which would decode to a black or grey picture."""
        vision = state.latents()[0]
        with self._timed("steps"):  # the first look at a value: the device may still be at work on the last steps
            finite = bool(torch.isfinite(vision).all())
        if not finite:
            raise RunError(
                f"decoding after {state.index} steps",
                "the latents hold NaN or infinity, so a kernel or a weight is wrong",
                "Run again with --backend reference to tell which",
            )
        state.passes.clear()
        self._done_with("generation")
        vae = self._vae("decoder")
        self.on_stage("decode")
        groups = vae.decode(vision, state.execution.tiling)
        try:
            while True:
                with self._timed("decode"):  # not the consumer's work between two groups
                    group = next(groups, None)
                if group is None:
                    break
                yield group
        finally:  # also where the consumer wants no more
            del vae, groups
            self._done_with("vae decoder")
