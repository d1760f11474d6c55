"""The options that commands share: those of a request are made from its fields, those of a plan stand here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import click

from . import terminal
from .completion import (
    backends,
    dtypes,
    files,
    folders,
    format_names,
    known_devices,
    models,
    one_of,
    ops,
    profiles,
    settings,
    sizes,
)

Decorator = Callable[[Callable], Callable]
CONTEXT = {"max_content_width": 110}
"""Of commands whose help has long lines."""
DEFAULT_MODEL = "nvidia/Cosmos3-Nano"
EMBEDDED = "embedded"
"""The model inside the package, which `cosmos3 evaluate` judges by default."""
TRY = f'cosmos3 run "a red ball rolls to the left" --model {EMBEDDED} -o ball.mp4'
"""What needs no checkpoint and no network: what a message that advises this model tells to type."""

# Headings of a command's help, in their order. Those of fields are the groups of their rows.
MODEL, INPUT, SAMPLING = "Model", "Prompt and inputs", "Sampling"
DEVICE, OUTPUT, CONTROL = "Device and kernels", "Output", "Run control"
HEADINGS = (
    MODEL,
    INPUT,
    "Controls",
    "Actions",
    "Size and length",
    SAMPLING,
    "How texts are written",
    DEVICE,
    OUTPUT,
    CONTROL,
)


class Option(click.Option):
    """An option that stands under a heading."""

    def __init__(self, *arguments: Any, heading: str, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.heading = heading


def option(heading: str, *names: str, **keywords: Any) -> Decorator:
    """click.option under a heading."""
    return click.option(*names, cls=Option, heading=heading, **keywords)


def pairs(form: str) -> Callable:
    """A click callback that parses repeated KEY=VALUE into a dict; `form` names the two."""

    def callback(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
        for value in values:
            if "=" not in value:
                raise click.BadParameter(f"{value!r} is not {form}", context, parameter)
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

    return {key: value(text) for key, text in pairs("FIELD=VALUE")(context, parameter, values).items()}


def _formats(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """FORMAT alone is the weights'."""
    parsed = [value.split("=", 1) if "=" in value else ("pack_linear", value) for value in values]
    return _once(parsed, context, parameter)


def flag(name: str) -> str:
    """The option that sets a field of this name."""
    return f"--{name.replace('_', '-')}"


class _Once:
    """A command that refuses an option of one value that is given twice: of two values the last would win without a
    word. A flag says the same however often it is there."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if not context.resilient_parsing:
            command: Any = self
            _, _, given = command.make_parser(context).parse_args(list(args))
            options = [p for p in given if isinstance(p, click.Option) and not (p.multiple or p.is_flag or p.count)]
            if twice := next((option for option in options if options.count(option) > 1), None):
                name = max(twice.opts, key=len)
                raise click.UsageError(f"Option {name!r} is given {options.count(twice)} times. Keep one", context)
        return super().parse_args(context, args)  # type: ignore[misc]


class Command(_Once, click.Command):
    """A command of cosmos3."""


class Group(_Once, click.Group):
    """A group of commands."""

    command_class = Command


COMMANDS = {"generate": "run", "infer": "run", "inference": "run", "sample": "run", "devices": "backends"}
"""What other programs call a command of ours."""


class Commands(Group):
    """The commands; an unknown one is answered with the one that is meant, or with what is not here yet."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.commands or name.startswith("-"):
            return super().resolve_command(context, args)
        from ..scenarios.aliases import LATER, known
        from ..spelling import nearest

        row, meant = known(name), COMMANDS.get(name.lower()) or nearest(name, self.commands)
        answer = f": {row.answer}" if row and row.kind == LATER else f". Did you mean cosmos3 {meant}?" if meant else ""
        raise click.UsageError(f"No such command {name!r}{answer}", context)


class WithFields(Command):
    """A command that takes the fields of a request: by --set, which it declares with `SET`, and by options of single
    fields, which are put before it. These are made when the command is parsed or explained, as the group's --help has
    to answer at once. With `costs` they are only those that decide what a run costs. Its help lists every field, those
    without an option of their own by their --set."""

    def __init__(self, *arguments: Any, costs: bool = False, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.costs = costs

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        params = super().get_params(context)
        at = [parameter.name for parameter in params].index("fields")
        return [*params[:at], *_of_fields(self.costs), *params[at:]]

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for parameter in self.get_params(context):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
                rows[getattr(parameter, "heading", CONTROL)].append(record)
        for heading, row in () if self.costs else _settings_help():
            rows[heading].append(row)
        for heading, lines in rows.items():
            if lines:
                with formatter.section(heading):
                    formatter.write_dl(lines)


@cache
def _of_fields(costs: bool) -> tuple[click.Option, ...]:
    from ..scenarios.field import THE_INPUTS
    from ..scenarios.fields import FIELDS, FILES
    from ..scenarios.kinds import SWITCH

    options = []
    for name, field in FIELDS.items():
        if field.option and (field.costs or not costs):
            default = f"  [default: from {THE_INPUTS}]" if field.default == THE_INPUTS else ""
            is_path, switch = name in FILES, field.kind is SWITCH
            choices = sizes if name == "size" else partial(tuple, field.kind.schema.get("enum", ()))
            made = Option(
                [f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name)],
                heading=field.group,
                type=field.kind.type,
                default=() if field.kind.many else None,
                multiple=field.kind.many,
                metavar="INDEX=PATH" if field.kind.many else "PATH" if is_path else None,
                shell_complete=files if is_path else one_of(choices),
                help=f"{field.help}{default}",
            )
            options.append(made)
    whose = f"Whose defaults: {', '.join(profiles())}.  [default: {profiles()[0]}]"
    return (*options, Option(["--profile"], help=whose, heading=INPUT, shell_complete=one_of(profiles)))


