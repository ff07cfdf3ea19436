"""The picture of `stats`: what several ways of cropping look at, side by side.

Above, a row a kind of crop: how its object shares are spread, and CIB's three zones as a stacked bar (the ratios of
CIB Figure 3). CIB Figure 5 sets mean objectness against accuracy after pretraining, and OAC Figure 7 overlap against
accuracy; accuracy is not known here, so their other axis is drawn: below, object share against the crop's area and
against the overlap of the two views.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from objcrop.errors import UsageError
from objcrop.extras import from_extra
from objcrop.objectness import POOR, PRECISE
from objcrop.whole_file import save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZONES = {"poor": "#e0a458", "coarse": "#5b9279", "precise": "#5d7fa8"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d00", "#444444")  # after Okabe and Ito
FAINT = "#777777"
LEAST = 10  # crops or pairs in a bin from which its mean is drawn


def draw_stats(results: Mapping[str, dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw results of `stats` into one picture.

    Args:
        results: by the name to show, from top to bottom.
        path: of the picture; the suffix says the format (PNG, PDF, SVG).

    Raises:
        UsageError: no result.
        ObjcropError: the path cannot be written.
    """
    if not results:
        raise UsageError("draw_stats got no result; pass at least one of `stats`.")
    save_picture(stats_figure(results), path)


def stats_figure(results: Mapping[str, dict[str, Any]]) -> Figure:
    """Return a figure of results of `stats`, by the name to show, from top to bottom.

    A result with a policy is drawn by its views, one without by its boxes.
    """
    Figure = from_extra("matplotlib.figure").Figure

    rows = [
        (f"{name}, {crop}" if result["crops"] else name, COLOURS[i % len(COLOURS)], crop, entry)
        for i, (name, result) in enumerate(results.items())
        for crop, entry in result["objectness"].items()
        if entry["crops"] and (crop != "boxes" or not result["crops"])
    ]
    pairs = [
        (name, COLOURS[i % len(COLOURS)], result["coverage"])
        for i, (name, result) in enumerate(results.items())
        if result["coverage"] is not None
    ]
    height = 1 + 0.55 * len(rows)
    figure = Figure(figsize=(11, height + 4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, 4), hspace=0.04)
    above, below = parts
    spread, bars = above.subplots(1, 2, sharey=True, width_ratios=(3, 2), gridspec_kw={"wspace": 0.06})
    _draw_spread(spread, rows)
    _draw_zones(bars, rows)
    panels = below.subplots(1, 2 if pairs else 1, squeeze=False)[0]
    _draw_by_area(panels[0], rows)
    below.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    if pairs:
        _draw_by_overlap(panels[1], pairs)
    for axes in (spread, bars, *panels):
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (spread, bars):
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _draw_spread(axes: Axes, rows: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    """Draw a histogram a row, coloured by zone, scaled to its own highest bar, with the mean as a line."""
    for place, (_, _, _, entry) in enumerate(reversed(rows)):
        counts = np.array(entry["histogram"], float)
        edges = np.linspace(0, 1, len(counts) + 1)
        zone = [("poor", "coarse", "precise")[int(m > POOR) + int(m > PRECISE)] for m in (edges[1:] + edges[:-1]) / 2]
        axes.bar(
            edges[:-1],
            0.8 * counts / counts.max(),
            edges[1] * 0.92,
            place,
            align="edge",
            color=[ZONES[z] for z in zone],
        )
        axes.plot([0, 1], [place, place], color="#cccccc", linewidth=0.8)
        mean = entry["object_share"]["mean"]
        axes.plot([mean, mean], [place, place + 0.84], color="#111111", linewidth=1.4)
        left = mean > 0.85
        axes.text(
            mean + (-0.012 if left else 0.012), place + 0.84, f"{100 * mean:.0f} %",
            ha="right" if left else "left", va="top", fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.8},
        )  # fmt: skip
    for border in (POOR, PRECISE):
        axes.axvline(border, color=FAINT, linewidth=0.8, linestyle=(0, (4, 4)), zorder=0)
    axes.set_yticks(np.arange(len(rows)) + 0.4, [label for label, *_ in reversed(rows)])
    axes.set(xlim=(0, 1), ylim=(-0.1, len(rows) + 0.1), xlabel="object share of a crop (line: mean)")
    axes.set_title("How much of a crop is object", loc="left", fontsize=11)
    for tick, (_, colour, _, _) in zip(axes.get_yticklabels(), reversed(rows)):
        tick.set_color(colour)
    _percent_ticks(axes, "x")


