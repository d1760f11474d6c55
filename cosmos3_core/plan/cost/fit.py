"""The run: what each stage holds and how long it takes, whether that fits, and the nearest request that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ...contract import Ceiling, Tuning
from ...model.config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, TransformerConfig
from ...quant import FORMATS, Format
from ...scenarios.branches import branches_of
from ...scenarios.sizes import LARGEST, TIERS
from ...scenarios.sound import DOWN
from ..execution import RESIDENT, SEQUENTIAL, Execution
from . import sound, transformer, vae
from .units import GIB, WIDTH, Work, weight_bytes

TILES = (1024, 768, 512, 384, 256, 192, 128)
"""Tiles to propose, in pixels, largest first: seams are fewer and less is computed twice."""
NO_CHOICE: Mapping[str, bool] = MappingProxyType({})
SHORTEST = 25
"""Fewest frames to propose: about a second of video."""
FP32_COPIES = 16
"""fp32 tensors of the latents' size that live during a step: x and three that the solver remembers, a velocity per
branch and their combination, the five that the solver multiplies and the four that come out."""
OVERHEAD = 0.08
VAE_OVERHEAD = 0.15
OVERHEAD_BYTES = GIB
"""What is taken beyond the tensors: a share by the allocator's blocks and the VAE's convolutions, which ask for
workspaces, and a constant by the device's context and libraries. Measured on one H100 at Nano's size: 3 to 9 % between
allocated and reserved in a step (benchmarks/results/memory-nano-h100.json). Decoding 720p x 189 with the fused norm
(benchmarks.vae) reserved 10.1 GB and allocated 7.5, where the eager norm makes 8.7 of it, which are counted."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The numbers of a request. Sizes in pixels; `guided_steps` of the `steps` run with guidance; `input_frames` pixel
    frames are encoded first; `tile` is the decode's, in pixels (None: whole). `fps` and `sound_length` say how long the
    `sound` is, which is encoded where it is given (`audio`) and decoded where it is not; `other_tokens` are those of
    media besides vision and sound.

    `controls` are the hints of control clips, of as many frames, to each of which attention goes alone if it is
    `weighted`, and `control_steps` of the steps run with control guidance. All of it is done in each of the `chunks`.
    What is encoded has the size of the `canvas`, width and height, if there is one. Where the video itself is not
    wanted (`decodes`), only what a further chunk begins with is decoded.
    """

    width: int
    height: int
    frames: int
    steps: int
    guidance: float
    guided_steps: int
    prompt_tokens: int
    negative_tokens: int
    input_frames: int = 0
    tile: int | None = None
    fps: float = 24.0
    sound: bool = False
    sound_length: str = DOWN
    audio: bool = False
    other_tokens: int = 0
    controls: tuple[str, ...] = ()
    control_guidance: float = 1.0
    control_steps: int = 0
    weighted: bool = False
    chunks: int = 1
    canvas: tuple[int, int] | None = None
    decodes: bool = True

    @property
    def decoded(self) -> int:
        """How often the frames of a chunk are decoded: what the next one begins with, and all of them at the end."""
        return self.chunks - 1 + self.chunks * self.decodes

    @property
    def encoded(self) -> tuple[int, ...]:
        """Pixel frames of each clip that is encoded in a chunk."""
        return (*[self.frames] * len(self.controls), *[self.input_frames] * bool(self.input_frames))

    @property
    def texts(self) -> tuple[int, ...]:
        """Token counts of the prompts that are read."""
        return (self.prompt_tokens, self.negative_tokens)[: len(branches_of(self.guidance))]


@dataclass(frozen=True)
class Stage:
    """What the device holds at the worst moment of one part of a run, in bytes; `kept` is what may be there of earlier
    requests, for the next one."""

    name: str
    weights: int
    text_kv: int
    latents: int
    activations: int
    overhead: float = OVERHEAD
    kept: int = 0

    @property
    def peak(self) -> int:
        """All of it, with what the allocator holds on top."""
        return self._with_overhead(self.weights + self.text_kv + self.latents + self.activations + self.kept)

    @property
    def least(self) -> int:
        """What it takes whatever the size of the request."""
        return self._with_overhead(self.weights)

    def _with_overhead(self, tensors: int) -> int:
        return int(tensors * (1 + self.overhead)) + OVERHEAD_BYTES


@dataclass(frozen=True)
class Estimate:
    """Everything counted of one job on one model in the plan's `dtype` and `formats`, as it runs with this `placement`
    and `tuning`. `known` is what the names of formats mean; `unpacks`, that eager torch does the products in one;
    `widens`, that a row does them in the dtype; `packed`, that the checkpoint has the weights in their format, and no
    layer is kept in the dtype."""

    config: TransformerConfig
    vae: Mapping[str, Any]
    job: Job
    dtype: str
    formats: Mapping[str, str] = field(default_factory=dict)
    placement: str = SEQUENTIAL
    tuning: Tuning = field(default_factory=Tuning)
    known: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    unpacks: bool = False
    widens: bool = False
    packed: bool = False

    @cached_property
    def execution(self) -> Execution:
        """How the job runs."""
        format = "none" if self.packed else self.format
        return Execution.of(self.config, self.job, self.tuning, format=format, placement=self.placement)

    @property
    def format(self) -> str:
        """Of the layers' weights."""
        return self.formats.get("pack_linear", "none")

    @property
    def _meanings(self) -> dict[str, Format]:
        """The formats by op."""
        return {op: self.known[name] for op, name in self.formats.items() if name != "none"}

    @property
    def _codec_dtype(self) -> str:
        return self.tuning.codec_dtype or self.dtype

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each component that a run may load."""
        towers = transformer.weights(
            self.config, self.dtype, self._meanings.get("pack_linear"), self.execution.kept_layers
        )
        codec = sound.weights(self.config.sound, self._codec_dtype) if self.job.sound and self.config.sound else {}
        return towers | vae.weights(self.vae, self._codec_dtype) | codec

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run, named as the progress display names them."""
        c, job, run, size = self.config, self.job, self.execution, WIDTH[self.dtype]
        parts, longest = self.weights, max(job.texts)
        kv = transformer.und_kv_bytes(c, sum(job.texts), self.dtype)
        frames, height, width = run.latent
        made = 4 * (c.latent_channel * frames * height * width + (run.sound.frames * c.sound_dim if run.sound else 0))
        latent = made * (1 + len(job.controls))
        # cos and sin for each branch of each kind of pass.
        tables = 2 * c.head_dim * size * sum(one.rows for one in run.passes)
        text_tower = parts["understanding"] + parts["embedding"]
        media_tower = parts["generation"] + parts["heads"] + parts["action"] + parts["timestep"]
        reading = self._layer_bytes(longest, 0, 1)
        step = self._layer_bytes(run.widest * run.tokens, longest, run.widest)
        decoding = vae.decode_bytes(self.vae, run.tiling, frames, self._codec_dtype)
        stages = [Stage("read prompts", text_tower, kv, 0, reading)]
        if job.encoded:
            encoding = vae.encode_bytes(self.vae, self._input_size, max(job.encoded), self._codec_dtype)
            stages.append(Stage("encode input", parts["vae_encoder"], kv, 0, encoding, VAE_OVERHEAD))
        elif job.audio and self._codec:  # beside a picture or clip it is less
            stages.append(Stage("encode input", parts["sound_encoder"], kv, 0, self._codec.worst))
        stages.append(Stage("steps", media_tower, kv, FP32_COPIES * latent + tables, step))
        held = 2 * latent + made + tables
        if self._codec and not job.audio:
            stages.append(Stage("decode sound", parts["sound_decoder"], kv, held, self._codec.worst))
        if job.decoded:
            stages.append(Stage("decode", parts["vae_decoder"], kv, held, decoding, VAE_OVERHEAD))
        if self.placement == RESIDENT:
            stages = [replace(stage, weights=sum(parts.values()), kept=self._kept) for stage in stages]
        return tuple(stages)

    def _layer_bytes(self, rows: int, context: int, branches: int) -> int:
        counted = transformer.layer_bytes(self.config, rows, context, WIDTH[self.dtype], branches)
        if self.widens:
            counted += transformer.widening_bytes(self.config, rows, self.dtype)
        return counted + (transformer.unpacking_bytes(self.config, rows) if self.unpacks else 0)

    @property
    def _input_size(self) -> tuple[int, int]:
        """Height and width of the latents of what is encoded."""
        if self.job.canvas is None:
            return self.execution.latent[1:]
        return self.job.canvas[1] // SPATIAL_COMPRESSION, self.job.canvas[0] // SPATIAL_COMPRESSION

    @cached_property
    def _kept(self) -> int:
        """Keys and values of prompts, and what captured passes and encodes work in."""
        keeping, size = self.execution.keeping, WIDTH[self.dtype]
        working = transformer.layer_bytes(self.config, keeping.rows, keeping.tokens, size)
        encoding = vae.encode_bytes(self.vae, (1, keeping.area), 1, self._codec_dtype)
        return transformer.und_kv_bytes(self.config, keeping.tokens, self.dtype) + working + encoding

    @cached_property
    def _codec(self) -> sound.Tally | None:
        """The decode of the sound, or the encode of one that is given, if there is sound."""
        size, config = self.execution.sound, self.config.sound
        half = sound.encoder if self.job.audio else sound.decoder
        return half(config, size.frames, WIDTH[self._codec_dtype]) if size and config else None

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError."""
        return {stage.name: stage for stage in self.stages}[name]

    @property
    def peak(self) -> int:
        """Bytes of the stage that takes most."""
        return max(stage.peak for stage in self.stages)

    def step(self, guided: bool, controlled: bool = False) -> list[Work]:
        """One solver step, with guidance or without, and with control guidance or without."""
        run, texts = self.execution, self.job.texts if guided else self.job.texts[:1]
        work = [work for text in texts for work in self._forward(run.tokens, text, self._attended(text))]
        return work + (self._forward(run.made, self.job.texts[0]) if controlled else [])

    def _attended(self, context: int) -> tuple[tuple[int, int], ...] | None:
        """(queries, keys) of each of a pass's attentions, where attention goes to one control at a time."""
        job, pair = self.job, 2 * self.execution.made
        return ((pair, pair + context),) * len(job.controls) if job.weighted and len(job.controls) > 1 else None

    def _forward(self, tokens: int, context: int, attended: tuple[tuple[int, int], ...] | None = None) -> list[Work]:
        return transformer.forward_work(
            self.config,
            tokens,
            context,
            self.dtype,
            formats=self._meanings,
            unpacks=self.unpacks,
            widens=self.widens,
            kept_layers=self.execution.kept_layers,
            attended=attended,
        )

    def _prefill(self, tokens: int) -> list[Work]:
        return transformer.forward_work(
            self.config,
            tokens,
            0,
            self.dtype,
            causal=True,
            formats=self._meanings,
            unpacks=self.unpacks,
            widens=self.widens,
        )

    @property
    def parts(self) -> dict[str, list[Work]]:
        """The run's work by stage."""
        job, guided, frames = self.job, self.job.guided_steps, self.execution.latent[0]
        steps = guided * self.step(True) + (job.steps - guided) * self.step(False)
        steps += job.control_steps * self._forward(self.execution.made, job.texts[0])
        parts = {
            "read prompts": [work for tokens in job.texts for work in self._prefill(tokens)],
            "steps": job.chunks * steps,
        }
        if job.decoded:
            work = vae.decode_work(self.vae, self.execution.tiling, frames, self._codec_dtype)
            parts["decode"] = job.decoded * [work]
        if job.encoded:
            encoded = [vae.encode_work(self.vae, self._input_size, count, self._codec_dtype) for count in job.encoded]
            parts["encode input"] = job.chunks * encoded
        if self._codec:
            stage = "encode input" if job.audio else "decode sound"
            parts[stage] = [*parts.get(stage, []), sound.work(self._codec, self._codec_dtype)]
        return parts

    def seconds(self, ceiling: Ceiling | None) -> dict[str, float] | None:
        """By stage, with "step" (the slowest kind of step) and "total"; loading is not in it. None where the device's
        ceiling is not known for the dtype or a format."""
        rates = {work.rate for stage in self.parts.values() for work in stage}
        if ceiling is None or not rates <= set(ceiling.tflops):
            return None
        stages = {name: sum(w.seconds(ceiling) for w in work) for name, work in self.parts.items()}
        slowest = self.step(self.job.guided_steps > 0, self.job.control_steps > 0)
        step = sum(w.seconds(ceiling) for w in slowest)
        return stages | {"step": step, "total": sum(stages.values())}


