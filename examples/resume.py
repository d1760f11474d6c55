"""Half a generation here, the other half in another process, which may as well be `cosmos3 run --resume`.

python examples/resume.py begin STATE.safetensors
python examples/resume.py go-on STATE.safetensors OUTPUT.mp4
"""

from __future__ import annotations

import sys

import cosmos3


def begin(saved: str) -> None:
    run = cosmos3.load("embedded", backend="reference").start("a cup", frames=9, size="64x64", steps=4, seed=7)
    while run.index < run.steps // 2:
        run.step()
    print(f"step {run.index} of {run.steps} is in {run.save(saved).name}")


def go_on(saved: str, output: str) -> None:
    run = cosmos3.load("embedded", backend="reference").resume(saved)
    for step in run:
        print(f"step {step} of {run.steps}")
    run.finish().save(output)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["begin", saved]:
            begin(saved)
        case ["go-on", saved, output]:
            go_on(saved, output)
        case _:
            sys.exit(__doc__)
