"""`cosmos3 plan`: will it fit, on which kernels, and how long will it take, before anything is downloaded."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..checkpoint.model import Model, describe
from ..contract import Ceiling, InputError
from ..plan import Plan, Want, choose_backend, estimate, resolve
from ..plan.estimate import GIB, Estimate, Job, ceiling_of
from ..plan.resolve import formats_of
from ..scenarios import request as requests
from ..scenarios.facts import ModelFacts

PROMPT_TOKENS = 512
"""A caption of a few sentences with its templates; an upsampled JSON caption has 500 to 2000."""
SHORT_NEGATIVE_TOKENS = 128
"""An empty negative prompt with its templates."""


@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """What decides a request's cost and its plan, as typed."""

    model: str
    task: str | None
    size: str | None
    frames: int | None
    steps: int | None
    guidance: float | None
    tile: int | None
    fields: dict[str, Any]
    profile: str | None
    backend: str | None
    kernels: dict[str, str]
    formats: dict[str, str]
    dtype: str | None
    disabled: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Options(RequestOptions):
    """The command line, as typed; `memory` is in GiB."""

    memory: float | None
    as_json: bool


def execute(options: Options) -> None:
    """Print the plan and the estimate; exit code 1 where it does not fit. Raises InputError."""
    if options.memory is not None and not 0 < options.memory < 1 << 20:
        raise InputError(f"--memory {options.memory:g}", "that is no memory", "Give the device's memory in GiB")
    model = describe(options.model)
    request, origin = request_of(options, model.facts)
    backend, device, why = choose_backend(options.backend, options.disabled)
    if options.memory is not None:
        device = replace(device, memory=int(options.memory * GIB))
    want = Want.of(model.config, options.dtype or model.dtype, options.kernels, options.formats)
    plan = resolve(want, backend, device)
    asked = estimate_of(request, origin, model, plan)
    request, origin = tiled(request, origin, asked, plan)
    estimated = replace(asked, job=replace(asked.job, tile=request.tile))
    told = _told(model, request, plan, estimated, asked, _formats(want, plan), given=options.memory is not None)
    if options.as_json:
        print(json.dumps(told, indent=2))
    else:
        _print(told, why)
    sys.exit(0 if told["fits"] else 1)


def request_of(options: RequestOptions, facts: ModelFacts) -> tuple[requests.Request, dict[str, str]]:
    """The request, with something in the place of what does not change its cost, and where each value is from."""
    names = ("task", "size", "frames", "steps", "guidance", "tile")
    given = dict(options.fields)
    given |= {key: value for key in names if (value := getattr(options, key)) is not None}
    requests.check_keys(given)
    given.setdefault("task", requests.infer_task(given, None))
    given |= {"prompt": "(any)"} | {
        key: "(any)" for key, task in (("image", "i2v"), ("video", "v2v")) if given["task"] == task
    }
    return requests.resolve(given, options.profile or requests.PROFILES[0], facts, pick_seed=lambda: 0)


def job_of(request: requests.Request, origin: dict[str, str], model: Model) -> Job:
    """The numbers of a request, with a guess at how long its texts are."""
    stock = origin["negative_prompt"].startswith("checkpoint")
    return Job(
        width=request.width,
        height=request.height,
        frames=request.frames,
        steps=request.steps,
        guided_steps=_guided_steps(request, model),
        prompt_tokens=PROMPT_TOKENS,
        negative_tokens=estimate.STOCK_NEGATIVE_TOKENS if stock else SHORT_NEGATIVE_TOKENS,
        input_frames=request.conditioning_pixel_frames,
        tile=request.tile,
    )


def estimate_of(request: requests.Request, origin: dict[str, str], model: Model, plan: Plan) -> Estimate:
    return Estimate(model.config, model.vae, job_of(request, origin, model), plan.dtype, plan.formats)


