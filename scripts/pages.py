"""Write docs/fields.md, docs/commands.md, docs/migrating.md and docs/variants.md from the rows of a request's fields,
from the commands themselves, from the names that other programs have and from the table of checkpoints; the tables
of docs/quantization.md from the rows of formats, and that of docs/kit.md from what `make mutate` found.

python scripts/pages.py          # or with --check: write nothing, name the pages that are out of date, exit code 1
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from cosmos3_core.cli import EXIT_CODES, cli
from cosmos3_core.cli.capabilities import takers
from cosmos3_core.cli.options import flag
from cosmos3_core.quant import FORMATS, Format, bytes_per_weight, error_bound
from cosmos3_core.scenarios.action import TRAINED_FOR
from cosmos3_core.scenarios.aliases import CONTROL, HERE, INPUT, LATER, NEVER, UNNEEDED, aliases, owners, table
from cosmos3_core.scenarios.domains import UNNAMED, Domain, domains
from cosmos3_core.scenarios.fields import FIELDS
from cosmos3_core.scenarios.variants import action_examples, checkpoints, conflicts, variants
from cosmos3_core.settle.questions import capabilities

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 100
"""Columns of a command's help: whose terminal this runs in does not matter."""
MODEL, PROFILE = "nvidia/Cosmos3-Nano", "reference"
OTHER_MODELS = {
    "Cosmos3-Edge": "nvidia/Cosmos3-Edge",
    "a distilled model of 4 steps": "nvidia/Cosmos3-Super-Text2Image-4Step",
    "a policy for DROID": "nvidia/Cosmos3-Nano-Policy-DROID",
}
COMPLETION = """A shell completes commands, options, files and choices once it has read what `cosmos3` prints for it. \
In `~/.bashrc`:

```text
eval "$(_COSMOS3_COMPLETE=bash_source cosmos3)"
```

In `~/.zshrc` it is `zsh_source`; fish reads `_COSMOS3_COMPLETE=fish_source cosmos3 | source`."""
EXAMPLES: dict[str, dict[str, Any]] = {
    "F": {
        "model_mode": "image2video",
        "prompt": "the arm lifts the cup",
        "vision_path": "desk.jpg",
        "resolution": "480",
    }
    | {"aspect_ratio": "16,9", "num_frames": 93, "num_steps": 35, "guidance": 6.0, "seed": 7},
    "V": {"prompt": "the arm lifts the cup", "input_reference": "desk.jpg", "size": "832x480", "num_frames": 93}
    | {"num_inference_steps": 35, "guidance_scale": 6.0, "extra_params": {"use_duration_template": False}},
    "S": {"prompt": "the arm lifts the cup", "image_path": "desk.jpg", "width": 832, "height": 480, "num_frames": 93}
    | {"num_inference_steps": 35, "flow_shift": 10.0},
    "D": {"prompt": "a cup", "output_type": "image", "width": 1024, "height": 1024, "num_inference_steps": 50}
    | {"generator": 7, "add_resolution_template": False},
    "N": {"model_mode": "text2video", "prompt": "a robot arm pours coffee", "resolution": "720_16_9"}
    | {"num_output_frames": 189, "num_inference_steps": 35},
    "T": {"prompt": "a robot arm pours coffee", "seconds": 4, "fps": 24, "size": "1280x720", "format": "mp4"}
    | {"enable_audio": False},
    "O": {"model": "sora-2", "prompt": "a robot arm pours coffee", "size": "1280x720", "seconds": "4"},
}
"""By program, a request as it is written there; tests/test_words.py converts each."""
MARKS = "<!-- {}: python scripts/pages.py -->", "<!-- end of {} -->"
STEPS = Path(__file__).with_name("step_precision.json")
"""What scripts/step_precision.py measured."""
MUTANTS = DOCS.parent / "tests" / "goldens" / "mutants.json"
"""What `make mutate` found."""
HIDDEN = 4096
"""Nano's hidden size, for which bits are told."""
MADE = "Made by `python scripts/pages.py`; do not edit."


