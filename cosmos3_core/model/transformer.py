"""The two towers, on the ops they are given; docs/model.md, sections 2.2 to 2.7.

Understanding reads a prompt once, causally, and leaves keys and values per layer. Generation runs every step: each of
its layers attends, unmasked, to those and to its own. Understanding never sees the media or the timestep, so nothing of
it is computed twice, and its weights can leave the device after `prefill`.

Hidden states are rows [M, hidden] with M = branches x tokens. Layers pass on a pair (x, delta), the stream x + delta:
where a linear cannot add its result to x, that is left to the norm which reads the stream next; else delta is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Linear, Ops, Quantized
from .config import TransformerConfig
from .packing import Packing
from .rope import rotary_table, text_positions

TIMESTEP_FEATURES = 256
TIMESTEP_MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class TextContext:
    """What a prompt leaves behind: per layer (k_1TKD, v_1TKD), keys normed and rotated, and the token count."""

    segments: tuple[tuple[Tensor, Tensor], ...]
    length: int


class DecoderLayer:
    """The parts of a layer that both towers share."""

    def __init__(self, config: TransformerConfig, ops: Ops, weights: dict[str, Any], index: int):
        self.config, self.ops = config, ops
        get = {key.partition(".")[2]: value for key, value in weights.items() if key.startswith(f"{index}.")}
        self.qkv, self.out, self.up, self.down = get["qkv"], get["out"], get["up"], get["down"]
        self.norm_in, self.norm_post = get["norm_in"], get["norm_post"]
        self.norm_q, self.norm_k = get.get("norm_q"), get.get("norm_k")
        self.norm_k_for_gen = get.get("norm_k_for_gen")
        self.for_qkv, self.for_up = self._format("rms_norm", self.qkv), self._format("rms_norm", self.up)
        self.for_down, self.up_gates = self._format("gate", self.down), getattr(self.up, "gates", False)

    def _format(self, op: str, linear: Linear) -> str:
        """What `op` is asked for, so that `linear` gets rows which are quantized already, if both can."""
        takes = getattr(linear, "takes", "none")
        return takes if takes in self.ops.formats.get(op, ()) else "none"

    def norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, format: str = "none"
    ) -> tuple[Tensor | Quantized, Tensor]:
        c = self.config
        options = dict(eps=c.rms_norm_eps, residual_MI=delta, weight_fp32=c.weight_fp32_norm)
        return self.ops.rms_norm(x, weight, format=format, **options)

    def project(self, x: Tensor, delta: Tensor | None, branches: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(x + delta, q_BSHD, k_BSKD, v_BSKD), before the per-head norm."""
        c = self.config
        h, x = self.norm(x, delta, self.norm_in, self.for_qkv)
        heads = self.qkv(h).view(branches, -1, c.num_attention_heads + 2 * c.num_key_value_heads, c.head_dim)
        return x, *heads.split([c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads], dim=2)

    def rotate(self, heads: list[tuple[Tensor, Tensor | None]], table: tuple[Tensor, Tensor]) -> list[Tensor]:
        c = self.config
        return self.ops.norm_rope(heads, *table, eps=c.rms_norm_eps, weight_fp32=c.weight_fp32_norm)

    def finish(self, x: Tensor, attended_BSHD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Output projection and MLP: (x, delta) for the next layer. x may be overwritten."""
        # No name for the delta: it would live on through the MLP, whose tensors are the largest.
        h, x = self.norm(*_add(x, self.out, attended_BSHD.reshape(x.shape[0], -1)), self.norm_post, self.for_up)
        h = self.up(h)
        if not self.up_gates:
            h = self.ops.gate(h, activation=self.config.hidden_act, format=self.for_down)
        return _add(x, self.down, h)


def _add(x: Tensor, linear: Linear, h: Tensor | Quantized) -> tuple[Tensor, Tensor | None]:
    """(x, delta) of the stream x + linear(h)."""
    return (linear(h, residual_MO=x), None) if getattr(linear, "adds", False) else (x, linear(h))


class UnderstandingTower:
    """The text tower. Built from `weights.understanding_slots`."""

    def __init__(self, config: TransformerConfig, ops: Ops, weights: dict[str, Any]):
        self.config, self.ops, self.embed = config, ops, weights["embed"]
        self.layers = [DecoderLayer(config, ops, weights, i) for i in range(config.num_hidden_layers)]

    def prefill(self, token_ids: Sequence[int]) -> TextContext:
        """Read a prompt (template, end-of-turn and start-of-vision tokens included) once."""
        c, device, dtype = self.config, self.embed.device, self.embed.dtype
        table = _table(text_positions(len(token_ids)), c, device, dtype)
        x, delta = self.embed[torch.tensor(token_ids, device=device)], None
        segments: list[tuple[Tensor, Tensor]] = []
        for layer in self.layers:
            x, q, k, v = layer.project(x, delta, 1)
            heads = [(q, layer.norm_q), (k, layer.norm_k)]
            if c.und_norm_for_gen:
                heads.append((k, layer.norm_k_for_gen))
            q, k, *k_for_gen = layer.rotate(heads, table)
            # v is a view of the whole projection; a copy lets the rest of that go.
            segments.append((k_for_gen[0] if k_for_gen else k, v.clone()))
            if layer is self.layers[-1]:
                break  # nothing reads the text's hidden states after its last keys and values
            attended, _ = self.ops.attention(q, [(k, v)], causal=True)
            x, delta = layer.finish(x, attended)
        return TextContext(tuple(segments), len(token_ids))


@dataclass(frozen=True)
class Branches:
    """What stays the same over all steps of a run: the packing, the prompts and the rotary tables cos, sin [B, S, D].

    Branches run through the model as one batch; each attends to its own prompt. Positions depend on the prompt's
    length, so branches have different tables.
    """

    packing: Packing
    texts: tuple[TextContext, ...]
    table: tuple[Tensor, Tensor]


class GenerationTower:
    """The media tower with its input and output projections. Built from `weights.generation_slots`. The action
    projections are on `kept`, as the linears of the first layers are that came with the weights: `ops` unless something
    is quantized."""

    def __init__(self, config: TransformerConfig, ops: Ops, weights: dict[str, Any], kept: Ops | None = None):
        self.config, self.ops, self.kept = config, ops, kept or ops
        self.layers = [DecoderLayer(config, ops, weights, i) for i in range(config.num_hidden_layers)]
        self.norm_final, self.time = weights["norm_final"], (weights["time_1"], weights["time_2"])
        self.device, self.dtype = self.norm_final.device, self.norm_final.dtype
        half = TIMESTEP_FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32) * (-math.log(TIMESTEP_MAX_PERIOD) / half)
        self.frequencies = (exponents.exp() * config.timestep_scale).unsqueeze(0).to(self.device)
        self.vision_in = weights["vision_in.weight"], weights["vision_in.bias"]
        self.sound_in = weights.get("sound_in")
        self.project_out = {"vision": weights["vision_out"], "sound": weights.get("sound_out")}
        self.embed = {"sound": weights.get("sound_embed"), "action": weights.get("action_embed")}
        if config.action_gen:
            self.action_in = self._per_domain(weights, "in", config.action_dim)
            self.action_out = self._per_domain(weights, "out", config.hidden_size)

    def _per_domain(self, weights: dict[str, Any], way: str, width: int) -> list[Any]:
        """One Linear per embodiment. A row of the checkpoint is that embodiment's matrix, input-major
        (docs/model.md, section 2.2)."""
        matrix, bias = weights[f"action_{way}.weight"], weights[f"action_{way}.bias"]
        return [self.kept.pack_linear(m.view(width, -1).T.contiguous(), b) for m, b in zip(matrix, bias, strict=True)]

    def branches(self, packing: Packing, texts: Sequence[TextContext]) -> Branches:
        """Everything step-invariant for these items under these prompts."""
        c = self.config
        tables = [_table(packing.positions(text.length), c, self.device, self.dtype) for text in texts]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return Branches(packing, tuple(texts), (cos, sin))

    def forward(self, branches: Branches, latents: Sequence[Tensor], timestep: float | Tensor) -> list[list[Tensor]]:
        """Velocities, in the model dtype, per branch and item, each of its latent's shape and zero on clean frames.

        `latents` are the items' latents (any float dtype); `timestep` is the scheduler's, 0 to 1000: a number,
        or fp32 [1] on the device, with which nothing here depends on a value on the host. The velocity is rectified
        flow's noise - x0.
        """
        packing, count = branches.packing, len(branches.texts)
        x, delta = self._embed(packing, latents, timestep).repeat(count, 1), None
        for i, layer in enumerate(self.layers):
            x, q, k, v = layer.project(x, delta, count)
            q, k = layer.rotate([(q, layer.norm_q), (k, layer.norm_k)], branches.table)
            attended = [
                layer.ops.attention(q[b : b + 1], [text.segments[i], (k[b : b + 1], v[b : b + 1])])[0]
                for b, text in enumerate(branches.texts)
            ]
            x, delta = layer.finish(x, attended[0] if count == 1 else torch.cat(attended))
        y, _ = self.layers[-1].norm(x, delta, self.norm_final)
        return [self._heads(packing, rows) for rows in y.view(count, packing.length, -1)]

    def _embed(self, packing: Packing, latents: Sequence[Tensor], timestep: float | Tensor) -> Tensor:
        told, rows = self.timestep_vector(timestep), []
        for item, noisy, latent in zip(packing.items, packing.noisy_frames, latents, strict=True):
            x = latent.to(self.device)
            if item.modality == "vision":
                patch = self.config.latent_patch_size
                rows.append(self.ops.patch_embed(x, *self.vision_in, told, patch=patch, noisy_T=noisy))
                continue
            x = x.to(self.dtype)
            x = self.action_in[item.domain](x) if item.modality == "action" else self.sound_in(x.T)
            x = x + self.embed[item.modality]
            rows.append(x + told if noisy is None else torch.addcmul(x, noisy.unsqueeze(1).to(x.dtype), told))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def timestep_vector(self, timestep: float | Tensor) -> Tensor:
        """[1, hidden] in the model dtype: one for all tokens of a step, computed in fp32 (docs/model.md,
        section 2.4)."""
        angles = self.frequencies * timestep
        features = torch.cat((angles.cos(), angles.sin()), dim=1)
        first, second = self.time
        return second(F.silu(first(features))).to(self.dtype)

    def _heads(self, packing: Packing, y: Tensor) -> list[Tensor]:
        patch, out = self.config.latent_patch_size, []
        for item, rows, noisy in zip(packing.items, packing.rows, packing.noisy, strict=True):
            action = item.modality == "action"
            project = self.action_out[item.domain] if action else self.project_out[item.modality]
            if noisy is None:
                tokens = project(y[rows])
            else:
                predicted = project(y[rows][noisy])
                tokens = predicted.new_zeros(rows.stop - rows.start, predicted.shape[1])
                tokens[noisy] = predicted
            out.append(item.from_tokens(tokens, patch))
        return out


def _table(positions: Tensor, c: TransformerConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [1, N, D] on the device."""
    cos, sin = rotary_table(positions, c.head_dim, c.rope_theta, c.rope_axes_dim, dtype)
    return cos.unsqueeze(0).to(device), sin.unsqueeze(0).to(device)
