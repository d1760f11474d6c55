"""The one place where a model, a request and a plan come together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..checkpoint.model import Model, describe, made_for, open_model
from ..contract import Backend, Device, InputError
from ..plan import Plan, Want, choose_backend, mesh, resolve
from ..plan.cost.fit import Estimate
from ..plan.cost.job import Job
from ..plan.cost.nearest import Change
from ..plan.cost.placing import Room, fitting_tile, lack, lack_as_it_is, placed
from ..plan.cost.stages import Stage
from ..plan.cost.units import GIB, gib
from ..plan.execution import Execution
from ..plan.known import described_device, known_device
from ..plan.mesh import Layout
from ..plan.placement import DISK, TOWERS, Placement, candidates
from ..plan.resolve import formats_of, splits
from ..quant.steps import StepPolicy
from ..reference.hosts import free_memory
from ..scenarios import request as requests
from ..scenarios.action import acts
from ..scenarios.branches import NEGATIVE, branches_of
from ..scenarios.faults import about
from ..scenarios.fields import is_whole, understood
from ..scenarios.sizes import AUTO
from ..scenarios.trained import training_notes
from ..scenarios.variants import check_able
from .actions import check_width, found_in_files
from .instead import instead
from .measured import measured
from .sharing import Alternative, shared_out
from .wish import Wish

PROMPT_TOKENS = 512
"""A caption of a few sentences with its templates; an upsampled JSON caption has 500 to 2000."""
SHORT_NEGATIVE_TOKENS = 128
"""An empty negative prompt with its templates."""
STOCK_NEGATIVE_TOKENS = 3500
"""The negative prompt that the checkpoints bring: 14 850 characters of JSON."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What a `wish` comes to on this machine. `origin` says of each request field where its value is from; `why` is
    what to tell the user of the backend's choice ("" where it was named). `asked` is the estimate of the request as it
    was asked for, `estimate` that of the request as it is, which may have a tile that was chosen here; `counted` is
    whether they know how long the texts are. `room` is what there is for them, and `passed` why parts of the model were
    not placed where they would cost less time; `layout_why` is why several devices share the request as they do (""
    where one has it alone), and `alternatives` how else they could."""

    wish: Wish
    model: Model
    request: requests.Request
    origin: dict[str, str]
    plan: Plan
    asked: Estimate
    estimate: Estimate
    why: str
    room: Room
    passed: tuple[str, ...] = ()
    layout_why: str = ""
    alternatives: tuple[Alternative, ...] = ()
    counted: bool = False

    def with_texts(self, prompt: int, negative: int) -> Settled:
        """The same with the prompts' numbers of tokens, which were counted, in the place of guesses."""
        asked, estimate = (
            replace(one, job=replace(one.job, prompt_tokens=prompt, negative_tokens=negative))
            for one in (self.asked, self.estimate)
        )
        return replace(self, asked=asked, estimate=estimate, counted=True)

    @property
    def forecast(self) -> bool:
        """Whether it is for a device that need not be here."""
        return self.wish.forecast

    @property
    def execution(self) -> Execution:
        """How the request runs: passes, captures, tiles."""
        return self.estimate.execution

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before it runs: how the request lies outside of the model's training, and what is
        slow."""
        return (*training_notes(self.request, self.model.facts), *self.plan.notes)

    @property
    def worst(self) -> Stage:
        """The stage that takes most of the device's memory."""
        return max(self.estimate.stages, key=lambda stage: stage.peak)

    @property
    def placement(self) -> Placement:
        """Where the parts of the model lie."""
        return self.estimate.placement

    @property
    def fits(self) -> bool:
        """Whether every stage fits in the device's memory and the weights on the host, by the estimate."""
        return not self.lack

    @property
    def lack(self) -> str:
        """What there is too little of, a clause, "" where it fits."""
        return lack_as_it_is(self.estimate, self.room)

    @property
    def lower(self) -> Placement | None:
        """Another placement, with which it fits, where it does not fit with its own, in tiles or not."""
        if self.fits or not lack(self.asked, self.room):
            return None
        for one in candidates(False, {}, unified=self.plan.device.unified):
            if not lack(replace(self.asked, placement=one), self.room):
                return one
        return None

    def known(self) -> dict[str, Any]:
        """The request as JSON, with None where something stands in for a text or a file that is not known."""
        unknown = {name for name, source in self.origin.items() if source == requests.STANDS_IN}
        if _from_table(self.wish) and self.origin["negative_prompt"].startswith("checkpoint"):
            unknown.add("negative_prompt")
        return self.request.to_json() | dict.fromkeys(unknown)

    def nearest(self) -> list[Change]:
        """The changes that would make it fit, as `instead` finds them; none where it does. Other placements are among
        them where the one that was named leaves room for no smaller request either."""
        if self.fits:
            return []
        named = self.wish.named_parts or not self.wish.chooses
        elsewhere = candidates(False, {}, unified=self.plan.device.unified) if named and not self.lower else ()
        return instead(self.asked, self.room, self._formats, elsewhere, acts=self.origin["frames"] == "chunk")

    def _formats(self, unpacks: bool) -> dict[str, bool]:
        """The quantization formats of the weights that kernels of this device do, and whether these widen them; or
        those that eager torch does."""
        wish, plan = self.wish, self.plan
        found: dict[str, bool] = {}
        if self.model.quantization:
            return found
        for name in plan.meanings if unpacks else formats_of(plan.backend, "pack_linear"):
            formats = {**wish.formats, "pack_linear": name}
            try:
                want = Want.of(self.model.config, plan.dtype, wish.kernels, formats, _policy(wish, self.model))
                want = replace(want, tensor=plan.layout.tensor)
                changed = resolve(want, plan.backend, plan.device)
            except InputError:
                continue
            if changed.unpacks == unpacks:
                found[name] = changed.widens
        return found


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What many requests may share: a model, the plan for it on this machine, and what to tell the user of the
    backend's choice ("" where it was named)."""

    model: Model
    plan: Plan
    why: str