def tiled(
    request: requests.Request, origin: dict[str, str], estimated: Estimate, plan: Plan
) -> tuple[requests.Request, dict[str, str]]:
    """The request with a tile where its frames, by the estimate of it, cannot be decoded whole on this device."""
    memory = plan.device.memory
    if request.tile is not None or (tile := estimate.fitting_tile(estimated, memory)) is None:
        return request, origin
    whole = estimated.stages[-1].peak / GIB
    reason = f"plan: whole frames take {whole:.1f} GiB to decode, and the device has {memory / GIB:.1f}"
    return replace(request, tile=tile), origin | {"tile": reason}


def _guided_steps(request: requests.Request, model: Model) -> int:
    if request.guidance == 1:
        return 0
    if request.guidance_interval is None:
        return request.steps
    from ..engine.passes import solver_of
    from ..sampling.guidance import guided

    timesteps = solver_of(request, model).timesteps
    return sum(guided(request.guidance, request.guidance_interval, timestep) for timestep in timesteps)


def _formats(want: Want, plan: Plan) -> list[str]:
    """The quantization formats of the weights that this device can run."""
    found = []
    for name in formats_of(plan.backend, "pack_linear"):
        try:
            resolve(replace(want, formats={**want.formats, "pack_linear": name}), plan.backend, plan.device)
        except InputError:
            continue
        found.append(name)
    return found


def _told(
    model: Model,
    request: requests.Request,
    plan: Plan,
    estimated: Estimate,
    asked: Estimate,
    formats: list[str],
    *,
    given: bool,
) -> dict[str, Any]:
    """Everything the command knows, as JSON. Bytes, seconds, flops (multiply-add = 2); `asked` is without the tile that
    was chosen here, `formats` are those that the weights could be in, `given` is True where the user set the device's
    memory."""
    job, memory = estimated.job, plan.device.memory
    fits = estimated.peak <= memory
    step = estimated.step(job.guided_steps > 0)
    run = [work for stage in estimated.parts.values() for work in stage]
    ceiling = ceiling_of(plan.backend, plan.device)
    keys = ("task", "size", "frames", "steps", "guidance", "tile")
    return {
        "cosmos3": __version__,
        "model": {"name": model.facts.name, "variant": model.facts.variant},
        "request": {key: value for key, value in request.to_json().items() if key in keys},
        "plan": plan.to_json(),
        "placement": estimated.placement,
        "tokens": {
            "prompt": job.prompt_tokens,
            "negative": sum(job.texts[1:]),
            "media": job.tokens(model.config.latent_patch_size),
        },
        "fits": fits,
        "memory": {
            "device": memory,
            "given": given,
            "peak": estimated.peak,
            "weights": estimate.weights(model.config, model.vae, plan.dtype, plan.formats.get("pack_linear", "none")),
            "stages": [asdict(stage) | {"peak": stage.peak} for stage in estimated.stages],
        },
        "nearest": [
            {"options": change.options, "peak": change.estimate.peak}
            for change in ([] if fits else estimate.nearest(asked, memory, formats))
        ],
        "work": {
            "step_flops": sum(work.flops for work in step),
            "step_bytes": sum(work.bytes for work in step),
            "run_flops": sum(work.flops for work in run),
            "run_bytes": sum(work.bytes for work in run),
        },
        "seconds": estimated.seconds(ceiling),
        "assumed": _assumed(job, ceiling, {work.rate for work in step}),
    }


def _assumed(job: Job, ceiling: Ceiling | None, rates: set[str]) -> list[str]:
    """The estimate's assumptions, as sentences without a full stop."""
    texts = f"a prompt of {job.prompt_tokens} tokens"
    if job.guided_steps:
        texts += f" and a negative one of {job.negative_tokens}"
    sentences = [
        texts,
        "activations as eager torch allocates them; kernels that fuse need less",
        f"allocator, context and workspaces take {estimate.OVERHEAD:.0%}, {estimate.VAE_OVERHEAD:.0%} in the VAE, and "
        f"{estimate.OVERHEAD_BYTES / GIB:g} GiB beyond the tensors (on a CPU, convolutions can take more)",
    ]
    if ceiling:
        shares = " and ".join(
            f"{estimate.reached(ceiling, rate):.0%} of the peak rate in {rate}"
            + (" (measured)" if rate in ceiling.reached else "")
            for rate in sorted(rates)
        )
        shares += (
            f", {estimate.CONVOLUTION_EFFICIENCY:.0%} in the VAE, {estimate.BANDWIDTH_EFFICIENCY:.0%} of bandwidth"
        )
        sentences.append(f"{shares} (peaks: {ceiling.source}); loading and downloading are not counted")
    return sentences


