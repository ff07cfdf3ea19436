"""How the command line ends: every error becomes one sentence on standard error and an exit code, here alone.

0 done, 1 failed, 2 wrong use, 130 interrupted. A traceback is a fault of objcrop's own.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from contextvars import copy_context
from typing import Any

import typer
from rich.console import Console

from objcrop.errors import ObjcropError, in_a_sentence
from objcrop.extras import missing_package
from objcrop.progress import duration

COMPLETES = "_OBJCROP_COMPLETE"  # set by the shell where it asks how a line may go on


def run(app: typer.Typer, words: list[str]) -> None:
    """Run a command line to its end.

    Args:
        app: the commands.
        words: what was typed after `objcrop`.

    Raises:
        SystemExit: it failed, was wrong, or was answered with help.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[_Said()])
    log, began = logging.getLogger("objcrop"), time.monotonic()
    before = log.level
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name or a sign that the terminal cannot show is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        copy_context().run(_invoke, app, words)  # what it notes of the command ends with the command
        sys.stdout.flush()
        log.info("Done in %s.", duration(time.monotonic() - began))
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_listens():
            sys.exit(1)
        sentence, code = _answer(error)
        if sentence:
            sentence = " ".join(line.strip() for line in sentence.splitlines())  # one line, whatever it quotes
            say(f"objcrop: {sentence}", "red")
        sys.exit(code)
    finally:
        log.setLevel(before)


def say(line: str, style: str) -> None:
    """Print a line on standard error, above a bar that is there; in colour on a terminal (unless NO_COLOR is set)."""
    console = Console(stderr=True, soft_wrap=True)
    with console.capture() as said:
        console.print(line, style=style, markup=False, highlight=False)
    sys.stderr.write(said.get())


class _Said(logging.Handler):
    """What is logged, as a reader meets it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            say(self.format(record), "yellow" if record.levelno >= logging.WARNING else "dim")
        except Exception:
            self.handleError(record)


def _invoke(app: typer.Typer, words: list[str]) -> None:
    command = typer.main.get_command(app)
    if os.environ.get(COMPLETES):
        command.main(list(words), "objcrop", COMPLETES)  # answers the shell, and ends
    # Not main(): it would answer a broken pipe itself, whichever pipe it was.
    with (
        warnings.catch_warnings(),
        command.make_context("objcrop", list(words)) as context,
    ):
        # Pillow's remarks on files that it reads all the same; of those that it does not, objcrop says which and why.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        context.command.invoke(context)


def _answer(error: Any) -> tuple[str, int]:
    """Return what to say of an error and the exit code; raises the error again where it is a fault of objcrop's own."""
    error = missing_package(error) or error
    if isinstance(error, ObjcropError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):
        # Wrong options are click's own errors; which click that is depends on typer's version.
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help, which is on the screen
            return "", 2
        command = error.ctx.command_path if getattr(error, "ctx", None) else "objcrop"
        said = error.format_message()
        return f"{said}{'' if said.endswith(('.', '?')) else '.'} See `{command} --help`.", 2
    sentence = in_a_sentence(error)
    if sentence is None:
        raise error
    return sentence, 1


def _nobody_listens() -> bool:
    """Whether standard output is a pipe that nobody reads any more (`objcrop … | head`); then nothing more is said."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
