"""Half a generation here, the other half in another process: a state is tensors and a number.

python examples/resume.py begin STATE.safetensors
python examples/resume.py go-on STATE.safetensors OUTPUT.mp4
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from cosmos3_core.engine.engine import Engine
from cosmos3_core.files.video import write_video
from cosmos3_core.settle import Wish, settle

CUP = {"task": "t2v", "prompt": "a cup", "size": "64x64", "frames": 9, "steps": 4, "seed": 7}
SETTLED = settle(Wish(model="tiny", backend="reference", given=CUP))


def begin(saved: Path) -> None:
    engine = Engine(SETTLED.model, SETTLED.plan)
    state = engine.start(SETTLED.request)
    while state.index < state.steps // 2:
        engine.step(state)
    tensors, numbers = state.to_tensors()
    save_file(tensors, saved, {"numbers": json.dumps(numbers)})
    print(f"step {state.index} of {state.steps} is in {saved.name}")


def go_on(saved: Path, output: Path) -> None:
    engine = Engine(SETTLED.model, SETTLED.plan)
    state = engine.start(SETTLED.request)  # prompts are read again; what follows replaces the noise
    with safe_open(saved, framework="pt") as file:
        state.restore({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["numbers"]))
    while not state.done:
        engine.step(state)
        print(f"step {state.index} of {state.steps}")
    frames = (frame.numpy() for group in engine.finish(state) for frame in group)
    write_video(output, frames, SETTLED.request.fps, {"prompt": SETTLED.request.prompt})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["begin", saved]:
            begin(Path(saved))
        case ["go-on", saved, output]:
            go_on(Path(saved), Path(output))
        case _:
            sys.exit(__doc__)