def fields() -> str:
    """docs/fields.md: every field, then its defaults by task, and where other profiles and models differ."""
    told = capabilities(MODEL, PROFILE)
    parts = [
        "# The fields of a request",
        f"{MADE} The rows stand in [fields.py](../cosmos3_core/scenarios/fields.py), the defaults in "
        "[defaults.toml](../cosmos3_core/scenarios/defaults.toml).",
        "`--set FIELD=VALUE` and a request file set any of them; some have an option of their own. A field that would "
        "change nothing in a request is refused.",
        _table(("field", "option", "value", "for", "what it is"), _rows(told)),
        f"## Defaults of profile {PROFILE}",
        f"{_source(told)} For Nano and Super; `cosmos3 capabilities --model MODEL` prints those of any model.",
        _defaults(told),
        *_single_controls(told),
    ]
    for title, model in OTHER_MODELS.items():
        other = capabilities(model, PROFILE)
        parts += [f"## Where {title} differs", *_own_source(other), _defaults(other, told)]
    for profile in told["profiles"][1:]:
        other = capabilities(MODEL, profile)
        parts += [f"## Where profile {profile} differs", _source(other), _defaults(other, told)]
        parts += _single_controls(other, told)
    return "\n\n".join([*parts, *_domains()]) + "\n"


