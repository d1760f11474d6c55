"""`sound_tokenizer/config.json` as a typed value, and what it must say for the codec here to be the one meant."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..contract import InputError

CHANNELS = 2
"""Of a waveform: left and right."""
SUPPORTED: dict[str, Any] = {
    "model_type": "autoencoder_v2",
    "stereo": True,
    "input_channels": 1,
    "use_wav_as_input": True,
    "dec_out_channels": CHANNELS,
    "enc_type": "spec_convnext",
    "enc_use_snake": True,
    "dec_type": "oobleck",
    "dec_use_snake": True,
    "dec_final_tanh": False,
    "dec_anti_aliasing": False,
    "dec_use_nearest_upsample": False,
    "dec_use_tanh_at_final": False,
    "bottleneck_type": "vae",
    "activation": "snakebeta",
    "snake_logscale": True,
    "anti_aliasing": False,
    "causal": False,
    "padding_mode": "zeros",
    "latent_mean": None,
    "latent_std": None,
}
"""The codec of `model.sound`, as its config spells it. Absent means this value."""
LARGEST: dict[str, int] = {
    "sampling_rate": 768_000,
    "vocoder_input_dim": 4096,
    "dec_dim": 4096,
    "dec_c_mults": 256,
    "dec_strides": 64,
    "enc_dim": 4096,
    "enc_c_mults": 256,
    "enc_strides": 64,
    "enc_num_blocks": 64,
    "enc_n_fft": 8192,
    "enc_hop_length": 8192,
    "enc_latent_dim": 8192,
}
"""Of the numbers in the file, at least 8 times the published codec's. Beyond them it is damaged."""
MOST_STAGES = 16
"""Of the decoder or the encoder; the published ones have 5 and 3."""
NEXT_STEP = "Use the sound_tokenizer folder of the model's own repository"


@dataclass(frozen=True)
class SoundConfig:
    """Widths and rates of the codec (docs/model.md, section 5.5). The defaults are the published one's, as diffusers
    has them; keys that are not fields are decoration and ignored, but for those of `SUPPORTED`."""

    sampling_rate: int = 48_000
    vocoder_input_dim: int = 64
    dec_dim: int = 320
    dec_c_mults: tuple[int, ...] = (1, 2, 4, 8, 16)
    dec_strides: tuple[int, ...] = (2, 4, 5, 6, 8)
    enc_dim: int = 192
    enc_c_mults: tuple[int, ...] = (1, 2, 4)
    enc_strides: tuple[int, ...] = (4, 5, 6)
    enc_num_blocks: int = 2
    enc_n_fft: int = 64
    enc_hop_length: int = 16
    enc_latent_dim: int = 128
    normalize_volume: bool = True

    @property
    def hop(self) -> int:
        """Samples of one latent frame."""
        return math.prod(self.dec_strides)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels before the decoder's first block, and after each."""
        return tuple(self.dec_dim * n for n in (*reversed(self.dec_c_mults), 1))

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of the encoder's stages, and after the last."""
        return tuple(self.enc_dim * n for n in (*self.enc_c_mults, self.enc_c_mults[-1]))

    def frames(self, samples: int) -> int:
        """Latent frames of so many samples."""
        return -(-samples // self.hop)

    @classmethod
    def from_json(cls, data: dict[str, Any], source: str) -> SoundConfig:
        """Parse and check; `source` names the folder in messages. Raises InputError."""
        asked = f"loading {source}"
        bottleneck = data.get("bottleneck")
        odd = {key: value for key, value in data.items() if key in SUPPORTED and value != SUPPORTED[key]}
        if isinstance(bottleneck, dict) and bottleneck.get("type", "vae") != "vae":
            odd["bottleneck_type"] = bottleneck["type"]
        for key, value in odd.items():
            found = f"{key} is {value!r} in its config.json, and only {SUPPORTED[key]!r} is Cosmos3's sound codec"
            raise InputError(asked, found, NEXT_STEP)
        values = {field.name: data[field.name] for field in fields(cls) if data.get(field.name) is not None}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        config = cls(**values)
        if problems := [*config._kinds()] or [*config._shapes(data.get("hop_size"))]:
            raise InputError(asked, "; ".join(problems), NEXT_STEP)
        return config

    def _kinds(self) -> list[str]:
        problems = []
        for field in fields(self):
            value, name = getattr(self, field.name), field.name
            numbers = value if isinstance(field.default, tuple) else (value,)
            if name == "normalize_volume":
                if not isinstance(value, bool):
                    problems.append(f"{name} is {value!r}, not true or false")
            elif not isinstance(numbers, tuple) or not 0 < len(numbers) <= MOST_STAGES:
                problems.append(f"{name} is {value!r}, not a list of 1 to {MOST_STAGES} numbers")
            elif not all(type(number) is int and number > 0 for number in numbers):
                problems.append(f"{name} is {value!r}, not positive and whole")
            elif max(numbers) > LARGEST[name]:
                problems.append(f"{name} is {value!r}, and {LARGEST[name]} is the most that is read")
        return problems

    def _shapes(self, hop_size: Any) -> list[str]:
        problems = []
        for half in ("dec", "enc"):
            mults, strides = getattr(self, f"{half}_c_mults"), getattr(self, f"{half}_strides")
            if len(mults) != len(strides):
                problems.append(f"{half}_c_mults has {len(mults)} numbers and {half}_strides {len(strides)}")
        encoded = self.enc_hop_length * math.prod(self.enc_strides)
        if hop_size not in (None, self.hop) or encoded != self.hop:
            said = f"and its hop_size is {hop_size!r}" if encoded == self.hop else f"and its encoder takes {encoded}"
            problems.append(f"its decoder makes {self.hop} samples of a latent frame, {said}")
        if self.enc_latent_dim != 2 * self.vocoder_input_dim:
            problems.append(f"enc_latent_dim is {self.enc_latent_dim}, not twice vocoder_input_dim")
        if self.enc_hop_length > self.enc_n_fft:
            problems.append(f"enc_hop_length {self.enc_hop_length} is beyond enc_n_fft {self.enc_n_fft}")
        return problems
