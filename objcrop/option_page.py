"""The page of all options, made from where they are declared.

python -m objcrop.option_page docs/options.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.loading import Loading, ViewOptions
from objcrop.option import Option, home_of, options_of
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.training.options import Training, Watched
from objcrop.ssl.training.recipe import Recipe, groups_of
from objcrop.ssl.transfer.by_name import TASKS
from objcrop.ssl.transfer.options import Transfer
from objcrop.whole_file import whole_file

HEAD = """# Options

Made by `python -m objcrop.option_page docs/options.md`. An option has one name: `load_views(NAME=VALUE)` and
`pretrain(…, NAME=VALUE)` in Python, `--NAME VALUE` or `--set NAME=VALUE` on the command line, a key of its group in a
recipe file. One that cannot act beside the others is refused.
"""


def option_page() -> str:
    """Return the page in Markdown."""
    of_views = [each for name, each in options_of(ViewOptions).items() if home_of(ViewOptions, name) is ViewOptions]
    parts = [HEAD]
    parts += _section("Crops", "Of `load_views`, `show`, `stats` and, in a recipe's `crops`, `pretrain`.", _own(Crops))
    parts += _section("Loading", "Of `load_views` and, in a recipe's `loading`, `pretrain`.", _own(Loading))
    parts += _section("Batches", "Of `load_views` alone.", of_views)
    trained = [options_of(Recipe)["method"], *_own(Training)]
    parts += _section("Training", "Of `pretrain`, in a recipe's `training`; the method outside of groups.", trained)
    for name, method in METHODS.items():
        made_of = method.options
        groups = groups_of(made_of, name)
        own = [each for each in options_of(made_of).values() if groups[each.name] == name]
        own = [replace(each, default=made_of.own_defaults.get(each.name, each.default)) for each in own]
        others = {key: value for key, value in made_of.own_defaults.items() if groups[key] != name}
        held = "; ".join(f"`{key}` {_text(value)}" for key, value in others.items())
        says = f"In a recipe's `{name}`." if own else "It has none of its own."
        says += f" Of other options it has defaults of its own: {held}." if held else ""
        parts += _section(f"Method {name}", says, own, included_as=name)
    measured = [each for name, each in options_of(ProbeOptions).items() if name not in options_of(Recipe)]
    says = "Of `probe`, beside `size`, `single_label`, `backend` and `device`."
    parts += _section("Probe", says, measured)
    shared = set(options_of(Watched)) | set(options_of(Loading))
    learnt = [each for name, each in options_of(Transfer).items() if name not in shared]
    says = "Of `transfer`, whatever the task, beside those of loading and what a run writes (`precision`, …)."
    parts += _section("Transfer", says, learnt)
    for name, task in TASKS.items():
        own = [each for key, each in options_of(task.options).items() if key not in options_of(Transfer)]
        parts += _section(f"Task {name}", "Of `transfer`.", own)
    return "\n".join(parts)


def _own(group: type) -> Iterable[Option]:
    return options_of(group).values()


def _section(title: str, says: str, options: Iterable[Option], included_as: str = "") -> list[str]:
    """Return the lines of a section; other pages include the body of one by its name."""
    rows = [f"| {_name(each)} | {_text(each.default)} | {_cell(each.says)} |" for each in options]
    table = ["| option | default | |", "|---|---|---|", *rows] if rows else []
    body = [f"{says}\n", *table]
    if included_as:
        body = [f"<!-- --8<-- [start:{included_as}] -->\n", *body, f"\n<!-- --8<-- [end:{included_as}] -->"]
    return [f"## {title}\n", *body, ""]


def _name(option: Option) -> str:
    flag = f", `--{option.flag}`" if option.flag != option.name else ""
    key = f", `{option.key}` in a recipe" if option.key != option.name else ""
    return f"`{option.name}`{flag}{key}"


def _text(value: object) -> str:
    return "" if value is None else f"`{', '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _cell(says: str) -> str:
    return says.replace("|", "\\|")


if __name__ == "__main__":
    with whole_file(Path(sys.argv[1])) as part:
        part.write_text(option_page(), encoding="utf-8")
