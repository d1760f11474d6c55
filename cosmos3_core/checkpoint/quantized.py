"""A checkpoint's quantized weights: what its files say of them, checked tensor by tensor before a weight is read, and
read as `Packed`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from ..model.config import TransformerConfig
from ..quant import Format
from ..quant.dialects import AGAIN, DIALECTS, Broken, Clues, Dialect, Header, Layout, Scheme, dialect_of, scheme_of
from ..quant.dialects.common import PLAIN
from ..quant.dialects.modelopt import FILE
from ..quant.dialects.modelslim import NAMES
from ..quant.steps import StepPolicy
from .gguf import open_gguf
from .repository import Repository
from .tensors import Tensors

if TYPE_CHECKING:
    import torch

    from ..model.weights import Weight
    from ..quant.numerics import Packed

CONFIG = "quantization_config"


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's files say of how it is quantized. `policy` is what it asks of a run's steps; `modules` has
    the format of each quantized module, None where the weights are not on this machine yet."""

    dialect: Dialect
    scheme: Scheme
    clues: Clues
    modules: Mapping[str, Format] | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        """Of the layers' matrices, that of most of them first: other modules are made numbers again while loading."""
        if self.modules is None:
            return tuple(format.name for format in self.scheme.formats)
        counted = Counter(one.name for module, one in self.modules.items() if module.startswith("layers."))
        return tuple(name for name, _ in counted.most_common())

    @property
    def precision(self) -> dict[str, str]:
        """The format of each module, layers of one kind together; as the description has it where the weights are not
        here yet."""
        if self.modules is None:
            return {"by its config": ", ".join(self.formats)}
        return _together({module: format.name for module, format in self.modules.items()})

    def to_json(self) -> dict[str, Any]:
        """For manifests and plans."""
        return {"dialect": self.dialect.name, "modules": self.precision, "policy": self.policy}

    @property
    def policy(self) -> Mapping[str, Any] | None:
        return self.scheme.policy

    @property
    def steps(self) -> StepPolicy | None:
        """The policy as a plan takes it."""
        return StepPolicy.of(self.policy) if self.policy else None


def described(repository: Repository, config: Mapping[str, Any], source: str) -> Quantization | None:
    """By the JSON files and names of a checkpoint's transformer, whose config.json is `config`; None where they speak
    of no quantization. A GGUF file's table is read, of which the file has to be here. Raises InputError."""
    found = _clues(repository, config, source)
    dialect = dialect_of(found)
    return Quantization(dialect, scheme_of(dialect, found), found) if dialect else None


def gguf_file(repository: Repository) -> str | None:
    """The name of the transformer's GGUF file, None where it has none. Raises InputError where it has more, or
    safetensors files too."""
    names = repository.names("transformer") or []
    files = [name for name in names if name.endswith(".gguf")]
    if len(files) > 1 or (files and any(name.endswith(".safetensors") for name in names)):
        others = files[1:] or [name for name in names if name.endswith(".safetensors")]
        found = f"its transformer is {files[0]} and {', '.join(others)}, too"
        raise InputError(f"loading {repository.name}/transformer", found, "Keep one of them")
    return files[0] if files else None


def _clues(repository: Repository, config: Mapping[str, Any], source: str) -> Clues:
    quantization = config.get(CONFIG)
    inside = repository.names("transformer") or []
    if quantization is None and f"{CONFIG}.json" in inside:
        quantization = repository.read_json(f"transformer/{CONFIG}.json")
    if quantization is not None and not isinstance(quantization, Mapping):
        found = f"its {CONFIG} is a {type(quantization).__name__}"
        raise InputError(f"loading {source}", found, "Get the file again from the model's repository")
    files = {name: repository.read_json(f"transformer/{name}") for name in (FILE, *NAMES) if name in inside}
    files |= {FILE: whole} if FILE not in files and (whole := repository.read_json(FILE)) else {}
    headers = None
    if name := gguf_file(repository):
        headers = headers_of(open_gguf(repository, "transformer", name))
    return Clues(
        source=source,
        config=quantization,
        files={name: whole for name, whole in files.items() if whole is not None},
        gguf=name is not None,
        headers=headers,
    )


def headers_of(files: Tensors) -> dict[str, Header]:
    """Of an opened component's tensors, by their canonical names."""
    from ..model.weights import canonical_name

    return {
        canonical_name(name): Header(
            tuple(info.shape), str(info.dtype).removeprefix("torch."), getattr(info, "type", "")
        )
        for name, info in files.tensors.items()
    }


