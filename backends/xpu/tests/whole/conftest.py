"""The rehearsal installed as the backend xpu, here and for the processes that are started."""

import os
import sys
import tempfile
from pathlib import Path

from devices import PACKAGES
from installed import install

REHEARSAL = Path(__file__).parents[1] / "rehearsal"
SITE = tempfile.TemporaryDirectory(prefix="cosmos3-")
install(REHEARSAL, Path(SITE.name))
FOLDERS = [SITE.name, str(REHEARSAL), str(PACKAGES["xpu"]), str(PACKAGES["triton"])]
sys.path[:0] = FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, os.environ.get("PYTHONPATH", "")])
