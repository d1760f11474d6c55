"""Write the quantized checkpoints that the tests of the dialects read: the tiny model's, each by the package whose
dialect it is.

    python scripts/dialect_fixtures.py [NAME ...]

It needs an environment with `PACKAGES` beside torch, diffusers and transformers. Of each checkpoint tests/dialects/NAME
holds the config and the tensors that differ from tests/tiny, which is what makes the quantized modules few: mostly the
media tower's second layer. fixtures.json says by which versions they were written and, for each quantized module, the
digest of what the package itself makes of its weight.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cosmos3_core.checkpoint.tensors import tensor_digest

TINY = Path(__file__).parents[1] / "tests" / "tiny"
OUT = Path(__file__).parents[1] / "tests" / "dialects"
PACKAGES = ("nvidia-modelopt", "compressed-tensors", "auto-round", "gguf", "bitsandbytes", "torchao")
STEM = "diffusion_pytorch_model"
MEDIA = ("layers.1.self_attn.add_", "layers.1.self_attn.to_add_out", "layers.1.mlp_moe_gen.")
LAYER = ("layers.1.",)
MLP = ("gate", "up", "down")
GROUP = 32

Weights = dict[str, Tensor]
"""A module's name to what the package makes of its weight."""


def model() -> nn.Module:
    """The tiny model's transformer as diffusers loads it."""
    from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer

    return Cosmos3OmniTransformer.from_pretrained(TINY / "transformer", torch_dtype=torch.bfloat16)


def linears(module: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Linear]:
    """Its linear layers whose names begin so."""
    named = module.named_modules()
    return {name: one for name, one in named if name.startswith(prefixes) and isinstance(one, nn.Linear)}


