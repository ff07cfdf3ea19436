"""A run's curves on one picture: what `objcrop plot RUN` draws from metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.whole_file import save_picture

# A panel each, in this order: title, and what is drawn in it where the run has it.
PANELS = (
    ("loss", ("loss",)),
    ("similarity of query and key", ("positive_similarity", "negative_similarity")),
    ("alignment and uniformity", ("alignment", "uniformity")),
    ("embedding standard deviation", ("embedding_std",)),
    ("online probe", ("online_map", "online_top1")),
    ("learning rate", ("lr",)),
    ("images per second", ("images_per_s",)),
    ("share of time waiting for data", ("starvation",)),
)


def plot_run(runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Draw the curves of one run, or of several over each other, over their steps.

    Args:
        runs: run folders.
        output: picture to write, .png, .pdf or .svg.

    Raises:
        ObjcropError: a folder without metrics, or with none yet.
    """
    Figure = from_extra("matplotlib.figure").Figure

    curves = {}
    for run in runs:
        lines = read_metrics(Path(run) / "metrics.jsonl")
        if not lines:
            raise ObjcropError(f"{Path(run) / 'metrics.jsonl'} has no line yet; wait for the run's first report.")
        curves[Path(run).resolve().name] = lines
    panels = [
        (title, held)
        for title, names in PANELS
        if (held := [n for n in names if any(n in line for lines in curves.values() for line in lines)])
    ]
    across = 2
    down = -(-len(panels) // across)
    figure = Figure(figsize=(9, 2.1 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for ax, (title, names) in zip(axes, panels):
        for k, (run_name, lines) in enumerate(curves.items()):
            for name, style in zip(names, ("-", "--")):
                points = [(_drawable(line["step"]), _drawable(line[name])) for line in lines if name in line]
                label = " ".join(
                    ([run_name] if len(curves) > 1 else []) + ([name.split("_")[0]] if len(names) > 1 else [])
                )
                ax.plot(*zip(*points), style, color=f"C{k}", linewidth=1.2, label=label or None)
        ax.set_title(title, fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        if len(names) > 1 or len(curves) > 1:
            ax.legend(frameon=False, fontsize=7)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[max(len(panels) - across, 0) : len(panels)]:
        ax.set_xlabel("step", fontsize=8)
    save_picture(figure, output, dpi=140)


def _drawable(value: float) -> float:
    """Return a number that axes can hold: one near a float's end leaves a gap, as NaN does."""
    return float(value) if abs(value) < 1e300 else float("nan")
