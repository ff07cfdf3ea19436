"""Which process this is, and of how many, and the few things that processes say to each other.

torch.distributed where it runs, else what the launcher left in the environment, else one process.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from objcrop.errors import ObjcropError, way_out
from objcrop.heartbeat import heartbeat
from objcrop.launcher import Place, launched
from objcrop.waiting import GIVE_UP_AFTER, SAY_AFTER, listed, wait_until_none_missing

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def known_rank() -> tuple[int, int] | None:
    """Return (rank, world size) of torch.distributed or else of the launcher; None where neither speaks.

    Raises:
        ObjcropError: a launcher started several processes, but does not say which this is.
    """
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
    place = launched()
    if place is None:
        return None
    if place.world > 1 and place.launcher.name != "torchrun":
        _say_who(place)
    return place.rank, place.world


@cache
def _say_who(place: Place) -> None:
    """Say it once: srun and mpirun also start runs that have nothing to do with each other."""
    logging.getLogger("objcrop").warning(
        "%s says that this is process %d (from 0) of %d, which share the work; set WORLD_SIZE=1 in the environment "
        "where each does its own.",
        place.launcher.name,
        place.rank,
        place.world,
    )


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size) as `known_rank` does; (0, 1) where nobody speaks of several processes."""
    return known_rank() or (0, 1)


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """Join the process group that the launcher's environment names, where there is one, and leave it again.

    A group that is there already is used and left alone.

    Args:
        backend: "nccl" or "gloo".

    Raises:
        ObjcropError: the group cannot be joined, or another process of it died.
    """
    import torch.distributed as dist

    place = None if dist.is_initialized() else launched()
    if place is None or place.world == 1:
        yield
        return
    # The default, 10 minutes of NCCL, is over while one rank compiles or writes to a slow disk.
    patience = timedelta(seconds=GIVE_UP_AFTER)
    store, beats = _meet(place)
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world, timeout=patience)
    try:
        with heartbeat(beats, place.rank, place.world):
            yield
        _leave(store, place)
    except RuntimeError as error:
        if _is_a_lost_peer(str(error)):
            way = way_out("go on from the last checkpoint with --resume", "run it again")
            raise ObjcropError(f"another process of this run has died, its own message says why; {way}.") from None
        raise
    finally:
        dist.destroy_process_group()


def _meet(place: Place) -> tuple[torch.distributed.Store, torch.distributed.Store]:
    """Return the store through which the processes find each other, once all have come to it; twice connected."""
    import torch.distributed as dist

    where, rank, world = meeting_point(place), place.rank, place.world
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # else torchrun does
    store: dist.Store | None = None

    def alone() -> list[int]:
        """Rank 0 while its store cannot be reached."""
        nonlocal store
        try:
            store = dist.TCPStore(*where, world, serves, timedelta(seconds=SAY_AFTER), wait_for_workers=False)
        except (RuntimeError, ValueError, OSError) as error:
            if serves or "timed out" not in str(error):
                taken = "in use" in str(error).lower() or "EADDRINUSE" in str(error)
                reason = "the port is in use" if taken else str(error).strip().splitlines()[0][:160]
                raise ObjcropError(
                    f"the processes cannot meet at {where[0]}:{where[1]} ({reason}); give torchrun another "
                    "--master-port."
                ) from None
            return [0]
        return []

    def said(missing: Sequence[int]) -> str:
        return f"{listed(missing)} of {world} at {where[0]}:{where[1]}, where rank {rank} is"

    wait_until_none_missing(alone, said)
    assert store is not None
    store.set_timeout(timedelta(seconds=GIVE_UP_AFTER))
    name = _together(store, rank, world, said)
    second = dist.TCPStore(*where, world, False, timedelta(seconds=SAY_AFTER), wait_for_workers=False)
    return dist.PrefixStore(name, store), dist.PrefixStore(name, second)


def _together(store: torch.distributed.Store, rank: int, world: int, said: Callable[[Sequence[int]], str]) -> str:
    """Return the name of the part of a store that these processes have to themselves, once all have come to it.

    A store of torchrun's outlives its processes, and TORCHELASTIC_RESTART_COUNT is not the same on all machines. So
    rank 0 names each meeting anew, and the others wait until it has seen them there, not only those who came before.
    """
    import torch.distributed as dist

    mine = secrets.token_hex(8)
    name = f"objcrop/{mine}"
    if rank == 0:
        store.set("objcrop/meeting", name)
        meeting = dist.PrefixStore(name, store)
        _all_come(meeting, "met", rank, world, said)
        meeting.set("all", " ".join(meeting.get(f"met/{other}").decode() for other in range(world)))
        return name

    def missing() -> list[int]:
        nonlocal name
        if not store.check(["objcrop/meeting"]):
            return [0]
        name = store.get("objcrop/meeting").decode()
        meeting = dist.PrefixStore(name, store)
        meeting.set(f"met/{rank}", mine)
        if meeting.check(["all"]):
            return [] if mine in meeting.get("all").decode().split() else [0]
        return [other for other in range(world) if not meeting.check([f"met/{other}"])] or [0]

    wait_until_none_missing(missing, said)
    return name


