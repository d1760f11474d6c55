"""Which checkpoint tensor goes where: names, shapes, and how several tensors become one packed weight and a layer.

docs/model.md, sections 1.5 and 1.6. A `Slot` is one destination. Projections that read the same input share one: q, k
and v are one matrix, gate and up another. The trap of the naming: `to_*` is the text stream and `add_*` the media
stream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..contract import FinishWeights, InputError, Layer, Ops, ProjectWeights
from .config import TransformerConfig
from .transformer import DecoderLayer, GenerationTower, LayerSource, UnderstandingTower

Read = Callable[[Iterable[str]], Iterable[tuple[str, Tensor]]]
Weight = Any
"""A matrix: a tensor, a quant.numerics.Packed, or a tuple of these where one product cannot be made of them."""
Hold = Callable[[Callable[[int], DecoderLayer], int], LayerSource]
"""What keeps a tower's layers: of what reads and packs layer i on the device, and how many there are."""
Part = Callable[[Mapping[str, Weight], Layer, str], tuple[dict[str, Weight], Layer]]
"""(a layer's tensors by their slots' keys, its numbers, the format that its matrices are to be in) to those of this
device."""
ReadMatrices = Callable[[Sequence[Sequence[str]], "torch.device | str", torch.dtype], Sequence[Weight | None]]
"""The matrices that modules of a quantized checkpoint make, on a device; None where none of one's is quantized."""


@dataclass(frozen=True)
class Slot:
    """One destination tensor: the checkpoint tensors `parts`, each (name, shape), stacked along dim 0 in order.

    `bias` names the bias that goes with it. `linear` slots are handed to `pack_linear`, others kept as tensors.
    `fp32` slots stay fp32 whatever the model's dtype is (the timestep MLP; docs/model.md, section 2.8). `matrix` slots
    are a decoder layer's, which may be quantized.
    """

    key: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    bias: str | None = None
    linear: bool = False
    fp32: bool = False
    matrix: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(shape[0] for _, shape in self.parts), *self.parts[0][1][1:])

    @property
    def modules(self) -> list[str]:
        """Those whose weights make it."""
        return [name.removesuffix(".weight") for name, _ in self.parts]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every checkpoint tensor of this slot and its shape."""
        return dict(self.parts) | ({self.bias: self.shape[:1]} if self.bias else {})


def _vector(key: str, name: str, size: int) -> Slot:
    return Slot(key, ((name, (size,)),))


def _linear(key: str, name: str, out: int, width: int, *, bias: bool = False, fp32: bool = False) -> Slot:
    weight = ((f"{name}.weight", (out, width)),)
    return Slot(key, weight, bias=f"{name}.bias" if bias else None, linear=True, fp32=fp32)


def _matrix(key: str, width: int, *parts: tuple[str, int]) -> Slot:
    """A decoder layer's matrix without bias: (name, rows) of its parts."""
    return Slot(key, tuple((f"{name}.weight", (rows, width)) for name, rows in parts), matrix=True)


def layer_slots(config: TransformerConfig, i: int, *, media: bool) -> list[Slot]:
    """Decoder layer i of one tower, all of it as tensors: `load_layer` packs them."""
    c, prefix = config, f"layers.{i}"
    attn, suffix = f"{prefix}.self_attn", "_moe_gen" if media else ""
    q, k, v, out = (
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out") if media else ("to_q", "to_k", "to_v", "to_out")
    )
    widths = ((q, c.query_width), (k, c.kv_width), (v, c.kv_width))
    mlp, up = f"{prefix}.mlp{suffix}", ("gate_proj", "up_proj") if c.gated else ("up_proj",)
    slots = [
        _vector("norm_in", f"{prefix}.input_layernorm{suffix}.weight", c.hidden_size),
        _vector("norm_post", f"{prefix}.post_attention_layernorm{suffix}.weight", c.hidden_size),
        _matrix("qkv", c.hidden_size, *((f"{attn}.{name}", width) for name, width in widths)),
        _matrix("out", c.query_width, (f"{attn}.{out}", c.hidden_size)),
        _matrix("up", c.hidden_size, *((f"{mlp}.{name}", c.intermediate_size) for name in up)),
        _matrix("down", c.intermediate_size, (f"{mlp}.down_proj", c.hidden_size)),
    ]
    if media or c.qk_norm_for_text:
        added = "added_" if media else ""
        slots += [_vector(f"norm_{x}", f"{attn}.norm_{added}{x}.weight", c.head_dim) for x in "qk"]
    if not media and c.und_norm_for_gen:
        slots.append(_vector("norm_k_for_gen", f"{attn}.k_norm_und_for_gen.weight", c.head_dim))
    return slots


