"""The options of DenseCL."""

from __future__ import annotations

from dataclasses import dataclass

from objcrop.option import option
from objcrop.option_value import number
from objcrop.ssl.methods.moco_recipe import MoCoRecipe


@dataclass(frozen=True)
class DenseCLRecipe(MoCoRecipe):
    """The options of DenseCL; trained as MoCo-v2 is."""

    dense_weight: float = option(0.5, number(0, 1), "λ, share of the loss on cells; 0 is MoCo-v2")
