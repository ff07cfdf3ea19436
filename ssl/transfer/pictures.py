"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from objcrop.extras import from_extra
from objcrop.whole_file import whole_file

MOST_NAMED = 60  # classes whose names can be read beside a picture


def draw_confusion(confusion: torch.Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw how often each class (rows) was taken for each (columns), as shares of the row.

    Args:
        confusion: (C, C) counts.
        classes: C names.
        path: PNG to write.
    """
    Figure = from_extra("matplotlib.figure").Figure

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


def draw_precision_recall(precision: npt.NDArray[np.float64], classes: Sequence[str], path: Path) -> None:
    """Draw precision at each recall: the mean over classes at three overlaps, and each class's at an overlap of a half.

    Args:
        precision: float64 (10, 101, C) at overlaps of .5 to .95 and recalls of 0 to 1; NaN for a class without objects.
        classes: C names.
        path: PNG to write.
    """
    colormaps = from_extra("matplotlib").colormaps
    Figure = from_extra("matplotlib.figure").Figure

    recall = np.linspace(0, 1, precision.shape[1])
    known = np.flatnonzero(~np.isnan(precision[0]).any(0))
    figure = Figure((11, 4.5), layout="constrained")
    means, of_each = figure.subplots(1, 2)
    for at, overlap in ((0, ".50"), (5, ".75"), (9, ".95")):
        curve = precision[at][:, known].mean(1) if len(known) else np.zeros(len(recall))
        means.plot(recall, curve, linewidth=2, label=f"overlap {overlap}: {curve.mean():.3f}")
    means.set(title="mean over classes", ylabel="precision")
    means.legend(title="average precision", fontsize=8, title_fontsize=8)
    colours = colormaps["tab20"](np.arange(20))
    of_each.set(title="each class, overlap .50")
    for place, label in enumerate(sorted(known.tolist(), key=lambda label: -precision[0, :, label].mean())):
        curve = precision[0, :, label]
        about = f"{classes[label]}: {curve.mean():.3f}"
        of_each.plot(recall, curve, linewidth=1, color=colours[place % len(colours)], label=about)
    for axes in (means, of_each):
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
    if 0 < len(known) <= MOST_NAMED:
        columns = -(-len(known) // 20)
        legend = of_each.legend(fontsize=6, ncols=columns, loc="upper left", bbox_to_anchor=(1, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)
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
    Figure = from_extra("matplotlib.figure").Figure

    known = sorted(((f, name) for f, name in zip(figures, classes, strict=True) if f == f), reverse=True)
    figure = Figure((min(3 + 0.22 * len(known), 16), 4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(known)), [f for f, _ in known])
    axes.set(ylim=(0, 1), ylabel=says)
    names = [name for _, name in known] if len(known) <= MOST_NAMED else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
