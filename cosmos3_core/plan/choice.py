"""A plan as a value: what is wanted of a device, the row that serves each op, and the ops that these rows come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .. import reference
from ..contract import (
    COMPOSITES,
    Backend,
    Device,
    InputError,
    Kernel,
    Ops,
    PackLinear,
    RunError,
    Tuning,
)
from ..quant import Format
from ..quant.steps import OPTION, StepPolicy
from ..spelling import reason_of
from . import formats as registry
from .discovery import check_op
from .execution import Execution, Numbers, kept_layers_of
from .mesh import ALONE, Layout
from .placement import ALL_STAGED, Placement
from .serving import ByQueries, given_defaults

if TYPE_CHECKING:
    from ..model.config import TransformerConfig
    from ..model.weights import InSixteen, Target
    from .mixed import InFormat

SLOW = "right, and many times slower than a kernel"
OWN = " (yours"
"""In the name of a row that is a caller's own function, before what tells it from others of that name. No package's row
has a space in its name."""
USED_IN: dict[str, tuple[str, ...]] = {
    "gate": ("finish",),
    "norm_rope": ("project",),
    "pack_linear": ("project", "finish"),
}
"""Composites outside of which nothing asks for an op; for pack_linear this holds in a quantization format. Where all of
them do it themselves, the row that was chosen for it never runs."""


@dataclass(frozen=True)
class Want:
    """What the user and the model ask of a device. `kernels` names rows by op; other ops are "auto". `formats` names
    quantization formats by op, of those in `contract.FORMATTED`. Other fields are as those of `contract.Ask`; `packed`
    says that the checkpoint holds the layers' weights in their format already, and some of them in these `others`;
    `policy` which activations stay in 16 bits although these formats quantize them, and `tensor` among how many
    devices each layer is split. Numbers are those of the whole model."""

    dtype: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int = 0
    inner: int = 0
    activation: str = "silu"
    kernels: Mapping[str, str] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    packed: bool = False
    others: tuple[str, ...] = ()
    policy: StepPolicy | None = None
    tensor: int = 1

    @classmethod
    def of(
        cls,
        config: TransformerConfig,
        dtype: str,
        kernels: Mapping[str, str] | None = None,
        formats: Mapping[str, str] | None = None,
        policy: StepPolicy | None = None,
    ) -> Want:
        """What running a transformer of this config takes."""
        return cls(
            dtype=dtype,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            activation=config.hidden_act,
            kernels=kernels or {},
            formats=formats or {},
            policy=policy,
        )

    def format(self, op: str) -> str:
        """The quantization format that an op is asked for in; a composite's is that of the products in it."""
        return self.formats.get("pack_linear" if op in COMPOSITES else op, "none")


@dataclass(frozen=True)
class Refusal:
    """A row that was passed over, and why."""

    op: str
    name: str
    reason: str


@dataclass(frozen=True)
class Choice:
    """The row that serves an op, in a quantization format or "none". `below` are the rows that serve calls with fewer
    queries than so many in its place, the smallest number first."""

    op: str
    kernel: Kernel
    named: bool
    format: str = "none"
    below: tuple[tuple[int, Kernel], ...] = ()

    def serving(self, queries: int | None) -> Kernel:
        """The row that serves a call with so many queries."""
        return next((row for below, row in self.below if queries is not None and queries < below), self.kernel)

    @property
    def eager(self) -> bool:
        """Whether it is a product in a format by eager torch, which makes the weights fp32 numbers in every call."""
        return self.op == "pack_linear" and self.format != "none" and self.kernel.name == reference.EAGER_ROW


