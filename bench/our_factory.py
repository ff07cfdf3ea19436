"""Our own loader as `objcrop bench audit` asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objcrop.catalog import catalog_at
from objcrop.dali_pipes.augment import RECIPES
from objcrop.dali_pipes.load_views import load_views

ZERO_TO_ONE: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


class Pairs:
    """A loader that yields (views, index).

    Args:
        loader: of batches with `views` and `index`; all else is its own.
        numbers: (n,) the number in the name of each file that its index counts: unusable files may be left out of it.
    """

    def __init__(self, loader: Any, numbers: np.ndarray) -> None:
        self.loader, self.numbers = loader, numbers

    def __iter__(self) -> Iterator[tuple[tuple[torch.Tensor, ...], np.ndarray]]:
        return ((batch.views, self.numbers[batch.index.cpu().numpy()]) for batch in self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def make_loader(folder: str, *, blur_p: float, **options: Any) -> Pairs:
    """Return the loader `backend="dali"` on a CPU; see bench/audit.py."""
    return _made(folder, blur_p, backend="dali", device="cpu", **options)


def make_torch_loader(folder: str, *, blur_p: float, **options: Any) -> Pairs:
    """Return the loader `backend="torch"`, without worker processes."""
    return _made(folder, blur_p, backend="torch", device="cpu", workers=0, **options)


def _made(folder: str, blur_p: float, **options: Any) -> Pairs:
    catalog = catalog_at(folder)
    augment = replace(RECIPES["moco-v2"][0], blur_p=blur_p, **ZERO_TO_ONE)
    loader = load_views(catalog, crops="scene-scene", augment=augment, max_bad=0.1, **options)
    return Pairs(loader, numbers_of([catalog.path(row) for row in range(len(catalog))]))


def numbers_of(paths: list[str]) -> np.ndarray:
    """Return the numbers in the names of files."""
    return np.array([int(Path(path).stem) for path in paths])
