"""The options that commands share: those of a request are made from its fields, those of a plan stand here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import click

Decorator = Callable[[Callable], Callable]
CONTEXT = {"max_content_width": 110}
"""Of commands whose help has long lines."""


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


class WithFields(click.Command):
    """A command that takes the fields of a request: by --set, which it declares with `SET`, and by options of single
    fields, which are put before it. These are made when the command is parsed or explained, as the group's --help has
    to answer at once. With `costs` they are only those that decide what a run costs."""

    def __init__(self, *arguments: Any, costs: bool = False, **keywords: Any):
        super().__init__(*arguments, **keywords)
        self.costs = costs

    def get_params(self, context: click.Context) -> list[click.Parameter]:
        params = super().get_params(context)
        at = [parameter.name for parameter in params].index("fields")
        return [*params[:at], *_of_fields(self.costs), *params[at:]]


@cache
def _of_fields(costs: bool) -> tuple[click.Option, ...]:
    from ..scenarios.fields import FIELDS, THE_INPUTS
    from ..scenarios.request import PROFILES

    options = []
    for name, field in FIELDS.items():
        if field.option and (field.costs or not costs):
            default = f"  [default: from {THE_INPUTS}]" if field.default == THE_INPUTS else ""
            options.append(click.Option([flag(name)], type=field.kind.type, help=f"{field.help}{default}"))
    whose = f"Whose defaults: {', '.join(PROFILES)}.  [default: {PROFILES[0]}]"
    return (*options, click.Option(["--profile"], help=whose))


SET = click.option("--set", "fields", multiple=True, metavar="FIELD=VALUE", callback=_fields, help="Any request field.")
PLAN = (
    click.option("--backend", help="Device package to run on."),
    click.option(
        "--kernel", "kernels", multiple=True, metavar="OP=NAME", callback=pairs("OP=NAME"), help="Insist on a kernel."
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
MODEL = click.option(
    "--model", default="nvidia/Cosmos3-Nano", show_default=True, help='nano, super, edge, a hub id, a folder or "tiny".'
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


def with_options(options: Iterable[Decorator]) -> Decorator:
    """All of these options, in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(tuple(options)):
            command = option(command)
        return command

    return decorate


def in_flags(message: str, commands: Iterable[click.Command]) -> str:
    """A message of the core with the options of these commands in the place of fields: `image` becomes --image."""
    from ..scenarios.fields import FIELDS

    known = {name for command in commands for parameter in command.params for name in parameter.opts}
    known |= {flag(name) for name, field in FIELDS.items() if field.option}

    def option(match: re.Match[str]) -> str:
        return flag(match[1]) if flag(match[1]) in known else match[0]

    return re.sub(r"`([a-z_]+)`", option, message)
