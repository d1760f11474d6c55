"""Requests of other programs, and what they are here: recognised by their keys, converted with one note.

The keys are those of aliases.toml. A request whose keys are all fields of ours is never taken for another's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bounds import parse_json
from ..contract import InputError
from ..spelling import nearest, shown
from .action import acts
from .aliases import CONTROL, HERE, INPUT, LATER, UNNEEDED, Alias, aliases, asks_nothing, known, owners, table
from .conversion import Work, file_of, number_of
from .families import INPUTS, TASKS
from .fields import FIELDS
from .foreign_controls import control, controls_of
from .kinds import LONGEST, URL, task_named
from .measures import FPS, SIDES, frames_of, sides
from .task import Task
from .transfer import HINTS, TRANSFER, hints_of

WRAPPERS = {"extra_params": "VST", "extra_body": "S"}
"""Keys that hold further keys, as an object or as its JSON text, and whose they are."""
WINNING = ("flow_shift", "generate_sound", "sound_duration")
"""Keys of vllm-omni's that win inside `extra_params` over the same outside of it."""
SOUND_SECONDS = ("sound_duration", "audio_duration")
ORDER = "FOVSDNT"
"""Whose request it is where several programs know its keys."""
CLIPS = (".mp4", ".mov", ".avi", ".webm", ".mkv", ".m4v", ".gif")
OUTPUTS = ("n", "num_outputs", "num_outputs_per_prompt", "num_images_per_prompt", "num_videos_per_prompt", "batch_size")
"""Keys that say how many outputs are wanted of one prompt."""
PICTURE_ONLY = ("response_format", "output_format", "background", "n")
"""Keys of requests for pictures, where none is there that only a video has."""
MAX_TEXT_BYTES = 1 << 20
SERVED_ELSEWHERE = ("sora", "gpt-image", "dall-e")
"""How OpenAI's own models are called."""


@dataclass(frozen=True)
class Converted:
    """`given` request fields, whose `profile` fills the rest, the `model` if one was named, and a `note` that says what
    was made of the request."""

    given: dict[str, Any]
    profile: str
    model: str | None
    note: str


def convert(value: Mapping[str, Any], asked: str, folder: Path | None) -> Converted | None:
    """A request of another program as one of ours; None where it is none. Paths in it start from `folder`; None where
    it may not name files of this machine. `asked` names it in messages. Raises InputError for what would be lost."""
    keys, twice = _unwrapped(value, asked)
    whose = _whose(keys, [of for name, of in WRAPPERS.items() if name in value])
    if not whose:
        return None
    owner = whose[0]
    work = Work(f"{asked}, a request of {owners()[owner]}", owner, folder)
    _inside(work, twice)
    sides(work, keys)
    for key in sorted(keys, key=lambda key: key == "negative_prompt_keep_metadata"):  # which amends another
        _one(work, key, keys[key])
    controls_of(work, keys)
    frames_of(work, keys)
    for key in SOUND_SECONDS:
        _lasts_as_video(work, key, number_of(keys.get(key)))
    _task(work, keys)
    if wrong := [f"{what} ({', '.join(of)})" for what, of in work.lacking.items()] + work.wrong:
        raise InputError(work.asked, "; ".join(wrong), "Change that, or take it out; cosmos3 capabilities lists fields")
    profiles = table()["profiles"]
    parts = [", ".join(work.said), f"ignored: {', '.join(work.dropped)}" if work.dropped else ""]
    if others := [letter for letter in whose if profiles[letter] != profiles[owner]]:
        named = [f"{owners()[letter]} (profile {profiles[letter]})" for letter in others]
        parts.append(f"it may also be one of {' or '.join(named)}")
    said = "; ".join(filter(None, parts))
    return Converted(work.given, profiles[owner], work.model, f"{work.asked}{f': {said}' if said else ''}")


