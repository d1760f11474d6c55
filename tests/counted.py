"""Jobs of the published models, and eager ops, for the tests of what a run takes."""

from __future__ import annotations

import json

from tiny_model import TINY, TINY_MODEL

from cosmos3_core.checkpoint.model import describe
from cosmos3_core.model.config import TransformerConfig
from cosmos3_core.plan.cost.fit import Estimate, Job
from cosmos3_core.reference import build_ops

TINY_CONFIG = TransformerConfig.from_json(json.loads((TINY / "transformer/config.json").read_text()), TINY_MODEL)
TINY_VAE = json.loads((TINY / "vae/config.json").read_text())
OPS = build_ops()
VAE = describe("nano").vae


def config_of(name: str) -> TransformerConfig:
    return describe(name).config


def job(width: int, height: int, frames: int, steps: int = 35, guided_steps: int | None = None, **values) -> Job:
    """Guided at every step, unless `guided_steps` says otherwise; with none there is no guidance."""
    guided = steps if guided_steps is None else guided_steps
    numbers = {"guidance": 6.0 if guided else 1.0, "guided_steps": guided, "prompt_tokens": 512, "negative_tokens": 512}
    return Job(width=width, height=height, frames=frames, steps=steps, **numbers | values)


def whole(name: str, *numbers, **values) -> Estimate:
    return Estimate(config_of(name), VAE, job(*numbers, **values), "bfloat16")
