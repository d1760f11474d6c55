"""The `cosmos3` command. Only click is imported until a command runs: `--help` has to answer at once."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from . import options as shared
from . import terminal
from .matrix import matrix
from .parallel_options import PARALLEL
from .quantize_options import QUANTIZE
from .recipes import recipes

if TYPE_CHECKING:
    from ..contract.errors import Cosmos3Error

EXIT_CANCELLED = 130
EXIT_CODES = {
    "0": "Done. Of `plan` and `run --dry-run`: it fits. Of `check`: the backend does all that it declares. Of "
    "`evaluate`: every bound is met.",
    "1": "It failed, though nothing was wrong with what was asked; a run keeps the steps that it computed. An error "
    "that nobody expected leaves a report in a file, which the message names. Of `plan` and `run --dry-run`: it does "
    "not fit. Of `check`: a test failed. Of `evaluate`: a bound is not met. Of `matrix --check`: the page is out of "
    "date.",
    "2": "Bad input: the command line, a request, a file or what this machine lacks. Nothing was written.",
    str(
        EXIT_CANCELLED
    ): "Stopped by Ctrl-C. A run in its stages also ends so by SIGTERM or SIGHUP: after what is under "
    "way, with the steps kept that it computed.",
    "129, 143": "Ended by SIGHUP or SIGTERM outside of a run's stages, as a shell reports it.",
}
"""What each means; docs/commands.md has the table."""


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    """click's own option takes a version that is known already, and git is asked for this one."""
    if asked:
        from ..files.checkout import build_version

        click.echo(f"cosmos3, version {build_version()}")
        context.exit()


