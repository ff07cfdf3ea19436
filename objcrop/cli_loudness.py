"""`--quiet` and `--verbose`: options of every command, and of `objcrop` before it."""

from __future__ import annotations

import functools
import logging
from typing import Annotated, Any

import typer

from objcrop.errors import UsageError
from objcrop.launcher import launched

LEVELS = {"quiet": logging.ERROR, "verbose": logging.INFO}  # of the logger "objcrop"; `objcrop.progress` heeds them


def _louder(context: typer.Context, parameter: Any, given: bool) -> None:
    """Be the callback of both options."""
    if not given:
        return
    if context.meta.setdefault("objcrop.loudness", parameter.name) != parameter.name:
        raise UsageError("--quiet and --verbose exclude each other; leave one out.")
    place = launched()
    if place is None or place.rank == 0 or parameter.name == "quiet":
        logging.getLogger("objcrop").setLevel(LEVELS[parameter.name])


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show results and errors alone.", callback=_louder, expose_value=False)
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Say also what is read, decided and written.", callback=_louder, expose_value=False
    ),
]


@functools.cache
def loudness() -> tuple[Any, ...]:
    """Return the two options as typer makes them of a command."""

    def command(quiet: QuietOption = False, verbose: VerboseOption = False) -> None: ...

    single = typer.Typer(add_completion=False)
    single.command()(command)
    return tuple(typer.main.get_command(single).params)
