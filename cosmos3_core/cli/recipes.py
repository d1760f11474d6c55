"""`cosmos3 recipes`: list, show, run and validate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.shell_completion import CompletionItem

from ..contract import Cosmos3Error, InputError, RunError
from .completion import files, one_of
from .options import Group
from .parallel_options import TYPED
from .terminal import printable, tell

if TYPE_CHECKING:
    from ..evidence.packages import Package
    from ..evidence.recipe import Broken, Recipe
    from ..evidence.renewal import Due

LONGEST = 100
"""Characters of a line of the list; `show` has it whole."""


def _packages(context: click.Context) -> list[Package]:
    from ..evidence.packages import installed_packages

    return installed_packages(context.obj or ())


def _folders(context: click.Context) -> list[Path]:
    """The one that `--folder` names, else those of the installed packages."""
    folder = context.find_root().meta.get(__name__)
    return [folder] if folder else [package.recipes for package in _packages(context) if package.recipes]


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the name of a recipe."""

    def names() -> Iterator[str]:
        folder = context.parent and context.parent.params.get("folder")
        for one in [Path(folder)] if folder else _folders(context):
            yield from sorted(path.stem for path in one.glob("*.toml"))

    return one_of(names, files)(context, parameter, incomplete)


NAME = click.argument("name", shell_complete=_names)


@click.group(cls=Group)
@click.option("--folder", type=click.Path(path_type=Path), help="Where they are.  [default: in the installed packages]")
@click.pass_context
def recipes(context: click.Context, folder: Path | None) -> None:
    """Runs that are known to work, as files: one model on one device, or on several that share it.

    NAME is a recipe's name, or the path of its file.
    """
    context.meta[__name__] = folder


def _find(name: str) -> Recipe:
    from ..evidence.recipe import find

    return find(name, _folders(click.get_current_context()))


def _found(context: click.Context) -> Iterator[tuple[str | None, Recipe | Broken]]:
    """Every recipe with the package that it is of."""
    from ..evidence.packages import recipes_of
    from ..evidence.recipe import load_all

    if folder := context.meta[__name__]:
        return ((None, one) for one in load_all(folder))
    return ((package.name, one) for package, one in recipes_of(_packages(context)))


def _arguments(recipe: Recipe) -> list[str]:
    """The options of the `cosmos3 run` that a recipe stands for, without the output."""
    arguments = ["--model", recipe.run["model"], "--backend", recipe.run["backend"]]
    for key in ("profile", "dtype", "parallel"):
        arguments += [f"--{key}", recipe.run[key]] if key in recipe.run else []
    for op, kernel in recipe.kernels.items():
        arguments += ["--kernel", f"{op}={kernel}"]
    for op, name in recipe.formats.items():
        arguments += ["--format", f"{op}={name}"]
    if recipe.high_precision_steps is not None:
        arguments += ["--high-precision-steps", recipe.high_precision_steps]
    for key, value in recipe.given().items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    return arguments


def _command_line(recipe: Recipe, output: str | None = None) -> list[str]:
    """The arguments of the `cosmos3 run` that a recipe stands for."""
    from ..scenarios.families import TASKS

    return [*_arguments(recipe), "--output", output or f"{recipe.name}{TASKS[recipe.run['task']].suffix}"]


