"""What a run will take, counted from configs alone: bytes by stage, arithmetic, and from a device's ceilings the time.

Everything follows what the code allocates: `engine.engine` for the order of the stages, `model.transformer` with
`reference.ops` for activations, diffusers' `AutoencoderKLWan` for the VAE. Kernels that fuse need less. Nothing here
imports torch, downloads, or reads a weight. Bytes are bytes, areas count latent or pixel positions of one frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..contract import Backend, Ceiling, Device
from ..model.config import (
    ONE_PASS_TOKENS,
    SPATIAL_COMPRESSION,
    TEMPORAL_COMPRESSION,
    TILE_OVERLAP,
    TransformerConfig,
)
from ..scenarios.sizes import LARGEST, TIERS

GIB = 1 << 30
STOCK_NEGATIVE_TOKENS = 3500
"""The negative prompt that the checkpoints bring: 14 850 characters of JSON."""
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element."""
TILES = (1024, 768, 512, 384, 256, 192, 128)
"""Tiles to propose, in pixels, largest first: seams are fewer and less is computed twice."""
SHORTEST = 25
"""Fewest frames to propose: about a second of video."""
FP32_COPIES = 8
"""fp32 tensors of the latents' size that live during a step: x, two model outputs and the last sample of the solver,
a velocity per branch, their combination and what the solver makes of it."""

OVERHEAD = 0.08
VAE_OVERHEAD = 0.5
OVERHEAD_BYTES = GIB
"""What is taken beyond the tensors: a share by the allocator's blocks, larger in the VAE, whose convolutions ask for
workspaces, and a constant by the device's context and libraries. Measured on one H100 at Nano's size: 3 to 9 % between
allocated and reserved in a step, 46 to 52 % in the decode (benchmarks/results/memory-nano-h100.json)."""
COMPUTE_EFFICIENCY = 0.55
"""Share of the dense peak rate: 0.60 to 0.67 in the same measurement, and published runs of Cosmos3 reach 0.53 (Nano,
B300) and 0.5 (Super, 8 x H200). Small pictures stay below it."""
CONVOLUTION_EFFICIENCY = 0.3
"""The same of the VAE's 3-D convolutions: 0.37 to 0.39 in the same measurement, 0.22 in Nano's published decode on
MI350X."""
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


def weights(config: TransformerConfig, vae: Mapping[str, Any], dtype: str) -> dict[str, int]:
    """Bytes of each component in `dtype`, of what a run loads: the language head and the text's final norm are not."""
    c, hidden, size = config, config.hidden_size, WIDTH[dtype]
    projections = 2 * hidden * c.query_width + 2 * hidden * c.kv_width
    layer = projections + (3 if c.gated else 2) * hidden * c.intermediate_size + 2 * hidden
    text_norms = 2 * c.head_dim * c.qk_norm_for_text + c.head_dim * c.und_norm_for_gen
    heads = 2 * hidden * c.patch_dim + hidden + c.patch_dim + hidden
    if c.sound_gen:
        heads += 2 * hidden * c.sound_dim + 2 * hidden + c.sound_dim
    action = 0
    if c.action_gen:
        action = c.num_embodiment_domains * (2 * hidden * c.action_dim + hidden + c.action_dim) + hidden
    return {
        "understanding": size * c.num_hidden_layers * (layer + text_norms),
        "embedding": size * c.vocab_size * hidden,
        "generation": size * c.num_hidden_layers * (layer + 2 * c.head_dim),
        "heads": size * heads,
        "action": size * action,
        "timestep": WIDTH["float32"] * ((256 + 1) * hidden + (hidden + 1) * hidden),
        "vae_encoder": size * _encode(vae, 1, size).parameters,
        "vae_decoder": size * _decode(vae, 1, size).parameters,
    }


def und_kv_bytes(config: TransformerConfig, tokens: int, dtype: str) -> int:
    """Keys and values that a prompt of so many tokens leaves for generation."""
    return 2 * config.num_hidden_layers * config.kv_width * tokens * WIDTH[dtype]


