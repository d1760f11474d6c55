"""Statistics of what a model's matrices are multiplied by, in a safetensors file: who wrote it does not matter.

For each matrix, by the name of its first module (q, k and v read one input, and so do gate and up):

    NAME.largest    fp32 [I], the largest magnitude of each input feature
    NAME.moment     fp32 [I, I], the mean of x xᵀ; only where it was asked for

over all tokens of all steps of some prompts. The metadata key `FACTS` says of which weights, prompts and request.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bounds import parse_json
from ..contract import InputError
from ..files.atomic import atomic
from ..files.digests import sha256_file
from ..files.schema import Anything, Number, Table, Text
from ..files.sources import check_source
from ..spelling import shown
from .tensors import DIGESTS, LARGEST_HEADER, Spec, tensor_digest, write_shard

if TYPE_CHECKING:
    from torch import Tensor

FACTS = "cosmos3.statistics"
SUFFIX = ".safetensors"
SCHEMA = 1
SHAPE = Table(
    needed={
        "schema": Number(SCHEMA, SCHEMA, whole=True),
        "cosmos3": Text(),
        "model": Text(),
        "identity": Text(none=True),
        "prompts": Number(1, whole=True),
        "prompts_sha256": Text(pattern="[0-9a-f]{64}"),
        "request": Table(others=Anything()),
        "steps": Number(1, whole=True),
        "backend": Text(),
        "device": Text(),
        "dtype": Text(),
    }
)
LARGEST, MOMENT = "largest", "moment"
"""Ends of the tensors' names."""
GOOD = "Pass statistics that `cosmos3 quantize` saved, or prompts to make them anew"


@dataclass(frozen=True)
class Statistics:
    """An opened file. `facts` is what it says of itself, `sha256` its digest, `largest` its vectors by the name of a
    matrix's first module; moments stay in the file."""

    path: Path
    facts: Mapping[str, Any]
    sha256: str
    largest: Mapping[str, Tensor]
    moments: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """Where it is from, for what was quantized with it."""
        return {**self.facts, "sha256": self.sha256}

    def moment(self, name: str) -> Tensor:
        """A matrix's second moments. Raises InputError where the file was changed since it was opened."""
        with _opened(self.path) as (tensors, digests):
            return _checked(self.path, tensors, digests, f"{name}.{MOMENT}")

    def check(self, identity: str | None, names: Collection[str]) -> None:
        """Raises InputError unless these are statistics of the weights with this identity, of some of these names."""
        asked = _asked(self.path)
        if self.facts["identity"] != identity or identity is None:
            theirs, ours = self.facts["identity"] or "no files", identity or "no files"
            found = f"they are of {shown(self.facts['model'])}, {theirs}, and the model here is {ours}"
            raise InputError(asked, found, "Pass prompts, with which they are made for this model")
        if others := sorted(self.largest.keys() - names):
            raise InputError(asked, f"they have {shown(others[0])}, which is no matrix of the model", GOOD)


def write_statistics(
    path: Path, facts: Mapping[str, Any], specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write a file of the tensors that `specs` announces, as they come; it is there as a whole or not at all."""
    with atomic(path) as temp:
        write_shard(temp, specs, tensors, {FACTS: json.dumps(facts, sort_keys=True)})


def is_statistics(path: Path) -> bool:
    """By its name: other files have prompts."""
    return path.suffix == SUFFIX


def read_statistics(path: Path) -> Statistics:
    """Open a file, and judge all but its moments. Raises InputError for one that is damaged, of another kind, or holds
    numbers that are not finite or are negative."""
    asked = _asked(path)
    check_source(path, asked, GOOD)
    try:
        with path.open("rb") as file:
            if (length := int.from_bytes(file.read(8), "little")) > LARGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes, and {LARGEST_HEADER:,} are the most")
        with _opened(path) as (tensors, digests):
            facts = parse_json((tensors.metadata() or {}).get(FACTS, "null"))
            SHAPE.check(facts, "its description")
            names = set(tensors.keys())
            largest: dict[str, Tensor] = {}
            moments = set()
            for key in sorted(names):
                name, _, part = key.rpartition(".")
                if part == MOMENT and f"{name}.{LARGEST}" in names:
                    moments.add(name)
                elif part == LARGEST:
                    largest[name] = _checked(path, tensors, digests, key)
                else:
                    raise ValueError(f"it holds {shown(key)}, which is no part of statistics")
        if not largest:
            raise ValueError("it has no statistics")
    except (OSError, ValueError) as error:
        raise InputError(asked, f"it cannot be read ({error})", GOOD) from None
    return Statistics(path, facts, sha256_file(path), largest, frozenset(moments))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """The file's tensors, and their digests. Raises ValueError in the place of the library's errors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            yield tensors, dict(parse_json((tensors.metadata() or {}).get(DIGESTS, "{}")))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _checked(path: Path, tensors: Any, digests: Mapping[str, str], key: str) -> Tensor:
    """One tensor, held against its digest and its kind. Raises InputError."""
    import torch

    tensor: Tensor = tensors.get_tensor(key)
    square, found = key.endswith(MOMENT), None
    if tensor.dtype != torch.float32 or tensor.ndim != 1 + square or len(set(tensor.shape)) != 1 or not tensor.numel():
        found = f"is {tensor.dtype} {list(tensor.shape)}"
    elif digests.get(key) != tensor_digest(tensor):
        found = "is damaged: its bytes do not have the digest written beside them"
    elif not tensor.isfinite().all():
        found = "holds NaN or infinite values"
    elif not square and bool((tensor < 0).any()):
        found = "holds negative values"
    if found:
        raise InputError(_asked(path), f"{key} {found}", GOOD)
    return tensor.clone()


def _asked(path: Path) -> str:
    return f"`calibrate` {path}"