def understanding_slots(config: TransformerConfig) -> list[Slot]:
    """The text tower's but its layers'. Its final norm and the language head take no part in making media."""
    return [Slot("embed", (("embed_tokens.weight", (config.vocab_size, config.hidden_size)),))]


def generation_slots(config: TransformerConfig) -> list[Slot]:
    """The media tower's but its layers': input and output projections, timestep, final norm."""
    c, hidden = config, config.hidden_size
    slots = [
        Slot("vision_in.weight", (("proj_in.weight", (hidden, c.patch_dim)),)),
        _vector("vision_in.bias", "proj_in.bias", hidden),
        _linear("vision_out", "proj_out", c.patch_dim, hidden, bias=True),
        _linear("time_1", "time_embedder.linear_1", hidden, 256, bias=True, fp32=True),
        _linear("time_2", "time_embedder.linear_2", hidden, hidden, bias=True, fp32=True),
        _vector("norm_final", "norm_moe_gen.weight", hidden),
    ]
    if c.sound_gen:
        slots += [
            _linear("sound_in", "audio_proj_in", hidden, c.sound_dim, bias=True),
            _linear("sound_out", "audio_proj_out", c.sound_dim, hidden, bias=True),
            _vector("sound_embed", "audio_modality_embed", hidden),
        ]
    if c.action_gen:
        for way, width in (("in", hidden), ("out", c.action_dim)):
            name, domains = f"action_proj_{way}", c.num_embodiment_domains
            weight, bias = (domains, hidden * c.action_dim), (domains, width)
            slots += [
                Slot(f"action_{way}.weight", ((f"{name}.fc.weight", weight),)),
                Slot(f"action_{way}.bias", ((f"{name}.bias.weight", bias),)),
            ]
        slots.append(_vector("action_embed", "action_modality_embed", hidden))
    return slots


def tower_slots(config: TransformerConfig, *, media: bool, layers: bool) -> list[Slot]:
    """One tower's, with those of its `layers` or without."""
    slots = generation_slots(config) if media else understanding_slots(config)
    for i in range(config.num_hidden_layers if layers else 0):
        slots += layer_slots(config, i, media=media)
    return slots


def shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every checkpoint tensor that making media takes, by its canonical name, and its shape."""
    slots = understanding_slots(config) + generation_slots(config)
    for i in range(config.num_hidden_layers):
        slots += layer_slots(config, i, media=False) + layer_slots(config, i, media=True)
    return {name: shape for slot in slots for name, shape in slot.tensors().items()}


DECORATION = re.compile(r"lm_head\.weight|norm\.weight|rotary_emb\.inv_freq|(model\.)?visual\..*|action_pos_embed\..*")
"""Tensors a checkpoint may hold that making media does not use; any other extra tensor is an error."""

RUNNABLE = (torch.float32, torch.bfloat16, torch.float16)

_PREFIX = re.compile(r"^(net\.)?(language_model\.)?(model\.)?(?!visual\.)")
_NATIVE = [
    (r"\.self_attn\.([qkv])_proj_moe_gen\.", r".self_attn.add_\1_proj."),
    (r"\.self_attn\.o_proj_moe_gen\.", ".self_attn.to_add_out."),
    (r"\.self_attn\.([qk])_norm_moe_gen\.", r".self_attn.norm_added_\1."),
    (r"\.self_attn\.([qkv])_proj\.", r".self_attn.to_\1."),
    (r"\.self_attn\.o_proj\.", ".self_attn.to_out."),
    (r"\.self_attn\.([qk])_norm\.", r".self_attn.norm_\1."),
    (r"^vae2llm\.", "proj_in."),
    (r"^llm2vae\.", "proj_out."),
    (r"^time_embedder\.mlp\.0\.", "time_embedder.linear_1."),
    (r"^time_embedder\.mlp\.2\.", "time_embedder.linear_2."),
    (r"^action2llm\.", "action_proj_in."),
    (r"^llm2action\.", "action_proj_out."),
    (r"^sound2llm\.", "audio_proj_in."),
    (r"^llm2sound\.", "audio_proj_out."),
    (r"^sound_modality_embed", "audio_modality_embed"),
    (r"_modality_embed\.weight$", "_modality_embed"),
]


def canonical_name(name: str) -> str:
    """A checkpoint tensor's name in diffusers' naming; the native export's names are translated
    (docs/model.md, section 1.6)."""
    name = _PREFIX.sub("", name)
    for pattern, replacement in _NATIVE:
        name = re.sub(pattern, replacement, name)
    return name


TOGETHER = "Check that config.json and the tensor files belong together and are complete"
LAYERS_ALONE = (
    "Its layers are all there, and nothing else: AutoRound saves no more of what it calibrates. Add the other tensors "
    "of the checkpoint that it was made from, as docs/xpu.md has it"
)


def check_names(config: TransformerConfig, found: dict[str, tuple[tuple[int, ...], torch.dtype]], source: str) -> None:
    """`check_tensors` of a transformer's tensors, by their canonical names, against what its config says."""
    expected = shapes(config)
    known = {name: info for name, info in found.items() if name in expected or not DECORATION.fullmatch(name)}
    in_layers = {name for name in expected if name.startswith("layers.")}
    check_tensors(expected, known, source, LAYERS_ALONE if known.keys() == in_layers else TOGETHER)


