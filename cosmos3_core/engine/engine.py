"""The run: read the prompts and inputs, predict and advance, hand out frames.

    engine = Engine(open_model("embedded"), plan)
    state = engine.start(request)
    while not state.done:
        engine.step(state)
    for frames in engine.finish(state): ...

`start` is `prepare`, what prompts and inputs come to, and `begin`, a generation on it. `step` is `predict`, the
velocities of any states, and `advance`, the solver's move of one. Between two calls a caller may stop, save, resume,
preview, look at the latents, or take a step of another generation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.model import Model, Weights
from ..contract import InputError, Ops
from ..files.memory import Media
from ..model.packing import Item, Packing
from ..model.text import ChatTokenizer
from ..model.transformer import TextContext
from ..model.weights import Target
from ..plan import Plan
from ..plan.execution import Execution, keeping_of
from ..plan.placement import ALL_STAGED, Placement
from ..sampling.noise import generator, initial_noise
from ..sampling.solver import solver_of
from ..sampling.state import Context, Origin, State, views
from ..scenarios.branches import NEGATIVE, PROMPT, branches_of
from ..scenarios.items import items_of
from ..scenarios.request import Request
from ..spelling import shown
from .checks import check_goes_on, check_prepared, check_type, described, not_finite
from .codecs import CODECS, UNROUNDED, Codec
from .conditions import Conditions
from .inputs import Inputs, read_inputs
from .limits import expandable, limited
from .others import Others
from .passes import Forwards, Passes
from .pool import Pool
from .prompts import Prompts
from .stages import SILENT, Loading, Stages, Watch
from .surroundings import plain_torch

RESOLVE = "Pass what resolve or settle made of your fields"


class Engine:
    """Runs requests on one model under one plan.

    `placement` says where each part of the model lies. With ALL_RESIDENT every component stays loaded for the next
    request, and so do, within `plan.execution.Keeping`, what prompts came to and captured passes; staged ones are
    dropped once nobody needs them (the text tower after the prompts, the media tower before the decode), so that no two
    are in memory together. What is computed does not depend on it.
    A plan for several devices takes a process for each, which all do the same; what the first one makes is whole.
    The process takes no more than `limit` bytes of the device until the engine is closed: what would take more fails.
    `weights` are the model's own, opened when needed, unless they are handed over. `seconds` collects how long each
    stage took, summed over the engine's life. What an engine is made of cannot be changed afterwards.

    Any number of threads may use one engine, each with states of its own: a lock lets one of them at a time read
    prompts, predict and advance, or decode a group of frames. Between those pieces, and while a `watch` is told or
    asked, the others take their turn, and results are bit-equal to those of one thread.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        placement: Placement = ALL_STAGED,
        limit: int | None = None,
        weights: Weights | None = None,
    ):
        check_type("an engine's `model`", model, Model, "Pass what open_model returns")
        check_type("an engine's `plan`", plan, Plan, "Pass what settle or resolve found")
        check_type("an engine's `placement`", placement, Placement, "Pass the one that settle found")
        self._model, self._plan, self._placement = model, plan, placement
        self._target = plan.target(model.config)
        if plan.tuning.expandable_segments:
            expandable()
        self._limit = limited(self._target.ops.memory, torch.device(self._target.device), limit)
        self._tokenizer = model.tokenizer()
        self._origin = Origin(model.name, model.repository.revision, plan.dtype, str(self._target.device))
        self._stages = Stages()
        self._lock = self._stages.turn
        self._others = Others(plan, self._target.ops.comm, torch.device(self._target.device))
        self._pool = Pool(model, self._target, self._stages, self._placement, weights, self._others)
        keeping = keeping_of(self._placement, plan.tuning)
        # How much the host has free is no two processes' same, and what they read they read together.
        host_tokens = keeping.host_tokens if plan.layout.size == 1 else 0
        self._prompts = Prompts(self._pool, self._stages, keeping.tokens, host_tokens)
        self._conditions = Conditions(self._pool, self._stages, keeping.area)
        self._forwards = Forwards(keeping.rows, self._prompts.kept)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            found = "an engine is settled before weights are read, and what it is made of stays"
            raise InputError(f"setting `{name}` of an engine", found, "Make another Engine, of another plan or model")
        super().__setattr__(name, value)

    @property
    def model(self) -> Model:
        return self._model

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def placement(self) -> Placement:
        return self._placement

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the weights came to lie where they do."""
        return tuple(self._pool.notes)

    @property
    def target(self) -> Target:
        """What the weights become: ops, device, dtype."""
        return self._target

    @property
    def ops(self) -> Ops:
        return self._target.ops

    @property
    def device(self) -> torch.device | str:
        return self._target.device

    @property
    def tokenizer(self) -> ChatTokenizer:
        return self._tokenizer

    @property
    def loading(self) -> Loading | None:
        """The component that is being loaded; to be looked at from any thread."""
        return self._stages.loading

    @property
    def seconds(self) -> dict[str, float]:
        return self._stages.seconds

    @property
    def begun(self) -> str:
        """The stage that began last."""
        return self._stages.begun

    def close(self) -> None:
        """Free what stays. Generations that began go on, and nothing stays after them."""
        with self._lock:
            for part in (self._prompts, self._conditions, self._forwards, self._pool):
                part.close()
            self._limit.lift()

    def give_back(self) -> None:
        """Return to the device what nothing uses; for whoever caught an error of a device without memory."""
        with self._lock:
            self._pool.give_back()
            self.ops.memory.empty(torch.device(self.device))

    @contextmanager
    def _working(self, watch: Watch | None) -> Iterator[None]:
        """The engine's one piece of work."""
        check_type("a generation's `watch`", watch, Watch | None, "Pass a Watch")
        with self._lock, plain_torch(self.device):
            before, self._stages.watch = self._stages.watch, watch or SILENT
            try:
                yield
            finally:
                self._stages.watch = before

    @contextmanager
    def counting(self, seconds: dict[str, float]) -> Iterator[None]:
        """The engine is this thread's but while a caller's function is called, and what its stages take inside is added
        to `seconds`."""
        with self._lock:
            before, self._stages.own = self._stages.own, seconds
            try:
                yield
            finally:
                self._stages.own = before

    def open_weights(self, watch: Watch | None = None, request: Request | None = None) -> Weights:
        """Download the weight files if need be, those of the sound codec for a `request` with sound, and check their
        headers; nothing is loaded. Components call this themselves; a caller does so to have the download behind it."""
        with self._working(watch):
            return self._pool.open_weights(request)

    def execution(self, request: Request) -> Execution:
        """How this request runs here."""
        check_type("a `request`", request, Request, RESOLVE)
        return self.plan.execution(self.model.config, request, self._placement)

    def read_inputs(
        self, request: Request, noise: Sequence[Tensor] | None = None, media: Sequence[Media] = ()
    ) -> Inputs:
        """Tokenize the prompts, read the pictures or the clip, check the `noise` that replaces the request's own (one
        tensor per item of `items_of`). `media` are those that a program hands over: the request's fields say
        `media.said`. Reads no weight; raises InputError for what is unusable."""
        check_type("a `request`", request, Request, RESOLVE)
        check_type("initial noise", noise, list | tuple | None, "Pass a list with a tensor for each latent")
        check_type("a request's `media`", media, list | tuple, "Pass a list of what Media.of makes of them")
        with plain_torch(self.device):
            return read_inputs(request, self.model, self.tokenizer, noise, media)

    def start(self, request: Request, inputs: Inputs | None = None, watch: Watch | None = None) -> State:
        """The state before step 0. `inputs` is what `read_inputs` returned, if the caller has it; `watch` is told of
        all stages until the last frame, and may stop them."""
        return self.begin(self.prepare(request, inputs, watch), request, watch)

    @torch.inference_mode()
    def prepare(
        self,
        request: Request,
        inputs: Inputs | None = None,
        watch: Watch | None = None,
        texts: tuple[TextContext, ...] | None = None,
    ) -> Context:
        """Read the prompts, unless their `texts` are there from a context with the same ones, and encode the
        conditioning. Raises Cancelled if `watch` says so."""
        inputs = self.read_inputs(request) if inputs is None else inputs
        check_type("a `request`", request, Request, RESOLVE)
        check_type("a request's `inputs`", inputs, Inputs, "Pass what read_inputs returned")
        items = items_of(request, self.model.config)
        ids = {PROMPT: inputs.prompt, NEGATIVE: inputs.negative}
        with self._working(watch):
            self._others.meet()
            self._pool.open_weights(request)
            texts = texts or self._prompts.read([ids[branch] for branch in branches_of(request.guidance)])
            packing = Packing(items, self.model.config, self.device)  # before the device has what it would wait for
            clean, pinned = self._conditions.of(items, inputs.given, self.execution(request).encode_captured)
        return Context(request, packing, texts, pinned, clean, inputs.noise, self._origin)

    @torch.inference_mode()
    def begin(self, context: Context, request: Request, watch: Watch | None = None) -> State:
        """A generation on a context, whose own noise is drawn unless the context brings some. `request` may differ from
        the one that was prepared in PER_GENERATION. Raises InputError for any other difference, for guidance where no
        negative prompt was read, and for the context of another model, dtype or device."""
        check_type("a `context`", context, Context, "Pass what prepare returned")
        check_type("a `request`", request, Request, RESOLVE)
        self._check_ours(context, "beginning a generation")
        check_prepared(context, request)
        with self._working(watch):
            state = self._first(context, request)
        state.watch = watch
        return state

    def check_saved(self, request: Request, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Raises InputError unless `State.restore` takes these on a state of this request. Reads no weight."""
        check_type("a `request`", request, Request, RESOLVE)
        with plain_torch(self.device):
            packing = Packing(items_of(request, self.model.config), self.model.config, self.device)
            self._first(Context(request, packing, ()), request).restore(tensors, numbers)

    def _first(self, context: Context, request: Request) -> State:
        stream = generator(request.seed)
        drawn = initial_noise(context.made, stream)  # whatever noise is taken: what a sampler draws comes after it
        solver = solver_of(request, self.model).to(self.device)
        noise = context.noise or drawn
        begun = dict(zip(context.made, noise, strict=True))
        parts = [begun[item].flatten() if item in begun else torch.zeros(item.numel) for item in context.items]
        x = torch.cat(parts).to(self.device)
        state = State(request, context, x, solver, solver.start(x), stream, noise)
        state.pin()
        return state

    @torch.inference_mode()
    def predict(self, states: Sequence[State]) -> list[Tensor]:
        """The velocity of each state's next step, guidance included: flat, fp32, on the device. Nothing that a state is
        saved with changes. The first prediction loads the media tower, which the states hold until `finish`. Raises
        InputError for a state that has had all its steps or is of another model, dtype or device, and Cancelled if a
        state's watch says so."""
        check_type("predicting", states, list | tuple, "Pass a list of states, also of one")
        for state in states:
            self._check_state(state, "predicting")
            check_goes_on(state)
        velocities = []
        for state in states:
            with self._working(state.watch):
                self._stages.check("steps", state.index, state.steps)
                passes = self._passes_of(state)  # loading the tower is no part of the step
                check_goes_on(state)  # the last one may have been taken while the caller's functions were called
                with self._stages.timed("steps"):
                    velocity = passes.velocity(state)
                    # A velocity is noise - x0 (docs/model.md, section 4.6): what is left if the way were straight.
                    state.foreseen = torch.sub(state.x, velocity, alpha=state.solver.sigmas[state.index])
            velocities.append(velocity)
        return velocities

    def _passes_of(self, state: State) -> Passes:
        """The state's passes, which hold the tower from the first of them on."""
        if state.passes is None:
            tower = self._pool.lease("generation")
            execution = self.execution(state.context.request)
            state.passes = state.passes or Passes(tower, state.context, execution, self._forwards, self._others)
            self._stages.tell("steps", state.index, state.steps)
        passes: Passes = state.passes
        return passes

    @torch.inference_mode()
    def advance(self, state: State, velocity: Tensor) -> State:
        """The solver's move along a velocity, in place. Raises InputError for what is no velocity of this state, which
        stays as it is."""
        self._check_state(state, "advancing")
        check_goes_on(state)
        check_type(f"step {state.index + 1}", velocity, Tensor, "Pass what predict returned for this state")
        if (velocity.shape, velocity.dtype, velocity.device) != (state.x.shape, state.x.dtype, state.x.device):
            found = f"the velocity is {described(velocity)}, and the latents are {described(state.x)}"
            raise InputError(f"step {state.index + 1}", found, "Pass what predict returned")
        with self._working(state.watch):
            with self._stages.timed("steps"):
                state.torn = True
                state.x, state.memory = state.solver.step(velocity, state.x, state.index, state.memory, state.stream)
                state.pin()
                state.index += 1
                state.torn = False
            self._stages.tell("steps", state.index, state.steps)
        return state

    def step(self, state: State) -> State:
        """One solver step, in place."""
        with self._lock:
            return self.advance(state, self.predict([state])[0])

    @torch.inference_mode()
    def preview(self, state: State, latent_frames: int | None = None) -> Tensor:
        """What the last prediction takes the result for, decoded: uint8 [F, H, W, 3] on the host. `latent_frames` are
        so many of the first ones, which need no others: 1 is the first frame, each other gives four more.

        The state stays as it is, and so does the media tower: the VAE's decoder is loaded beside it, and is dropped
        again unless the codecs stay. For that time memory holds what "steps" and "decode" of the plan need
        together. Raises InputError before the first prediction.
        """
        self._check_state(state, "previewing")
        if state.foreseen is None:
            found = "nothing was predicted since it began or was restored"
            raise InputError(f"a preview after {state.index} steps", found, "Take a step first")
        _, latent = self._latent(state, state.foreseen, "vision")
        whole = latent.shape[1]
        if latent_frames is not None and (type(latent_frames) is not int or not 1 <= latent_frames <= whole):
            next_step = f"Give a whole number from 1 to {whole}"
            raise InputError(f"a preview of {latent_frames!r} latent frames", f"the video has {whole}", next_step)
        codec = CODECS["vision"]
        with self._working(state.watch):
            component = codec.decoder and self._pool.lease(codec.decoder)
            with self._stages.timed("preview"):
                groups = codec.decode(component, latent[:, :latent_frames], self.execution(state.request))
                frames = torch.cat(list(groups))
            del component, groups
            self._pool.give_back()
        return frames

    def finish(self, state: State, modality: str = "vision") -> Iterator[Tensor]:
        """Decode what the generation has of a modality, on the host, in pieces as they are ready: of vision uint8
        [F, H, W, 3], of sound one waveform, fp32 [2, N], of actions fp32 [T, D]. Raises InputError before the last step
        or for what the generation has not, RunError for latents that are not finite, which would decode to a black or
        grey picture, and Cancelled if the state's watch says so; the state is as it was."""
        self._check_finished(state, modality)
        return self._decoded(state, modality, CODECS[modality])

    def tail(self, state: State, count: int) -> Tensor:
        """The last frames of a finished clip, which another one begins with: fp32 [3, count, H, W] in [-1, 1] on the
        host, as the VAE gives them and not rounded. Raises as `finish`."""
        self._check_finished(state, "vision")
        kept: deque[Tensor] = deque(maxlen=count)
        for piece in self._decoded(state, "vision", UNROUNDED):
            kept.extend(piece.float())
        return torch.stack(list(kept)).permute(3, 0, 1, 2).contiguous()

    def _check_finished(self, state: State, modality: str) -> None:
        self._check_state(state, "finishing")
        if modality not in (has := [item.modality for item in state.items]):
            found = f"the generation has {' and '.join(has)}"
            raise InputError(f"finishing {shown(modality)}", found, f"Ask for {' or '.join(has)}")
        if not state.done:
            found = f"the generation has {state.steps} steps, and had {state.index}"
            raise InputError(f"finishing after step {state.index}", found, "Take the others, or look with preview")

    def _decoded(self, state: State, modality: str, codec: Codec) -> Iterator[Tensor]:
        with self._working(state.watch):
            with self._stages.timed("steps"):  # the first look at a value: the device may still be at the last ones
                finite = bool(torch.isfinite(state.x).all())
            if not finite:
                raise not_finite(state.index, self.plan)
            state.passes = None
            self._pool.give_back()
            item, latent = self._latent(state, state.x, modality)
            component = codec.decoder and self._pool.lease(codec.decoder)
            pieces = codec.decode(component, latent, self.execution(state.request))
        done, total = 0, codec.length(item)
        stage = "decode" if modality == "vision" else f"decode {modality}"
        try:
            while done < total:
                with self._working(state.watch):
                    self._stages.check(stage, done, total)
                    self._stages.tell(stage, done, total)
                    with self._stages.timed(stage):  # not the consumer's work between two pieces
                        piece = next(pieces)
                done += codec.count(piece)
                yield piece
            with self._working(state.watch):  # asked while the last piece was written, it is not too late either
                self._stages.check(stage, total, total)
                self._stages.tell(stage, total, total)
        finally:  # also where the consumer wants no more
            with self._lock:
                del component, pieces
                self._pool.give_back()

    @staticmethod
    def _latent(state: State, x: Tensor, modality: str) -> tuple[Item, Tensor]:
        """The item of a modality that is made, and its latent in a flat vector like the state's, of the channels in
        use."""
        parts = zip(state.items, views(x, state.items), strict=True)
        item, latent = next(part for part in parts if part[0].name == modality)
        return item, latent if item.used is None else latent[:, : item.used]

    def _check_state(self, state: State, doing: str) -> None:
        """InputError for what is no state, or none of this engine's kind, RunError for a torn one. One that lies on the
        host, as it comes out of a pickle, is moved to the device."""
        check_type(doing, state, State, "Pass what start or begin returned")
        state.check_whole(doing)
        self._check_ours(state.context, doing)
        state.place(self.device)

    def _check_ours(self, context: Context, doing: str) -> None:
        theirs, ours = context.origin, self._origin
        if theirs is None:
            raise InputError(doing, "the context was not prepared by an engine", "Pass what prepare returned")
        other = [
            f"{name} {getattr(theirs, name)!r} where this engine's is {getattr(ours, name)!r}"
            for name in vars(ours)
            if getattr(theirs, name) != getattr(ours, name)
        ]
        if not other and context.packing.config != self.model.config:
            other = ["another config of the model"]
        if other:
            found = f"it belongs to an engine of another kind: {', '.join(other)}"
            raise InputError(doing, found, "Use that engine, or restore what the state's to_tensors gives")
