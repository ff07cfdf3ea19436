"""objcrop: object-aware views for self-supervised pretraining, fed at the speed of the GPU.

    import objcrop

    loader = objcrop.load_views("photos.arrow", boxes="boxes.arrow", crops="obj-obj+dilate", backend="dali")
    for batch in loader:
        query, key = batch.views

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from objcrop.bench.headroom import headroom
    from objcrop.box_stats import stats
    from objcrop.boxes import BoxTable
    from objcrop.catalog import Catalog
    from objcrop.catalog_subset import subset
    from objcrop.dali_pipes.augment import Augment
    from objcrop.dali_pipes.crop_policy import CropPolicy, ViewSpec
    from objcrop.dali_pipes.load_views import load_views
    from objcrop.dali_pipes.view_boxes import ViewBoxes
    from objcrop.dali_pipes.view_plan import ViewPlan
    from objcrop.dali_pipes.views import Views
    from objcrop.errors import ObjcropError, UsageError
    from objcrop.formats import index
    from objcrop.joined_catalogs import join_catalogs
    from objcrop.proposals import propose
    from objcrop.ssl.evaluation.probe import probe
    from objcrop.ssl.export import export
    from objcrop.ssl.training.recipe import Recipe
    from objcrop.ssl.training.trainer import pretrain
    from objcrop.ssl.transfer.transfer import transfer

__version__ = "0.2.0"
__all__ = [
    "Augment",
    "BoxTable",
    "Catalog",
    "CropPolicy",
    "ObjcropError",
    "Recipe",
    "UsageError",
    "ViewBoxes",
    "ViewPlan",
    "ViewSpec",
    "Views",
    "export",
    "headroom",
    "index",
    "join_catalogs",
    "load_views",
    "pretrain",
    "probe",
    "propose",
    "stats",
    "subset",
    "transfer",
]
_HOMES = {
    "Augment": "objcrop.dali_pipes.augment",
    "BoxTable": "objcrop.boxes",
    "Catalog": "objcrop.catalog",
    "CropPolicy": "objcrop.dali_pipes.crop_policy",
    "ObjcropError": "objcrop.errors",
    "Recipe": "objcrop.ssl.training.recipe",
    "UsageError": "objcrop.errors",
    "ViewBoxes": "objcrop.dali_pipes.view_boxes",
    "ViewPlan": "objcrop.dali_pipes.view_plan",
    "ViewSpec": "objcrop.dali_pipes.crop_policy",
    "Views": "objcrop.dali_pipes.views",
    "export": "objcrop.ssl.export",
    "headroom": "objcrop.bench.headroom",
    "index": "objcrop.formats",
    "join_catalogs": "objcrop.joined_catalogs",
    "load_views": "objcrop.dali_pipes.load_views",
    "pretrain": "objcrop.ssl.training.trainer",
    "probe": "objcrop.ssl.evaluation.probe",
    "propose": "objcrop.proposals",
    "stats": "objcrop.box_stats",
    "subset": "objcrop.catalog_subset",
    "transfer": "objcrop.ssl.transfer.transfer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'objcrop' has no attribute '{name}'")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from objcrop.extras import missing_package

        raise missing_package(error) or error from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
