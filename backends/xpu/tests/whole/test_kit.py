"""The conformance kit over cosmos3-xpu on a CPU. Rows that do not run there are skipped with their reason (-rs)."""

from importlib.util import find_spec

from cosmos3_xpu_rehearsal.plugin import UNREHEARSED

from cosmos3_core.testing.suite import *  # noqa: F403

BACKEND = "xpu"
KNOWN_FAILURES = {
    f"test_rows_serve_where_they_say[{op}-{name}]": f"never: unrehearsed: {reason}, https://pytorch.org/docs/stable/xpu"
    for (op, name), reason in UNREHEARSED.items()
}
if find_spec("auto_round_kernel"):
    KNOWN_FAILURES["test_kernels_change_nothing_global[attention-ark]"] = (
        "never: auto-round-lib sets a variable for Intel's compiler when it is imported, which its kernels need, "
        "https://github.com/intel/intel-graphics-compiler/issues/412"
    )
