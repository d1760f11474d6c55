"""A Python program for which cosmos3-rocm's rehearsal is the backend rocm: python -m rehearsed MODULE [ARGUMENT]...

PYTHONPATH=backends/rocm python -m rehearsed cosmos3 run "a blue ball" --model embedded --backend rocm -o ball.png

Without an NVIDIA GPU kernels are interpreted, for the architecture that REHEARSED_ARCH names, gfx942 without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def environment(site: Path) -> dict[str, str]:
    """In which the rehearsal is installed, in an empty folder, as the backend rocm."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    from installed import install

    install(Path(__file__).parent, site)
    packages = [ROOT / "backends" / name for name in ("rocm", "triton", "cuda")]
    path = [site, ROOT, *packages, ROOT / "backends" / "triton" / "tests"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    return {**os.environ, **interpreted, "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, path), *given]))}


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("usage: python -m rehearsed MODULE [ARGUMENT]...")
    with tempfile.TemporaryDirectory(prefix="cosmos3-") as site:
        command = [sys.executable, "-m", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment(Path(site))).returncode)


if __name__ == "__main__":
    main()