def _settings_help() -> Iterator[tuple[str, tuple[str, str]]]:
    """(heading, row) of each field that has no option of its own."""
    from ..scenarios.field import REQUIRED
    from ..scenarios.fields import FIELDS

    for name, field in FIELDS.items():
        if not field.option and field.default != REQUIRED:
            typed = f"--set {name}={field.kind.name.split()[-1].upper()}"
            yield field.group, (typed, f"{field.help.rstrip('.')} ({field.kind.words}).")


SET = option(
    INPUT,
    "--set",
    "fields",
    multiple=True,
    metavar="FIELD=VALUE",
    callback=_fields,
    shell_complete=one_of(settings),
    help="Any request field; cosmos3 run --help lists them.",
)
BACKEND = option(DEVICE, "--backend", help="Device package to run on.", shell_complete=one_of(backends))
PLAN = (
    BACKEND,
    option(
        DEVICE,
        "--kernel",
        "kernels",
        multiple=True,
        metavar="OP=NAME",
        callback=pairs("OP=NAME"),
        shell_complete=one_of(ops),
        help="Insist on a kernel.",
    ),
    option(
        DEVICE,
        "--format",
        "formats",
        multiple=True,
        metavar="[OP=]FORMAT",
        callback=_formats,
        shell_complete=one_of(format_names),
        help="Quantize: fp8 the layers' weights and what they multiply, attention=fp8 the attention.",
    ),
    option(
        DEVICE,
        "--high-precision-steps",
        metavar="FIRST,LAST",
        help="So many first and last steps, and the text tower, take activations in 16 bits by the same quantized "
        "weights; none: nothing does  [default: the checkpoint's policy]",
    ),
    option(
        DEVICE,
        "--dtype",
        shell_complete=one_of(dtypes),
        help="float32, bfloat16 or float16  [default: the checkpoint's]",
    ),
)
"""What decides a plan, for every command that makes one."""


PLACE = (
    option(
        DEVICE,
        "--placement",
        metavar="PART=WAY,...",
        help="Where understanding and generation lie: resident, staged, streamed (from the host) or disk; and codecs: "
        "resident or staged  [default: what fits and costs least time]",
    ),
    option(DEVICE, "--resident", is_flag=True, help="Keep every part on the device, or refuse the run."),
    option(DEVICE, "--enable-layerwise-offload", is_flag=True, help="Keep both towers streamed from the host."),
    option(
        DEVICE,
        "--memory-limit",
        type=float,
        metavar="GIB",
        help="Plan and run as on a card of so much memory: what would take more fails.",
    ),
)
"""Where weights lie, which changes nothing that is computed."""


def model(said: str = DEFAULT_MODEL, **keywords: Any) -> Decorator:
    """--model; the default that is `said` stands in the help."""
    return option(
        MODEL,
        "--model",
        help=f'nano, super, edge, a hub id, a folder or "{EMBEDDED}".  [default: {said}]',
        shell_complete=one_of(models, folders),
        **keywords,
    )


