"""The options of SwAV."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.option import option
from objcrop.option_value import number, whole
from objcrop.ssl.training.recipe import MLPHead, Queue, Recipe, Temperature


def _queue_is_kept(at: SwAVRecipe) -> str | None:
    return None if at.queue else "there is no queue"


@dataclass(frozen=True)
class SwAVRecipe(Recipe, MLPHead, Temperature, Queue):
    """The options of SwAV, and what its paper trains with at batch 256 (facebookresearch/swav, scripts)."""

    in_parts: ClassVar[bool] = False
    holds_negatives: ClassVar[bool] = False
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "augment": "swav",
        "scale": (0.14, 1.0),
        "local_views": 6,
        "optimiser": "larc",
        "base_lr": 0.6,
        "final_lr": 0.0006,
        "weight_decay": 1e-6,
        "temperature": 0.1,
        "queue": 3840,
    }

    prototypes: int = option(3000, whole(2, 2**24), "clusters that crops are assigned to")
    epsilon: float = option(0.05, number(1e-4, 100), "smoothness of the codes; OAC takes .03 on OpenImages")
    freeze_prototypes: int | None = option(
        None, whole(0, 2**31 - 1), "steps that they stay as they are; default: an epoch's"
    )
    queue_epoch: int = option(15, whole(0, 10**6), "epoch, from 0, that the queue is filled from", idle=_queue_is_kept)
