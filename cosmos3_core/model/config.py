"""`transformer/config.json` as a typed value, and what it must say for the formulas here to hold."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..contract import InputError, Layer
from .sound_config import SoundConfig

REQUIRED_VALUES: dict[str, Any] = {
    "attention_bias": False,
    "position_embedding_type": "unified_3d_mrope",
    "unified_3d_mrope_reset_spatial_ids": True,
    "joint_attn_implementation": "two_way",
    "qk_norm_for_diffusion": True,
    "video_temporal_causal": False,
}
"""Keys that select another model than the one written here when they differ. Absent means this value."""

LARGEST: dict[str, float] = {
    "hidden_size": 1 << 17,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "intermediate_size": 1 << 20,
    "vocab_size": 1 << 22,
    "rms_norm_eps": 1.0,
    "rope_theta": 1e12,
    "base_fps": 1000.0,
    "latent_channel": 4096,
    "latent_patch_size": 16,
    "timestep_scale": 1000.0,
    "unified_3d_mrope_temporal_modality_margin": 10_000_000,
    "sound_dim": 1 << 16,
    "sound_latent_fps": 1000.0,
    "action_dim": 1 << 16,
    "num_embodiment_domains": 1 << 16,
}
"""Of the numbers in `transformer/config.json`, at least 8 times the largest published model's. Beyond them a file is
damaged, and shapes of its size would take minutes only to be listed."""
LARGEST_VAE = {"base_dim": 4096, "decoder_base_dim": 4096, "z_dim": 4096, "num_res_blocks": 64}
"""Of those in `vae/config.json`."""
LARGEST_STATISTIC = 1e6
"""Of a latent channel's mean and deviation; the published ones are below 10."""

TEMPORAL_COMPRESSION = 4
"""Pixel frames per latent frame after the first (docs/model.md, section 5.1)."""
SPATIAL_COMPRESSION = 16
"""Pixels per latent row and column (docs/model.md, section 5.1)."""
FINISH_ROWS = 12_672
"""Rows that a layer's second half takes at a time: the MLP's tensors are several times as wide as the stream. Every
size of picture takes one part, and of video in 720p four. In tiles of 128 rows it is 99, which with Nano's and Super's
widths fill 132 multiprocessors as evenly as all rows at once do."""


def latent_size(width: int, height: int, frames: int) -> tuple[int, int, int]:
    """Frames, height and width of the latents of a picture or clip, whose size is in pixels
    (docs/model.md, section 5.1)."""
    return (frames - 1) // TEMPORAL_COMPRESSION + 1, height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION


@dataclass(frozen=True)
class Tiling:
    """How a decode goes through a picture of `height` x `width` latents: in squares of `size`, which begin `step` apart
    and overlap by the rest, `chunk` latent frames at a time after the first."""

    height: int
    width: int
    size: int
    step: int
    chunk: int

    @property
    def whole(self) -> bool:
        """Whether there is one tile."""
        return self.size >= max(self.height, self.width)

    @property
    def tops(self) -> range:
        """Where the rows of tiles begin."""
        return range(0, self.height, self.step)

    @property
    def lefts(self) -> range:
        """Where the columns of tiles begin."""
        return range(0, self.width, self.step)

    @property
    def heights(self) -> tuple[int, ...]:
        """Of the rows of tiles, the largest first."""
        return tuple(min(self.size, self.height - top) for top in self.tops)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the columns of tiles, the largest first."""
        return tuple(min(self.size, self.width - left) for left in self.lefts)


@dataclass(frozen=True)
class TransformerConfig:
    """The keys of `transformer/config.json` that the mathematics needs (docs/model.md, section 1.3); the defaults are
    Nano's.

    Keys that are not fields are decoration and ignored, as the published files carry many. `sound` is no key: it is
    what `sound_tokenizer/config.json` says of the codec behind the sound head, None where there is none of them.
    """

    hidden_size: int = 4096
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 12288
    vocab_size: int = 151936
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5e6
    rope_axes_dim: tuple[int, int, int] = (24, 20, 20)
    qk_norm_for_text: bool = True
    use_und_k_norm_for_gen: bool = False
    base_fps: float = 24.0
    enable_fps_modulation: bool = True
    latent_channel: int = 48
    latent_patch_size: int = 2
    timestep_scale: float = 0.001
    unified_3d_mrope_temporal_modality_margin: int = 15000
    sound_gen: bool = False
    sound_dim: int = 0
    sound_latent_fps: float = 25.0
    action_gen: bool = False
    action_dim: int = 0
    num_embodiment_domains: int = 32
    sound: SoundConfig | None = None

    @property
    def patch_dim(self) -> int:
        """Width of one vision token: a patch of latent pixels, all channels."""
        return self.latent_channel * self.latent_patch_size**2

    @property
    def query_width(self) -> int:
        """Width of all query heads together. Independent of hidden_size: Super's is 8192 against 5120."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_key_value_heads * self.head_dim

    @property
    def layer(self) -> Layer:
        """A decoder layer's numbers, for the composites."""
        return Layer(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
            weight_fp32=self.weight_fp32_norm,
            activation=self.hidden_act,
        )

    @property
    def gated(self) -> bool:
        """True for the SiLU-gated MLP of the Qwen family, False for Edge's squared ReLU."""
        return self.hidden_act == "silu"

    @property
    def weight_fp32_norm(self) -> bool:
        """Nemotron (Edge) multiplies the norm weight in fp32 and rounds once; Qwen rounds first (docs/model.md,
        section 2.5)."""
        return self.hidden_act == "relu2"

    @property
    def und_norm_for_gen(self) -> bool:
        """Whether text keys get a norm of their own before the generation tower reads them."""
        return self.use_und_k_norm_for_gen and not self.qk_norm_for_text

    @classmethod
    def from_json(cls, data: dict, source: str) -> TransformerConfig:
        """Parse and check; `source` names the file in messages. Raises InputError."""
        for key, value in REQUIRED_VALUES.items():
            if data.get(key, value) != value:
                raise InputError(
                    f"loading {source}",
                    f"{key} is {data[key]!r}, and only {value!r} is Cosmos3's generator",
                    "Check that `model` names a Cosmos3 generator",
                )
        values = {field.name: data[field.name] for field in fields(cls) if data.get(field.name) is not None}
        values.pop("sound", None)
        scaling = data.get("rope_scaling")
        sections = data.get("rope_axes_dim") or (scaling.get("mrope_section") if isinstance(scaling, dict) else scaling)
        if sections is not None:
            values["rope_axes_dim"] = tuple(sections) if isinstance(sections, list) else sections
        config = cls(**values)
        config._check(source)
        return config

    def _check(self, source: str) -> None:
        problems = []
        for field in fields(self):
            value, kind, default = getattr(self, field.name), field.type, getattr(type(self), field.name)
            if kind in ("int", "float"):
                if isinstance(value, bool) or not isinstance(value, int | float):
                    problems.append(f"{field.name} is {value!r}, not a number")
                elif kind == "int" and (not isinstance(value, int) or value < min(default, 1)):
                    problems.append(f"{field.name} is {value!r}, not a positive whole number")
                elif kind == "float" and not 0 < value < math.inf:
                    problems.append(f"{field.name} is {value!r}, not a positive number")
                elif value > LARGEST[field.name]:
                    problems.append(f"{field.name} is {value!r}, and {LARGEST[field.name]:g} is the most that is read")
        axes = self.rope_axes_dim
        if not (isinstance(axes, tuple) and len(axes) == 3 and all(type(size) is int for size in axes)):
            problems.append(f"rope_axes_dim is {axes!r}, not three whole numbers")
        if not problems:
            if self.num_attention_heads % self.num_key_value_heads:
                problems.append(f"{self.num_attention_heads} query heads do not divide by {self.num_key_value_heads}")
            if 2 * sum(self.rope_axes_dim) != self.head_dim:
                problems.append(
                    f"rope sections {self.rope_axes_dim} do not add up to head_dim / 2 = {self.head_dim / 2}"
                )
            if self.hidden_act not in ("silu", "relu2"):
                problems.append(f"hidden_act is {self.hidden_act!r}, not 'silu' or 'relu2'")
            for kind in ("sound", "action"):
                if getattr(self, f"{kind}_gen") and not getattr(self, f"{kind}_dim"):
                    problems.append(f"{kind}_gen is on and {kind}_dim is missing")
        if problems:
            raise InputError(f"loading {source}", "; ".join(problems), "Get the file again from the model's repository")


