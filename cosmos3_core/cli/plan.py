"""What `cosmos3 plan` prints, which is `cosmos3 run --dry-run`: the request, where its values are from, the kernels,
whether it fits, and how long it will take."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..contract import Backend, Ceiling, Device
from ..plan.cost.fit import LINK_EFFICIENCY, Estimate
from ..plan.cost.nearest import SHORTEST, Change
from ..plan.cost.placing import tiled
from ..plan.cost.stages import OVERHEAD_BYTES, WEIGHTS_OVERHEAD
from ..plan.cost.units import BANDWIDTH_EFFICIENCY, GIB, LINK_RATE, ceiling_of, gib, reached
from ..plan.cost.vae import CONVOLUTION_EFFICIENCY
from ..plan.placement import LAYERED, MEANING, PARTS, STREAMED
from ..quant.steps import A16
from ..scenarios.field import NOT_GIVEN, PROFILE
from ..scenarios.fields import FIELDS
from ..settle import Settled
from .options import flag
from .terminal import console, printable

if TYPE_CHECKING:
    from rich.console import Console

LINKS = (25e9, 64e9, 450e9)
"""Bytes a second for which exchanges are told beside the devices' own link: about 200 Gbit/s of a network, 16 lanes of
PCI Express 5, and an H100's NVLink."""
LONGEST = 60
"""Characters of a text that are shown to a person; --json has it whole."""


NONE_FITS = (
    f"neither a smaller tier of sizes nor a shorter clip, of {SHORTEST} frames or more with all of its inputs, makes "
    "it fit, in any format of the weights (--format) and wherever they lie: ask for less than either, or choose a "
    "smaller model (--model edge) or a larger device"
)
FORECAST = "made without the device, of what its package says of it"
"""What a plan for a device that need not be here is."""
WIDEST = 120
"""Columns of a line; a terminal may have fewer."""


def show(settled: Settled, resolved: Mapping[str, Any], notes: Iterable[str], *, as_json: bool) -> None:
    """Print the report. `resolved` is the first half of the manifest that the run would leave."""
    report = {**resolved, "request": settled.known(), "notes": list(notes), "estimate": _estimate(settled)}
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def _estimate(settled: Settled) -> dict[str, Any]:
    """Bytes, seconds, flops (multiply-add = 2)."""
    plan, estimated = settled.plan, settled.estimate
    job = estimated.job
    step = estimated.step(job.guided_steps > 0)
    run = [work for stage in estimated.parts.values() for work in stage]
    ceiling = ceiling_of(plan.backend, plan.device)
    return {
        "forecast": settled.forecast,
        "fits": settled.fits,
        "lack": settled.lack,
        "tokens": {
            "prompt": job.prompt_tokens,
            "negative": sum(job.texts[1:]),
            "media": estimated.execution.tokens,
            "counted": settled.counted,
        },
        "memory": {
            "device": plan.device.memory,
            "given": settled.wish.memory is not None,
            "peak": estimated.peak,
            "weights": estimated.weights,
            "stages": [asdict(stage) | {"peak": stage.peak} for stage in estimated.stages],
        },
        "nearest": [
            {
                "options": in_options(change),
                "peak": change.estimate.peak,
                "eager": change.estimate.unpacks,
                "placed": "placement" in change.values,
            }
            for change in settled.nearest()
        ],
        "lower": _placed_elsewhere(settled),
        "work": {
            "step_flops": sum(work.flops for work in step),
            "step_bytes": sum(work.bytes for work in step),
            "run_flops": sum(work.flops for work in run),
            "run_bytes": sum(work.bytes for work in run),
        },
        "seconds": estimated.seconds(ceiling),
        "exchange": _exchange(estimated, ceiling),
        "assumed": _assumed(settled, ceiling, {work.rate for work in step}),
    }