def layer_bytes(config: TransformerConfig, rows: int, context: int, size: int, branches: int = 1) -> int:
    """Peak of one decoder layer's tensors: `rows` = branches x tokens, each branch attending to `context` + its own.

    The residual pair and q, k, v live through the layer, since v is a view of the fused projection; on top of them come
    attention (keys and values concatenated and repeated for every query head), the fp32 norms, or the MLP.
    """
    c = config
    residual = 2 * rows * c.hidden_size * size
    heads = rows * (2 * c.query_width + 3 * c.kv_width) * size
    keys = rows // branches + context
    attended = rows * c.query_width * size
    attention = 2 * keys * (c.kv_width + c.query_width) * size + attended
    attended *= 1 if branches == 1 else 2
    norm = attended + rows * c.hidden_size * (2 * size + 2 * 4)
    up = (2 if c.gated else 1) * c.intermediate_size
    mlp = attended + rows * (3 * c.hidden_size + up) * size
    rotate = rows * c.query_width * 2 * 4
    return residual + heads + max(attention, norm, mlp, rotate)


@dataclass(frozen=True)
class Work:
    """Arithmetic (multiply-add = 2) and bytes read or written once by kernels that fuse what is elementwise."""

    flops: float
    bytes: float
    efficiency: float = COMPUTE_EFFICIENCY

    def seconds(self, ceiling: Ceiling, dtype: str) -> float:
        """At the stated shares of the ceiling. Raises KeyError for a dtype that the ceiling does not list."""
        compute = self.flops / (ceiling.tflops[dtype] * 1e12 * self.efficiency)
        return max(compute, self.bytes / (ceiling.bandwidth * BANDWIDTH_EFFICIENCY))


def forward_work(
    config: TransformerConfig, tokens: int, context: int, dtype: str, *, causal: bool = False
) -> list[Work]:
    """The parts of one pass of one branch through one tower; spec section 3.2."""
    c, layers, size = config, config.num_hidden_layers, WIDTH[dtype]
    projected = 2 * c.query_width + 2 * c.kv_width
    up = (2 if c.gated else 1) * c.intermediate_size
    matrices = c.hidden_size * projected + c.hidden_size * (up + c.intermediate_size)
    linear = Work(
        2 * layers * tokens * matrices,
        layers * size * (matrices + tokens * (4 * c.hidden_size + projected + up + c.intermediate_size)),
    )
    keys = tokens / 2 if causal else tokens + context
    attention = Work(
        layers * 4 * c.query_width * tokens * keys,
        layers * size * (2 * tokens * c.query_width + 2 * (tokens + context) * c.kv_width),
    )
    rows = 8 * c.hidden_size + 2 * (c.query_width + c.kv_width) + up + c.intermediate_size
    return [linear, attention, Work(0, layers * size * tokens * rows)]