@dataclass(frozen=True)
class Sixteen:
    """Activations in 16 bits, as a `policy` says, by weights in formats that quantize them: for each of these by name
    `formats` has the one that keeps them so, and `choices` the row of pack_linear for that."""

    policy: StepPolicy
    formats: Mapping[str, Format]
    choices: tuple[Choice, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def eager(self) -> bool:
        """Whether eager torch does any of it."""
        return any(choice.eager for choice in self.choices)

    @property
    def widens(self) -> bool:
        """Whether a row makes the weights numbers in the plan's dtype."""
        return any(choice.kernel.widens for choice in self.choices)


@dataclass(frozen=True)
class Plan:
    """What a run will use. Made by `resolve`, printed by --dry-run, recorded in the manifest."""

    backend: Backend
    device: Device
    dtype: str
    choices: tuple[Choice, ...]
    refusals: tuple[Refusal, ...]
    kept: tuple[Choice, ...] = ()
    """For each op in a format, the row that serves the parts of the model which are never quantized."""
    packed: bool = False
    """Whether a checkpoint holds the layers' weights in their format already."""
    others: tuple[Choice, ...] = ()
    """Of pack_linear, the rows for the other formats in which it holds some of them."""
    a16: Sixteen | None = None
    """Steps, or a text tower, with activations in 16 bits where the formats quantize them."""
    layout: Layout = ALONE
    """How many devices share a request, and how."""

    @property
    def formats(self) -> dict[str, str]:
        """Quantization formats by op, where there is one; composites left out."""
        return {c.op: c.format for c in self.choices if c.format != "none" and c.op not in COMPOSITES}

    @property
    def fused(self) -> dict[str, str]:
        """The ops that no row of their own runs for, each with the composites that do it, as "finish=NAME"."""
        found = {}
        for op, composites in USED_IN.items():
            inside = [c for c in (*self.choices, *self.kept) if c.op in composites]
            if op == "pack_linear":
                inside = [c for c in inside if c.format != "none"]
            if inside and all(op in choice.kernel.fuses for choice in inside):
                found[op] = ", ".join(dict.fromkeys(f"{choice.op}={choice.kernel.name}" for choice in inside))
        return found

    @property
    def own(self) -> list[str]:
        """The caller's own functions that run in the place of a kernel, as "op=name (yours, digest)"."""
        return [f"{choice.op}={choice.kernel.name}" for choice in self.choices if OWN in choice.kernel.name]

    @property
    def format(self) -> str:
        """Of the layers' weights."""
        return self.formats.get("pack_linear", "none")

    @property
    def meanings(self) -> dict[str, Format]:
        """What the names of formats that can be asked for here mean."""
        return registry.known(self.backend)

    @property
    def unpacks(self) -> bool:
        """Whether eager torch does the products in a format: it makes the weights fp32 numbers in every call."""
        return self._multiplies is not None and self._multiplies.name == reference.EAGER_ROW

    @property
    def widens(self) -> bool:
        """Whether a row multiplies in the plan's dtype, with weights in a format."""
        return self._multiplies is not None and self._multiplies.widens

    @property
    def rounds(self) -> bool:
        """Whether a row rounds activations to a format for each product, and no composite passes them on in it."""
        own = self._multiplies is not None and not self.unpacks and not self.widens
        return own and self.meanings[self.format].of_inputs is not None

    @property
    def repeats(self) -> bool:
        """Whether eager torch attends or rotates, which takes keys and values for every query head, and tensors."""
        own = [choice for choice in self.choices if choice.op in ("attention", "norm_rope")]
        return any(choice.kernel.name == reference.EAGER_ROW for choice in own if choice.op not in self.fused)

    @property
    def _multiplies(self) -> Kernel | None:
        """The row that does the products in a format; None without a format, and where composites do them."""
        if self.format == "none" or "pack_linear" in self.fused:
            return None
        return next(choice.kernel for choice in self.choices if choice.op == "pack_linear")

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the rows that run."""
        found, why = [], _reasons([one for one in self.refusals if one.op == "pack_linear"])
        if self.widens and self.meanings[self.format].of_inputs is not None:
            found.append(
                f"products of {self.format} are in {self.dtype} here{why}: the format saves memory, and no time"
            )
        if self.unpacks:
            served = f"no kernel of {self.backend.name} serves {self.format} here{why}"
            found.append(f"{served}, so eager torch makes the layers' weights numbers again in every call: {SLOW}")
        elif self.a16 and self.a16.eager:
            served = f"no kernel of {self.backend.name} takes activations in 16 bits by {self.format} weights here"
            served += f"{_reasons(self.a16.refusals)}, so eager torch does those steps, and the text tower"
            found.append(f"{served}: {SLOW}. `{OPTION}` none does without")
        return tuple(found)

    @property
    def tuning(self) -> Tuning:
        """The backend's for the device's architecture, or the defaults."""
        return tuning_of(self.backend, self.device)

    def execution(self, config: TransformerConfig, request: Numbers, placement: Placement = ALL_STAGED) -> Execution:
        """How this request runs on a model of this config."""
        return Execution.of(
            config,
            request,
            self.tuning,
            format=self.format,
            packed=self.packed,
            placement=placement,
            policy=self.a16.policy if self.a16 else None,
            layout=self.layout,
        )

    def target(self, config: TransformerConfig) -> Target:
        """What the weights of a model of this config become. Imports and builds the chosen kernels."""
        import torch

        from ..model.weights import Target

        ops = self.build_ops()
        kept = self.build_kept(ops)
        return Target(
            ops=ops,
            kept=kept,
            device=self.backend.torch_device,
            dtype=getattr(torch, self.dtype),
            codec_dtype=getattr(torch, self.tuning.codec_dtype or self.dtype),
            channels_last=self.tuning.channels_last,
            format=self.format,
            kept_layers=kept_layers_of(config, self.format, self.packed),
            mixed=self._mixed(kept, {self.format: ops.pack_linear}, self.others) if self.packed else None,
            a16=self._both(self.a16, kept) if self.a16 else None,
        )

    @property
    def in_format(self) -> InFormat | None:
        """Makes a matrix of the layers a packed one; None without a format."""
        from .mixed import InFormat

        return None if self.format == "none" else InFormat(self.meanings[self.format])

    def build_ops(self) -> Ops:
        """Import and build the chosen kernels. Raises RunError where a kernel that declared it can serve does not."""
        return Ops(**self._built(self.choices))

    def build_kept(self, ops: Ops) -> Ops:
        """The built `ops` as the parts of the model that are never quantized have them."""
        return replace(ops, **self._built(self.kept))

    def _mixed(self, kept: Ops, built: Mapping[str, PackLinear], others: Sequence[Choice]) -> Ops:
        """For layers that are not all in one format, those of the `built` rows and of the `others`: by default
        composites, which leave the products to pack_linear."""
        from .mixed import PackAny

        by_format = {**built, **{other.format: self._build(other) for other in others}}
        return reference.with_defaults(replace(kept, pack_linear=PackAny(kept.pack_linear, by_format)))

    def _both(self, a16: Sixteen, kept: Ops) -> InSixteen:
        """What a layer with activations in 16 bits is made by; a checkpoint's formats that keep them so themselves are
        served by their own rows."""
        from ..model.weights import InSixteen
        from .mixed import InFormat, Same

        linears = [one for one in (*self.choices, *self.others) if one.op == "pack_linear"]
        own = [one for one in linears if one.format not in a16.formats]
        return InSixteen(
            ops=self._mixed(kept, {}, (*a16.choices, *own)),
            steps=a16.policy.in_steps,
            text=a16.policy.in_text,
            packed=InFormat(self.meanings[self.format]),
            same=Same(a16.formats),
        )

    def _built(self, choices: Sequence[Choice]) -> dict[str, Any]:
        built = {choice.op: self._build(choice) for choice in choices}
        if attention := next((choice for choice in choices if choice.op == "attention"), None):
            built["prepare"] = built["attention"].prepare if attention.kernel.prepares else None
        return built

    def _build(self, choice: Choice) -> Any:
        try:
            main = choice.kernel.build(self.device)
            below = [(count, row.build(self.device)) for count, row in choice.below]
        except Exception as error:
            asked = f"building {choice.op}={choice.kernel.name} of backend {self.backend.name}"
            plain = next(row.name for row in reference.BACKEND.kernels if row.op == choice.op)
            next_step = f"`kernel` {choice.op}={plain} does without it"
            if choice.format != "none":
                next_step = f"Leave `format` {choice.op}={choice.format} out to do without it"
            raise RunError(asked, reason_of(error), next_step) from error
        if choice.op in COMPOSITES:
            return given_defaults(main)
        if choice.op == "memory":
            from ..reference.memory import whole

            return whole(main)
        return ByQueries(main, below) if below else main

    def require(self, kernels: Mapping[str, str], queries: int | None = None, *, captured: bool = True) -> None:
        """Raises InputError unless each op named here is served by the row named here, attention for so many queries
        (None: for any number of them), capture where a pass is `captured`."""
        fused, chosen = self.fused, {choice.op: choice for choice in self.choices}
        refused = {(refusal.op, refusal.name): refusal.reason for refusal in self.refusals}
        for op, name in kernels.items():
            check_op(op)
            choice, known = chosen[op], {row.name: row.formats for row in rows(self.backend, op)}
            serving, asked = choice.serving(queries), f"`require` {op}={name}"
            if op in fused:
                found = f"no row of {op} runs: it is done inside {fused[op]}"
                apart = name if name in known else choice.kernel.name
                raise InputError(asked, found, f"Type `kernel` {op}={apart} to have it apart")
            if op == "capture" and not captured:
                raise InputError(asked, "no pass of this request is captured", "Drop it, or ask for a smaller picture")
            if queries is None and choice.below and choice.kernel.name == name:
                small = ", ".join(f"below {count:,} queries {row.name}" for count, row in choice.below)
                raise InputError(
                    asked, f"the plan has {small}", "Name the request, so that it is known which of them runs"
                )
            if serving.name == name:
                self._require_a16(op, name)
                continue
            found = f"the plan has {serving.name}"
            if serving is not choice.kernel:
                why = f"it is faster than {choice.kernel.name} for {queries:,} queries"
                next_step = "Drop `require`, or ask for a larger picture"
            elif name not in known:
                why, next_step = f"{self.backend.name} has no such kernel", f"It has {', '.join(known)}"
            elif (op, name) in refused:
                why, next_step = f"{name}: {refused[op, name]}", "Change what it objects to, or drop `require`"
            elif not {"*", choice.format} & {*known[name]}:
                why = f"{name} takes formats {', '.join(known[name])}, not {choice.format}"
                next_step = f"Give one of them as `format` {op}=..., or drop `require`"
                if op == "pack_linear" and self.packed:  # in the checkpoint's format
                    next_step = "Drop `require`"
            else:
                why = "it was named" if choice.named else "it serves and is preferred"
                next_step = f"Type `kernel` {op}={name} to use the other"
            raise InputError(asked, f"{found}; {why}", next_step)

    def _require_a16(self, op: str, name: str) -> None:
        """Raises InputError where other rows than this one take the activations in 16 bits."""
        if op != "pack_linear" or self.a16 is None:
            return
        if other := next((one for one in self.a16.choices if one.kernel.name != name), None):
            refused = _reasons([one for one in self.a16.refusals if one.name == name])
            found = f"{other.kernel.name} takes the activations that stay in 16 bits, in {other.format}{refused}"
            raise InputError(f"`require` {op}={name}", found, f"Type `{OPTION}` none, or drop `require`")

    def to_json(self, queries: int | None = None) -> dict[str, Any]:
        """For people and manifests. `kernels` are the rows that run, attention's for so many media tokens."""
        fused = self.fused
        return {
            "backend": self.backend.name,
            "device": vars(self.device) | {"versions": dict(self.device.versions)},
            "dtype": self.dtype,
            "kernels": {c.op: c.serving(queries).name for c in self.choices if c.op not in fused},
            "fused": fused,
            "below": _below(self.choices),
            "formats": self.formats,
            "kept": {choice.op: choice.kernel.name for choice in self.kept},
            "kept_below": _below(self.kept),
            "named": sorted(choice.op for choice in self.choices if choice.named),
            "refused": [vars(refusal) for refusal in self.refusals],
        } | self._of_formats()

    def _of_formats(self) -> dict[str, Any]:
        """The rows of pack_linear for other formats than the layers' first one, and who takes activations in 16 bits;
        nothing where there are none."""
        found: dict[str, Any] = {}
        if self.others:
            found["others"] = {other.format: other.kernel.name for other in self.others}
        if self.a16:
            found["a16"] = {
                "kernels": {choice.format: choice.kernel.name for choice in self.a16.choices},
                "policy": asdict(self.a16.policy),
                "refused": [vars(refusal) for refusal in self.a16.refusals],
            }
        return found


def _below(choices: Sequence[Choice]) -> dict[str, dict[str, int]]:
    """By op and row, from how many queries on another row serves."""
    return {choice.op: {row.name: count for count, row in choice.below} for choice in choices if choice.below}


def _reasons(refusals: Sequence[Refusal]) -> str:
    return f" ({'; '.join(f'{one.name}: {one.reason}' for one in refusals)})" if refusals else ""


def rows(backend: Backend, op: str) -> list[Kernel]:
    """The rows that may serve an op, in order of preference: the backend's own, then eager torch."""
    own = [row for row in backend.kernels if row.op == op and row not in reference.BACKEND.kernels]
    return own + [row for row in reference.kernels(backend.formats) if row.op == op]


def tuning_of(backend: Backend, device: Device) -> Tuning:
    """The backend's tuning for the device's architecture, or for all, or the defaults."""
    return backend.tuning.get(device.arch) or backend.tuning.get("*", Tuning())
