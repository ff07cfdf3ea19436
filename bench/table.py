"""Results on screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


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


def print_milliseconds(rows: dict[str, dict[str, Any]], what: str, console: Console) -> None:
    """Print one row a contender: median milliseconds, the smallest and largest of the repeats, images per second."""
    table = Table(box=None, pad_edge=False)
    for head in (what, "ms", "(min–max)", "images/s"):
        table.add_column(head, justify="left" if head == what else "right")
    for name, row in rows.items():
        spread = f"({row['ms_min']:.3f}–{row['ms_max']:.3f})"
        table.add_row(name, f"{row['ms']:.3f}", spread, f"{row['images_per_s']:,.0f}")
    console.print(table)