# --- the VAE ---------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Walks a causal 3-D convolution network at one size and counts. `frames` and `area` are those of the map in hand,
    `kept` the bytes of the block's input: its caller holds it, and it a copy for its shortcut. The `first` frame of a
    clip skips the convolutions in time and finds no cache."""

    size: int
    frames: int
    area: int
    first: bool
    parameters: int = 0
    flops: int = 0
    moved: int = 0
    cache: int = 0
    spots: int = 0
    kept: int = 0

    @property
    def peak(self) -> int:
        """Bytes alive at the worst moment."""
        return self.spots if self.first else self.cache + self.spots

    def map(self, channels: int, size: int | None = None) -> int:
        """Bytes of a feature map of so many channels (`size` bytes an element)."""
        return channels * self.frames * self.area * (size or self.size)

    def alive(self, *tensors: int) -> None:
        """These exist at the same time, and what is cached: at the first frame what the layers so far have stored."""
        self.spots = max(self.spots, self.kept + sum(tensors) + (self.cache if self.first else 0))

    def conv(self, inputs: int, outputs: int, taps: int) -> None:
        self.parameters += inputs * outputs * taps + outputs
        self.flops += 2 * inputs * outputs * taps * self.frames * self.area
        self.moved += self.map(inputs) + self.map(outputs)

    def causal(self, inputs: int, outputs: int, held: int = 0) -> None:
        """A 3 x 3 x 3 convolution behind the last two frames of its input, of which it keeps the next two."""
        self.conv(inputs, outputs, 27)
        frame = inputs * self.area * self.size
        cached, padded = frame if self.first else 2 * frame, self.map(inputs) + 2 * frame
        # Behind a cache, the padding copies what the concatenation made.
        joined = 0 if self.first else padded
        self.alive(held, self.map(inputs), cached, padded, max(joined, self.map(outputs)))
        self.cache += cached

    def normed_conv(self, inputs: int, outputs: int, held: int = 0) -> None:
        """Norm, SiLU, causal convolution. Half types are normed in fp32: a copy of the input, and the result."""
        self.parameters += inputs
        self.alive(held, self.map(inputs), self.map(inputs, 8 if self.size == 2 else 12))
        self.causal(inputs, outputs, held)

    def resnet(self, inputs: int, outputs: int, entry: bool = False) -> None:
        """`entry`: the input is the block's own, which `kept` counts."""
        held = 0 if entry else self.map(inputs)
        if inputs != outputs:
            self.conv(inputs, outputs, 1)
            held += self.map(outputs)
        self.normed_conv(inputs, outputs, held)
        self.normed_conv(outputs, outputs, held)

    def middle(self, channels: int) -> None:
        self.kept = self.map(channels)
        self.resnet(channels, channels, entry=True)
        self.parameters += channels
        self.conv(channels, 3 * channels, 1)
        self.conv(channels, channels, 1)
        scores = self.frames * self.area**2
        self.flops += 4 * channels * scores
        # One head of full width is too wide for a fused kernel: its scores and their softmax exist, in fp32.
        self.alive(self.map(8 * channels), 2 * 4 * scores)
        self.resnet(channels, channels)

    def upsample(self, channels: int, temporal: bool) -> None:
        """Twice the rows and columns, and the frames if `temporal`."""
        source = self.map(channels)
        if temporal:
            self._in_time(channels, 2 * channels, kept=0 if self.first else 2)
            self.frames *= 1 if self.first else 2
        reordered = self.map(channels)
        self.area *= 4
        self.alive(source, reordered, self.map(channels), self.map(channels, 4))  # torch interpolates in fp32
        self.conv(channels, channels, 9)
        self.alive(3 * self.map(channels))  # the shortcut: repeated, put in order, added

    def downsample(self, channels: int, temporal: bool) -> None:
        """Half the rows and columns, and the frames if `temporal`."""
        self.area //= 4
        self.conv(channels, channels, 9)
        if temporal:
            self.frames //= 1 if self.first else 2
            self._in_time(channels, channels, kept=1)

    def _in_time(self, inputs: int, outputs: int, kept: int) -> None:
        before = self.flops
        self.conv(inputs, outputs, 3)
        self.flops = before if self.first else self.flops
        self.cache += kept * inputs * self.area * self.size


def _decode(vae: Mapping[str, Any], area: int, size: int, first: bool = False) -> _Tally:
    """One latent frame of `area` positions through the decoder."""
    widths = [vae["decoder_base_dim"] * m for m in (vae["dim_mult"][-1], *reversed(vae["dim_mult"]))]
    doubles = [*reversed(vae["temperal_downsample"]), None]
    tally = _Tally(size, 1, area, first)
    tally.conv(vae["z_dim"], vae["z_dim"], 1)
    tally.causal(vae["z_dim"], widths[0])
    tally.middle(widths[0])
    for inputs, outputs, temporal in zip(widths[:-1], widths[1:], doubles, strict=True):
        tally.kept = 2 * tally.map(inputs)
        tally.resnet(inputs, outputs, entry=True)
        for _ in range(vae["num_res_blocks"]):
            tally.resnet(outputs, outputs)
        if temporal is not None:
            tally.upsample(outputs, temporal)
    tally.kept = 0
    tally.normed_conv(widths[-1], vae["out_channels"])
    return tally


