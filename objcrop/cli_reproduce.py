"""The command that makes a table of the papers anew: `objcrop reproduce`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from objcrop.cli_options import assignments, writes_folder
from objcrop.errors import ObjcropError, UsageError
from objcrop.progress import quiet

console = Console(soft_wrap=True)


def reproduce(
    name: Annotated[str, typer.Argument(help="oac-table10, cib-table1 …; another word lists them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of all tables and their stages.", callback=writes_folder)
    ],
    data: Annotated[
        list[str] | None, typer.Option(metavar="NAME=CATALOG", help="Data by the names in ssl/recipes/README.md.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="WORDS", help="Only rows whose name holds them.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="torchvision's state dict of ImageNet, for rows that begin with it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of all pretraining runs.")
    ] = None,
    set_transfer: Annotated[
        list[str] | None,
        typer.Option("--set-transfer", metavar="OPTION=VALUE", help="An option of all transfers, sync_bn=true say."),
    ] = None,
    torchrun: Annotated[
        str, typer.Option(metavar="WORDS", help="Train under torchrun with these words, '--nproc-per-node 8' say.")
    ] = "",
    tiny: Annotated[bool, typer.Option("--tiny", help="All stages in miniature, on drawn scenes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and what is done.")] = False,
) -> None:
    """Make a table of the papers anew: boxes, pretraining, transfer, and our numbers beside theirs; resumable."""
    from objcrop.ssl.reproduction.reproduce import reproduce as run_reproduction

    given = {}
    for assignment in data or ():
        of, equals, catalog = assignment.partition("=")
        if not equals:
            raise UsageError(f"--data takes NAME=CATALOG, not '{assignment}'.")
        given[of] = catalog
    silent = quiet() and not dry_run
    result = run_reproduction(
        name,
        given,
        output,
        only=only or (),
        pretraining=assignments(set_),
        transfer=assignments(set_transfer),
        weights=None if weights is None else str(weights),
        torchrun=shlex.split(torchrun),
        tiny=tiny,
        dry_run=dry_run,
        say=lambda line: None if silent else console.print(line, markup=False, highlight=False),
    )
    if dry_run:
        return
    console.print(f"→ {output / name}.json, .md, .html", highlight=False)
    failed = [row["row"] for row in result["rows"] if row["state"] == "failed"]
    if failed:
        raise ObjcropError(
            f"{len(failed)} of {len(result['rows'])} rows failed ({'; '.join(failed)}): {output / name}.md says why, "
            "and the same command tries them again."
        )
