"""The embedded model as AutoRound's own package writes it: without a model, straight from the files, with the layers
that 4 bits cost most in more of them; or calibrated, by diffusers' pipeline.

python -m cosmos3_xpu_rehearsal.written SCHEME FOLDER [calibrated]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

PROMPTS = "id\tcaption\n0\ta red ball\n1\ttwo green squares\n"
FEW = {"iters": 20, "nsamples": 2, "calib_num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 1}
"""Of the calibration: steps of its search, prompts, and steps of each picture. It is about the way, not the quality."""
LAYERS = range(3, 6)
"""The second half of the embedded model's."""
OTHERWISE: dict[str, dict[str, Any]] = {
    "W4A16": {
        f"layers.{layer}.{name}": {"bits": 16, "data_type": "float"}
        for layer in LAYERS
        for name in ("self_attn.to_add_out", "mlp_moe_gen.down_proj")
    },
    "MXFP4": dict.fromkeys(("moe_gen", "self_attn.add_", "to_add_out"), "MXFP8"),
}
"""As AutoRound's `layer_config`, by scheme: of W4A16 what ends a half of each of those layers of the media tower stays
in 16 bits, and of MXFP4 the media tower is in MXFP8."""


def main(scheme: str, folder: str, how: str = "") -> None:
    from auto_round import AutoRound

    from cosmos3_core.checkpoint.model import open_model
    from cosmos3_core.checkpoint.quantize import source_folder

    source = Path(f"{folder}-source")
    shutil.copytree(source_folder(open_model("embedded")), source)
    given: dict[str, Any] = {"scheme": scheme, "device_map": "cpu", "enable_torch_compile": False}
    given["layer_config"] = OTHERWISE.get(scheme, {})
    if how:
        (source / "prompts.tsv").write_text(PROMPTS)
        widen_training()
        made = AutoRound(str(source), dataset=str(source / "prompts.tsv"), **FEW, **given)
    else:
        kept = "proj_in,proj_out,action_proj"
        made = AutoRound(str(source), model_free=True, iters=0, format="auto_round", ignore_layers=kept, **given)
    made.quantize_and_save(folder, format="auto_round")
    if how:
        complete(Path(folder), source)


def complete(folder: Path, source: Path) -> None:
    """Add what AutoRound leaves out where it calibrates: of the transformer it saves the layers alone."""
    from safetensors.torch import load_file, save_file

    file = folder / "transformer" / "model.safetensors"
    held = {
        name: tensor
        for one in (source / "transformer").glob("*.safetensors")
        for name, tensor in load_file(one).items()
    }
    save_file({name: tensor for name, tensor in held.items() if not name.startswith("layers.")} | load_file(file), file)
    shutil.copytree(source / "assets", folder / "assets")


def widen_training() -> None:
    """As `operators.widen`, for linear layers that gradients go through."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from .operators import widen

    widen("conv2d", "conv3d")
    linear = F.linear

    def wide(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    torch.nn.functional.linear = wide


if __name__ == "__main__":  # its processes import this module again
    main(*sys.argv[1:])
