"""Which process this is, and of how many: torch.distributed where it runs, one process otherwise."""

from __future__ import annotations

import sys


def rank_and_world_size() -> tuple[int, int]:
    """Return (rank, world size); (0, 1) unless torch.distributed is initialised in this process."""
    if "torch.distributed" not in sys.modules:
        return 0, 1
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
