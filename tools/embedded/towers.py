"""Both towers to train: batched over samples of their own prompts, lengths and timesteps, where the engine runs one.

The formulas are those of docs/model.md, section 2, on the checkpoint's names and shapes (`model.weights.shapes`);
tests/test_embedded.py holds them against the engine's towers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.model.transformer import TIMESTEP_FEATURES, TIMESTEP_MAX_PERIOD
from cosmos3_core.model.weights import shapes

ACTION_DOMAIN = 4
"""Of pusht, by the table of docs/model.md, section 4.10."""


@dataclass
class Sample:
    """N samples at noise level `t`. Latents are noisy where `clean` is False. Sound and action may be absent."""

    ids: Tensor  # [N, P]
    text: Tensor  # [N], tokens of them that count
    fps: Tensor  # [N]
    t: Tensor  # [N], 0 to 1
    vision: Tensor  # [N, C, T, h, w]
    vision_clean: Tensor  # [N, T]
    sound: Tensor | None = None  # [N, S, C]
    sounds: Tensor | None = None  # [N], latents of it that count, 0 without sound
    action: Tensor | None = None  # [N, A, C]
    action_clean: Tensor | None = None  # [N, A]


@dataclass
class Flat:
    """Parameters in one fp32 vector, with a copy in `dtype` that the model computes on and the gradients of that copy:
    a step of the optimizer is a few operations on vectors."""

    config: TransformerConfig
    master: Tensor
    copy: Tensor
    grad: Tensor
    decays: Tensor
    leaves: dict[str, Tensor]

    @classmethod
    def of(cls, config: TransformerConfig, values: dict[str, Tensor], device: str, dtype: torch.dtype) -> Flat:
        master = torch.cat([values[name].float().flatten() for name in shapes(config)]).to(device)
        copy, grad, decays = master.to(dtype), torch.zeros_like(master, dtype=dtype), torch.zeros_like(master)
        leaves = {name: part.detach().requires_grad_() for name, part in merged(config, copy).items()}
        for name, part in merged(config, grad).items():
            leaves[name].grad = part
        for name, part in merged(config, decays).items():
            part.fill_(float(part.ndim > 1 and "embed" not in name))
        return cls(config, master, copy, grad, decays, leaves)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector like `master` by the checkpoint's names."""
        out, start = {}, 0
        for name, shape in shapes(self.config).items():
            end = start + math.prod(shape)
            out[name], start = vector[start:end].view(shape), end
        return out


REST = ("to_k", "to_v", "add_k_proj", "add_v_proj", "up_proj")
"""Matrices that read what the one before them in `shapes` reads."""


def merged(config: TransformerConfig, vector: Tensor) -> dict[str, Tensor]:
    """Views of a vector of all parameters, in the order of `shapes`, as `Towers` takes them: queries,
    keys and values are one matrix by the queries' name, gate and up one by the gate's."""
    spans: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    start, last = 0, ""
    for name, shape in shapes(config).items():
        end = start + math.prod(shape)
        if name.split(".")[-2:-1] and name.split(".")[-2] in REST:
            begin, _, whole = spans[last]
            spans[last] = (begin, end, (whole[0] + shape[0], *whole[1:]))
        else:
            last, spans[name] = name, (start, end, shape)
        start = end
    return {name: vector[begin:end].view(shape) for name, (begin, end, shape) in spans.items()}


def drawn(config: TransformerConfig, seed: int) -> dict[str, Tensor]:
    """Parameters to begin with: matrices of deviation 0.02 or 1 / sqrt(fan-in), outputs near zero, norms at one."""
    stream, out = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes(config).items():
        values = torch.randn(shape, generator=stream)
        if "norm" in name:
            out[name] = torch.ones(shape)
        elif name.endswith("bias") or "modality_embed" in name or "_out" in name and "self_attn" not in name:
            out[name] = torch.zeros(shape) if name.endswith("bias") or "_out" in name else 0.02 * values
        elif name.endswith("bias.weight"):
            out[name] = torch.zeros(shape)
        elif name == "embed_tokens.weight":
            out[name] = 0.5 * values
        elif name.startswith("action_proj_in"):
            out[name] = values / math.sqrt(config.action_dim)
        else:
            deep = "to_out" in name or "to_add_out" in name or "down_proj" in name
            out[name] = values / math.sqrt(shape[-1]) * (1 / math.sqrt(2 * config.num_hidden_layers) if deep else 1)
    return out