def _encode(vae: Mapping[str, Any], area: int, size: int, first: bool = False) -> _Tally:
    """A clip's first frame, or a later group of 4, through the encoder; its latent frame has `area` positions."""
    widths = [vae["base_dim"] * m for m in (1, *vae["dim_mult"])]
    halves = [*vae["temperal_downsample"], None]
    tally = _Tally(size, 1 if first else TEMPORAL_COMPRESSION, area * 4 ** len(vae["temperal_downsample"]), first)
    tally.causal(vae["in_channels"], widths[0])
    for inputs, outputs, temporal in zip(widths[:-1], widths[1:], halves, strict=True):
        tally.kept = 2 * tally.map(inputs)
        tally.resnet(inputs, outputs, entry=True)
        for _ in range(vae["num_res_blocks"] - 1):
            tally.resnet(outputs, outputs)
        if temporal is not None:
            tally.downsample(outputs, temporal)
    tally.middle(widths[-1])
    tally.kept = 0
    tally.normed_conv(widths[-1], 2 * vae["z_dim"])
    tally.conv(2 * vae["z_dim"], 2 * vae["z_dim"], 1)
    return tally


def _tiles(job: Job) -> Counter[tuple[int, int]]:
    """Height and width, in latents, of the pieces that are decoded, and how many there are of each."""
    _, height, width = job.latent
    if job.tile is None:
        return Counter({(height, width): 1})
    tile = job.tile // SPATIAL_COMPRESSION
    stride = int(job.tile * (1 - TILE_OVERLAP)) // SPATIAL_COMPRESSION
    rows, columns = ([min(tile, side - at) for at in range(0, side, stride)] for side in (height, width))
    return Counter((row, column) for row in rows for column in columns)


def decode_bytes(vae: Mapping[str, Any], job: Job, dtype: str) -> int:
    """Peak of the VAE decode's tensors. Whole frames leave as they are ready. Tiles hold the whole clip: each is
    decoded through all frames before the next, then they are blended, joined and turned to pixels."""
    size, tiles = WIDTH[dtype], _tiles(job)
    frame = _decode(vae, max(height * width for height, width in tiles), size, first=job.frames == 1).peak
    if job.tile is None:
        return frame
    clip = 3 * job.frames * job.height * job.width
    covered = sum(height * width * count for (height, width), count in tiles.items()) * SPATIAL_COMPRESSION**2
    pieces = 3 * job.frames * covered * size
    to_bytes = clip * (size + 8)
    return max(pieces + frame, pieces + 3 * clip * size, to_bytes)


def encode_bytes(vae: Mapping[str, Any], job: Job, dtype: str) -> int:
    """Peak of encoding `input_frames` of the picture's size, their pixels included."""
    size, (_, height, width) = WIDTH[dtype], job.latent
    pixels = 3 * job.input_frames * job.height * job.width * (4 + 2 * size)
    return pixels + _encode(vae, height * width, size, first=job.input_frames == 1).peak


def decode_work(vae: Mapping[str, Any], job: Job, dtype: str) -> Work:
    """All frames through the decoder, in tiles if the job says so."""
    later, total = job.latent[0] - 1, Counter()
    for (height, width), count in _tiles(job).items():
        for frames, first in ((1, True), (later, False)):
            tally = _decode(vae, height * width, WIDTH[dtype], first)
            total["flops"] += count * frames * tally.flops
            total["bytes"] += count * frames * (tally.moved + tally.parameters * WIDTH[dtype])
    return Work(total["flops"], total["bytes"], CONVOLUTION_EFFICIENCY)


