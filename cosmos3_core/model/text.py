"""A prompt's way to token ids: the checkpoint's tokenizer and chat template, without importing transformers.

docs/model.md, section 4.2. The template comes with the checkpoint, so it is untrusted code and runs in jinja2's
sandbox.
"""

from __future__ import annotations

from typing import Any

from ..contract import InputError
from .contained import contained

SYSTEM_PROMPTS = {
    # "give" is in the training data; correcting it would change the tokens.
    "image": "You are a helpful assistant who will generate images from a give prompt.",
    "video": "You are a helpful assistant who will generate videos from a give prompt.",
    "edit": "You are a helpful assistant who will edit images based on the user's instructions.",
    "transfer": "You are a helpful assistant that generates images or videos following the user's instructions and "
    "control signals (edge maps, blur, depth, or segmentation).",
}
LONGEST_TEMPLATE = 1 << 18
"""Characters; published templates have up to 8,000."""
MOST_TOKENS = 1 << 17
"""Of one text. The longest published one, a negative prompt, has 3,500."""
CORRECTED = "corrected"
START_OF_VISION = "<|vision_start|>"


def system_prompt_of(kind: str, text: str) -> str:
    """The system prompt of an "image", a "video" or a "transfer" as it is in the training data ("trained"), or
    "corrected", as sglang 0.5.23 has it."""
    trained = SYSTEM_PROMPTS[kind]
    return trained.replace("a give prompt", "a given prompt") if text == CORRECTED else trained


class ChatTokenizer:
    """Renders `[system?, user]` with the chat template and encodes it.

    `tokenizer_json` is the text of `tokenizer.json`, `config` the parsed `tokenizer_config.json`, `template` the text
    of `chat_template.jinja` (or None: then the config's). `source` names the folder in messages.
    """

    def __init__(self, tokenizer_json: str, config: dict[str, Any], template: str | None, source: str):
        from tokenizers import Tokenizer

        self.source = source
        try:
            with contained():
                self.tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises plain Exception
            raise self._unusable(f"tokenizer.json cannot be read ({error})") from None
        # What a file says of either was for whoever trained with it; transformers sets both anew at every call.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        try:
            self.special = {key: _content(value) for key, value in config.items() if key.endswith("_token") and value}
            named = _default_template(config.get("chat_template"))
        except (KeyError, TypeError, AttributeError) as error:
            found = f"tokenizer_config.json cannot be understood ({type(error).__name__}: {error})"
            raise self._unusable(found) from None
        self.template = self._compile(template or named)
        self.end_of_text = self._token_id(self.special.get("eos_token"), "eos_token")
        self.start_of_vision = self._token_id(START_OF_VISION, "start of vision")

    def _unusable(self, found: str) -> InputError:
        return InputError(f"loading {self.source}", found, "Get the folder again from the model's repository")

    def _token_id(self, token: str | None, role: str) -> int:
        found = self.tokenizer.token_to_id(token) if token else None
        if found is None:
            raise self._unusable(f"the tokenizer has no {role} token ({token!r})")
        return found

    def _compile(self, template: str | None):
        from .untrusted import compiled  # jinja2, which takes 70 ms to import

        if template is None:
            raise self._unusable("there is no chat template, neither chat_template.jinja nor in tokenizer_config.json")

        if len(template) > LONGEST_TEMPLATE:
            found = f"the chat template has {len(template):,} characters, and {LONGEST_TEMPLATE:,} are the most"
            raise self._unusable(found)

        try:
            return compiled(template)
        except Exception as error:  # the template is code, so anything can go wrong
            raise self._unusable(f"the chat template does not compile ({error})") from None

    def render(self, text: str, system: str | None) -> str:
        """The conversation as the model reads it, up to the assistant's turn."""
        messages = ([{"role": "system", "content": system}] if system else []) + [{"role": "user", "content": text}]
        try:
            return self.template.environment.rendered(
                self.template,
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                add_vision_id=False,
                **self.special,
            )
        except Exception as error:  # the template is code, so anything can go wrong
            raise self._unusable(f"the chat template fails ({error})") from None

    def encode(self, text: str, system: str | None, limit: int | None = None) -> list[int]:
        """Token ids: the rendered conversation (cut to `limit` ids if given), end of text, start of vision."""
        rendered = self.render(text, system)
        try:
            with contained():
                ids = self.tokenizer.encode(rendered, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises plain Exception
            raise self._unusable(f"the tokenizer fails ({error})") from None
        if len(ids) > MOST_TOKENS:
            found = f"the tokenizer makes {len(ids):,} tokens of it, and {MOST_TOKENS:,} are the most"
            raise InputError(f"a text of {len(text):,} characters", found, "Shorten it")
        return ids[:limit] + [self.end_of_text, self.start_of_vision]


def _content(token: Any) -> str:
    """Special tokens are strings, or objects with their string under "content"."""
    return token["content"] if isinstance(token, dict) else str(token)


def _default_template(template: Any) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones."""
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    return template
