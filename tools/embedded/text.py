"""From scenes to token ids: the tokenizer, trained on the captions, and prompts as the engine writes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from cosmos3_core.checkpoint.repository import ASSETS, EMBEDDED
from cosmos3_core.evidence.embedded.captions import sentence, structured
from cosmos3_core.evidence.embedded.world import ACTIVE, PASSIVE, RATES, SIZE, Scenes, make
from cosmos3_core.model.text import SYSTEM_PROMPTS, ChatTokenizer
from cosmos3_core.scenarios.action_kinds import JSON
from cosmos3_core.scenarios.prompts import negative_text, positive_text

REPOSITORY = ASSETS / EMBEDDED
"""The checkpoint in the package: all its files but the weights, which `assemble` adds, are written by hand, but for the
tokenizer, which is `train_tokenizer`'s."""
SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Qwen's, in its order."""
SYSTEM_SHARE, EMPTY_SHARE = 0.1, 0.5
"""Of prompts that have the system prompt, and of dropped ones that are empty instead of the checkpoint's negative."""
SEEN_FROM = ("ego_view", "top_down_2d_view")
"""What the prompts of actions say of the camera: the default, and what is right."""
CANVAS = 256
"""The side of the canvas of an action's picture, of which its prompt speaks (docs/model.md, section 4.4)."""


def asked(scenes: Scenes, row: int, prompt: str, negative: str = "", view: str | None = None) -> Any:
    """What the prompts of a request follow from, by its profile's defaults; of an action's where it has a `view`."""
    side = CANVAS if view else SIZE
    return SimpleNamespace(
        prompt=prompt,
        negative_prompt=negative,
        frames=scenes.frames,
        fps=float(scenes.fps[row]),
        seen_size=(side, side),
        width=side,
        height=side,
        action_prompt=JSON if view else None,
        view=view,
        view_detail="",
        emphasize_controls=False,
        json_metadata=True,
        duration_template=True,
        resolution_template=True,
        negative_metadata="same",
    )


def texts_of(
    scenes: Scenes, row: int, stream: np.random.Generator, *, structured_share: float = 0.0
) -> tuple[str, str, str | None]:
    """(prompt, what stands for it where it is dropped, system prompt) as the model reads them."""
    if scenes.kind[row] in ACTIVE:
        view = SEEN_FROM[int(stream.integers(len(SEEN_FROM)))]
        request = asked(scenes, row, sentence(scenes, row, stream), view=view)
        return positive_text(request), negative_text(request), None
    as_json = stream.uniform() < structured_share
    prompt = json.dumps(structured(scenes, row)) if as_json else sentence(scenes, row, stream)
    negative = "" if scenes.frames == 1 or stream.uniform() < EMPTY_SHARE else negative_prompt()
    system = SYSTEM_PROMPTS["image" if scenes.frames == 1 else "video"]
    request = asked(scenes, row, prompt, negative)
    return positive_text(request), negative_text(request), system if stream.uniform() < SYSTEM_SHARE else None


def negative_prompt() -> str:
    """The checkpoint's, as the engine reads it."""
    return json.dumps(json.loads((REPOSITORY / "assets" / "negative_prompt.json").read_text()))


def tokenizer(folder: Path = REPOSITORY) -> ChatTokenizer:
    """The engine's, on a repository's files."""
    files = folder / "text_tokenizer"
    config = json.loads((files / "tokenizer_config.json").read_text())
    template = (files / "chat_template.jinja").read_text()
    return ChatTokenizer((files / "tokenizer.json").read_text(), config, template, "embedded")


def ids_of(scenes: Scenes, seed: int, structured_share: float = 0.0) -> list[tuple[list[int], list[int]]]:
    """Token ids of each scene's prompt and of what stands for it where it is dropped."""
    made, stream = tokenizer(), np.random.default_rng(seed)
    out = []
    for row in range(len(scenes)):
        prompt, dropped, system = texts_of(scenes, row, stream, structured_share=structured_share)
        out.append((made.encode(prompt, system), made.encode(dropped, system)))
    return out


def train_tokenizer(folder: Path = REPOSITORY, vocabulary: int = 640, scenes: int = 1500) -> None:
    """Write tokenizer.json: byte-level BPE on captions, instructions and what the engine adds to them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    stream, corpus = (
        np.random.default_rng(17),
        [f"system\n{SYSTEM_PROMPTS[kind]}" for kind in ("image", "video")] * (scenes // 5),
    )
    for frames in RATES:
        kinds = PASSIVE if frames != 17 else PASSIVE + ACTIVE
        drawn = make(17, scenes, frames, dict.fromkeys(kinds, 1.0))
        for row in range(scenes):
            prompt, dropped, _ = texts_of(drawn, row, stream, structured_share=0.3)
            corpus += [f"user\n{prompt}", dropped, "\nassistant\n"]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    size = vocabulary - len(SPECIAL_TOKENS)
    made.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    (folder / "text_tokenizer").mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "text_tokenizer" / "tokenizer.json"))


if __name__ == "__main__":
    train_tokenizer()