def encode_work(vae: Mapping[str, Any], job: Job, dtype: str) -> Work:
    """The input frames through the encoder."""
    _, height, width = job.latent
    first, later = (_encode(vae, height * width, WIDTH[dtype], first=f) for f in (True, False))
    groups = (job.input_frames - 1) // TEMPORAL_COMPRESSION
    return Work(first.flops + groups * later.flops, first.moved + groups * later.moved, CONVOLUTION_EFFICIENCY)


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
    """Everything counted of one job on one model. `placement` is "sequential" (as `cosmos3 run`: text tower, media
    tower and VAE follow each other on the device) or "resident" (all stay). `step` is one guided step's work."""

    config: TransformerConfig
    vae: Mapping[str, Any]
    job: Job
    dtype: str
    placement: str = "sequential"

    @property
    def branches_in_pass(self) -> int:
        together = self.job.guided_steps and self.job.tokens(self.config.latent_patch_size) <= ONE_PASS_TOKENS
        return 2 if together else 1

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run, named as the progress display names them."""
        c, job, size = self.config, self.job, WIDTH[self.dtype]
        parts = weights(c, self.vae, self.dtype)
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
            both = parts["vae_encoder"] + parts["vae_decoder"]
            stages.insert(1, Stage("encode input", both, kv, 0, encode_bytes(self.vae, job, self.dtype), VAE_OVERHEAD))
        if self.placement == "resident":
            stages = [replace(stage, weights=sum(parts.values())) for stage in stages]
        return tuple(stages)

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.stages)

    def step(self, guided: bool) -> list[Work]:
        """One solver step."""
        tokens, texts = self.job.tokens(self.config.latent_patch_size), self.job.texts if guided else self.job.texts[:1]
        return [part for text in texts for part in forward_work(self.config, tokens, text, self.dtype)]

    @property
    def parts(self) -> dict[str, list[Work]]:
        """The run's work by stage."""
        job, guided = self.job, self.job.guided_steps
        parts = {
            "read prompts": [w for n in job.texts for w in forward_work(self.config, n, 0, self.dtype, causal=True)],
            "steps": guided * self.step(True) + (job.steps - guided) * self.step(False),
            "decode": [decode_work(self.vae, job, self.dtype)],
        }
        return parts | ({"encode input": [encode_work(self.vae, job, self.dtype)]} if job.input_frames else {})

    def seconds(self, ceiling: Ceiling | None) -> dict[str, float] | None:
        """By stage, with "step" (the slowest kind of step) and "total"; loading is not in it. None where the device's
        ceiling for the dtype is not known."""
        if ceiling is None or self.dtype not in ceiling.tflops:
            return None
        stages = {name: sum(w.seconds(ceiling, self.dtype) for w in work) for name, work in self.parts.items()}
        step = sum(w.seconds(ceiling, self.dtype) for w in self.step(self.job.guided_steps > 0))
        return stages | {"step": step, "total": sum(stages.values())}


@dataclass(frozen=True)
class Change:
    """A smaller request that fits: the options to add, and its estimate."""

    options: str
    estimate: Estimate


def nearest(estimate: Estimate, memory: int) -> list[Change]:
    """The changes that make a job fit in `memory` bytes, the least harmful first: the largest tile, the next smaller
    size, the longest clip; the latter two with a tile if that alone is not enough. Empty if nothing does."""
    if max(stage.least for stage in estimate.stages) > memory:
        return []
    job = estimate.job
    tiled = _fitting(estimate, {}, memory, _tilings(job))
    found = [tiled]
    for kind in (_sizes(job), _lengths(job)):
        tilings = [] if tiled else _tilings(job)
        fitting = (_fitting(estimate, values, memory, tilings) for values in kind)
        found.append(next(filter(None, fitting), None))
    return [change for change in found if change]


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
            return Change(_options({**values, **tile}), tiled)
    return None


def _tilings(job: Job) -> list[dict[str, Any]]:
    smaller_than = min(job.tile or LARGEST, max(job.width, job.height))
    return [{"tile": tile} for tile in TILES if tile < smaller_than]


def _sizes(job: Job) -> list[dict[str, Any]]:
    """The tiers below the job's size, of the aspect ratio nearest to its."""
    sizes = [tier[_aspect(job)] for tier in TIERS.values()]
    smaller = {size for size in sizes if size[0] * size[1] < job.width * job.height}
    # A tile no smaller than the picture is refused.
    tiles = {size: job.tile if job.tile and job.tile < max(size) else None for size in smaller}
    return [{"width": w, "height": h, "tile": tiles[w, h]} for w, h in sorted(smaller, reverse=True)]


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
    if "width" in values:
        options.append(f"--size {values['width']}x{values['height']}")
    if "frames" in values:
        options.append(f"--frames {values['frames']}")
    if values.get("tile"):
        options.append(f"--tile {values['tile']}")
    return " ".join(options)


def ceiling_of(backend: Backend, device: Device) -> Ceiling | None:
    """What this device can do at most: the entry whose key is part of its name, else the one for its architecture.
    None where nothing is known; a relative's numbers would be a guess."""
    by_name = (ceiling for key, ceiling in backend.ceilings.items() if key in device.name)
    return next(by_name, backend.ceilings.get(device.arch))
