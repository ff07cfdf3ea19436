"""A run's curves on one picture: what `objcrop plot RUN` draws from metrics.jsonl."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.whole_file import save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
STYLES: tuple[Literal["-", "--"], ...] = ("-", "--")


def plot_run(runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Draw the curves of one run, or of several over each other, into a picture.

    Args:
        runs: run folders.
        output: picture to write, .png, .pdf or .svg.

    Raises:
        ObjcropError: a folder without metrics, or with none yet.
    """
    curves = {}
    for run, name in zip(runs, names_of(runs)):
        curves[name] = read_metrics(Path(run) / "metrics.jsonl")
        if not curves[name]:
            raise ObjcropError(f"{Path(run) / 'metrics.jsonl'} has no line yet; wait for the run's first report.")
    save_picture(curves_figure(curves), output, dpi=140)


def names_of(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the last words of paths as names, with as many folders before them as it takes to tell them apart."""
    whole, words = [Path(path).resolve() for path in paths], 1
    while len({path.parts[-words:] for path in whole}) < len(set(whole)):
        words += 1
    return [os.path.join(*path.parts[-words:]) for path in whole]


def curves_figure(curves: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Return a figure of the curves of runs over their steps; `curves` are lines of metrics by the run's name."""
    Figure, Line2D = from_extra("matplotlib.figure").Figure, from_extra("matplotlib.lines").Line2D

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
        for k, lines in enumerate(curves.values()):
            for name, style in zip(names, STYLES):
                points = [(_drawable(line["step"]), _drawable(line[name])) for line in lines if name in line]
                ax.plot(*zip(*points), style, color=f"C{k % 10}", linewidth=1.2)
        ax.set_title(title, fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            keys = [Line2D([], [], color="C0" if len(curves) == 1 else "black", linestyle=style) for style in STYLES]
            ax.legend(keys, [name.split("_")[0] for name in names], frameon=False, fontsize=7)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[max(len(panels) - across, 0) : len(panels)]:
        ax.set_xlabel("step", fontsize=8)
    if len(curves) > 1:
        keys = [Line2D([], [], color=f"C{k % 10}") for k in range(len(curves))]
        legend = figure.legend(keys, list(curves), frameon=False, fontsize=8, loc="outside lower left", ncols=2)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _drawable(value: float) -> float:
    """Return a number that axes can hold: one near a float's end leaves a gap, as NaN does."""
    return float(value) if abs(value) < 1e300 else float("nan")