def feed(module: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Inputs for what calibrates itself; layers that read the same input get the same."""
    for name, linear in linears(module, prefixes).items():
        seed = 7 if any(part in name for part in ("_q", "_k", "_v", "gate", "up")) else 8
        drawn = torch.randn(16, linear.in_features, generator=torch.Generator().manual_seed(seed))
        linear(drawn.to(torch.bfloat16))


def config_of() -> dict[str, Any]:
    return json.loads((TINY / "transformer" / "config.json").read_text())


def keep(name: str, tensors: dict[str, Tensor], config: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Write what differs from the tiny model's own."""
    own = load_file(TINY / "transformer" / f"{STEM}.safetensors")
    same = {n for n, t in tensors.items() if n in own and t.dtype == own[n].dtype and torch.equal(t, own[n])}
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    left = {n: t.contiguous() for n, t in tensors.items() if n not in same}
    # The tiny model's timestep MLP is bf16, and a package that loads it by diffusers writes it in fp32.
    left = {n: t for n, t in left.items() if not n.startswith("time_embedder.")}
    save_file(left, folder / f"{STEM}.safetensors", metadata={"format": "pt"} | (metadata or {}))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def modelopt(name: str) -> Weights:
    """ModelOpt's export of a diffusers model: FP8 with static scales, or NVFP4."""
    import modelopt.torch.export as export
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    fp8 = name == "modelopt-fp8"
    prefixes = LAYER if fp8 else MEDIA
    chosen = copy.deepcopy(mtq.FP8_DEFAULT_CFG if fp8 else mtq.NVFP4_DEFAULT_CFG)
    module = model()
    every = {n for n, one in module.named_modules() if isinstance(one, (nn.Linear, nn.Embedding))}
    others = every - linears(module, prefixes).keys()
    chosen["quant_cfg"] += [{"quantizer_name": f"{n}.*", "enable": False} for n in sorted(others)]
    mtq.quantize(module, chosen, lambda one: feed(one, prefixes))
    with tempfile.TemporaryDirectory() as folder:
        export.export_hf_checkpoint(module, dtype=torch.bfloat16, export_dir=folder)
        tensors = load_file(Path(folder) / f"{STEM}.safetensors")
        written = json.loads((Path(folder) / "config.json").read_text())["quantization_config"]
    if fp8:  # as the official revision of Cosmos3-Nano has it
        written["runtime"] = {"diffusion_step_policy": POLICY}
    keep(name, tensors, config_of() | {"quantization_config": written})
    found = {}
    for n in linears(module, prefixes):
        weight, scale = tensors[f"{n}.weight"], tensors[f"{n}.weight_scale"]
        if fp8:
            found[n] = FP8QTensor(weight.shape, torch.float32, weight).dequantize(scale=scale)
        else:
            shape = torch.Size((weight.shape[0], weight.shape[1] * 2))
            quantized = NVFP4QTensor(shape, torch.float32, weight)
            second = tensors[f"{n}.weight_scale_2"]
            found[n] = quantized.dequantize(scale=scale, double_scale=second, block_sizes={-1: 16})
    return found


POLICY = {
    "schema_version": 1,
    "type": "first_last_n",
    "index_space": "denoising_loop_iteration",
    "scope": ["transformer"],
    "default_mode": "native",
    "first_steps": {"count": 3, "mode": "a16"},
    "last_steps": {"count": 3, "mode": "a16"},
    "overlap": "a16",
    "reasoner": "a16",
}


def compressed(name: str) -> Weights:
    """compressed-tensors: the scheme is applied, scales are the observed extremes', and its compressor writes."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    form, weights, inputs = COMPRESSED[name]
    module = model()
    targets = list(linears(module, MEDIA))
    scheme = {"targets": targets, "weights": weights, "input_activations": inputs}
    apply_quantization_config(module, QuantizationConfig(config_groups={"group_0": scheme}))
    for one in linears(module, MEDIA).values():
        args, weight = one.quantization_scheme.weights, one.weight.data
        whole = generate_gparam(weight.min(), weight.max()) if hasattr(one, "weight_global_scale") else None
        shared = weight.unflatten(1, (-1, args.group_size)) if args.group_size else weight
        if args.strategy == "tensor":
            low, high = weight.min().reshape(1), weight.max().reshape(1)
        elif args.strategy == "channel":
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        else:
            low, high = shared.amin(-1), shared.amax(-1)
        scale, zero = calculate_qparams(low, high, args, global_scale=whole)
        one.weight_scale.data = scale.to(one.weight_scale.dtype).reshape(one.weight_scale.shape)
        if hasattr(one, "weight_zero_point"):
            one.weight_zero_point.data = zero.to(one.weight_zero_point.dtype).reshape(one.weight_zero_point.shape)
        if whole is not None:
            one.weight_global_scale.data = whole.reshape(1)
        for extra in ("input_scale", "input_global_scale"):
            if hasattr(one, extra):
                getattr(one, extra).data.fill_(0.03125 if extra == "input_scale" else 96.0)
    compressor = ModelCompressor.from_pretrained_model(module, quantization_format=form)
    compressor.compress_model(module)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_of()))
        compressor.update_config(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
    keep(name, {n: t.detach().clone() for n, t in module.state_dict().items()}, config)
    compressor.decompress_model(module)
    return {n: one.weight.detach() for n, one in linears(module, MEDIA).items()}


TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True}
COMPRESSED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "ct-float": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True},
    ),
    "ct-float-static": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True},
        {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True},
    ),
    "ct-int": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}, TOKEN),
    "ct-naive": ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}, None),
    "ct-w4a16": ("pack-quantized", INT4 | {"symmetric": True}, None),
    "ct-w4a16-asym": ("pack-quantized", INT4 | {"symmetric": False}, None),
    "ct-mxfp4": (
        "mxfp4-pack-quantized",
        FP4 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"},
        None,
    ),
    "ct-nvfp4": (
        "nvfp4-pack-quantized",
        FP4
        | {
            "strategy": "tensor_group",
            "group_size": 16,
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        },
        FP4
        | {
            "strategy": "tensor_group",
            "group_size": 16,
            "dynamic": "local",
            "scale_dtype": "torch.float8_e4m3fn",
            "zp_dtype": "torch.float8_e4m3fn",
        },
    ),
}


def autoround(name: str) -> Weights:
    """AutoRound without a model (`model_free`): straight from the files, with its list of what it left alone, and with
    proj_in and proj_out, of which that list knows nothing."""
    from auto_round import AutoRound

    scheme = {"autoround-w4a16": "W4A16", "autoround-mxfp8": "MXFP8", "autoround-mxfp4": "MXFP4"}[name]
    stays = (
        "layers.0,action_proj,self_attn.to_q,self_attn.to_k,self_attn.to_v,self_attn.to_out,mlp.gate,mlp.up,mlp.down"
    )
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        shutil.copytree(TINY, source)
        options = {"model_free": True, "device_map": "cpu", "enable_torch_compile": False, "iters": 0}
        made = AutoRound(
            str(source), scheme=scheme, group_size=GROUP, format="auto_round", ignore_layers=stays, **options
        )
        made.quantize_and_save(str(out), format="auto_round")
        (file,) = (out / "transformer").glob("*.safetensors")
        tensors, config = load_file(file), json.loads((out / "transformer" / "config.json").read_text())
    keep(name, tensors, config)
    return _autorounded(scheme, tensors)


def _autorounded(scheme: str, tensors: dict[str, Tensor]) -> Weights:
    """What AutoRound's own layers make of its tensors."""
    from auto_round.experimental.qmodules.mx import MXFP4QuantLinear, MXFP8QuantLinear
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    found = {}
    for n, tensor in tensors.items():
        if n.endswith(".qweight"):
            base = n.removesuffix(".qweight")
            width, outputs = tensor.shape[0] * 8, tensor.shape[1]
            layer = QuantLinear(4, GROUP, width, outputs, False)
            for part in ("qweight", "qzeros", "scales"):
                setattr(layer, part, tensors[f"{base}.{part}"])
            layer.post_init()
            found[base] = layer(torch.eye(width, dtype=torch.float16)).T.contiguous()
        elif n.endswith(".weight_scale"):
            base = n.removesuffix(".weight_scale")
            kind, part = (MXFP4QuantLinear, "weight_packed") if scheme == "MXFP4" else (MXFP8QuantLinear, "weight")
            weight = tensors[f"{base}.{part}"]
            outputs, width = weight.shape[0], weight.shape[1] * (2 if scheme == "MXFP4" else 1)
            layer = kind(width, outputs, None, weight=weight, weight_scale=tensor)
            found[base] = layer.dequant_weight_online()
    return found


def packed(name: str) -> Weights:
    """GPTQ's and AWQ's packings with zero points, by AutoRound's copies of their packing code."""
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear

    awq, module = name == "awq", model()
    tensors, found = dict(module.state_dict()), {}
    for n, linear in linears(module, MEDIA).items():
        blocks = linear.weight.data.float().unflatten(1, (-1, GROUP))
        low, high = blocks.amin(-1).clamp_max(0), blocks.amax(-1).clamp_min(0)
        scales = ((high - low) / 15).half().float()
        zeros = (-low / scales).round().clamp(1, 15)
        linear.weight.data = linear.weight.data.float()
        del tensors[f"{n}.weight"]
        if awq:
            layer = WQLinear_GEMM.from_linear(
                linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
            )
            found[n] = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, 4, GROUP).T.contiguous()
        else:
            layer = QuantLinear(4, GROUP, linear.in_features, linear.out_features, False)
            layer.pack(linear, scales, zeros)
            layer.post_init()
            found[n] = layer(torch.eye(linear.in_features, dtype=torch.float16)).T.contiguous()
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{n}.{part}"] = getattr(layer, part)
        if not awq:
            tensors[f"{n}.g_idx"] = torch.arange(linear.in_features, dtype=torch.int32) // GROUP
    shared = {"bits": 4, "group_size": GROUP}
    quantization = (
        shared | {"quant_method": "awq", "version": "gemm", "zero_point": True, "modules_to_not_convert": None}
        if awq
        else shared
        | {"quant_method": "gptq", "desc_act": False, "sym": False, "lm_head": False, "checkpoint_format": "gptq"}
    )
    keep(name, tensors, config_of() | {"quantization_config": quantization})
    return found


