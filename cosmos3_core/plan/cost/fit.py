"""The run: what each stage holds and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from ...contract import Ceiling, Tuning
from ...model.config import SPATIAL_COMPRESSION, TransformerConfig
from ...quant import FORMATS, Format
from ...quant.steps import StepPolicy
from ..execution import Execution
from ..mesh import ALONE, Layout
from ..placement import ALL_STAGED, DISK, LAYERED, RESIDENT, STREAMED, Placement
from . import sound, transformer, vae
from .job import Job
from .several import Exchange, exchanged, merging, of_one, share
from .stages import (
    APART_OVERHEAD,
    EXPANDABLE_APART,
    EXPANDABLE_OVERHEAD,
    EXPANDABLE_ROUNDING,
    EXPANDABLE_VAE,
    OVERHEAD,
    VAE_OVERHEAD,
    Stage,
)
from .transformer import Matrices
from .units import LINK_RATE, WIDTH, Work, peers_of, rate_of

FP32_COPIES = 16
"""fp32 tensors of the latents' size that live during a step: x and three that the solver remembers, a velocity per
branch and their combination, the five that the solver multiplies and the four that come out."""
BUFFERS = 2
"""Layers on the device of a tower whose layers pass through it: one is computed with while the next one arrives."""
HOST_BLOCK = 64 << 20
"""Bytes of a block of host memory for layers. Torch rounds a pinned tensor up to a power of two, so that they lie
across blocks of such a size."""
DISK_RATE = 2e9
"""Bytes a second that come from a disk."""
LINK_EFFICIENCY = 0.85
"""Share of a link's rate that copies of layers reach: 0.83 to 0.88 of an H200's
(benchmarks/results/residency-cards-*-h200.json)."""
TOWERS = {
    "understanding": "understanding",
    "embedding": "understanding",
    "generation": "generation",
    "heads": "generation",
    "action": "generation",
    "timestep": "generation",
}
"""Whose the `Estimate.weights` are; others are codecs'."""


