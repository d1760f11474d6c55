"""Weights in safetensors files: strict reading, and writing them so that a flipped bit is found.

The hub's layout is one `<stem>.safetensors`, or shards `<stem>-00001-of-0000N.safetensors` with an index that maps
each tensor to its shard. What `save_tensors` writes also carries a digest of each tensor, which `TensorFiles.read`
checks; other programs ignore it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol

from ..bounds import parse_json
from ..contract import InputError, RunError
from .mapping import TensorInfo, map_file, view_of
from .repository import Repository, reading

if TYPE_CHECKING:
    import numpy
    import torch

STEM = "diffusion_pytorch_model"
DIGESTS = "cosmos3.blake2b"
DIGEST_DIGITS = 16
"""Of one tensor's digest, in hex."""
LARGEST_HEADER = 16 << 20
"""Bytes of a safetensors file's header; the largest published one has 200 KiB. Beyond it only reading takes seconds."""
MOST_SHARDS = 1000
"""Files of one component; the largest published one has 26."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
READERS = 8
"""Threads that read tensors and check them: each waits for the disk where it first touches a page, and one alone makes
digests of 0.75 GB/s."""
AHEAD = 2 * READERS
"""Tensors that are read before they are asked for."""
FEW = 1 << 24
"""Bytes of a file up to which one thread is enough."""
PART = 1 << 20
"""Bytes that are checked together: they are still in the processor's cache for the second check."""


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor that is to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Tensors(Protocol):
    """Tensors by name, read when they are asked for: files, or what stands in for them."""

    @property
    def tensors(self) -> Mapping[str, Any]: ...

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]: ...


@dataclass(frozen=True)
class Told:
    """The tensors of `files`; the bytes of each are told before it is handed out."""

    files: Tensors
    tell: Callable[[int], object]

    @property
    def tensors(self) -> Mapping[str, Any]:
        return self.files.tensors

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.files.read(names):
            self.tell(tensor.nbytes)
            yield name, tensor


@dataclass(frozen=True)
class TensorFiles:
    """The tensors of one component; `tensors` lists them shard by shard, in the order in which they lie in a file."""

    repository: Repository
    folder: str
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    """The files' own, by their keys; digests left out."""
    stamps: dict[Path, tuple[int, ...]] = field(default_factory=dict)
    """Of each file that carries no digests, which it was when its header was read: layers are read again in every pass
    where they lie in files, and another model's of the same shapes would mix with them."""

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the named tensors in file order, on the host, each checked against its digest and for NaN and infinity
        (floats of 8 bits and less are not checked for these). Threads read those of a shard that come next.

        A tensor is a view of its file: copy it before asking for the next one. While one is held, its shard's pages
        stay in memory; otherwise no more than one shard is mapped at a time. Raises InputError naming tensor and file.
        """
        wanted = set(names)
        if missing := wanted - self.tensors.keys():
            found = f"the weights do not hold {_some(missing)}"
            raise InputError(f"{self.repository.name}/{self.folder}", found, "Use weights and config of one model")
        shards: dict[Path, list[str]] = {}
        for name, info in self.tensors.items():
            if name in wanted:
                shards.setdefault(info.file, []).append(name)
        for number, (file, held) in enumerate(shards.items()):
            # Who asks holds a tensor of the last shard, and with it that shard's pages, until he has one of this.
            for some in (held[:1], held[1:]) if number and held[1:] else (held,):
                yield from self._read_shard(file, some)

    def _read_shard(self, file: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
        asked = [self.tensors[name] for name in names]
        few = sum(info.nbytes for info in asked) <= FEW
        mapped = self._mapped(file)
        tensors = ((name, view_of(mapped, info)) for name, info in zip(names, asked, strict=True))
        for name, tensor, defect in (_one_by_one if few else _ahead)(tensors, self._defect):
            if defect:
                raise _bad_file(self.repository, f"{self.folder}/{file.name}", f"tensor {name} {defect}")
            yield name, tensor

    def _defect(self, name: str, tensor: torch.Tensor) -> Callable[[Event], str | None]:
        """What looks for a tensor's defect, in whatever thread, until the event is set."""
        return partial(_defect, _bytes(tensor), _infinity(tensor.dtype), self.tensors[name].digest)

    @cached_property
    def _ends(self) -> dict[Path, int]:
        """Where the last tensor of each file ends."""
        ends: dict[Path, int] = {}
        for info in self.tensors.values():
            ends[info.file] = max(ends.get(info.file, 0), info.begin + info.nbytes)
        return ends

    def _mapped(self, file: Path) -> Any:
        try:
            mapped = map_file(file, self._ends[file])
            now = _stamp(file)
        except OSError as error:
            raise self._changed(file, f"cannot be read now ({error})") from None
        if self.stamps.get(file, now) != now:
            raise self._changed(file, "is another file now, or was written to")
        return mapped

    def _changed(self, file: Path, now: str) -> RunError:
        found = f"it was whole when this run began and {now}"
        next_step = "Keep the model's files in place while a run reads them, and check the disk"
        return RunError(f"{self.repository.name}/{self.folder}/{file.name}", found, next_step)