def check_tensors(
    expected: dict[str, tuple[int, ...]],
    found: dict[str, tuple[tuple[int, ...], torch.dtype]],
    source: str,
    hint: str = TOGETHER,
) -> None:
    """Compare the tensors of a component (name to shape and dtype) with what it should hold (name to shape).

    Raises InputError that names every missing, extra, misshaped or non-floating tensor (the first few of each), and
    gives the hint.
    """
    both = [name for name in expected if name in found]
    problems = [
        _listed("missing", [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]),
        _listed("not part of this model", [name for name in found if name not in expected]),
        _listed(
            "of the wrong shape",
            [f"{n} is {list(found[n][0])} instead of {list(expected[n])}" for n in both if found[n][0] != expected[n]],
        ),
        _listed(
            "of a type that cannot be run as it is",
            [f"{n} is {found[n][1]}" for n in both if found[n][1] not in RUNNABLE],
        ),
    ]
    if any(problems):
        raise InputError(
            f"loading {source}",
            "; ".join(filter(None, problems)),
            hint,
        )


def _listed(label: str, names: list[str], most: int = 6) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} {label}: {', '.join(names[:most])}{more}"


def on_device(load: Callable[[int], DecoderLayer], count: int) -> LayerSource:
    """All layers, where they were packed."""
    return [load(i) for i in range(count)]


@dataclass(frozen=True, kw_only=True)
class InSixteen:
    """How layers whose format quantizes activations compute with these in 16 bits, by the same packed weights: in some
    `steps` of the media tower, and in the `text` tower always. `ops` pack a matrix of any format as it is. `packed`
    makes a 16-bit matrix the packed one that both ways read; `same` gives that with the meaning "activations in 16
    bits", and any other as it is."""

    ops: Ops
    steps: bool
    text: bool
    packed: Callable[[Tensor], Weight]
    same: Callable[[Weight], Weight]

    def of_tower(self, media: bool) -> bool:
        """Whether a tower needs it."""
        return self.steps if media else self.text


@dataclass(frozen=True, kw_only=True)
class Target:
    """What weights become: on `device` and in `dtype`, those of the VAE and the sound codec in `codec_dtype`; the VAE's
    convolutions have their maps `channels_last` or not. The decoder layers' are packed by `ops` in `format`, all
    others, and those of the media tower's first `kept_layers`, by `kept`, which without a format is `ops`. Layers of a
    quantized checkpoint that are not all in `format` are packed by `mixed`, which takes any matrix and as it is. `a16`
    is there where activations are in 16 bits now and then. `part` makes of a layer this device's part of it, `hold`
    keeps the layers, and the token embedding lies on `table` (None: on the device)."""

    ops: Ops
    kept: Ops
    device: torch.device | str
    dtype: torch.dtype
    codec_dtype: torch.dtype
    channels_last: bool = True
    format: str = "none"
    kept_layers: int = 0
    mixed: Ops | None = None
    a16: InSixteen | None = None
    hold: Hold = on_device
    part: Part | None = None
    table: torch.device | str | None = None

    @classmethod
    def plain(cls, ops: Ops, device: torch.device | str, dtype: torch.dtype) -> Target:
        """Without a quantization format."""
        return cls(ops=ops, kept=ops, device=device, dtype=dtype, codec_dtype=dtype)


