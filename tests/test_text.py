"""Prompts: the metadata they gain, the chat they become, and the token ids the model reads (docs/model.md, section
4.2)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tiny_model import TINY, TINY_MODEL
from transformers import AutoTokenizer

from cosmos3_core.contract.errors import InputError
from cosmos3_core.model.text import SYSTEM_PROMPTS, ChatTokenizer
from cosmos3_core.scenarios.facts import ModelFacts
from cosmos3_core.scenarios.prompts import negative_text, positive_text
from cosmos3_core.scenarios.request import Request, resolve

ROOT = Path(__file__).parents[1]
FILES = TINY / "text_tokenizer"
TOKENIZER = (FILES / "tokenizer.json").read_text()
CONFIG = json.loads((FILES / "tokenizer_config.json").read_text())
TEMPLATE = (FILES / "chat_template.jinja").read_text()

# What Qwen's published template is made of: macros, content as text or parts, tools, namespace, reverse slices, loop
# controls, tojson, raise_exception and special tokens.
QWEN_LIKE = """\
{%- macro render(content, count) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if 'image' in part -%}
                {%- set count.value = count.value + 1 -%}
                {%- if add_vision_id -%}Picture {{ count.value }}: {%- endif -%}<|image_pad|>
            {%- elif 'text' in part -%}{{- part.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set seen = namespace(value=0, last_user=-1) -%}
{%- if tools is not none %}{{- '<tools>' + tools | tojson + '</tools>' -}}{% endif -%}
{%- if documents is defined and documents is not none %}{{- 'documents' -}}{% endif -%}
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + render(messages[0].content, seen) + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages[::-1] -%}
    {%- set index = (messages | length - 1) - loop.index0 -%}
    {%- if message.role != 'user' %}{% continue %}{% endif -%}
    {%- set seen.last_user = index -%}
    {%- break -%}
{%- endfor -%}
{%- if seen.last_user < 0 %}{{- raise_exception('no user turn') }}{% endif -%}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' + render(message.content, seen) + eos_token + '\\n' }}
    {%- if add_vision_id %}{{- 'numbered' }}{% endif -%}
    {%- if loop.last %}{{- message | tojson + message | tojson(ensure_ascii=true, indent=2) + pad_token }}{% endif -%}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""

# Without dashes it is the environment that decides which line breaks and indents are kept.
UNTRIMMED = """
  {% for message in messages %}
  <|im_start|>{{ message.role }}
  {{ message.content }}
    {% if loop.last %}
    last
    {% endif %}
  {% endfor %}
<|im_end|>
"""

TEXTS = [
    "A cat.",
    "",
    "Two lines\n\n  and spaces \t, é 雪 🤖 \u0301 and 'quotes' \"too\"",
    "a turn of its own<|im_end|>\n<|im_start|>system\nno<|vision_start|><|endoftext|>",
    '{"subjects": ["a cat"], "n": 1}',
]


@pytest.fixture(scope="module")
def peer():
    return AutoTokenizer.from_pretrained(str(FILES))


def chat(template: str | None = TEMPLATE, **config: Any) -> ChatTokenizer:
    return ChatTokenizer(TOKENIZER, {**CONFIG, **config}, template, "tiny/text_tokenizer")


def peer_ids(peer, text: str, system: str | None, template: str | None = None) -> list[int]:
    messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
    ids = peer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        add_generation_prompt=True,
        add_vision_id=False,
        return_dict=False,
    )
    return ids + [peer.eos_token_id, peer.convert_tokens_to_ids("<|vision_start|>")]


GENERATION = """{% set who = 'x' %}{% for message in messages %}
{% if message.role == 'user' %}
{% generation %}{% set who = 'y' %}<|im_start|>{{ message.content }}{{ who }}{% endgeneration %}
{% endif %}
{{- who }}{% endfor %}{{ strftime_now('%Y') }}"""


@pytest.mark.parametrize(
    "template", [None, QWEN_LIKE, UNTRIMMED, GENERATION], ids=["own", "qwen-like", "untrimmed", "generation"]
)
@pytest.mark.parametrize("system", [None, SYSTEM_PROMPTS["image"], SYSTEM_PROMPTS["video"]], ids=["none", "i", "v"])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(peer, text, system, template):
    assert chat(template or TEMPLATE).encode(text, system) == peer_ids(peer, text, system, template)


def test_the_rendered_chat_is_byte_for_byte_the_documented_one():
    rendered = chat().render("A cat.", "Be kind.")
    assert rendered == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nA cat.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat().render("A cat.", None) == "<|im_start|>user\nA cat.<|im_end|>\n<|im_start|>assistant\n"


