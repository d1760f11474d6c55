"""A checkpoint's quantized weights: what its files say of them, checked tensor by tensor before a weight is read, and
read as `Packed`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..contract import InputError
from ..model.config import TransformerConfig
from ..quant import Format
from ..quant.dialects import AGAIN, DIALECTS, Broken, Clues, Dialect, Header, Layout, Scheme, dialect_of
from ..quant.dialects.common import PLAIN
from ..quant.dialects.modelopt import FILE
from ..quant.dialects.modelslim import NAMES
from .repository import Repository

if TYPE_CHECKING:
    import torch

    from ..quant.numerics import Packed
    from .model import Tensors

CONFIG = "quantization_config"
SHARED = ("input_scale", "input_global_scale", "g_idx", "weight_g_idx")
"""Parts that must be the same for weights that read the same input: one product has one of each."""


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's JSON files say of how it is quantized. `policy` is what it asks of a run's steps."""

    dialect: Dialect
    scheme: Scheme

    @property
    def formats(self) -> tuple[Format, ...]:
        return self.scheme.formats

    @property
    def policy(self) -> Mapping[str, Any] | None:
        return self.scheme.policy


def described(repository: Repository, config: Mapping[str, Any], source: str) -> Quantization | None:
    """By the JSON files and names of a checkpoint's transformer, whose config.json is `config`; None where they speak
    of no quantization. A GGUF file's table is read, of which the file has to be here. Raises InputError."""
    found = _clues(repository, config, source)
    dialect = dialect_of(found)
    return Quantization(dialect, dialect.describe(found)) if dialect else None


def gguf_file(repository: Repository, source: str) -> str | None:
    """The name of the transformer's GGUF file, None where it has none. Raises InputError where it has more, or
    safetensors files too."""
    names = repository.names("transformer") or []
    files = [name for name in names if name.endswith(".gguf")]
    if len(files) > 1 or (files and any(name.endswith(".safetensors") for name in names)):
        others = files[1:] or [name for name in names if name.endswith(".safetensors")]
        found = f"its transformer is {files[0]} and {', '.join(others)}, too"
        raise InputError(f"loading {source}", found, "Keep one of them")
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
    if name := gguf_file(repository, source):
        from .gguf import open_gguf

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

    def formats(self) -> dict[str, str]:
        """Of each quantized module, by name."""
        return {module: layout.format.name for module, layout in self.layouts.items()}

    def check(self, together: Iterable[Sequence[str]]) -> None:
        """Read and judge all scales and what else is small; weights of the modules that stand `together` have to make
        one. Raises InputError."""
        for modules in together:
            self._check_alike(modules)
        wanted = [f"{module}.{part}" for module, layout in self.layouts.items() for part in layout.small]
        group = {module: tuple(modules) for modules in together for module in modules}
        waiting = {module: set(layout.small) for module, layout in self.layouts.items()}
        held: dict[str, dict[str, torch.Tensor]] = {module: {} for module in self.layouts}
        seen: dict[tuple[tuple[str, ...], str], tuple[str, torch.Tensor]] = {}
        for module, part, tensor in self._read(wanted):
            held[module][part] = tensor
            if part in SHARED and module in group:
                self._check_shared(seen, group[module], module, part, tensor)
            waiting[module].discard(part)
            if not waiting[module]:
                with _named(self.source, module):
                    self.layouts[module].check(held.pop(module))

    def packed(self, modules: Sequence[str], device: torch.device | str) -> Packed | None:
        """The weight that these modules make, one after the other, on the device; None where they are not quantized.
        Raises InputError."""
        if not any(module in self.layouts for module in modules):
            return None
        from ..quant.joining import join

        weights = dict(self.weights(modules, device))
        try:
            return join([weights[module] for module in modules])
        except (ValueError, KeyError) as error:  # `check` finds them before
            found = f"{', '.join(modules)} do not make one weight: {error}"
            raise InputError(f"loading {self.source}", found, AGAIN) from None

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
                with _named(self.source, module):
                    weight = self.layouts[module].read(held.pop(module))
                moved = {name: tensor.to(device) for name, tensor in weight.tensors().items()}
                yield module, Packed(weight.format, **moved)

    def _read(self, names: Iterable[str]) -> Iterator[tuple[str, str, torch.Tensor]]:
        modules = self.parts
        canonical = {self.raw_names[name]: name for name in names}
        for raw, tensor in self.files.read(canonical):
            module = modules[canonical[raw]]
            yield module, canonical[raw].removeprefix(f"{module}."), tensor

    def _check_alike(self, modules: Sequence[str]) -> None:
        named = {module: self.layouts[module].format for module in modules if module in self.layouts}
        lacking = [module for module in modules if module not in named]
        if named and (lacking or len(set(named.values())) > 1):
            said = [f"{module} is in {named[module].name if module in named else '16 bits'}" for module in modules]
            found = f"{', '.join(said)}; they read one input, and cosmos3 multiplies it by one matrix"
            next_step = "Quantize all of them in one format, or none of them"
            raise InputError(f"loading {self.source}", found, next_step)

    def _check_shared(self, seen: Any, modules: Sequence[str], module: str, part: str, tensor: torch.Tensor) -> None:
        import torch

        other = seen.setdefault((modules, part), (module, tensor))
        if other[0] != module and not torch.equal(other[1], tensor):
            found = f"{module}.{part} is not {other[0]}.{part}, and both belong to one input"
            raise InputError(f"loading {self.source}", found, AGAIN)


