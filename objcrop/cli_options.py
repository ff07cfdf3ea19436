"""Options that several commands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from objcrop.errors import UsageError

CatalogFile = Annotated[Path, typer.Argument(help="File that `objcrop index` wrote.", metavar="CATALOG")]
BoxesOption = Annotated[Path | None, typer.Option("--boxes", help="File that `objcrop propose` wrote.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Folder of the images, if they moved.")]


def assignments(given: list[str] | None) -> dict[str, Any]:
    """Return OPTION=VALUE pairs, values read as YAML."""
    import yaml

    pairs = {}
    for assignment in given or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set takes OPTION=VALUE, not '{assignment}'.")
        pairs[name] = yaml.safe_load(value)
    return pairs