def bitsandbytes(name: str) -> Weights:
    """Linear4bit's state: NF4, its scales plain or quantized once more."""
    import bitsandbytes as bnb

    nested, module = name == "bnb-nf4-nested", model()
    tensors, found = dict(module.state_dict()), {}
    for n, linear in linears(module, MEDIA).items():
        layer = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, False, torch.bfloat16, compress_statistics=nested, quant_type="nf4"
        )
        layer.load_state_dict({"weight": linear.weight.data})
        layer = layer.to("cpu")
        found[n] = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        del tensors[f"{n}.weight"]
        tensors |= {f"{n}.{part}": t.clone() for part, t in layer.state_dict().items()}
    quantization = {
        "quant_method": "bitsandbytes",
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
    }
    keep(name, tensors, config_of() | {"quantization_config": quantization})
    return found


def torchao(name: str) -> Weights:
    """torchao's tensor subclasses, flattened by its own functions for safetensors."""
    from torchao import quantization as ao
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    chosen = {
        "torchao-float8": ao.Float8WeightOnlyConfig(),
        "torchao-int8": ao.Int8WeightOnlyConfig(version=2),
    }[name]
    module = model()
    ao.quantize_(module, chosen, filter_fn=lambda one, n: isinstance(one, nn.Linear) and n.startswith(MEDIA))
    state = {n: t.detach() for n, t in module.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    own = {n for n in state if n not in tensors}
    metadata = {n: text for n, text in metadata.items() if n in own} | {"tensor_names": metadata["tensor_names"]}
    quantization = {"quant_method": "torchao", "quant_type": {"default": _torchao_config(chosen)}}
    keep(name, tensors, config_of() | {"quantization_config": quantization}, metadata)
    return {n.removesuffix(".weight"): state[n].dequantize() for n in own}


def _torchao_config(chosen: Any) -> dict[str, Any]:
    from torchao.core.config import config_to_dict

    return config_to_dict(chosen)


def gguf(name: str) -> Weights:
    """A file of llama.cpp's container: blocks of 32 by gguf's own quantizers, of 256 by AutoRound's."""
    import numpy
    from auto_round.export.export_to_gguf.packing import ggml_quant
    from gguf import GGMLQuantizationType as Kind
    from gguf import GGUFWriter, quants

    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    writer, found = GGUFWriter(folder / f"{STEM}.gguf", "cosmos3"), {}
    writer.add_file_type(2)
    kinds = {"add_q": Kind.Q4_0, "add_k": Kind.Q5_1, "add_v": Kind.Q8_0, "to_add_out": Kind.Q4_0, "gate": Kind.Q8_0}
    wide = {"action_proj_in.fc": Kind.Q4_K, "action_proj_out.fc": Kind.Q6_K}
    state = {n: t for n, t in model().state_dict().items() if n.startswith(MEDIA) or n.startswith("action_proj")}
    for n, tensor in state.items():
        base = n.removesuffix(".weight")
        if base in wide:
            blocks = ggml_quant(tensor.float(), {Kind.Q4_K: "q4_k", Kind.Q6_K: "q6_k"}[wide[base]], device="cpu")
            kind = wide[base]
        elif tensor.dim() == 2 and base in linears(model(), MEDIA):
            kind = next((k for part, k in kinds.items() if part in base), Kind.Q8_0)
            blocks = quants.quantize(tensor.float().numpy(), kind)
        else:
            continue
        blocks = numpy.ascontiguousarray(blocks).view(numpy.uint8)
        writer.add_tensor(n, blocks, raw_dtype=kind)
        found[base] = torch.from_numpy(quants.dequantize(blocks, kind).reshape(tensor.shape).copy())
    for n, tensor in load_file(TINY / "transformer" / f"{STEM}.safetensors").items():
        if n.removesuffix(".weight") not in found and n in ("proj_in.weight", "proj_in.bias", "norm_moe_gen.weight"):
            bits = tensor.view(torch.int16).numpy().view(numpy.uint8)
            writer.add_tensor(n, bits, raw_dtype=Kind.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "config.json").write_text(json.dumps(config_of(), indent=1) + "\n")
    return found


WRITERS: dict[str, tuple[str, Callable[[str], Weights]]] = {
    "modelopt-fp8": ("nvidia-modelopt", modelopt),
    "modelopt-nvfp4": ("nvidia-modelopt", modelopt),
    **dict.fromkeys(COMPRESSED, ("compressed-tensors", compressed)),
    **{f"autoround-{scheme}": ("auto-round", autoround) for scheme in ("w4a16", "mxfp8", "mxfp4")},
    "gptq": ("auto-round", packed),
    "awq": ("auto-round", packed),
    "bnb-nf4": ("bitsandbytes", bitsandbytes),
    "bnb-nf4-nested": ("bitsandbytes", bitsandbytes),
    "torchao-float8": ("torchao", torchao),
    "torchao-int8": ("torchao", torchao),
    "gguf": ("gguf", gguf),
}


def main(names: list[str]) -> None:
    """Write the fixtures of these names, or all."""
    listing = OUT / "fixtures.json"
    known = json.loads(listing.read_text()) if listing.is_file() else {}
    for name in names or WRITERS:
        package, write = WRITERS[name]
        weights = write(name)
        known[name] = {
            "package": f"{package} {version(package)}",
            "modules": {
                # A zero has no sign: ModelOpt gives e2m1's code 8 none.
                n: [str(w.dtype).removeprefix("torch."), tensor_digest((w + 0).contiguous())]
                for n, w in sorted(weights.items())
            },
        }
        listing.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        print(name, len(weights), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
