"""One page of what came out: runs, probes, transfers, sweeps, stats and benches side by side.

    objcrop report runs/a runs/b probe_a.json probe_b.json stats.json -o report.html

What a path holds is seen by what lies in it. Things of one kind share a table, in the order in which they were given.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from objcrop import __version__
from objcrop.errors import ObjcropError, UsageError, printable
from objcrop.page import (
    Html,
    column_each,
    drawn,
    folded,
    heading,
    link,
    listing,
    page,
    paragraph,
    picture,
    row_each,
    together,
)
from objcrop.whole_file import read_text, whole_file

TAKES = (
    "give folders of `objcrop pretrain`, `objcrop transfer` or `objcrop sweep`, or JSON of `objcrop probe`, "
    "`objcrop stats`, `objcrop bench` or `objcrop doctor`"
)


class Shown(NamedTuple):
    """A thing on the page.

    Attributes:
        name: the last words of its path.
        path: its folder; of stats and benches the file.
        content: what its JSON holds; of a run the lines of its metrics.
    """

    name: str
    path: Path
    content: Any


def report(paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Write the page.

    Args:
        paths: run folders, sweeps' folders, and JSON files of probes, stats and benches.
        output: HTML file to write.

    Raises:
        UsageError: no path, or one that holds none of these.
        ObjcropError: a file that cannot be read.
    """
    from objcrop.ssl.training.plot_run import names_of

    found: dict[str, list[Shown]] = {kind: [] for kind in SECTIONS}
    given = list(dict.fromkeys(map(Path, paths)))
    for path, name in zip(given, names_of(given)):
        kind, file, content = recognised(path)
        name = printable(name.removesuffix(".json"))
        found[kind].append(Shown(name, file if kind in ("Stats", "Benches") else file.parent, content))
    there = {kind: shown for kind, shown in found.items() if shown}
    if not there:
        raise UsageError(f"there is nothing to report: {TAKES}.")
    parts: list[Html] = []
    for kind, shown in there.items():
        try:
            parts += [heading(kind, name=kind.lower()), *SECTIONS[kind](shown)]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            names = ", ".join(each.name for each in shown)
            raise ObjcropError(f"{names}: not as objcrop writes it ({error!r}); make it anew.") from error
    if len(there) > 1:
        links = [link(f"{kind} ({len(shown)})", kind.lower()) for kind, shown in there.items()]
        parts.insert(0, paragraph(together(links)))
    parts.append(folded(f"Made by objcrop {__version__} of", listing(printable(os.fspath(path)) for path in given)))
    with whole_file(output) as part:
        part.write_text(page("objcrop report", *parts), encoding="utf-8")


def recognised(path: Path) -> tuple[str, Path, Any]:
    """Return what a path is, a name in `SECTIONS`, the file that says it, and what that holds.

    Raises:
        UsageError: none of these.
        ObjcropError: it is missing, or cannot be read.
    """
    from objcrop.ssl.training.run_folder import read_metrics

    unknown = UsageError(f"{path} is nothing that a report shows: {TAKES}.")
    if path.is_dir():
        inside = next((name for name in FOLDERS if (path / name).exists()), None)
        if inside is None:
            raise unknown
        path = path / inside
    if path.name == METRICS:
        return "Runs", path, read_metrics(path)
    if path.suffix != ".json":
        if path.exists():
            raise unknown
        raise ObjcropError(f"{path} is not there; {TAKES}.")
    try:
        content = json.loads(read_text(path, "file", TAKES))
    except (ValueError, RecursionError) as error:
        raise ObjcropError(f"{path} is no JSON ({error}); make it anew.") from None
    for kind, names in KEYS.items() if isinstance(content, dict) else ():
        if names <= set(content):
            return kind, path, content
    raise unknown


# ---- runs


def _runs(shown: list[Shown]) -> list[Html]:
    from objcrop.ssl.training.plot_run import curves_figure

    names, options = [each.name for each in shown], [_options(each.path) for each in shown]
    curves = {each.name: each.content for each in shown if each.content}
    parts: list[Html] = [row_each([_run(each, of) for each, of in zip(shown, options)])]
    if curves:
        parts.append(drawn(curves_figure(curves), f"curves of {', '.join(curves)}"))
    known = dict.fromkeys(name for of in options for name in of)
    differ = [name for name in known if len({json.dumps(of.get(name), default=str) for of in options}) > 1]
    if differ:
        some = [{name: of.get(name) for name in differ} for of in options]
        parts += [heading("Options in which they differ", 3), column_each(names, some)]
    return [*parts, *([folded("All options", column_each(names, options))] if known else [])]


