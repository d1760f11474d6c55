"""What a run will take, counted from configs alone: bytes by stage, arithmetic, and from a device's ceilings the time.

Everything follows what the code allocates: `engine.engine` for the order of the stages, `model.transformer` with
`reference.ops` for activations, `model.vae` and `model.vae_blocks` for the VAE. Kernels that fuse need less. Nothing
here imports torch, downloads, or reads a weight. Bytes are bytes, areas count latent or pixel positions of one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from ..contract import Backend, Ceiling, Device
from ..model.config import (
    CHUNK_AREA,
    ONE_PASS_TOKENS,
    SPATIAL_COMPRESSION,
    TEMPORAL_COMPRESSION,
    TILE_OVERLAP,
    VAE_DOWN_IN_TIME,
    VAE_PATCHED,
    VAE_WIDTHS,
    TransformerConfig,
)
from ..quant import FORMATS, bytes_per_weight
from ..scenarios.sizes import LARGEST, TIERS

GIB = 1 << 30
NO_FORMATS: Mapping[str, str] = MappingProxyType({})
STOCK_NEGATIVE_TOKENS = 3500
"""The negative prompt that the checkpoints bring: 14 850 characters of JSON."""
RATES = {"float16": "bfloat16", "fp8_block": "fp8"}
"""Dtypes and formats that share another's rate, which is the one that `Ceiling`s list."""
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
TILES = (1024, 768, 512, 384, 256, 192, 128)
"""Tiles to propose, in pixels, largest first: seams are fewer and less is computed twice."""
SHORTEST = 25
"""Fewest frames to propose: about a second of video."""
FP32_COPIES = 16
"""fp32 tensors of the latents' size that live during a step: x and three that the solver remembers, a velocity per
branch and their combination, the five that the solver multiplies and the four that come out."""

NORM_COPIES = 1
"""fp32 tensors of its input's size that the eager `norm_silu` holds."""

OVERHEAD = 0.08
VAE_OVERHEAD = 0.15
OVERHEAD_BYTES = GIB
"""What is taken beyond the tensors: a share by the allocator's blocks and the VAE's convolutions, which ask for
workspaces, and a constant by the device's context and libraries. Measured on one H100 at Nano's size: 3 to 9 % between
allocated and reserved in a step (benchmarks/results/memory-nano-h100.json). Decoding 720p x 189 with the fused norm
(benchmarks.vae) reserved 10.1 GB and allocated 7.5, where the eager norm makes 8.7 of it, which are counted."""
COMPUTE_EFFICIENCY = 0.55
"""Share of the dense peak rate, where a `Ceiling` knows no better: published runs of Cosmos3 reach 0.53 (Nano, B300)
and 0.5 (Super, 8 x H200) of a data sheet's, eager torch on an H100 0.60 to 0.67 of a GEMM's
(benchmarks/results/memory-nano-h100.json)."""
CONVOLUTION_EFFICIENCY = 0.6
"""The same of the VAE's convolutions: 0.70 to 0.71 of a GEMM's rate in decodes of 720p x 189 (5.2 s), 480p x 25 and
256p x 93 on one H100 with the fused norm. A single picture reaches 0.5, the encoder a third."""
BANDWIDTH_EFFICIENCY = 0.7


