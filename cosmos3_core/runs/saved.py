"""Runs that came before this one: a stopped one, which goes on, and one whose manifest is repeated.

Their files are read like a stranger's: what does not have the keys, types and ranges of the tables below is refused in
one line, as is what was changed since it was written. No file names one that will be written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import parse_json
from ..checkpoint.tensors import tensor_digest
from ..contract import InputError
from ..files.digests import sha256_json
from ..files.schema import Anything, Listed, Number, Shape, Table, Text
from ..files.sources import SAID
from ..plan.mesh import ALONE, DEGREES, MOST, Layout
from ..quant.steps import OPTION
from ..scenarios.families import FILES, WORDS, sources
from ..scenarios.foreign import convert
from .sealed import SEAL, read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from ..engine.inputs import Inputs
    from ..scenarios.request import Request
    from ..settle import Settled

KEY = "cosmos3.state"
PLAN_OPTIONS = ("backend", "dtype", "kernels", "formats", OPTION)
"""What a stopped run has settled of its plan."""
STAYING = ("required",)
"""Options that a stopped run goes on with, where they are not given anew."""
SCHEMA = 2
"""Of states and manifests. Version 0.1.0 wrote none, and no digests."""
NO_FILES = "none in files"
"""In the place of a stopped run's weights, where it had some that are no files. Version 0.1.0 said nothing of them."""
CHANGED = "Put the old one back, or add `changed` to take what is there now"


@dataclass(frozen=True)
class Source:
    """A file of initial latents and the SHA-256 that it had."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What a run before this one settles for it: `given` request fields, and where it was a whole run its model, the
    profile, its plan (`kernels`, `formats` and `high_precision_steps` that were named), the kernels that it ran on by
    op (`ran_on`), the `layout` of the devices that shared it, the `latents` that it began with, the SHA-256 of its
    input files by field (`inputs`), which `weights` it had (`Weights.identity`), and of a stopped one the options of
    `STAYING` and `pixels`, a digest of all `media` that it is conditioned on, made as it is saved. `note` says what was
    made of a request of another program. A file of version 0.1.0 has no digests."""

    given: dict[str, Any]
    model: str | None = None
    revision: str | None = None
    profile: str | None = None
    backend: str | None = None
    dtype: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    high_precision_steps: str | None = None
    ran_on: Mapping[str, str] = field(default_factory=dict)
    layout: Layout = ALONE
    latents: Source | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    pixels: str | None = None
    media: Sequence[Tensor | None] = ()
    note: str = ""

    @classmethod
    def of(cls, settled: Settled, inputs: Inputs, latents: Source | None) -> Earlier:
        """This run, for one that goes on with it. Paths become whole ones: that may be in another folder."""
        plan, wish = settled.plan, settled.wish
        return cls(
            given=settled.request.to_json() | whole_paths(settled.request),
            model=settled.model.name,
            revision=settled.model.repository.revision,
            profile=wish.profile,
            backend=plan.backend.name,
            dtype=plan.dtype,
            kernels=dict(wish.kernels),
            formats=dict(wish.formats),
            high_precision_steps=wish.high_precision_steps,
            ran_on=ran_on(plan.to_json(settled.execution.tokens)),
            latents=latents,
            inputs=_digests(inputs.facts),
            required=dict(wish.required),
            media=inputs.given,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "given": self.given,
            "profile": self.profile,
            "model": [self.model, self.revision],
            "weights": self.weights,
            "options": {name: getattr(self, name) for name in PLAN_OPTIONS + STAYING},
            "kernels": self.ran_on,
            "latents": self.latents and asdict(self.latents),
            "inputs": self.inputs,
            "pixels": self.pixels or given_digest(self.media),
        }

    @classmethod
    def from_json(cls, value: Any) -> Earlier:
        """What `to_json` made, here or in version 0.1.0. Raises ValueError, a sentence, for anything else."""
        _check_version(value)
        (STATE if "schema" in value else STATE_0_1_0).check(value, "it")
        options, (model, revision) = value["options"], value["model"]
        return cls(
            given=value["given"],
            model=model,
            revision=revision,
            profile=value["profile"],
            backend=options["backend"],
            dtype=options["dtype"],
            kernels=options["kernels"],
            formats=options["formats"],
            high_precision_steps=options.get(OPTION),
            ran_on=value["kernels"],
            latents=_source(value["latents"]),
            inputs=value.get("inputs", {}),
            weights=value.get("weights"),
            required=options["required"],
            pixels=value["pixels"],
        )

    @classmethod
    def from_manifest(cls, value: Any) -> Earlier:
        """A run whose manifest this is. Raises ValueError, a sentence, for anything else."""
        _check_version(value)
        MANIFEST.check(value, "it")
        model, plan, kernels = value["model"], value["plan"], value["plan"]["kernels"]
        if lost := [op for op in plan["named"] if op not in kernels]:
            raise ValueError(f"it.plan.named has {lost[0]!r}, and it.plan.kernels has not")
        return cls(
            given=value["request"],
            model=model["name"],
            revision=model["revision"],
            profile=value["profile"]["name"],
            backend=plan["backend"],
            dtype=plan["dtype"],
            kernels={op: kernels[op] for op in plan["named"]},
            formats=plan["formats"],
            high_precision_steps=plan.get(OPTION),
            ran_on=ran_on(plan),
            layout=Layout(**plan["parallel"]["layout"]) if "parallel" in plan else ALONE,
            latents=_source(value.get("latents")),
            inputs=_digests(value.get("inputs", {})),
            weights=value.get("weights"),
        )

    def changes(self, request: Request, inputs: Inputs, latents: Source | None) -> Iterator[str]:
        """What of this run's input files is no longer what it was, in words. Who names another file asks for it."""
        now, found = sources(whole_paths(request)), _digests(inputs.facts)
        then = sources({name: self.given.get(name) for name in FILES})
        for label, digest in self.inputs.items():
            path = then.get(label)
            if path and path == now.get(label) and found.get(label) != digest:
                yield f"its {label} {path} has changed since the run of that manifest"
        if self.latents and latents and self.latents.file == latents.file and self.latents != latents:
            yield f"the file of its noise {latents.file} has changed since the run of that manifest"

    def other_weights(self, settled: Settled, weights: str | None) -> str | None:
        """That the model of this run has other weights than it had, in words. Who names another model asks for it."""
        model = settled.model
        if self.weights in (None, weights or NO_FILES) or (self.model, self.revision) != (
            model.name,
            model.repository.revision,
        ):
            return None
        return f"the weights of {self.model} have changed since"


