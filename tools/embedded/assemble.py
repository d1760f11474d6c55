"""Make the checkpoint of what the legs left: the hub's layout, bf16, in shards, with checksums.

    python -m tools.embedded.assemble LEGS [FOLDER]

LEGS holds vae.safetensors and vae.json, sound.safetensors and towers.safetensors. Without a FOLDER it becomes the model
inside the package, whose weights have to be removed before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from cosmos3_core.checkpoint.tensors import save_tensors
from cosmos3_core.files.digests import sha256_file

from .leg import kept
from .text import REPOSITORY

LARGEST_SHARD = 10_000_000
SUMS = "SHA256SUMS"
MADE = ("*.safetensors", "*.safetensors.index.json", SUMS)
"""What is not copied from the package's."""


def transformer(towers: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the tensors that making media does not use, so that other programs find all of a Cosmos3. The timestep's are
    bf16 too, as training has computed with them."""
    embed, norm = towers["embed_tokens.weight"], torch.ones_like(towers["norm_moe_gen.weight"])
    whole = towers | {"lm_head.weight": embed, "norm.weight": norm}
    return {name: tensor.to(torch.bfloat16, copy=True) for name, tensor in sorted(whole.items())}


def assemble(legs: Path, folder: Path = REPOSITORY) -> None:
    """Write the checkpoint. Raises InputError where FOLDER already holds weights."""
    if folder.resolve() != REPOSITORY.resolve():
        shutil.copytree(REPOSITORY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*MADE))
    save_tensors(folder / "transformer", transformer(kept(legs / "towers.safetensors")), max_shard_bytes=LARGEST_SHARD)
    for name, part in (("vae", "vae"), ("sound_tokenizer", "sound")):
        tensors = {key: tensor.bfloat16() for key, tensor in kept(legs / f"{part}.safetensors").items()}
        save_tensors(folder / name, tensors, max_shard_bytes=LARGEST_SHARD)
    said, file = json.loads((legs / "vae.json").read_text()), folder / "vae" / "config.json"
    found = {name: [round(x, 5) for x in said[name]] for name in ("latents_mean", "latents_std")}
    file.write_text(json.dumps(json.loads(file.read_text()) | found, indent=2) + "\n")
    (folder / SUMS).write_text(sums(folder))


def sums(folder: Path) -> str:
    """The SHA-256 of every file but the card and this list, as `sha256sum --check` reads them."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return "".join(f"{sha256_file(folder / name)}  {name}\n" for name in names if name not in (SUMS, "README.md"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("legs", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY)
    arguments = parser.parse_args()
    assemble(arguments.legs, arguments.folder)
