"""What `cosmos3 quantize` will write, decided before a weight is read: tensors, files and their sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..contract import InputError
from ..quant import Format
from ..quant.dialects.written import Written, grouped, parts_of, writer
from .choosing import NEAREST, Choosing
from .model import Model, Weights
from .policy import Policy, chosen
from .statistics import Statistics
from .tensors import PICKLED, STEM, Spec, index_text, write_shard

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000
CONFIG, INDEX = "transformer/config.json", f"transformer/{STEM}.safetensors.index.json"
CARD, SOURCE_CARD = "README.md", "README-source.md"
RECORD = "cosmos3_quantize.json"
"""What the result says of itself."""
SUMS = "SHA256SUMS"
"""A list of digests of the source's files, which are no longer these."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the source by its name in the file, and what becomes of it: tensors by their names in diffusers'
    naming. It is the weight of a `module` that is quantized, or, without one, copied."""

    raw: str
    becomes: Mapping[str, Spec]
    module: str | None = None


@dataclass(frozen=True)
class Shard:
    """A file of the transformer that is to be written."""

    name: str
    pieces: Sequence[Piece]

    @property
    def specs(self) -> dict[str, Spec]:
        return {name: spec for piece in self.pieces for name, spec in piece.becomes.items()}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A quantization, checked. `copies` are the paths of the source's other files by the paths that they get."""

    model: Model
    weights: Weights
    choosing: Choosing
    policy: Policy
    modules: Sequence[str]
    shards: Sequence[Shard]
    copies: Mapping[str, str]

    @property
    def row(self) -> Written:
        return self.choosing.row

    @property
    def format(self) -> Format:
        return self.choosing.format

    def calibrated(self, statistics: Statistics) -> Job:
        """The same with statistics of what the matrices are multiplied by. Raises InputError for those of other
        weights, and for some that lack a module or its moments."""
        return replace(self, choosing=self.choosing.calibrated(statistics, self.weights.identity, self.modules))

    @cached_property
    def description(self) -> dict[str, Any]:
        """What decides every byte of the result, as JSON."""
        return {
            "cosmos3": __version__,
            "source": self.model.name,
            "identity": self.weights.identity,
            "format": self.format.name,
            "group": self.format.group if self.row.grouped else None,
            "dialect": self.row.dialect,
            "method": self.choosing.method,
            "calibration": self.choosing.statistics and self.choosing.statistics.to_json(),
            "policy": self.policy.to_json(),
            "shards": [shard.name for shard in self.shards],
        }

    @property
    def source_bytes(self) -> int:
        """Of the transformer's tensors."""
        return sum(info.nbytes for info in self.weights.transformer.tensors.values())

    @property
    def bytes(self) -> int:
        """Of the transformer's tensors as they are written."""
        return sum(spec.nbytes for shard in self.shards for spec in shard.specs.values())

    def sizes(self) -> dict[str, int]:
        """About how many bytes each large file takes, by its path; headers and texts count nothing."""
        found = {
            f"transformer/{shard.name}": sum(spec.nbytes for spec in shard.specs.values()) for shard in self.shards
        }
        fetched = dict(zip(self.copies, self.model.repository.fetch(list(self.copies.values())), strict=True))
        return found | {path: file.stat().st_size for path, file in fetched.items()}

    def config(self) -> dict[str, Any]:
        """The transformer's config.json with the quantization."""
        raw = self.model.repository.read_json(CONFIG) or {}
        return raw | {"quantization_config": self.row.describe(self.format, self._kept(), __version__)}

    def _kept(self) -> list[str]:
        """Modules with a matrix that is not quantized."""
        tensors, quantized = self.weights.transformer.tensors, set(self.modules)
        named = {name.removesuffix(".weight"): raw for name, raw in self.weights.raw_names.items()}
        return sorted(
            module
            for module, raw in named.items()
            if raw.endswith(".weight") and len(tensors[raw].shape) == 2 and module not in quantized
        )

    def index(self) -> str | None:
        """The shards' index; None where there is one file."""
        if len(self.shards) == 1:
            return None
        of = {name: shard.name for shard in self.shards for name in shard.specs}
        return index_text(of, {name: spec for shard in self.shards for name, spec in shard.specs.items()})

    def write(self, shard: Shard, file: Path, tell: Callable[[], None]) -> None:
        """Write a shard, and tell after each tensor of the source. Of these one is in memory at a time."""
        write_shard(file, shard.specs, self._tensors(shard, tell))

    def _tensors(self, shard: Shard, tell: Callable[[], None]) -> Iterator[tuple[str, Tensor]]:
        for piece in shard.pieces:
            # Asked for one by one: a file's pages that were read leave the memory with its mapping.
            for _, tensor in self.weights.transformer.read([piece.raw]):
                names = iter(piece.becomes)
                made = self.choosing.parts(piece.module, tensor).values() if piece.module else (tensor,)
                yield from zip(names, made, strict=True)
            tell()


