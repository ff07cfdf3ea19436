"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from objcrop.whole_file import whole_file

MOST_NAMED = 60  # classes whose names can be read beside a picture


def draw_confusion(confusion: torch.Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw how often each class (rows) was taken for each (columns), as shares of the row.

    Args:
        confusion: (C, C) counts.
        classes: C names.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure((7, 6), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label="share of the class")
    axes.set(xlabel="taken for", ylabel="class")
    if len(classes) <= MOST_NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, fontsize=6, parse_math=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)


def draw_bars(figures: Sequence[float], classes: Sequence[str], says: str, path: Path) -> None:
    """Draw a figure of each class, the highest first.

    Args:
        figures: C numbers from 0 to 1; NaN is left out.
        classes: C names.
        says: what the numbers are.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    known = sorted(((f, name) for f, name in zip(figures, classes, strict=True) if f == f), reverse=True)
    figure = Figure((min(3 + 0.22 * len(known), 16), 4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(known)), [f for f, _ in known])
    axes.set(ylim=(0, 1), ylabel=says)
    names = [name for _, name in known] if len(known) <= MOST_NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
