"""What the examples ask for, decided before a weight is read: a model, a plan for a device and a request."""

from __future__ import annotations

from typing import Any

from cosmos3_core.checkpoint.model import Model, open_model
from cosmos3_core.plan import Plan, Want, choose_backend, resolve
from cosmos3_core.scenarios.request import Request
from cosmos3_core.scenarios.request import resolve as resolve_request

CUP: dict[str, Any] = {"task": "t2v", "prompt": "a cup", "size": "64x64", "frames": 9, "steps": 4, "seed": 7}


def settle(wanted: dict[str, Any], model: str = "tiny", backend: str = "reference") -> tuple[Model, Plan, Request]:
    """`model` is a folder, a repository on the hub or "tiny", the one inside the package. What `wanted` leaves open
    comes from the model's defaults. Raises InputError for what does not fit together."""
    opened = open_model(model)
    chosen, device, _ = choose_backend(backend)
    plan = resolve(Want.of(opened.config, opened.dtype), chosen, device)
    request, _ = resolve_request(wanted, "reference", opened.facts, pick_seed=lambda: 0)
    return opened, plan, request
