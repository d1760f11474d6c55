"""The two towers, on the ops they are given; docs/model.md, sections 2.2 to 2.7.

Understanding reads a prompt once, causally, and leaves keys and values per layer. Generation runs every step: each of
its layers attends, unmasked, to those and to its own. Understanding never sees the media or the timestep, so nothing of
it is computed twice, and its weights can leave the device after `prefill`.

Hidden states are rows [M, hidden] with M = branches x tokens. A layer is two composites around attention. The towers
ask a `LayerSource` for layer i, when they need it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contract import Finish, Linear, Ops, Project, Residual, Segment
from .attending import Attend, attend
from .config import FINISH_ROWS, TransformerConfig
from .packing import Packing
from .rope import rotary_table, text_positions

TIMESTEP_FEATURES = 256
TIMESTEP_MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class DecoderLayer:
    """One layer of either tower: the half before attention and the half after it. `a16` is the same layer, on the same
    weights, with activations in 16 bits where `project` and `finish` quantize them; None where they never do, or no
    step is to have it."""

    project: Project
    finish: Finish
    a16: DecoderLayer | None = None

    def tensors(self) -> dict[str, Tensor] | None:
        """All that the layer holds on its device, by name, as contract.Linear has it; None if it cannot be moved. What
        both ways of computing it share is there once."""
        halves = {"project": self.project.tensors(), "finish": self.finish.tensors()}
        if self.a16 is not None:
            halves["a16"] = self.a16.tensors()
        if None in halves.values():
            return None
        named = {f"{half}.{name}": tensor for half, held in halves.items() for name, tensor in (held or {}).items()}
        once = {id(tensor): name for name, tensor in reversed(named.items())}
        return {name: tensor for name, tensor in named.items() if once[id(tensor)] == name}


def finish(layer: DecoderLayer, residual: Residual, attended_BSHD: Tensor) -> None:
    """The half after attention, FINISH_ROWS at a time. How many rows there are decides that and nothing else, so that
    all placements compute the same."""
    if len(residual.x_MI) <= FINISH_ROWS:
        layer.finish(residual, attended_BSHD)
        return
    attended_MHD, x_MI, delta_MI = attended_BSHD.flatten(0, 1), residual.x_MI, residual.delta_MI
    left_MI: Tensor | None = None
    for begin in range(0, len(x_MI), FINISH_ROWS):
        rows = slice(begin, begin + FINISH_ROWS)
        held_MI = x_MI[rows]
        part = Residual(held_MI, None if delta_MI is None else delta_MI[rows])
        layer.finish(part, attended_MHD[rows].unsqueeze(0))
        if part.x_MI is not held_MI:
            held_MI.copy_(part.x_MI)
        if part.delta_MI is not None:
            left_MI = torch.empty_like(x_MI) if left_MI is None else left_MI
            left_MI[rows] = part.delta_MI
    residual.x_MI, residual.delta_MI = x_MI, left_MI


class LayerSource(Protocol):
    """Where a tower's layers come from. Whether one lies on the device, in host memory, in a file or on other ranks is
    the source's matter; a list of them is one. Each pass asks for all layers in rising order, and is done with one
    before it asks for the next."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> DecoderLayer: ...


@dataclass(frozen=True, eq=False)
class TextContext:
    """What a prompt leaves behind: each layer's keys, normed and rotated, and values, and the token count. Two are
    equal where they are the same object."""

    segments: tuple[Segment, ...]
    length: int


