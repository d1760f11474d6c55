"""What `cosmos3 run` makes of the variables of torchrun, srun and mpirun, before it meets anybody. Whole runs among
processes that were started so are in tests/parallel (`make test-parallel`)."""

from __future__ import annotations

import pytest
from command import cosmos3
from tiny_model import TINY_MODEL

from cosmos3_core.parallel.launchers import PORTS, Started, first_host, of

RUN = ("run", "a cup", "--model", TINY_MODEL, "--backend", "reference", "--size", "80x48", "--frames", 5)
SLURM = {
    "SLURM_JOB_ID": "7781",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08,12],login1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",  # where srun was typed, which may be no host of the job
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
ADDRESS = {"MASTER_ADDR": "gpu07", "MASTER_PORT": "4000"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **ADDRESS}


def test_each_launcher_says_which_process_this_is():
    found = of(SLURM)
    assert found and (found.rank, found.count, found.local, found.address) == (3, 4, 1, "gpu07")
    assert found.port in PORTS and of(SLURM | {"SLURM_STEP_ID": "1"}).port != found.port, "another step of the job"
    assert of(SLURM | {"SLURM_JOB_ID": "7782"}).port != found.port, "another job"
    assert of(OPEN_MPI) == Started("Open MPI's mpirun", 0, 2, 0, "127.0.0.1", 29_500)
    second = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert of(OPEN_MPI | second | ADDRESS) == Started("Open MPI's mpirun", 3, 4, 1, "gpu07", 4000)
    assert of(HYDRA | ADDRESS | {"PMI_RANK": "3", "PMI_SIZE": "4"}) == Started("mpiexec", 3, 4, 1, "gpu07", 4000)
    assert of(TORCHRUN) == Started("torchrun", 1, 2, 1)
    assert of(SLURM | OPEN_MPI).by == "Open MPI's mpirun", "its daemons were started by srun"
    assert of(SLURM | TORCHRUN).by == "torchrun"
    assert of(SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}).by == "srun", "which sets these for an MPI"


def test_a_process_that_has_no_others_is_alone():
    """In a batch script without srun, and in a step of one task, a run starts its own processes."""
    assert of({}) is None
    assert of({name: text for name, text in SLURM.items() if "STEP" not in name}) is None
    assert of(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize(
    ("names", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[007-12,20],login", "n007"),
        ("a-b[3,5]", "a-b3"),
        ("r1i[0-1]n[3,4-5],x", "r1i0n3"),
    ],
)
def test_the_first_of_slurms_hosts(names, first):
    assert first_host(names) == first


WRONG = {
    "the variables of srun: SLURM_PROCID is set and SLURM_LOCALID is not. Start all of them by one srun": SLURM
    | {"SLURM_PROCID": "0", "SLURM_LOCALID": None},
    "the variables of srun: SLURM_PROCID is '3x', which is no number of processes": SLURM | {"SLURM_PROCID": "3x"},
    "the variables of srun: SLURM_STEP_NUM_TASKS is set and SLURM_PROCID is not": SLURM | {"SLURM_PROCID": None},
    "the variables of srun: SLURM_PROCID is 0 and RANK is '1'. Unset RANK: it is torchrun's": SLURM
    | {"SLURM_PROCID": "0", "RANK": "1"},
    "the variables of srun: MASTER_PORT is '99999', which is no port": SLURM
    | {"SLURM_PROCID": "0", "MASTER_PORT": "99999"},
    "the variables of srun: MASTER_ADDR is not set, and srun does not say on which host process 0 is": SLURM
    | {"SLURM_PROCID": "0", "SLURM_JOB_NODELIST": None},
    "the variables of Open MPI's mpirun: OMPI_COMM_WORLD_RANK is set and OMPI_COMM_WORLD_SIZE is not": OPEN_MPI
    | {"OMPI_COMM_WORLD_SIZE": None},
    "the variables of Open MPI's mpirun: OMPI_COMM_WORLD_RANK is 0 and OMPI_COMM_WORLD_SIZE is 0": OPEN_MPI
    | {"OMPI_COMM_WORLD_SIZE": "0"},
    "the variables of Open MPI's mpirun: MASTER_ADDR is not set, and Open MPI's mpirun does not say on which host "
    "process 0 is. Export MASTER_ADDR, that host's name, to all of them (mpirun -x MASTER_ADDR=HOST)": OPEN_MPI
    | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
    "the variables of an MPI: PMI_RANK is set and MPI_LOCALRANKID is not": {"PMI_RANK": "0", "PMI_SIZE": "2"},
    "the variables of torchrun: RANK is set and LOCAL_RANK is not": {
        **TORCHRUN,
        "RANK": "0",
        "LOCAL_RANK": None,
    },
    "the variables of torchrun: RANK is set and MASTER_PORT is not": TORCHRUN | {"RANK": "0", "MASTER_PORT": None},
    # Process 0 sees nothing wrong, and waits: who has such a number says so.
    "the variables of torchrun: RANK is 5 and WORLD_SIZE is 2": TORCHRUN | {"RANK": "5"},
    "the variables of srun: SLURM_PROCID is 4 and SLURM_STEP_NUM_TASKS is 4": SLURM | {"SLURM_PROCID": "4"},
    "the variables of srun: SLURM_LOCALID is 4 and SLURM_STEP_NUM_TASKS is 4": SLURM
    | {"SLURM_PROCID": "0", "SLURM_LOCALID": "4"},
}


@pytest.mark.parametrize("said", WRONG)
def test_variables_that_are_not_whole_are_one_error(said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, text in WRONG[said].items():
        if text is not None:
            monkeypatch.setenv(name, text)
    code, out, err = cosmos3(capsys, monkeypatch, *RUN, "--parallel", "cfg=2", "--guidance", 3)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and said in err, err
    assert not list(tmp_path.iterdir())
    code, _, err = cosmos3(capsys, monkeypatch, "plan", *RUN[2:], "--parallel", "cfg=2", "--guidance", 3)
    assert code == 0, err  # a plan meets nobody