def rotated(
    heads: Tensor, norm_q: Tensor, norm_k: Tensor, cos: Tensor, sin: Tensor, queries: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of heads [N, S, heads, D]: queries, as many as said, then keys, both normed and rotated, then values. cos
    and sin [N, S, 1, D]."""
    keys = (heads.shape[2] - queries) // 2
    q, k, v = heads.split([queries, keys, keys], dim=2)
    out = []
    for x, weight in ((q, norm_q), (k, norm_k)):
        x = F.rms_norm(x, weight.shape, weight, eps)
        first, second = x.chunk(2, dim=-1)
        out.append(x * cos + torch.cat((-second, first), dim=-1) * sin)
    return out[0], out[1], v


def added(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its norm)."""
    x = x + delta
    return x, F.rms_norm(x, weight.shape, weight, eps)


def gated(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


class Towers:
    """The forward pass on `weights`, as `merged` names them. With `fused` what stands between the matrix products is
    one kernel each."""

    def __init__(self, config: TransformerConfig, weights: dict[str, Tensor], *, fused: bool = False):
        self.c, self.w = config, weights
        self.rotated, self.added, self.gated = rotated, added, gated
        if fused:
            from .fused import Added, Gated, Rotated  # needs Triton

            self.rotated, self.added, self.gated = Rotated.apply, Added.apply, Gated.apply
        half = TIMESTEP_FEATURES // 2
        device = weights["norm_moe_gen.weight"].device
        exponents = torch.arange(half, dtype=torch.float32, device=device) * (-math.log(TIMESTEP_MAX_PERIOD) / half)
        self.frequencies = exponents.exp() * (config.timestep_scale * 1000)
        powers = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
        self.inverse = 1.0 / config.rope_theta**powers
        axis = torch.zeros(config.head_dim // 2, dtype=torch.long)
        for i in (1, 2):
            axis[i : 3 * config.rope_axes_dim[i] : 3] = i
        self.axis = axis.to(device)

    @property
    def dtype(self) -> torch.dtype:
        return self.w["norm_moe_gen.weight"].dtype

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _norm(self, stream: list[Tensor], name: str) -> Tensor:
        """The norm of the stream: its rows, and what is to be added to them, if anything, which this does."""
        weight = self.w[f"{name}.weight"]
        if len(stream) == 1:
            return F.rms_norm(stream[0], weight.shape, weight, self.c.rms_norm_eps)
        x, normed = self.added(*stream, weight, self.c.rms_norm_eps)
        stream[:] = [x]
        return normed

    def _table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos, sin [N, tokens, 1, head_dim] of positions [N, 3, tokens]."""
        angles = positions[:, self.axis].transpose(1, 2) * self.inverse
        double = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        return double.cos().to(self.dtype), double.sin().to(self.dtype)

    def _heads(self, stream: list[Tensor], i: int, table: tuple[Tensor, Tensor], *, media: bool) -> tuple[Tensor, ...]:
        """q, k, v of layer i, [N, tokens, heads, head_dim]."""
        c, at, added = self.c, f"layers.{i}.self_attn", "added_" * media
        x = self._norm(stream, f"layers.{i}.input_layernorm{'_moe_gen' * media}")
        heads = self._linear(x, f"{at}.{'add_q_proj' if media else 'to_q'}").unflatten(-1, (-1, c.head_dim))
        norms = (self.w[f"{at}.norm_{added}{x}.weight"] for x in "qk")
        return self.rotated(heads, *norms, *table, c.num_attention_heads, c.rms_norm_eps)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """[N, tokens, hidden]; causal without a mask."""
        groups = q.shape[2] // k.shape[2]
        k, v = (x.transpose(1, 2).repeat_interleave(groups, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, is_causal=mask is None)
        return out.transpose(1, 2).flatten(2)

    def _finish(self, stream: list[Tensor], attended: Tensor, i: int, *, media: bool) -> None:
        suffix = "_moe_gen" * media
        stream.append(self._linear(attended, f"layers.{i}.self_attn.{'to_add_out' if media else 'to_out'}"))
        h, mlp = self._norm(stream, f"layers.{i}.post_attention_layernorm{suffix}"), f"layers.{i}.mlp{suffix}"
        stream.append(self._linear(self.gated(self._linear(h, f"{mlp}.gate_proj")), f"{mlp}.down_proj"))

    def read(self, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of the prompts [N, P]; those behind a prompt's end mean nothing."""
        stream = [F.embedding(ids, self.w["embed_tokens.weight"])]
        at = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
        cos, sin = (x.expand(len(ids), -1, -1, -1).contiguous() for x in self._table(at.expand(1, 3, -1)))
        table, left = (cos, sin), []
        for i in range(self.c.num_hidden_layers):
            q, k, v = self._heads(stream, i, table, media=False)
            left.append((k, v))
            if i < self.c.num_hidden_layers - 1:
                self._finish(stream, self._attended(q, k, v, None), i, media=False)
        return left

    def time(self, t: Tensor) -> Tensor:
        """[N, 1, hidden]."""
        angles = t.float()[:, None] * self.frequencies
        features = torch.cat((angles.cos(), angles.sin()), dim=1).to(self.dtype)
        return self._linear(F.silu(self._linear(features, "time_embedder.linear_1")), "time_embedder.linear_2")[:, None]

    def embed(self, s: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """(rows [N, tokens, hidden], positions [N, 3, tokens], which tokens count [N, tokens])."""
        c, time, device = self.c, self.time(s.t), s.ids.device
        origin = (s.text + c.unified_3d_mrope_temporal_modality_margin).float()[:, None]
        n, _, frames, h, w = s.vision.shape
        p = c.latent_patch_size
        tokens = s.vision.to(self.dtype).unflatten(4, (-1, p)).unflatten(3, (-1, p)).permute(0, 2, 3, 5, 4, 6, 1)
        grid = tokens.shape[2] * tokens.shape[3]
        x = self._linear(tokens.reshape(n, frames * grid, -1), "proj_in")
        rows = [x + (~s.vision_clean).to(x.dtype).repeat_interleave(grid, 1)[..., None] * time]
        step = c.base_fps / s.fps[:, None] if frames > 1 else torch.ones_like(origin)
        at = torch.meshgrid(
            *(torch.arange(k, device=device, dtype=torch.float32) for k in (frames, h // p, w // p)), indexing="ij"
        )
        t, y, x = (axis.flatten()[None] for axis in at)
        places = [torch.stack([origin + t * step, y.expand(n, -1), x.expand(n, -1)], 1)]
        counts = [torch.ones(n, frames * grid, dtype=torch.bool, device=device)]
        if s.sound is not None and s.sounds is not None:
            k = torch.arange(s.sound.shape[1], device=device, dtype=torch.float32)[None]
            rows.append(self._linear(s.sound.to(self.dtype), "audio_proj_in") + self.w["audio_modality_embed"] + time)
            places.append(F.pad((origin + k / c.sound_latent_fps * c.base_fps)[:, None], (0, 0, 0, 2)))
            counts.append(k < s.sounds[:, None])
        if s.action is not None and s.action_clean is not None:
            k = torch.arange(s.action.shape[1], device=device, dtype=torch.float32)[None]
            weight = self.w["action_proj_in.fc.weight"][ACTION_DOMAIN].view(c.action_dim, -1)
            x = s.action.to(self.dtype) @ weight + self.w["action_proj_in.bias.weight"][ACTION_DOMAIN]
            x = x + self.w["action_modality_embed"]
            rows.append(x + (~s.action_clean).to(x.dtype)[..., None] * time)
            places.append(F.pad((origin + (k + 1) / s.fps[:, None] * (c.base_fps / 4))[:, None], (0, 0, 0, 2)))
            counts.append(torch.ones_like(s.action_clean))
        return torch.cat(rows, 1), torch.cat(places, 2), torch.cat(counts, 1)

    def forward(self, s: Sample, prompts: list[tuple[Tensor, Tensor]] | None = None) -> dict[str, Tensor]:
        """Velocities by modality, each like its latent; on clean frames they mean nothing."""
        prompts = self.read(s.ids) if prompts is None else prompts
        x, places, counts = self.embed(s)
        stream, table = [x], self._table(places)
        known = torch.arange(s.ids.shape[1], device=s.ids.device)[None] < s.text[:, None]
        mask = torch.cat((known, counts), 1)[:, None, None].expand(-1, 1, x.shape[1], -1)
        for i, (text_k, text_v) in enumerate(prompts):
            q, k, v = self._heads(stream, i, table, media=True)
            k, v = torch.cat((text_k, k), 1), torch.cat((text_v, v), 1)
            self._finish(stream, self._attended(q, k, v, mask), i, media=True)
        return self._velocities(s, self._norm(stream, "norm_moe_gen"))

    def _velocities(self, s: Sample, y: Tensor) -> dict[str, Tensor]:
        n, channels, frames, h, w = s.vision.shape
        p, count = self.c.latent_patch_size, frames * (h // self.c.latent_patch_size) * (w // self.c.latent_patch_size)
        tokens = self._linear(y[:, :count], "proj_out").view(n, frames, h // p, w // p, p, p, channels)
        out = {"vision": tokens.permute(0, 6, 1, 2, 4, 3, 5).reshape(s.vision.shape)}
        if s.sound is not None:
            out["sound"] = self._linear(y[:, count : count + s.sound.shape[1]], "audio_proj_out")
        if s.action is not None:
            weight = self.w["action_proj_out.fc.weight"][ACTION_DOMAIN].view(-1, self.c.action_dim)
            out["action"] = y[:, -s.action.shape[1] :] @ weight + self.w["action_proj_out.bias.weight"][ACTION_DOMAIN]
        return out
