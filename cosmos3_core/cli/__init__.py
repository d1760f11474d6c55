"""The `cosmos3` command. Only click is imported until a command runs: `--help` has to answer at once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from .. import __version__
from .matrix import matrix
from .recipes import recipes

EXIT_CANCELLED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="cosmos3")
@click.option("--disable-backends", envvar="COSMOS3_DISABLE_BACKENDS", default="", hidden=True)
@click.pass_context
def cli(context: click.Context, disable_backends: str) -> None:
    """NVIDIA's Cosmos3 world models on any accelerator."""
    context.obj = tuple(filter(None, (name.strip() for name in disable_backends.split(","))))


def _pairs(option: str):
    """Parse repeated KEY=VALUE into a dict."""

    def callback(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        for value in values:
            if "=" not in value:
                raise click.BadParameter(f"{value!r} is not {option}", context, parameter)
        return _once([value.split("=", 1) for value in values], context, parameter)

    return callback


def _once(pairs: Sequence[Sequence[str]], context: click.Context, parameter: click.Parameter) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in pairs:
        if key in found:
            raise click.BadParameter(f"{key} is given twice, as {found[key]} and as {value}", context, parameter)
        found[key] = value
    return found


def _fields(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """--set FIELD=VALUE: the value as JSON where it parses as JSON, the text itself elsewhere."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    return {key: value(text) for key, text in _pairs("FIELD=VALUE")(context, parameter, values).items()}


def _formats(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """FORMAT alone is the weights'."""
    pairs = [value.split("=", 1) if "=" in value else ("pack_linear", value) for value in values]
    return _once(pairs, context, parameter)


REQUEST_OPTIONS = (
    click.option("--task", help="t2i, t2v, i2v or v2v  [default: from the inputs]"),
    click.option("--size", help="1280x720, or a tier such as 720p or 720p:16:9."),
    click.option("--frames", type=int, help="1, 5, 9, 13 ... pixel frames."),
    click.option("--steps", type=int, help="Denoising steps."),
    click.option("--guidance", type=float, help="Classifier-free guidance scale; 1 is none."),
    click.option("--tile", type=int, help="Decode in tiles of this many pixels, to save memory."),
    click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", callback=_fields, help="Any request field."),
    click.option("--profile", help="Whose defaults: reference, diffusers, vllm-omni, sglang.  [default: reference]"),
)
"""What decides a request's cost, for every command that runs or plans one."""
PLAN_OPTIONS = (
    click.option("--backend", help="Device package to run on."),
    click.option(
        "--kernel", "kernels", multiple=True, metavar="OP=NAME", callback=_pairs("OP=NAME"), help="Insist on a kernel."
    ),
    click.option(
        "--format",
        "formats",
        multiple=True,
        metavar="[OP=]FORMAT",
        callback=_formats,
        help="Quantize: fp8 the layers' weights and what they multiply, attention=fp8 the attention.",
    ),
    click.option("--dtype", help="float32, bfloat16 or float16  [default: the checkpoint's]"),
)
"""What decides a plan, for every command that makes one."""


def _with(options):
    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@cli.command(context_settings={"max_content_width": 110})
@click.argument("prompt", required=False)
@click.option("--model", help='Hub id, folder, or "tiny".  [default: nvidia/Cosmos3-Nano]')
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("-o", "--output", type=click.Path(), help="out.mp4 or out.png  [default: cosmos3-SEED]")
@_with(REQUEST_OPTIONS)
@click.option("--image", help="Start a video from this picture.")
@click.option("--video", help="Continue this clip.")
@click.option("--fps", type=float, help="Frames per second.")
@click.option("--shift", type=float, help="Shift of the noise schedule.")
@click.option("--seed", type=int, help="Seed of the noise.")
@click.option("--negative-prompt", help="What to keep away from.")
@click.option("--request", type=click.Path(), help="JSON file of request fields, or a manifest to repeat.")
@_with(PLAN_OPTIONS)
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="OP=NAME",
    callback=_pairs("OP=NAME"),
    help="Stop unless the plan has this kernel.",
)
@click.option("--latents", type=click.Path(), help="Start from this saved noise.")
@click.option("--save-latents", type=click.Path(), help="Save the initial noise and the final latents here.")
@click.option("--resume", type=click.Path(), help="Go on with a run that was stopped.")
@click.option("--manifest", type=click.Path(), help="Where the manifest goes  [default: OUTPUT.json]")
@click.option("--dry-run", is_flag=True, help="Print the resolved request and plan, and stop.")
@click.option("--anyway", is_flag=True, help="Run even what does not fit by the estimate of cosmos3 plan.")
@click.pass_obj
def run(disabled: tuple[str, ...], **options) -> None:
    """Generate a picture or a video.

    PROMPT is text, or @FILE for a text or JSON file (@- for standard input). The task follows from the inputs: --image
    makes i2v, --video v2v, an output ending in .png (or --frames 1) t2i, anything else t2v.

    \b
    cosmos3 run "a robot arm pours coffee" -o coffee.mp4
    cosmos3 run "the arm lifts the cup" --image desk.jpg -o lift.mp4
    """
    from .run import Options, execute

    execute(Options(disabled=disabled, **options))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def backends(disabled: tuple[str, ...], as_json: bool) -> None:
    """List the installed backends: what each found here, and its kernels."""
    from .backends import show

    show(disabled, as_json)


@cli.command(context_settings={"max_content_width": 110})
@click.option(
    "--model", default="nvidia/Cosmos3-Nano", show_default=True, help='nano, super, edge, a hub id, a folder or "tiny".'
)
@_with(REQUEST_OPTIONS)
@_with(PLAN_OPTIONS)
@click.option("--memory", type=float, metavar="GIB", help="Judge by this much device memory instead of what is here.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def plan(disabled: tuple[str, ...], **options) -> None:
    """Say whether a run fits, on which kernels, and how long it will take, before anything is downloaded.

    Exit code 0 if it fits, 1 if it does not.

    \b
    cosmos3 plan --model super --size 720p --memory 80
    """
    from .plan import Options, execute

    execute(Options(disabled=disabled, **options))


@cli.command(context_settings={"max_content_width": 110})
@click.option("--model", default="nvidia/Cosmos3-Nano", show_default=True, help='Hub id, folder, or "tiny".')
@_with(REQUEST_OPTIONS)
@_with(PLAN_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_obj
def warmup(disabled: tuple[str, ...], as_json: bool, **options) -> None:
    """Compile and cache the kernels of a run, so that the first one does not wait for them.

    Runs on random weights, a few layers deep: nothing but configs is downloaded. Prints the seconds of each part of a
    run when everything was cold, and again now that it is warm.

    
    cosmos3 warmup --size 720p --frames 189 --format fp8
    """
    from .plan import RequestOptions
    from .warmup import execute

    execute(RequestOptions(disabled=disabled, **options), as_json)


@cli.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, whole.")
def show(file: str, as_json: bool) -> None:
    """Print the manifest in FILE, an output of `cosmos3 run` or the .json beside it."""
    from .show import execute

    execute(file, as_json)


@cli.command()
@click.option("--backend", required=True, help="The backend to judge.")
@click.option("--record", type=click.Path(), help="Write the result here, as JSON.")
@click.option("-k", "keyword", metavar="EXPR", help="Only tests whose name matches, as in pytest.")
@click.option("--module", type=click.Path(), help="Your test module of the kit: its KNOWN_FAILURES hold here too.")
@click.pass_obj
def check(disabled: tuple[str, ...], backend: str, record: str | None, keyword: str | None, module: str | None) -> None:
    """Run the conformance kit over a backend on this machine. Exit code 0: it does all it declares."""
    from .check import execute

    execute(backend, disabled, record, keyword, module)


cli.add_command(recipes)
cli.add_command(matrix)


def main() -> None:
    """Entry point: one line on stderr and exit code 2 for bad input, 1 for a failed run, 130 for a stopped one."""
    from ..contract.errors import Cosmos3Error

    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        if "unexpected extra argument" in error.message:
            error.message += ". Put the prompt in quotes"
        error.show()
        sys.exit(error.exit_code)
    except Cosmos3Error as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(EXIT_CANCELLED)
