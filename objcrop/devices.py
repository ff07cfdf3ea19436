"""Which device a name means: an index for every GPU, found once, so that no thread falls back to GPU 0."""

from __future__ import annotations

import torch

from objcrop.errors import ObjcropError, UsageError, refuse_without_gpu
from objcrop.launcher import local_rank


def device_kind(name: str | torch.device) -> str:
    """Return "cpu" or "cuda": the kind of device that a name means here, without a look at which one."""
    if str(name) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(name).partition(":")[0]


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device that a name means in this process and thread.

    "cuda" is PyTorch's current GPU; where nobody chose one (it is GPU 0) it is that of the launcher's local rank.

    Args:
        name: "auto" (a GPU where PyTorch finds one), "cpu", "cuda" or "cuda:N".

    Returns:
        The device, with an index unless it is the CPU.

    Raises:
        UsageError: another name, no such GPU, or one that belongs to another process of this machine.
    """
    name = device_kind(name) if str(name) == "auto" else name
    kind, colon, index = str(name).partition(":")
    if str(name) == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (colon and not (index.isascii() and index.isdigit())):
        raise UsageError(f"device is '{name}', but it must be auto, cpu, cuda, or cuda:N for GPU N.")
    refuse_without_gpu(str(name))
    count, current, local = torch.cuda.device_count(), torch.cuda.current_device(), _local_rank()
    if colon:
        return torch.device("cuda", _allowed(int(index), count, current, local))
    if current or not local or count == 1:  # one GPU: the launcher shows each process its own
        return torch.device("cuda", current)
    if local >= count:
        raise UsageError(
            f"device is 'cuda', but this is process {local} (from 0) of this machine, which has {count} GPUs: start "
            "one process a GPU."
        )
    return torch.device("cuda", local)


def _allowed(index: int, count: int, current: int, local: int | None) -> int:
    if index >= count:
        has = "one GPU, cuda:0" if count == 1 else f"{count} GPUs, cuda:0 to cuda:{count - 1}"
        raise UsageError(f"device is 'cuda:{index}', but PyTorch finds {has}.")
    if local is not None and count > 1 and index not in (local, current or local):
        raise UsageError(
            f"device is 'cuda:{index}', but this is process {local} (from 0) of several on this machine, each of which "
            "takes a GPU of its own: give 'cuda', or show each its GPU by CUDA_VISIBLE_DEVICES."
        )
    return index


def _local_rank() -> int | None:
    try:
        return local_rank()
    except ObjcropError:  # which process this is may be known later, and is asked by those who need it
        return None