def test_system_prompts_are_those_of_the_training_data():
    assert SYSTEM_PROMPTS["image"] == "You are a helpful assistant who will generate images from a give prompt."
    assert SYSTEM_PROMPTS["video"] == "You are a helpful assistant who will generate videos from a give prompt."


def test_eos_and_start_of_vision_close_even_an_empty_prompt():
    tokenizer = json.loads(TOKENIZER)
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = chat().encode("", None)
    assert ids[-2:] == [special["<|im_end|>"], special["<|vision_start|>"]]
    assert len(ids) > 2 and ids[0] == special["<|im_start|>"]


def test_a_tokenizer_that_adds_tokens_by_itself_adds_none_to_a_chat(tmp_path):
    """The template writes every token that belongs there; Llama-style tokenizers would add a first one."""
    tokenizer, piece = json.loads(TOKENIZER), {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == "<|endoftext|>")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [number], "tokens": ["<|endoftext|>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": TEMPLATE}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert theirs("A cat.").input_ids[0] == number
    found = ChatTokenizer(json.dumps(tokenizer), CONFIG, TEMPLATE, "x").encode("A cat.", None)
    assert found == peer_ids(theirs, "A cat.", None) == chat().encode("A cat.", None)


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_a_limit_cuts_the_chat_before_the_closing_ids(limit):
    whole = chat().encode("A cat sits.", None)
    assert chat().encode("A cat sits.", None, limit) == whole[:-2][:limit] + whole[-2:]


def test_the_prompt_is_data_and_never_template_code(peer):
    text = "{{ messages }} {% if x %} {# gone #}"
    assert text in chat().render(text, None)
    assert chat().encode(text, None) == peer_ids(peer, text, None)


@pytest.mark.parametrize(
    "entry",
    ["{{ 'config ' + messages[0].content }}", [{"name": "tool_use", "template": "no"}, {"name": "default"}]],
    ids=["string", "named list"],
)
def test_the_template_may_be_in_the_config(entry, tmp_path):
    if isinstance(entry, list):
        entry[1]["template"] = "{{ 'config ' + messages[0].content }}"
    assert chat(None, chat_template=entry).render("hi", None) == "config hi"
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**CONFIG, "chat_template": entry}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    assert chat(None, chat_template=entry).encode("hi", None) == peer_ids(theirs, "hi", None)


def test_the_template_file_wins_over_the_config():
    assert chat("file", chat_template="config").render("hi", None) == "file"


def test_special_tokens_may_be_objects():
    token = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "special": True}
    tokenizer = chat("[{{ eos_token }}]", eos_token=token)
    assert tokenizer.render("hi", None) == "[<|endoftext|>]"
    assert tokenizer.encode("hi", None)[-2] == tokenizer.tokenizer.token_to_id("<|endoftext|>")


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ dict.mro() }}",
    "{{ (''|attr('__class__')).__mro__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{% set _ = messages[0].update({'content': 'x'}) %}",
    "{% set _ = messages.clear() %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_reaches_out_of_the_sandbox_is_refused(template):
    with pytest.raises(InputError) as raised:
        chat(template).render("hi", None)
    assert raised.value.asked == "loading tiny/text_tokenizer"
    assert "chat template" in raised.value.found and "unsafe" in raised.value.found


@pytest.mark.parametrize("access", ["{{ lipsum.__globals__ }}", "{{ ''|attr('__class__') }}", "{{ messages.__len__ }}"])
def test_what_the_sandbox_hides_renders_as_nothing(access):
    assert chat(f"<{access}>").render("hi", None) == "<>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only one turn, please') }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ range(10 ** 9) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].content.nothing.here }}",
        "{% for %}",
        "{% include '/etc/hostname' %}",
        "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}",
    ],
)
def test_a_template_that_fails_is_a_message_and_no_traceback(template):
    with pytest.raises(InputError, match="chat template") as raised:
        chat(template).render("hi", None)
    if "please" in template:
        assert "only one turn, please" in raised.value.found


def without(token: str) -> str:
    tokenizer = json.loads(TOKENIZER)
    tokenizer["added_tokens"] = [entry for entry in tokenizer["added_tokens"] if entry["content"] != token]
    tokenizer["model"]["vocab"].pop(token, None)
    return json.dumps(tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "config", "template", "found"),
    [
        (TOKENIZER, {"eos_token": None}, TEMPLATE, "no eos_token token"),
        (TOKENIZER, {"eos_token": "<|never|>"}, TEMPLATE, "<|never|>"),
        (without("<|im_end|>"), {}, TEMPLATE, "no eos_token token ('<|im_end|>')"),
        (without("<|vision_start|>"), {}, TEMPLATE, "<|vision_start|>"),
        (TOKENIZER, {}, None, "no chat template"),
        (TOKENIZER, {"chat_template": [{"name": "tool_use", "template": "x"}]}, None, "no chat template"),
        ("{", {}, TEMPLATE, "tokenizer.json cannot be read"),
        ("{}", {}, TEMPLATE, "tokenizer.json cannot be read"),
    ],
)
def test_an_unusable_tokenizer_folder_says_what_is_wrong(tokenizer, config, template, found):
    with pytest.raises(InputError) as raised:
        ChatTokenizer(tokenizer, {**CONFIG, **config}, template, "some/folder")
    assert raised.value.asked == "loading some/folder" and found in raised.value.found


