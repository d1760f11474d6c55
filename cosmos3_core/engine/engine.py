"""The run: read the prompts and inputs, predict and advance, hand out frames.

    engine = Engine(open_model("tiny"), plan)
    state = engine.start(request)
    while not state.done:
        engine.step(state)
    for frames in engine.finish(state): ...

`start` is `prepare`, what prompts and inputs come to, and `begin`, a generation on it. `step` is `predict`, the
velocities of any states, and `advance`, the solver's move of one. Between two calls a caller may stop, save, resume,
look at the latents, or take a step of another generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..checkpoint.model import Model, Weights
from ..contract import InputError, RunError
from ..files.memory import Media
from ..model.packing import Item, Packing
from ..model.transformer import TextContext
from ..plan import Plan
from ..plan.execution import RESIDENT, SEQUENTIAL, Execution
from ..sampling.noise import generator, initial_noise
from ..sampling.solver import solver_of
from ..sampling.state import Context, State
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.items import items_of
from ..scenarios.request import Request
from .decoders import DECODERS
from .inputs import Inputs, read_inputs
from .passes import Passes
from .pool import Pool
from .stages import Stages

PER_GENERATION = ("steps", "guidance", "guidance_interval", "schedule", "shift", "seed", "tile")
"""The request's fields that leave a context as it is."""