@dataclass(frozen=True)
class Estimate:
    """Everything counted of one job on one model in the plan's `dtype` and `formats`, as it runs with this `placement`
    and `tuning`. `known` is what the names of formats mean; `unpacks`, that eager torch does the products in one;
    `widens`, that a row does them in the dtype; `rounds`, that a row rounds activations for each product; `repeats`,
    that eager torch attends or rotates; `unified`, that media wait in the device's memory, as it is the host's;
    `packed`, that the checkpoint has the weights in their format, and no layer is kept in the dtype; `modules` has that
    of each of its quantized modules, with the groups of the file, None where it is not known. Where a `policy` keeps
    activations in 16 bits, `a16` has by a format's name the one of the same weights with these, and `a16_unpacks` and
    `a16_widens` are as `unpacks` and `widens`. With a `layout` memory is that of one device, and what the others take
    over of a step is done at the same time; what they exchange takes no time."""

    config: TransformerConfig
    vae: Mapping[str, Any]
    job: Job
    dtype: str
    formats: Mapping[str, str] = field(default_factory=dict)
    placement: Placement = ALL_STAGED
    tuning: Tuning = field(default_factory=Tuning)
    known: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    unpacks: bool = False
    widens: bool = False
    rounds: bool = False
    repeats: bool = True
    unified: bool = True
    packed: bool = False
    modules: Mapping[str, Format] | None = None
    policy: StepPolicy | None = None
    a16: Mapping[str, Format] = field(default_factory=dict)
    a16_unpacks: bool = False
    a16_widens: bool = False
    layout: Layout = ALONE

    @cached_property
    def execution(self) -> Execution:
        """How the job runs."""
        return Execution.of(
            self.config,
            self.job,
            self.tuning,
            format=self.format,
            packed=self.packed,
            placement=self.placement,
            policy=self.policy,
            layout=self.layout,
        )

    @cached_property
    def own(self) -> TransformerConfig:
        """The model as one device has it."""
        return of_one(self.config, self.layout)

    @property
    def format(self) -> str:
        """Of the layers' weights."""
        return self.formats.get("pack_linear", "none")

    def _format_of(self, media: bool, i: int, name: str) -> Format | None:
        """That of layer i's matrix in the text tower or the media tower."""
        if self.modules is not None:
            return self.modules.get(f"layers.{i}.{name}")
        kept = media and i < self.execution.kept_layers
        return None if kept else self.known.get(self.format)

    @cached_property
    def _matrices(self) -> dict[bool, list[Matrices]]:
        """Of the text tower's layers (False) and of the media tower's."""
        return {
            media: transformer.matrices(self.own, self.dtype, media, partial(self._format_of, media))
            for media in (False, True)
        }

    @property
    def _codec_dtype(self) -> str:
        return self.tuning.codec_dtype or self.dtype

    @cached_property
    def weights(self) -> dict[str, int]:
        """Bytes of each component that a run may load."""
        towers = transformer.weights(self.own, self.dtype, self._matrices[False], self._matrices[True])
        codec = sound.weights(self.config.sound, self._codec_dtype) if self.job.sound and self.config.sound else {}
        return towers | vae.weights(self.vae, self._codec_dtype) | codec

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run, named as the progress display names them."""
        c, job, run, size = self.own, self.job, self.execution, WIDTH[self.dtype]
        longest = max(job.texts)
        kv = transformer.und_kv_bytes(c, sum(job.texts), self.dtype)
        kv = kv * max(1, c.num_key_value_heads // self.layout.ulysses) // c.num_key_value_heads
        frames, height, width = run.latent
        made = 4 * (c.latent_channel * frames * height * width + (run.sound.frames * c.sound_dim if run.sound else 0))
        latent = made * (1 + len(job.controls))
        # cos and sin for each branch of each kind of pass, in each precision that it has.
        kinds = [a16 for a16, count in ((True, job.a16_steps), (False, job.steps - job.a16_steps)) if count]
        tables = len(kinds) * 2 * c.head_dim * size * sum(one.rows for one in run.passes)
        reading = self._layer_bytes(longest, 0, 1, self._text_a16)
        rows = run.widest * self._own(run.tokens)
        weighted = len(job.controls) if job.weighted else 0
        step = max(self._layer_bytes(rows, longest, run.widest, a16, weighted) for a16 in kinds)
        step += transformer.exchanged_bytes(c, rows, run.widest * run.tokens, self.layout, size)
        step *= len(kinds) if run.captured else 1  # what is captured has memory of its own
        maps = self._codec_dtype, self.tuning.channels_last
        decoding = vae.decode_bytes(self.vae, run.tiling, frames, *maps, self.layout.vae, self.unified)
        convolving = EXPANDABLE_VAE if self.tuning.expandable_segments else VAE_OVERHEAD
        stages = [Stage("read prompts", self._held("understanding"), kv, 0, reading, self._overhead(self._text_a16))]
        if job.encoded:
            clips = max(job.encoded), *maps, self.layout.vae, sum(job.encoded) if self.unified else 0
            encoding = vae.encode_bytes(self.vae, self._input_size, *clips)
            stages.append(Stage("encode input", self._held("vae_encoder"), kv, 0, encoding, convolving))
        elif job.audio and self._codec:  # beside a picture or clip it is less
            stages.append(Stage("encode input", self._held("sound_encoder"), kv, 0, self._codec.worst))
        overhead = max(self._overhead(a16) for a16 in kinds)
        stages.append(Stage("steps", self._held("generation"), kv, FP32_COPIES * latent + tables, step, overhead))
        held = 2 * latent + made + tables
        if self._codec and not job.audio:
            stages.append(Stage("decode sound", self._held("sound_decoder"), kv, held, self._codec.worst))
        if job.decoded:
            stages.append(Stage("decode", self._held("vae_decoder"), kv, held, decoding, convolving))
        return tuple(replace(stage, kept=self._kept) for stage in stages)

    def _held(self, component: str) -> int:
        """What the device holds of weights while a component is used, by its name in `weights`."""
        return sum(self._lying(name, size, component) for name, size in self.weights.items())

    def _lying(self, name: str, size: int, component: str) -> int:
        part = TOWERS.get(name, "codecs")
        way, used = self.placement.of(part), component in (name, part)
        shared = self.layout.hsdp > 1 and way != DISK and name == part
        if shared and way != STREAMED:
            own = size // self.layout.hsdp
            return own + min(size, self._passing(name)) if used else own if way == RESIDENT else 0
        if way == RESIDENT:
            return size
        if way in LAYERED and name == part:
            passing = self._passing(name)
            return min(size, passing + (passing // self.layout.hsdp if shared else 0)) if used else 0
        if way in LAYERED and name == "embedding":
            return 0  # its rows are looked up on the host
        return size if used or way == STREAMED else 0

    def _passing(self, tower: str) -> int:
        """What a tower takes whose layers pass through the device: one is computed with while the next arrives. What is
        read anew is packed there, too."""
        c, media = self.own, tower == "generation"
        largest = transformer.largest_layer(c, self.dtype, media, partial(self._format_of, media))
        packed = self.placement.of(tower) == DISK and self.format != "none"
        return BUFFERS * largest + packed * 2 * WIDTH[self.dtype] * c.hidden_size * c.intermediate_size

    @property
    def layers(self) -> dict[str, int]:
        """Bytes of the layers of each tower of which they pass through the device."""
        towers = dict.fromkeys(TOWERS.values())
        return {name: self.weights[name] for name in towers if self.placement.of(name) in LAYERED}

    @property
    def host(self) -> int:
        """Bytes of the host's memory that weights lie in. Prompts that were read take more of it, where it is free."""
        kept = [size // self.layout.hsdp for name, size in self.layers.items() if self.placement.of(name) == STREAMED]
        table = self.weights["embedding"] if "understanding" in self.layers else 0
        return sum(-(-size // HOST_BLOCK) * HOST_BLOCK for size in kept) + table

    @property
    def _text_a16(self) -> bool:
        return self.policy is not None and self.policy.in_text

    def _layer_bytes(self, rows: int, context: int, branches: int, a16: bool, controls: int = 0) -> int:
        how = replace(self._attending, controls=controls)
        counted = transformer.layer_bytes(self.own, rows, context, WIDTH[self.dtype], branches, how)
        unpacks, widens = self._by(a16)
        if widens:
            counted += transformer.widening_bytes(self.own, rows, self.dtype, rounds=self._quantizes(a16))
        if self.rounds and not a16:
            counted += transformer.rounding_bytes(self.own, rows)
        return counted + (transformer.unpacking_bytes(self.own, rows) if unpacks else 0)

    @property
    def _attending(self) -> transformer.Attending:
        return transformer.Attending(self.repeats, int(self.formats.get("attention", "none") != "none"))

    def _overhead(self, a16: bool) -> float:
        """Of a pass, whose products may make copies of their own."""
        apart, grows = self._by(a16)[1] or (self.rounds and not a16), self.tuning.expandable_segments
        if apart and grows:
            return EXPANDABLE_ROUNDING if self._quantizes(a16) else EXPANDABLE_APART
        return APART_OVERHEAD if apart else EXPANDABLE_OVERHEAD if grows else OVERHEAD

    def _quantizes(self, a16: bool) -> bool:
        """Whether a pass's products have their activations in the format, too."""
        format = self.known.get(self.format)
        return not a16 and format is not None and format.of_inputs is not None

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
        kept = keeping.rows, keeping.tokens, size, 1, self._attending
        working = transformer.layer_bytes(self.own, *kept) if keeping.rows else 0
        maps = self._codec_dtype, self.tuning.channels_last
        encoding = vae.encode_bytes(self.vae, (1, keeping.area), 1, *maps) if keeping.area else 0
        return transformer.und_kv_bytes(self.own, keeping.tokens, self.dtype) + working + encoding

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

    def step(self, guided: bool, controlled: bool = False, a16: bool = False) -> list[Work]:
        """One solver step, with guidance or without, with control guidance or without, and in one of two precisions.
        Of several devices the one that has most to do."""
        run, texts = self.execution, self.job.texts if guided else self.job.texts[:1]
        branches = [self._forward(run.tokens, text, a16, self._attended(text)) for text in texts]
        branches += [self._forward(run.made, self.job.texts[0], a16)] if controlled else []
        return [work for branch in branches[:: self.layout.cfg] for work in branch]

    def _own(self, tokens: int) -> int:
        """How many of a branch's media tokens one device has."""
        return -(-tokens // self.layout.split)

    def _attended(self, context: int) -> tuple[tuple[int, int], ...] | None:
        """(queries, keys) of each of a pass's attentions, where attention goes to one control at a time."""
        job, pair = self.job, 2 * self.execution.made
        return (
            ((self._own(pair), pair + context),) * len(job.controls) if job.weighted and len(job.controls) > 1 else None
        )

    def _by(self, a16: bool) -> tuple[bool, bool]:
        """Whether eager torch does the products, and whether a row widens the weights, in one of two precisions."""
        return (self.a16_unpacks, self.a16_widens) if a16 else (self.unpacks, self.widens)

    def _linears(self, media: bool, a16: bool) -> dict[str, Any]:
        """A tower's matrices, and who multiplies by them, in one of two precisions."""
        (unpacks, widens), held = self._by(a16), self._matrices[media]
        if a16:
            held = [replace(one, format=one.format and self.a16.get(one.format.name, one.format)) for one in held]
        return {"linears": held, "unpacks": unpacks, "widens": widens}

    def _forward(
        self, tokens: int, context: int, a16: bool, attended: tuple[tuple[int, int], ...] | None = None
    ) -> list[Work]:
        merged = Work(0, merging(self.own, self.layout, tokens), rate_of(self.dtype))
        return [merged] * (self.layout.ring > 1) + transformer.forward_work(
            self.own,
            own := self._own(tokens),
            tokens - own + context,
            self.dtype,
            attention=self.known.get(self.formats.get("attention", "none")),
            **self._linears(True, a16),
            attended=attended,
        )

    def _prefill(self, tokens: int) -> list[Work]:
        return transformer.forward_work(
            self.own, tokens, 0, self.dtype, causal=True, **self._linears(False, self._text_a16)
        )

    def _steps(self, a16: bool) -> list[Work]:
        """All solver steps in one of two precisions."""
        job = self.job
        count, guided, controlled = job.a16_steps, job.a16_guided_steps, job.a16_control_steps
        if not a16:
            count, guided, controlled = job.steps - count, job.guided_steps - guided, job.control_steps - controlled
        both, either = min(guided, controlled), max(guided, controlled)  # one interval lies in the other, as a rule
        work = both * self.step(True, True, a16) + (guided - both) * self.step(True, a16=a16)
        return work + (controlled - both) * self.step(False, True, a16) + (count - either) * self.step(False, a16=a16)

    @property
    def parts(self) -> dict[str, list[Work]]:
        """The run's work by stage."""
        job, frames = self.job, self.execution.latent[0]
        parts = {
            "read prompts": [work for tokens in job.texts for work in self._prefill(tokens)],
            "steps": job.chunks * (self._steps(a16=False) + self._steps(a16=True)),
        }
        if job.decoded:
            work = vae.decode_work(self.vae, self.execution.tiling, frames, self._codec_dtype, self.layout.vae)
            parts["decode"] = job.decoded * [work]
        if job.encoded:
            size, among = self._input_size, self.layout.vae
            encoded = [vae.encode_work(self.vae, size, count, self._codec_dtype, among) for count in job.encoded]
            parts["encode input"] = job.chunks * encoded
        if self._codec:
            stage = "encode input" if job.audio else "decode sound"
            parts[stage] = [*parts.get(stage, []), sound.work(self._codec, self._codec_dtype)]
        return parts

    def exchange(self, guided: bool, controlled: bool = False) -> Exchange:
        """What one device sends and receives in a solver step."""
        run, job, layout = self.execution, self.job, self.layout
        tokens = [run.tokens] * (len(job.texts) if guided else 1) + [run.made] * controlled
        passes = len(run.guided if guided else run.unguided) + len(run.control) * controlled
        passes = -(-passes // layout.cfg)  # of one device, which gathers layers and has velocities once in each
        read = self.placement.generation == DISK  # by each for itself
        layers, hidden = 0 if read else self.weights["generation"], self.config.hidden_size
        made = self.config.latent_channel * math.prod(run.latent) + self.config.action_dim * job.other_tokens
        latents = 4 * (made + (self.config.sound_dim * run.sound.frames if run.sound else 0))
        size = WIDTH[self.dtype]
        each = [exchanged(self.own, layout, count, hidden * size, size) for count in tokens[:: layout.cfg]]
        velocities = passes * latents * (layout.cfg - 1 + (layout.pipeline > 1))
        return sum(each, Exchange(velocities, passes * share(layout.hsdp) * layers))

    def bubbles(self, guided: bool, controlled: bool, ceiling: Ceiling) -> float:
        """Seconds of a step in which a device of a pipeline waits for its first rows, and for others' last ones."""
        computes = sum(one.seconds(ceiling) for one in self.step(guided, controlled))
        passes = max(1, -(-(len(self.job.texts if guided else "1") + controlled) // self.layout.cfg))
        return (self.layout.pipeline - 1) * computes / passes

    def _exchanging(self, guided: bool, controlled: bool, ceiling: Ceiling) -> float:
        """Seconds of a step in which a device waits for others."""
        computes = sum(one.seconds(ceiling) for one in self.step(guided, controlled))
        waited = self.exchange(guided, controlled).seconds(peers_of(ceiling), computes)[1]
        return waited + self.bubbles(guided, controlled, ceiling)

    def seconds(self, ceiling: Ceiling | None) -> dict[str, float] | None:
        """By stage, with "step" (the slowest kind of step) and "total"; loading is not in it. None where the device's
        ceiling is not known for the dtype or a format."""
        rates = {work.rate for stage in self.parts.values() for work in stage}
        if ceiling is None or not rates <= set(ceiling.tflops):
            return None
        job, waits = self.job, self._waits(ceiling)
        stages = {name: sum(w.seconds(ceiling) for w in work) for name, work in self.parts.items()}
        stages["read prompts"] *= self.layout.pipeline  # one process after the other
        guided, controlled = job.guided_steps > 0, job.control_steps > 0
        exchanging = self._exchanging(guided, controlled, ceiling)
        stages["steps"] += job.chunks * (waits + job.steps * exchanging)
        kinds = (0 < job.a16_steps,) if job.a16_steps in (0, job.steps) else (False, True)
        slowest = [self.step(guided, controlled, a16) for a16 in kinds]
        step = max(sum(w.seconds(ceiling) for w in kind) for kind in slowest) + waits / job.steps + exchanging
        return stages | {"step": step, "total": sum(stages.values())}

    def _waits(self, ceiling: Ceiling) -> float:
        """Seconds of all steps in which the device has nothing to do, as the next layer has not arrived yet."""
        if "generation" not in self.layers:
            return 0.0
        job, run = self.job, self.execution
        reads = self.placement.generation == DISK
        rate = DISK_RATE if reads else (LINK_EFFICIENCY * ceiling.link or LINK_RATE) * self.layout.hsdp
        crossing = self.layers["generation"] / rate

        def waits(guided: bool) -> float:
            passes = run.guided if guided else run.unguided
            computes = sum(work.seconds(ceiling) for work in self.step(guided))
            return max(0.0, len(passes) * crossing - computes)

        return job.guided_steps * waits(True) + (job.steps - job.guided_steps) * waits(False)

    def waiting(self, ceiling: Ceiling | None) -> float | None:
        """Seconds that the placement costs a run, beyond those of a tower that lies on the device; None where that is
        not known."""
        return None if self.seconds(ceiling) is None or ceiling is None else self.job.chunks * self._waits(ceiling)
