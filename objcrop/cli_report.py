"""`objcrop report`: what came out, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from objcrop.cli_options import writes

console = Console(soft_wrap=True)


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Folders of pretrain, transfer or sweep, JSON of probe, stats, bench or doctor."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML page to write.", callback=writes(".html"))],
) -> None:
    """Put runs, probes, transfers, sweeps, stats and benches on one page, side by side."""
    from objcrop.report import report as write_report

    write_report(paths, output)
    console.print(f"→ {output}", highlight=False)