def _run(each: Shown, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's row: what it is, where it is, and its last report; speed is the median of all reports."""
    last, steps = each.content[-1] if each.content else {}, options.get("resolved.steps")
    row: dict[str, Any] = {"run": each.name, "method": options.get("method"), "crops": options.get("crops.policy")}
    row |= {"arch": options.get("training.arch"), "size": options.get("crops.size")}
    row["step"] = f"{last.get('step', 0):,}" + (f" of {steps:,}" if steps else "")
    row |= {says: last.get(name) for name, says in REPORTED.items()}
    if each.content:
        row["images/s"] = statistics.median(line["images_per_s"] for line in each.content)
        row["waiting"] = f"{100 * statistics.median(line['starvation'] for line in each.content):.1f} %"
    bad = each.path / "bad_images.txt"
    row["bad images"] = len(bad.read_text(encoding="utf-8", errors="replace").splitlines()) if bad.exists() else None
    return row


REPORTED = {
    "loss": "loss",
    "positive_similarity": "similarity, positives",
    "negative_similarity": "similarity, negatives",
    "embedding_std": "embedding std",
    "online_map": "online mAP",
    "online_top1": "online top-1",
}


def _options(folder: Path) -> dict[str, Any]:
    """Return a run's options as its recipe.yaml has them, those of a group with its name in front: crops.dilate."""
    from objcrop.plain_yaml import read_yaml

    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        return {}
    content = read_yaml(read_text(recipe, "recipe", "`objcrop pretrain` writes it"), str(recipe))
    found: dict[str, Any] = {}
    for name, value in content.items():
        found |= {f"{name}.{key}": below for key, below in value.items()} if isinstance(value, dict) else {name: value}
    return found


# ---- probes, transfers and sweeps

MEASURES = {
    f"{kind}_{name}": f"{says}, {words}"
    for kind, says in (("linear", "linear"), ("knn", "neighbours"), ("fine_tuned", "fine-tuned"), ("chance", "chance"))
    for name, words in (
        ("map", "mAP"),
        ("map_11_point", "11-point"),
        ("batchwise_map_256", "batches of 256"),
        ("top1", "top-1"),
    )
}


def _probes(shown: list[Shown]) -> list[Html]:
    rows = []
    for each in shown:
        about = {name: each.content.get(name) for name in ("checkpoint", "size")}
        images = {f"images, {part}": each.content.get(f"{part}_images") for part in ("train", "test")}
        measured = {says: each.content.get(name) for name, says in MEASURES.items()}
        rows.append({"probe": each.name, **about, **images, **measured})
    return [row_each(rows), *_by_class(shown)]


def _transfers(shown: list[Shown]) -> list[Html]:
    parts: list[Html] = []
    for task in dict.fromkeys(each.content["task"] for each in shown):
        same = [each for each in shown if each.content["task"] == task]
        rows = [{"transfer": each.name, **_plain(each.content)} for each in same]
        parts += [heading(task.capitalize(), 3), row_each(rows), *_by_class(same)]
    for each in shown:
        files = sorted(each.path.glob("*.png"))
        if files:
            pictures = [picture(file.read_bytes(), f"{file.stem.replace('_', ' ')} of {each.name}") for file in files]
            parts.append(folded(f"Pictures of {each.name}", *pictures))
    return parts


def _sweeps(shown: list[Shown]) -> list[Html]:
    parts: list[Html] = []
    for each in shown:
        rows = []
        for run in each.content["runs"]:
            measured = {says: run.get(name) for name, says in MEASURES.items()}
            rows.append({**run["setting"], "steps": run["steps"], "loss": run["loss"], **measured})
        parts += [heading(f"{each.name}: {each.content['recipe']}", 3), row_each(rows)]
    return parts


def _by_class(shown: list[Shown]) -> list[Html]:
    """Return tables of what was measured of each class, to be opened, a column for each that has it."""
    tables = dict.fromkeys(name for each in shown for name in each.content if name.endswith("per_class"))
    parts = []
    for name in tables:
        held = [(each.name, each.content[name]) for each in shown if each.content.get(name)]
        says = name.removesuffix("per_class").replace("knn", "neighbours").replace("_", " ")
        parts.append(
            folded(
                f"{says}by class".capitalize(), column_each([head for head, _ in held], [entry for _, entry in held])
            )
        )
    return parts


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in content.items() if not isinstance(value, (dict, list))}


# ---- stats and benches


def _stats(shown: list[Shown]) -> list[Html]:
    from objcrop.stats_picture import stats_figure
    from objcrop.stats_table import stats_lines, stats_sections

    parts = [paragraph(f"{each.name}: {'; '.join(stats_lines(each.content))}.") for each in shown]
    parts.append(drawn(stats_figure({each.name: each.content for each in shown}), "how much of crops is object"))
    tables: dict[str, list[tuple[str, dict[str, str]]]] = {}
    meanings: dict[str, dict[str, str]] = {}
    for each in shown:
        for section in stats_sections(each.content):
            meanings.setdefault(section.title, {}).update(section.meanings)
            for place, head in enumerate(section.heads):
                cells = {name: row[place] for name, row in section.rows.items()}
                tables.setdefault(section.title, []).append((f"{each.name}, {head}", cells))
    for title, entries in tables.items():
        parts += [heading(title, 3), column_each([head for head, _ in entries], [cells for _, cells in entries])]
        if meanings[title]:
            parts.append(folded("What these are", column_each([""], [meanings[title]])))
    return parts


def _benches(shown: list[Shown]) -> list[Html]:
    from objcrop.bench.result_page import results_on_page

    return results_on_page({each.name: each.content for each in shown}, {each.name: each.path for each in shown})


METRICS = "metrics.jsonl"
FOLDERS = ("evaluation.json", "sweep.json", METRICS)  # what a folder is known by
KEYS = {  # what a JSON file is known by
    "Transfers": {"task", "checkpoint", "step"},
    "Probes": {"checkpoint", "train_images", "test_images"},
    "Sweeps": {"recipe", "runs"},
    "Stats": {"ground_truth", "objectness"},
    "Benches": {"machine"},
}
SECTIONS: dict[str, Callable[[list[Shown]], list[Html]]] = {
    "Runs": _runs,
    "Probes": _probes,
    "Transfers": _transfers,
    "Sweeps": _sweeps,
    "Stats": _stats,
    "Benches": _benches,
}