def _together(modules: Mapping[str, str]) -> dict[str, str]:
    """Layers that hold the same modules in the same formats, as "layers.0-35.mlp.up_proj"."""
    layers: dict[int, dict[str, str]] = {}
    found: dict[str, str] = {}
    for module, name in modules.items():
        head, _, rest = module.partition(".")
        index, _, tail = rest.partition(".")
        if head == "layers" and index.isdigit():
            layers.setdefault(int(index), {})[tail] = name
        else:
            found[f"{module}, made {UNPACKED}"] = name
    numbers = sorted(layers)
    for first, number in enumerate(numbers):
        if first and number == numbers[first - 1] + 1 and layers[number] == layers[number - 1]:
            continue
        last = number
        while layers.get(last + 1) == layers[number]:
            last += 1
        where = f"layers.{number}" if last == number else f"layers.{number}-{last}"
        found |= {f"{where}{tail}": name for tail, name in _by_tower(layers[number]).items()}
    return found


def _by_tower(tails: Mapping[str, str]) -> dict[str, str]:
    """The formats of a layer's modules; those of a tower, or of both, together where all are in one."""
    found: dict[str, str] = {}
    whole: dict[str, str] = {}
    for tower, needed in TOWERS.items():
        own = {tail: name for tail, name in tails.items() if tail.startswith(TAILS[tower])}
        if set(own) >= set(needed) and len(set(own.values())) == 1:
            whole[f" ({tower})"] = own[needed[0]]
        else:
            found |= {f".{tail}": name for tail, name in sorted(own.items())}
    if len(whole) == len(TOWERS) and len(set(whole.values())) == 1:
        return {"": next(iter(whole.values()))}
    return whole | found


TAILS: dict[str, tuple[str, ...]] = {
    "text": ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v", "self_attn.to_out", "mlp."),
    "media": ("self_attn.add_", "self_attn.to_add_out", "mlp_moe_gen."),
}
"""How the names of a tower's modules begin, after the layer's number."""
TOWERS = {
    "text": (*TAILS["text"][:4], "mlp.up_proj", "mlp.down_proj"),
    "media": (
        *(f"self_attn.add_{x}_proj" for x in "qkv"),
        "self_attn.to_add_out",
        "mlp_moe_gen.up_proj",
        "mlp_moe_gen.down_proj",
    ),
}
"""Modules without which a tower's layer is not whole; an MLP may have a gate, too."""


UNPACKED = "numbers while loading"
"""What becomes of a quantized module that is no layer's matrix: the ops that read it take none."""


@dataclass(frozen=True)
class Quantized:
    """The quantized weights of one checkpoint: layouts by module, and how its `files` name its tensors."""

    source: str
    files: Tensors
    raw_names: Mapping[str, str]
    layouts: Mapping[str, Layout]

    @property
    def parts(self) -> dict[str, str]:
        """Every tensor of a quantized weight, and the module."""
        return {f"{module}.{part}": module for module, layout in self.layouts.items() for part in layout.parts}

    def formats(self) -> dict[str, Format]:
        """Of each quantized module, with the groups of the file."""
        return {module: layout.format for module, layout in self.layouts.items()}

    def check(self) -> None:
        """Read and judge all scales and what else is small. Raises InputError."""
        waiting = {module: set(layout.small) for module, layout in self.layouts.items() if layout.small}
        held: dict[str, dict[str, torch.Tensor]] = {module: {} for module in waiting}
        for module, part, tensor in self._read(f"{m}.{part}" for m in waiting for part in self.layouts[m].small):
            held[module][part] = tensor
            waiting[module].discard(part)
            if not waiting[module]:
                with _naming(self.source, module):
                    self.layouts[module].check(held.pop(module))

    def matrices(
        self, wanted: Sequence[Sequence[str]], device: torch.device | str, dtype: torch.dtype
    ) -> list[Weight | None]:
        """For each list of modules the weight that they make, one after the other, on the device: one `Packed` where
        they can be one exactly, else each of them, those in 16 bits in `dtype`. None where none of the list is
        quantized. Raises InputError."""
        modules = [module for one in wanted if any(m in self.layouts for m in one) for module in one]
        found: dict[str, Any] = dict(self.weights(modules, device))
        plain = {self.raw_names[f"{module}.weight"]: module for module in modules if module not in found}
        for raw, tensor in self.files.read(plain):
            found[plain[raw]] = tensor.to(device, dtype, copy=True)
        return [_joined([found[module] for module in one]) if one[0] in found else None for one in wanted]

    def weights(self, modules: Iterable[str], device: torch.device | str = "cpu") -> Iterator[tuple[str, Packed]]:
        """Those of the modules that are quantized, in the order in which they lie in the files."""
        from ..quant.numerics import Packed

        wanted = [module for module in modules if module in self.layouts]
        waiting = {module: set(self.layouts[module].parts) for module in wanted}
        held: dict[str, dict[str, torch.Tensor]] = {module: {} for module in wanted}
        for module, part, tensor in self._read(f"{m}.{part}" for m in wanted for part in self.layouts[m].parts):
            held[module][part] = tensor.clone()
            waiting[module].discard(part)
            if not waiting[module]:
                with _naming(self.source, module):
                    weight = self.layouts[module].read(held.pop(module))
                moved = {name: tensor.to(device) for name, tensor in weight.tensors().items()}
                yield module, Packed(weight.format, **moved)

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, str, torch.Tensor]]:
        modules = self.parts
        canonical = {self.raw_names[name]: name for name in names}
        for raw, tensor in self.files.read(canonical):
            module = modules[canonical[raw]]
            yield module, canonical[raw].removeprefix(f"{module}."), tensor