@dataclass(frozen=True)
class Change:
    """A smaller request that fits: the `values` that differ, of "format" (of the weights), "width", "height", "frames"
    and "tile", and its estimate. With controls "frames" are those of a chunk."""

    values: Mapping[str, Any]
    estimate: Estimate

    def __str__(self) -> str:
        """As messages write it: `size` 832x480 `tile` 256."""
        values = dict(self.values)
        if "width" in values:
            values["size"] = f"{values.pop('width')}x{values.pop('height')}"
        if "frames" in values and self.estimate.job.controls:
            values["chunk_frames"] = values.pop("frames")
        names = ("format", "size", "frames", "chunk_frames", "tile")
        return " ".join(f"`{name}` {values[name]}" for name in names if name in values)


def nearest(estimate: Estimate, memory: int, formats: Mapping[str, bool] = NO_CHOICE) -> list[Change]:
    """The changes that make a job fit in `memory` bytes, the least harmful first: the largest tile, the widest of the
    weights' `formats`, the next smaller size, the longest clip; each after the first with a tile if it takes one, and
    the last two in the narrowest format if the weights alone do not fit otherwise. Empty if nothing does.

    `formats` say whether a row widens them. That saves memory alone, so of these only such count as are narrower than
    all others."""
    job, widest_first = estimate.job, _widest_first(estimate, formats)
    tiled = _fitting(estimate, {}, memory, _tilings(job))
    quantized = (_fitting(changed, {}, memory, _tilings(job)) for changed in widest_first)
    found = [tiled, next(filter(None, quantized), None)]
    bases = [base for base in (estimate, *widest_first[-1:]) if max(stage.least for stage in base.stages) <= memory]
    for kind in (_sizes(job), _lengths(job)) if bases else ():
        tilings = [] if tiled else _tilings(job)
        fitting = (_fitting(bases[0], values, memory, tilings) for values in kind)
        found.append(next(filter(None, fitting), None))
    return [change for change in found if change]


