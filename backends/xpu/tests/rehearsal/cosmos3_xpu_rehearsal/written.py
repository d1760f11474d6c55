"""The embedded model as AutoRound's own package writes it without a model, straight from the files.

python -m cosmos3_xpu_rehearsal.written SCHEME FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main(scheme: str, folder: str) -> None:
    from auto_round import AutoRound

    from cosmos3_core.checkpoint.model import open_model
    from cosmos3_core.checkpoint.quantize import source_folder

    source = Path(f"{folder}-source")
    shutil.copytree(source_folder(open_model("embedded")), source)
    made = AutoRound(
        str(source),
        scheme=scheme,
        model_free=True,
        iters=0,
        format="auto_round",
        ignore_layers="proj_in,proj_out,action_proj",
        device_map="cpu",
        enable_torch_compile=False,
    )
    made.quantize_and_save(folder, format="auto_round")


if __name__ == "__main__":  # its processes import this module again
    main(*sys.argv[1:])
