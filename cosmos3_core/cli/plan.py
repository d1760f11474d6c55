"""`cosmos3 plan`: will it fit, on which kernels, and how long will it take, before anything is downloaded."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import __version__
from ..contract import Ceiling, InputError
from ..plan.cost.fit import OVERHEAD, OVERHEAD_BYTES, VAE_OVERHEAD, Estimate
from ..plan.cost.units import BANDWIDTH_EFFICIENCY, GIB, ceiling_of, gib, reached
from ..plan.cost.vae import CONVOLUTION_EFFICIENCY
from ..scenarios import request as requests
from ..settle import Settled, Wish, settle


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
    memory = None if options.memory is None else int(options.memory * GIB)
    settled = settle(wish_of(options, memory))
    report = _report(settled)
    if options.as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, settled.why)
    sys.exit(0 if report["fits"] else 1)


def wish_of(options: RequestOptions, memory: int | None = None) -> Wish:
    """What the options ask for, with something in the place of what does not change a request's cost; on a device of so
    many bytes (None: on what is here)."""
    names = ("task", "size", "frames", "steps", "guidance", "tile")
    given = dict(options.fields)
    given |= {key: value for key in names if (value := getattr(options, key)) is not None}
    requests.check_keys(given)
    given.setdefault("task", requests.infer_task(given, None))
    given["prompt"] = "(any)"
    given |= {key: "(any)" for key, task in (("image", "i2v"), ("video", "v2v")) if given["task"] == task}
    return Wish(
        model=options.model,
        described=True,
        given=given,
        profile=options.profile or requests.PROFILES[0],
        backend=options.backend,
        disabled=options.disabled,
        dtype=options.dtype,
        kernels=options.kernels,
        formats=options.formats,
        memory=memory,
    )


def _report(settled: Settled) -> dict[str, Any]:
    """Everything the command knows, as JSON. Bytes, seconds, flops (multiply-add = 2)."""
    model, plan, estimated = settled.model, settled.plan, settled.estimate
    job, execution, memory = estimated.job, estimated.execution, plan.device.memory
    step = estimated.step(job.guided_steps > 0)
    run = [work for stage in estimated.parts.values() for work in stage]
    ceiling = ceiling_of(plan.backend, plan.device)
    keys = ("task", "size", "frames", "steps", "guidance", "tile")
    return {
        "cosmos3": __version__,
        "model": {"name": model.facts.name, "variant": model.facts.variant},
        "request": {key: value for key, value in settled.request.to_json().items() if key in keys},
        "plan": plan.to_json(settled.execution.tokens),
        "placement": execution.placement,
        "tokens": {
            "prompt": job.prompt_tokens,
            "negative": sum(job.texts[1:]),
            "media": execution.tokens,
        },
        "fits": settled.fits,
        "memory": {
            "device": memory,
            "given": settled.wish.memory is not None,
            "peak": estimated.peak,
            "weights": estimated.weights,
            "stages": [asdict(stage) | {"peak": stage.peak} for stage in estimated.stages],
        },
        "nearest": [
            {"options": re.sub("`([a-z]+)`", r"--\1", str(change)), "peak": change.estimate.peak}
            for change in settled.nearest()
        ],
        "work": {
            "step_flops": sum(work.flops for work in step),
            "step_bytes": sum(work.bytes for work in step),
            "run_flops": sum(work.flops for work in run),
            "run_bytes": sum(work.bytes for work in run),
        },
        "seconds": estimated.seconds(ceiling),
        "assumed": _assumed(estimated, ceiling, {work.rate for work in step}),
    }


def _assumed(estimated: Estimate, ceiling: Ceiling | None, rates: set[str]) -> list[str]:
    """The estimate's assumptions, as sentences without a full stop."""
    prompt, *negative = estimated.job.texts
    texts = f"a prompt of {prompt} tokens" + "".join(f" and a negative one of {count}" for count in negative)
    sentences = [
        texts,
        "activations as eager torch allocates them; kernels that fuse need less",
        f"allocator, context and workspaces take {OVERHEAD:.0%}, {VAE_OVERHEAD:.0%} in the VAE, and "
        f"{OVERHEAD_BYTES / GIB:g} GiB beyond the tensors (on a CPU, convolutions can take more)",
    ]
    if ceiling:
        shares = " and ".join(
            f"{reached(ceiling, rate):.0%} of the peak rate in {rate}"
            + (" (measured)" if rate in ceiling.reached else "")
            for rate in sorted(rates)
        )
        shares += f", {CONVOLUTION_EFFICIENCY:.0%} in the VAE, {BANDWIDTH_EFFICIENCY:.0%} of bandwidth"
        sentences.append(f"{shares} (peaks: {ceiling.source}); loading and downloading are not counted")
    return sentences


def _print(report: dict[str, Any], why: str) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    plan, request, memory = report["plan"], report["request"], report["memory"]
    device = plan["device"]
    shared = " (--memory)" if memory["given"] else " shared with the host" if device["unified"] else ""
    tile = f"in tiles of {request['tile']} pixels" if request["tile"] else "in whole frames"
    lines = {
        "model": f"{report['model']['name']} in {_precision(plan)}",
        "request": f"{request['task']} {request['size']}, {request['frames']} frames, {request['steps']} steps, "
        f"guidance {request['guidance']:g}; {report['tokens']['media']:,} media tokens",
        "device": f"{plan['backend']}: {device['name']} ({device['arch']}), {gib(memory['device'])}{shared}",
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
    console.print(_table(report))
    console.print()
    parts = (f"{name.replace('_', ' ')} {gib(count)}" for name, count in memory["weights"].items() if count)
    console.print(f"{'weights':<10} {', '.join(parts)}")
    for name, text in _verdict(report):
        console.print(f"{name:<10} {text}")
    for sentence in report["assumed"]:
        console.print(f"assumed    {sentence}")
    if why:
        print(why, file=sys.stderr)


def _precision(plan: dict[str, Any]) -> str:
    return ", ".join([plan["dtype"], *(f"{op} in {name}" for op, name in plan["formats"].items())])


def _table(report: dict[str, Any]) -> Table:
    """GiB by stage."""
    memory = report["memory"]
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


def _verdict(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines that answer: how long, does it fit, and if not, what would."""
    memory, seconds, work = report["memory"], report["seconds"], report["work"]
    flops = f"{_flop(work['step_flops'])} a step, {_flop(work['run_flops'])} in all"
    if seconds is None:
        time = f"unknown: no peak rate is known of {report['plan']['device']['arch']} at {_precision(report['plan'])}"
    else:
        time = f"about {seconds['step']:.3g} s a step, {seconds['total']:.3g} s in all"
    lines = [("work", flops), ("time", time)]
    if report["fits"]:
        return [*lines, ("fits", f"yes: {gib(memory['peak'])} at most")]
    worst = max(memory["stages"], key=lambda stage: stage["peak"])
    lines.append(("fits", f"no: {worst['name']} takes {gib(worst['peak'])}, and there are {gib(memory['device'])}"))
    for change in report["nearest"]:
        lines.append(("instead", f"{change['options']} fits ({gib(change['peak'])})"))
    if not report["nearest"]:
        lines.append(("instead", "no smaller request of this model fits: choose a smaller model or a larger device"))
    return lines


def _flop(count: float) -> str:
    prefix, scale = next(((p, s) for p, s in (("P", 1e15), ("T", 1e12)) if count >= s), ("G", 1e9))
    return f"{count / scale:.3g} {prefix}FLOP"