def commands() -> str:
    """docs/commands.md: what every command says of itself by --help, how it ends, and completion."""
    codes = [(f"`{code}`", meaning) for code, meaning in EXIT_CODES.items()]
    parts = ["# Commands", MADE, "## Exit codes", _table(("code", "meaning"), codes), "## Completion", COMPLETION]
    for name, command, context in _commands("cosmos3", cli, None):
        parts += [f"## {name}", f"```text\n{command.get_help(context).rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def migrating() -> str:
    """docs/migrating.md: what other programs call things, by what it is here."""
    rows = table()
    profiles = [(owners()[letter], f"`{profile}`") for letter, profile in rows["profiles"].items()]
    parts = [
        "# Names that you know from elsewhere",
        f"{MADE} The rows stand in [aliases.toml](../cosmos3_core/scenarios/aliases.toml).",
        "An option of another program is answered with the one that is meant; one spelling stays. `--request FILE` "
        "takes a request of NVIDIA's framework, vllm-omni, sglang, diffusers, NIM, TensorRT-LLM or OpenAI: it is "
        "recognised by its keys and converted with one note, which lists what was mapped and what was ignored, and "
        "why. What would change the result and is not here is an error, before any weight is read. Paths in such a "
        "request begin beside it. A request whose keys are all ours is never taken for another's.",
        "Values have other names, too: `bf16` and `torch.float16`, `1280*720`, `720P` and `720_16_9`, `text2video`, "
        "`0,1`, a seed of -1 for a random one, `vllm_omni`, and `cpu` for the backend `reference`.",
        "## A request of each program",
        "Save it as `request.json` and type `cosmos3 plan --request request.json` to see what it comes to, then "
        "`cosmos3 run --request request.json -o out.mp4`.",
        *(f"{owners()[letter]}:\n\n```text\n{_json(example)}\n```" for letter, example in EXAMPLES.items()),
        "A form of `curl` is the same keys: `-F prompt=... -F size=832x480 -F input_reference=@desk.jpg` becomes "
        '`{"prompt": "...", "size": "832x480", "input_reference": "desk.jpg"}`, without the `@`, which uploads a file. '
        "Numbers may stay text. A picture inside the request, as a `data:` URI or by a URL, is not decoded or fetched: "
        "save it, and give its path. A chat (`messages`) is refused: give its text as `prompt`.",
        "## Whose defaults a request means",
        "What a request leaves open is filled from a profile ([fields.md](fields.md)); `--profile` chooses another.",
        _table(("request of", "profile"), profiles),
        "## Here by another name",
        _table(("here", "elsewhere"), [(_typed(means), _names(names)) for means, names in rows[HERE].items()]),
        "## Not yet",
        "Of these only `guardrails` and the length of a sound may stand in a request; the note names them.",
        _table(("what", "elsewhere"), [(means, _names(names)) for means, names in rows[LATER].items()]),
        "## From Python",
        "Where [Python](python.md) has another answer than the command line.",
        _table(("here", "elsewhere"), _in_python(rows)),
        "## Not here",
        _table(("why", "elsewhere"), [(_flags(means), _names(names)) for means, names in rows[NEVER].items()]),
        "## Without effect here",
        "A request may have them; the note names them.",
        _table(("why", "elsewhere"), [(_flags(means), _names(names)) for means, names in rows[UNNEEDED].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def variants_page() -> str:
    """docs/variants.md: what each checkpoint can do, and where engines disagree."""
    told = {name: capabilities(name, PROFILE) for name in checkpoints()}
    tasks = list(told[MODEL]["tasks"])
    can = [(f"`{name}`", *("yes" if task in row["tasks"] else "no" for task in tasks)) for name, row in told.items()]
    parts = [
        "# Checkpoints and what each can do",
        f"{MADE} The rows stand in [variants.toml](../cosmos3_core/scenarios/variants.toml); requests are checked by "
        "them, and `cosmos3 capabilities --model MODEL` prints them. A model of yours is judged by its config files.",
        "## Checkpoints",
        _table(("checkpoint", "kind", "heads", "made for", "defaults of its own"), [_checkpoint(n) for n in told]),
        "## Tasks",
        "A task that a checkpoint cannot do is an error before a weight is read, which names checkpoints that can.",
        _table(("checkpoint", *tasks), can),
        "## What training covered",
        "With other sizes and lengths a checkpoint runs, and nobody has said how well. A run or a plan outside of this "
        "says so in a note, and so does one of a policy that is asked otherwise than published examples ask it: "
        f"{_asked_for_actions()}.",
        _table(("kind", "tiers", "frames", "frames per second", "source"), [_variant(name) for name in variants()]),
        "## Where engines disagree",
        "Defaults of whole engines are profiles ([fields.md](fields.md)). Of what no profile holds, this was chosen:",
        _table(("about", "what is said", "here"), [(c.about, _says(c.says), c.here) for c in conflicts()]),
        "The profiles differ in these defaults, for Nano:",
        _table(("field", "task", *told[MODEL]["profiles"]), _differing(MODEL)),
        "And for Edge:",
        _table(("field", "task", *told[MODEL]["profiles"]), _differing(OTHER_MODELS["Cosmos3-Edge"])),
    ]
    return "\n\n".join(parts) + "\n"


def _checkpoint(name: str) -> tuple[str, ...]:
    row = checkpoints()[name]
    return f"`{name}`", row.variant, ", ".join(("vision", *row.heads)), row.made_for or "", _preset(row.preset)


def _preset(name: str | None) -> str:
    return f"[{name}](fields.md#where-a-policy-for-droid-differs)" if name else ""


def _variant(name: str) -> tuple[str, ...]:
    row = variants()[name]
    frames = ", ".join(f"{least} to {most} at {tier}" for tier, (least, most) in row.frames.items())
    return name, ", ".join(row.tiers), frames, f"{row.fps[0]} to {row.fps[1]}" if row.fps else "", row.source


def _asked_for_actions() -> str:
    """How published examples ask for actions, in words."""
    examples = action_examples()
    said = [f"`{domain}` {fps:g} actions a second" for domain, fps in examples.fps.items()]
    said += [f"`{name}` {row.chunk} actions at a time" for name, row in checkpoints().items() if row.chunk]
    return f"{', '.join(said)} ({examples.source})"


def _says(says: Mapping[str, str]) -> str:
    return "; ".join(f"{who}: {what}" for who, what in says.items())


def _differing(model: str) -> list[tuple[str, ...]]:
    """The defaults of a model that are not the same in all profiles: a row for each field and the tasks that share
    them."""
    told = {profile: capabilities(model, profile)["fields"] for profile in capabilities(model, PROFILE)["profiles"]}
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, field in told[PROFILE].items():
        for task in field["tasks"]:
            cells = [_cells(fields[name]).get(task, "") for fields in told.values()]
            if len(set(cells)) > 1:
                rows.setdefault((f"`{name}`", *cells), []).append(task)
    return [(name, ", ".join(tasks), *cells) for (name, *cells), tasks in rows.items()]


def _json(example: dict[str, Any]) -> str:
    rows = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in example.items()]
    return "{\n" + ",\n".join(rows) + "\n}"


def _typed(means: str) -> str:
    """How a field or an option is typed."""
    if means == INPUT:
        return "`--image` or `--video`"
    if means == CONTROL:
        return "`--edge`, or `--blur`, `--depth`, `--seg` or `--wsm`"
    if means == "prompt":
        return "the argument `PROMPT`, a text or `@FILE`"
    return f"`--set {means}=`" if means in FIELDS and not FIELDS[means].option else f"`{flag(means)}`"


def _flags(sentence: str) -> str:
    return re.sub("`([a-z_]+)`", lambda match: f"`{flag(match[1])}`", sentence)


def _in_python(rows: dict[str, Any]) -> list[tuple[str, str]]:
    """What to do from Python, and the names that ask for it; those of the rows of [here] and [later] with their
    owners."""
    named, found = rows[HERE] | rows[LATER], dict[str, list[str]]()
    for name, answer in rows["python"].items():
        names = _names(named[name]) if name in named else f"`{name}`"
        found.setdefault(answer.removeprefix("here it is "), []).append(names)
    return [(answer, ", ".join(names)) for answer, names in found.items()]


def _names(names: dict[str, str]) -> str:
    return ", ".join(f"`{name}` ({aliases()[name].whose})" for name in names)


def _commands(
    name: str, command: click.Command, parent: click.Context | None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    last = name.split()[-1]
    context = click.Context(command, parent, last, terminal_width=WIDTH, **command.context_settings)
    yield name, command, context
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            yield from _commands(f"{name} {inner}", command.commands[inner], context)


def _rows(told: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", f"`{flag(name)}`" if FIELDS[name].option else "", row["words"], takers(row, told), row["help"])
        for name, row in told["fields"].items()
    ]


def _source(told: dict[str, Any]) -> str:
    return f"Read in {told['profile']['source']}."


def _own_source(told: dict[str, Any]) -> list[str]:
    """Who says the defaults that a checkpoint has of its own, in words."""
    defaults = [default for field in told["fields"].values() for default in field["defaults"].values()]
    own = dict.fromkeys(d["source"] for d in defaults if d["source"].startswith(f"profile {PROFILE}, "))
    said = [source.partition("(")[2].removesuffix(")") for source in own]
    return [f"Sources: {'; '.join(filter(None, said))}."] if any(said) else []


def _domains() -> list[str]:
    """The embodiments, and the channels of an action by its layout."""
    layouts = {name: channels for row in domains().values() for name, channels in row.spaces.items() if name != UNNAMED}
    rows = [
        (f"`{name}`", _layouts(row), f"{row.id}", ", ".join(row.whose), row.note) for name, row in domains().items()
    ]
    return [
        "## Domains of actions",
        "An action is one row of numbers, in the order of its layout's channels. A table of yours has to have as many "
        "columns; the first layout is the default, and `action_space` names another. Domains of one row share the "
        "weights of the action heads. What a checkpoint does with a domain that it was not trained on is anybody's "
        "guess: the embedded model knows `pusht` alone.",
        _table(("domain", "layouts and their widths", "row of the weights", "known to", "note"), rows),
        "A `plain` layout has channels without names, as nobody publishes what they mean. The others:",
        _table(("layout", "width", "channels"), [(f"`{n}`", f"{len(c)}", ", ".join(c)) for n, c in layouts.items()]),
        "`x`, `y` and `z` are a translation, `rot1` to `rot6` a rotation in six numbers (Zhou et al. 2019). An action "
        "of the layouts `plane` and `joints` says where the robot is to be. Units are the model's, normalised, unless "
        "there are [statistics](scenarios.md#a-robots-units).",
    ]


def _layouts(domain: Domain) -> str:
    return ", ".join(f"`{name}` {len(channels)}" for name, channels in domain.spaces.items()) or "by `action_width`"


def _defaults(told: dict[str, Any], beside: dict[str, Any] | None = None) -> str:
    """A table of defaults, a column for each task; `beside` other ones, only of the fields that differ."""
    tasks, rows = tuple(told["tasks"]), []
    for name, field in told["fields"].items():
        cells = _cells(field)
        if cells and (beside is None or any(_cells(beside["fields"][name])[task] != cells[task] for task in cells)):
            rows.append((f"`{name}`", *(cells.get(task, "") for task in tasks)))
    return _table(("field", *tasks), rows)


def _single_controls(told: dict[str, Any], beside: dict[str, Any] | None = None) -> list[str]:
    """What a request with one control has instead, a row for each kind; `beside` where it differs."""
    rows = {task: row["single_control"] for task, row in told["tasks"].items() if row["single_control"]}
    if beside and rows == {t: row["single_control"] for t, row in beside["tasks"].items() if row["single_control"]}:
        return []
    if beside and not rows:
        return ["It has no defaults of its own for a single control."] if "transfer" in told["tasks"] else []
    parts = []
    for task, by_hint in rows.items():
        names = list(dict.fromkeys(name for values in by_hint.values() for name in values if name != "source"))
        cells = [(f"`{h}`", *(f"`{json.dumps(v[n])}`" if n in v else "" for n in names)) for h, v in by_hint.items()]
        parts += [
            f"A {task} with a single control has instead:",
            _table(("control", *map("`{}`".format, names)), cells),
        ]
    return parts


def _cells(field: dict[str, Any]) -> dict[str, str]:
    """A field's default by task, or where it comes from if that says more: what a checkpoint's own files say, which are
    not here."""
    cells = {}
    for task, default in field["defaults"].items():
        value, source = default["value"], default["source"]
        read = source.startswith("checkpoint") and source != TRAINED_FOR
        cells[task] = source if value is None or read else f"`{json.dumps(value)}`"
    return cells


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def quantization() -> str:
    """docs/quantization.md: what is written there, with the tables of formats and of steps in 16 bits."""
    head = ("name", "bits", "element", "block", "scales", "beside", "activations", "bound", "defined by")
    text = (DOCS / "quantization.md").read_text("utf-8")
    text = _replaced(text, "formats", _table(head, [*map(_format, FORMATS.values())]))
    return _replaced(text, "steps", _steps(json.loads(STEPS.read_text("utf-8"))))


def _replaced(text: str, name: str, table: str) -> str:
    """The text with another table between the marks of this name."""
    begin, end = (mark.format(name) for mark in MARKS)
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def _steps(measured: dict[str, Any]) -> str:
    """Errors by format, native and by the policy, as scripts/step_precision.py found them."""
    policy, steps = measured["policy"], measured["steps"]
    head = ("format", f"first and last steps, of {steps}", f"with `{policy}`", "other steps", f"with `{policy}`")
    found = {(row["format"], row["steps"]): row for row in measured["rows"]}
    rows = []
    for name in dict.fromkeys(row["format"] for row in measured["rows"]):
        pair = [found[name, "none"], found[name, policy]]
        cells = (f"{row[part]:.2%}" for part in ("first and last", "others") for row in pair)
        rows.append((f"`{name}`", *cells))
    return _table(head, rows)


def _format(row: Format) -> tuple[str, ...]:
    bits, bound = f"{8 * bytes_per_weight(row, HIDDEN):.4g}", f"{error_bound(row):.3g}"
    beside = "zero points" * row.zeros + "minima" * row.minima
    shown = f"`{row.name}`", bits, row.element, _block(row), _scales(row), beside
    return *shown, _activations(row), bound, row.source


def _block(row: Format) -> str:
    if not row.outputs:
        return "the weight"
    return (f"{row.outputs} x " if row.outputs > 1 else "") + (f"{row.group}" if row.group else "all")


def _scales(row: Format) -> str:
    scale = f"e8m0 ({row.exponent})" if row.scale == "e8m0" else row.scale
    if row.super_scale:
        return f"{scale} x {row.super_scale} per {row.super_group}"
    return f"{scale} x fp32 of the tensor" if row.tensor_scale else scale


def _activations(row: Format) -> str:
    if not row.activations:
        return "16 bits"
    return f"`{row.inputs.name}`" if row.inputs else "the same, a stored scale" if row.static else "the same"


PAGES = {"fields.md": fields, "commands.md": commands, "migrating.md": migrating, "variants.md": variants_page}


def kit() -> str:
    """docs/kit.md: what is written there, with a table of planted faults by kind."""
    outcomes = json.loads(MUTANTS.read_text("utf-8")).values()
    counts = Counter((one["kind"], one["caught"]) for one in outcomes)
    kinds, caught = sorted({kind for kind, _ in counts}), ("right", "elsewhere", "missed", "not tried")
    rows = [(kind, *(str(counts[kind, how]) for how in caught)) for kind in kinds]
    rows.append(("in all", *(str(sum(counts[kind, how] for kind in kinds)) for how in caught)))
    return _replaced((DOCS / "kit.md").read_text("utf-8"), "mutants", _table(("kind of fault", *caught), rows))


PAGES["quantization.md"] = quantization
PAGES["kit.md"] = kit


@click.command()
@click.option("--check", is_flag=True)
def main(check: bool) -> None:
    """Write every page, or name those that are out of date."""
    texts = {DOCS / name: page() for name, page in PAGES.items()}
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.write_text(texts[path], "utf-8")
        click.echo(path.name)
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
