"""The small arrays of a batch on their way to the device: many arrays, one buffer, one copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

ALIGNED = 16  # bytes: where an array may begin, for any type


def to_device(arrays: Mapping[str, NDArray], device: torch.device) -> dict[str, torch.Tensor]:
    """Copy arrays to a device.

    On a GPU they cross over in its current stream, from page-locked memory, so that the host does not wait; one copy
    takes as long as each of a dozen would.

    Args:
        arrays: of any shapes and types.
        device: where to.

    Returns:
        A contiguous tensor for each, all parts of one buffer.
    """
    ends = np.cumsum([-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays.values()]).tolist()
    places = dict(zip(arrays, [0, *ends]))
    here = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, array in arrays.items():
        part = here.numpy()[places[name] : places[name] + array.nbytes]
        part.view(array.dtype).reshape(array.shape)[...] = array
    there = here.to(device, non_blocking=True)
    return {name: _part(there, places[name], array) for name, array in arrays.items()}


def sent(small: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return one small tensor of the host on the device, on its way there while the host goes on."""
    return (small.pin_memory() if device.type == "cuda" else small).to(device, non_blocking=True)


def _part(buffer: torch.Tensor, begin: int, array: NDArray) -> torch.Tensor:
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    return buffer[begin : begin + array.nbytes].view(kind).view(array.shape)
