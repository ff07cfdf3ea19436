"""The options of MAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.errors import UsageError
from objcrop.option import option
from objcrop.option_value import flag, number, whole
from objcrop.ssl.training.recipe import Recipe


@dataclass(frozen=True)
class MAERecipe(Recipe):
    """The options of MAE, and what its paper trains with (appendix A.1, table 8)."""

    has_batch_norm: ClassVar[bool] = False
    own_defaults: ClassVar[Mapping[str, Any]] = {
        "arch": "timm/vit_base_patch16_224",
        "crops": "scene",
        "augment": "mae",
        "epochs": 800,
        "optimiser": "adamw",
        "betas": (0.9, 0.95),
        "base_lr": 1.5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 40.0,
    }

    mask: float = option(0.75, number(0, 1, above=True, below=True), "share of the patches that is hidden")
    norm_pix: bool = option(True, flag, "draw each patch with the mean and variance of its pixels taken out")
    decoder_dim: int = option(512, whole(32, 8192), "width of the decoder, a multiple of 32, the width of a head")
    decoder_depth: int = option(8, whole(1, 1024), "blocks of the decoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_dim % 32:
            raise UsageError(f"decoder_dim is {self.decoder_dim}, but it must be a multiple of 32.")