def _exchange(estimated: Estimate, ceiling: Ceiling | None) -> dict[str, Any] | None:
    """What a device sends in a step, in bytes, and the seconds of that which are hidden behind its work and which are
    not, by the speed of the link between devices; None of one device."""
    if estimated.layout.size == 1:
        return None
    job = estimated.job
    guided = job.guided_steps > 0, job.control_steps > 0
    sent, found = estimated.exchange(*guided), dict[str, Any]()
    if estimated.seconds(ceiling) is not None and ceiling is not None:
        computes = sum(work.seconds(ceiling) for work in estimated.step(*guided))
        for rate in sorted({*LINKS, ceiling.peers or ceiling.link} - {0.0}):
            hidden, waited = sent.seconds(rate * BANDWIDTH_EFFICIENCY, computes)
            found[f"{rate / 1e9:g} GB/s"] = {"hidden": hidden, "waited": waited}
        found["bubbles"] = estimated.bubbles(*guided, ceiling)
    own = ceiling and (ceiling.peers or ceiling.link)
    return {"waited_bytes": sent.waited, "beside_bytes": sent.beside, "link": own or None, "seconds": found}


def _placed_elsewhere(settled: Settled) -> dict[str, Any] | None:
    """The placement with which the same request fits, where the user has named one with which it does not."""
    if (lower := settled.lower) is None:
        return None
    return {
        "options": f"--placement {lower}",
        "peak": tiled(replace(settled.asked, placement=lower), settled.room).peak,
    }


def in_options(change: Change) -> str:
    """A change that would make it fit, as one types it."""
    return re.sub("`([a-z_]+)`", lambda name: flag(name[1]), str(change))


def _assumed(settled: Settled, ceiling: Ceiling | None, rates: set[str]) -> list[str]:
    """The estimate's assumptions, as sentences without a full stop."""
    prompt, *negative = settled.estimate.job.texts
    texts = f"a prompt of {prompt} tokens" + "".join(f" and a negative one of {count}" for count in negative)
    sentences = [] if settled.counted else [texts]
    overheads = [stage.overhead for stage in settled.estimate.stages]
    beyond = [f"{share:.0%}" for share in sorted({min(overheads), max(overheads)})]
    if settled.plan.layout.size > 1:
        sentences.append(
            "memory is that of one device, and time that of the one that has most to do; of a link between devices "
            f"{BANDWIDTH_EFFICIENCY:.0%} are reached, and exchanges of decoding take no time"
        )
    if settled.forecast:
        sentences.append(_described(settled.plan.backend, settled.plan.device))
    sentences += [
        "activations as eager torch allocates them; kernels that fuse need less",
        f"allocator, context and workspaces take {WEIGHTS_OVERHEAD:.0%} of weights, {' to '.join(beyond)} of the rest "
        f"and {OVERHEAD_BYTES / GIB:g} GiB beyond the tensors (on a CPU, convolutions can take more)",
    ]
    if STREAMED in (settled.placement.understanding, settled.placement.generation):
        known = ceiling and ceiling.link
        rate = f"{LINK_EFFICIENCY:.0%} of {known / 1e9:.1f}" if known else f"{LINK_RATE / 1e9:g}"
        sentences.append(f"layers come from the host at {rate} GB/s" + ("" if known else ", whose link is not known"))
    if ceiling:
        shares = " and ".join(
            f"{reached(ceiling, rate):.0%} of the peak rate in {rate}"
            + (" (measured)" if rate in ceiling.reached else "")
            for rate in sorted(rates | {name for name in ceiling.reached if name.split()[-1] in rates})
        )
        shares += f", {CONVOLUTION_EFFICIENCY:.0%} in the VAE, {BANDWIDTH_EFFICIENCY:.0%} of bandwidth"
        sentences.append(f"{shares} (peaks: {ceiling.source}); loading and downloading are not counted")
    return sentences


def _described(backend: Backend, device: Device) -> str:
    """What is taken of a device that need not be here."""
    if device not in backend.known:
        return f"{device.arch} with the torch and the packages that are installed here"
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    told = f" with {versions}" if versions else ""
    return (
        f"{device.name} as the package of backend {backend.name} describes it{told}; kernel packages as installed here"
    )


