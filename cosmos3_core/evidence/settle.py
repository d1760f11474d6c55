"""From a recipe to a model, a plan and a request: all that can be refused before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import reference
from ..checkpoint.repository import EMBEDDED
from ..contract import Backend, Device, InputError, Kernel, RunError
from ..plan import Choice, Plan, Want, choose_backend, resolve
from ..plan.cost.units import GIB
from ..plan.formats import completed, known
from ..plan.resolve import why_not
from ..scenarios.defaults import PROFILES
from ..settle import Settled, Wish, ground_of
from ..settle import settle as settle_wish
from .recipe import Recipe

if TYPE_CHECKING:
    from ..model.config import TransformerConfig

BASELINE, EXACT, FORMATS, CANDIDATE = "baseline", "exact baseline", "baseline in the recipe's formats", "candidate"
EAGER = {BASELINE: "bfloat16", EXACT: "float32", FORMATS: "bfloat16"}
"""The roles with eager torch for every op, and the dtype of each."""
EVALUATION = "embedded model"
"""The role of the model inside the package, which is evaluated with the recipe's plan."""
PLANNED = ("dtype", "kernels", "formats", "below", "fused", "kept", "kept_below")
"""Of a plan, as JSON has it: what computes."""


def backend_of(recipe: Recipe) -> tuple[Backend, Device]:
    """The backend that the recipe names and its device here. Raises InputError."""
    backend, device, _ = choose_backend(recipe.run["backend"])
    return backend, device


def counted(backend: Backend) -> bool:
    """Whether a process needs a device of its own: a host's processor is everyone's."""
    return backend.torch_device != "cpu"


def settle(
    recipe: Recipe,
    role: str = CANDIDATE,
    *,
    random_weights: bool = False,
    started: int | None = None,
    host_memory: int | None = None,
) -> Settled:
    """The recipe on this machine: as it is written (CANDIDATE, its [plan] asserted), or in one of the roles of EAGER,
    on one device, which several are held against. With `random_weights` a published model needs no repository.
    `started` and `host_memory` are as a Wish has them. Raises InputError; reads no weight, and no model before the
    device is known to fit.
    """
    if recipe.known["state"] == "unsupported":
        raise InputError(f"recipe {recipe.name}", f"unsupported: {recipe.known['reason']}", "See cosmos3 recipes list")
    backend, device = backend_of(recipe)
    recipe.check_device(device, counted=counted(backend) and started is None)
    wish = Wish(
        model=recipe.run["model"],
        described=random_weights,
        given=recipe.given(),
        profile=recipe.run.get("profile", PROFILES[0]),
        dtype=recipe.run.get("dtype"),
        kernels=recipe.kernels,
        formats=recipe.formats,
        high_precision_steps=recipe.high_precision_steps,
        chooses=True,
        parallel=None if role in EAGER else recipe.parallel,
        started=started,
        host_memory=host_memory,
    )
    if role in EAGER:
        formats = recipe.formats if role == FORMATS else {}
        steps = recipe.high_precision_steps if role == FORMATS else None
        backend, kernels = _eager(backend, formats)
        wish = replace(wish, dtype=EAGER[role], kernels=kernels, formats=formats, high_precision_steps=steps)
    settled = settle_wish(wish, on=(backend, device))
    if role == CANDIDATE:
        _check_plan(recipe, settled)
    return settled


def eager_plan(
    config: TransformerConfig, dtype: str, formats: Mapping[str, str], backend: Backend, device: Device
) -> Plan:
    """Eager torch for every op on the backend's device, those with a format in that."""
    backend, kernels = _eager(backend, formats)
    return resolve(Want.of(config, dtype, kernels, formats), backend, device)


def planned(plan: Plan) -> dict[str, Any]:
    """What computes, of a plan for any number of tokens, as JSON."""
    whole = plan.to_json()
    found = {key: whole[key] for key in PLANNED} | {key: whole[key] for key in ("others",) if key in whole}
    if "a16" in whole:
        found["a16"] = {key: whole["a16"][key] for key in ("kernels", "policy")}
    return found