def prepare(
    model: Model,
    *,
    format: str,
    dialect: str | None,
    group: int | None,
    policy: Policy,
    method: str = NEAREST,
    shard_bytes: int = SHARD_BYTES,
) -> Job:
    """Decide what quantizing a model comes to. Raises InputError for a source that is quantized already, a format that
    the dialect does not have, a method that does not fit it, groups that do not divide a width, and a policy that does
    not fit the model."""
    row = writer(format, dialect)
    choosing = Choosing.of(row, grouped(row, group), method, model.config)
    if model.quantization is not None:
        found = f"its weights are quantized already: {', '.join(model.quantization.formats)}"
        found += f" in the dialect {model.quantization.dialect.name}"
        raise InputError(f"`model` {model.name}", found, "Quantize the checkpoint that it was made from")
    modules = choosing.possible(chosen(policy, model.config))
    _check_groups(model, choosing.format, modules)
    weights = Weights(model)
    return Job(
        model=model,
        weights=weights,
        choosing=choosing,
        policy=policy,
        modules=modules,
        shards=_shards(list(_pieces(weights, choosing, modules)), shard_bytes),
        copies=_copies(model),
    )


def _check_groups(model: Model, format: Format, modules: Sequence[str]) -> None:
    from ..model.weights import shapes

    if not format.group:
        return
    widths = shapes(model.config)
    for module in modules:
        if (width := widths[f"{module}.weight"][1]) % format.group:
            found = f"groups of {format.group} do not divide the {width} input features of {module}"
            others = [
                size for size in (128, 64, 32, 16, 8) if all(widths[f"{m}.weight"][1] % size == 0 for m in modules)
            ]
            hint = f"Choose `group` {others[0]}" if others else "Keep the module by a policy"
            raise InputError(f"`format` {format.name}", found, hint)


def _pieces(weights: Weights, choosing: Choosing, modules: Sequence[str]) -> Iterator[Piece]:
    """In the order in which tensors lie in the source's files."""
    canonical = {raw: name for name, raw in weights.raw_names.items()}
    packed = {f"{module}.weight": module for module in modules}
    known: dict[Any, dict[str, Spec]] = {}
    for raw, info in weights.transformer.tensors.items():
        name = canonical[raw]
        if name not in packed:
            yield Piece(raw, {name: Spec(info.shape, info.dtype)})
            continue
        if (kind := (info.shape, info.dtype)) not in known:
            parts = parts_of(choosing.row, choosing.format, *kind)
            known[kind] = {part: Spec(tuple(tensor.shape), tensor.dtype) for part, tensor in parts.items()}
        module = packed[name]
        yield Piece(raw, {f"{module}.{part}": spec for part, spec in known[kind].items()}, module)


def _shards(pieces: Sequence[Piece], most: int) -> list[Shard]:
    """Files of at most so many bytes, or of one tensor's."""
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in pieces:
        nbytes = sum(spec.nbytes for spec in piece.becomes.values())
        if groups[-1] and size + nbytes > most:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += nbytes
    if len(groups) == 1:
        return [Shard(f"{STEM}.safetensors", groups[0])]
    count = len(groups)
    return [Shard(f"{STEM}-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def _copies(model: Model) -> dict[str, str]:
    """Every file but the transformer's weights and what is written anew."""
    weights = (".safetensors", ".safetensors.index.json", *PICKLED)
    found = {}
    for path in model.repository.paths():
        if path in (CONFIG, RECORD, SUMS) or (path.startswith("transformer/") and path.endswith(weights)):
            continue
        found[SOURCE_CARD if path == CARD else path] = path
    return found


def source_folder(model: Model) -> Path:
    """Where the source's files lie on this machine, links resolved."""
    (file,) = model.repository.fetch(["model_index.json"])
    return Path(os.path.realpath(file.parent))


def with_defaults(policy: Policy, first_layers: int) -> Policy:
    """The policy with the number of first layers that stay, where it names none."""
    return policy if policy.keep_first_layers is not None else replace(policy, keep_first_layers=first_layers)
