"""The command line of `cosmos3 run` as typed: its options, and what kind each is of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..runs.saved import STAYING
from ..scenarios.fields import FIELDS
from .parallel_options import DEGREES

SHORTHANDS = tuple(field.name for field in FIELDS.values() if field.option)
"""Request fields that have an option of their own."""
REPORT = {name: f"--{name.replace('_', '-')}" for name in ("memory", "host_memory", "device", "arch")}
REPORT |= {"as_json": "--json"}
"""Options of a dry run alone."""
PLACING = ("placement", "resident", "enable_layerwise_offload", "memory_limit")
"""Options that change where weights lie, and nothing that is computed."""
SHARING = ("parallel", "devices", "objective", *DEGREES, "use_hsdp", "picked", "first")
"""Options of several devices, which a run may go on with on another number of them."""
FREE = (
    "output",
    "overwrite",
    "changed",
    "save_latents",
    "save_sound",
    "sound_only",
    "plot",
    "sheet",
    "manifest",
    "tile",
    "resume",
    "dry_run",
    "anyway",
    "disabled",
    *PLACING,
    *SHARING,
    *STAYING,
    *REPORT,
)
"""Options that may stand beside --resume; all others a stopped run has settled. A tile may, because memory may be what
stopped it."""
NAMES = {"prompt": "a prompt", "fields": "--set", "kernels": "--kernel", "formats": "--format"}
"""Of options that are called otherwise here."""


@dataclass(frozen=True)
class Options:
    """The command line, as typed."""

    prompt: str | None
    model: str | None
    revision: str | None
    output: str | None
    overwrite: bool
    task: str | None
    image: str | None
    video: str | None
    keyframe: tuple[str, ...]
    extend: str | None
    video_fps: str | None
    edge: str | None
    blur: str | None
    depth: str | None
    seg: str | None
    wsm: str | None
    control_guidance: float | None
    chunk_frames: int | None
    size: str | None
    frames: int | None
    fps: float | None
    steps: int | None
    guidance: float | None
    shift: float | None
    sound: bool | None
    audio: str | None
    seed: int | None
    negative_prompt: str | None
    tile: int | None
    domain: str | None
    actions: str | None
    history: str | None
    state: str | None
    chunk: int | None
    rollout: int | None
    canvas: str | None
    view: str | None
    action_stats: str | None
    pad_actions: bool | None
    action_rows: str | None
    fields: dict[str, Any]
    request: str | None
    profile: str | None
    backend: str | None
    kernels: dict[str, str]
    formats: dict[str, str]
    high_precision_steps: str | None
    required: dict[str, str]
    dtype: str | None
    latents: str | None
    save_latents: str | None
    save_sound: str | None
    sound_only: bool
    plot: str | None
    sheet: str | None
    resume: str | None
    changed: bool
    manifest: str | None
    dry_run: bool
    placement: str | None
    resident: bool
    enable_layerwise_offload: bool
    memory_limit: float | None
    memory: float | None
    host_memory: float | None
    device: str | None
    arch: str | None
    as_json: bool
    anyway: bool
    disabled: tuple[str, ...]
    parallel: str | None = None
    devices: int | None = None
    objective: str = "latency"
    cfg_parallel_size: int | None = None
    ulysses_degree: int | None = None
    ring_degree: int | None = None
    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    hsdp_shard_size: int | None = None
    vae_patch_parallel_size: int | None = None
    use_hsdp: bool = False
    picked: int | None = None
    first: str | None = None
