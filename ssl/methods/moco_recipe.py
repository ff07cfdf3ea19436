"""The options of MoCo-v2."""

from __future__ import annotations

from dataclasses import dataclass

from objcrop.errors import UsageError
from objcrop.ssl.training.recipe import JointEmbedding, Queue, Recipe, Temperature


def default_bn_groups(batch_size: int, most: int = 8) -> int:
    """Return the largest power of two up to `most` that leaves every virtual device at least 4 rows."""
    groups = most
    while groups > 1 and (batch_size % groups or batch_size // groups < 4):
        groups //= 2
    return groups


@dataclass(frozen=True)
class MoCoRecipe(Recipe, JointEmbedding, Temperature, Queue):
    """The options of MoCo-v2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.queue:
            raise UsageError(f"queue is 0, but {self.method} has no other negatives: take {self.batch_size}.")

    @property
    def virtual_devices(self) -> int:
        """8, as the published runs had GPUs, where that leaves rows enough."""
        return self.bn_groups or default_bn_groups(self.batch_size)
