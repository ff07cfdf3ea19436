"""The page of all commands, made from the commands themselves.

python -m objcrop.command_page docs/commands.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from objcrop.cli import app
from objcrop.whole_file import whole_file

HEAD = """# Commands

Made by `python -m objcrop.command_page docs/commands.md`. Each command has `--help`; an error is one sentence that says
what to do. Exit codes: 0 done, 1 failed, 2 wrong use. The line of a command has all that must be given.
"""


def command_page() -> str:
    """Return the page in Markdown."""
    return "\n".join([HEAD, *(_section(name, command) for name, command in commands())])


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, by the words that call it."""
    yield from _below("objcrop", typer.main.get_command(app))


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each in command.list_commands(None):
        yield from _below(f"{name} {each}", command.get_command(None, each))


def _section(name: str, command: Any) -> str:
    given = [each for each in command.params if each.param_type_name == "argument"]
    own = [each for each in command.params if each not in given and not _group(each) and each.name != "help"]
    asked = [f"{each.opts[0]} {each.name.upper()}" for each in own if each.required]
    words = " ".join([name, *map(_called, given), *asked])
    parts = [f"## {name}\n", f"`{words}`\n", f"{_text(command.help)}\n"]
    if given or own:
        rows = [f"| {_names(each)} | {_default(each)} | {_cell(each.help)} |" for each in (*given, *own)]
        parts += ["| option | default | |", "|---|---|---|", *rows, ""]
    groups: dict[str, list[str]] = {}
    for each in command.params:
        groups.setdefault(_group(each), []).append(f"`{each.opts[0]}`")
    for group, names in groups.items():
        if group:
            parts += [f"[{group}](options.md): {', '.join(names)}\n"]
    return "\n".join(parts)


def _group(parameter: Any) -> str:
    """Return the heading of options that are derived (`cli_options.takes`), which the page of options explains."""
    return getattr(parameter, "rich_help_panel", None) or ""


def _called(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("{}[]")
    return f"[{name}]" if not argument.required else name + (" …" if argument.nargs == -1 else "")


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_called(parameter)}`"
    names = [*parameter.opts, *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _default(parameter: Any) -> str:
    value = parameter.default
    return "" if value in (None, False, (), []) or callable(value) else f"`{value}`"


def _cell(says: str | None) -> str:
    return " ".join((says or "").split()).replace("|", "\\|")


def _text(says: str) -> str:
    """Return a docstring's paragraphs as Markdown; a terminal's help wraps some by hand."""
    return "\n\n".join(" ".join(part.replace("\b", "").split()) for part in re.split(r"\n\s*\n", says))


if __name__ == "__main__":
    with whole_file(Path(sys.argv[1])) as part:
        part.write_text(command_page(), encoding="utf-8")