def _unwrapped(value: Mapping[str, Any], asked: str) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The keys of a request with those that its wrappers hold, and the two values of each that has another there."""
    twice: dict[str, tuple[Any, Any]] = {}
    keys = {key: content for key, content in value.items() if key not in WRAPPERS}
    for name in WRAPPERS:
        inner = value.get(name)
        if isinstance(inner, str) and inner.strip():
            try:
                inner = parse_json(inner)
            except ValueError as error:
                raise InputError(f"{asked}: {name}", f"it is not JSON ({error})", "Give it as an object") from None
        if inner not in (None, "") and not isinstance(inner, dict):
            raise InputError(f"{asked}: {name}", "it is not an object", "Give it as an object")
        for key, content in (inner or {}).items():
            if key in keys and number_of(keys[key]) != number_of(content):
                twice[key] = keys[key], content
            keys[key] = content
    return keys, twice


def _inside(work: Work, twice: Mapping[str, tuple[Any, Any]]) -> None:
    """Keys that have one value in a wrapper and another outside."""
    for key, (outside, inside) in twice.items():
        if work.owner == "V" and key in WINNING:
            work.drop(f"{key} {shown(outside)}", f"in extra_params it is {shown(inside)}, which wins")
        else:
            work.wrong.append(f"{key} is {shown(outside)} at the top and {shown(inside)} inside")


def _whose(keys: Mapping[str, Any], wrappers: list[str]) -> str:
    """The letters of the programs whose request may have these keys, the likeliest first; none where they are ours or
    nobody's.

    Of those that have the wrapper, if there is one, it is that with the most keys that no other has, then that which
    knows the most of them, then the first in `ORDER`. A field of ours that a program has by the same name says so only
    where there is no wrapper: inside one, everybody's keys may stand.
    """
    foreign = [aliases()[key].owners for key in keys if key in aliases() and key not in FIELDS]
    foreign = [letters for letters in foreign if any(letter in ORDER for letter in letters)]
    if not foreign and not wrappers:
        return ""
    may = [letter for letter in ORDER if all(letter in of for of in wrappers)]
    known_to = foreign + ([] if wrappers else [table()["same"].get(key, "") for key in keys if key in FIELDS])

    def rank(letter: str) -> tuple[int, int]:
        return sum(letters == letter for letters in foreign), sum(letter in letters for letters in known_to)

    best = max(map(rank, may))
    return "".join(letter for letter in may if rank(letter) == best)


def _one(work: Work, key: str, value: Any) -> None:
    """One key that is not of the picture's size."""
    row = None if key in FIELDS else known(key)
    if key in SIDES:
        return
    if value is None and (key in FIELDS or (row and row.kind == HERE)):
        work.drop(f"{key} null", "the default")
    elif key in MAKERS:
        MAKERS[key](work, key, value)
    elif key in FIELDS:
        work.put(key, key, _text(value) if key in ("prompt", "negative_prompt") else number_of(value))
    elif row is None:
        close = nearest(key, FIELDS)
        work.wrong.append(f"there is no key {key}{f' (did you mean {close}?)' if close else ''}")
    elif row.kind == HERE:
        _renamed(work, row, value)
    elif row.kind == UNNEEDED:
        work.drop(key, row.means)
    elif key in OUTPUTS and number_of(value) == 0:
        work.wrong.append(f"{key} = {shown(value)}: a run makes one output")
    elif not asks_nothing(row.name, number_of(value)):
        work.lacking.setdefault(row.answer, []).append(key)
    else:
        work.drop(key, row.answer if value and table()["off"].get(row.name) == "any" else _nothing(value))


def _renamed(work: Work, row: Alias, value: Any) -> None:
    if row.means in (INPUT, *INPUTS):
        return _input(work, row.name, value)
    if row.means == CONTROL:
        return None  # the kind of control is another key
    if row.means == "model":
        return _model(work, row.name, value)
    if row.means == "frames":
        return None  # the frames need fps
    if row.means not in FIELDS:
        if row.means == "output":
            work.drop(row.name, row.answer)
        elif asks_nothing(row.name, number_of(value)):
            work.drop(row.name, _nothing(value))
        else:
            work.wrong.append(f"{row.name} is no part of a request: {row.answer}")
        return None
    return work.put(row.name, row.means, number_of(value))


# --- keys that are more than another name ----------------------------------------------------------------------------


def _input(work: Work, key: str, value: Any) -> None:
    """A file to start from, named by its path."""
    if path := file_of(work, key, value):
        row = known(key)
        if row is not None and row.means == "extend":
            work.put(key, "extend", path)
            return
        clip = key == "video" or (row is not None and row.means == "video")
        clip = clip or (key != "image" and Path(path).suffix.lower() in CLIPS)
        work.put(key, "video" if clip else "image", path)


def _last_picture(work: Work, key: str, value: Any) -> None:
    """The picture that a clip ends with."""
    if path := file_of(work, key, value):
        work.given["keyframe"] = {"-1": path}
        work.said.append(f"{key} → keyframe -1")


