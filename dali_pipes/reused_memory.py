"""Memory for batches on the CPU, used again once nobody holds what lay there.

The system hands out fresh memory in pages of 4 KiB, each cleared first, and the allocator gives large pieces back as
soon as they are free: in batches of 256 that costs more processor time an image than its colours.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class ReusedMemory:
    """Hands out tensors; the memory of one that nobody holds any more becomes that of a later one of its kind.

    Args:
        kept: the most free pieces of a shape and type that are kept.
    """

    def __init__(self, kept: int) -> None:
        self._free: defaultdict[Any, deque[NDArray[Any]]] = defaultdict(lambda: deque(maxlen=kept))

    def empty(self, shape: tuple[int, ...], kind: type[np.generic] = np.float32) -> torch.Tensor:
        """Return a tensor of that shape and NumPy type, filled with anything."""
        free = self._free[shape, kind]
        try:
            piece = free.pop()
        except IndexError:  # not looked for before: another thread may take it in between
            piece = np.empty(shape, kind)
        lent = piece.view()  # the tensor, and whatever shares its memory, holds this
        weakref.finalize(lent, free.append, piece).atexit = False
        return torch.from_numpy(lent)
