"""cosmos3-xpu with the stand-ins in the place of what only an Intel GPU has, and the helpers of the core's tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "rehearsal"), str(HERE.parents[2] / "tests")]
import devices  # noqa: E402, F401 (puts the backends on the path)
