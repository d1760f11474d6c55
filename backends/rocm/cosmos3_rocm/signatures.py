"""How this package calls AITER, and whether the installed one can be called so.

AITER's functions change between versions: a parameter is added in the middle, an output becomes the result. Its
decorators hide their names from `inspect.signature`, and importing it asks the driver and may compile. So the source of
the installed package is read, without importing it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cosmos3_core.contract import Ask


@dataclass(frozen=True)
class Form:
    """A way to call a function: its first parameters by place, `named` ones by name."""

    placed: tuple[str, ...]
    named: tuple[str, ...] = ()

    def misfit(self, parameters: ast.arguments) -> str | None:
        """Why a function with these parameters cannot be called so."""
        places = [one.arg for one in (*parameters.posonlyargs, *parameters.args)]
        names = {*places[len(self.placed) :], *(one.arg for one in parameters.kwonlyargs)}
        if tuple(places[: len(self.placed)]) != self.placed:
            return f"it begins with ({', '.join(places[: len(self.placed)])}), not ({', '.join(self.placed)})"
        if missing := [name for name in self.named if name not in names]:
            return f"it takes no {' and no '.join(missing)}"
        wanted = places[: len(places) - len(parameters.defaults)]
        wanted += [
            one.arg
            for one, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
            if default is None
        ]
        if more := [name for name in wanted if name not in (*self.placed, *self.named)]:
            return f"it wants {' and '.join(more)} as well"
        return None


@dataclass(frozen=True)
class Function:
    """A function of AITER: the file that has it, and the ways to call it, of which the first that fits is taken."""

    file: str
    forms: tuple[Form, ...]

    @property
    def module(self) -> str:
        return f"aiter.{self.file.removesuffix('.py').replace('/', '.')}"


QKV = ("q", "k", "v")
EIGHT_BITS = ("XQ", "WQ", "x_scale", "w_scale")
FOUR_BITS = ("A", "B", "A_scale", "B_scale")
ROTATION = ("rotate_style", "reuse_freqs_front_part", "nope_first")
FUNCTIONS = {
    "flash_attn_func": Function("ops/mha.py", (Form(QKV, ("causal", "return_lse")),)),
    "flash_attn_varlen_func": Function(
        "ops/mha.py",
        (Form((*QKV, "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"), ("causal", "return_lse")),),
    ),
    "flash_attn_fp8_pertensor_func": Function(
        "ops/mha.py", (Form((*QKV, "q_descale", "k_descale", "v_descale"), ("causal",)),)
    ),
    "gemm_a8w8": Function("ops/gemm_op_a8w8.py", (Form(EIGHT_BITS, ("bias", "dtype")),)),
    "gemm_a8w8_blockscale": Function("ops/gemm_op_a8w8.py", (Form(EIGHT_BITS, ("dtype",)),)),
    "gemm_a4w4": Function(
        "ops/gemm_op_a4w4.py",
        (Form((*FOUR_BITS, "out"), ("bpreshuffle",)), Form(FOUR_BITS, ("dtype", "bpreshuffle"))),
    ),
    "per_1x32_f4_quant_hip": Function("ops/quant.py", (Form(("x",), ("shuffle",)),)),
    "shuffle_weight": Function("ops/shuffle.py", (Form(("x",), ("layout",)),)),
    "e8m0_shuffle": Function("utility/fp4_utils.py", (Form(("scale",)),)),
    "rmsnorm2d_fwd": Function(
        "ops/rmsnorm.py", (Form(("input", "weight", "epsilon"), ("use_model_sensitive_rmsnorm",)),)
    ),
    "rmsnorm2d_fwd_with_add": Function(
        "ops/rmsnorm.py",
        (Form(("out", "input", "residual_in", "residual_out", "weight", "epsilon"), ("use_model_sensitive_rmsnorm",)),),
    ),
    "rope_cached_fwd": Function("ops/rope.py", (Form(("input", "cos", "sin", *ROTATION)),)),
    "rope_cached_2c_fwd": Function("ops/rope.py", (Form(("input_x", "input_y", "cos", "sin", *ROTATION)),)),
    "silu_and_mul": Function("ops/activation.py", (Form(("out", "input")),)),
}
"""Those that rows call, by name."""


def parameters(source: str) -> dict[str, ast.arguments]:
    """Of the functions that Python source defines at its top, by name; of several of one name the last counts."""
    return {node.name: node.args for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


@cache
def _of_file(file: Path) -> dict[str, ast.arguments]:
    return parameters(file.read_text("utf-8")) if file.is_file() else {}


def installed() -> Path | None:
    """The folder of the installed AITER."""
    spec = find_spec("aiter")
    folders = getattr(spec, "submodule_search_locations", None)
    return Path(folders[0]) if folders else None


def form(name: str) -> Form:
    """How the installed AITER's function of that name is called. Raises LookupError with the reason where no way fits,
    ImportError where AITER is not installed."""
    function, folder = FUNCTIONS[name], installed()
    if folder is None:
        raise ImportError("AITER is not installed")
    found = _of_file(folder / function.file).get(name)
    if found is None:
        raise LookupError(f"the installed amd-aiter has no {name} in aiter/{function.file}")
    for one in function.forms:
        if one.misfit(found) is None:
            return one
    raise LookupError(f"{name} of the installed amd-aiter is another: {function.forms[-1].misfit(found)}")


def refuse(*names: str) -> Callable[[Ask], str | None]:
    """A row's `refuse` for those functions."""

    def reason(ask: Ask) -> str | None:
        if installed() is None:
            return None  # the row's `needs` say so
        try:
            for name in names:
                form(name)
        except (LookupError, SyntaxError) as error:
            return str(error)
        return None

    return reason


def load(name: str) -> Callable[..., Any]:
    """The function, which is imported."""
    found: Callable[..., Any] = getattr(import_module(FUNCTIONS[name].module), name)
    return found
