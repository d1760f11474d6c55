"""The model card of a checkpoint that `cosmos3 quantize` writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .choosing import METHODS
from .quantize import SOURCE_CARD

if TYPE_CHECKING:
    from .quantize import Job

SHOWN = ("task", "size", "frames", "steps", "guidance")
"""Fields of a calibration's request that the card has."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def card(job: Job, name: str) -> str:
    """README.md: where the weights are from, and what was done to them."""
    said, policy = job.description, job.policy
    head = ["library_name: diffusers", "tags:", "- cosmos3", "- quantized"]
    if job.model.repository.revision is not None and HUB_ID.fullmatch(job.model.name):
        head += [f"base_model: {job.model.name}", "base_model_relation: quantized"]
    group = f" in groups of {job.format.group}" if job.format.group else ""
    activations = "stay in 16 bits" if job.format.of_inputs is None else f"{job.format.of_inputs.name}, while it runs"
    kept = ["embeddings, the time embedder, the heads and all norms"]
    kept += ["the understanding (text) tower"] * policy.keep_understanding
    if first := policy.keep_first_layers:
        kept.append(f"the first {first} layer{'s' * (first > 1)} of the media tower")
    kept += [f"`{pattern}`" for pattern in policy.keep]
    lines = [
        "---",
        *head,
        "---",
        "",
        f"# {' '.join(name.split())}",
        "",
        f"{job.model.name}, quantized by cosmos3 {said['cosmos3']}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| source | {job.model.name} |",
        f"| its digest | {said['identity']} |",
        f"| format | {job.format.name}{group} |",
        f"| activations | {activations} |",
        f"| codes | {METHODS[job.choosing.method]} |",
        f"| calibration | {_calibration(said['calibration'])} |",
        f"| dialect | {job.row.dialect} |",
        f"| quantized | {len(job.modules)} matrices of decoder layers |",
        f"| in the model's dtype | {'; '.join(kept)} |",
        f"| bytes of the transformer | {job.bytes:,} instead of {job.source_bytes:,} |",
        "",
        "`cosmos3_quantize.json` has the same for programs, with the digest of every file.",
    ]
    if SOURCE_CARD in job.copies:
        lines += ["", f"What the source says of itself, its licence included, is in `{SOURCE_CARD}`."]
    return "\n".join(lines) + "\n"


def _calibration(facts: Mapping[str, Any] | None) -> str:
    """What inputs were measured with."""
    if facts is None:
        return "none: scales are those of the weights"
    request = ", ".join(f"{name} {facts['request'].get(name)}" for name in SHOWN)
    return f"{facts['prompts']} prompts ({request}), {facts['steps']} steps in all, on {facts['device']}"