def _draw_zones(axes: Axes, rows: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    """Draw the shares of poor, coarse and precise crops as stacked bars."""
    for place, (_, _, _, entry) in enumerate(reversed(rows)):
        begin = 0.0
        for zone, colour in ZONES.items():
            share = entry[zone]["mean"]
            axes.barh(place + 0.4, share, 0.6, begin, color=colour)
            if share >= 0.08:
                text = f"{100 * share:.0f}"
                axes.text(begin + share / 2, place + 0.4, text, ha="center", va="center", color="white", fontsize=9)
            begin += share
    names = {"poor": "poor < 20 %", "coarse": "coarse", "precise": "precise > 80 %"}
    for at, (zone, name) in zip((0.0, 0.36, 0.62), names.items()):
        axes.text(at, 1.02, name, color=ZONES[zone], fontweight="bold", fontsize=10, transform=axes.transAxes)
    axes.set(xlim=(0, 1), xlabel="share of crops")
    _percent_ticks(axes, "x")


def _draw_by_area(axes: Axes, rows: list[tuple[str, str, str, dict[str, Any]]]) -> None:
    """Draw the mean object share of crops of each area; the area on an axis of roots, as an object's side counts."""
    for label, colour, crop, entry in rows:
        _draw_line(axes, entry["by_area"], "object_share", label, colour, crop == "view 2", np.sqrt)
    ticks = np.array([0, 0.02, 0.1, 0.25, 0.5, 0.75, 1])
    axes.set_xticks(np.sqrt(ticks), [f"{100 * t:.0f} %" for t in ticks])
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="area of the crop / area of the image", ylabel="mean object share")
    axes.set_title("Object share by area of the crop", loc="left", fontsize=11)
    _percent_ticks(axes, "y")


def _draw_by_overlap(axes: Axes, pairs: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Draw the mean object share of the intersection for pairs of each IoU, with a cross at each policy's means."""
    for name, colour, coverage in pairs:
        _draw_line(axes, coverage["by_iou"], "share", name, colour, False, np.asarray)
        x, y = coverage["iou"], coverage["intersection_share"]
        if y["mean"] is not None:
            spans = [[[v["mean"] - (v["low"] or v["mean"])], [(v["high"] or v["mean"]) - v["mean"]]] for v in (x, y)]
            axes.errorbar(
                x["mean"], y["mean"], spans[1], spans[0], "D", color=colour, markeredgecolor="white", zorder=5
            )
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="IoU of the two views (diamond: mean of the policy)")
    axes.set_title("Object share of what both views see", loc="left", fontsize=11)
    _percent_ticks(axes, "x")
    _percent_ticks(axes, "y")


def _draw_line(
    axes: Axes, binned: dict[str, list], value: str, label: str, colour: str, dashed: bool, scale: Any
) -> None:
    """Draw the means of bins that hold enough, the dots the larger the more they hold."""
    edges, counts = scale(binned["edges"]), np.array(binned["count"])
    enough = counts >= LEAST
    middle = ((edges[1:] + edges[:-1]) / 2)[enough]
    means = np.array(binned[value], float)[enough]
    axes.plot(middle, means, "--" if dashed else "-", color=colour, linewidth=1.3, label=label)
    axes.scatter(middle, means, 6 + 90 * counts[enough] / counts.sum(), color=colour, alpha=0.8, linewidth=0)


def _percent_ticks(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1], [f"{v} %" for v in (0, 20, 40, 60, 80, 100)])
