"""Results on screen."""

from __future__ import annotations

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_table(rows: dict[str, dict[str, Any]], what: str, console: Console) -> None:
    """Print one row a contender: medians, with the smallest and largest of the repeats."""
    table = Table(box=None, pad_edge=False)
    for head in (what, "images/s", "(min–max)", "images/CPU-s", "(min–max)"):
        table.add_column(head, justify="left" if head == what else "right")
    for name, row in rows.items():
        cells = []
        for unit in ("images_per_s", "images_per_cpu_s"):
            cells += [f"{row[unit]:,.0f}", f"({row[unit + '_min']:,.0f}–{row[unit + '_max']:,.0f})"]
        table.add_row(name, *cells)
    console.print(table)


def print_loaders(rows: dict[str, dict[str, Any]], what: str, console: Console) -> None:
    """Print one row a loader: medians, with the smallest and largest of the repeats, and what it costs."""
    columns = {"cpu_s_per_1000_images": "CPU s/1,000", "start_s": "start, s", "memory_mib": "MiB"}
    columns |= {"gpu_memory_mib": "GPU MiB", "sameness": "checks"}
    shown = [key for key in columns if any(key in row for row in rows.values())]
    table = Table(box=None, pad_edge=False)
    for head in (what, "images/s", "(min–max)", *(columns[key] for key in shown)):
        table.add_column(head, justify="left" if head == what else "right", no_wrap=True)
    for name, row in rows.items():
        spread = f"({row['images_per_s_min']:,.0f}–{row['images_per_s_max']:,.0f})"
        further = [_cell(key, row[key]) if key in row else "" for key in shown]
        table.add_row(name, f"{row['images_per_s']:,.0f}", spread, *further)
    console.print(table)
    for name, row in rows.items():
        if line := _not_the_same(row.get("sameness", {})):
            console.print(f"{name}: {line}.", highlight=False)


def _not_the_same(sameness: dict[str, Any]) -> str:
    if "error" in sameness:
        return f"could not be audited ({sameness['error'].rstrip('.')})"
    whats = ("failed", "fails"), ("cannot_tell", "cannot tell")
    return "; ".join(f"{says} {', '.join(sameness[what])}" for what, says in whats if sameness.get(what))


def _cell(key: str, value: Any) -> str:
    if key == "sameness":
        return "none" if "error" in value else f"{value['passed']} of {value['checks']}"
    return f"{value:,.{0 if key.endswith('mib') else 2}f}"


def print_sources(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one row a source: its speed and the share of a folder's, its processor time and the share in that."""
    table = Table(box=None, pad_edge=False)
    for head in ("source", "images/s", "(min–max)", "share", "CPU ms/image", "share"):
        table.add_column(head, justify="left" if head == "source" else "right")
    for name, row in rows.items():
        spread = f"({row['images_per_s_min']:,.0f}–{row['images_per_s_max']:,.0f})"
        shares = [f"{row[key]:.0%}" for key in ("share_of_folder", "cpu_share_of_folder")]
        table.add_row(
            name, f"{row['images_per_s']:,.0f}", spread, shares[0], f"{row['cpu_ms_per_image']:.2f}", shares[1]
        )
    console.print(table)


def print_stages(result: dict[str, Any], console: Console) -> None:
    """Print one row a stage: what it adds, and the chain that ends with it."""
    table = Table(box=None, pad_edge=False)
    for head in ("stage", "CPU ms/image", "so far", "images/s so far"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for name, row in result["chains"].items():
        so_far = f"{1000 / row['images_per_cpu_s']:.3f}"
        table.add_row(name, f"{result['stages'][name]:.3f}", so_far, f"{row['images_per_s']:,.0f}")
    console.print(table)


def print_figures(figures: dict[str, dict[str, float]], console: Console) -> None:
    """Print one row a figure: median, smallest and largest."""
    table = Table(box=None, pad_edge=False)
    for head in ("figure", "median", "(min–max)"):
        table.add_column(head, justify="left" if head == "figure" else "right")
    for name, value in figures.items():
        table.add_row(name, f"{value['median']:,}", f"({value['min']:,}–{value['max']:,})")
    console.print(table)


def print_milliseconds(rows: dict[str, dict[str, Any]], what: str, console: Console) -> None:
    """Print one row a contender: median milliseconds, the smallest and largest of the repeats, images per second."""
    table = Table(box=None, pad_edge=False)
    for head in (what, "ms", "(min–max)", "images/s"):
        table.add_column(head, justify="left" if head == what else "right")
    for name, row in rows.items():
        spread = f"({row['ms_min']:.3f}–{row['ms_max']:.3f})"
        table.add_row(name, f"{row['ms']:.3f}", spread, f"{row['images_per_s']:,.0f}")
    console.print(table)


def print_tried(result: dict[str, Any], console: Console) -> None:
    """Print images per second and GPU memory at each value of each option, the best one marked, and what died."""
    on_gpu = result["device"] == "cuda"
    table = Table(box=None, pad_edge=False)
    for head in ("option", "value", "images/s", "(min–max)", *(["GPU MiB"] if on_gpu else []), ""):
        table.add_column(head, justify="left" if head in ("option", "value", "") else "right")
    for name, trials in result["tried"].items():
        for value, row in trials.items():
            memory = [f"{row['gpu_memory_mib']:,}"] if on_gpu else []
            best = "←" if value == str(result["best"][name]) else row["trouble"]
            rates = row["images_per_s"]
            shown = (
                [f"{statistics.median(rates):,.0f}", f"({min(rates):,.0f}–{max(rates):,.0f})"] if rates else ["", ""]
            )
            table.add_row(name, value, *shown, *memory, best)
    console.print(table)


def print_checks(checks: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one row a check: its verdict and what that means."""
    table = Table(box=None, pad_edge=False)
    for head in ("check", "verdict", "what was seen"):
        table.add_column(head, no_wrap=head != "what was seen")
    colours = {"passed": "green", "failed": "red", "cannot tell": "yellow"}
    for name, check in checks.items():
        table.add_row(name, Text(check["verdict"], colours[check["verdict"]]), Text(check["sentence"]))
    console.print(table)


def print_steps(summary: dict[str, Any], console: Console) -> None:
    """Print one row a step: how it ended and what came of it; and the names of those that are left."""
    table = Table(box=None, pad_edge=False)
    for head in ("step", "state", "seconds", "what came of it"):
        table.add_column(head, justify="right" if head == "seconds" else "left")
    for name, row in summary["steps"].items():
        said = Text("\n".join([*filter(None, [row["why"]]), *row["verdict"]]))
        table.add_row(name, row["state"], f"{row['seconds']:.0f}", said)
    console.print(table)
    if summary["left"]:
        console.print(f"Left for the next call: {', '.join(summary['left'])}.", highlight=False)