def _joined(held: Sequence[Any]) -> Weight:
    """One `Packed`, or each where they are in 16 bits or have a format, an input scale or an order of the features
    each."""
    from ..quant.joining import join
    from ..quant.numerics import Packed

    if not all(isinstance(one, Packed) for one in held):
        return tuple(held)
    try:
        return join(held)
    except ValueError:
        return tuple(held)


@contextmanager
def _naming(source: str, module: str) -> Iterator[None]:
    """InputError in the place of what is wrong with a module."""
    try:
        yield
    except Broken as error:
        what = f"{module}.{error.part}" if error.part else module
        raise InputError(f"loading {source}", f"tensor {what}: {error.found}", AGAIN) from None


def quantized(
    quantization: Quantization | None,
    files: Tensors,
    raw_names: Mapping[str, str],
    config: TransformerConfig,
    source: str,
) -> Quantized | None:
    """Find the quantized weights among a transformer's opened files; None where there are none. Raises InputError where
    tensors and description do not agree, or nothing describes them."""
    from ..model.weights import canonical_name, shapes

    headers, expected = headers_of(files), shapes(config)
    if quantization is None:
        _check_none(headers, expected, source)
        return None
    dialect = quantization.dialect
    _check_others(dialect, headers, expected, source)
    metadata = {canonical_name(key): text for key, text in getattr(files, "metadata", {}).items()}
    scheme = scheme_of(dialect, replace(quantization.clues, headers=headers, metadata=metadata))
    layouts = {}
    for name, shape in expected.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        module = name.removesuffix(".weight")
        parts = {s: headers[f"{module}.{s}"] for s in dialect.suffixes if f"{module}.{s}" in headers}
        with _naming(source, module):
            if parts and (layout := scheme.layout(module, parts, (shape[0], shape[1]))):
                if extra := [part for part in parts if part not in layout.parts]:
                    raise Broken(extra[0], f"a weight in {layout.format.name} has no such part")
                layouts[module] = layout
    held = {layout.format.name for module, layout in layouts.items() if module.startswith("layers.")}
    if quantization.modules is None and (more := held - {format.name for format in scheme.formats}):
        found = f"its files speak of {', '.join(quantization.formats)}, and layers are in {', '.join(sorted(more))}"
        raise InputError(f"loading {source}", found, AGAIN)
    if not layouts:
        found = f"its files say that it is in the dialect {dialect.name}, and no weight is quantized"
        raise InputError(f"loading {source}", found, AGAIN)
    return Quantized(source, files, raw_names, layouts)


def _check_others(dialect: Dialect, headers: Mapping[str, Header], expected: Mapping[str, Any], source: str) -> None:
    """InputError for tensors that only other dialects have."""
    others = {suffix for row in DIALECTS for suffix in row.suffixes} - set(dialect.suffixes)
    for name in headers:
        if name in expected:
            continue
        for suffix in others:
            if name.endswith(f".{suffix}") and f"{name.removesuffix(suffix)}weight" in expected:
                writers = " and ".join(row.name for row in DIALECTS if suffix in row.suffixes)
                found = f"its files say that it is in the dialect {dialect.name}, and {name} is of {writers}"
                raise InputError(f"loading {source}", found, AGAIN)


def _check_none(headers: Mapping[str, Header], expected: Mapping[str, Any], source: str) -> None:
    """InputError for scales, and for weights of a few bits, where nothing says what they mean."""
    ends = {f".{suffix}" for row in DIALECTS for suffix in row.suffixes if suffix != "weight"}
    for name, header in headers.items():
        end = next((end for end in ends if name.endswith(end)), None)
        of_ours = end and name not in expected and f"{name.removesuffix(end)}.weight" in expected
        few = name in expected and name.endswith(".weight") and header.dtype not in PLAIN
        if of_ours or (few and header.dtype.startswith(("float8", "int", "uint8"))):
            found = f"it holds {name} of {header.dtype}, so it is quantized, and no file says how"
            next_step = f"Get the config.json that belongs to it, with its {CONFIG}"
            raise InputError(f"loading {source}", found, next_step)