def fitting_tile(estimate: Estimate, memory: int) -> int | None:
    """The largest tile with which the decode fits in `memory` bytes; None where whole frames do, or no tile does, and
    where nothing is decoded."""
    if not estimate.job.decoded:
        return None
    for tile in (None, *_tiles(estimate.job)):
        tiled = replace(estimate, job=replace(estimate.job, tile=tile))
        if tiled.stage("decode").peak <= memory:
            return tile
    return None


def _widest_first(estimate: Estimate, formats: Mapping[str, bool]) -> list[Estimate]:
    """The job in each of these formats of the weights that is narrower than the one it has."""

    def width(name: str) -> float:
        return weight_bytes(estimate.dtype, estimate.known.get(name), estimate.config.hidden_size)

    now = width(estimate.format)
    least = min((width(name) for name, widens in formats.items() if not widens), default=now)
    narrower = [name for name, widens in formats.items() if width(name) < (min(now, least) if widens else now)]
    return [
        replace(estimate, formats={**estimate.formats, "pack_linear": name}, unpacks=False, widens=formats[name])
        for name in sorted(narrower, key=width, reverse=True)
    ]


def _fitting(estimate: Estimate, values: dict[str, Any], memory: int, tilings: list[dict[str, Any]]) -> Change | None:
    """The job with these values, with the first of the tilings that it needs, or None."""
    changed = replace(estimate, job=replace(estimate.job, **values))
    if any(stage.peak > memory for stage in changed.stages if stage.name != "decode"):
        return None
    larger_side = max(changed.job.width, changed.job.height)
    for tile in ({}, *(tile for tile in tilings if tile["tile"] < larger_side)):
        tiled = replace(changed, job=replace(changed.job, **tile))
        if tiled.peak <= memory:
            format = {} if changed.format == "none" else {"format": changed.format}
            return Change(format | values | tile, tiled)
    return None


