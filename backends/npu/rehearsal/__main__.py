"""A Python program with rehearsed NPUs: python -m rehearsal CHIP MODULE [ARGUMENT]...

python -m rehearsal 950 cosmos3 run "a blue ball" --model embedded --backend npu -o ball.mp4
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from . import stub


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in stub.CHIPS:
        sys.exit(f"usage: python -m rehearsal {{{','.join(stub.CHIPS)}}} MODULE [ARGUMENT]...")
    _, chip, *program = sys.argv
    environment = stub.environment(Path(sys.prefix) / "cann", stub.CHIPS[chip])
    os.execve(sys.executable, [sys.executable, "-m", *program], environment)


if __name__ == "__main__":
    main()
