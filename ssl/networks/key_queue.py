"""The queue of keys that serve as negatives (He et al. 2020, section 3.2)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import normalize


class KeyQueue(nn.Module):
    """First in, first out; its keys and its place are buffers, so checkpoints hold them.

    Places that no key has filled yet are no negatives. The published code begins with noise there, which any constant
    embedding is told from at once: short queues and high rates then collapse in the first steps and stay so.

    Args:
        length: keys, a multiple of the global batch.
        dim: of a key.
    """

    keys: torch.Tensor
    place: torch.Tensor
    filled: torch.Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(length, dtype=torch.bool))

    @torch.no_grad()
    def push(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys by these, (N, dim), without asking the device where it is."""
        at = (self.place + torch.arange(len(keys), device=self.keys.device)) % len(self.keys)
        self.keys.index_copy_(0, at, keys.to(self.keys.dtype))
        self.filled.index_fill_(0, at, True)
        self.place.copy_((self.place + len(keys)) % len(self.keys))

    def mean(self) -> torch.Tensor:
        """Return the mean of the keys in filled places, (1, dim); zeros where there is none."""
        return (self.keys * self.filled[:, None]).sum(0, keepdim=True) / self.filled.sum().clamp(min=1)
