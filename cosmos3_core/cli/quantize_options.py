"""The options of `cosmos3 quantize`."""

from __future__ import annotations

from functools import partial

import click

from .completion import files, one_of, written
from .options import BACKEND, DEVICE, EMBEDDED, INPUT, OUTPUT, OVERWRITE, QUIET, REVISION, SET, model, option

QUANTIZE = (
    model(),
    REVISION,
    option(
        DEVICE,
        "--format",
        required=True,
        help="Of the weights: fp8, fp8_static, int8 or w4a16.",
        shell_complete=one_of(partial(written, "format")),
    ),
    option(
        DEVICE,
        "--dialect",
        help="modelopt or compressed-tensors  [default: the first that has the format]",
        shell_complete=one_of(partial(written, "dialect")),
    ),
    option(DEVICE, "--group", type=int, help="Of w4a16: input features that share a scale  [default: 128]"),
    option(
        DEVICE,
        "--policy",
        type=click.Path(),
        help="A TOML file that says which modules stay in the model's dtype.",
        shell_complete=files,
    ),
    option(
        DEVICE,
        "--method",
        type=click.Choice(["nearest", "gptq"]),
        default="nearest",
        show_default=True,
        help="How codes are chosen; gptq takes --calibrate, and loses less.",
    ),
    option(
        INPUT,
        "--calibrate",
        metavar="PROMPTS",
        help="Measure what the matrices are multiplied by: a text file with a prompt on each line, "
        f'"world" for the {EMBEDDED} model, or the .safetensors that an earlier calibration saved.',
        shell_complete=files,
    ),
    SET,
    BACKEND,
    option(OUTPUT, "-o", "--output", type=click.Path(), help="The new folder."),
    option(
        OUTPUT,
        "--sweep",
        type=click.Path(),
        metavar="POLICY",
        help="Write a policy instead, by what each group of matrices costs in runs of the prompts of --calibrate.",
    ),
    option(
        OUTPUT,
        "--keep-share",
        type=float,
        metavar="SHARE",
        help="Of --sweep: what may stay, of the bytes.",
    ),
    option(
        OUTPUT,
        "--max-error",
        type=float,
        metavar="ERROR",
        help="Of --sweep: keep what brings the velocity error below.",
    ),
    OVERWRITE,
    QUIET,
)