class UnderstandingTower:
    """The text tower; its attention is causal. `weights` are those of `weights.understanding_slots`. `keeps` makes of a
    layer's keys and values those that are kept; all of them, unless another function is put there. `enter` makes a
    prompt's rows where others come before these layers, and `leave` takes them where others follow."""

    def __init__(
        self,
        config: TransformerConfig,
        ops: Ops,
        weights: Mapping[str, Tensor],
        layers: LayerSource,
        device: torch.device | str,
    ):
        self.config, self.ops, self.token_embedding, self.layers = config, ops, weights["embed"], layers
        self.device = torch.device(device)
        self.keeps: Callable[[Segment], Segment] = lambda segment: segment
        self.enter: Callable[[Sequence[int]], Residual] | None = None
        self.leave: Callable[[Residual], None] | None = None

    def prefill(self, token_ids: Sequence[int]) -> TextContext:
        """Read one prompt."""
        return self.read([token_ids])[0]

    def read(self, prompts: Sequence[Sequence[int]]) -> list[TextContext]:
        """Read prompts (template, end-of-turn and start-of-vision tokens included), each on its own. Layers may come
        from afar, so that each is asked for once, and reads all prompts."""
        streams = [(self.enter or self.embed)(token_ids) for token_ids in prompts]
        tables = [_table(text_positions(len(ids)), self.config, self.device, self.dtype) for ids in prompts]
        found: list[list[Segment]] = [[] for _ in prompts]
        for i in range(len(self.layers)):
            layer = self.layers[i]
            last = self.leave is None and i == len(self.layers) - 1
            for residual, table, segments in zip(streams, tables, found, strict=True):
                segments.append(self.block(layer, residual, table, last=last))
        if self.leave is not None:
            for residual in streams:
                self.leave(residual)
        return [TextContext(tuple(segments), len(ids)) for segments, ids in zip(found, prompts, strict=True)]

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.dtype

    def embed(self, token_ids: Sequence[int]) -> Residual:
        """The prompt's tokens as rows."""
        rows = self.token_embedding[torch.tensor(token_ids, device=self.token_embedding.device)]
        return Residual(rows.to(self.device))

    def block(self, layer: DecoderLayer, residual: Residual, table: tuple[Tensor, Tensor], *, last: bool) -> Segment:
        """One layer; its keys and values. Of the last layer of all nothing but those is computed, since nobody reads
        the text's hidden states after it."""
        q, k, v, k_for_gen = layer.project(residual, *table)
        # v is a view of the whole projection; a copy lets the rest of that go.
        segment = Segment(k if k_for_gen is None else k_for_gen, v.clone(), static=True)
        if not last:
            attended, _ = self.ops.attention(q, [Segment(k, v)], causal=True)
            del q, k, v, k_for_gen  # the MLP needs their room
            finish(layer, residual, attended)
        return self.keeps(segment)


@dataclass(frozen=True)
class Branches:
    """What stays the same over all steps of a run: the packing, the prompts, their segments as the attention has
    prepared them, per branch and layer, and the rotary tables cos, sin [B, S, D].

    Branches run through the model as one batch; each attends to its own prompt. Positions depend on the prompt's
    length, so branches have different tables.
    """

    packing: Packing
    texts: tuple[TextContext, ...]
    segments: tuple[tuple[Segment, ...], ...]
    cos: Tensor
    sin: Tensor