def open_tensors(repository: Repository, folder: str, stem: str = STEM) -> TensorFiles:
    """Find, fetch and validate the weights in the checkpoint's `folder`; no weight is read yet.

    Takes the files called `stem`, else those called "model". Raises InputError naming file and tensors when a shard is
    missing, cut short or damaged, when index and shards disagree, and when there are only pickled weights.
    """
    shards = _find_shards(repository, folder, stem)
    paths = [f"{folder}/{shard}" for shard in shards]
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    stamps: dict[Path, tuple[int, ...]] = {}
    for path, file, named in zip(paths, repository.fetch(paths), shards.values(), strict=True):
        with reading(f"{repository.name}/{path}"):
            stamp = _stamp(file)
        held, said = _read_header(repository, path, file)
        if any(info.digest is None for info in held.values()):
            stamps[file] = stamp
        metadata |= said
        if twice := held.keys() & tensors.keys():
            others = _some({tensors[name].file.name for name in twice})
            raise _bad_file(repository, path, f"it holds {_some(twice)}, and so does {others}")
        if named is not None and (lost := named - held.keys()):
            raise _bad_file(repository, path, f"the index says that it holds {_some(lost)}, and it does not")
        if named is not None and (extra := held.keys() - named):
            raise _bad_file(repository, path, f"it holds {_some(extra)}, of which the index does not know")
        tensors |= held
    return TensorFiles(repository, folder, tensors, metadata, stamps)


def _stamp(file: Path) -> tuple[int, ...]:
    """Which file it is, and what its last writer left of it, as far as a file system says so without reading it."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def save_tensors(
    folder: Path, tensors: dict[str, torch.Tensor], stem: str = STEM, max_shard_bytes: int = 5_000_000_000
) -> None:
    """Write host tensors to `folder` (created if need be) as one safetensors file, or as shards with an index.

    A shard is at most `max_shard_bytes` of tensor data, or one tensor. The same tensors give the same bytes. Raises
    InputError if the folder already holds weights called `stem`.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    folder.mkdir(parents=True, exist_ok=True)
    if old := sorted(folder.glob(f"{stem}*.safetensors*")):
        raise InputError(f"saving to {folder}", f"it already holds {old[0].name}", "Choose an empty folder")
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern=f"{stem}{{suffix}}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in split.filename_to_tensors.items():
        specs = {name: Spec(tuple(tensors[name].shape), tensors[name].dtype) for name in names}
        write_shard(folder / file, specs, ((name, tensors[name]) for name in names))
    if split.is_sharded:
        (folder / f"{stem}.safetensors.index.json").write_text(index_text(split.tensor_to_filename, tensors), "utf-8")