def _tiles(job: Job) -> list[int]:
    smaller_than = min(job.tile or LARGEST, max(job.width, job.height))
    return [tile for tile in TILES if tile < smaller_than]


def _tilings(job: Job) -> list[dict[str, Any]]:
    return [{"tile": tile} for tile in _tiles(job)]


def _sizes(job: Job) -> list[dict[str, Any]]:
    """The tiers below the job's size, of the aspect ratio nearest to its."""
    sizes = [tier[_aspect(job)] for tier in TIERS.values()]
    # A tile no smaller than the picture is refused.
    smaller = {size for size in sizes if size[0] * size[1] < job.width * job.height and (job.tile or 0) < max(size)}
    return [{"width": w, "height": h} for w, h in sorted(smaller, reverse=True)]


def _aspect(job: Job) -> str:
    def distance(aspect: str) -> float:
        across, down = map(int, aspect.split(":"))
        return abs(across / down - job.width / job.height)

    return min(TIERS["256"], key=distance)


def _lengths(job: Job) -> list[dict[str, Any]]:
    shortest = max(SHORTEST, job.input_frames + TEMPORAL_COMPRESSION)
    return [
        {"frames": frames} for frames in range(job.frames - TEMPORAL_COMPRESSION, shortest - 1, -TEMPORAL_COMPRESSION)
    ]
