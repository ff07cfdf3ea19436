"""Which process this is, and of how many, and the few things that processes say to each other.

torch.distributed where it runs, else what the launcher left in the environment, else one process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from objcrop.errors import ObjcropError
from objcrop.launcher import launched

if TYPE_CHECKING:
    import torch


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
    return place and (place.rank, place.world)


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
    if not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        raise ObjcropError(
            f"{place.launcher.name} started {place.world} processes, but MASTER_ADDR and MASTER_PORT do not say where "
            "they meet: set both, or start them by torchrun (examples/slurm.sh)."
        )
    try:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        taken = "in use" in str(error).lower() or "EADDRINUSE" in str(error)
        reason = "the port is in use" if taken else str(error).strip().splitlines()[0][:160]
        raise ObjcropError(
            f"the processes cannot meet at {where} ({reason}); give torchrun another --master-port."
        ) from None
    try:
        yield
    except RuntimeError as error:
        if _is_a_lost_peer(str(error)):
            raise ObjcropError(
                "another process of this run has died, its own message says why; go on from the last checkpoint with "
                "--resume."
            ) from None
        raise
    finally:
        dist.destroy_process_group()


def _is_a_lost_peer(message: str) -> bool:
    signs = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "broken pipe", "heartbeat")
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


def wait_for_ranks() -> None:
    """Return when every rank has come here."""
    if rank_and_world_size()[1] > 1:
        import torch.distributed as dist

        dist.barrier()
