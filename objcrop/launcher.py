"""What a launcher of several processes leaves in the environment: which of them this one is."""

from __future__ import annotations

import os
from typing import NamedTuple

from objcrop.errors import ObjcropError


class Launcher(NamedTuple):
    """Names of the variables that a launcher sets in each process it starts.

    Attributes:
        name: of the launcher.
        rank: which process this is.
        world: how many there are.
        local: which process of this machine it is.
    """

    name: str
    rank: str
    world: str
    local: str


# The first that speaks counts: torchrun's names are set last, by hand or inside a task of srun or mpirun.
LAUNCHERS = (
    Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    Launcher("MPICH", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    Launcher("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


class Place(NamedTuple):
    """Which of how many processes this is, as a launcher says.

    Attributes:
        launcher: who says so.
        rank: 0 to world - 1.
        world: number of processes.
    """

    launcher: Launcher
    rank: int
    world: int


def launched() -> Place | None:
    """Return what the environment says of this process; None where no launcher started it.

    Raises:
        ObjcropError: the environment speaks of several processes, but not of which this is.
    """
    unfinished: tuple[Launcher, int] | None = None
    for launcher in LAUNCHERS:
        rank, world = _number(launcher.rank), _world(launcher)
        if launcher.name == "torchrun" and rank is None and _number("NODE_RANK") == 0:
            rank = _number(launcher.local)  # Lightning's children, on the first machine
        if world is None and not rank:
            continue
        world = 1 if world is None else world
        if rank is None and world > 1:
            unfinished = unfinished or (launcher, world)
            continue
        if unfinished and unfinished[1] != world:
            continue
        if (rank or 0) >= world:
            raise ObjcropError(
                f"the environment says {launcher.rank}={rank}, but {launcher.world} says that there "
                f"{'is 1 process' if world == 1 else f'are {world} processes'}: set both, or neither."
            )
        return Place(launcher, rank or 0, world)
    if unfinished:
        launcher, world = unfinished
        raise ObjcropError(
            f"the environment says {launcher.world}={world}, but not {launcher.rank}, so that each of the processes "
            f"would take itself for the first: set {launcher.rank} too, or unset {launcher.world}; a loop of one's own "
            "can also initialise torch.distributed before it iterates, or give load_views rank and world_size."
        )
    return None


def local_rank() -> int | None:
    """Return which of this machine's processes this is; None where it is the only one."""
    for launcher in LAUNCHERS:
        local = _number(launcher.local)
        if local is not None:
            count = _number("LOCAL_WORLD_SIZE") or _world(launcher) or local + 1
            return local if count > 1 else None
    return None


def cores_here() -> int:
    """Return how many cores this process may keep busy, 1 or more.

    Those it is bound to, which srun and mpirun see to; torchrun binds none, but says how many share the machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // max(_number("LOCAL_WORLD_SIZE") or 1, 1), 1)


def _world(launcher: Launcher) -> int | None:
    return _tasks_of_step() if launcher.name == "srun" else _number(launcher.world)


def _tasks_of_step() -> int | None:
    """Return the tasks that srun started together.

    The shells of sbatch and salloc have SLURM_NTASKS too, but are no step of several tasks: their Python is alone.
    """
    in_step = _number("SLURM_STEP_ID") is not None or (_number("SLURM_PROCID") or 0) > 0
    return _number("SLURM_STEP_NUM_TASKS") or (_number("SLURM_NTASKS") if in_step else None)


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ObjcropError(f"the environment says {name}={text!r}, which is no whole number: unset it, or mend it.")
    return int(text)
