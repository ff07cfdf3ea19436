"""Presets: published settings of a task, a YAML file each, `option: value` lines under its `task`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objcrop.errors import ObjcropError, UsageError, one_of
from objcrop.option import options_of, unknown
from objcrop.plain_yaml import read_yaml
from objcrop.ssl.transfer.options import Transfer
from objcrop.whole_file import read_text

FOLDER = Path(__file__).resolve().parent / "presets"


def preset_names() -> list[str]:
    """Return the names of our presets."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def with_preset(
    preset: str | os.PathLike[str] | None, task: str, of: type[Transfer], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of a preset, those that are given in their place.

    Args:
        preset: a name or a YAML file; None for none.
        task: that the preset must be of.
        of: the task's options.
        options: given ones; "loader" is `backend`, as on the command line. `steps` takes the place of `epochs`, and the
            other way round.

    Raises:
        UsageError: no such preset, it is of another task, or it says what is no option.
        ObjcropError: the file is no YAML mapping.
    """
    by_flag = {each.flag: name for name, each in options_of(of).items()}
    given = {by_flag.get(name, name): value for name, value in options.items() if value is not None}
    if preset is None:
        return given
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{one_of(os.fspath(preset), preset_names(), 'preset')}.yaml"
    said = read_yaml(read_text(path, "preset", "give a YAML file"), str(path))
    if not isinstance(said, dict) or "task" not in said:
        raise ObjcropError(f"{path} must hold `task: NAME` and `option: value` lines.")
    if said.pop("task") != task:
        fit = [name for name in preset_names() if f"task: {task}\n" in (FOLDER / f"{name}.yaml").read_text("utf-8")]
        raise UsageError(f"preset {path.stem} is not of {task}: take one of {', '.join(fit)}.")
    for name in said:
        if name not in options_of(of):
            raise unknown(name, options_of(of), f" of {task}")
    until = {"steps", "epochs"}
    return {name: value for name, value in said.items() if name not in until or not until & given.keys()} | given
