"""What a quantized checkpoint's files say of it: every key is known, and every value of a kind that it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from dialect_files import FIXTURES, PROBE, checkpoint

from cosmos3_core.checkpoint.model import Weights, open_model
from cosmos3_core.checkpoint.quantized import headers_of
from cosmos3_core.contract import InputError
from cosmos3_core.quant.dialects import DIALECTS, Broken, Clues, dialect_of, scheme_of
from cosmos3_core.quant.dialects.modelopt import FILE, MODELOPT

ODD: tuple[Any, ...] = (None, True, -1, 1.5, "re:(", ["re:["], [[]], [{"a": 1}], {"a": 1})
"""A value of every kind that JSON has."""


@pytest.mark.parametrize(
    "name",
    [
        "modelopt-fp8",
        "ct-float",
        "ct-nvfp4",
        "autoround-w4a16",
        "autoround-mxfp4",
        "gptq",
        "awq",
        "bnb-nf4",
        "torchao-int8",
    ],
)
def test_a_description_of_wrong_kinds_is_read_or_refused(name: str, tmp_path: Path) -> None:
    """Whatever stands at any key: nothing else is raised."""
    model = open_model(str(checkpoint(name, tmp_path / "model")))
    weights = Weights(model)
    assert model.quantization is not None
    clues = replace(model.quantization.clues, headers=headers_of(weights.transformer))
    said = getattr(weights.transformer, "metadata", {}).get(f"{PROBE}.weight", "null")
    refused = 0
    for whole, key in ((dict(clues.config or {}), None), (json.loads(said) or {}, f"{PROBE}.weight")):
        for path in paths(whole):
            for value in ODD:
                text = {} if key is None else {key: json.dumps(put(whole, path, value))}
                config = clues.config if key else put(whole, path, value)
                refused += not reads(replace(clues, config=config, metadata=text or {f"{PROBE}.weight": said}))
    assert refused > 20


def paths(whole: Any) -> Iterator[tuple[str, ...]]:
    """Of every key in objects of objects; of what is said of single modules, the first's."""
    for key, value in whole.items() if isinstance(whole, dict) else ():
        yield (key,)
        inner = dict(islice(value.items(), 1)) if key == "extra_config" else value
        yield from ((key, *rest) for rest in paths(inner))


def put(whole: Any, path: tuple[str, ...], value: Any) -> Any:
    """The same with another value at this path."""
    return {**whole, path[0]: put(whole[path[0]], path[1:], value)} if path else value


def reads(clues: Clues) -> bool:
    """Whether the probe's layout is found; else it is refused."""
    try:
        dialect = dialect_of(clues)
        assert dialect is not None and clues.headers is not None
        parts = {s: clues.headers[f"{PROBE}.{s}"] for s in dialect.suffixes if f"{PROBE}.{s}" in clues.headers}
        scheme_of(dialect, clues).layout(PROBE, parts, (32, 64))
    except (Broken, InputError):
        return False
    return True


def test_the_policy_of_an_exports_own_file_is_followed() -> None:
    steps = json.loads((FIXTURES / "modelopt-fp8" / "config.json").read_text())["quantization_config"]["runtime"]
    clues = Clues(source="a model", files={FILE: {"quantization": {"quant_algo": "FP8", "runtime": steps}}})
    assert scheme_of(MODELOPT, clues).policy == steps["diffusion_step_policy"]
    steps["diffusion_step_policy"]["scope"] = ["vae"]
    assert scheme_of(MODELOPT, clues).policy is None


@pytest.mark.parametrize("row", DIALECTS, ids=lambda row: row.name)
def test_no_dialect_passes_over_a_key_that_it_does_not_know(row):
    with pytest.raises(InputError, match="its quantization_config says nobodys_key = 1, which is not understood"):
        scheme_of(row, Clues(source="a model", config={"nobodys_key": 1}))