@click.group(cls=shared.Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@click.option("--disable-backends", envvar="COSMOS3_DISABLE_BACKENDS", default="", hidden=True)
@click.pass_context
def cli(context: click.Context, disable_backends: str) -> None:
    """NVIDIA's Cosmos3 world models on any accelerator."""
    context.obj = tuple(filter(None, (name.strip() for name in disable_backends.split(","))))


@cli.command(cls=shared.WithFields, context_settings=shared.CONTEXT)
@click.argument("prompt", required=False)
@shared.with_options(shared.RUN)
@shared.with_options(PARALLEL)
@shared.option(shared.CONTROL, "--dry-run", is_flag=True, help="Say what cosmos3 plan says of it, and stop.")
@shared.with_options(shared.REPORT)
@click.pass_obj
def run(disabled: tuple[str, ...], **options) -> None:
    """Generate a picture, a video, sound or a robot's actions.

    PROMPT is text, or @FILE for a text or JSON file (@- for standard input). The task follows from the inputs: --image
    makes i2v, --video v2v, an output ending in .png (or --frames 1) t2i, anything else t2v. With --domain, --image
    makes policy, --image and --actions forward-dynamics, and --video inverse-dynamics.

    \b
    cosmos3 run "a robot arm pours coffee" -o coffee.mp4
    cosmos3 run "the arm lifts the cup" --image desk.jpg -o lift.mp4
    cosmos3 run "pick up the cup" --image desk.jpg --domain droid_lerobot --fps 15 --chunk 16 -o pick.json
    """
    from .run import Options, execute

    execute(Options(disabled=disabled, **options))
    terminal.file_is_the_answer()


@cli.command(cls=shared.WithFields, context_settings=shared.CONTEXT)
@click.argument("prompt", required=False)
@shared.with_options(shared.RUN)
@shared.with_options(PARALLEL)
@shared.with_options(shared.REPORT)
@click.pass_obj
def plan(disabled: tuple[str, ...], **options) -> None:
    """Say what a run would do, and do none of it: cosmos3 run --dry-run.

    The request and where its values are from, kernels, memory and time. With a PROMPT it is a run up to its weights:
    texts and inputs are read and every file of the run is checked. Without one it answers for a size and a task, and
    downloads nothing of a published model. Exit code 0 if it fits, 1 if it does not.

    \b
    cosmos3 plan --model super --size 720p --memory 80
    """
    from .run import Options, execute

    execute(Options(disabled=disabled, dry_run=True, **options))


@cli.command()
@shared.JSON
@click.pass_obj
def backends(disabled: tuple[str, ...], as_json: bool) -> None:
    """List the installed backends: what each found here, and its kernels."""
    from .backends import show

    show(disabled, as_json)


@cli.command(cls=shared.WithFields, costs=True, context_settings=shared.CONTEXT)
@shared.model(default=shared.DEFAULT_MODEL)
@shared.SET
@shared.with_options(shared.PLAN)
@shared.JSON
@click.pass_obj
def warmup(disabled: tuple[str, ...], as_json: bool, **options) -> None:
    """Compile and cache the kernels of a run, so that the first one does not wait for them.

    Runs on random weights, a few layers deep: nothing but configs is downloaded. Prints the seconds of each part of a
    run when everything was cold, and again now that it is warm.

    \b
    cosmos3 warmup --size 720p --frames 189 --format fp8
    """
    from .warmup import Options, execute

    execute(Options(disabled=disabled, **options), as_json)


@cli.command(context_settings=shared.CONTEXT)
@shared.model(shared.EMBEDDED, default=shared.EMBEDDED)
@click.option(
    "--depth",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="quick: 24 prompts, minutes on two cores. full: 200 and more, for a GPU.",
)
@shared.with_options(shared.PLAN)
@click.option("--profile", help="Whose defaults fill a request.", shell_complete=shared.one_of(shared.profiles))
@shared.JSON
@click.pass_obj
def evaluate(disabled: tuple[str, ...], as_json: bool, **options) -> None:
    """Measure whether what a model makes shows what was asked for.

    Runs prompts of the embedded model's world that it was not trained on, and reads colours, shapes, numbers,
    directions, impacts and actions back from the pixels and the sound, without a network. With a device, kernels or
    formats of yours it judges these. Exit code 0 if every bound is met, 1 if not; then the last line says what to type
    next. The bounds say nothing of a model of another world, such as Nano.

    \b
    cosmos3 evaluate --backend cuda --format fp8 --depth full
    """
    from .evaluate import Options, execute

    execute(Options(disabled=disabled, **options), as_json)


@cli.command(context_settings=shared.CONTEXT)
@shared.with_options(QUANTIZE)
@shared.JSON
@click.pass_context
def quantize(
    context: click.Context,
    fields: dict,
    output: str | None,
    overwrite: bool,
    sweep: str | None,
    keep_share: float | None,
    max_error: float | None,
    as_json: bool,
    **options,
) -> None:
    """Write a checkpoint with quantized weights.

    Other programs load it too. Without --calibrate it needs no data: scales are those of the weights. The understanding
    tower, the media tower's first layers, embeddings, the time embedder and heads stay in the model's dtype; a policy
    can say otherwise of layers. Reads and writes tensor by tensor. Stopped or killed, the same command goes on; the
    folder gets its name when it is whole.

    With --sweep it writes a policy instead: it measures how far the velocities of prompts move when one group of
    matrices is quantized, a kind in a third of a tower's layers, and keeps the worst groups.

    \b
    cosmos3 quantize --model nano --format fp8 -o Cosmos3-Nano-FP8
    cosmos3 quantize --model nano --format w4a16 --method gptq --calibrate prompts.txt -o Cosmos3-Nano-W4A16
    cosmos3 quantize --model nano --format w4a16 --calibrate prompts.txt --sweep policy.toml --keep-share 0.1
    """
    from ..evidence.quantizing.quantize import Asked
    from ..evidence.quantizing.sweep import Budget
    from .quantize import execute, measure

    asked, budget = Asked(given=fields, **options), Budget(share=keep_share, error=max_error)
    if (output is None) == (sweep is None):
        raise click.UsageError("Give -o for a checkpoint, or --sweep for a policy, and not both", context)
    if sweep is not None:
        measure(asked, budget, sweep, overwrite, as_json)
    elif output is not None:
        budget.check_none()
        execute(asked, output, overwrite, as_json)


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, whole.")
def show(file: str, as_json: bool) -> None:
    """Print the manifest in FILE, an output of `cosmos3 run` or the .json beside it."""
    from .show import execute

    execute(file, as_json)


@cli.command(context_settings=shared.CONTEXT)
@shared.model(default=shared.DEFAULT_MODEL)
@click.option(
    "--profile",
    default="reference",
    show_default=True,
    help="Whose defaults to list.",
    shell_complete=shared.one_of(shared.profiles),
)
@shared.JSON
def capabilities(model: str, profile: str, as_json: bool) -> None:
    """List what can be asked of a model: tasks, the fields of a request, their values and defaults, sizes and formats.

    Nothing of a published model is downloaded.

    \b
    cosmos3 capabilities --model nvidia/Cosmos3-Edge
    """
    from .capabilities import execute

    execute(model, profile, as_json)


@cli.command()
@click.option("--backend", required=True, help="The backend to judge.", shell_complete=shared.one_of(shared.backends))
@click.option("--record", type=click.Path(), help="Write the result here, as JSON.")
@click.option(
    "--depth",
    type=click.Choice(("quick", "full")),
    default="quick",
    show_default=True,
    help="How far sizes go. The support page ticks what a full one has passed.",
)
@click.option("-k", "keyword", metavar="EXPR", help="Only tests whose name matches, as in pytest.")
@click.option("--module", type=click.Path(), help="Your test module of the kit: its KNOWN_FAILURES hold here too.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share the rows among them; several need pytest-xdist.",
)
@click.option("--list", "only_list", is_flag=True, help="Name the tests and run none.")
@click.pass_obj
def check(disabled: tuple[str, ...], **options) -> None:
    """Run the conformance kit over a backend on this machine. Exit code 0: it does all it declares."""
    from .check import execute

    execute(disabled, **options)


cli.add_command(recipes)
cli.add_command(matrix)


def main() -> None:
    """Entry point: one line on stderr and exit code 2 for bad input, 1 for a failed run, 130 for a stopped one. What no
    place expects ends so too, with a report in a file."""
    with terminal.guarded() as answer:
        code = _run()
        answer.flush()
        if answer.failed and not code:
            terminal.tell(f"error: writing to standard output: {answer.failed.strerror}. Send it elsewhere")
            code = 1
    if code:
        sys.exit(code)


def _run() -> int:
    """The exit code of the command line; what went wrong is said."""
    try:
        try:
            code = cli(prog_name="cosmos3", standalone_mode=False)
            return code if isinstance(code, int) else 0
        except click.ClickException as error:
            _usage(error)
            return error.exit_code
        except (click.Abort, KeyboardInterrupt) as stop:
            if isinstance(stop.__cause__, EOFError):  # click takes the end of any file for the end of a prompt
                raise stop.__cause__ from None
            terminal.tell("stopped")
            return EXIT_CANCELLED
        except Exception as error:
            from ..contract.errors import Cosmos3Error  # which `--help` does without

            if not isinstance(error, Cosmos3Error):
                raise
            first, *others = _said(error)
            for line in ("stopped",) if error.exit_code == EXIT_CANCELLED else (f"error: {first}", *others):
                terminal.tell(line)
            return error.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # a panic of a library in Rust is no Exception
        from .unexpected import explained

        terminal.tell(f"error: {explained(error)}")
        return 1


def _bounded(text: str) -> str:
    """Text of an error as a terminal may have it, without a word that fills the screen."""
    from ..spelling import bounded

    return terminal.printable(bounded(text))


def _usage(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.show()
    prompted = context and context.command_path.split()[1:] in (["run"], ["plan"])  # `recipes run` takes none
    if "unexpected extra argument" in error.message and prompted:
        error = click.UsageError(f"{error.message}. Put the prompt in quotes", context)
    if isinstance(error, click.NoSuchOption):
        error = shared.answered(error)
    message = _bounded(error.format_message())
    end = "" if message.endswith((".", "?")) else "."
    return terminal.tell(f"error: {message}{end} Type {context.command_path if context else 'cosmos3'} --help")


def _said(error: Cosmos3Error) -> list[str]:
    """The lines of an error's message: one, or one for each fault of a request. Each part of a line is cut by itself,
    so that what to do next is never what is left out."""
    if len(faults := getattr(error, "faults", ())) > 1:
        return [f"{len(faults)} faults in one request:", *(f"  {line}" for fault in faults for line in _said(fault))]
    asked, found, next_step = map(_bounded, (error.asked, error.found, error.next_step))
    return [shared.in_flags(f"{asked}: {found}. {next_step}", cli.commands.values())]
