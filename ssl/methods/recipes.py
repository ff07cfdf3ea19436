"""The options of each method by its name, for who looks them up: reading these imports no PyTorch."""

from __future__ import annotations

from objcrop.ssl.methods.byol_recipe import BYOLRecipe
from objcrop.ssl.methods.cmc_recipe import CMCRecipe
from objcrop.ssl.methods.densecl_recipe import DenseCLRecipe
from objcrop.ssl.methods.mae_recipe import MAERecipe
from objcrop.ssl.methods.moco_recipe import MoCoRecipe
from objcrop.ssl.methods.simclr_recipe import SimCLRRecipe
from objcrop.ssl.methods.soco_recipe import SoCoRecipe
from objcrop.ssl.methods.supervised_recipe import SupervisedRecipe
from objcrop.ssl.methods.swav_recipe import SwAVRecipe
from objcrop.ssl.training.recipe import Recipe

RECIPES: dict[str, type[Recipe]] = {
    "moco-v2": MoCoRecipe,
    "byol": BYOLRecipe,
    "densecl": DenseCLRecipe,
    "mae": MAERecipe,
    "simclr": SimCLRRecipe,
    "swav": SwAVRecipe,
    "cmc": CMCRecipe,
    "soco": SoCoRecipe,
    "supervised": SupervisedRecipe,
}