def _model(work: Work, key: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith(SERVED_ELSEWHERE):
        work.drop(f"{key} {value}", "OpenAI's own")
    elif isinstance(value, str) and value:
        work.model = f"nvidia/{value}" if value.startswith("Cosmos3-") else value
        work.said.append(key if key == "model" else f"{key} → model")


def _task(work: Work, keys: Mapping[str, Any]) -> None:
    """The task where the keys say it, and none of the fields that it does not take."""
    given = work.given
    if "keyframe" in given and "image" in given:
        given["keyframe"] = {"0": given.pop("image")} | given["keyframe"]
        given.pop("task", None)
        work.said.append("image → keyframe 0")
    if hints_of(given):
        if given.get("task") != TRANSFER:
            given["task"] = TRANSFER
            work.said.append("its controls → task transfer")
        if re.fullmatch(r"\d+p?", str(given.get("size"))):  # a tier, whose aspect is the clip's
            given["size"] = f"{given['size'].removesuffix('p')}p:auto"
        if "frames" in given:  # which is a limit with them
            given["max_frames"] = min(given.pop("frames"), given.get("max_frames", LONGEST))
            work.said.append("frames → max_frames")
    if "task" not in given and not any(name in given for name in INPUTS):
        moving = "frames" in given and given["frames"] != 1
        if given.get("frames") == 1 or (not moving and "fps" not in given and any(k in keys for k in PICTURE_ONLY)):
            given["task"] = "t2i"
            work.said.append("a picture → task t2i")
    task = TASKS.get(str(task_named(given.get("task"))))
    if task and acts(task):
        task = _acting(work, task)
    for name in list(given):
        if task and name not in INPUTS and (reason := FIELDS[name].refusal(task)):
            work.drop(name, reason)
            del given[name]


def _acting(work: Work, task: Task) -> Task:
    """What other programs say otherwise of actions: the canvas as a size, a chunk's own number of frames, a policy that
    begins with the first frame of a clip."""
    given = work.given
    if "size" in given:
        given.setdefault("canvas", given.pop("size"))
        work.said.append("size → canvas")
    if given.get("frames") is not None and given.get("frames") == given.get("chunk"):
        del given["frames"]
        work.said.append("frames as many as actions → chunk")
    if task.name == "policy" and "video" in given:
        given |= {"task": "video-policy", "condition_frame_indexes": [0], "condition_video_keep": "first"}
        work.said.append("a policy from a clip → task video-policy, from its first frame")
    return TASKS[str(task_named(given["task"]))]


def _asked_task(work: Work, key: str, value: Any) -> None:
    """A task by another name, among them some that are not here yet."""
    row = known(value) if isinstance(value, str) else None
    if row and row.kind == LATER:
        work.lacking.setdefault(row.answer, []).append(f"{key} {value}")
    elif value == "audio_image2video":
        work.put(key, "task", "i2v")
    elif key == "output_type" and value != "image":
        work.drop(f"{key} {value}", "the output's name says which file it is")
    else:
        work.put(key, "task", "t2i" if key == "output_type" else task_named(value))


def _template(work: Work, key: str, value: Any) -> None:
    """The framework has the text of a sentence where others have a switch."""
    value = number_of(value)
    if isinstance(value, str):
        work.given[key] = bool(value)
        work.said.append(f"the text of {key} → {key} {str(bool(value)).lower()}")
    else:
        work.put(key, key, value)


def _system_prompt(work: Work, key: str, value: Any) -> None:
    value = number_of(value)
    if isinstance(value, str) and value:
        work.wrong.append(f"{key}: not yet: a system prompt of your own. It is true or false here")
    else:
        work.put(key, key, value)


def _metadata_kept(work: Work, key: str, value: Any) -> None:
    if number_of(value) and work.given.get("negative_metadata", "none") == "none":
        work.given["negative_metadata"] = "same"
        work.said.append(f"{key} → negative_metadata same")
    else:
        work.drop(key, "negative_metadata says it" if number_of(value) else _nothing(value))


def _text_of_file(work: Work, key: str, value: Any) -> None:
    """A prompt that stands in a file."""
    name = "negative_prompt" if key.startswith("negative") else "prompt"
    path = work.path(key, str(value))
    if path is None:
        return
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError("it is larger than 1 MiB")
        text = data.decode("utf-8-sig").strip()
        work.put(key, name, json.dumps(json.loads(text)) if path.suffix.lower() == ".json" else text)
    except (OSError, ValueError, RecursionError) as error:
        work.wrong.append(f"{key} {value}: it cannot be read ({getattr(error, 'strerror', None) or error})")


def _schedule(work: Work, key: str, value: Any) -> None:
    """diffusers' switches of a scheduler; the one sampler that the framework's users change nothing with."""
    if key == "use_karras_sigmas":
        work.put(key, "schedule", "karras" if number_of(value) else "flow")
    elif key == "use_native_flow_schedule":
        if number_of(value):
            work.put(key, "schedule", "native")
        else:
            work.drop(key, _nothing(value))
    elif value == "unipc":
        work.drop(f"{key} unipc", "it is the one that runs")
    else:
        work.wrong.append(
            f"{key} {shown(value)}: no such solver is here. `schedule` has {FIELDS['schedule'].kind.words}"
        )


def _seed(work: Work, key: str, value: Any) -> None:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, list):
        work.wrong.append(f"{key} of {len(value)} outputs: not yet: several outputs of one run")
    else:
        work.put(key, key, number_of(value))