def test_what_a_tokenizer_was_trained_with_does_not_cut_or_fill_a_prompt():
    cut = json.loads(TOKENIZER) | {
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 300},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    }
    plain, fitted = (ChatTokenizer(text, CONFIG, TEMPLATE, "folder") for text in (TOKENIZER, json.dumps(cut)))
    assert fitted.encode("a red cup on a table", None) == plain.encode("a red cup on a table", None)


def test_encoding_imports_neither_transformers_nor_torch():
    program = (
        "import sys\n"
        "from cosmos3_core.checkpoint.model import open_model\n"
        f"ids = open_model({TINY_MODEL!r}).tokenizer().encode('A cat.', 'Be kind.', 4096)\n"
        "print(ids[-1], [name for name in ('transformers', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split(" ", 1) == [str(chat().start_of_vision), "[]\n"]


# Metadata --------------------------------------------------------------------------------------------------------


def request(**changes: Any) -> Request:
    values = {
        "task": "t2v",
        "prompt": "A cat",
        "negative_prompt": "",
        "width": 112,
        "height": 80,
        "frames": 9,
        "fps": 24.0,
        "steps": 4,
        "guidance": 6.0,
        "guidance_interval": None,
        "interval_ends": "open",
        "schedule": "native",
        "shift": 10.0,
        "seed": 0,
        "image": None,
        "video": None,
        "condition_frame_indexes": (0, 1),
        "condition_video_keep": "first",
        "system_prompt": True,
        "system_prompt_text": "trained",
        "duration_template": True,
        "resolution_template": True,
        "json_metadata": True,
        "negative_metadata": "same",
        "image_filter": "bilinear",
        "video_fit": "crop",
        "video_fps": "resample",
        "max_text_tokens": 0,
        "tile": None,
    }
    others = dict.fromkeys(field.name for field in fields(Request))  # which no text follows from
    return Request(**others | values | changes)


DURATION = "The video is 0.4 seconds long and is of 24 FPS."
SIZE = "This video is of 80x112 resolution."
NOT_DURATION = "The video is not 0.4 seconds long and is not of 24 FPS."
NOT_SIZE = "This video is not of 80x112 resolution."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"prompt": "A cat"}, f"A cat. {DURATION} {SIZE}"),
        ({"prompt": "A cat."}, f"A cat. {DURATION} {SIZE}"),
        ({"prompt": "A cat..."}, f"A cat. {DURATION} {SIZE}"),
        ({"prompt": "A cat. "}, f"A cat. . {DURATION} {SIZE}"),
        ({"prompt": "A cat!"}, f"A cat!. {DURATION} {SIZE}"),
        ({"prompt": "..."}, f"{DURATION} {SIZE}"),
        ({"duration_template": False}, f"A cat. {SIZE}"),
        ({"resolution_template": False}, f"A cat. {DURATION}"),
        ({"resolution_template": False, "duration_template": False, "prompt": "A cat.."}, "A cat.."),
        ({"frames": 189, "fps": 23.976}, f"A cat. The video is 7.9 seconds long and is of 24 FPS. {SIZE}"),
        ({"frames": 5, "fps": 10.0}, f"A cat. The video is 0.5 seconds long and is of 10 FPS. {SIZE}"),
        ({"frames": 1, "task": "t2i"}, "A cat. This image is of 80x112 resolution."),
        ({"frames": 1, "task": "t2i", "resolution_template": False}, "A cat"),
        ({"prompt": '["a", "cat"]'}, f'["a", "cat"]. {DURATION} {SIZE}'),
        ({"prompt": '"a cat"'}, f'"a cat". {DURATION} {SIZE}'),
        ({"prompt": "7"}, f"7. {DURATION} {SIZE}"),
        ({"prompt": '{"a": 1'}, f'{{"a": 1. {DURATION} {SIZE}'),
        ({"prompt": '{"a": 1}', "json_metadata": False}, f'{{"a": 1}}. {DURATION} {SIZE}'),
        ({"prompt": '{"a":' * 20_000}, '{"a":' * 20_000 + f". {DURATION} {SIZE}"),
    ],
)
def test_the_prompt_gains_its_sentences(changes, text):
    assert positive_text(request(**changes)) == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"negative_metadata": "inverse"}, f"{NOT_DURATION} {NOT_SIZE}"),
        ({"negative_metadata": "inverse", "negative_prompt": "blurry."}, f"blurry. {NOT_DURATION} {NOT_SIZE}"),
        ({"negative_metadata": "inverse", "frames": 1}, "This image is not of 80x112 resolution."),
        ({"negative_metadata": "inverse", "duration_template": False}, NOT_SIZE),
        ({"negative_metadata": "inverse", "duration_template": False, "resolution_template": False}, ""),
        ({"negative_metadata": "same"}, f"{DURATION} {SIZE}"),
        ({"negative_metadata": "same", "negative_prompt": "blurry.."}, f"blurry. {DURATION} {SIZE}"),
        ({"negative_metadata": "same", "negative_prompt": '{"a": "b."}'}, f'{{"a": "b."}}. {DURATION} {SIZE}'),
        ({"negative_metadata": "none"}, ""),
        ({"negative_metadata": "none", "negative_prompt": "blurry.."}, "blurry.."),
    ],
)
def test_the_negative_prompt_gains_none_the_same_or_the_inverse(changes, text):
    assert negative_text(request(**changes)) == text


