"""Box proposals: from images (or what is known of them) to a `BoxTable`, one module a family of methods."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import UsageError, one_of

METHODS = {
    "gt": "objcrop.proposals.annotated:gt",
    "gt-pad": "objcrop.proposals.annotated:gt_pad",
    "grid": "objcrop.proposals.grid:grid",
    "image": "objcrop.proposals.grid:image",
    "random": "objcrop.proposals.random_boxes:random_boxes",
    "import": "objcrop.proposals.imported:imported",
    "bing": "objcrop.proposals.bing:bing",
    "edge-boxes": "objcrop.proposals.edge_boxes:edge_boxes",
    "anchors": "objcrop.proposals.anchors:anchors",
    "centre-prior": "objcrop.proposals.anchors:centre_prior",
    "poor": "objcrop.proposals.poor:poor",
    "selective-search": "objcrop.proposals.selective_search:selective_search",
    "discovery": "objcrop.proposals.discovery:discovery",
}


def propose(catalog: Catalog | str | os.PathLike[str], method: str, **options: Any) -> BoxTable:
    """Make boxes for every image of a catalog.

    Args:
        catalog: the images, a `Catalog` or its file.
        method: a name in `METHODS`.
        **options: the method's own, see its function.

    Raises:
        UsageError: no such method, or an option it does not have.
    """
    module, function = METHODS[one_of(method, METHODS, "method")].split(":")
    make: Callable[..., BoxTable] = getattr(import_module(module), function)
    takes = list(inspect.signature(make).parameters)[1:]
    for name in options:
        if name not in takes:
            raise UsageError(
                f"--{name} is not an option of method '{method}', which takes: {', '.join(takes) or 'none'}."
            )
    return make(catalog_at(catalog), **options)


def takes(method: str, option: str) -> bool:
    """Whether a method has this option."""
    module, function = METHODS[one_of(method, METHODS, "method")].split(":")
    return option in inspect.signature(getattr(import_module(module), function)).parameters
