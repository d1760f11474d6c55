"""What a run did, as JSON: written beside every output and into the file itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import parse_json
from ..contract import InputError
from ..files.checkout import build_version
from ..files.outputs import read_metadata
from ..files.sources import check_source
from ..plan.cost.units import ceiling_of
from ..scenarios.action import acts, layout_of
from ..scenarios.defaults import profile_source
from ..scenarios.families import TASKS
from . import saved
from .memory import peak_device_memory, peak_host_memory

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..sampling.state import State
    from ..settle import Settled

KEY = "cosmos3"
"""The metadata key in an mp4 or PNG."""
LARGEST = 4 << 20
"""Bytes of a manifest's file. The longest prompts make it some 500 KB."""
LIBRARIES = ("tokenizers", "safetensors", "av")


def now() -> str:
    """The time, as manifests state it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def resolved(settled: Settled, named: str) -> dict[str, Any]:
    """What is settled before a weight is read; also what `--dry-run` prints. `named` says why this backend, where it
    was not chosen here."""
    model, request, plan, execution = settled.model, settled.request, settled.plan, settled.execution
    sound = execution.sound
    profile = settled.wish.profile
    text, media = _layers(settled)
    return {
        "cosmos3": build_version(),
        "started": now(),
        "model": {
            "name": model.name,
            "revision": model.repository.revision,
            "variant": model.facts.variant,
        }
        | ({"quantization": model.quantization.to_json()} if model.quantization else {}),
        "profile": {"name": profile, "source": profile_source(profile)},
        "request": request.to_json() | saved.whole_paths(request),
        "origin": settled.origin,
        "plan": _with_steps(plan.to_json(settled.execution.tokens), settled)
        | {
            "backend_why": settled.why or named,
            "latents": {"vision": [model.config.latent_channel, *execution.latent]}
            | ({"sound": [model.config.sound_dim, sound.frames]} if sound else {})
            | ({"action": [layout_of(request).rows, model.config.action_dim]} if acts(TASKS[request.task]) else {}),
            "high_precision_steps": settled.wish.high_precision_steps,
            "guidance": execution.guidance,
            "execution": asdict(execution),
            "placement": _placement(settled),
            **_parallel(settled),
            "solver_dtype": "float32",
            "dtypes": {
                "understanding": text,
                "generation": media,
                "timestep": "float32",
                "vae": plan.dtype,
                "solver": "float32",
            }
            | ({"sound": plan.dtype} if sound else {}),
        },
        "guardrail": {"requested": False, "effective": False},
    }


def _placement(settled: Settled) -> dict[str, Any]:
    """Where the parts of the model lie, why not where they would cost less time, and what that takes: bytes of the
    host, and seconds in which the device waits for weights (None: unknown)."""
    plan, estimate = settled.plan, settled.estimate
    waiting = estimate.waiting(ceiling_of(plan.backend, plan.device))
    parts = asdict(settled.placement)
    named = sorted(settled.wish.named_parts)
    said = {"named": named, "passed": settled.passed, "host_bytes": estimate.host, "waiting_seconds": waiting}
    return parts | said | {"memory_limit": settled.wish.memory_limit}


def _parallel(settled: Settled) -> dict[str, Any]:
    """How several devices share the run, or why one of them has it alone; nothing where there is one."""
    layout = settled.plan.layout
    if not settled.layout_why:
        return {}
    shared = {"devices": layout.size, "layout": asdict(layout), "why": settled.layout_why}
    if settled.alternatives:
        shared["alternatives"] = [one.to_json() for one in settled.alternatives]
    return {"parallel": shared}


def _with_steps(plan: dict[str, Any], settled: Settled) -> dict[str, Any]:
    """The plan with the steps, counted from 0, in which activations are in 16 bits, if any may be."""
    if (a16 := settled.plan.a16) is None:
        return plan
    return plan | {"a16": plan["a16"] | {"steps": list(a16.policy.a16_steps(settled.request.steps))}}


def _layers(settled: Settled) -> tuple[str, str]:
    """In what the layers of the text tower and of the media tower compute."""
    plan, a16 = settled.plan, settled.plan.a16
    if plan.format == "none":
        return plan.dtype, plan.dtype
    native = f"{plan.dtype}, layers in {plan.format}"
    if a16 is None or plan.format not in a16.formats:
        return native, native
    sixteen = a16.formats[plan.format].name
    steps = a16.policy.a16_steps(settled.request.steps)
    media = f"{native}, in steps {', '.join(map(str, steps))} (from 0) in {sixteen}" if steps else native
    return f"{plan.dtype}, layers in {sixteen}" if a16.policy.in_text else native, media


def seedless(resolved: dict[str, Any]) -> dict[str, Any]:
    """The request and the origins of a run whose noise was given, so that its seed had no effect."""
    origin = resolved["origin"] | {"seed": "no effect: the noise was given"}
    return {"request": resolved["request"] | {"seed": None}, "origin": origin}


def complete(
    resolved: dict[str, Any], engine: Engine, inputs: Inputs, state: State, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """`resolved` with what the run found: token counts, timesteps, its `seconds` per stage and once the decode is done
    in total, peak memory, versions."""
    import torch  # `show` knows the manifest's key and has no need of it

    return resolved | {
        "tokens": {
            "prompt": len(inputs.prompt),
            "negative": len(inputs.negative),
            "media": state.context.packing.length,
        },
        "notes": [*inputs.notes, *engine.notes],
        "timesteps": state.solver.timesteps,
        "seconds": lasted(resolved, seconds),
        "peak_host_memory_bytes": peak_host_memory(),
        "peak_device_memory_bytes": peak_device_memory(engine.target.ops.memory, engine.device),
        # torch's own word has the build, such as +cu130, which its metadata may lack.
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)} | _libraries(),
    }


def lasted(resolved: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
    """A run's `seconds` per stage as a manifest has them, and once the decode is done in total."""
    rounded = {stage: round(count, 4) for stage, count in seconds.items()}
    if any(stage.startswith("decode") for stage in rounded):
        rounded["total"] = round((datetime.now(UTC) - datetime.fromisoformat(resolved["started"])).total_seconds(), 4)
    return rounded