def ran_on(plan: Mapping[str, Any]) -> dict[str, str]:
    """Of a plan in JSON the kernels by op; those of pack_linear for further formats by op and format."""
    further = {**plan.get("others", {}), **plan.get("a16", {}).get("kernels", {})}
    return {**plan["kernels"], **{f"pack_linear in {name}": kernel for name, kernel in further.items()}}


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped between two steps: what it had settled, and its state as `State.to_tensors` has it."""

    earlier: Earlier
    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


def read_request(text: str, asked: str, name: str, *, changed: bool = False) -> Earlier:
    """A JSON object of request fields, a manifest, or a request of another program. `asked` names it in messages; it is
    the file `name`, beside which another program's paths begin ("-": standard input). A manifest that is not as it was
    written is taken where it may be `changed`."""
    value = _one_request(text, asked, name)
    if not (isinstance(value.get("request"), dict) and "cosmos3" in value):
        if (theirs := convert(value, asked, Path(name).parent)) is None:
            return Earlier(given=value)
        return Earlier(given=theirs.given, model=theirs.model, profile=theirs.profile, note=theirs.note)
    try:
        earlier = Earlier.from_manifest(value)
    except ValueError as error:
        found = f"its model, profile or plan is missing or damaged ({error})"
        raise InputError(asked, found, "Give a whole manifest, or a JSON object of request fields") from None
    if "sha256" in value and sealed(value) != value and not changed:
        next_step = "Give the request fields in a file of their own, or add `changed` to take what it says now"
        raise InputError(asked, "the manifest was changed or damaged since it was written", next_step)
    return earlier


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its schema and, last, the digest of its other values, however they are spelt and spaced."""
    value = {key: part for key, part in manifest.items() if key != "sha256"} | {"schema": SCHEMA}
    return value | {"sha256": sha256_json(value)}


def _one_request(text: str, asked: str, name: str) -> dict[str, Any]:
    """The object in a file. Other programs take a list of them, or one in each line: a run makes one."""
    try:
        value = parse_json(text)
        pick = f"jq '.[0]' {name}"
    except ValueError as error:
        try:
            lines = [line for line in text.splitlines() if line.strip()]
            value, pick = [parse_json(line) for line in lines], f"sed -n 1p {name}"
        except ValueError:
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
        saved = parse_json(metadata[KEY])
        NUMBERED.check(saved, "it")
        earlier = Earlier.from_json({key: value for key, value in saved.items() if key != "numbers"})
    except (KeyError, ValueError) as error:
        next_step = "Give the file a stopped run named"
        if isinstance(error, ValueError):
            next_step += f"; in this one {error}"
        raise InputError(asked, "it is not a stopped run", next_step) from None
    if "schema" in saved and SEAL not in metadata:
        raise InputError(asked, "its digest is gone, so it was changed", "Give the file a stopped run named")
    if "schema" in saved and earlier.weights is None:
        earlier = replace(earlier, weights=NO_FILES)
    return Stopped(earlier, state, saved["numbers"])


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


