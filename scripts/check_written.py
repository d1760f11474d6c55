"""Have nvidia-modelopt and compressed-tensors read what `cosmos3 quantize` writes, and compare bit for bit.

    python scripts/check_written.py [--model embedded]

It needs an environment with `PACKAGES`. Of compressed-tensors its own configuration and decompressor are used, on a
model of linear layers with the checkpoint's names and shapes; of ModelOpt its quantizer, its export of a weight, and
its tensor class. What needs a calibration is calibrated with prompts of the embedded model's world.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos3_core.checkpoint.model import Model, Weights, open_model
from cosmos3_core.checkpoint.policy import Policy
from cosmos3_core.checkpoint.quantize import prepare, with_defaults
from cosmos3_core.checkpoint.writing import write
from cosmos3_core.evidence.quantizing.collect import collected
from cosmos3_core.evidence.quantizing.prompts import WORLD, prompts_of
from cosmos3_core.evidence.quantizing.session import Session
from cosmos3_core.quant.dialects.written import WRITTEN, Written
from cosmos3_core.quant.numerics import unpack

PACKAGES = ("nvidia-modelopt", "compressed-tensors")
Named = dict[str, Tensor]


def skeleton(weights: Named) -> nn.Module:
    """Linear layers with these names and weights."""
    root = nn.Module()
    for name, weight in weights.items():
        *path, last = name.split(".")
        inner = root
        for part in path:
            if not hasattr(inner, part):
                inner.add_module(part, nn.Module())
            inner = getattr(inner, part)
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight
        inner.add_module(last, linear)
    return root


def compressed(said: dict, tensors: Named, own: Named) -> Named:
    """compressed-tensors' way from a checkpoint to weights: the config is applied to the model, its parameters become
    compressed ones, the file's tensors are loaded into these, strictly, and decompressed."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    model, config = skeleton(own), QuantizationConfig.model_validate(said)
    apply_quantization_config(model, config)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    missing, extra = model.load_state_dict(tensors, strict=False)
    assert not missing and not extra, (missing, extra)
    compressor.decompress_model(model)
    return {name: one.weight.detach() for name, one in model.named_modules() if isinstance(one, nn.Linear)}


def differing(said: dict, tensors: Named, own: Named, mine: Named) -> int:
    """How many of these numbers are not those that compressed-tensors itself makes of the weights, with the scales that
    the file has."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    (group,) = said["config_groups"].values()
    args, differ = QuantizationArgs.model_validate(group["weights"]), 0
    for name, found in mine.items():
        scale = tensors[f"{name}.weight_scale"].float()
        differ += int((fake_quantize(own[name].float(), scale, torch.zeros_like(scale), args) != found).sum())
    return differ


def modelopt(said: dict, tensors: Named, own: Named) -> Named:
    """ModelOpt's tensor class with what is in the file; its own quantizer and export of the same weights give the same
    description, names, shapes and dtypes."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
    from modelopt.torch.export.quant_utils import (
        get_activation_scaling_factor,
        get_weight_scaling_factor,
        to_quantized_weight,
    )
    from modelopt.torch.quantization.qtensor import FP8QTensor

    kept = said["ignore"]
    static = said["quant_algo"] == "FP8"
    quantization = {"quant_algo": said["quant_algo"], "exclude_modules": kept}
    theirs = convert_hf_quant_config_format({"producer": said["producer"], "quantization": quantization})
    print(
        "  the description differs in",
        {k for k in theirs.keys() | said.keys() if theirs.get(k) != said.get(k)} or "nothing",
    )
    quantized = {name: weight for name, weight in own.items() if f"{name}.weight_scale" in tensors}
    config = mtq.FP8_DEFAULT_CFG if static else mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG
    model = mtq.quantize(skeleton({n: w.float() for n, w in quantized.items()}), config)
    found, differ, numbers = {}, 0, 0
    for name in quantized:
        linear = model.get_submodule(name)
        scale = get_weight_scaling_factor(linear)
        weight = to_quantized_weight(linear.weight.detach(), scale, "fp8" if static else "fp8_pc_pt")
        scale = scale.reshape(()) if static else scale  # its export does so last
        mine = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        for one, other in zip((weight, scale), mine, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), (name, one.shape, one.dtype, other.shape)
        differ += int((weight.float() != mine[0].float()).sum()) + int((scale != mine[1]).sum())
        numbers += weight.numel() + scale.numel()
        by = mine[1] if static else mine[1][:, None]
        found[name] = FP8QTensor(mine[0].shape, torch.float32, mine[0]).dequantize(scale=by)
        if static:
            inputs = linear.input_quantizer
            inputs.amax = tensors[f"{name}.input_scale"] * inputs.maxbound
            theirs = get_activation_scaling_factor(linear)
            assert torch.equal(theirs.reshape(()), tensors[f"{name}.input_scale"]), (name, theirs)
    print(f"  of {numbers:,} numbers and scales that its export writes {differ} differ from these")
    return found


def check(source: Model, row: Written, out: Path) -> bool:
    """Quantize a model, with a layer that stays, and have the dialect's package read it."""
    policy = with_defaults(Policy(keep=("layers.1.*",)), 0)
    job = prepare(source, format=row.format.name, dialect=row.dialect, group=None, policy=policy)
    if job.choosing.calibrates:
        prompts = prompts_of(WORLD)[:2]
        session = Session.of(source.name, None, "reference", prompts, {"steps": 2})
        job = job.calibrated(collected(job, session, prompts, out.with_suffix(".safetensors"), lambda *_: None))
    write(job, out, lambda *_: None)
    said = json.loads((out / "transformer/config.json").read_text())["quantization_config"]
    every: Named = {}
    for file in (out / "transformer").glob("*.safetensors"):
        every |= load_file(file)
    written = Weights(open_model(str(out))).quantized
    assert written
    mine = {name: unpack(packed) for name, packed in written.weights(job.modules)}
    own = {name: tensor.clone() for name, tensor in _matrices(source)}
    tensors = {name: tensor for name, tensor in every.items() if name.rpartition(".")[0] in own}
    print(f"{row.dialect} {row.format.name}: {len(mine)} modules, {len(own) - len(mine)} that stay")
    read = (modelopt if row.dialect == "modelopt" else compressed)(said, tensors, own)
    right = [n for n, found in read.items() if torch.equal(found, mine[n].to(found.dtype) if n in mine else own[n])]
    print(f"  its loader reads {len(right)} of {len(read)} bit for bit")
    if row.dialect == "compressed-tensors":
        print(f"  {differing(said, tensors, own, mine)} numbers differ from those that it makes of the weights")
    return len(right) == len(read) and read.keys() >= mine.keys()


def _matrices(source: Model) -> Iterator[tuple[str, Tensor]]:
    """Those of the decoder layers, by their modules."""
    weights = Weights(source)
    names = {raw: name.removesuffix(".weight") for name, raw in weights.raw_names.items()}
    infos = weights.transformer.tensors
    wanted = [raw for raw, name in names.items() if name.startswith("layers.") and len(infos[raw].shape) == 2]
    for raw, tensor in weights.transformer.read(wanted):
        yield names[raw], tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    source = open_model(parser.parse_args().model)
    print(", ".join(f"{package} {version(package)}" for package in PACKAGES))
    with tempfile.TemporaryDirectory() as folder:
        right = [check(source, row, Path(folder) / f"{row.dialect}-{row.format.name}") for row in WRITTEN]
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
