"""How a request runs on a model: which passes a step has, what is captured, how the decode goes through the picture.

Counted from numbers alone, once, and read by the engine, by the estimate and by the manifest. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..contract import Tuning
from ..model.config import SPATIAL_COMPRESSION, Tiling, TransformerConfig, latent_size
from ..quant.steps import StepPolicy
from ..scenarios.branches import NEGATIVE, PROMPT, UNCONTROLLED, branches_of
from ..scenarios.sound import Lasting, SoundSize, sound_size
from .mesh import ALONE, Layout
from .placement import ALL_STAGED, RESIDENT, Placement

TILE_OVERLAP = 0.25
"""Share of a decoded tile that is blended with its neighbour (diffusers' default: 64 of 256 pixels)."""
KEPT_SHARE = 18
"""The linears of one in so many of the media tower's layers, the first ones, are never quantized: most of the error
comes from those, and next to none from attention (benchmarks/results/accuracy-nano-outliers-h100.json). Each takes
0.6% of a pass on an H100. Of Nano's the first two halve the error, and the next two take off a quarter of the rest."""
KEPT_TOKENS = 4096
"""Tokens of the prompts that stay read: the negative prompt that the checkpoints bring, of 3500, and a short one; of
Nano they take 0.6 GB."""

HOST_TOKENS = 8192
"""Tokens of the prompts that stay read in host memory when the device has no room: of Nano they take 1.2 GB."""


@dataclass(frozen=True)
class Keeping:
    """What stays on the device for the next request, beside the weights: the keys and values of prompts of so many
    `tokens` in all, captured passes of so many `rows` in all, and captured encodes of pictures of so many latent
    positions in all (`area`). And on the host, of prompts of so many tokens in all (`host_tokens`)."""

    tokens: int = 0
    rows: int = 0
    area: int = 0
    host_tokens: int = 0


def keeping_of(placement: Placement, tuning: Tuning) -> Keeping:
    """Beside weights that stay as much stays as one request could have; where none stay, nothing does."""
    made, coded = placement.generation == RESIDENT, placement.codecs == RESIDENT
    return Keeping(
        tokens=KEPT_TOKENS if made else 0,
        rows=tuning.capture_rows if made else 0,
        area=tuning.chunk_area if coded else 0,
        host_tokens=HOST_TOKENS if placement.stays else 0,
    )


class Numbers(Lasting, Protocol):
    """What of a request decides how it runs, sizes in pixels; `guidance` and `control_guidance` 1 are none, `controls`
    the hints of its control clips, `tile` None the whole picture, `other_tokens` those of other media than vision."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def guidance(self) -> float: ...

    @property
    def control_guidance(self) -> float: ...

    @property
    def controls(self) -> tuple[str, ...]: ...

    @property
    def tile(self) -> int | None: ...

    @property
    def other_tokens(self) -> int: ...


@dataclass(frozen=True)
class Pass:
    """One forward of the media tower: the branches that run in it as one batch, their media tokens in all (`rows`), and
    whether it is captured and replayed."""

    branches: tuple[str, ...]
    rows: int
    captured: bool


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Decided before a weight is read. `branches` are the texts that are read; `unguided` and `guided` the passes of a
    step without and with guidance, and `control` those that control guidance adds to either; `latent` the latents'
    frames, height and width; `tokens` the media tokens of a branch, control clips included, and `made` those of what is
    made alone, its `sound` included (None: there is none); `kept_layers` how many of the media tower's first layers no
    format quantizes, 0 where there is no format; `keeping` what stays for the next request, and `encode_captured`
    whether that holds the encode of a picture of this size: its kernels are done before the host has launched them.
    `policy` says in which steps activations stay in 16 bits, each kind of pass being one of its own there; None where
    there are none."""

    branches: tuple[str, ...]
    latent: tuple[int, int, int]
    tokens: int
    made: int
    unguided: tuple[Pass, ...]
    guided: tuple[Pass, ...]
    control: tuple[Pass, ...]
    tiling: Tiling
    kept_layers: int
    placement: Placement
    keeping: Keeping
    encode_captured: bool
    sound: SoundSize | None = None
    policy: StepPolicy | None = None

    @classmethod
    def of(
        cls,
        config: TransformerConfig,
        numbers: Numbers,
        tuning: Tuning,
        *,
        format: str = "none",
        packed: bool = False,
        placement: Placement = ALL_STAGED,
        policy: StepPolicy | None = None,
        layout: Layout = ALONE,
    ) -> Execution:
        """`format` is that of the layers' weights; `packed`: a checkpoint has them in it already. Branches that are
        dealt out to devices have passes of their own, and none is captured in which devices exchange anything."""
        frames, height, width = latent = latent_size(numbers.width, numbers.height, numbers.frames)
        patch, branches = config.latent_patch_size, branches_of(numbers.guidance)
        sound = sound_size(numbers, config.sound)
        vision = frames * -(-height // patch) * -(-width // patch)  # an odd row or column is padded to a whole patch
        made = vision + (sound.frames if sound else 0) + numbers.other_tokens
        tokens = made + vision * len(numbers.controls)

        together = tokens <= tuning.one_pass_tokens and layout.cfg * layout.pipeline == 1

        def one(*texts: str) -> Pass:
            rows = sum(made if text == UNCONTROLLED else tokens for text in texts)
            return Pass(texts, rows, placement.captures and rows <= tuning.capture_rows and not layout.exchanges)

        return cls(
            branches=branches,
            latent=latent,
            tokens=tokens,
            made=made,
            unguided=(one(PROMPT),),
            guided=(one(*branches),) if together else tuple(map(one, branches)),
            control=() if numbers.control_guidance == 1 else (one(UNCONTROLLED),),
            tiling=tiling_of(height, width, numbers.tile, tuning.chunk_area),
            kept_layers=kept_layers_of(config, format, packed),
            placement=placement,
            keeping=(keeping := keeping_of(placement, tuning)),
            encode_captured=height * width <= keeping.area and layout.vae == 1,
            sound=sound,
            policy=policy if policy and policy.in_steps else None,
        )

    def a16(self, index: int, steps: int) -> bool:
        """Whether the step of this index, from 0, of so many has activations in 16 bits where a format quantizes
        them."""
        return self.policy is not None and self.policy.a16(index, steps)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Every kind of pass once."""
        return tuple(dict.fromkeys(self.unguided + self.guided + self.control))

    @property
    def captured(self) -> bool:
        """Whether any pass is."""
        return any(one.captured for one in self.passes)

    @property
    def widest(self) -> int:
        """Branches in the pass that has most of them."""
        return max(len(one.branches) for one in self.passes)

    @property
    def guidance(self) -> str:
        """In words, for people."""
        passes = len(self.guided) + len(self.control)
        if NEGATIVE not in self.branches and not self.control:
            return "none"
        return ("one pass", "two passes", "three passes")[passes - 1]


def kept_layers_of(config: TransformerConfig, format: str, packed: bool = False) -> int:
    """How many of the media tower's first layers stay as they are where the others' weights are in this format. Of a
    checkpoint that has them `packed` none: its own description says which are not."""
    return 0 if format == "none" or packed else config.num_hidden_layers // KEPT_SHARE


def tiling_of(height: int, width: int, tile: int | None, chunk_area: int) -> Tiling:
    """How latents of this height and width are decoded, in tiles of so many pixels (None: whole)."""
    size = tile // SPATIAL_COMPRESSION if tile else max(height, width)
    step = int(size * (1 - TILE_OVERLAP)) if max(height, width) > size else size
    return Tiling(height, width, size, step, max(1, chunk_area // (min(size, height) * min(size, width))))
