"""Runs that came before this one: a stopped one, which goes on, and one whose manifest is repeated.

Their files are read like a stranger's: what does not have today's keys and types is refused in one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.tensors import tensor_digest
from ..contract import InputError
from ..files.atomic import atomic
from ..files.sources import check_source
from ..scenarios.families import INPUTS
from ..scenarios.foreign import convert

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.inputs import Inputs
    from ..settle import Settled

KEY = "cosmos3.state"
PLAN_OPTIONS = ("backend", "dtype", "kernels", "formats")
"""What a stopped run has settled of its plan."""
STAYING = ("required", "save_latents", "manifest")
"""Options that a stopped run goes on with, where they are not given anew."""


@dataclass(frozen=True)
class Source:
    """A file of initial latents and the SHA-256 that it had."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a run before this one settles for it: `given` request fields, and where it was a whole run its model, the
    profile, its plan (`kernels` and `formats` that were named), the kernels that it ran on by op (`ran_on`), the
    `latents` that it began with, and of a stopped one the options of `STAYING` and `pixels`, a digest of its picture or
    clip. `note` says what was made of a request of another program."""

    given: dict[str, Any]
    model: str | None = None
    revision: str | None = None
    profile: str | None = None
    backend: str | None = None
    dtype: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    ran_on: Mapping[str, str] = field(default_factory=dict)
    latents: Source | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    save_latents: str | None = None
    manifest: str | None = None
    pixels: str | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        settled: Settled,
        inputs: Inputs,
        latents: Source | None,
        *,
        save_latents: str | None,
        manifest: str | None,
    ) -> Earlier:
        """This run, for one that goes on with it. Paths become whole ones: that may be in another folder."""
        given, plan, wish = settled.request.to_json(), settled.plan, settled.wish
        files = {} if inputs.in_memory else {key: _whole(given[key]) for key in INPUTS}
        return cls(
            given=given | files,
            model=settled.model.name,
            revision=settled.model.repository.revision,
            profile=wish.profile,
            backend=plan.backend.name,
            dtype=plan.dtype,
            kernels=dict(wish.kernels),
            formats=dict(wish.formats),
            ran_on=plan.to_json(settled.execution.tokens)["kernels"],
            latents=latents,
            required=dict(wish.required),
            save_latents=_whole(save_latents),
            manifest=_whole(manifest),
            pixels=pixels_digest(inputs.pixels),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "given": self.given,
            "profile": self.profile,
            "model": [self.model, self.revision],
            "options": {name: getattr(self, name) for name in PLAN_OPTIONS + STAYING},
            "kernels": self.ran_on,
            "latents": self.latents and asdict(self.latents),
            "pixels": self.pixels,
        }

    @classmethod
    def from_json(cls, value: Any) -> Earlier:
        """What `to_json` made, here or in version 0.1.0. Raises KeyError, TypeError or ValueError for anything else."""
        options, (model, revision) = value["options"], value["model"]
        return cls(
            given=_object(value["given"]),
            model=_text(model),
            revision=_text(revision, or_none=True),
            profile=_text(value["profile"]),
            backend=_text(options["backend"]),
            dtype=_text(options["dtype"]),
            kernels=_texts(options["kernels"]),
            formats=_texts(options["formats"]),
            ran_on=_texts(value["kernels"]),
            latents=_source(value["latents"]),
            required=_texts(options["required"]),
            save_latents=_text(options["save_latents"], or_none=True),
            manifest=_text(options["manifest"], or_none=True),
            pixels=_text(value["pixels"], or_none=True),
        )

    @classmethod
    def from_manifest(cls, value: Any) -> Earlier:
        """A run whose manifest this is. Raises KeyError, TypeError or ValueError for anything else."""
        model, plan, kernels = value["model"], value["plan"], _texts(value["plan"]["kernels"])
        return cls(
            given=_object(value["request"]),
            model=_text(model["name"]),
            revision=_text(model["revision"], or_none=True),
            profile=_text(value["profile"]["name"]),
            backend=_text(plan["backend"]),
            dtype=_text(plan["dtype"]),
            kernels={op: kernels[op] for op in plan["named"]},
            formats=_texts(plan["formats"]),
            ran_on=kernels,
            latents=_source(value.get("latents")),
        )


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped between two steps: what it had settled, and its state as `State.to_tensors` has it."""

    earlier: Earlier
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def read_request(text: str, asked: str, name: str) -> Earlier:
    """A JSON object of request fields, a manifest, or a request of another program. `asked` names it in messages; it is
    the file `name`, beside which another program's paths begin ("-": standard input)."""
    value = _one_request(text, asked, name)
    if not (isinstance(value.get("request"), dict) and "cosmos3" in value):
        if (theirs := convert(value, asked, Path(name).parent)) is None:
            return Earlier(given=value)
        return Earlier(given=theirs.given, model=theirs.model, profile=theirs.profile, note=theirs.note)
    try:
        return Earlier.from_manifest(value)
    except (KeyError, TypeError, ValueError):
        found = "its model, profile or plan is missing or damaged"
        raise InputError(asked, found, "Give a whole manifest, or a JSON object of request fields") from None