def index_text(shards: Mapping[str, str], tensors: Mapping[str, Any]) -> str:
    """The index of shards: the file of each tensor by name, and the size of all."""
    index = {"metadata": {"total_size": sum(one.nbytes for one in tensors.values())}, "weight_map": dict(shards)}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _find_shards(repository: Repository, folder: str, stem: str) -> dict[str, set[str] | None]:
    """File name -> the tensors that the index says it holds; None for a file without an index. All are present."""
    where = f"{repository.name}/{folder}"
    present = repository.names(folder)
    if present is None:
        raise InputError(where, "the checkpoint has no such folder", "Use a checkpoint in the diffusers layout")
    for candidate in (stem, "model"):
        if f"{candidate}.safetensors.index.json" in present:
            return {**_read_index(repository, folder, f"{candidate}.safetensors.index.json", present)}
        if f"{candidate}.safetensors" in present:
            return {f"{candidate}.safetensors": None}
    pickled = [file for file in present if file.endswith(PICKLED)]
    if pickled and not any(file.endswith(".safetensors") for file in present):
        found = f"there is only {_some(pickled)}; cosmos3 loads safetensors only and never unpickles"
        next_step = "Convert it to safetensors first, see huggingface.co/docs/safetensors/convert-weights"
        raise InputError(where, found, next_step)
    if variants := [file for file in present if file.startswith(f"{stem}.") and file.endswith(".safetensors")]:
        found = f"there is {_some(variants)}, a variant, and no {stem}.safetensors"
        raise InputError(where, found, f"Rename it to {stem}.safetensors, or download the files without a variant")
    if variants := [file for file in present if file.startswith(f"{stem}.") and ".index." in file]:
        found = f"there is {_some(variants)}, the index of a variant, and no {stem}.safetensors.index.json"
        raise InputError(where, found, "Download the files without a variant")
    found = f"neither {stem}.safetensors nor its index is among its files ({_some(present) or 'none'})"
    raise InputError(where, found, repository.repair(f"{folder}/{stem}.safetensors"))