def _print(report: dict[str, Any]) -> None:
    screen = console(soft_wrap=True)
    plan, request, memory = report["plan"], report["request"], report["estimate"]["memory"]
    device = plan["device"]
    shared = " (--memory)" if memory["given"] else " shared with the host" if device["unified"] else ""
    decoded = any(stage["name"] == "decode" for stage in memory["stages"])
    tile = f"in tiles of {request['tile']} pixels" if request["tile"] else "in whole frames"
    media = report["estimate"]["tokens"]["media"]
    lines = [
        ("model", f"{report['model']['name']} in {_precision(plan)}"),
        *_quantized(report["model"]),
        (
            "request",
            f"{request['task']} {request['size']}, {request['frames']} frames, {request['steps']} steps, "
            f"guidance {request['guidance']:g}; {media:,} media tokens",
        ),
        *_precisions(plan, request["steps"]),
        *(("values", text) for text in _values(report)),
        ("device", f"{plan['backend']}: {device['name']} ({device['arch']}), {gib(memory['device'])}{shared}"),
        *([("forecast", FORECAST)] if report["estimate"]["forecast"] else []),
        *_parallel(plan),
        *_kernels(plan),
        *((f"refused {refusal['op']} {refusal['name']}", refusal["reason"]) for refusal in plan["refused"]),
        *_placement(plan["placement"]),
        ("decode", tile if decoded else "nothing of the video: its output is something else alone"),
    ]
    tokens = report["estimate"]["tokens"]
    if tokens["counted"]:
        lines.append(("texts", f"{tokens['prompt']} tokens, and {tokens['negative']} of the negative prompt"))
    parts = (f"{name.replace('_', ' ')} {_bytes(count)}" for name, count in memory["weights"].items() if count)
    below = [("weights", ", ".join(parts)), *_verdict(report), *_exchanged(report["estimate"]["exchange"])]
    below += [("assumed", sentence) for sentence in report["estimate"]["assumed"]]
    below += [("note", note) for note in report["notes"]]
    _print_lines(screen, lines)
    screen.print()
    screen.print(_table(memory))
    screen.print()
    _print_lines(screen, below)