@dataclass(frozen=True, kw_only=True)
class Job:
    """The numbers of a request. Sizes in pixels; `guided_steps` of the `steps` run both guidance branches, and only if
    there are any is the negative prompt read; `input_frames` pixel frames are encoded first; `tile` is the decode's, in
    pixels (None: whole)."""

    width: int
    height: int
    frames: int
    steps: int
    guided_steps: int
    prompt_tokens: int
    negative_tokens: int
    input_frames: int = 0
    tile: int | None = None

    @property
    def latent(self) -> tuple[int, int, int]:
        """Frames, height and width of the latents."""
        frames = (self.frames - 1) // TEMPORAL_COMPRESSION + 1
        return frames, self.height // SPATIAL_COMPRESSION, self.width // SPATIAL_COMPRESSION

    def tokens(self, patch: int) -> int:
        """Media tokens; an odd latent row or column is padded to a whole patch."""
        frames, height, width = self.latent
        return frames * -(-height // patch) * -(-width // patch)

    @property
    def texts(self) -> tuple[int, ...]:
        """Token counts of the prompts that are read."""
        return (self.prompt_tokens, self.negative_tokens) if self.guided_steps else (self.prompt_tokens,)


# --- the transformer -------------------------------------------------------------------------------------------------


def weights(config: TransformerConfig, vae: Mapping[str, Any], dtype: str, format: str = "none") -> dict[str, int]:
    """Bytes of each component in `dtype`, the decoder layers' matrices in a quantization format, of what a run loads:
    the language head and the text's final norm are not."""
    c, hidden, size = config, config.hidden_size, WIDTH[dtype]
    matrices = (
        (hidden, c.query_width + 2 * c.kv_width),
        (c.query_width, hidden),
        (hidden, (2 if c.gated else 1) * c.intermediate_size),
        (c.intermediate_size, hidden),
    )
    quantized, kept = (
        sum(int(inputs * outputs * weight_bytes(dtype, name, inputs)) for inputs, outputs in matrices)
        for name in (format, "none")
    )
    norms = 2 * hidden
    text_norms = norms + 2 * c.head_dim * c.qk_norm_for_text + c.head_dim * c.und_norm_for_gen
    media = c.kept_layers * kept + (c.num_hidden_layers - c.kept_layers) * quantized
    heads = 2 * hidden * c.patch_dim + hidden + c.patch_dim + hidden
    if c.sound_gen:
        heads += 2 * hidden * c.sound_dim + 2 * hidden + c.sound_dim
    action = 0
    if c.action_gen:
        action = c.num_embodiment_domains * (2 * hidden * c.action_dim + hidden + c.action_dim) + hidden
    return {
        "understanding": c.num_hidden_layers * (quantized + size * text_norms),
        "embedding": size * c.vocab_size * hidden,
        "generation": media + c.num_hidden_layers * size * (norms + 2 * c.head_dim),
        "heads": size * heads,
        "action": size * action,
        "timestep": WIDTH["float32"] * ((256 + 1) * hidden + (hidden + 1) * hidden),
        "vae_encoder": size * _encode(vae, 1, 1, size).parameters,
        "vae_decoder": size * _decode(vae, 1, 1, size).parameters,
    }


def weight_bytes(dtype: str, format: str, inputs: int) -> float:
    """Bytes of one weight of a matrix with so many inputs."""
    return WIDTH[dtype] if format == "none" else bytes_per_weight(FORMATS[format], inputs)


def rate_of(dtype: str, format: str) -> str:
    """What a `Ceiling` calls the rate of products: that of the format where activations are quantized."""
    rate = format if format != "none" and FORMATS[format].activations else dtype
    return RATES.get(rate, rate)


def und_kv_bytes(config: TransformerConfig, tokens: int, dtype: str) -> int:
    """Keys and values that a prompt of so many tokens leaves for generation."""
    return 2 * config.num_hidden_layers * config.kv_width * tokens * WIDTH[dtype]


def layer_bytes(config: TransformerConfig, rows: int, context: int, size: int, branches: int = 1) -> int:
    """Peak of one decoder layer's tensors: `rows` = branches x tokens, each branch attending to `context` + its own.

    Beside the residual stream lie, before the output product, the fused projection (v is a view of it), what is
    rotated, and attention (keys and values concatenated and repeated for every query head); after it what was attended,
    and the fp32 norm or the MLP.
    """
    c = config
    residual = rows * c.hidden_size * size
    heads = rows * (2 * c.query_width + 3 * c.kv_width) * size
    keys = rows // branches + context
    attended = rows * c.query_width * size
    attention = 2 * keys * (c.kv_width + c.query_width) * size + attended
    norm = attended + rows * c.hidden_size * ((2 + c.weight_fp32_norm) * size + 2 * 4)
    up = (2 if c.gated else 1) * c.intermediate_size
    mlp = attended + rows * (c.hidden_size + up) * size
    rotate = rows * c.query_width * 2 * 4
    return residual + max(heads + attention, heads + rotate, norm, mlp)


@dataclass(frozen=True)
class Work:
    """Arithmetic (multiply-add = 2) at a ceiling's `rate`, of which it reaches the share `efficiency` (None: what the
    ceiling says), and bytes read or written once by kernels that fuse what is elementwise."""

    flops: float
    bytes: float
    rate: str
    efficiency: float | None = None

    def seconds(self, ceiling: Ceiling) -> float:
        """At the stated shares of the ceiling. Raises KeyError for a rate that the ceiling does not list."""
        share = self.efficiency or reached(ceiling, self.rate)
        compute = self.flops / (ceiling.tflops[self.rate] * 1e12 * share)
        return max(compute, self.bytes / (ceiling.bandwidth * BANDWIDTH_EFFICIENCY))


def reached(ceiling: Ceiling, rate: str) -> float:
    """The share of the rate that forward passes reach."""
    return ceiling.reached.get(rate, COMPUTE_EFFICIENCY)


def forward_work(
    config: TransformerConfig,
    tokens: int,
    context: int,
    dtype: str,
    *,
    causal: bool = False,
    formats: Mapping[str, str] = NO_FORMATS,
) -> list[Work]:
    """The parts of one pass of one branch through one tower; docs/model.md, section 3.2. The matrices of the media
    tower's first layers are kept in `dtype`, and so is the text's attention, which is the causal one."""
    c, keys = config, tokens / 2 if causal else tokens + context
    linear, attention = formats.get("pack_linear", "none"), "none" if causal else formats.get("attention", "none")
    kept = 0 if causal or linear == "none" else c.kept_layers
    split = ((kept, "none"), (c.num_hidden_layers - kept, linear))
    work = [_linear_work(c, tokens, layers, dtype, name) for layers, name in split if layers]
    work.append(_attention_work(c, tokens, keys, dtype, attention))
    up = (2 if c.gated else 1) * c.intermediate_size
    rows = 8 * c.hidden_size + 2 * (c.query_width + c.kv_width) + up + c.intermediate_size
    bytes_moved = c.num_hidden_layers * WIDTH[dtype] * tokens * rows
    return [*work, Work(0, bytes_moved, rate_of(dtype, "none"))]


def _linear_work(c: TransformerConfig, tokens: int, layers: int, dtype: str, format: str) -> Work:
    projected, up = 2 * c.query_width + 2 * c.kv_width, (2 if c.gated else 1) * c.intermediate_size
    matrices = c.hidden_size * projected + c.hidden_size * (up + c.intermediate_size)
    rows = tokens * (4 * c.hidden_size + projected + up + c.intermediate_size)
    moved = layers * (matrices * weight_bytes(dtype, format, c.hidden_size) + WIDTH[dtype] * rows)
    return Work(2 * layers * tokens * matrices, moved, rate_of(dtype, format))


def _attention_work(c: TransformerConfig, tokens: int, keys: float, dtype: str, format: str) -> Work:
    layers = c.num_hidden_layers
    moved = layers * WIDTH[dtype] * (2 * tokens * c.query_width + 2 * keys * c.kv_width)
    return Work(layers * 4 * c.query_width * tokens * keys, moved, rate_of(dtype, format))


# --- the VAE ---------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Walks the blocks of `model.vae_blocks` over one chunk and counts; `frames` and `area` are those of the map in
    hand. `cache` is what the causal convolutions keep for the next chunk, `entry` the map at a level's start, which is
    added at its end. The `first` frame of a clip is a chunk of its own. Moments that are never the worst are left out.
    """

    size: int
    frames: int
    area: int
    first: bool = False
    parameters: int = 0
    flops: int = 0
    moved: int = 0
    cache: int = 0
    entry: int = 0
    worst: int = 0

    @property
    def peak(self) -> int:
        """Bytes alive at the worst moment: of a later chunk, or of the only frame, for which nothing is kept."""
        return self.worst if self.first else self.cache + self.worst

    def map(self, channels: int) -> int:
        """Bytes of a feature map of so many channels."""
        return channels * self.frames * self.area * self.size

    def padded(self, channels: int) -> int:
        """Bytes of a map behind the two frames before it."""
        return self.map(channels) + (0 if self.first else self.past(channels))

    def past(self, channels: int) -> int:
        return 2 * channels * self.area * self.size

    def alive(self, *tensors: int) -> None:
        """These exist at the same time, and the level's entry."""
        self.worst = max(self.worst, self.entry + sum(tensors))

    def conv(self, inputs: int, outputs: int, taps: int, used: int | None = None) -> None:
        """A kernel of so many `taps`, of which each position of the map in hand multiplies those `used`."""
        used = taps if used is None else used
        self.parameters += inputs * outputs * taps + outputs
        self.flops += 2 * inputs * outputs * used * self.frames * self.area
        self.moved += self.map(inputs) + self.map(outputs) if used else 0

    def causal(self, inputs: int, outputs: int, *held: int) -> None:
        """A 3 x 3 x 3 convolution. Before a clip's first frame there is nothing to multiply."""
        self.conv(inputs, outputs, 27, 9 if self.first else 27)
        self.alive(*held, self.padded(inputs), self.map(outputs))
        self.cache += self.past(inputs)

    def norm(self, channels: int, *held: int) -> None:
        """Norm and SiLU into the convolution's padded input."""
        self.parameters += channels
        temporaries = NORM_COPIES * WIDTH["float32"] * channels * self.frames * self.area
        self.alive(*held, self.map(channels), self.padded(channels), temporaries)

    def resblock(self, inputs: int, outputs: int, residual: int = 0) -> None:
        """`residual`: bytes of what the block before left to this one to add."""
        x = self.map(inputs)
        self.norm(inputs, residual)
        self.causal(inputs, outputs, x)
        self.norm(outputs, x)
        self.causal(outputs, outputs, x)
        if inputs != outputs:
            self.conv(inputs, outputs, 1)

    def level(self, inputs: int, outputs: int, depth: int, *, keeps_entry: bool) -> None:
        self.entry = 0  # the first block's input is the entry
        self.resblock(inputs, outputs)
        self.entry = self.map(inputs) if keeps_entry else 0
        residual = 0 if inputs == outputs else self.map(outputs)  # of equal widths, the entry again
        for _ in range(depth - 1):
            self.resblock(outputs, outputs, residual)
            residual = self.map(outputs)

    def middle(self, channels: int) -> None:
        self.entry = 0
        self.resblock(channels, channels)
        self.parameters += channels
        self.conv(channels, 3 * channels, 1)
        self.conv(channels, channels, 1)
        scores = self.frames * self.area**2
        self.flops += 4 * channels * scores
        self.alive(self.map(8 * channels), 2 * WIDTH["float32"] * scores)  # they and their softmax
        self.resblock(channels, channels)

    def upsample(self, channels: int, in_time: bool) -> None:
        """Twice the rows and columns, by 4 taps for each new position, and twice the frames if `in_time`."""
        sources = self.map(channels)
        if in_time:
            self.conv(channels, 2 * channels, 3, 0 if self.first else 3)
        if in_time and not self.first:
            self.cache += self.past(channels)
            self.frames *= 2
            sources += self.map(channels)
        self.area *= 4
        self.conv(channels, channels, 9, 4)
        self.alive(sources, self.entry, 2 * self.map(channels))  # the entry again, plus the bias

    def downsample(self, channels: int, in_time: bool) -> None:
        """Half the rows and columns, and half the frames if `in_time`; a frame that has no partner gets zeros."""
        averaged = self.entry * (2 if in_time and self.first else 1)
        self.alive(self.map(channels), self.map(channels) // 4, averaged, averaged // 4)
        self.area //= 4
        self.conv(channels, channels, 9)
        if in_time:
            self.frames //= 1 if self.first else 2
            self.conv(channels, channels, 3, 0 if self.first else 3)
            self.cache += self.past(channels) // 2


def _decode(vae: Mapping[str, Any], frames: int, area: int, size: int, first: bool = False) -> _Tally:
    """So many latent frames of `area` positions through the decoder."""
    base = vae.get("decoder_base_dim") or vae["base_dim"]
    widths = [base * n for n in (VAE_WIDTHS[-1], *reversed(VAE_WIDTHS))]
    tally, depth = _Tally(size, frames, area, first), vae.get("num_res_blocks", 2) + 1
    tally.conv(vae["z_dim"], vae["z_dim"], 1)
    tally.causal(vae["z_dim"], widths[0])
    tally.middle(widths[0])
    for inputs, outputs, in_time in zip(widths, widths[1:], (*reversed(VAE_DOWN_IN_TIME), None), strict=False):
        tally.level(inputs, outputs, depth, keeps_entry=in_time is not None)
        if in_time is not None:
            tally.upsample(outputs, in_time)
    tally.norm(widths[-1], tally.map(widths[-1]))
    tally.causal(widths[-1], VAE_PATCHED)
    return tally


def _encode(vae: Mapping[str, Any], frames: int, area: int, size: int, first: bool = False) -> _Tally:
    """So many pixel frames through the encoder, whose latent frames have `area` positions."""
    widths = [vae["base_dim"] * n for n in (1, *VAE_WIDTHS)]
    tally = _Tally(size, frames, area * 4 ** len(VAE_DOWN_IN_TIME), first)
    tally.causal(VAE_PATCHED, widths[0])
    for inputs, outputs, in_time in zip(widths, widths[1:], (*VAE_DOWN_IN_TIME, None), strict=False):
        tally.level(inputs, outputs, vae.get("num_res_blocks", 2), keeps_entry=True)
        if in_time is not None:
            tally.downsample(outputs, in_time)
    tally.middle(widths[-1])
    tally.norm(widths[-1], tally.map(widths[-1]))
    tally.causal(widths[-1], 2 * vae["z_dim"])
    tally.conv(2 * vae["z_dim"], 2 * vae["z_dim"], 1)
    return tally


def _tiles(job: Job) -> tuple[list[int], list[int]]:
    """Heights of the rows and widths of the columns of tiles that are decoded, in latents, the largest first."""
    _, height, width = job.latent
    size = job.tile // SPATIAL_COMPRESSION if job.tile else max(height, width)
    step = int(size * (1 - TILE_OVERLAP)) if max(height, width) > size else size
    rows, columns = ([min(size, side - at) for at in range(0, side, step)] for side in (height, width))
    return rows, columns


def _frames_at_a_time(job: Job) -> int:
    """Latent frames, after the first, that the decoder takes at once."""
    rows, columns = _tiles(job)
    return max(1, CHUNK_AREA // (rows[0] * columns[0]))


def decode_bytes(vae: Mapping[str, Any], job: Job, dtype: str) -> int:
    """Peak of the VAE decode's tensors. Whole frames leave as they are ready. Of tiles, each goes through all frames
    before the next, and the clip waits as bytes, with the edges that the tiles below and beside blend with: on the
    host, which is counted because it may be the device's own memory."""
    size, (rows, columns), (frames, height, width) = WIDTH[dtype], _tiles(job), job.latent
    at_a_time = max(1, min(_frames_at_a_time(job), frames - 1))
    peak = _decode(vae, at_a_time, rows[0] * columns[0], size, first=frames == 1).peak
    peak += vae["z_dim"] * frames * height * width * size
    if job.tile is None:
        return peak
    edges = TILE_OVERLAP * job.tile**2 * (len(columns) + 1) * size
    return peak + int(3 * job.frames * (job.height * job.width + edges))


def encode_bytes(vae: Mapping[str, Any], job: Job, dtype: str) -> int:
    """Peak of encoding `input_frames` of the picture's size, their fp32 pixels included."""
    pixels = WIDTH["float32"] * 3 * job.input_frames * job.height * job.width
    first, (_, height, width) = job.input_frames == 1, job.latent
    return pixels + _encode(vae, 1 if first else TEMPORAL_COMPRESSION, height * width, WIDTH[dtype], first).peak


def decode_work(vae: Mapping[str, Any], job: Job, dtype: str) -> Work:
    """All frames through the decoder, in tiles if the job says so."""
    size, (rows, columns), later = WIDTH[dtype], _tiles(job), job.latent[0] - 1
    chunks = 1 + -(-later // _frames_at_a_time(job))
    flops = moved = 0
    for area in (row * column for row in rows for column in columns):
        parts = _decode(vae, 1, area, size, first=True), _decode(vae, later, area, size)
        flops += sum(part.flops for part in parts)
        moved += sum(part.moved for part in parts) + chunks * size * parts[0].parameters
    return Work(flops, moved, rate_of(dtype, "none"), CONVOLUTION_EFFICIENCY)


def encode_work(vae: Mapping[str, Any], job: Job, dtype: str) -> Work:
    """The input frames through the encoder."""
    size, (_, height, width) = WIDTH[dtype], job.latent
    later = job.input_frames - 1
    parts = _encode(vae, 1, height * width, size, first=True), _encode(vae, later, height * width, size)
    chunks = 1 + later // TEMPORAL_COMPRESSION
    moved = sum(part.moved for part in parts) + chunks * size * parts[0].parameters
    return Work(sum(part.flops for part in parts), moved, rate_of(dtype, "none"), CONVOLUTION_EFFICIENCY)


# --- the run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """What the device holds at the worst moment of one part of a run, in bytes."""

    name: str
    weights: int
    text_kv: int
    latents: int
    activations: int
    overhead: float = OVERHEAD

    @property
    def peak(self) -> int:
        """All of it, with what the allocator holds on top."""
        return self._with_overhead(self.weights + self.text_kv + self.latents + self.activations)

    @property
    def least(self) -> int:
        """What it takes whatever the size of the request."""
        return self._with_overhead(self.weights)

    def _with_overhead(self, tensors: int) -> int:
        return int(tensors * (1 + self.overhead)) + OVERHEAD_BYTES


@dataclass(frozen=True)
class Estimate:
    """Everything counted of one job on one model in the plan's `dtype` and `formats`. `placement` is "sequential" (as
    `cosmos3 run`: text tower, media tower and VAE follow each other on the device) or "resident" (all stay). `step` is
    one guided step's work."""

    config: TransformerConfig
    vae: Mapping[str, Any]
    job: Job
    dtype: str
    formats: Mapping[str, str] = field(default_factory=dict)
    placement: str = "sequential"

    @property
    def branches_in_pass(self) -> int:
        together = self.job.guided_steps and self.job.tokens(self.config.latent_patch_size) <= ONE_PASS_TOKENS
        return 2 if together else 1

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run, named as the progress display names them."""
        c, job, size = self.config, self.job, WIDTH[self.dtype]
        parts = weights(c, self.vae, self.dtype, self.formats.get("pack_linear", "none"))
        tokens, longest = job.tokens(c.latent_patch_size), max(job.texts)
        kv = und_kv_bytes(c, sum(job.texts), self.dtype)
        frames, height, width = job.latent
        latent = 4 * c.latent_channel * frames * height * width
        # cos and sin for the unguided steps, and for the guided ones' branches that are not the same.
        tables = 2 * c.head_dim * tokens * size * (1 + (self.branches_in_pass if job.guided_steps else 0))
        text_tower = parts["understanding"] + parts["embedding"]
        media_tower = parts["generation"] + parts["heads"] + parts["action"] + parts["timestep"]
        step = layer_bytes(c, self.branches_in_pass * tokens, longest, size, self.branches_in_pass)
        decoding = decode_bytes(self.vae, job, self.dtype)
        stages = [
            Stage("read prompts", text_tower, kv, 0, layer_bytes(c, longest, 0, size)),
            Stage("steps", media_tower, kv, FP32_COPIES * latent + tables, step),
            Stage("decode", parts["vae_decoder"], kv, 3 * latent + tables, decoding, VAE_OVERHEAD),
        ]
        if job.input_frames:
            encoding = encode_bytes(self.vae, job, self.dtype)
            stages.insert(1, Stage("encode input", parts["vae_encoder"], kv, 0, encoding, VAE_OVERHEAD))
        if self.placement == "resident":
            stages = [replace(stage, weights=sum(parts.values())) for stage in stages]
        return tuple(stages)

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    def step(self, guided: bool) -> list[Work]:
        """One solver step."""
        tokens, texts = self.job.tokens(self.config.latent_patch_size), self.job.texts if guided else self.job.texts[:1]
        return [
            work for text in texts for work in forward_work(self.config, tokens, text, self.dtype, formats=self.formats)
        ]

    @property
    def parts(self) -> dict[str, list[Work]]:
        """The run's work by stage."""
        job, guided = self.job, self.job.guided_steps
        parts = {
            "read prompts": [
                work
                for tokens in job.texts
                for work in forward_work(self.config, tokens, 0, self.dtype, causal=True, formats=self.formats)
            ],
            "steps": guided * self.step(True) + (job.steps - guided) * self.step(False),
            "decode": [decode_work(self.vae, job, self.dtype)],
        }
        return parts | ({"encode input": [encode_work(self.vae, job, self.dtype)]} if job.input_frames else {})

    def seconds(self, ceiling: Ceiling | None) -> dict[str, float] | None:
        """By stage, with "step" (the slowest kind of step) and "total"; loading is not in it. None where the device's
        ceiling is not known for the dtype or a format."""
        rates = {work.rate for stage in self.parts.values() for work in stage}
        if ceiling is None or not rates <= set(ceiling.tflops):
            return None
        stages = {name: sum(w.seconds(ceiling) for w in work) for name, work in self.parts.items()}
        step = sum(w.seconds(ceiling) for w in self.step(self.job.guided_steps > 0))
        return stages | {"step": step, "total": sum(stages.values())}


@dataclass(frozen=True)
class Change:
    """A smaller request that fits: the options to add, and its estimate."""

    options: str
    estimate: Estimate


def nearest(estimate: Estimate, memory: int, formats: Sequence[str] = ()) -> list[Change]:
    """The changes that make a job fit in `memory` bytes, the least harmful first: the largest tile, the widest of the
    weights' `formats`, the next smaller size, the longest clip; each after the first with a tile if it takes one, and
    the last two in the narrowest format if the weights alone do not fit otherwise. Empty if nothing does."""
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
    """The largest tile with which the decode fits in `memory` bytes; None where whole frames do, or no tile does."""
    for tile in (None, *(tiling["tile"] for tiling in _tilings(estimate.job))):
        tiled = replace(estimate, job=replace(estimate.job, tile=tile))
        if tiled.stages[-1].peak <= memory:
            return tile
    return None


def _widest_first(estimate: Estimate, formats: Sequence[str]) -> list[Estimate]:
    """The job in each of these formats of the weights that is narrower than the one it has."""

    def width(format: str) -> float:
        return weight_bytes(estimate.dtype, format, estimate.config.hidden_size)

    now = width(estimate.formats.get("pack_linear", "none"))
    narrower = sorted((name for name in formats if width(name) < now), key=width, reverse=True)
    return [replace(estimate, formats={**estimate.formats, "pack_linear": name}) for name in narrower]


def _fitting(
    estimate: Estimate, values: Mapping[str, Any], memory: int, tilings: list[dict[str, Any]]
) -> Change | None:
    """The job with these values, with the first of the tilings that it needs, or None."""
    changed = replace(estimate, job=replace(estimate.job, **values))
    if any(stage.peak > memory for stage in changed.stages if stage.name != "decode"):
        return None
    larger_side = max(changed.job.width, changed.job.height)
    for tile in ({}, *(tile for tile in tilings if tile["tile"] < larger_side)):
        tiled = replace(changed, job=replace(changed.job, **tile))
        if tiled.peak <= memory:
            return Change(_options({**values, **tile, **changed.formats}), tiled)
    return None


def _tilings(job: Job) -> list[dict[str, Any]]:
    smaller_than = min(job.tile or LARGEST, max(job.width, job.height))
    return [{"tile": tile} for tile in TILES if tile < smaller_than]


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


def _options(values: Mapping[str, Any]) -> str:
    options = []
    if "pack_linear" in values:
        options.append(f"--format {values['pack_linear']}")
    if "width" in values:
        options.append(f"--size {values['width']}x{values['height']}")
    if "frames" in values:
        options.append(f"--frames {values['frames']}")
    if "tile" in values:
        options.append(f"--tile {values['tile']}")
    return " ".join(options)


def ceiling_of(backend: Backend, device: Device) -> Ceiling | None:
    """What this device can do at most: the entry whose key ends its name, else the one for its architecture.
    None where nothing is known; a relative's numbers would be a guess."""
    by_name = (ceiling for key, ceiling in backend.ceilings.items() if device.name.endswith(key))
    return next(by_name, backend.ceilings.get(device.arch))
