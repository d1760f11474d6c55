"""How the numbers of a quantized weight are chosen: each for itself, or by what the weight is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..contract import InputError
from ..model.config import TransformerConfig
from ..quant import Format
from ..quant.dialects.written import Written, read_back
from ..spelling import did_you_mean
from .statistics import Statistics

if TYPE_CHECKING:
    from torch import Tensor

    from ..quant.numerics import Packed

NEAREST, GPTQ = "nearest", "gptq"
METHODS: Mapping[str, str] = {
    NEAREST: "each number is rounded to the nearest",
    GPTQ: "what a column loses is made up for by later ones (arXiv 2210.17323)",
}


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """A row of what is written, its format, and the `method`, of METHODS. `inputs` has for every module the name of the
    one under which `statistics` have its inputs; `unread` are modules that no run multiplies by anything."""

    row: Written
    format: Format
    method: str
    inputs: Mapping[str, str]
    unread: frozenset[str]
    statistics: Statistics | None = None

    @classmethod
    def of(cls, row: Written, format: Format, method: str, config: TransformerConfig) -> Choosing:
        """Raises InputError for an unknown method."""
        from ..model.weights import layer_slots

        if method not in METHODS:
            known = f"Methods are {', '.join(METHODS)}"
            raise InputError(f"`method` {method}", "there is no such method", did_you_mean(method, METHODS, known))
        last = config.num_hidden_layers - 1
        inputs: dict[str, str] = {}
        unread: set[str] = set()
        for i in range(config.num_hidden_layers):
            for media in (False, True):
                for slot in layer_slots(config, i, media=media):
                    if slot.matrix:
                        inputs |= dict.fromkeys(slot.modules, slot.modules[0])
                    if slot.matrix and i == last and not media and slot.key != "qkv":
                        unread |= set(slot.modules)  # of the text's last layer only keys and values are read
        return cls(row=row, format=format, method=method, inputs=inputs, unread=frozenset(unread))

    @property
    def calibrates(self) -> bool:
        """Whether statistics are needed."""
        return self.format.static or self.method == GPTQ

    @property
    def asked(self) -> str:
        return f"`method` {self.method}" if self.method == GPTQ else f"`format` {self.format.name}"

    def possible(self, modules: Sequence[str]) -> list[str]:
        """Those of the modules that can be quantized so: a stored scale of inputs that no run has is not known."""
        return [module for module in modules if not (self.format.static and module in self.unread)]

    def with_moments(self, modules: Sequence[str]) -> list[str]:
        """The names under which statistics need the second moments, for these modules."""
        wanted = [self.inputs[module] for module in modules if self.method == GPTQ and module not in self.unread]
        return list(dict.fromkeys(wanted))

    def calibrated(self, statistics: Statistics, identity: str | None, modules: Sequence[str]) -> Choosing:
        """The same with statistics. Raises InputError for those of other weights, or without what is needed."""
        asked, again = f"`calibrate` {statistics.path}", "Pass prompts, with which they are made for this"
        if not self.calibrates:
            found = "it takes no statistics, nor do its scales depend on any"
            raise InputError(self.asked, found, f"Leave out `calibrate`, or choose `method` {GPTQ}")
        statistics.check(identity, set(self.inputs.values()))
        read = [self.inputs[module] for module in modules if module not in self.unread]
        if lacking := [name for name in read if name not in statistics.largest]:
            raise InputError(asked, f"they have nothing of {lacking[0]}", again)
        if lacking := [name for name in self.with_moments(modules) if name not in statistics.moments]:
            raise InputError(asked, f"they have no second moments of {lacking[0]}, which {GPTQ} needs", again)
        return replace(self, statistics=statistics)

    def packed(self, module: str, weight_OI: Tensor) -> Packed:
        """A module's weight as it is written."""
        from ..quant.feedback import pack_with_feedback
        from ..quant.numerics import pack

        format, scale = self.row.packed_as(self.format, weight_OI.dtype), self._input_scale(module)
        if self.statistics is not None and self.method == GPTQ and module not in self.unread:
            return pack_with_feedback(weight_OI, format, self.statistics.moment(self.inputs[module]), scale)
        return pack(weight_OI, format, weight=True, input_scale=scale)

    def _input_scale(self, module: str) -> Tensor | None:
        """The stored scale with which the largest input that was seen is the format's largest number; 1 where all
        inputs were 0."""
        if not self.format.static:
            return None
        assert self.statistics is not None, "who quantizes has refused a static format without statistics"
        largest = self.statistics.largest[self.inputs[module]].amax()
        return (largest / self.format.of_elements.most).masked_fill(largest == 0, 1)

    def parts(self, module: str, weight_OI: Tensor) -> dict[str, Tensor]:
        """What is written of a module's weight, by the ends of the names."""
        return self.row.parts(self.packed(module, weight_OI))

    def as_loaded(self, module: str, weight_OI: Tensor) -> Packed:
        """What a loader makes of that."""
        outputs, width = weight_OI.shape
        return read_back(self.row, self.format, module, self.parts(module, weight_OI), (outputs, width))