def named_here(name: str) -> bool:
    """Whether a stopped run of the command line chose this name for its file, and no person did."""
    return re.fullmatch(r".+\.state(-\d+)?\.safetensors", os.path.basename(name)) is not None


def given_digest(given: Sequence[Tensor | None]) -> str | None:
    """Of what a run is conditioned on, if there is something. The request says which shapes these are."""
    tensors = [tensor for tensor in given if tensor is not None]
    return tensor_digest(*tensors) if tensors else None


def whole_paths(request: Request) -> dict[str, Any]:
    """The paths of a request's files as whole ones, as JSON by field. What was handed over in memory has none."""
    values = request.to_json()
    return {name: _whole(values[name]) for name in FILES}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(path) for key, path in value.items()}
    kept = not isinstance(value, str) or value in ("", *WORDS) or SAID.match(value)
    return value if kept else os.path.abspath(value)


def _digests(facts: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of the files that a run starts from, as `Request.sources` calls them, of the facts that a manifest
    has of its inputs: those of a prompt's file are not among them, as its text is in the request."""
    return {
        label: fact["sha256"] for label, fact in facts.items() if label.partition(".")[0] in FILES and "sha256" in fact
    }


def _source(value: Any) -> Source | None:
    return None if value is None else Source(value["file"], value["sha256"])


def _check_version(value: Any) -> None:
    """Raises ValueError for a file of a later version, whose keys nobody here knows."""
    found = value.get("schema", SCHEMA) if isinstance(value, dict) else SCHEMA
    if type(found) is int and found > SCHEMA:
        raise ValueError(f"its schema is {found}, of a later version of cosmos3 than this, which knows {SCHEMA}")


NAME = Text(longest=200)
NAMES = Table(others=NAME)
PATH = Text(longest=4096)
SHA256 = Text(pattern="[0-9a-f]{64}")
LATENTS = Table({"file": PATH, "sha256": Text(pattern="[0-9a-f]{16}|[0-9a-f]{64}")}, none=True)
STEPS: dict[str, Shape] = {OPTION: Text(longest=40, none=True)}
"""Which versions before this one did not write."""
PLAN: dict[str, Shape] = {"backend": NAME, "dtype": NAME, "kernels": NAMES, "formats": NAMES}
OLD_PATHS: dict[str, Shape] = {"save_latents": Text(none=True), "manifest": Text(none=True)}
"""What 0.1.0 kept of the files that a run writes: it is read, and not used."""
_COMMON: dict[str, Shape] = {
    "given": Table(others=Anything()),
    "profile": NAME,
    "kernels": NAMES,
    "latents": LATENTS,
    "pixels": Text(none=True),
}
MODEL = Listed(Text(none=True), 2, 2)
STATE_0_1_0 = Table(
    _COMMON | {"model": MODEL, "options": Table(PLAN | {"required": NAMES}, OLD_PATHS)},
)
STATE = Table(
    _COMMON
    | {
        "schema": Number(2, SCHEMA, whole=True),
        "model": MODEL,
        "weights": Text(none=True),
        "options": Table(PLAN | {"required": NAMES}, STEPS),
        "inputs": Table(others=SHA256),
    }
)
NUMBERED = Table(
    {
        "numbers": Table(
            {"index": Number(0, 1000, whole=True)},
            {"request": Table(others=Anything()), "solver": Anything(), "chunk": Number(0, 4000, whole=True)},
        )
    },
    others=Anything(),
)
SHARED = Table({"layout": Table(allowed=dict.fromkeys(DEGREES, Number(1, MOST, whole=True)))}, others=Anything())
MANIFEST = Table(
    {
        "cosmos3": Text(longest=40),
        "model": Table({"name": Text(), "revision": Text(none=True)}, others=Anything()),
        "profile": Table({"name": NAME}, others=Anything()),
        "request": Table(others=Anything()),
        "plan": Table(
            PLAN | {"named": Listed(NAME)},
            STEPS | {"others": NAMES, "a16": Table({"kernels": NAMES}, others=Anything()), "parallel": SHARED},
            Anything(),
        ),
    },
    {
        "schema": Number(2, SCHEMA, whole=True),
        "sha256": SHA256,
        "weights": Text(none=True),
        "latents": LATENTS,
        "inputs": Table(others=Table(allowed={"sha256": SHA256}, others=Anything())),
    },
    Anything(),
)