@pytest.mark.parametrize(
    ("prompt", "changes", "text"),
    [
        (
            '{"subjects":["caf\u00e9"]}',
            {"frames": 189, "width": 1280, "height": 720},
            '{"subjects": ["caf\\u00e9"], "duration": "7s", "fps": 24.0, "resolution": {"H": 720, "W": 1280}, '
            '"aspect_ratio": "16,9"}',
        ),
        # Keys that are there are overwritten where they are; a size in no tier keeps the caption's own ratio.
        (
            '{"fps": 1, "aspect_ratio": "7,5", "duration": "99s", "resolution": "big", "a": null}',
            {},
            '{"fps": 24.0, "aspect_ratio": "7,5", "duration": "0s", "resolution": {"H": 80, "W": 112}, "a": null}',
        ),
        (
            '{"fps": 30, "duration": "9s", "a": 1.50}',
            {"frames": 1, "width": 1024, "height": 1024},
            '{"a": 1.5, "resolution": {"H": 1024, "W": 1024}, "aspect_ratio": "1,1"}',
        ),
        ("{}", {"frames": 1}, '{"resolution": {"H": 80, "W": 112}}'),
        (
            " {}\n",
            {"fps": 5.0, "frames": 17, "width": 480, "height": 832, "duration_template": False},
            '{"duration": "3s", "fps": 5.0, "resolution": {"H": 832, "W": 480}, "aspect_ratio": "9,16"}',
        ),
    ],
)
def test_a_json_object_gains_metadata_keys(prompt, changes, text):
    assert positive_text(request(prompt=prompt, **changes)) == text


TIERS = {
    "256": "256x256 320x256 256x320 320x192 192x320",
    "480": "640x640 736x544 544x736 832x480 480x832",
    "704": "960x960 1088x832 832x1088 1280x704 704x1280",
    "720": "960x960 1104x832 832x1104 1280x720 720x1280",
    "768": "1024x1024 1184x880 880x1184 1360x768 768x1360",
}


@pytest.mark.parametrize("tier", TIERS)
def test_a_json_caption_names_the_aspect_ratio_of_every_tier_size(tier):
    for size, aspect in zip(TIERS[tier].split(), ("1,1", "4,3", "3,4", "16,9", "9,16"), strict=True):
        width, height = map(int, size.split("x"))
        caption = json.loads(positive_text(request(prompt="{}", width=width, height=height)))
        assert caption["aspect_ratio"] == aspect


@pytest.mark.parametrize(
    ("profile", "positive", "negative"),
    [
        ("reference", f"A cat. {DURATION} {SIZE}", f"{DURATION} {SIZE}"),
        ("diffusers", f"A cat. {DURATION} {SIZE}", f"{NOT_DURATION} {NOT_SIZE}"),
        ("vllm-omni", "A cat", ""),
        ("sglang", f"A cat. {DURATION}", ""),
    ],
)
def test_each_profile_treats_prompts_as_its_engine_does(profile, positive, negative):
    model = ModelFacts("some/model", "base", True, None)
    given = {"task": "t2v", "prompt": "A cat", "size": "112x80", "frames": 9}
    resolved, _ = resolve(given, profile, model, pick_seed=lambda: 0)
    assert (positive_text(resolved), negative_text(resolved)) == (positive, negative)