@recipes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """Every recipe of the installed packages with its state, and why."""
    from ..evidence.closure import Sources
    from ..evidence.fingerprint import ROOT
    from ..evidence.recipe import Recipe
    from ..evidence.state import BROKEN, state_here

    listed: list[dict[str, Any]] = []
    sources = Sources(ROOT)
    for package, found in _found(context):
        if isinstance(found, Recipe):
            state = state_here(found, sources)
            row = {"title": found.tables["title"], "state": state.name, "why": state.why}
            row["evaluation"] = state.record and state.record["verdict"].get("evaluation")
        else:
            row = {"title": None, "state": BROKEN, "why": found.fault, "evaluation": None}
        listed.append({"name": found.name, "package": package} | row)
    if as_json:
        click.echo(json.dumps(listed, indent=2))
        return
    widths = [max(len(row[key]) for row in listed) for key in ("name", "state")] if listed else []
    for row in listed:
        line = f"{row['name']:<{widths[0]}}  {row['state']:<{widths[1]}}  {row['why']}"
        click.echo(printable(line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."))


@recipes.command()
@NAME
def show(name: str) -> None:
    """A recipe: its state, the command it stands for, what it asserts, what is known and what was measured."""
    import shlex

    from ..evidence.closure import Sources
    from ..evidence.fingerprint import ROOT
    from ..evidence.state import state_here

    recipe = _find(name)
    state = state_here(recipe, Sources(ROOT))
    click.echo(printable(f"{recipe.name}: {recipe.tables['title']}"))
    click.echo(f"{printable(f'{state.name}: {state.why}')}\n")
    click.echo(f"cosmos3 run {printable(shlex.join(_command_line(recipe)))}\n")
    for table in ("device", "plan", "expect", "known"):
        for key, value in recipe.tables.get(table, {}).items():
            click.echo(printable(f"{table}.{key}: {value}"))
    if state.record:
        click.echo(f"\n{_verdict(state.record)}")


@recipes.command()
@NAME
@click.option("-o", "--output", type=click.Path(), help="out.mp4 or out.png  [default: NAME.mp4 or NAME.png]")
@click.option("--overwrite", is_flag=True, help="Replace files that are there; else they are refused.")
def run(name: str, output: str | None, overwrite: bool) -> None:
    """Run a recipe as `cosmos3 run` does; its plan is asserted before, its expectations after."""
    from ..evidence.settle import check_expect, settle
    from ..parallel.launchers import started
    from ..runs.memory import counted

    recipe = _find(name)
    settle(recipe, started=one.count if (one := started()) else None)
    arguments = _command_line(recipe, output)
    _invoke("run", [*arguments, "--overwrite"] if overwrite else arguments)
    if one and one.rank:
        return
    manifest = json.loads(Path(f"{arguments[-1]}.json").read_text("utf-8"))
    stages = {name: seconds for name, seconds in manifest["seconds"].items() if name != "total"}
    memory = counted(manifest["peak_host_memory_bytes"], manifest["peak_device_memory_bytes"])
    check_expect(recipe, sum(stages.values()), memory)


@recipes.command()
@NAME
def warmup(name: str) -> None:
    """Compile and cache a recipe's kernels, as `cosmos3 warmup` does; its plan is asserted before."""
    from ..evidence.settle import settle

    recipe = _find(name)
    if recipe.parallel is not None:
        found = f"each of its {recipe.device['count']} devices compiles what its own part needs, and warmup has one"
        raise InputError(f"recipe {recipe.name}", found, f"Type cosmos3 recipes run {recipe.name}: its first run does")
    settle(recipe, random_weights=True)
    _invoke("warmup", _arguments(recipe))


def _invoke(name: str, arguments: list[str]) -> None:
    parent = click.get_current_context().find_root()
    commands = cast(click.Group, parent.command).commands
    parent.meta[TYPED] = [name, *arguments]
    with commands[name].make_context(name, list(arguments), parent=parent) as context:
        context.command.invoke(context)


@recipes.command()
@click.argument("names", nargs=-1, shell_complete=_names)
@click.option("--all", "every", is_flag=True, help="Every recipe that can run on this machine, the cheapest first.")
@click.option("--resume", is_flag=True, help="With --all: leave out those whose record is of today's code.")
@click.option("--seconds", type=float, help="With --all: begin nothing that is expected to end later.")
@click.option("--random-weights", is_flag=True, help="For a model whose checkpoint is not here; the record says so.")
@click.pass_context
def validate(
    context: click.Context,
    names: tuple[str, ...],
    every: bool,
    resume: bool,
    seconds: float | None,
    random_weights: bool,
) -> None:
    """Measure recipes on this device beside eager torch, and write their records.

    With --all it first prints what it is going to measure and how long that takes, by the last records or the plans. A
    recipe that fails is named at the end, and the others go on.

    Takes four processes: two runs of the recipe, two of its baseline in bf16, and of each velocities and a short
    trajectory, which are held against those of the baseline in float32. Recipes for one request share the baseline's.
    A recipe with formats takes one more, for the baseline in these formats, and the two runs of one for several devices
    a process for each; all else is measured on one, which several are held against.

    Before them the embedded model is evaluated with the recipe's backend, kernels, formats and dtype, as by
    `cosmos3 evaluate`, once for each plan; on a CPU this takes one to five minutes. A recipe whose plan misses a bound
    of the evaluation is not validated. Where a kernel does not serve the embedded model, the record has the reason.
    """
    asked = "recipes validate"
    if every == bool(names):
        raise InputError(asked, "it takes names of recipes or --all", "See cosmos3 recipes list")
    if not every and (resume or seconds is not None):
        raise InputError(asked, "--resume and --seconds are for --all", "Drop them, or the names")
    if every:
        _renew(_all(context, resume, random_weights), seconds, random_weights)
    else:
        _measure([_find(name) for name in dict.fromkeys(names)], random_weights, {})


def _measure(found: list[Recipe], random_weights: bool, evaluations: dict[str, dict[str, Any]]) -> None:
    from ..evidence.record import path_of
    from ..evidence.validate import validate as measure

    for recipe, record in measure(found, random_weights=random_weights, say=tell, evaluations=evaluations):
        click.echo(_verdict(record))
        click.echo(f"{record['state']}: {path_of(recipe)}")


def _all(context: click.Context, resume: bool, random_weights: bool) -> list[list[Due]]:
    """What can run here, in groups of one baseline; without those of today's code if it is a `resume`."""
    from ..evidence.closure import Sources
    from ..evidence.fingerprint import ROOT
    from ..evidence.recipe import Recipe
    from ..evidence.renewal import due
    from ..evidence.state import state_here

    sources = Sources(ROOT)
    every = [found for _, found in _found(context)]
    for broken in (found for found in every if not isinstance(found, Recipe)):
        tell(f"not {broken.name}: {broken.fault}")
    read = [found for found in every if isinstance(found, Recipe)]
    groups, refused = due([(one, state_here(one, sources)) for one in read], random_weights=random_weights)
    for why in dict.fromkeys(refused.values()):
        names = [name for name, said in refused.items() if said == why]
        tell(f"not {len(names)} recipe{'s' * (len(names) > 1)}, such as {names[0]}: {why}")
    if resume:
        groups = [left for group in groups if (left := [one for one in group if not one.current])]
    return groups


def _renew(groups: list[list[Due]], seconds: float | None, random_weights: bool) -> None:
    """Measure groups while there is time. RunError, at the end, if one failed."""
    from ..evidence.renewal import cost

    begun, failed, total = time.monotonic(), dict[str, Cosmos3Error](), 0.0
    evaluations: dict[str, dict[str, Any]] = {}
    for one in (one for group in groups for one in group):
        takes = "an unknown time" if one.seconds is None else f"about {one.seconds:.0f} s"
        total += one.seconds or 0.0
        click.echo(printable(f"{one.recipe.name}: {one.state.name}, {takes}"))
    click.echo(f"about {total:.0f} s in all, and an evaluation of the embedded model for each plan")
    for group in groups:
        if seconds is not None and cost(group) > seconds - (time.monotonic() - begun):
            tell(f"no time is left for {', '.join(one.recipe.name for one in group)}")
            continue
        try:
            _measure([one.recipe for one in group], random_weights, evaluations)
        except Cosmos3Error as error:
            failed |= {one.recipe.name: error for one in group}
            tell(f"error: {error}")
    if failed:
        found = f"{', '.join(failed)}: {next(iter(failed.values()))}".rstrip(".")
        raise RunError(f"{len(failed)} recipes of {sum(map(len, groups))}", found, "Validate each by name")


def _verdict(record: dict[str, Any]) -> str:
    from ..evidence.verdict import compared, evaluated

    verdict, raw, found = record["verdict"], record["measurements"]["candidate"]["raw"], record["comparisons"]
    lines = [f"cold {raw['cold']['seconds']:.1f} s, warm {raw['warm']['seconds']:.1f} s"]
    for check in verdict["checks"]:
        held = "within" if check["held"] else "OUTSIDE"
        formats = f", in the formats {check['formats']:.3g}" if "formats" in check else ""
        noise = ", ".join(f"{name} {moved[check['quantity']]:.3g}" for name, moved in found["noise"].items())
        lines.append(
            f"{check['quantity']}: {check['value']:.3g} from float32, {held} {check['bound']:.3g} "
            f"(eager bf16 {check['eager']:.3g}{formats}; from itself: {noise})"
        )
    if "evaluation" in record:
        seconds = f" in {record['evaluation']['seconds']:.0f} s" if "seconds" in record["evaluation"] else ""
        lines.append(f"evaluation of the embedded model with this plan{seconds}: {evaluated(verdict)}")
    for name, output in found["output"].items():
        lines.append(f"output, {name} against baseline: {compared(output)}")
    return "\n".join(map(printable, lines + ([verdict["note"]] if "note" in verdict else [])))