def _read_index(repository: Repository, folder: str, index: str, present: list[str]) -> dict[str, set[str]]:
    path = f"{folder}/{index}"
    weight_map = (repository.read_json(path) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad_file(repository, path, 'it has no "weight_map"')
    shards: dict[str, set[str]] = {}
    for name, shard in sorted(weight_map.items(), key=lambda item: str(item[1])):
        # Anything but a plain name could reach outside the checkpoint.
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard or "\\" in shard:
            raise _bad_file(repository, path, f"it puts {name} in {shard!r}, no safetensors file of this folder")
        shards.setdefault(shard, set()).add(name)
    if len(shards) > MOST_SHARDS:
        found = f"it names {len(shards):,} files, and {MOST_SHARDS:,} are the most that are read"
        raise _bad_file(repository, path, found)
    whole = index.removesuffix(".index.json")
    for shard, named in shards.items():
        if shard not in present:
            found = f"the file is missing, and the index says that it holds {_some(named)}"
            if whole in present and not any(name in present for name in shards):
                found = f"none of the files that it names is there, and {whole} stands beside it"
                raise InputError(f"{repository.name}/{path}", found, f"Delete the index {index}, which is an older one")
            raise _bad_file(repository, f"{folder}/{shard}", found)
    return shards


def _read_header(repository: Repository, path: str, file: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Its tensors, and the rest of its metadata."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    with reading(f"{repository.name}/{path}"), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        if LARGEST_HEADER < length <= size:
            found = f"its header has {length:,} bytes, and {LARGEST_HEADER:,} are the most that are read"
            raise _bad_file(repository, path, found)
        header = stream.read(min(length, size))
    try:
        with reading(f"{repository.name}/{path}"), safe_open(file, framework="pt") as shard:
            metadata = dict(shard.metadata() or {})
            digests = parse_json(metadata.pop(DIGESTS, "null"))
            names, entries = shard.offset_keys(), parse_json(header.decode())
            if digests is not None and set(digests) != set(names):
                raise ValueError("its digests are those of other tensors")
            for name in names:
                tensor = shard.get_tensor(name)  # a view of the mapped file: no weight is read
                written = None if digests is None else digests[name]
                begin = 8 + length + entries[name]["data_offsets"][0]
                tensors[name] = TensorInfo(tuple(tensor.shape), tensor.dtype, file, begin, tensor.nbytes, written)
    except (SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _bad_file(repository, path, f"the file is cut short or damaged: {error}") from None
    return tensors, metadata


def _bad_file(repository: Repository, path: str, found: str) -> InputError:
    return InputError(f"{repository.name}/{path}", found, repository.repair(path))


Judge = Callable[[str, "torch.Tensor"], Callable[[Event], str | None]]
Judged = tuple[str, "torch.Tensor", str | None]
"""A tensor's name, the tensor, and what is wrong with it."""


def _one_by_one(tensors: Iterable[tuple[str, torch.Tensor]], judge: Judge) -> Iterator[Judged]:
    for name, tensor in tensors:
        yield name, tensor, judge(name, tensor)(Event())


def _ahead(tensors: Iterable[tuple[str, torch.Tensor]], judge: Judge) -> Iterator[Judged]:
    """The same, where threads are at work on those that come next. None of them outlives this."""
    stopped, waiting = Event(), deque[Any]()
    threads = ThreadPoolExecutor(READERS, "reader")
    try:
        for one in chain(tensors, [None] * AHEAD):
            waiting.append(one and (*one, threads.submit(judge(*one), stopped)))
            if len(waiting) > AHEAD and (first := waiting.popleft()):
                name, tensor, found = first
                yield name, tensor, found.result()
    finally:
        stopped.set()
        threads.shutdown(cancel_futures=True)


@cache
def _infinity(dtype: torch.dtype) -> tuple[str, int] | None:
    """Numpy's name of integers as wide as such a float, and which of them infinity is: those above it are NaN. None
    where there are neither, or the float has 8 bits or less."""
    import torch

    if not dtype.is_floating_point or dtype.itemsize == 1:
        return None
    wide = f"uint{8 * dtype.itemsize}"
    return wide, int(torch.tensor(math.inf, dtype=dtype, device="cpu").view(getattr(torch, wide)).item())


def _defect(held: numpy.ndarray, infinity: tuple[str, int] | None, written: str | None, stopped: Event) -> str | None:
    """What is wrong with a tensor's bytes. Who asks for no more has `stopped` it."""
    digest = hashlib.blake2b(digest_size=DIGEST_DIGITS // 2)
    infinite = False
    for begin in range(0, len(held), PART):
        if stopped.is_set():
            return None
        part = held[begin : begin + PART]
        if written is not None:
            digest.update(part.data)
        if infinity is not None:
            wide, least = infinity
            numbers = part.view(wide)
            infinite = infinite or int((numbers & (2 ** (8 * numbers.itemsize - 1) - 1)).max()) >= least
    if written is not None and digest.hexdigest() != written:
        return "is damaged: its bytes do not have the digest written beside them"
    return "holds NaN or infinite values" if infinite else None


def write_shard(
    file: Path,
    specs: Mapping[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file of the host tensors that `specs` announces, one after the other as they come, in any
    order, with more `metadata`. The same tensors give the same bytes: the library's own writer puts the metadata in an
    order that changes between runs."""
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    ordered = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    digests = dict.fromkeys(ordered, "0" * DIGEST_DIGITS)  # as long as those that take their place
    more = dict(metadata or {})
    begins, offset = {}, len(_head(specs, ordered, digests, more))
    for name in ordered:
        begins[name] = offset
        offset += specs[name].nbytes
    waiting = set(ordered)
    with file.open("wb") as stream:
        for name, tensor in tensors:
            assert (tuple(tensor.shape), tensor.dtype) == (specs[name].shape, specs[name].dtype), name
            digests[name] = tensor_digest(tensor)
            stream.seek(begins[name])
            stream.write(_bytes(tensor).data)
            waiting.discard(name)
        assert not waiting, waiting
        stream.seek(0)
        stream.write(_head(specs, ordered, digests, more))


def _head(
    specs: Mapping[str, Spec], ordered: Iterable[str], digests: Mapping[str, str], more: Mapping[str, str]
) -> bytes:
    """What stands before the tensors."""
    from safetensors import TensorSpec

    header: dict[str, object] = {"__metadata__": {"format": "pt", **more, DIGESTS: json.dumps(digests)}}
    offset = 0
    for name in ordered:
        spec, dtype = specs[name], str(specs[name].dtype).removeprefix("torch.")
        # Knows the format's name of the dtype and counts the elements of packed ones; it is never read from.
        theirs = TensorSpec(dtype=dtype, shape=list(spec.shape), data_ptr=0, data_len=spec.nbytes)
        header[name] = {"dtype": theirs.dtype, "shape": theirs.shape, "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Tells changed tensors from what they were: 64 bits, BLAKE2b over the bytes of all in their order, in hex."""
    total = hashlib.blake2b(digest_size=DIGEST_DIGITS // 2)
    for tensor in tensors:
        total.update(_bytes(tensor.detach().cpu()).data)
    return total.hexdigest()


def _bytes(tensor: torch.Tensor) -> numpy.ndarray:
    """The tensor's elements as the file holds them, without a copy of a contiguous tensor."""
    import torch

    return tensor.reshape(-1).view(torch.uint8).numpy()


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