VAE_WIDTHS = (1, 2, 4, 4)
"""Channels of the encoder's levels in units of its first; the decoder's are the same, backwards."""
VAE_DOWN_IN_TIME = (False, True, True)
"""Whether the way from a level to the next halves the frames too. All halve rows and columns."""
VAE_PATCH = 2
"""Pixel rows and columns that one position of the outermost map holds, as channels."""
VAE_PATCHED = 3 * VAE_PATCH**2
VAE_SUPPORTED: dict[str, Any] = {
    "dim_mult": list(VAE_WIDTHS),
    "attn_scales": [],
    "temperal_downsample": list(VAE_DOWN_IN_TIME),
    "is_residual": True,
    "in_channels": VAE_PATCHED,
    "out_channels": VAE_PATCHED,
    "patch_size": VAE_PATCH,
}
"""The architecture of `vae_blocks`, as `vae/config.json` spells it."""
VAE_ABSENT: dict[str, Any] = {"is_residual": False, "in_channels": 3, "out_channels": 3, "patch_size": None}
"""What diffusers takes a missing key of `VAE_SUPPORTED` for, where that is another architecture."""


@dataclass(frozen=True)
class VaeConfig:
    """Widths of the network and statistics of its latents, from `vae/config.json`."""

    base_dim: int
    decoder_base_dim: int
    z_dim: int
    num_res_blocks: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> VaeConfig:
        """Parse and check; `source` names the folder in messages. Raises InputError."""
        factors = (data.get("scale_factor_temporal", 4), data.get("scale_factor_spatial", 8))
        if factors != (TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION):
            raise InputError(
                f"loading {source}",
                f"it compresses time by {factors[0]} and space by {factors[1]}, and Cosmos3's VAE by 4 and 16",
                "Use the vae folder of the model's own repository",
            )
        for key, value in VAE_SUPPORTED.items():
            found = data.get(key, VAE_ABSENT.get(key, value))
            if found != value:
                raise InputError(
                    f"loading {source}",
                    f"{key} is {found!r} in its config.json, and only {value!r} is Cosmos3's VAE",
                    "Use the vae folder of the model's own repository",
                )
        try:
            return cls._parsed(data)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"loading {source}",
                f"no VAE can be built from its config.json ({reason})",
                "Get the vae folder again from the model's repository",
            ) from None

    @classmethod
    def _parsed(cls, data: dict[str, Any]) -> VaeConfig:
        widths = {key: data[key] for key in ("base_dim", "z_dim")}
        widths["decoder_base_dim"] = data.get("decoder_base_dim") or data["base_dim"]
        widths["num_res_blocks"] = data.get("num_res_blocks", 2)
        for key, value in widths.items():
            if type(value) is not int or value <= 0:
                raise ValueError(f"{key} is {value!r}, not a positive whole number")
            if value > LARGEST_VAE[key]:
                raise ValueError(f"{key} is {value}, and {LARGEST_VAE[key]} is the most that is read")
        stats = {key: tuple(map(float, data[key])) for key in ("latents_mean", "latents_std")}
        for key, values in stats.items():
            if len(values) != data["z_dim"] or not all(map(math.isfinite, values)):
                raise ValueError(f"{key} is not {data['z_dim']} numbers")
            if max(map(abs, values)) > LARGEST_STATISTIC:
                raise ValueError(f"{key} holds a number beyond {LARGEST_STATISTIC:g}")
        if min(stats["latents_std"]) <= 0:
            raise ValueError("latents_std is not positive")
        return cls(**widths, latents_mean=stats["latents_mean"], latents_std=stats["latents_std"])
