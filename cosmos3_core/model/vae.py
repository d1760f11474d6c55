"""Pixels to latents and back: diffusers' `AutoencoderKLWan` (Wan2.2, spec section 5) behind three calls.

The VAE is causal in time, which this adapter uses twice: a conditioning prefix is encoded alone, not as the start of a
clip of padding, and decoding yields frames as they are ready, so that a clip never has to fit in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..contract import InputError
from .config import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, TILE_OVERLAP


class VideoVAE:
    """`encode` and `decode` between pixels in [-1, 1] and normalised fp32 latents (z = (mode - mean) / std)."""

    def __init__(self, module: Any):
        self.module = module
        config = module.config
        self.device, self.dtype = module.post_quant_conv.weight.device, module.post_quant_conv.weight.dtype
        stats = (torch.tensor(values, dtype=torch.float32) for values in (config.latents_mean, config.latents_std))
        self.mean, self.std = (values.view(1, -1, 1, 1, 1).to(self.device, self.dtype) for values in stats)

    @classmethod
    def names(cls, config: dict[str, Any], source: str) -> dict[str, tuple[int, ...]]:
        """Every tensor of this VAE and its shape, from `vae/config.json` alone."""
        return {name: tuple(tensor.shape) for name, tensor in cls._empty(config, source).state_dict().items()}

    @classmethod
    def load(
        cls,
        config: dict[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
        *,
        encoder: bool,
        source: str,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> VideoVAE:
        """Build from named tensors. Without `encoder` its half is never allocated (text-to-video needs none)."""
        module = cls._empty(config, source)
        if not encoder:
            del module.encoder, module.quant_conv
        wanted = module.state_dict().keys()
        state = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors if name in wanted}
        module.load_state_dict(state, strict=True, assign=True)
        return cls(module.eval().requires_grad_(False))

    @staticmethod
    def _empty(config: dict[str, Any], source: str) -> Any:
        from diffusers import AutoencoderKLWan

        factors = (config.get("scale_factor_temporal", 4), config.get("scale_factor_spatial", 8))
        if factors != (TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION):
            raise InputError(
                f"loading {source}",
                f"it compresses time by {factors[0]} and space by {factors[1]}, and Cosmos3's VAE by 4 and 16",
                "Use the vae folder of the model's own repository",
            )
        try:
            with torch.device("meta"):
                module = AutoencoderKLWan.from_config(config)
            c = module.config  # values that the constructor does not look at, and `decode` needs
            torch.tensor([c.latents_mean, c.latents_std]).view(2, c.z_dim)
            torch.empty(c.out_channels).view(3, c.patch_size, c.patch_size)
        except Exception as error:  # diffusers builds from whatever it is given, so anything can go wrong
            raise InputError(
                f"loading {source}",
                f"no VAE can be built from its config.json ({error})",
                "Get the vae folder again from the model's repository",
            ) from None
        return module

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [3, F, H, W] in [-1, 1], F = 4k+1, to the posterior's mode, normalised: [C, k+1, H/16, W/16] fp32."""
        posterior = self.module.encode(pixels.unsqueeze(0).to(self.device, self.dtype)).latent_dist
        return ((posterior.mode() - self.mean) * (1.0 / self.std))[0].float()

    @torch.inference_mode()
    def decode(self, latents: Tensor, tile: int | None = None) -> Iterator[Tensor]:
        """Latents [C, T, h, w] to pixels, yielded in time order as uint8 [frames, H, W, 3] on the host.

        The first latent frame gives one pixel frame, every other one four. `tile` (pixels, a multiple of 64) decodes
        the picture in overlapping squares of that size, whose memory is bounded by the tile; results then differ
        slightly, since the attention sees a tile at a time.
        """
        z = latents.unsqueeze(0).to(self.device, self.dtype) / (1.0 / self.std) + self.mean
        if tile is not None:
            stride = int(tile * (1 - TILE_OVERLAP))
            self.module.enable_tiling(tile, tile, stride, stride)
            pixels = self.module.decode(z).sample
            self.module.disable_tiling()  # or the next request's input would be encoded in tiles
            yield _to_bytes(pixels)
            return
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        # The module's own decode runs this loop and concatenates; running it here hands each group out at once.
        module = self.module
        z = module.post_quant_conv(z)
        module.clear_cache()
        for i in range(z.shape[2]):
            decoded = module.decoder(z[:, :, i : i + 1], feat_cache=module._feat_map, feat_idx=[0], first_chunk=i == 0)
            yield _to_bytes(unpatchify(decoded, patch_size=module.config.patch_size))
        module.clear_cache()


def _to_bytes(pixels: Tensor) -> Tensor:
    """[1, 3, F, H, W] in about [-1, 1] to uint8 [F, H, W, 3] on the host."""
    scaled = (pixels[0].float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()