def _print(told: dict[str, Any], why: str) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    plan, request, memory = told["plan"], told["request"], told["memory"]
    device = plan["device"]
    shared = " (--memory)" if memory["given"] else " shared with the host" if device["unified"] else ""
    tile = f"in tiles of {request['tile']} pixels" if request["tile"] else "in whole frames"
    lines = {
        "model": f"{told['model']['name']} in {_precision(plan)}",
        "request": f"{request['task']} {request['size']}, {request['frames']} frames, {request['steps']} steps, "
        f"guidance {request['guidance']:g}; {told['tokens']['media']:,} media tokens",
        "device": f"{plan['backend']}: {device['name']} ({device['arch']}), {_gib(memory['device'])}{shared}",
        "kernels": ", ".join(f"{op} {name}" for op, name in plan["kernels"].items()),
    }
    for refusal in plan["refused"]:
        lines[f"refused {refusal['op']} {refusal['name']}"] = refusal["reason"]
    lines |= {
        "placement": "text tower, media tower and VAE one after the other, as cosmos3 run does",
        "decode": tile,
    }
    for name, text in lines.items():
        console.print(f"{name:<10} {text}")
    console.print()
    console.print(_table(told))
    console.print()
    parts = (f"{name.replace('_', ' ')} {_gib(count)}" for name, count in memory["weights"].items() if count)
    console.print(f"{'weights':<10} {', '.join(parts)}")
    for name, text in _verdict(told):
        console.print(f"{name:<10} {text}")
    for sentence in told["assumed"]:
        console.print(f"assumed    {sentence}")
    if why:
        print(why, file=sys.stderr)


def _precision(plan: dict[str, Any]) -> str:
    return ", ".join([plan["dtype"], *(f"{op} in {name}" for op, name in plan["formats"].items())])


def _table(told: dict[str, Any]) -> Table:
    """GiB by stage."""
    memory = told["memory"]
    table = Table(box=None, pad_edge=False)
    columns = ("weights", "text_kv", "latents", "activations", "peak")
    table.add_column("GiB")
    for name in columns:
        table.add_column("text K/V" if name == "text_kv" else name, justify="right")
    table.add_column(f"of {memory['device'] / GIB:.1f}")
    for stage in memory["stages"]:
        verdict = "fits" if stage["peak"] <= memory["device"] else "does not fit"
        table.add_row(stage["name"], *(f"{stage[name] / GIB:.2f}" for name in columns), verdict)
    return table


def _verdict(told: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines that answer: how long, does it fit, and if not, what would."""
    memory, seconds, work = told["memory"], told["seconds"], told["work"]
    flops = f"{_flop(work['step_flops'])} a step, {_flop(work['run_flops'])} in all"
    if seconds is None:
        time = f"unknown: no peak rate is known of {told['plan']['device']['arch']} at {_precision(told['plan'])}"
    else:
        time = f"about {seconds['step']:.3g} s a step, {seconds['total']:.3g} s in all"
    lines = [("work", flops), ("time", time)]
    if told["fits"]:
        return [*lines, ("fits", f"yes: {_gib(memory['peak'])} at most")]
    worst = max(memory["stages"], key=lambda stage: stage["peak"])
    lines.append(("fits", f"no: {worst['name']} takes {_gib(worst['peak'])}, and there are {_gib(memory['device'])}"))
    for change in told["nearest"]:
        lines.append(("instead", f"{change['options']} fits ({_gib(change['peak'])})"))
    if not told["nearest"]:
        lines.append(("instead", "no smaller request of this model fits: choose a smaller model or a larger device"))
    return lines


def _flop(count: float) -> str:
    prefix, scale = next(((p, s) for p, s in (("P", 1e15), ("T", 1e12)) if count >= s), ("G", 1e9))
    return f"{count / scale:.3g} {prefix}FLOP"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