class _named:
    """InputError in the place of what is wrong with a module."""

    def __init__(self, source: str, module: str):
        self.source, self.module = source, module

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Broken):
            what = f"{self.module}.{error.part}" if error.part else self.module
            raise InputError(f"loading {self.source}", f"tensor {what}: {error.found}", AGAIN) from None


def quantized(
    quantization: Quantization | None, files: Tensors, raw_names: Mapping[str, str], config: TransformerConfig, source: str
) -> Quantized | None:
    """Find the quantized weights among a transformer's opened files; None where there are none. Raises InputError where
    tensors and description do not agree, or nothing describes them."""
    from ..model.weights import shapes

    headers, expected = headers_of(files), shapes(config)
    if quantization is None:
        _check_none(headers, expected, source)
        return None
    layouts = {}
    for name, shape in expected.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        module = name.removesuffix(".weight")
        parts = {s: headers[f"{module}.{s}"] for s in quantization.dialect.suffixes if f"{module}.{s}" in headers}
        with _named(source, module):
            if parts and (layout := quantization.scheme.layout(module, parts, (shape[0], shape[1]))):
                if extra := [part for part in parts if part not in layout.parts]:
                    raise Broken(extra[0], f"a weight in {layout.format.name} has no such part")
                layouts[module] = layout
    if not layouts:
        found = f"its files say that it is in the dialect {quantization.dialect.name}, and no weight is quantized"
        raise InputError(f"loading {source}", found, AGAIN)
    return Quantized(source, files, raw_names, layouts)


def _check_none(headers: Mapping[str, Header], expected: Mapping[str, Any], source: str) -> None:
    """InputError for scales, and for weights of a few bits, where nothing says what they mean."""
    ends = {f".{suffix}" for row in DIALECTS for suffix in row.suffixes if suffix != "weight"}
    for name, header in headers.items():
        end = next((end for end in ends if name.endswith(end)), None)
        of_ours = end and name not in expected and f"{name.removesuffix(end)}.weight" in expected
        few = name in expected and header.dtype not in PLAIN
        if of_ours or (few and header.dtype.startswith(("float8", "int", "uint8"))):
            found = f"it holds {name} of {header.dtype}, so it is quantized, and no file says how"
            next_step = f"Get the config.json that belongs to it, with its {CONFIG}"
            raise InputError(f"loading {source}", found, next_step)
