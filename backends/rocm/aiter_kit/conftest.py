"""The rehearsal installed as the backend rocm, here and for the processes that are started."""

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROCM, ROOT = HERE.parent, HERE.parents[2]
SITE = tempfile.TemporaryDirectory(prefix="cosmos3-")
FOLDERS = [SITE.name, HERE, ROCM, ROCM / "tests", ROCM.parent / "triton", ROOT / "scripts", ROOT / "tests"]
sys.path[:0] = map(str, FOLDERS)
os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, FOLDERS), os.environ.get("PYTHONPATH", "")])

import emulated  # noqa: E402
from installed import install  # noqa: E402

install(HERE, Path(SITE.name))
RECORDS = ROCM / "tests" / "signatures"
NEWER = [RECORDS / "amd_aiter-0.1.7.post2.dev18.txt", RECORDS / "aiter-repository-2026.txt"]
emulated.install(NEWER, Path(SITE.name))