@cache
def _libraries() -> dict[str, str]:
    """What is imported stays what it is: to look it up reads files."""
    return {name: version(name) for name in LIBRARIES}


def read_manifest(name: str, asked: str = "") -> dict[str, Any]:
    """The manifest in an output, or in the .json beside it. `asked` names it in messages. Raises InputError where there
    is none."""
    path, asked = Path(name), asked or f"cosmos3 show {name}"
    next_step = "Pass a picture or clip that cosmos3 run wrote, or the .json beside it"
    text: str | None
    if path.suffix.lower() == ".json":
        check_source(path, asked, next_step)
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
            text = data.decode()
        except (OSError, UnicodeDecodeError) as error:
            found = f"it cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})"
            raise InputError(asked, found, next_step) from None
        if len(data) > LARGEST:
            raise InputError(asked, f"it is larger than {LARGEST >> 20} MiB, which no manifest is", next_step)
    elif (text := read_metadata(path).get(KEY)) is None:
        raise InputError(asked, "it carries no cosmos3 manifest", next_step)
    try:
        manifest = parse_json(text)
    except ValueError:
        manifest = None
    if isinstance(manifest, dict) and "actions" in manifest and isinstance(manifest.get(KEY), dict):
        manifest = manifest[KEY]  # of a table of actions, which carries one as a clip does
    if not isinstance(manifest, dict) or not all(isinstance(manifest.get(key), dict) for key in ("request", "plan")):
        raise InputError(asked, "what it carries is no cosmos3 manifest", next_step)
    return manifest
