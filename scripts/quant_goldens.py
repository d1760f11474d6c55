"""Write tests/goldens/quant/*.npz: small tensors as public packages quantize and dequantize them, which
tests/test_quant_goldens.py compares with `cosmos3_core.quant` bit for bit.

pip install gguf==0.19.0 auto-round==0.16.1 compressed-tensors==0.20.1 torchao==0.18.0 bitsandbytes==0.50.2 \
    nvidia-modelopt==0.47.0          # in an environment of its own
python scripts/quant_goldens.py      # or with names: only these

Each file has the package's version in `version`. What numpy has no dtype for is stored as its bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens" / "quant"
GROUP = 32
"""Of integer weights here: narrow, so that few numbers have many groups."""


def ordinary() -> Tensor:
    """fp32 [32, 64]: rows from small to large, one output 50 times larger, some features much larger than the rest."""
    stream = torch.Generator().manual_seed(18)
    x = torch.randn(32, 64, generator=stream) * torch.logspace(-2, 1, 32).unsqueeze(1)
    x[3] *= 50
    x[:, 7] *= 20
    return x


def extreme() -> Tensor:
    """fp32 [8, 128]: what rules differ about. Ties, both extremes, zeros, an outlier, tiny and one-sided blocks."""
    stream = torch.Generator().manual_seed(19)
    x = torch.randn(8, 128, generator=stream)
    x[0] = torch.randint(-16, 17, (128,), generator=stream) / 2  # ties
    x[1, ::32], x[1, 1::32] = 4.0, -4.0  # the largest has both signs
    x[2, 32:96] = 0
    x[3, 100] = 3e4
    x[4] *= 1e-6
    x[5] = x[5].abs() + 3
    x[6] = -x[6].abs()
    x[7] = 0.375
    return x


def raw(value: Tensor) -> np.ndarray:
    """As numpy, or as bytes where it has no such dtype."""
    value = value.detach().contiguous()
    known = (torch.float32, torch.float16, torch.int32, torch.int8, torch.uint8, torch.int64)
    return (value if value.dtype in known else value.view(torch.uint8)).numpy()


def gguf() -> dict[str, np.ndarray]:
    """Blocks that it packs, and what these and random super blocks mean."""
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    made: dict[str, np.ndarray] = {}
    for rows, x in (("ordinary", ordinary()[::4]), ("extreme", extreme())):
        for name in ("q4_0", "q5_1", "q8_0"):
            made[f"{name}_{rows}"] = quantize(x.numpy(), Kind[name.upper()])
            made[f"{name}_{rows}_values"] = dequantize(made[f"{name}_{rows}"], Kind[name.upper()])
    random = np.random.default_rng(20)
    for name, size, halves in (("q4_k", 144, (0, 2)), ("q6_k", 210, (208,))):
        blocks = random.integers(0, 256, (4, 2, size), dtype=np.uint8)
        for at in halves:
            numbers = random.standard_normal((4, 2, 1)).astype(np.float16) / np.float16(64)
            blocks[..., at : at + 2] = (abs(numbers) if name == "q4_k" else numbers).view(np.uint8)
        made[name] = blocks.reshape(4, -1)
        made[f"{name}_values"] = dequantize(made[name], Kind[name.upper()])
    return made


def auto_round() -> dict[str, np.ndarray]:
    """Its rounding to nearest in int4 and MX, and layers as it packs them in the layouts of GPTQ and AWQ."""
    from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym
    from auto_round.data_type.mxfp import quant_mx
    from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
    from auto_round_extension.torch.qlinear_torch import QuantLinear as Plain
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as LessOne

    made: dict[str, np.ndarray] = {}
    for rows, x in (("ordinary", ordinary()), ("extreme", extreme())):
        for kind, quantize in (("sym", quant_tensor_sym), ("asym", quant_tensor_asym)):
            values, scale, zero = quantize(x, bits=4, group_size=GROUP, scale_dtype=torch.float32)
            made |= {f"{kind}_{rows}_values": raw(values), f"{kind}_{rows}_scale": raw(scale.reshape(len(x), -1))}
            if kind == "asym":
                made[f"{kind}_{rows}_zero"] = raw(zero.reshape(len(x), -1))
        for bits in (4, 8):
            values, exponent, _ = quant_mx(x, bits=bits, group_size=32)
            made |= {f"mxfp{bits}_{rows}_values": raw(values)}
            made |= {f"mxfp{bits}_{rows}_exponent": raw(exponent.reshape(len(x), -1).to(torch.int8))}
    layer = torch.nn.Linear(64, 32, bias=False)
    layer.weight.data = ordinary()
    for kind, quantize in (("sym", quant_tensor_sym), ("asym", quant_tensor_asym)):
        _, scale, zero = quantize(ordinary(), bits=4, group_size=GROUP, scale_dtype=torch.float16)
        scale = scale.reshape(32, -1)
        zero = zero.reshape(32, -1) if isinstance(zero, Tensor) else int(zero)
        for name, linear in (("gptq", LessOne), ("gptq_v2", Plain)):
            packed = linear(4, GROUP, 64, 32, bias=False)
            packed.device = "cpu"
            packed.pack(layer, scale, zero, device="cpu")
            held = {part: raw(getattr(packed, part)) for part in ("qweight", "qzeros", "scales")}
            made |= {f"{kind}_{name}_{part}": value for part, value in held.items()}
            packed.post_init()
            made[f"{kind}_{name}_values"] = raw(packed(torch.eye(64)).t().float())
        if kind == "asym":
            packed = WQLinear_GEMM.from_linear(layer, 4, GROUP, scales=scale.t(), zeros=zero.t(), device="cpu")
            held = {part: raw(getattr(packed, part)) for part in ("qweight", "qzeros", "scales")}
            made |= {f"awq_{part}": value for part, value in held.items()}
            values = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP)
            made["awq_values"] = raw(values.t().float())
    return made


def compressed_tensors() -> dict[str, np.ndarray]:
    """Scales and codes of its schemes for weights."""
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils.helpers import calculate_qparams

    made: dict[str, np.ndarray] = {}

    def scheme(name: str, x: Tensor, shared: tuple[int, ...], dtype: torch.dtype, **args: object) -> Tensor:
        arguments = QuantizationArgs(**args)
        blocks = x.unflatten(-1, (-1, args["group_size"])) if "group_size" in args else x
        scale, zero = calculate_qparams(blocks.amin(shared), blocks.amax(shared), arguments)
        if args["strategy"] == "channel":
            scale, zero = scale.unsqueeze(-1), zero.unsqueeze(-1)
        codes = quantize(x, scale, None if arguments.symmetric else zero, arguments, dtype)
        values = dequantize(codes, scale, None if arguments.symmetric else zero, arguments, torch.float32)
        made.update({f"{name}_scale": raw(scale.float()), f"{name}_values": raw(values)})
        if not arguments.symmetric:
            made[f"{name}_zero"] = raw(pack_to_int32(zero.to(torch.int8), 4, packed_dim=0))
        return codes

    x = ordinary()
    e4m3, four = {"num_bits": 8, "type": "float"}, {"num_bits": 4, "type": "int", "strategy": "group"}
    made["fp8"] = raw(scheme("fp8", x, (-1,), torch.float8_e4m3fn, strategy="channel", **e4m3))
    made["fp8_tensor"] = raw(scheme("fp8_tensor", x, (0, 1), torch.float8_e4m3fn, strategy="tensor", **e4m3))
    made["int8"] = raw(scheme("int8", x, (-1,), torch.int8, num_bits=8, type="int", strategy="channel"))
    for name, symmetric in (("int4", True), ("int4_asym", False)):
        codes = scheme(name, x, (-1,), torch.int8, group_size=GROUP, symmetric=symmetric, **four)
        made[name] = raw(pack_to_int32(codes, 4))
    mx = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8}
    codes = scheme("mxfp4", x, (-1,), torch.float32, num_bits=4, **mx)
    made["mxfp4"] = raw(pack_fp4_to_uint8(codes))
    return made


def torchao() -> dict[str, np.ndarray]:
    """MX by each rule for the exponent."""
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    made: dict[str, np.ndarray] = {}
    for rows, x in (("ordinary", ordinary()[::4]), ("extreme", extreme())):
        for name, dtype in (
            ("mxfp8", torch.float8_e4m3fn),
            ("mxe5m2", torch.float8_e5m2),
            ("mxfp4", torch.float4_e2m1fn_x2),
        ):
            for mode in ScaleCalculationMode:
                scale, values = to_mx(x.bfloat16(), dtype, 32, mode)
                key = f"{name}_{mode.value}_{rows}"
                made |= {f"{key}_scale": raw(scale.view(torch.uint8)), key: raw(values.view(torch.uint8))}
    return made


def bitsandbytes() -> dict[str, np.ndarray]:
    """NF4 and int8."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_quant, quantize_4bit

    made: dict[str, np.ndarray] = {}
    for rows, x in (("ordinary", ordinary()[::4]), ("extreme", extreme())):
        packed, state = quantize_4bit(x, blocksize=64, quant_type="nf4")
        made |= {f"nf4_{rows}": raw(packed), f"nf4_{rows}_absmax": raw(state.absmax)}
        made[f"nf4_{rows}_values"] = raw(dequantize_4bit(packed, state))
        values, absmax, _ = int8_vectorwise_quant(x.half())
        made |= {f"int8_{rows}": raw(values), f"int8_{rows}_absmax": raw(absmax)}
    return made


