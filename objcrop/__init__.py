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
    from objcrop.boxes import BoxTable
    from objcrop.catalog import Catalog, join_catalogs
    from objcrop.dali_pipes.load_views import load_views
    from objcrop.dali_pipes.view_plan import ViewPlan
    from objcrop.dali_pipes.views import Views
    from objcrop.errors import ObjcropError, UsageError
    from objcrop.formats import index_source
    from objcrop.proposals import propose

__version__ = "0.1.0"
__all__ = [
    "BoxTable",
    "Catalog",
    "ObjcropError",
    "UsageError",
    "ViewPlan",
    "Views",
    "index_source",
    "join_catalogs",
    "load_views",
    "propose",
]
_HOMES = {
    "BoxTable": "objcrop.boxes",
    "Catalog": "objcrop.catalog",
    "ObjcropError": "objcrop.errors",
    "UsageError": "objcrop.errors",
    "ViewPlan": "objcrop.dali_pipes.view_plan",
    "Views": "objcrop.dali_pipes.views",
    "index_source": "objcrop.formats",
    "join_catalogs": "objcrop.catalog",
    "load_views": "objcrop.dali_pipes.load_views",
    "propose": "objcrop.proposals",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'objcrop' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
