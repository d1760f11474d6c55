"""Runs that came before this one: a stopped one, which goes on, and one whose manifest is repeated."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.tensors import tensor_digest
from ..contract import InputError
from ..files.atomic import atomic

if TYPE_CHECKING:
    from torch import Tensor

    from ..cli.run import Options
    from ..engine.inputs import Inputs
    from ..plan import Plan
    from ..sampling.state import State

PLAN_OPTIONS = ("backend", "dtype", "kernels", "formats")
"""What a stopped run has settled of its plan."""
STAYING = ("required", "save_latents", "manifest")
"""Options that a stopped run goes on with, where they are not given anew."""
FREE = ("output", "tile", "resume", "dry_run", "disabled", *STAYING)
"""Options that may stand beside --resume; all others a stopped run has settled. A tile may, because memory may be what
stopped it."""
NAMES = {"prompt": "a prompt", "fields": "--set", "kernels": "--kernel", "formats": "--format"}
"""Of options that are called otherwise here."""
KEY = "cosmos3.state"


@dataclass(frozen=True)
class Earlier:
    """What a run before this one settles for it: `given` request fields, `options`, the `kernels` that it ran on by op,
    the `latents` that it got, and `why` its backend is taken. A stopped one has `state` and `numbers`, and `pixels`, a
    digest of its picture or clip."""

    given: dict[str, Any]
    options: Options
    kernels: dict[str, str]
    latents: dict[str, str] | None
    why: str
    state: dict[str, Tensor] | None = None
    numbers: dict[str, Any] | None = None
    pixels: str | None = None

    def check_plan(self, plan: Plan) -> None:
        """Another kernel would end in another picture: a stopped run refuses that, a repeated one says so."""
        here = plan.to_json()["kernels"]
        for op, then in self.kernels.items():
            if here.get(op) == then:
                continue
            if self.state is not None:
                found = f"its {op} ran on {then}, and here it would be {here.get(op)}"
                raise InputError(f"--resume {self.options.resume}", found, "Restore that, or start the run again")
            print(f"note: {op} ran on {then} in that run, and is {here.get(op)} here", file=sys.stderr)

    def check_inputs(self, inputs: Inputs) -> None:
        """A stopped run goes on with the picture or clip that it began with, or not at all."""
        if self.state is not None and self.pixels != _pixels_of(inputs):
            found = "the picture or clip that it began with has changed since"
            raise InputError(f"--resume {self.options.resume}", found, "Put the old file back, or start the run again")


def _pixels_of(inputs: Inputs) -> str | None:
    return None if inputs.pixels is None else tensor_digest(inputs.pixels)


def repeated(options: Options, text: str) -> Earlier:
    """`text`, the contents of --request: a JSON object of request fields, or a manifest. Options that were typed go
    before a manifest's."""
    asked = f"--request {options.request}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(asked, f"it is not JSON ({error})", "Give a JSON object of request fields") from None
    if not isinstance(value, dict):
        raise InputError(asked, "it is not a JSON object", 'Write it like {"prompt": "...", "steps": 20}')
    if not (isinstance(value.get("request"), dict) and "cosmos3" in value):
        return Earlier(value, options, {}, None, "")
    if options.profile is not None:
        found = "the manifest has every value already, so there is nothing left for a profile's defaults"
        raise InputError(f"--profile {options.profile} with {asked}", found, "Drop --profile")
    try:
        model, plan, latents = value["model"], value["plan"], value.get("latents")
        then = {"profile": value["profile"]["name"], "dtype": plan["dtype"]}
        if options.model is None:
            then |= {"model": model["name"]} | ({"revision": model["revision"]} if model["revision"] else {})
        named = {op: plan["kernels"][op] for op in plan["named"]} if options.backend is None else {}
        then |= {"backend": plan["backend"]} if options.backend is None else {}
        then |= {"latents": latents["file"]} if latents else {}
        if not all(isinstance(text, str) for table in (then, named, plan["formats"]) for text in table.values()):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        found = "its model, profile or plan is missing or damaged"
        raise InputError(asked, found, "Give a whole manifest, or a JSON object of request fields") from None
    merged = {name: value for name, value in then.items() if getattr(options, name) is None}
    merged |= {"kernels": named | options.kernels, "formats": plan["formats"] | options.formats}
    why = "the manifest has it" if options.backend is None else ""
    return Earlier(value["request"], replace(options, **merged), plan["kernels"], latents, why)


