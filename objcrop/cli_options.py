"""Options that several commands of the command line share, and the looks at outputs that come before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from objcrop.errors import ObjcropError, UsageError, options_at_hand
from objcrop.whole_file import refuse_unwritable, refuse_unwritable_folder

CatalogFile = Annotated[Path, typer.Argument(help="File that `objcrop index` wrote.", metavar="CATALOG")]
BoxesOption = Annotated[Path | None, typer.Option("--boxes", help="File that `objcrop propose` wrote.")]
RootOption = Annotated[Path | None, typer.Option("--root", help="Folder of the images, if they moved.")]


def writes(*suffixes: str, beside: str | None = None) -> Callable[[Path | None], Path | None]:
    """Return the callback of an option that names an output file: its place is tried as the option is read.

    Args:
        suffixes: those it may have; none for any.
        beside: suffix of a second file that is written beside it.
    """

    def tried(path: Path | None) -> Path | None:
        if path is not None:
            refuse_unwritable(path, suffixes)
            if beside is not None:
                refuse_unwritable(path.with_suffix(beside))
        return path

    return tried


def writes_folder(path: Path) -> Path:
    """Be the callback of an option that names an output folder."""
    refuse_unwritable_folder(path)
    return path


JSON = writes(".json")
TABLE = writes(".arrow", ".parquet")
JsonOption = Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.", callback=JSON)]


SEEDS: Any = {"min": 0, "max": 2**64 - 1}


def note_options(context: typer.Context) -> None:
    """Tell `way_out` the options of the command that is about to run; the callback of every group of commands."""
    group: Any = context.command
    command = group.commands.get(context.invoked_subcommand)
    if command is not None:
        names = (name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))
        options_at_hand.set(frozenset(name for name in names if name.startswith("--")))


def assignments(given: list[str] | None) -> dict[str, Any]:
    """Return OPTION=VALUE pairs, values read as YAML."""
    from objcrop.plain_yaml import read_yaml

    pairs = {}
    for assignment in given or ():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set takes OPTION=VALUE, not '{assignment}'.")
        try:
            pairs[name] = read_yaml(value, f"the value of --set {name}")
        except ObjcropError as error:
            raise UsageError(str(error)) from None
    return pairs
