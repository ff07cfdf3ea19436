"""Our own loader as `objcrop bench audit` asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from objcrop.dali_pipes.augment import RECIPES
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader

ZERO_TO_ONE: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Pairs:
    """A `ViewLoader` that yields (views, index).

    Args:
        loader: all else is its own.
    """

    def __init__(self, loader: ViewLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        return ((batch.views, batch.index) for batch in self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def make_loader(folder: str, *, blur_p: float, **options: Any) -> Pairs:
    """Return the loader `backend="dali"` on a CPU; see bench/audit.py."""
    return _made(folder, blur_p, backend="dali", device="cpu", **options)


def make_torch_loader(folder: str, *, blur_p: float, **options: Any) -> Pairs:
    """Return the loader `backend="torch"`, without worker processes."""
    return _made(folder, blur_p, backend="torch", device="cpu", workers=0, **options)


def _made(folder: str, blur_p: float, **options: Any) -> Pairs:
    augment = replace(RECIPES["moco-v2"][0], blur_p=blur_p, **ZERO_TO_ONE)
    return Pairs(load_views(folder, crops="scene-scene", augment=augment, max_bad=0.1, **options))
