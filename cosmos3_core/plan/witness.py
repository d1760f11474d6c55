"""What a caller's own function makes of its first calls, held against its op's protocol: a wrong shape or a buffer that
is used again would run to the end and make garbage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..contract import RunError

if TYPE_CHECKING:
    from torch import Tensor


class Wanted(NamedTuple):
    """A tensor of a result: its shape, and a tensor of the dtype and device that it has."""

    shape: Sequence[int]
    like: Tensor


def _attention(q: Tensor, segments: Any, *, causal: bool = False, want_lse: bool = False) -> list[Wanted]:
    out = Wanted(q.shape, q)
    return [out, Wanted((q.shape[0], q.shape[2], q.shape[1]), q.new_empty(0).float())] if want_lse else [out]


def _rms_norm(x: Tensor, weight: Tensor, **_: Any) -> list[Wanted]:
    return [Wanted(x.shape, x), Wanted(x.shape, x)]


def _norm_rope(heads: Any, cos: Tensor, sin: Tensor, **_: Any) -> list[Wanted]:
    return [Wanted(x.shape, x) for x, _ in heads]


def _gate(x: Tensor, *, activation: str) -> list[Wanted]:
    return [Wanted((*x.shape[:-1], x.shape[-1] // (2 if activation == "silu" else 1)), x)]


def _patch_embed(latent: Tensor, weight: Tensor, *_: Tensor, patch: int, **__: Any) -> list[Wanted]:
    frames, height, width = latent.shape[1:]
    return [Wanted((frames * -(-height // patch) * -(-width // patch), weight.shape[0]), weight)]


def _norm_silu(x: Tensor, weight: Tensor, **_: Any) -> list[Wanted]:
    return [Wanted(x.shape, x)]


WANTED: dict[str, Callable[..., list[Wanted]]] = {
    "attention": _attention,
    "rms_norm": _rms_norm,
    "norm_rope": _norm_rope,
    "gate": _gate,
    "patch_embed": _patch_embed,
    "norm_silu": _norm_silu,
}
"""The ops whose every call returns tensors: what those are, by the call's arguments. See contract.ops."""
FRESH = ("attention", "rms_norm", "norm_rope", "patch_embed")
"""Those whose first result is in no case a part of an input."""
MAKERS = {"pack_linear": ("tensors",), "project": ("tensors",), "finish": ("tensors",), "capture": ()}
"""The ops that make a function of their own, and the methods that it has beside."""


def witnessed(op: str, called: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose first calls are checked; `called` as messages name it. Raises RunError in a call."""
    asked = f"running with {op}={called}"
    return _maker(asked, op, function) if op in MAKERS else Witness(asked, op, function)


def _maker(asked: str, op: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def make(*arguments: Any, **options: Any) -> Any:
        made = function(*arguments, **options)
        if not callable(made) or not all(hasattr(made, name) for name in MAKERS[op]):
            wanted = "a function" + "".join(f" with a method `{name}`" for name in MAKERS[op])
            raise _fault(asked, f"it returned {_described(made)}, and {wanted} is wanted")
        return _Packed(asked, made, len(arguments[0])) if op == "pack_linear" else made

    return make


class _Packed:
    """A linear layer with so many outputs, whose first result is checked."""

    def __init__(self, asked: str, made: Any, outputs: int):
        self.asked, self.made, self.outputs, self.seen = asked, made, outputs, False

    def __call__(self, x: Tensor) -> Any:
        result = self.made(x)
        if not self.seen:
            _check_one(self.asked, result, Wanted((*x.shape[:-1], self.outputs), x))
            self.seen = True
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)


class Witness:
    """A function of tensors. Of each form of call, by its options, the first is checked: shape, dtype and device of the
    results, and that the inputs stayed as they were; and of the next one that it returns memory of its own."""

    def __init__(self, asked: str, op: str, function: Callable[..., Any]):
        self.asked, self.op, self.function = asked, op, function
        self.seen: set[tuple[Any, ...]] = set()
        self.held: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        form = tuple(sorted((name, value is None or value is True) for name, value in options.items()))
        held = self.held.pop(form, ())
        result = self.function(*arguments, **options) if form in self.seen else self._first(form, arguments, options)
        if held and _memory(held) & _memory(_tensors(result)):
            raise _fault(self.asked, "it returned the memory of an earlier result, and a fresh tensor is wanted")
        return result

    def _first(self, form: tuple[Any, ...], arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        inputs, out = list(_tensors((arguments, options))), options.get("out_MI")
        staying = [(one, one.clone()) for one in inputs if not self._may_change(one, arguments, options)]
        if out is not None and all(bool(one.isfinite().all()) for one in inputs if one is not out):
            out.fill_(float("nan"))
        else:
            out = None
        result = self.function(*arguments, **options)
        if out is not None and out.isnan().any():
            raise _fault(self.asked, f"it left a part of out_MI, {_described(out)}, as it was")
        self._check(result, WANTED[self.op](*arguments, **options))
        if changed := [one for one, was in staying if not one.equal(was)]:
            raise _fault(self.asked, f"it changed an input, {_described(changed[0])}, which is to stay as it is")
        made = list(_tensors(result))
        if self.op in FRESH and _memory(made[:1]) & _memory(inputs):
            raise _fault(self.asked, "it returned the memory of an input, and a fresh tensor is wanted")
        self.held[form] = [one for one in made if not _memory([one]) & _memory(inputs)]
        self.seen.add(form)
        return result

    def _may_change(self, one: Tensor, arguments: Sequence[Any], options: dict[str, Any]) -> bool:
        """Whether the op's protocol lets it write to this input."""
        first = self.op == "gate" or (self.op == "norm_silu" and options.get("residual_MI") is not None)
        return one is options.get("out_MI") or (first and one is arguments[0])

    def _check(self, result: Any, wanted: Sequence[Wanted]) -> None:
        parts = {"attention": 2, "rms_norm": 2, "norm_rope": len(wanted)}.get(self.op)
        if parts is not None and (not isinstance(result, list | tuple) or len(result) != parts):
            raise _fault(self.asked, f"it returned {_described(result)}, and a tuple of {parts} is wanted")
        for one, want in zip([result] if parts is None else result, wanted, strict=False):
            _check_one(self.asked, one, want)


def _check_one(asked: str, one: Any, want: Wanted) -> None:
    wanted = f"{want.like.dtype} {list(want.shape)} on {want.like.device}"
    if _described(one) != wanted:
        raise _fault(asked, f"it returned {_described(one)}, and {wanted} is wanted")


def _memory(tensors: Iterable[Tensor]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors}


def _fault(asked: str, found: str) -> RunError:
    return RunError(asked, found, "Correct it, or drop it from `kernels`")


def _described(value: Any) -> str:
    if hasattr(value, "data_ptr"):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors in arguments or a result, also those in lists, segments and options."""
    if hasattr(value, "data_ptr"):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif hasattr(value, "k_BTKD"):
        yield from _tensors(tuple(value))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
