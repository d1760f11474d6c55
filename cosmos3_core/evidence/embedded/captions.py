"""What is said of a scene: a sentence, a JSON caption, or an instruction to the agent.

A sentence is one of several ways to say the same; which one is drawn from the stream that is handed over.
"""

from __future__ import annotations

import numpy as np

from .world import COLOURS, DIRECTIONS, SHAPES, Scenes, count_of

NOUNS = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "ring": ("ring",),
}
NUMBERS = ("no", "one", "two", "three")
MOVES = (("moves", "moving", "move"), ("slides", "sliding", "slide"), ("glides", "gliding", "glide"))
ROLLS = ("rolls", "rolling", "roll")
"""Only of what is round."""
WAYS = {
    "left": ("to the left", "left", "leftwards", "towards the left"),
    "right": ("to the right", "right", "rightwards", "towards the right"),
    "up": ("up", "upwards", "to the top", "towards the top"),
    "down": ("down", "downwards", "to the bottom", "towards the bottom"),
}
EDGES = {"left": "left edge", "right": "right edge", "up": "top edge", "down": "bottom edge"}
BACKGROUND = "plain dark grey"
_COLOUR_NAMES, _WAY_NAMES = tuple(COLOURS), tuple(DIRECTIONS)


def _pick(stream: np.random.Generator, options: tuple) -> object:
    return options[int(stream.integers(len(options)))]


def _noun(scenes: Scenes, row: int, item: int, stream: np.random.Generator | None) -> str:
    """ "red ball"; without a stream the plain name."""
    shape = SHAPES[scenes.shape[row, item]]
    word = shape if stream is None else _pick(stream, NOUNS[shape])
    return f"{_COLOUR_NAMES[scenes.colour[row, item]]} {word}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun.endswith("x") else f"{noun}s"


def _verb(scenes: Scenes, row: int, stream: np.random.Generator) -> tuple[str, str, str]:
    round_ = SHAPES[scenes.shape[row, scenes.subject[row]]] == "circle"
    return _pick(stream, (*MOVES, ROLLS) if round_ else MOVES)  # type: ignore[return-value]


def way_of(scenes: Scenes, row: int) -> str | None:
    """The name of the subject's direction."""
    return None if scenes.direction[row] < 0 else _WAY_NAMES[scenes.direction[row]]


def sentence(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    """A caption in prose, or for a scene with an agent the instruction."""
    text = _SENTENCES[str(scenes.kind[row])](scenes, row, stream)
    text = text if stream.uniform() < 0.15 else text[0].upper() + text[1:]
    return text if stream.uniform() < 0.3 else f"{text}."


def _of_one(scenes: Scenes, row: int, stream: np.random.Generator) -> tuple[str, str, str, str]:
    """(the subject with its article, the verb in its form with "s", the one with "ing", the way)."""
    verb, way = _verb(scenes, row, stream), way_of(scenes, row) or "up"
    noun = _noun(scenes, row, scenes.subject[row], stream)
    return f"{_pick(stream, ('a', 'a', 'the'))} {noun}", verb[0], verb[1], str(_pick(stream, WAYS[way]))


def _moving(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    subject, moves, moving, way = _of_one(scenes, row, stream)
    return f"{subject} {moving} {way}" if stream.uniform() < 0.2 else f"{subject} {moves} {way}"


def _standing(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    many, noun = count_of(scenes, row), _noun(scenes, row, 0, stream)
    if many == 1:
        return f"a {noun}" + str(_pick(stream, ("", " stands still", " at rest", " that does not move")))
    ends = ("", " stand still", " at rest", " that do not move")
    return f"{NUMBERS[many]} {_plural(noun)}" + str(_pick(stream, ends))


def _beside(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    left, right = (_noun(scenes, row, item, stream) for item in (0, 1))
    forms = (
        f"a {left} and a {right}",
        f"a {left} to the left of a {right}",
        f"a {right} to the right of a {left}",
        f"a {left} on the left and a {right} on the right",
    )
    return str(_pick(stream, forms))


def _together(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    many, noun, verb = (
        NUMBERS[count_of(scenes, row)],
        _plural(_noun(scenes, row, 0, stream)),
        _verb(scenes, row, stream),
    )
    way = _pick(stream, WAYS[way_of(scenes, row) or "up"])
    return f"{many} {noun} {verb[1] if stream.uniform() < 0.2 else verb[2]} {way}"


def _passing(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    place = "in front of" if scenes.subject[row] == 1 else "behind"
    return f"{_moving(scenes, row, stream)} {place} a {_noun(scenes, row, 1 - scenes.subject[row], stream)}"


def _bouncing(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    subject, moves, _, way = _of_one(scenes, row, stream)
    edge = EDGES[way_of(scenes, row) or "up"]
    forms = (
        f"{subject} bounces off the {edge}",
        f"{subject} hits the {edge} and bounces back",
        f"{subject} {moves} {way} and bounces off the edge",
    )
    return str(_pick(stream, forms))


def _dribbling(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    ends = ("bounces up and down", "bounces on the floor", "hops up and down")
    return f"{_of_one(scenes, row, stream)[0]} {_pick(stream, ends)}"


def _colliding(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    first, second = (f"a {_noun(scenes, row, item, stream)}" for item in (0, 1))
    if stream.uniform() < 0.5:
        first, second = second, first
    ends = ("collide", "bump into each other", "move towards each other and collide", "meet and bounce apart")
    return f"{first} and {second} {_pick(stream, ends)}"


def _reaching(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    return f"{_pick(stream, ('move to', 'go to', 'reach'))} the {_noun(scenes, row, scenes.subject[row], stream)}"


def _pushing(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    way = _pick(stream, WAYS[way_of(scenes, row) or "up"])
    return f"{_pick(stream, ('push', 'push', 'shove'))} the {_noun(scenes, row, scenes.subject[row], stream)} {way}"


def _wandering(scenes: Scenes, row: int, stream: np.random.Generator) -> str:
    return str(_pick(stream, ("move around", "wander about", "move freely")))


_SENTENCES = {
    "still": _standing,
    "pair": _beside,
    "move": _moving,
    "group": _together,
    "pass": _passing,
    "bounce": _bouncing,
    "dribble": _dribbling,
    "collide": _colliding,
    "reach": _reaching,
    "push": _pushing,
    "wander": _wandering,
}


def structured(scenes: Scenes, row: int) -> dict[str, str]:
    """The caption as the JSON object that Cosmos3 is trained on has it: subjects, actions, background_setting."""
    kind, way, item = str(scenes.kind[row]), way_of(scenes, row), int(scenes.subject[row])
    noun, many = _noun(scenes, row, item, None), count_of(scenes, row)
    subjects = f"one {noun}" if many == 1 or kind in ("pass",) else f"{NUMBERS[many]} {_plural(noun)}"
    if kind in ("pair", "collide"):
        subjects = f"one {noun}, one {_noun(scenes, row, 1 - item, None)}"
    place = "in front of" if item == 1 else "behind"
    actions = {
        "still": "none",
        "pair": "none",
        "pass": f"moves {way} {place} one {_noun(scenes, row, 1 - item, None)}" if kind == "pass" else "",
        "bounce": f"moves {way}, bounces off the edge",
        "dribble": "bounces up and down",
        "collide": "collide",
    }.get(kind, f"moves {way}")
    return {"subjects": subjects, "actions": actions, "background_setting": BACKGROUND}