def place_of(wish: Wish) -> tuple[Backend, Device, str]:
    """The backend, its device, which need not be here where the wish names one, and what to tell the user of the
    choice ("" where it was named). Raises InputError."""
    if wish.device is not None:
        return *known_device(wish.device, wish.backend, wish.disabled), ""
    if wish.arch is not None:
        return *described_device(wish.arch, wish.backend, wish.memory, wish.disabled), ""
    return choose_backend(wish.backend, wish.disabled)


def ground_of(wish: Wish, on: tuple[Backend, Device] | None = None) -> Ground:
    """Decide what is no request's; `on` is the backend and its device if the caller has chosen them. Reads JSON files,
    and no weight. Raises InputError for what cannot be met."""
    return _planned(wish, _opened(wish), on)


def settle(wish: Wish, on: tuple[Backend, Device] | None = None, *, ground: Ground | None = None) -> Settled:
    """Decide everything, on the `ground` that the same wish came to before if the caller has it; `on` is as for
    `ground_of`. Reads JSON files, and no weight, and no file before the request's own faults are found. Raises
    InputError for what cannot be met."""
    given = understood(wish.given)
    auto = isinstance(given.get("size"), str) and AUTO.fullmatch(given["size"])
    sized = {key: value for key, value in given.items() if not (auto and key == "size")}
    task = requests.check(sized, wish.profile, wish.suffix, made_for=made_for(wish.model), partial=wish.partial)
    model = ground.model if ground else _opened(wish)
    check_able(task, model.facts)  # before a file is read
    values, followed = (found_in_files if acts(task) else measured)(given, task, wish.profile, model)
    sized |= values
    request, origin = requests.resolve(
        sized,
        wish.profile,
        model.facts,
        wish.pick_seed,
        wish.suffix,
        partial=wish.partial,
        whole=is_whole(wish.given),
    )
    origin |= followed
    check_width(request, model)
    ground = ground or _planned(wish, model, on)
    plan, device = ground.plan, ground.plan.device
    if plan.a16:
        plan.a16.policy.check(request.steps)
    job = replace(_job(request, origin, _guided_steps(request, model, _from_table(wish)), plan), decodes=wish.decodes)
    asked = _counted(model, plan, job, wish.placed)
    plan, asked, room, passed, layout_why, others = _laid_out(wish, model, plan, asked, on)
    plan.require(wish.required, asked.execution.tokens, captured=asked.execution.captured)
    if request.tile is None and (tile := fitting_tile(asked, room)) is not None:
        whole = asked.stage("decode").peak / GIB
        reason = f"plan: whole frames take {whole:.1f} GiB to decode, and the device has {device.memory / GIB:.1f}"
        request, origin = replace(request, tile=tile), origin | {"tile": reason}
    return Settled(
        wish=wish,
        model=model,
        request=request,
        origin=origin,
        plan=plan,
        asked=asked,
        estimate=replace(asked, job=replace(job, tile=request.tile)),
        why=ground.why,
        room=room,
        passed=passed,
        layout_why=layout_why,
        alternatives=others,
    )