def plan_of_embedded(plan: Plan) -> Plan:
    """The same plan for the model inside the package: the same rows in the same places, formats and dtype. Raises
    InputError with the reason of a row that does not serve a model of its widths."""
    wanted = [row for choice in (*plan.choices, *plan.kept) for row in _rows(choice)]
    backend = replace(plan.backend, kernels=tuple(row for row in plan.backend.kernels if row in wanted))
    config = ground_of(Wish(model=EMBEDDED), on=(plan.backend, plan.device)).model.config
    want = Want.of(config, plan.dtype, formats=plan.formats, policy=plan.a16.policy if plan.a16 else None)
    want = replace(want, tensor=plan.layout.tensor)
    running = [choice for choice in plan.choices if choice.op not in plan.fused]
    for choices, ask in ((running, want), (plan.kept, replace(want, formats={}))):
        for choice in choices:
            for row in _rows(choice):
                if reason := why_not(row, ask, plan.device):
                    raise InputError(f"{choice.op}={row.name}", reason, "Leave it to recipes of other kernels")
    found = resolve(want, backend, plan.device)
    if other := [key for key, value in planned(plan).items() if value != planned(found).get(key)]:
        said = f"a model of its widths has other {' and '.join(other)} with these rows"
        raise InputError("the recipe's plan", said, "Leave it to recipes of other kernels")
    return found


def _rows(choice: Choice) -> tuple[Kernel, ...]:
    return choice.kernel, *(row for _, row in choice.below)


def _eager(backend: Backend, formats: Mapping[str, str]) -> tuple[Backend, dict[str, str]]:
    """The backend, with a row of `rounded` if attention has a format, and the kernels to name by op."""
    names = {row.op: row.name for row in reference.BACKEND.kernels}
    backend, name = completed(backend, formats), formats.get("attention", "none")
    if name != "none":
        from . import rounded  # it imports torch, which takes seconds and a list of recipes does without

        row = rounded.attention_in(known(backend)[name])
        backend, names = replace(backend, kernels=(row,)), names | {"attention": row.name}
    return backend, names


def _check_plan(recipe: Recipe, settled: Settled) -> None:
    try:
        settled.plan.require(recipe.plan, settled.execution.tokens, captured=settled.execution.captured)
    except InputError as error:
        asked = f"recipe {recipe.name}: [plan] {error.asked.removeprefix('`require` ')}"
        raise InputError(asked, error.found, "Correct [plan], or name the kernel in [run.kernels]") from None
    if settled.plan.unpacks and "pack_linear" not in (*recipe.plan, *recipe.kernels):
        asked = f"recipe {recipe.name}: [run.formats] pack_linear={settled.plan.format}"
        raise InputError(asked, settled.plan.notes[0], 'If that is meant, write pack_linear = "eager" into [plan]')


def check_expect(recipe: Recipe, seconds: float, memory: dict[str, int]) -> None:
    """RunError unless the run kept within [expect]. `seconds` is the sum of the run's stages, loading included and the
    start of the process not; the device's peak is what the allocator reserved."""
    found = {"seconds": seconds, "peak_host_gib": memory["host_bytes"] / GIB}
    if "reserved_bytes" in memory:
        found["peak_device_gib"] = memory["reserved_bytes"] / GIB
    missed = []
    for key, bound in recipe.expect.items():
        if key not in found:
            missed.append(f"{key} cannot be measured on {recipe.device['name']}")
        elif found[key] > bound:
            missed.append(f"{key} is {found[key]:.4g}, and at most {bound:g} was expected")
    if missed:
        next_step = "Find what changed; the output itself was made"
        raise RunError(f"recipe {recipe.name}: [expect]", "; ".join(missed), next_step)