def _audio(work: Work, key: str, value: Any) -> None:
    """The file of a sound."""
    if not isinstance(value, str) or URL.match(value):
        work.wrong.append(f"{key}: files are not fetched or decoded. Save it, and give its path")
    elif value and (path := work.path(key, value)):
        work.put(key, "audio", str(path))


def _lasts_as_video(work: Work, key: str, seconds: Any) -> None:
    """How long the sound is, once it is known how long the video is: here it is as long."""
    frames, rate = work.given.get("frames"), work.given.get("fps", FPS)
    if seconds is None:
        return
    if not work.given.get("sound"):
        work.drop(key, "there is no sound")
    elif type(frames) is int and type(seconds) in (int, float) and abs(frames / rate - seconds) < 1 / rate:
        work.drop(key, "the sound is as long as the video")
    else:
        work.lacking.setdefault(aliases()[key].answer, []).append(f"{key} {shown(seconds)}")


def _longest(work: Work, key: str, value: Any) -> None:
    """sglang keeps two of its tokens for the ends of the text."""
    value = number_of(value)
    work.put(key, "max_text_tokens", value - 2 if work.owner == "S" and type(value) is int else value)


def _limit(work: Work, key: str, value: Any) -> None:
    """No clip is longer than ours may be."""
    value = number_of(value)
    work.put(key, key, min(value, LONGEST) if type(value) is int else value)


def _positions(work: Work, key: str, value: Any) -> None:
    """Where controls do not share the clip's positions, vllm-omni rounds down."""
    apart = "floor" if work.owner == "V" else "ceil"
    work.put(key, "control_positions", "shared" if number_of(value) else apart)


MAKERS: dict[str, Callable[[Work, str, Any], None]] = {
    "model_mode": _asked_task,
    "action_mode": _asked_task,
    "task_type": _asked_task,
    "inference_type": _asked_task,
    "output_type": _asked_task,
    "task": _asked_task,
    **dict.fromkeys((name for name in table()["here"]["keyframe"] if name != "keyframes"), _last_picture),
    "keyframes": lambda work, key, value: work.put(key, "keyframe", value),
    "image": _input,
    "video": _input,
    "duration_template": _template,
    "resolution_template": _template,
    "system_prompt": _system_prompt,
    "negative_prompt_keep_metadata": _metadata_kept,
    "prompt_path": _text_of_file,
    "prompt_file": _text_of_file,
    "negative_prompt_file": _text_of_file,
    "use_karras_sigmas": _schedule,
    "use_native_flow_schedule": _schedule,
    "sampler": _schedule,
    "scheduler": _schedule,
    "sample_solver": _schedule,
    "seed": _seed,
    "max_sequence_length": _longest,
    **dict.fromkeys(("sound_path", "audio_reference"), _audio),
    **dict.fromkeys(SOUND_SECONDS, lambda work, key, value: None),
    "max_frames": _limit,
    "share_vision_temporal_positions": _positions,
    **dict.fromkeys(HINTS, control),
}
"""By key, how its value becomes ours where it is more than another name for it."""


def _nothing(value: Any) -> str:
    """Why a key that is understood does nothing with this value."""
    return f"{json.dumps(value)} asks for nothing more"


def _text(value: Any) -> Any:
    """A caption may be an object."""
    return json.dumps(value) if isinstance(value, dict) else value