class LaidOut(NamedTuple):
    """Fields of `Settled`, `asked` among them: which devices do what of a request, and where its parts lie there."""

    plan: Plan
    asked: Estimate
    room: Room
    passed: tuple[str, ...]
    why: str
    alternatives: tuple[Alternative, ...]


def _laid_out(wish: Wish, model: Model, plan: Plan, asked: Estimate, on: tuple[Backend, Device] | None) -> LaidOut:
    """`asked` on as many devices as are wished for. Raises InputError for what they cannot share."""
    device = plan.device
    anywhere = wish.forecast or wish.started or plan.backend.torch_device == "cpu"
    here = None if anywhere else device.count
    shared, host, others = _shared(asked, plan), _host_memory(wish), list[Alternative]()

    def place(layout: Layout) -> tuple[Estimate, tuple[str, ...], Room]:
        """In this layout, placed if that is to be chosen."""
        room = Room(device.memory, host and host // layout.size, device.unified)  # each process has weights of its own
        if not wish.chooses:
            return replace(asked, layout=layout), (), room
        options = candidates(wish.resident, wish.named_parts, unified=device.unified)
        return *placed(replace(asked, layout=layout), options, room), room

    def pick(devices: int) -> tuple[Layout, str]:
        found, why = shared_out(devices, wish.objective, shared, plan, place)
        others.extend(found[1:])
        return found[0].layout, why

    if (
        wish.parallel
        and mesh.typed(wish.parallel).hsdp > 1
        and all(wish.named_parts.get(tower) == DISK for tower in TOWERS)
    ):
        named = f"`parallel` {wish.parallel} with `placement` {wish.placement}"
        found = "what is read from files is shared out by nobody, so that hsdp would change nothing"
        raise InputError(named, found, "Drop hsdp, or place a tower elsewhere", "parallel")
    layout, layout_why = mesh.settled(wish.parallel, wish.devices, shared, here, pick)
    if wish.started is not None and wish.started != layout.size:
        found = f"the plan is for {layout.size}, as {layout}"
        next_step = f"Add `devices` {wish.started}, or start {layout.size}"
        raise InputError(f"{wish.started} processes of a launcher", found, next_step, "devices")
    if layout.tensor > 1 and wish.parallel is None:
        plan = _planned(replace(wish, parallel=str(layout)), model, on).plan
    estimate, passed, room = place(layout)
    return LaidOut(replace(plan, layout=layout), estimate, room, passed, layout_why, tuple(others))


def _shared(estimate: Estimate, plan: Plan) -> mesh.Shared:
    """What several devices would share."""
    run, config = estimate.execution, estimate.config
    return mesh.Shared(
        branches=[name for one in (*run.guided, *run.control) for name in one.branches],
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        tokens=run.made if run.control else run.tokens,
        rows=run.latent[1],
        splits=lambda count: count == 1 or splits(plan, replace(Want.of(config, plan.dtype), tensor=count)),
    )


def _host_memory(wish: Wish) -> int | None:
    """What the host has free. Of a forecast's nothing is known but what is said."""
    return wish.host_memory if wish.host_memory is not None or wish.forecast else free_memory()


def _counted(model: Model, plan: Plan, job: Job, placement: Placement) -> Estimate:
    a16 = plan.a16
    return Estimate(
        config=model.config,
        vae=model.vae,
        job=job,
        dtype=plan.dtype,
        formats=plan.formats,
        placement=placement,
        tuning=plan.tuning,
        known=plan.meanings,
        unpacks=plan.unpacks,
        widens=plan.widens,
        rounds=plan.rounds,
        repeats=plan.repeats,
        unified=plan.device.unified,
        packed=plan.packed,
        policy=a16.policy if a16 else None,
        modules=model.quantization.modules if model.quantization else None,
        a16=a16.formats if a16 else {},
        a16_unpacks=a16 is not None and a16.eager,
        a16_widens=a16 is not None and a16.widens,
    )


def _from_table(wish: Wish) -> bool:
    return wish.described and wish.revision is None


def _opened(wish: Wish) -> Model:
    with about("model"):
        return describe(wish.model) if _from_table(wish) else open_model(wish.model, wish.revision)


def _planned(wish: Wish, model: Model, on: tuple[Backend, Device] | None) -> Ground:
    with about("backend"):
        backend, device, why = (*on, "") if on else place_of(wish)
    if wish.memory is not None:
        device = replace(device, memory=wish.memory)
    if wish.memory_limit is not None:
        if wish.memory_limit > device.memory:
            asked, found = f"`memory_limit` {gib(wish.memory_limit)}", f"{device.name} has {gib(device.memory)}"
            raise InputError(asked, f"{found}, so that it would change nothing", "Drop it, or give less")
        device = replace(device, memory=wish.memory_limit)
    want = Want.of(model.config, wish.dtype or model.dtype, wish.kernels, wish.formats, _policy(wish, model))
    want = replace(want, tensor=mesh.typed(wish.parallel).tensor if wish.parallel else 1)
    if model.quantization:
        want = _as_packed(want, model.name, model.quantization.formats)
    return Ground(model=model, plan=resolve(want, backend, device), why=why)


def _policy(wish: Wish, model: Model) -> StepPolicy | None:
    """The one that is named, or the checkpoint's. Raises InputError."""
    if wish.high_precision_steps is not None:
        return StepPolicy.typed(wish.high_precision_steps)
    return model.quantization.steps if model.quantization else None


def _as_packed(want: Want, name: str, held: Sequence[str]) -> Want:
    """What a checkpoint whose layers' weights are in the formats `held` asks of the device. Raises InputError where
    another is asked for."""
    asked = want.formats.get("pack_linear")
    if asked is not None and [asked] != list(held):
        found = f"the weights of {name} are in {' and '.join(held) or '16 bits, and others quantized,'} already"
        next_step = "Leave `format` out, or name the checkpoint that is not quantized"
        raise InputError(f"`format` pack_linear={asked}", found, next_step, "format")
    if not held:
        return want
    return replace(want, formats={**want.formats, "pack_linear": held[0]}, packed=True, others=tuple(held[1:]))


def _guided_steps(request: requests.Request, model: Model, described: bool) -> tuple[Sequence[int], Sequence[int]]:
    """Which steps run with guidance, and which with control guidance, counted from 0. InputError where the model's
    scheduler_config.json describes no schedule; a model of the table has none of its own."""
    kinds = (
        (NEGATIVE in branches_of(request.guidance), request.guidance_interval),
        (request.control_guidance != 1, request.control_guidance_interval),
    )
    if described and all(interval is None for _, interval in kinds):
        found = [range(request.steps if used else 0) for used, _ in kinds]
        return found[0], found[1]
    # Torch and diffusers take seconds to import, which a plan mostly does without.
    from ..sampling.guidance import inside
    from ..sampling.solver import solver_of

    timesteps = solver_of(request, model).timesteps
    text, control = (
        [
            index
            for index, timestep in enumerate(timesteps)
            if used and (interval is None or inside(interval, timestep, request.interval_ends))
        ]
        for used, interval in kinds
    )
    return text, control


def _job(
    request: requests.Request, origin: dict[str, str], guided: tuple[Sequence[int], Sequence[int]], plan: Plan
) -> Job:
    """The numbers of a request, with a guess at how long its texts are."""
    a16 = set(plan.a16.policy.a16_steps(request.steps)) if plan.a16 else set[int]()
    stock, chunks, first = origin["negative_prompt"].startswith("checkpoint"), request.chunks, request.of_chunk(0)
    return Job(
        width=request.width,
        height=request.height,
        frames=first.frames,
        steps=request.steps,
        guidance=request.guidance,
        guided_steps=len(guided[0]),
        prompt_tokens=PROMPT_TOKENS,
        negative_tokens=STOCK_NEGATIVE_TOKENS if stock else SHORT_NEGATIVE_TOKENS,
        input_frames=first.conditioning_pixel_frames,
        tile=request.tile,
        fps=request.fps,
        sound=request.sound,
        sound_length=request.sound_length,
        other_tokens=request.other_tokens,
        controls=request.controls,
        control_guidance=request.control_guidance,
        control_steps=len(guided[1]),
        a16_steps=len(a16),
        a16_guided_steps=len(a16.intersection(guided[0])),
        a16_control_steps=len(a16.intersection(guided[1])),
        weighted=request.control_attention == "weighted",
        chunks=chunks.count,
        audio=request.audio is not None,
        canvas=request.canvas,
    )