def _placement(placed: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the parts of the model lie, why, and what it costs."""
    for way in dict.fromkeys(placed[part] for part in PARTS):
        parts = " and ".join(part for part in PARTS if placed[part] == way)
        yield "placement", f"{parts} {way}: {MEANING[way]}"
    waits = placed["waiting_seconds"]
    if any(placed[part] in LAYERED for part in PARTS):
        costs = "an unknown time" if waits is None else f"about {waits:.3g} s of a run"
        kept = f", and {gib(placed['host_bytes'])} of the host's memory" if placed["host_bytes"] else ""
        yield "placement", f"waiting for layers costs {costs}{kept}"
    yield from (("placement", f"not {passed}") for passed in placed["passed"])


def _parallel(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How several devices share the run."""
    if shared := plan.get("parallel"):
        axes = ", ".join(f"{axis} {degree}" for axis, degree in shared["layout"].items() if degree > 1)
        yield "devices", f"{shared['devices']}{f': {axes}' if axes else ''} ({shared['why']})"


def _exchanged(exchange: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What devices send each other, and how long that takes."""
    if exchange is None:
        return
    waited, beside = (_bytes(int(exchange[name])) for name in ("waited_bytes", "beside_bytes"))
    yield "exchange", f"a device sends {waited} a step that others wait for, and {beside} beside its work"
    for rate, took in exchange["seconds"].items():
        if rate == "bubbles":
            if took:
                yield "bubbles", f"{took:.3g} s a step wait for the pipeline to fill"
            continue
        here = ", these devices'" if exchange["link"] and rate == f"{exchange['link'] / 1e9:g} GB/s" else ""
        yield "exchange", f"at {rate}{here}: {took['waited']:.3g} s a step, and {took['hidden']:.3g} s hidden"


def _kernels(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Which kernels run: by op, inside another one's, for small calls, and for what no format quantizes."""
    yield "kernels", _named(plan["kernels"])
    yield from (("fused", f"{op} is done inside {where}") for op, where in plan["fused"].items())
    yield from _smaller("smaller", plan["below"])
    if plan["kept"]:
        yield "kept", f"{_named(plan['kept'])}, for what no format quantizes"
    yield from _smaller("kept", plan["kept_below"])


def _named(rows: dict[str, str]) -> str:
    return ", ".join(f"{op} {name}" for op, name in rows.items())


def _smaller(name: str, below: dict[str, dict[str, int]]) -> Iterator[tuple[str, str]]:
    for op, rows in below.items():
        yield from ((name, f"{op} {row} for calls of fewer than {count:,} tokens") for row, count in rows.items())


def _print_lines(screen: Console, lines: Iterable[tuple[str, str]]) -> None:
    """Each text beside its name, on as many lines as it takes."""
    width = min(screen.width, WIDEST) if screen.is_terminal else WIDEST
    for name, text in lines:
        indent = " " * (len(f"{name:<10}") + 1)
        screen.print(textwrap.fill(printable(text), width, initial_indent=f"{name:<10} ", subsequent_indent=indent))


def _bytes(count: int) -> str:
    return gib(count) if count >= GIB / 10 else f"{count / (1 << 20):.1f} MiB"


def _values(report: dict[str, Any]) -> list[str]:
    """The fields that the task takes, a text for each place that their values are from."""
    request, found = report["request"], dict[str, list[str]]()
    for name, field in FIELDS.items():
        value, source = request[name], report["origin"][name]
        if request["task"] in field.tasks and not (value is None and source == NOT_GIVEN):
            text = f" {json.dumps(value, ensure_ascii=False)}"
            if value is None:
                text = " none" if source.startswith(PROFILE) else ""  # another source says itself what it stands for
            found.setdefault(source, []).append(name + (text if len(text) <= LONGEST else f"{text[:LONGEST]}..."))
    return [f"{source}: {', '.join(fields)}" for source, fields in found.items()]


def _quantized(model: dict[str, Any]) -> list[tuple[str, str]]:
    """How a quantized checkpoint's modules are packed, and what it asks of the steps."""
    if (said := model.get("quantization")) is None:
        return []
    modules = [f"{module}: {name}" for module, name in said["modules"].items()]
    return [("quantized", f"by {said['dialect']}: {', '.join(modules)}; others in 16 bits")]


def _precisions(plan: dict[str, Any], steps: int) -> list[tuple[str, str]]:
    """Which steps and which tower have their activations in 16 bits, and who says so."""
    if (a16 := plan.get("a16")) is None:
        return []
    policy = a16["policy"]
    parts = [f"steps {_spans(a16['steps'])} of {steps}"] if a16["steps"] else []
    parts += ["the text tower"] if policy["reasoner"] == A16 else []
    rows = " and ".join(f"{name} in {format}" for format, name in a16["kernels"].items())
    why = "" if policy["named"] else ", as the checkpoint asks (--high-precision-steps none: not)"
    where = ", and ".join(parts) or "no step"
    return [("a16", f"{where}: activations in 16 bits by the same weights, pack_linear {rows}{why}")]


def _spans(indices: list[int]) -> str:
    """Steps counted from 0 as people count them, those in a row together: "1 to 3 and 7"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return " and ".join(f"{run[0] + 1} to {run[-1] + 1}" if len(run) > 1 else f"{run[0] + 1}" for run in runs)


def _precision(plan: dict[str, Any]) -> str:
    return ", ".join([plan["dtype"], *(f"{op} in {name}" for op, name in plan["formats"].items())])


def _table(memory: dict[str, Any]) -> Table:
    """GiB by stage."""
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
    estimate = report["estimate"]
    memory, seconds, work = estimate["memory"], estimate["seconds"], estimate["work"]
    flops = f"{_flop(work['step_flops'])} a step, {_flop(work['run_flops'])} in all"
    if seconds is None:
        time = f"unknown: no peak rate is known of {report['plan']['device']['arch']} at {_precision(report['plan'])}"
    else:
        time = f"about {seconds['step']:.3g} s a step, {seconds['total']:.3g} s in all"
    lines = [("work", flops), ("time", time)]
    if estimate["fits"]:
        return [*lines, ("fits", f"yes: {gib(memory['peak'])} at most")]
    lines.append(("fits", f"no: {estimate['lack']}"))
    if lower := estimate["lower"]:
        lines.append(("instead", f"{lower['options']} fits ({gib(lower['peak'])}) in the place of the one you named"))
    for change in estimate["nearest"]:
        slow = ", by eager torch: slowly" if change["eager"] else ""
        instead = " in the place of the placement you named" if change["placed"] else ""
        lines.append(("instead", f"{change['options']} fits ({gib(change['peak'])}{slow}){instead}"))
    if not (lower or estimate["nearest"]):
        lines.append(("instead", NONE_FITS))
    return lines


def _flop(count: float) -> str:
    prefix, scale = next(((p, s) for p, s in (("P", 1e15), ("T", 1e12)) if count >= s), ("G", 1e9))
    return f"{count / scale:.3g} {prefix}FLOP"