def modelopt() -> dict[str, np.ndarray]:
    """NVFP4, MXFP8 and FP8 with a scale for the tensor and for blocks."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor

    made: dict[str, np.ndarray] = {}
    for rows, x in (("ordinary", ordinary()[::4]), ("extreme", extreme())):
        packed, scale, whole = NVFP4QTensor.quantize(x.clone(), 16)
        values = packed.dequantize(torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16})
        made |= {f"nvfp4_{rows}": raw(packed._quantized_data), f"nvfp4_{rows}_scale": raw(scale)}
        made |= {f"nvfp4_{rows}_tensor_scale": raw(whole), f"nvfp4_{rows}_values": raw(values)}
        packed, scale = MXFP8QTensor.quantize(x.clone())
        made |= {f"mxfp8_{rows}": raw(packed._quantized_data), f"mxfp8_{rows}_scale": raw(scale)}
    packed, scale = FP8QTensor.quantize(ordinary()[::4])
    made |= {"fp8_tensor": raw(packed._quantized_data), "fp8_tensor_scale": raw(scale)}
    return made


PACKAGES: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "gguf": gguf,
    "auto-round": auto_round,
    "compressed-tensors": compressed_tensors,
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
    "nvidia-modelopt": modelopt,
}


def main(names: list[str]) -> None:
    GOLDENS.mkdir(parents=True, exist_ok=True)
    inputs = SimpleNamespace(ordinary=raw(ordinary()), extreme=raw(extreme()))
    np.savez_compressed(GOLDENS / "inputs.npz", **vars(inputs))
    for name in names or PACKAGES:
        made = PACKAGES[name]()
        np.savez_compressed(GOLDENS / f"{name}.npz", version=np.array(version(name)), **made)
        print(f"{name} {version(name)}: {len(made)} arrays, {(GOLDENS / f'{name}.npz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