class Engine:
    """Runs requests on one model under one plan.

    With `resident` every component stays loaded for the next request; without it each is dropped once nobody needs it
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
        self.model, self.plan, self.resident = model, plan, resident
        self.target = plan.target(model.config)
        self.device = self.target.device
        self.tokenizer = model.tokenizer()
        self._stages = Stages(on_stage)
        self._pool = Pool(model, self.target, self._stages, resident, weights)
        self._passes: WeakValueDictionary[Context, Passes] = WeakValueDictionary()

    @property
    def seconds(self) -> dict[str, float]:
        return self._stages.seconds

    @property
    def on_stage(self) -> Callable[[str], None]:
        return self._stages.tell

    @on_stage.setter
    def on_stage(self, tell: Callable[[str], None]) -> None:
        self._stages.tell = tell

    def open_weights(self) -> Weights:
        """Download the weight files if need be and check their headers; nothing is loaded. Components call this
        themselves; a caller does so to have the download behind it."""
        return self._pool.open_weights()

    def execution(self, request: Request) -> Execution:
        """How this request runs here."""
        return self.plan.execution(self.model.config, request, RESIDENT if self.resident else SEQUENTIAL)

    def read_inputs(
        self, request: Request, noise: Sequence[Tensor] | None = None, media: Media | None = None
    ) -> Inputs:
        """Tokenize the prompts, read the picture or clip, check the `noise` that replaces the request's own (one tensor
        per item of `items_of`). `media` is a picture or clip that a program hands over: the request's field says
        `media.said`. Reads no weight; raises InputError for what is unusable."""
        return read_inputs(request, self.model, self.tokenizer, noise, media)

    def start(self, request: Request, inputs: Inputs | None = None) -> State:
        """The state before step 0. `inputs` is what `read_inputs` returned, if the caller has it."""
        return self.begin(self.prepare(request, inputs), request)

    @torch.inference_mode()
    def prepare(self, request: Request, inputs: Inputs | None = None) -> Context:
        """Read the prompts and encode the conditioning."""
        inputs, items = inputs or self.read_inputs(request), items_of(request, self.model.config)
        ids = {PROMPT: inputs.prompt, NEGATIVE: inputs.negative}
        texts = self._read_prompts([ids[branch] for branch in branches_of(request.guidance)])
        clean = pinned = None
        if inputs.pixels is not None:
            clean, pinned = self._encode(inputs.pixels, items[0])
        packing = Packing(items, self.model.config, self.device)
        return Context(request, packing, texts, pinned, clean, inputs.noise)

    @torch.inference_mode()
    def begin(self, context: Context, request: Request) -> State:
        """A generation on a context, whose own noise is drawn unless the context brings some. `request` may differ from
        the one that was prepared in PER_GENERATION. Raises InputError for any other difference, and for guidance where
        no negative prompt was read."""
        now, prepared = request.to_json(), context.request.to_json()
        if other := [name for name in now if name not in PER_GENERATION and now[name] != prepared[name]]:
            found = f"its {', '.join(other)} differ from those of the request that was prepared"
            raise InputError("beginning a generation", found, "Prepare this request")
        if len(branches_of(request.guidance)) > len(context.texts):
            found = "it has guidance, and the request that was prepared had none, so no negative prompt was read"
            raise InputError("beginning a generation", found, "Prepare this request")
        return self._first(context, request)

    def check_saved(self, request: Request, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Raises InputError unless `State.restore` takes these on a state of this request. Reads no weight."""
        packing = Packing(items_of(request, self.model.config), self.model.config, self.device)
        self._first(Context(request, packing, ()), request).restore(tensors, numbers)

    def _first(self, context: Context, request: Request) -> State:
        solver, stream = solver_of(request, self.model).to(self.device), generator(request.seed)
        drawn = initial_noise(context.items, stream)  # whatever noise is taken: what a sampler draws comes after it
        noise = context.noise or drawn
        x = torch.cat([n.flatten() for n in noise]).to(self.device)
        state = State(request, context, x, solver, solver.start(x), stream, noise)
        state.pin()
        return state

    def _read_prompts(self, prompts: list[list[int]]) -> tuple[TextContext, ...]:
        tower = self._pool.lease("understanding")
        with self._stages.stage("read prompts"):
            texts = tuple(tower.prefill(ids) for ids in prompts)
        del tower
        self._pool.give_back()
        return texts

    def _encode(self, pixels: Tensor, item: Item) -> tuple[Tensor, Tensor]:
        """(flat values, flat mask) of the clean frames. Only the frames given are encoded: the VAE is causal."""
        vae = self._pool.lease("vae encoder")
        with self._stages.stage("encode input"):
            latents = vae.encode(pixels)
        del vae
        self._pool.give_back()
        clean = torch.zeros(item.shape, device=self.device)
        pinned = torch.zeros(item.shape, dtype=torch.bool, device=self.device)
        for frame in item.clean:
            clean[:, frame], pinned[:, frame] = latents[:, frame], True
        return clean.flatten(), pinned.flatten()

    @torch.inference_mode()
    def predict(self, states: Sequence[State]) -> list[Tensor]:
        """The velocity of each state's next step, guidance included: flat, fp32, on the device. Nothing that a state is
        saved with changes. The first prediction loads the media tower, which the states hold until `finish`. Raises
        InputError for a state that has had all its steps."""
        for state in states:
            _check_goes_on(state)
        velocities = []
        for state in states:
            passes = self._passes_of(state)  # loading the tower is no part of the step
            with self._stages.timed("steps"):
                velocities.append(passes.velocity(state))
        return velocities

    def _passes_of(self, state: State) -> Passes:
        """The state's passes, which it shares with the others on its context."""
        context = state.context
        if state.passes is None:
            state.passes = self._passes.get(context)
        if state.passes is None:
            execution = self.execution(context.request)
            state.passes = Passes(self._pool.lease("generation"), context, execution)
            self._passes[context] = state.passes
        return state.passes

    @torch.inference_mode()
    def advance(self, state: State, velocity: Tensor) -> State:
        """The solver's move along a velocity, in place. Raises InputError for what is no velocity of this state, which
        stays as it is."""
        _check_goes_on(state)
        if (velocity.shape, velocity.dtype) != (state.x.shape, state.x.dtype):
            found = f"the velocity is {velocity.dtype} {list(velocity.shape)}, and the latents are {state.x.dtype}"
            raise InputError(f"step {state.index + 1}", f"{found} {list(state.x.shape)}", "Pass what predict returned")
        with self._stages.timed("steps"):
            state.torn = True
            state.x, state.memory = state.solver.step(velocity, state.x, state.index, state.memory, state.stream)
            state.pin()
            state.index += 1
            state.torn = False
        return state

    def step(self, state: State) -> State:
        """One solver step, in place."""
        return self.advance(state, self.predict([state])[0])

    def finish(self, state: State) -> Iterator[Tensor]:
        """Decode: uint8 [F, H, W, 3] on the host, in groups as they are ready. Raises RunError for latents that are
        not finite, which would decode to a black or grey picture."""
        with self._stages.timed("steps"):  # the first look at a value: the device may still be at work on the last ones
            finite = bool(torch.isfinite(state.x).all())
        if not finite:
            raise RunError(
                f"decoding after {state.index} steps",
                "the latents hold NaN or infinity, so a kernel or a weight is wrong",
                "Run again with `backend` reference to tell which",
            )
        state.passes = None
        self._pool.give_back()
        latents = {item.modality: latent for item, latent in zip(state.items, state.latents(), strict=True)}
        decoder = DECODERS["vision"]
        component = self._pool.lease(decoder.component)
        self.on_stage("decode")
        groups = decoder.groups(component, latents["vision"], self.execution(state.request))
        try:
            while True:
                with self._stages.timed("decode"):  # not the consumer's work between two groups
                    group = next(groups, None)
                if group is None:
                    break
                yield group
        finally:  # also where the consumer wants no more
            del component, groups
            self._pool.give_back()


def _check_goes_on(state: State) -> None:
    if state.done:
        raise InputError(f"step {state.index + 1}", f"the generation has {state.steps}, and had them", "Finish it")
