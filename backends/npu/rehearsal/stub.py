"""A stand-in for CANN, built from an installed torch_npu: its undefined symbols, its headers, and `cann.c`.

It is one library under all the names by which torch_npu loads parts of CANN. Of the functions that `cann.c` lacks those
that set something up succeed and do nothing. Those that compute or move fail: operators are rehearsed above torch_npu's
dispatch, collectives over gloo.
"""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = (
    "libascendcl",
    "libhccl",
    "libacl_op_compiler",
    "libacl_tdt_channel",
    "libge_runner",
    "libgraph",
)
"""Names that torch_npu links to, or loads and asks for functions."""
CANN = re.compile(r"(acl(?!nn)[a-z]*[A-Z]\w+|Hccl[A-Z]\w+|Msprof\w+|rt[A-Z]\w+)")
CHIPS = {"910B": "Ascend910B3", "910C": "Ascend910_9391", "950": "Ascend950PR_9589"}
"""A chip of each architecture, as CANN names it."""


def _lines(*command: str | Path) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _asked_for(package: Path) -> set[str]:
    """Functions of CANN that the wheel's libraries link to, or look up by name."""
    libraries = [*(package / "lib").glob("*.so"), *package.glob("_C*.so")]
    linked = {line.split()[-1].split("@")[0] for path in libraries for line in _lines("nm", "-D", "-u", path)}
    looked_up = set(_lines("strings", "-n", "6", package / "lib" / "libtorch_npu.so"))
    return {name for name in linked | looked_up if CANN.fullmatch(name)}


def build(target: Path) -> Path:
    """The folder with the libraries, made if it is not there or older than its sources. Raises FileNotFoundError where
    torch_npu is not installed, CalledProcessError where gcc fails."""
    found = find_spec("torch_npu")
    if found is None or found.origin is None:
        raise FileNotFoundError("torch_npu is not installed; make rehearse-npu installs it")
    package, sources = Path(found.origin).parent, (HERE / "cann.c", Path(__file__))
    library = target / f"{LIBRARIES[0]}.so"
    if library.exists() and library.stat().st_mtime > max(path.stat().st_mtime for path in sources):
        return target
    for part in ("runtime", "compiler"):  # torch_npu looks for them where ASCEND_HOME_PATH is
        (target / part).mkdir(parents=True, exist_ok=True)
    headers = package / "include" / "third_party" / "acl" / "inc"
    ours, rest = target / "cann.o", target / "rest.c"
    flags = ["gcc", "-O1", "-fPIC", "-Wno-unused", f"-I{headers}"]
    subprocess.run([*flags, "-c", HERE / "cann.c", "-o", ours], check=True)
    there = {line.split()[-1] for line in _lines("nm", "--defined-only", ours)}
    names = sorted(_asked_for(package) - there)
    head = "int nothing(const char *, char *);\n"
    body = (f'int {name}(void) {{ static char said; return nothing("{name}", &said); }}\n' for name in names)
    rest.write_text(head + "".join(body))
    made = target / "made.so"
    subprocess.run([*flags, "-shared", rest, ours, "-o", made], check=True)
    made.replace(library)
    for name in LIBRARIES[1:]:
        link = target / f"{name}.so"
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
    return target


def environment(target: Path, soc: str) -> dict[str, str]:
    """What a process needs in its environment to see chips named `soc`: REHEARSED_COUNT of them, else one, with
    REHEARSED_GIB of memory each, else 64."""
    torch, npu = (Path(str(find_spec(name).origin)).parent / "lib" for name in ("torch", "torch_npu"))  # type: ignore[union-attr]
    return os.environ | {
        "LD_LIBRARY_PATH": f"{build(target)}:{torch}:{npu}",
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(HERE.parent), str(HERE / "site"), os.environ.get("PYTHONPATH")))
        ),
        "ASCEND_HOME_PATH": str(target),  # where these are not set, torch_npu says that CANN's set_env.sh is missing
        "ASCEND_OPP_PATH": str(target),
        "TASK_QUEUE_ENABLE": "0",
        "REHEARSED_SOC": soc,
    }