class GenerationTower:
    """The media tower with its input and output projections. `weights` are those of `weights.generation_slots`. The
    action projections are packed by `kept`, as what no format quantizes is."""

    def __init__(
        self,
        config: TransformerConfig,
        ops: Ops,
        kept: Ops,
        weights: Mapping[str, Any],
        layers: LayerSource,
    ):
        self.config, self.ops, self.kept, self.layers = config, ops, kept, layers
        self.attend: Attend = partial(attend, ops.attention)
        self.norm_final, self.time = weights["norm_final"], (weights["time_1"], weights["time_2"])
        self.device, self.dtype = self.norm_final.device, self.norm_final.dtype
        half = TIMESTEP_FEATURES // 2
        exponents = torch.arange(half, dtype=torch.float32) * (-math.log(TIMESTEP_MAX_PERIOD) / half)
        self.frequencies = (exponents.exp() * config.timestep_scale).unsqueeze(0).to(self.device)
        self.vision_in = weights["vision_in.weight"], weights["vision_in.bias"]
        # None of what a model has not; its items never ask for that.
        self.sound_in: Any = weights.get("sound_in")
        self.project_out = {"vision": weights["vision_out"], "sound": weights.get("sound_out")}
        self.modality_embed: dict[str, Any] = {
            "sound": weights.get("sound_embed"),
            "action": weights.get("action_embed"),
        }
        if config.action_gen:
            self.action_in = self._per_domain(weights, "in", config.action_dim)
            self.action_out = self._per_domain(weights, "out", config.hidden_size)

    def _per_domain(self, weights: Mapping[str, Tensor], way: str, width: int) -> list[Linear]:
        """One Linear per embodiment. A row of the checkpoint is that embodiment's matrix, input-major
        (docs/model.md, section 2.2)."""
        matrix, bias = weights[f"action_{way}.weight"], weights[f"action_{way}.bias"]
        return [self.kept.pack_linear(m.view(width, -1).T.contiguous(), b) for m, b in zip(matrix, bias, strict=True)]

    def branches(self, packing: Packing, texts: Sequence[TextContext]) -> Branches:
        """Everything step-invariant for these items under these prompts."""
        tables = [_table(packing.positions(text.length), self.config, self.device, self.dtype) for text in texts]
        cos, sin = (torch.cat(parts) for parts in zip(*tables, strict=True))
        segments = tuple(tuple(map(self._prepared, text.segments)) for text in texts)
        return Branches(packing, tuple(texts), segments, cos, sin)

    def _prepared(self, segment: Segment) -> Segment:
        if self.ops.prepare is None:
            return segment
        k_BTKD, v_BTKD = segment
        return Segment(k_BTKD, v_BTKD, static=True, prepared=self.ops.prepare(k_BTKD, v_BTKD))

    def forward(
        self, branches: Branches, latents: Sequence[Tensor], timestep: float | Tensor, *, a16: bool = False
    ) -> list[list[Tensor]]:
        """Velocities, in the model dtype, per branch and item, each of its latent's shape and zero on clean frames.

        `latents` are the items' latents (any float dtype); `timestep` is the scheduler's, 0 to 1000: a number,
        or fp32 [1] on the device, with which nothing here depends on a value on the host. With `a16` the layers'
        activations stay in 16 bits, where they have that. The velocity is rectified flow's noise - x0.
        """
        residual = self.embed(branches, latents, timestep)
        self.blocks(residual, branches, 0, len(self.layers), a16=a16)
        return self.heads(residual, branches)

    def embed(self, branches: Branches, latents: Sequence[Tensor], timestep: float | Tensor) -> Residual:
        """The latents as rows, the same for every branch."""
        packing, time, rows = branches.packing, self.timestep_vector(timestep), []
        for item, noisy, latent in zip(packing.items, packing.noisy_frames, latents, strict=True):
            x = latent.to(self.device)
            if item.modality == "vision":
                patch = self.config.latent_patch_size
                rows.append(self.ops.patch_embed(x, *self.vision_in, time, patch=patch, noisy_T=noisy))
                continue
            x = x.to(self.dtype)
            x = self.action_in[item.domain](x) if item.modality == "action" else self.sound_in(x.T)
            x = x + self.modality_embed[item.modality]
            rows.append(x + time if noisy is None else torch.addcmul(x, noisy.unsqueeze(1).to(x.dtype), time))
        return Residual((rows[0] if len(rows) == 1 else torch.cat(rows)).repeat(len(branches.texts), 1))

    def blocks(self, residual: Residual, branches: Branches, first: int, last: int, *, a16: bool = False) -> None:
        """Layers `first` to `last` - 1."""
        for i in range(first, last):
            layer = self.layers[i]
            layer = layer.a16 or layer if a16 else layer
            finish(layer, residual, self._attended(layer, i, residual, branches))

    def sweep(self) -> None:
        """Ask for each layer, as a pass does, and compute nothing: a source may take part in what others compute."""
        for i in range(len(self.layers)):
            self.layers[i]

    def _attended(self, layer: DecoderLayer, i: int, residual: Residual, branches: Branches) -> Tensor:
        """What layer i's attention gives, out_BSHD. With the call q, k and v end: the MLP needs their room."""
        q, k, v, _ = layer.project(residual, branches.cos, branches.sin)
        out = [
            self.attend(branches.packing, text[i], *(x[b : b + 1] for x in (q, k, v)))
            for b, text in enumerate(branches.segments)
        ]
        return out[0] if len(out) == 1 else torch.cat(out)

    def heads(self, residual: Residual, branches: Branches) -> list[list[Tensor]]:
        """Rows to velocities, per branch and item."""
        return self.outputs(self.normed(residual), branches)

    def normed(self, residual: Residual) -> Tensor:
        """The rows as the output projections take them; each is normed by itself."""
        y, _ = self.ops.rms_norm(
            residual.x_MI,
            self.norm_final,
            eps=self.config.rms_norm_eps,
            residual_MI=residual.delta_MI,
            weight_fp32=self.config.weight_fp32_norm,
        )
        return y

    def outputs(self, y: Tensor, branches: Branches) -> list[list[Tensor]]:
        """Normed rows to velocities, per branch and item."""
        packing = branches.packing
        return [self._heads(packing, rows) for rows in y.view(len(branches.texts), packing.length, -1)]

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
            if noisy is not None and not len(noisy):
                out.append(y.new_zeros(item.shape))
                continue
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