def stopped(options: Options, state: dict[str, Tensor], metadata: dict[str, str]) -> Earlier:
    """The run that --resume names, from the file's tensors, its `state`, and metadata."""
    try:
        saved = json.loads(metadata[KEY])
        then = {name: saved["options"][name] for name in PLAN_OPTIONS}
        then |= {name: getattr(options, name) or saved["options"][name] for name in STAYING}
        then |= {"profile": saved["profile"], "model": saved["model"][0], "revision": saved["model"][1]}
        rest = {name: saved[name] for name in ("kernels", "latents", "numbers", "pixels")}
        why = "the stopped run had it"
        return Earlier(saved["given"], replace(options, **then), why=why, state=state, **rest)
    except (KeyError, TypeError, ValueError):
        found = "it is not a stopped run"
        raise InputError(f"--resume {options.resume}", found, "Give the file a stopped run named") from None


def refuse_settled(options: Options) -> None:
    """InputError for an option that the stopped run has settled."""
    for name, value in vars(options).items():
        if name not in FREE and value not in (None, {}):
            option, what = NAMES.get(name, f"--{name.replace('_', '-')}"), "plan" if name in PLAN_OPTIONS else "request"
            raise InputError(f"{option} with --resume", f"the stopped run has settled its {what}", f"Drop {option}")


def to_keep(options: Options, settled: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """What `stopped` needs besides the state. Paths are whole: it may go on in another folder."""
    given, plan = settled["request"], settled["plan"]
    staying = {name: getattr(options, name) for name in (*PLAN_OPTIONS, *STAYING)}
    staying |= {name: os.path.abspath(staying[name]) for name in ("save_latents", "manifest") if staying[name]}
    return {
        "given": given | {key: os.path.abspath(given[key]) for key in ("image", "video") if given[key]},
        "profile": settled["profile"]["name"],
        "model": [settled["model"]["name"], settled["model"]["revision"]],
        "options": staying | {"backend": plan["backend"], "dtype": plan["dtype"]},
        "kernels": plan["kernels"],
        "latents": settled.get("latents"),
        "pixels": _pixels_of(inputs),
    }


def keep(path: Path, output: Path, state: State, kept: dict[str, Any], before: str | None) -> None:
    """Save what was computed, so that a stop, a full disk or too small a memory does not cost it. `before` is the file
    that this run went on from."""
    if state.index == 0:
        return
    try:
        kept_state, numbers = state.to_tensors()
        if not kept_state["x"].isfinite().all():
            return  # there is nothing to go on with
        write_tensors(path, kept_state, {KEY: json.dumps(kept | {"numbers": numbers})})
    except Exception as error:  # a full disk, a device that no longer answers
        still = f"; {before} still holds those before it" if before else ""
        tell(f"{state.index} of {state.steps} steps are lost: {error}{still}")
        return
    resume = shlex.join(["cosmos3", "run", "--resume", str(path), "-o", str(output)])
    tell(f"{state.index} of {state.steps} steps are kept; go on with: {resume}")


def tell(line: str) -> None:
    """A line on stderr, which may be a terminal that was closed."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def read_tensors(name: str, asked: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(asked, f"it cannot be read ({error})", "Give a safetensors file that cosmos3 wrote") from None


def write_tensors(path: Path, named: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    with atomic(path) as temporary:
        temporary.write_bytes(save(named, metadata))
