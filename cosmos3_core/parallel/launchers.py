"""What started this process among others: torchrun, srun or mpirun, by the variables that each has set for it."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from ..contract import InputError

TORCHRUN = "torchrun"
PORTS = range(61_440, 65_536)
"""Where process 0 is met unless MASTER_PORT says so: above those that systems hand out by themselves."""
STANDARD_PORT = 29_500
"""Where a launcher does not tell one job from another. It is torch's."""
LARGEST = 1 << 20
"""Processes of a launcher."""


@dataclass(frozen=True)
class Launcher:
    """A program that starts processes, and the variables in which it tells each the same things: the process's number
    (`rank`), how many there are (`count`), its number on its host (`local`), how many are there (`here`), how many
    hosts there are and which (`hosts`, `names`), and which of its `jobs` this is. Of several names the first that is
    set counts. It started this process if one of its `signs` is set. `again` is what to type where something is
    wrong."""

    name: str
    signs: tuple[str, ...]
    rank: str
    count: tuple[str, ...]
    local: str
    again: str
    here: str = ""
    hosts: str = ""
    names: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()


LAUNCHERS = (
    Launcher(
        name=TORCHRUN,
        signs=("TORCHELASTIC_RUN_ID",),
        rank="RANK",
        count=("WORLD_SIZE",),
        local="LOCAL_RANK",
        again="Start all of them by one torchrun on each host",
    ),
    Launcher(
        name="Open MPI's mpirun",
        signs=("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        rank="OMPI_COMM_WORLD_RANK",
        count=("OMPI_COMM_WORLD_SIZE",),
        local="OMPI_COMM_WORLD_LOCAL_RANK",
        here="OMPI_COMM_WORLD_LOCAL_SIZE",
        jobs=("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
        again="Start all of them by one mpirun",
    ),
    Launcher(
        name="mpiexec",
        signs=("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
        rank="PMI_RANK",
        count=("PMI_SIZE",),
        local="MPI_LOCALRANKID",
        here="MPI_LOCALNRANKS",
        again="Start all of them by one mpiexec of MPICH or Intel MPI",
    ),
    Launcher(
        name="srun",
        signs=("SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"),
        rank="SLURM_PROCID",
        count=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local="SLURM_LOCALID",
        hosts="SLURM_STEP_NUM_NODES",
        names=("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
        jobs=("SLURM_JOB_ID", "SLURM_STEP_ID"),
        again="Start all of them by one srun",
    ),
    Launcher(
        name="an MPI",
        signs=("PMI_RANK", "PMI_SIZE"),
        rank="PMI_RANK",
        count=("PMI_SIZE",),
        local="MPI_LOCALRANKID",
        again="Start them by the mpirun of Open MPI, MPICH or Intel MPI, or by one torchrun on each host",
    ),
)
"""The first one that has started this process counts. mpirun starts its own daemons by srun where Slurm is, and
torchrun is often started by either; srun sets variables of PMI, too. A batch script of Slurm has numbers of processes
as well, and is no step: what it calls without srun is alone."""


@dataclass(frozen=True)
class Started:
    """This process is number `rank` of `count` that a launcher started, and number `local` on its host. Process 0 is
    met at an `address` and a `port`; torch knows that by itself under torchrun (None)."""

    by: str
    rank: int
    count: int
    local: int
    address: str | None = None
    port: int | None = None

    @property
    def torch_ends_all(self) -> bool:
        """Whether the launcher hears of an error through torch, and says it."""
        return self.by == TORCHRUN


class Misled(InputError):
    """Variables of a launcher of which nothing can be made; `rank` is this process's number as far as one is known, and
    0 where it is none of theirs: no process 0 would say that."""

    rank = 0


class Stray(Misled):
    """A number that none of these processes has: the first one does not see it."""


def started() -> Started | None:
    """How this process was started, None for one that is alone. Raises Misled for variables that are not all there or
    contradict each other."""
    return of(os.environ)  # noqa: TID251 - where a launcher tells it, and nobody else can


def of(variables: Mapping[str, str]) -> Started | None:
    """As `started`, of these variables."""
    launcher = next((one for one in LAUNCHERS if any(sign in variables for sign in one.signs)), None)
    if launcher is None:
        return None
    try:
        return _of(launcher, variables)
    except Misled as error:
        rank = variables.get(launcher.rank, "")
        error.rank = 0 if isinstance(error, Stray) or not (rank.isascii() and rank.isdigit()) else int(rank)
        raise


def _of(launcher: Launcher, variables: Mapping[str, str]) -> Started | None:
    def number(*names: str) -> int:
        name = next((one for one in names if one in variables), names[0])
        text = variables.get(name)
        if text is None:
            sign = next(one for one in (launcher.rank, *launcher.count, *launcher.signs) if one in variables)
            raise _misled(launcher, f"{sign} is set and {name} is not", launcher.again)
        if not (text.isascii() and text.isdigit() and int(text[:9]) <= LARGEST):
            raise _misled(launcher, f"{name} is {text!r}, which is no number of processes", launcher.again)
        return int(text)

    rank, count = number(launcher.rank), number(*launcher.count)
    total = next(one for one in launcher.count if one in variables)
    if rank >= count:
        found = f"{launcher.rank} is {rank} and {total} is {count}"
        raise Stray(f"the variables of {launcher.name}", found, launcher.again)
    if count == 1 and launcher.name != TORCHRUN:  # as a job with one task has it, in which a run starts its own
        return None
    local = number(launcher.local)
    if local >= count:
        raise _misled(launcher, f"{launcher.local} is {local} and {total} is {count}", launcher.again)
    here = number(launcher.here) if launcher.here in variables else None
    if here is not None and not local < here <= count:
        said = f"{launcher.local} is {local}, {launcher.here} is {here} and {total} is {count}"
        raise _misled(launcher, said, launcher.again)
    if launcher.name == TORCHRUN:
        for name in ("MASTER_ADDR", "MASTER_PORT"):  # torch reads them
            if name not in variables:
                raise _misled(launcher, f"{launcher.rank} is set and {name} is not", launcher.again)
        return Started(launcher.name, rank, count, local)
    for name, value, own in (("RANK", rank, launcher.rank), ("WORLD_SIZE", count, total)):
        if name in variables and variables[name] != str(value):
            said = f"{own} is {value} and {name} is {variables[name]!r}"
            raise _misled(launcher, said, f"Unset {name}: it is torchrun's")
    one_host = here == count or variables.get(launcher.hosts) == "1"
    return Started(
        launcher.name, rank, count, local, _address(launcher, variables, one_host), _port(launcher, variables)
    )


def _misled(launcher: Launcher, found: str, next_step: str) -> Misled:
    return Misled(f"the variables of {launcher.name}", found, next_step)


def _address(launcher: Launcher, variables: Mapping[str, str], one_host: bool) -> str:
    """Process 0's host."""
    if named := variables.get("MASTER_ADDR"):
        return named
    if one_host:
        return "127.0.0.1"
    if names := next((variables[name] for name in launcher.names if variables.get(name)), None):
        return first_host(names)
    found = f"MASTER_ADDR is not set, and {launcher.name} does not say on which host process 0 is"
    raise _misled(launcher, found, "Export MASTER_ADDR, that host's name, to all of them (mpirun -x MASTER_ADDR=HOST)")


def _port(launcher: Launcher, variables: Mapping[str, str]) -> int:
    """Two jobs that share a host mostly have two."""
    if (text := variables.get("MASTER_PORT")) is not None:
        if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) < 1 << 16):
            raise _misled(
                launcher, f"MASTER_PORT is {text!r}, which is no port", "Set it to one, 1 to 65535, or unset it"
            )
        return int(text)
    job = ".".join(variables[name] for name in launcher.jobs if name in variables)
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)] if job else STANDARD_PORT


def first_host(names: str) -> str:
    """The first of Slurm's list of hosts: "node[007-12,20],login" begins with node007."""
    one = re.split(r",(?![^\[]*\])", names)[0]
    return re.sub(r"\[([^\]]*)\]", lambda match: re.split("[-,]", match[1])[0], one)
