"""Results on a page: those of one bench share their tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from objcrop.page import Html, bullets, column_each, figure, folded, heading, listing, picture, row_each

Result = Mapping[str, Any]
NOT_SHOWN = ("machine", "verdict", "turns")  # shown elsewhere; what figures are made of


def results_on_page(results: Mapping[str, Result], files: Mapping[str, Path]) -> list[Html]:
    """Return pieces of a page (`objcrop.page`).

    Args:
        results: what `write_result` wrote, by the name to show.
        files: where it lies, by the same names; a PNG beside it is shown.
    """
    benches: dict[str, dict[str, Result]] = {}
    for name, result in results.items():
        benches.setdefault(bench_of(result), {})[name] = result
    return [part for bench, group in benches.items() for part in _bench(bench, group, files)]


def bench_of(result: Result) -> str:
    """Return the command that made a result, "bench loader" say."""
    words = str(result["machine"].get("command", "")).split()[1:]
    return " ".join(words[: 1 + (words[:1] == ["bench"])]) or "bench"


def _bench(bench: str, group: Mapping[str, Result], files: Mapping[str, Path]) -> list[Html]:
    parts: list[Html] = [heading(bench.capitalize(), 3)]
    said = [(name, line) for name, result in group.items() for line in result.get("verdict", ())]
    parts += [bullets(f"{name}: {line}" if len(group) > 1 else line for name, line in said)] if said else []
    for title in dict.fromkeys(key for result in group.values() for key in result if key not in NOT_SHOWN):
        held = {name: result[title] for name, result in group.items() if result.get(title)}
        if held and all(isinstance(value, dict) for value in held.values()):
            parts.append(_side_by_side(_words(title), held))
        elif held and all(_is_rows(value) for value in held.values()):
            parts += [heading(_words(title), 4), *(row_each([_row(row) for row in value]) for value in held.values())]
    for name in group:
        beside = files[name].with_suffix(".png")
        if beside.is_file():
            parts.append(picture(beside.read_bytes(), f"picture of {name}"))
    about = [_about(result) for result in group.values()]
    commands = [str(result["machine"].get("command", "")) for result in group.values()]
    parts.append(folded("Machine, options and command", column_each([*group], about), listing(commands)))
    return parts


def _about(result: Result) -> dict[str, Any]:
    """Return the machine, and what a result says of itself in a word or number."""
    machine = result["machine"]
    held = {name: machine.get(name) for name in ("cpu", "cores", "gpu", "python", "commit")}
    held |= machine.get("versions") or {}
    plain = {name: value for name, value in result.items() if name != "verdict" and not isinstance(value, dict)}
    return held | {_words(name): _cell(value) for name, value in plain.items() if not _is_rows(value)}


def _side_by_side(title: str, held: Mapping[str, Mapping[str, Any]]) -> Html:
    """Return a table of one mapping of each file: a row each of its entries, or of one number each a column a file."""
    keys = dict.fromkeys(key for entries in held.values() for key in entries)
    if not all(_is_entry(entry) for entries in held.values() for entry in entries.values()):
        cells = [{_words(key): _cell(value) for key, value in entries.items()} for entries in held.values()]
        return column_each([*held] if len(held) > 1 else [""], cells, title)
    rows = []
    for key in keys:
        for name, entries in held.items():
            if key in entries:
                rows.append({title: key, **({"file": name} if len(held) > 1 else {}), **_row(entries[key])})
    return row_each(rows)


def _is_entry(value: Any) -> bool:
    """Whether a value is a row of figures, and not one figure with what it lies between."""
    return isinstance(value, dict) and not set(value) <= {"median", "min", "max"}


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return cells by head: a figure with its least and greatest in brackets, what is nested by both names."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        base = name.removesuffix("_min").removesuffix("_max")
        if (base != name and base in row) or name == "turns":  # of which the figures are made
            continue
        if f"{name}_min" in row and f"{name}_max" in row:
            value = {"median": value, "min": row[f"{name}_min"], "max": row[f"{name}_max"]}
        if _is_rows(value):  # of seeds, say
            value = {key: [each.get(key) for each in value] for key in value[0]}
        if _is_entry(value):
            cells |= {f"{_words(name)} {key}": _cell(below) for key, below in value.items()}
        else:
            cells[_words(name)] = _cell(value)
    return cells


def _cell(value: Any) -> Any:
    """Return a value for a cell; of several numbers the median, the least and the greatest."""
    if isinstance(value, list) and len(value) > 1 and all(type(each) in (int, float) for each in value):
        value = {"median": statistics.median(value), "min": min(value), "max": max(value)}
    if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
        return f"{figure(value['median'])} ({figure(value['min'])}–{figure(value['max'])})"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(below)}" for key, below in value.items())
    return figure(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