def _leave(store: torch.distributed.Store, place: Place) -> None:
    """Let rank 0 leave last: the store may be its own, and another may still be looking into it."""
    rank, world = place.rank, place.world
    if rank > 0:
        store.set(f"left/{rank}", "")
    else:
        _all_come(store, "left", rank, world, lambda missing: f"{listed(missing)} of {world} until all have ended")


def meeting_point(place: Place) -> tuple[str, int]:
    """Return host and port that the environment names for processes to meet at."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not (port.isascii() and port.isdigit()):
        raise ObjcropError(
            f"{place.launcher.name} started {place.world} processes, but MASTER_ADDR and MASTER_PORT do not say where "
            "they meet: set both, or start them by torchrun (examples/slurm.sh)."
        )
    return host, int(port)


def _all_come(
    store: torch.distributed.Store, what: str, rank: int, world: int, said: Callable[[Sequence[int]], str]
) -> None:
    """Return when every rank has come here; unlike a barrier, it says who is missing."""
    store.set(f"{what}/{rank}", "")
    here: set[int] = set()

    def missing() -> list[int]:
        here.update(other for other in range(world) if other not in here and store.check([f"{what}/{other}"]))
        return [other for other in range(world) if other not in here]

    wait_until_none_missing(missing, said)


_waits = count()


def _is_a_lost_peer(message: str) -> bool:
    signs = ["connection closed by peer", "connection reset by peer", "gloo", "nccl", "broken pipe", "heartbeat"]
    signs += ["failed to recv", "failed to send"]  # the store's
    return any(sign in message.lower() for sign in signs)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any rank; every rank must ask."""
    if rank_and_world_size()[1] == 1:
        return flag
    import torch
    import torch.distributed as dist

    flags = torch.tensor(int(flag), device=device)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def average_over_ranks(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each float tensor by its mean over all ranks, in place, in one message."""
    _, world = rank_and_world_size()
    if world == 1 or not tensors:
        return
    import torch
    import torch.distributed as dist

    flat = torch.cat([t.detach().flatten().double() for t in tensors])
    dist.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / world).split([t.numel() for t in tensors])):
        tensor.detach().copy_(mean.view_as(tensor))


def gather_ranks(local: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all ranks, stacked: (world, *local.shape); no gradient."""
    _, world = rank_and_world_size()
    if world == 1:
        return local[None]
    import torch
    import torch.distributed as dist

    local = local.contiguous()  # before empty_like, which keeps another layout and would let memory pass for order
    parts = [torch.empty_like(local) for _ in range(world)]
    dist.all_gather(parts, local)
    return torch.stack(parts)


def gather_on_first(part: T) -> list[T] | None:
    """Return what all ranks give, in their order, on rank 0, and None on the others; every rank must ask.

    Args:
        part: anything that can be pickled; a tensor must lie on the CPU.
    """
    rank, world = rank_and_world_size()
    if world == 1:
        return [part]
    import torch.distributed as dist

    parts: list[T] | None = [part] * world if rank == 0 else None
    dist.gather_object(part, parts)
    return parts


def wait_for_ranks(until: str) -> None:
    """Return when every rank has come here.

    Args:
        until: what is waited for, for the log: "until …".

    Raises:
        ObjcropError: no rank has come for long.
    """
    rank, world = rank_and_world_size()
    if world == 1:
        return
    import torch.distributed as dist

    store, number = dist.distributed_c10d._get_default_store(), next(_waits)
    _all_come(
        store, f"objcrop/wait/{number}", rank, world, lambda missing: f"{listed(missing)} of {world} until {until}"
    )
    if number > 0:  # all are past the wait before this one
        store.delete_key(f"objcrop/wait/{number - 1}/{rank}")


def share_of_ranks(items: Iterable[T], until: str) -> Iterator[T]:
    """Walk this rank's share of the work; at its end rank 0 waits until all have walked theirs.

    Args:
        items: of the share; one that is done counts as progress of those who are waited for.
        until: see `wait_for_ranks`.

    Raises:
        ObjcropError: the others have got nothing done for long.
    """
    import torch.distributed as dist

    rank, world = rank_and_world_size()
    store, name = dist.distributed_c10d._get_default_store(), f"objcrop/share/{next(_waits)}"
    for done, item in enumerate(items, 1):
        yield item
        store.set(f"{name}/{rank}", str(done))
    store.set(f"{name}/{rank}", "all")

    def missing() -> list[int]:
        """Ranks that are not done, plus a multiple of the world that changes with what they have done."""
        told = {other: f"{name}/{other}" for other in range(world)}
        done = {other: store.get(key).decode() if store.check([key]) else "0" for other, key in told.items()}
        return [other + world * int(count) for other, count in done.items() if count != "all"]

    if rank == 0:
        wait_until_none_missing(
            missing, lambda left: f"{listed(sorted(number % world for number in left))} of {world} until {until}"
        )