OVERWRITE = option(OUTPUT, "--overwrite", is_flag=True, help="Replace files that are there; else they are refused.")
QUIET = option(
    OUTPUT,
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=lambda context, parameter, asked: terminal.be_quiet(asked),
    help="Print the output's name, and errors, and nothing else.",
)
REVISION = option(MODEL, "--revision", help="Branch, tag or commit of a hub id.")
RUN = (
    model(),
    REVISION,
    option(
        OUTPUT,
        "-o",
        "--output",
        type=click.Path(),
        help="out.mp4, out.png, or the sound alone, out.wav or out.flac  [default: the next free cosmos3-SEED]",
    ),
    OVERWRITE,
    SET,
    option(
        INPUT,
        "--request",
        type=click.Path(),
        help="JSON of request fields, whose paths begin in this folder, or a manifest to repeat.",
    ),
    *PLAN,
    *PLACE,
    option(
        DEVICE,
        "--require",
        "required",
        multiple=True,
        metavar="OP=NAME",
        callback=pairs("OP=NAME"),
        shell_complete=one_of(ops),
        help="Stop unless the plan has this kernel.",
    ),
    option(SAMPLING, "--latents", type=click.Path(), help="Start from this saved noise."),
    option(OUTPUT, "--save-latents", type=click.Path(), help="Save the initial noise and the final latents here."),
    option(OUTPUT, "--save-sound", type=click.Path(), help="Write the video's sound here too: a .wav or .flac."),
    option(
        OUTPUT, "--sound-only", is_flag=True, help="Write the sound alone; so does an output ending in .wav or .flac."
    ),
    option(OUTPUT, "--plot", type=click.Path(), help="Draw the actions here, a .png (pip install matplotlib)."),
    option(OUTPUT, "--sheet", type=click.Path(), help="Show frames of the video with their times here, a .png."),
    option(OUTPUT, "--manifest", type=click.Path(), help="Where the manifest goes  [default: OUTPUT.json]"),
    option(CONTROL, "--resume", type=click.Path(), help="Go on with a run that was stopped; -o says into which file."),
    option(
        INPUT, "--changed", is_flag=True, help="Take an earlier run's files as they are now, where they have changed."
    ),
    option(CONTROL, "--anyway", is_flag=True, help="Run even what does not fit by the estimate of cosmos3 plan."),
    QUIET,
)
"""Of `cosmos3 run`, and of `cosmos3 plan`, which is its dry run."""
REPORT = (
    option(
        CONTROL, "--memory", type=float, metavar="GIB", help="Plan for this much device memory instead of what is here."
    ),
    option(
        CONTROL,
        "--host-memory",
        type=float,
        metavar="GIB",
        help="Plan for this much free memory of the host  [default: what is free here; of a forecast, any]",
    ),
    option(
        CONTROL,
        "--device",
        metavar="NAME",
        help='Forecast for a device that need not be here, such as "Arc B580", or for all that are known.',
        shell_complete=one_of(known_devices),
    ),
    option(
        CONTROL,
        "--arch",
        metavar="ARCH",
        help="Forecast for an architecture, such as sm_90; of one without a known device, with --backend and --memory.",
    ),
    option(CONTROL, "--json", "as_json", is_flag=True, help="Print the plan as JSON."),
)
"""What a dry run takes besides."""
JSON = option(OUTPUT, "--json", "as_json", is_flag=True, help="Print it as JSON.")


def with_options(options: Iterable[Decorator]) -> Decorator:
    """All of these options, in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(tuple(options)):
            command = option(command)
        return command

    return decorate


def answered(error: click.NoSuchOption) -> click.UsageError:
    """The error of an option that does not exist, with the one that is meant: by other programs' names first, else by
    its letters."""
    from ..scenarios.aliases import known, positive
    from ..scenarios.fields import FIELDS
    from ..scenarios.kinds import SWITCH
    from ..spelling import nearest

    context, name = error.ctx, error.option_name
    here = [name for param in context.command.get_params(context) for name in param.opts] if context else []
    own = name.lstrip("-").replace("-", "_").lower()

    def typed(match: re.Match[str]) -> str:
        meant = match[1]
        if meant == "prompt":
            return "the argument PROMPT, a text or @FILE"
        if meant in FIELDS and not FIELDS[meant].option:
            return f"--set {meant}=VALUE"
        return flag(meant) if flag(meant) in here else f"{flag(meant)} of cosmos3 run"

    row, off = known(name), positive(name)
    if off != own and off in FIELDS and FIELDS[off].kind is SWITCH:
        return click.UsageError(f"No such option {name!r}: here it is --set {off}=false.", context)
    if row or own in FIELDS:
        answer = re.sub(r"`([a-z_]+)`", typed, row.answer if row else f"here it is `{own}`")
        return click.UsageError(f"No such option {name!r}: {answer}.", context)
    close = nearest(own, [option.lstrip("-").replace("-", "_") for option in here if option.startswith("--")])
    hint = f" Did you mean {flag(close)!r}?" if close else ""
    return click.UsageError(f"No such option {name!r}.{hint}", context)


def in_flags(message: str, commands: Iterable[click.Command]) -> str:
    """A message of the core with what these commands call a field in its place: `image` becomes --image, and `prompt`,
    which is an argument, PROMPT."""
    from ..scenarios.fields import FIELDS

    params = [parameter for command in commands for parameter in command.params]
    known = {name: name for parameter in params if isinstance(parameter, click.Option) for name in parameter.opts}
    known |= {flag(name): flag(name) for name, field in FIELDS.items() if field.option}
    known |= {flag(p.name): p.name.upper() for p in params if isinstance(p, click.Argument) and p.name in FIELDS}
    message = message.replace(f"`model` {EMBEDDED}", TRY)
    return re.sub(r"`([a-z_]+)`", lambda match: known.get(flag(match[1]), match[0]), message)