def load_slots(slots: list[Slot], read: Read, target: Target) -> dict[str, Any]:
    """Fill the slots: key to packed Linear or tensor.

    `read(names)` yields (canonical name, tensor) in any order, which for a sharded checkpoint is shard by shard. Each
    tensor is copied straight into its place in a destination of the final dtype on the final device, and a slot is
    packed the moment it is complete; nothing is held twice.
    """
    places: dict[str, tuple[Slot, str, int]] = {}
    for slot in slots:
        row = 0
        for name, shape in slot.parts:
            places[name] = (slot, "weight", row)
            row += shape[0]
        if slot.bias:
            places[slot.bias] = (slot, "bias", 0)
    waiting = {slot.key: len(slot.tensors()) for slot in slots}
    buffers: dict[tuple[str, str], Tensor] = {}
    done: dict[str, Any] = {}
    for name, tensor in read(places):
        slot, role, row = places[name]
        key = (slot.key, role)
        if key not in buffers:
            shape = slot.shape if role == "weight" else slot.shape[:1]
            dtype = torch.float32 if slot.fp32 else target.dtype
            buffers[key] = torch.empty(shape, dtype=dtype, device=target.device)
        buffers[key][row : row + tensor.shape[0]].copy_(tensor)
        waiting[slot.key] -= 1
        if waiting[slot.key] == 0:
            weight, bias = buffers.pop((slot.key, "weight")), buffers.pop((slot.key, "bias"), None)
            done[slot.key] = target.kept.pack_linear(weight, bias) if slot.linear else weight
    return done


def load_layer(
    config: TransformerConfig, i: int, read: Read, target: Target, matrices: ReadMatrices | None = None, *, media: bool
) -> DecoderLayer:
    """Decoder layer i of one tower, read and packed. A quantized checkpoint's, which `matrices` reads, stay as they
    are: packed in their formats, and those that are not quantized in the model's dtype."""
    slots, layer = layer_slots(config, i, media=media), config.layer
    found: dict[str, Weight | None] = {slot.key: None for slot in slots if slot.matrix}
    if matrices:
        modules = [slot.modules for slot in slots if slot.matrix]
        found = dict(zip(found, matrices(modules, target.device, target.dtype), strict=True))
    held = {key: weight for key, weight in found.items() if weight is not None}
    w = load_slots([slot for slot in slots if slot.key not in held], read, target) | held
    ops, format = target.ops, target.format
    if held:
        names = {getattr(getattr(weight, "format", None), "name", None) for weight in found.values()}
        ops, format = (ops, format) if names == {format} else (target.mixed or ops, "none")
    elif matrices or (media and i < target.kept_layers):
        ops, format = target.kept, "none"
    a16 = target.a16 if target.a16 and target.a16.of_tower(media) else None
    same: dict[str, Weight] = {}
    if a16 and (held or format != "none"):
        w |= {key: a16.packed(w[key]) for key in found if not matrices}
    if target.part:
        w, layer = target.part(w, layer, format)
    if a16 and (held or format != "none"):
        same = {key: a16.same(w[key]) for key in found}
        if all(same[key] is w[key] for key in found):  # none of them has its activations quantized
            same = {}
    try:
        if a16 and same and not media:
            return _packed(w | same, layer, a16.ops, "none")
        made = _packed(w, layer, ops, format)
        return replace(made, a16=_packed(w | same, layer, a16.ops, "none")) if a16 and same else made
    except ValueError as error:
        if not held:
            raise
        next_step = "`kernel` pack_linear=eager does without the kernel"
        raise InputError("packing the checkpoint's weights", str(error), next_step) from error


def _packed(w: Mapping[str, Weight], layer: Layer, ops: Ops, format: str) -> DecoderLayer:
    before = ProjectWeights(w["norm_in"], w["qkv"], w.get("norm_q"), w.get("norm_k"), w.get("norm_k_for_gen"))
    after = FinishWeights(w["out"], w["norm_post"], w["up"], w["down"])
    return DecoderLayer(ops.project(before, layer, ops, format=format), ops.finish(after, layer, ops, format=format))


def _held(
    config: TransformerConfig, read: Read, target: Target, matrices: ReadMatrices | None, *, media: bool
) -> LayerSource:
    def load(i: int) -> DecoderLayer:
        return load_layer(config, i, read, target, matrices, media=media)

    return target.hold(load, config.num_hidden_layers)


def load_understanding(
    config: TransformerConfig, read: Read, target: Target, matrices: ReadMatrices | None = None
) -> UnderstandingTower:
    """The text tower. Its attention, causal and done once, is that of `target.kept`."""
    layers = _held(config, read, target, matrices, media=False)
    place = replace(target, device=target.table or target.device)
    weights = load_slots(understanding_slots(config), read, place)
    return UnderstandingTower(config, target.kept, weights, layers, target.device)


def load_generation(
    config: TransformerConfig, read: Read, target: Target, matrices: ReadMatrices | None = None
) -> GenerationTower:
    """The media tower."""
    layers = _held(config, read, target, matrices, media=True)
    weights = load_slots(generation_slots(config), read, target)
    return GenerationTower(config, target.ops, target.kept, weights, layers)
