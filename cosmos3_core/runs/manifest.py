"""What a run did, as JSON: written beside every output and into the file itself."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..scenarios.request import profile_source
from .memory import peak_device_memory, peak_host_memory

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.inputs import Inputs
    from ..sampling.state import State
    from ..settle import Settled

KEY = "cosmos3"
"""The metadata key in an mp4 or PNG."""
LIBRARIES = ("torch", "diffusers", "tokenizers", "safetensors", "av")


def resolved(settled: Settled, named: str) -> dict[str, Any]:
    """What is settled before a weight is read; also what `--dry-run` prints. `named` says why this backend, where it
    was not chosen here."""
    model, request, plan, execution = settled.model, settled.request, settled.plan, settled.execution
    profile = settled.wish.profile
    towers = plan.dtype if plan.format == "none" else f"{plan.dtype}, layers in {plan.format}"
    return {
        "cosmos3": __version__,
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model": {
            "name": model.name,
            "revision": model.repository.revision,
            "variant": model.facts.variant,
        },
        "profile": {"name": profile, "source": profile_source(profile)},
        "request": request.to_json(),
        "origin": settled.origin,
        "plan": plan.to_json(settled.execution.tokens)
        | {
            "backend_why": settled.why or named,
            "latents": {"vision": [model.config.latent_channel, *execution.latent]},
            "guidance": execution.guidance,
            "execution": asdict(execution),
            "solver_dtype": "float32",
            "dtypes": {
                "understanding": towers,
                "generation": towers,
                "timestep": "float32",
                "vae": plan.dtype,
                "solver": "float32",
            },
        },
        "guardrail": {"requested": False, "effective": False},
    }


def complete(resolved: dict[str, Any], engine: Engine, inputs: Inputs, state: State) -> dict[str, Any]:
    """`resolved` with what the run found: token counts, timesteps, seconds per stage and once the decode is done in
    total, peak memory, versions."""
    seconds = {stage: round(seconds, 4) for stage, seconds in engine.seconds.items()}
    if "decode" in seconds:
        seconds["total"] = round((datetime.now(UTC) - datetime.fromisoformat(resolved["started"])).total_seconds(), 4)
    return resolved | {
        "tokens": {
            "prompt": len(inputs.prompt),
            "negative": len(inputs.negative),
            "media": state.context.packing.length,
        },
        "inputs": resolved.get("inputs", {}) | inputs.facts,
        "notes": list(inputs.notes),
        "timesteps": state.solver.timesteps,
        "seconds": seconds,
        "peak_host_memory_bytes": peak_host_memory(),
        "peak_device_memory_bytes": peak_device_memory(engine.target.ops.memory, engine.device),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }
