"""Options that several commands of the command line share, and the looks at outputs that come before any work."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import typer.core
import typer.main

from objcrop.cli_loudness import loudness
from objcrop.errors import ObjcropError, UsageError, one_of, options_at_hand
from objcrop.extras import require
from objcrop.option import Option, Options, home_of, in_words, options_of
from objcrop.option_value import flag, offered
from objcrop.whole_file import refuse_unwritable, refuse_unwritable_folder

# Text, since it may be an address, which a Path would spoil.
CatalogFile = Annotated[
    str,
    typer.Argument(help="File that `objcrop index` wrote, or a folder of photos or its address.", metavar="CATALOG"),
]
BoxesOption = Annotated[Path | None, typer.Option("--boxes", help="File that `objcrop propose` wrote.")]


def offers(words: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what tells the shell the words that an option's value may go on to; they are asked for then."""
    return lambda incomplete: [word for word in words() if word.startswith(incomplete)]


def named_recipes() -> list[str]:
    """Return the names of the recipes that come along."""
    return sorted(file.stem for file in (Path(__file__).parent / "ssl" / "recipes").glob("*.yaml"))


RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="A YAML file, or a name in ssl/recipes.", autocompletion=offers(named_recipes)),
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Work on a Ray cluster: HOST:PORT of its head, auto, or local."),
]
RESUMES: dict[str | None, Any] = {None: False, "last": True, "auto": "auto"}
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="[last|auto]",
        help="Go on from last.pt; auto: where there is one, else begin (for torchrun --max-restarts, requeued jobs).",
        callback=lambda given: given if given is None else one_of(given, [*RESUMES][1:], "--resume"),
    ),
]
RootOption = Annotated[
    str | None, typer.Option("--root", help="Folder of the images, a path or an address, if they moved.")
]


def crops_alone() -> type[Options]:
    """Return the options of crops."""
    from objcrop.dali_pipes.crops import Crops

    return Crops


def view_options() -> type[Options]:
    """Return the options of `load_views`."""
    from objcrop.dali_pipes.loading import ViewOptions

    return ViewOptions


def probe_options() -> type[Options]:
    """Return the options of a probe."""
    from objcrop.ssl.evaluation.probe_options import ProbeOptions

    return ProbeOptions


def every_recipe() -> type[Options]:
    """Return the options of all methods' recipes, put together."""
    from objcrop.ssl.methods.recipes import RECIPES

    found = RECIPES.values()
    last = tuple(each for each in found if not any(issubclass(other, each) for other in found if other is not each))
    return dataclass(frozen=True)(type("EveryRecipe", last, {}))  # of a recipe and one made from it the latter says all


def of_recipe(recipe: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of crops that act in a recipe, those that were given in their place; without one, these."""
    if recipe is None:
        return options
    from objcrop.ssl.training.recipe import acting, resolve

    made = acting(resolve(recipe, options))
    return {name: value for name, value in made.items() if name in options_of(crops_alone()) or name in options}


def writes(*suffixes: str, beside: str | None = None) -> Callable[[Path | None], Path | None]:
    """Return the callback of an option that names an output file: its place is tried as the option is read.

    Args:
        suffixes: those it may have; none for any.
        beside: suffix of a second file that is written beside it; a PNG is matplotlib's.
    """

    def tried(path: Path | None) -> Path | None:
        if path is not None:
            refuse_unwritable(path, suffixes)
            if beside is not None:
                refuse_unwritable(path.with_suffix(beside))
            if beside == ".png":
                require("matplotlib")
        return path

    return tried


def writes_folder(path: Path | None) -> Path | None:
    """Be the callback of an option that names an output folder."""
    if path is not None:
        refuse_unwritable_folder(path)
    return path


JSON = writes(".json")
TABLE = writes(".arrow", ".parquet")
JsonOption = Annotated[Path | None, typer.Option("--output", "-o", help="JSON to write.", callback=JSON)]


SEEDS: Any = {"min": 0, "max": 2**64 - 1}


def takes(
    group: Callable[[], type[Options]], only: Callable[[], Collection[str]] = tuple
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of a group as flags; it gets those that were given as `options`, by name.

    Args:
        group: returns the group. It is asked when the command is called, and imports it then.
        only: returns those of its options that the command has; none stands for all.
    """

    def declared(command: Callable[..., None]) -> Callable[..., None]:
        def derived() -> Callable[..., None]:
            made_of = group()
            some = only()
            known = {n: o for n, o in options_of(made_of).items() if n in some or not some}
            hints = get_type_hints(command, include_extras=True)
            parameters = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
            own = [p.replace(annotation=hints[p.name]) for p in parameters]
            flags = {name: _flag(option, home_of(made_of, name)) for name, option in known.items()}

            @functools.wraps(command)
            def run(**given: Any) -> None:
                options = {name: given.pop(name) for name in known}
                command(**given, options={name: value for name, value in options.items() if value is not None})

            keyword = inspect.Parameter.KEYWORD_ONLY
            more = [inspect.Parameter(name, keyword, default=None, annotation=of) for name, of in flags.items()]
            run.__annotations__ = {**{p.name: p.annotation for p in own}, **flags}
            run.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
            return run

        @functools.wraps(command)
        def short() -> None:
            """Stand in for the command until it is looked up."""

        del short.__wrapped__  # type: ignore[attr-defined]
        short.__annotations__ = {}
        short.derived = derived  # type: ignore[attr-defined]
        return short

    return declared


class _Command(typer.core.TyperCommand):
    """A command in which --resume may stand alone: typer has no option whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the words after the command's name."""
        following = [*args[1:], ""]
        alone = [word == "--resume" and after[:1] in ("", "-") for word, after in zip(args, following)]
        return super().parse_args(ctx, [word + "=last" * is_alone for word, is_alone in zip(args, alone)])


class Commands(typer.core.TyperGroup):
    """Commands, of which those that `takes` declares get their flags when they are looked up, not when they are listed.

    So a list of commands imports nothing of what they do.
    """

    _listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name."""
        command = super().get_command(ctx, cmd_name)
        derived = getattr(getattr(command, "callback", None), "derived", None)
        if command is None or self._listing:
            return command
        if derived is not None:
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            single.command(cmd_name, cls=_Command)(derived())
            command = self.commands[cmd_name] = typer.main.get_command(single)
        command.params += [option for option in loudness() if option not in command.params]
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the group."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return the commands and options that words for the shell may go on with."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False


def _flag(option: Option, home: type[Options]) -> Any:
    """Return an option as typer takes it; its own kind reads the value."""
    name = "--" + option.flag.replace("_", "-")
    says: Any = {"help": f"{in_words(option)}.", "rich_help_panel": f"Options of {home.group or 'the method'}"}
    if option.kind is flag:
        return Annotated[bool | None, typer.Option(f"{name}/--no-{name[2:]}", show_default=False, **says)]
    says["autocompletion"] = offers(lambda: offered(option.kind))
    return Annotated[str | None, typer.Option(name, metavar="VALUE", show_default=False, **says)]


def note_options(context: typer.Context) -> None:
    """Tell `way_out` the options of the command that is about to run; the callback of every group of commands.

    A group that is called alone answers with its help.
    """
    group: Any = context.command
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    command = group.get_command(context, context.invoked_subcommand)
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
