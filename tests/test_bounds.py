"""Files of a model that ask for more than any real one does: refused with what was found and the limit, before any
weight is read, with exit code 2. A row is what is done to a copy of tiny and a part of the message."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from command import cosmos3
from test_bad_input import CONFIG, SCHEDULER, TEMPLATE, TOKENIZER, TRANSFORMER, Damage, holding, saying
from tiny_model import TINY, TINY_MODEL

from cosmos3_core.bounds import DEEPEST, MOST_DIGITS
from cosmos3_core.checkpoint.model import describe
from cosmos3_core.checkpoint.repository import PUBLISHED
from cosmos3_core.checkpoint.tensors import LARGEST_HEADER, TensorFiles
from cosmos3_core.model.config import LARGEST

INDEX, VAE_CONFIG = f"{TRANSFORMER}.index.json", "vae/config.json"
TOKENIZER_CONFIG = "text_tokenizer/tokenizer_config.json"
STATISTICS = json.loads((TINY / VAE_CONFIG).read_text())


def long(path: str, size: int) -> Damage:
    """A file of that size, which takes no space."""

    def damage(model: Path) -> None:
        with (model / path).open("r+b" if (model / path).exists() else "wb") as stream:
            stream.truncate(size)

    return damage


def header(length: int, size: int) -> Damage:
    def damage(model: Path) -> None:
        with (model / TRANSFORMER).open("r+b") as stream:
            stream.write(length.to_bytes(8, "little"))
            stream.truncate(size)

    return damage


def nested(path: str, key: str, levels: int) -> Damage:
    text = json.dumps(json.loads((TINY / path).read_text()) | {key: "deep"})
    return holding(path, text.replace('"deep"', "[" * (levels - 1) + "]" * (levels - 1)))


def digits(path: str, key: str, count: int) -> Damage:
    return saying_text(path, key, "9" * count)


def saying_text(path: str, key: str, text: str) -> Damage:
    """A value that Python would not write."""
    values = json.loads((TINY / path).read_text()) | {key: "THIS"}
    return holding(path, json.dumps(values).replace('"THIS"', text))


def tokenizer(**values: object) -> Damage:
    return saying(TOKENIZER, **values)


SHARDS = {"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(1001)}}
TEMPLATES = {
    "loops in loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "2 seconds"),
    "a loop of lists": ("{% for a in range(99999) %}{% set x = range(9999)|list %}{% endfor %}", "2 seconds"),
    "a macro that calls itself": ("{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "recursion"),
    "macros that fork": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "2 seconds",
    ),
    "a range": ("{{ range(999999999)|length }}", "Range too big"),
    "a text times a number": ("{{ 'a' * 9999999999 }}", "are the most"),
    "a number times a text": ("{{ 9999999999 * 'a' }}", "are the most"),
    "a list times a number": ("{{ ([0] * 9999999999)|length }}", "are the most"),
    "a power": ("{{ 9 ** 9 ** 9 }}", "bits in a power"),
    "a power of a power": ("{{ (2 ** 60) ** 60 }}", "bits in a power"),
    "products": (
        "{% set n = namespace(x=9**9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "bits in a product",
    ),
    "a text that doubles": (
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "characters of a text",
    ),
    "a sum that doubles": (
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "are the most",
    ),
    "a list that doubles": (
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "are the most",
    ),
    "a format of the time": ("{{ strftime_now('%Y' * 1000000) }}", "2,000,000 characters of a format of the time"),
    "a width in a format of the time": ("{{ strftime_now('%1000000Y') }}", "too long"),
    "a text of a list of texts": ("{{ [('x' * 4000000)] * 100000 }}", "characters and items of a value"),
    "JSON of a list of lists": ("{{ ([[1] * 100000] * 100000)|tojson }}", "characters and items of a value"),
    "lists in lists": (
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}",
        "characters and items of a value",
    ),
    "a separator of JSON": ("{{ ([1] * 100000)|tojson(separators=('x' * 4000000, '')) }}", "characters for tojson"),
    "a sum of lists": ("{{ ([[1] * 100000] * 100)|sum(start=[]) }}", "sum adds numbers"),
    "a width": ("{{ 'a'.ljust(9999999999) }}", "as a number for ljust"),
    "a width by a filter": ("{{ 'a'|center(9999999999) }}", "as a number for center"),
    "an indent": ("{{ 'a\nb'|indent(9999999999) }}", "as a number for indent"),
    "a printf format": ("{{ '%9999999999d' % 1 }}", "too long"),
    "a printf format by a filter": ("{{ '%9999999999d'|format(1) }}", "too long"),
    "a printf format with a star": ("{{ '%*d' % (9999999999, 1) }}", "too long"),
    "a format": ("{{ '{:9999999999}'.format(1) }}", "too long"),
    "replacements": ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "characters of a replacement"),
    "replacements by a filter": ("{{ ('a' * 99999)|replace('a', 'b' * 99999) }}", "characters of a replacement"),
    "a format of a format": ("{{ '{:{}}'.format(1, 9999999999) }}", "too long"),
    "a conversation": (
        "{% set t = 'a' * 1000000 %}{% for i in range(9999) %}{{ t }}{% endfor %}",
        "characters of a conversation",
    ),
}
BEYOND: dict[str, tuple[Damage, str]] = {
    **{
        f"{key} past its limit": (
            saying(CONFIG, **{key: most * 2}),
            f"{key} is {most * 2!r}, and {most:g} is the most that is read",
        )
        for key, most in LARGEST.items()
    },
    "a billion layers": (saying(CONFIG, num_hidden_layers=10**9), "num_hidden_layers is 1000000000, and 1024 is the"),
    "a layer count of 400 digits": (digits(CONFIG, "num_hidden_layers", 400), "it holds a number of 400 digits"),
    "a rate of 400 digits": (digits(CONFIG, "base_fps", 400), "it holds a number of 400 digits, and at most 64"),
    "a rate of 64 digits": (digits(CONFIG, "base_fps", MOST_DIGITS), "and 1000 is the most that is read"),
    "a decoration of 5000 digits": (digits(CONFIG, "note", 5000), "it holds a number of 5,000 digits"),
    "an infinite float": (saying_text(CONFIG, "rope_theta", "1e999"), "1e999 is too large a number"),
    "train steps": (saying(SCHEDULER, num_train_timesteps=10**12), "num_train_timesteps is 1000000000000, and"),
    "train steps of 400 digits": (digits(SCHEDULER, "num_train_timesteps", 400), "it holds a number of 400 digits"),
    "a shift": (saying(SCHEDULER, flow_shift=1e30), "flow_shift is 1e+30, not a positive number up to 1000"),
    "distilled sigmas": (
        holding("modular_model_index.json", json.dumps({"distilled_sigmas": [0.5] * 5000, "is_distilled": True})),
        "it has 5,000 distilled sigmas, and 1,000 are the most",
    ),
    "a distilled sigma of 60 digits": (
        holding("modular_model_index.json", '{"is_distilled": true, "distilled_sigmas": [' + "9" * 60 + "]}"),
        "noise levels fall from at most 1",
    ),
    "a distilled sigma that is no number": (
        holding("modular_model_index.json", '{"is_distilled": true, "distilled_sigmas": [NaN]}'),
        "NaN is no number of JSON",
    ),
    "VAE blocks": (saying(VAE_CONFIG, num_res_blocks=10**7), "num_res_blocks is 10000000, and 64 is the most"),
    "VAE channels": (saying(VAE_CONFIG, base_dim=10**9), "base_dim is 1000000000, and 4096 is the most"),
    "VAE decoder channels": (saying(VAE_CONFIG, decoder_base_dim=5000), "decoder_base_dim is 5000, and 4096 is"),
    "VAE latents": (saying(VAE_CONFIG, z_dim=10**9), "z_dim is 1000000000, and 4096 is the most"),
    "VAE statistics": (
        saying(VAE_CONFIG, latents_mean=[1e30, *STATISTICS["latents_mean"][1:]]),
        "latents_mean holds a number beyond 1e+06",
    ),
    "VAE statistics of 400 digits": (
        saying_text(VAE_CONFIG, "latents_mean", f"[{'9' * 400}]"),
        "it holds a number of 400 digits",
    ),
    "VAE blocks of 400 digits": (digits(VAE_CONFIG, "num_res_blocks", 400), "it holds a number of 400 digits"),
    **{
        f"{path} of 3 GB": (long(path, 3 << 30), f"it has 3,221,225,472 bytes, and {most:,} are the most")
        for path, most in {
            "model_index.json": 2 << 20,
            CONFIG: 2 << 20,
            SCHEDULER: 2 << 20,
            VAE_CONFIG: 2 << 20,
            TOKENIZER: 64 << 20,
            TOKENIZER_CONFIG: 2 << 20,
            TEMPLATE: 1 << 18,
            "assets/negative_prompt.json": 2 << 20,
            "modular_model_index.json": 2 << 20,
            INDEX: 16 << 20,
        }.items()
    },
    "a template of 300,000 characters in a config": (
        lambda model: ((model / TEMPLATE).unlink(), saying(TOKENIZER_CONFIG, chat_template="a" * 300_000)(model)),
        "the chat template has 300,000 characters, and 262,144 are the most",
    ),
    "a header of 20 MiB": (
        header(20 << 20, 30 << 20),
        f"its header has {20 << 20:,} bytes, and {LARGEST_HEADER:,} are the most",
    ),
    "a header of 8 EiB": (header((1 << 63) - 1, 1000), "the file is cut short or damaged"),
    "1001 shards": (holding(INDEX, json.dumps(SHARDS)), "it names 1,001 files, and 1,000 are the most"),
    **{
        f"{path} nested {levels} deep": (nested(path, "note", levels), "nested deeper than the 64 levels")
        for path in ("model_index.json", CONFIG, SCHEDULER, VAE_CONFIG, TOKENIZER_CONFIG)
        for levels in (DEEPEST + 2, 500, 100_000)
    },
    "a prompt of many tokens": (
        holding(TEMPLATE, "{{ 'x' * 200000 }}{{ messages[0].content }}"),
        "tokens of it, and 131,072 are the most. Shorten it",
    ),
    **{f"a template with {name}": (holding(TEMPLATE, text), then) for name, (text, then) in TEMPLATES.items()},
}


WEIGHTS = [BEYOND[name][0] for name in BEYOND if "header" in name or "shards" in name or INDEX in name]
"""What only a run opens."""


@pytest.mark.parametrize("damage, then", BEYOND.values(), ids=BEYOND)
def test_what_no_real_model_asks_for(damage: Damage, then: str, tmp_path, capsys, monkeypatch):
    model, reads = tmp_path / "model", []
    copied(model)
    damage(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TensorFiles, "read", lambda *_: reads.append(1))
    command = ("run", *PLAN[1:], "-o", "a.png") if damage in WEIGHTS else PLAN
    code, out, err = cosmos3(capsys, monkeypatch, *command, "--model", model)
    assert (code, out) == (2, ""), err
    *progress, message = err.splitlines()
    assert message.startswith("error: ") and then in message and not reads
    assert progress == (["check weights"] if damage in WEIGHTS else [])


PLAN = ("plan", "a cup", "--size", "64x64", "--steps", "2", "--frames", "1", "--backend", "reference")


def copied(model: Path) -> None:
    """Tiny, its weights as links: no test here changes one but by a new file."""
    shutil.copytree(TINY, model, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_is_far_from_the_limits(name: str):
    config = describe(name).config
    for key, most in LARGEST.items():
        value = getattr(config, key)
        far = 100 if key in ("timestep_scale", "rope_theta", "rms_norm_eps") else 8
        assert value * far <= most, key


def test_a_real_template_and_a_json_as_deep_as_allowed_are_read(tmp_path, capsys, monkeypatch):
    copied(tmp_path / "model")
    nested(CONFIG, "note", DEEPEST)(tmp_path / "model")
    digits(TOKENIZER_CONFIG, "model_max_length", 31)(tmp_path / "model")  # as transformers writes "no limit"
    holding(TEMPLATE, REAL)(tmp_path / "model")
    code, _, err = cosmos3(capsys, monkeypatch, *PLAN, "--model", tmp_path / "model", "-o", tmp_path / "a.png")
    assert code == 0, err


REAL = """{%- set ns = namespace(found=false, text='') -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- set ns.text = ns.text ~ (message.content | trim | replace('a', 'b')) -%}
{%- for part in message.content.split(' ') | reverse -%}{{ part.strip() | upper | indent(2) }}{%- endfor -%}
{{ '%s of %d' % (message.role, loop.index) }}{{ '{}'.format(loop.index0 * 3 + 2 ** 3) }}{{ '=' * 20 }}
{{ ([1, 2] + [3]) | list | join(', ') }}{{ message | tojson(indent=2) }}
{{- '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{%- endif -%}"""


def test_a_template_leaves_the_debugger_of_this_thread_alone():
    import sys

    from cosmos3_core.checkpoint.model import open_model

    def mine(frame, event, argument):
        return None

    tokenizer, before = open_model(TINY_MODEL).tokenizer(), sys.gettrace()
    sys.settrace(mine)
    try:
        tokenizer.render("hi", None)
        assert sys.gettrace() is mine
    finally:
        sys.settrace(before)


def test_standard_error_is_open_after_a_tokenizer_gave_up(tmp_path, capfd, monkeypatch):
    os.write(2, b"before\n")
    copied(tmp_path / "model")
    saying(TOKENIZER, pre_tokenizer={"type": "FixedLength", "length": 0})(tmp_path / "model")
    code, _, err = cosmos3(capfd, monkeypatch, *PLAN, "--model", tmp_path / "model")
    os.write(2, b"after\n")
    assert code == 2 and len(err.splitlines()) == 2 and "the tokenizer fails (its library gave up: chunk size" in err
    assert capfd.readouterr().err == "after\n"