def _one_request(text: str, asked: str, name: str) -> dict[str, Any]:
    """The object in a file. Other programs take a list of them, or one in each line: a run makes one."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
        pick = f"jq '.[0]' {name}"
    except (ValueError, RecursionError) as error:
        try:
            lines = [line for line in text.splitlines() if line.strip()]
            value, pick = [json.loads(line, object_pairs_hook=_once) for line in lines], f"sed -n 1p {name}"
        except (ValueError, RecursionError):
            value = []
        if not value or not all(isinstance(one, dict) for one in value):
            raise InputError(asked, f"it is not JSON ({error})", "Give a JSON object of request fields") from None
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        if len(value) > 1:
            next_step = f"Give it one of them: {pick} | cosmos3 run `request` -"
            raise InputError(asked, f"it holds {len(value)} requests, and a run makes one", next_step)
        (value,) = value
    if not isinstance(value, dict):
        raise InputError(asked, "it is not a JSON object", 'Write it like {"prompt": "...", "steps": 20}')
    return value


def read_stopped(name: str, asked: str) -> Stopped:
    """The run in the file that `save` wrote. `asked` names it in messages."""
    state, metadata = read_tensors(name, asked)
    try:
        saved = json.loads(metadata[KEY])
        return Stopped(Earlier.from_json(saved), state, _numbers(saved["numbers"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        found = "it is not a stopped run"
        raise InputError(asked, found, "Give the file a stopped run named") from None


def save(path: Path, kept: dict[str, Tensor], numbers: dict[str, Any], run: Earlier) -> bool:
    """Write what was computed, as `State.to_tensors` has it; False where there is nothing to go on with."""
    if not kept["x"].isfinite().all():
        return False
    write_tensors(path, kept, {KEY: json.dumps(run.to_json() | {"numbers": numbers})})
    return True


def unused(path: Path, own: str | None) -> Path:
    """Where to keep a run that was to be kept at `path`: another stopped run that is there stays. The file `own`, which
    this run went on from, is replaced."""
    taken, count = own and os.path.realpath(own), 1
    free = path
    while os.path.lexists(free) and os.path.realpath(free) != taken:
        count += 1
        free = numbered(path, count)
    return free


def numbered(path: Path, count: int) -> Path:
    """The name of a further stopped run that was to be kept at `path`."""
    name, _, suffix = path.name.rpartition(".")
    return path.with_name(f"{name}-{count}.{suffix}")


def pixels_digest(pixels: Tensor | None) -> str | None:
    """Of a picture or clip, if there is one."""
    return None if pixels is None else tensor_digest(pixels)


def read_tensors(name: str, asked: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. `asked` names it in messages."""
    from safetensors import SafetensorError, safe_open

    check_source(name, asked, "Give a safetensors file that cosmos3 wrote")
    try:
        with safe_open(name, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(asked, f"it cannot be read ({error})", "Give a safetensors file that cosmos3 wrote") from None


def write_tensors(path: Path, named: dict[str, Tensor], metadata: dict[str, str], *, overwrite: bool = True) -> None:
    """A safetensors file that is there as a whole or not at all."""
    from safetensors.torch import save as to_bytes

    with atomic(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(to_bytes(named, metadata))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One of two values of a key would be dropped without a word."""
    value: dict[str, Any] = {}
    for key, part in pairs:
        if key in value:
            raise ValueError(f"{key!r} is there twice")
        value[key] = part
    return value


def _whole(path: str | None) -> str | None:
    return os.path.abspath(path) if path else None


def _text(value: Any, or_none: bool = False) -> Any:
    if not (isinstance(value, str) or (or_none and value is None)):
        raise TypeError(f"{value!r} is not text")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {key: _text(text) for key, text in _object(value).items()}


def _source(value: Any) -> Source | None:
    return None if value is None else Source(_text(value["file"]), _text(value["sha256"]))


def _numbers(value: Any) -> dict[str, Any]:
    if type(value["index"]) is not int or value["index"] < 0:
        raise ValueError(f"{value['index']!r} is no step")
    return value
