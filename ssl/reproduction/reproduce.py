"""A table of the papers made anew: boxes, pretraining and transfer of each row, its numbers beside the printed ones.

    objcrop reproduce oac-table10 --data coco=coco.arrow --data cub=cub.arrow … --output papers
    objcrop reproduce oac-table10 --tiny --output tiny        the same in miniature, on drawn scenes

Every stage is a command (`stage.py`). One after another they have the machine; in miniature they are start-up for the
most part, and several run at once. Those that are done are passed over, one that was broken off goes on where it
stopped, and a row that fails is a row of the report, after which the others follow. One process at a time works in an
output folder.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from objcrop import __version__
from objcrop.errors import ObjcropError, UsageError, way_out
from objcrop.extras import require
from objcrop.launcher import cores_here
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.recipe_rows import needed
from objcrop.ssl.reproduction.data import names_of_data, names_of_one_class
from objcrop.ssl.reproduction.page import html_page, markdown
from objcrop.ssl.reproduction.plan import Plan, PlannedRow
from objcrop.ssl.reproduction.stage import RECORD, Stage, run_in_turn, run_together
from objcrop.ssl.reproduction.table import published, table_of, transfers_of
from objcrop.ssl.reproduction.tiny import tiny_data
from objcrop.whole_file import whole_file

MOST_AT_ONCE = 4  # processes in miniature: each holds PyTorch and its network, up to a GB


def reproduce(
    name: str,
    data: Mapping[str, str],
    output: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    pretraining: Mapping[str, Any] | None = None,
    transfer: Mapping[str, Any] | None = None,
    weights: str | None = None,
    torchrun: Sequence[str] = (),
    tiny: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do what of a table is not done, and write it beside the paper's numbers.

    Args:
        name: of the table, "oac-table6".
        data: catalogs by data name (`ssl/recipes/needs.csv`).
        output: folder of all tables: NAME.json, NAME.md, NAME.html, and stages/.
        only: words; rows that hold none of them are left out, none for all rows.
        pretraining: options of all pretraining runs whose method has them.
        transfer: options of all transfers whose task has them.
        weights: torchvision's state dict of ImageNet, for rows that begin with it; without it they are left out.
        torchrun: words for torchrun, under which networks are trained, such as --nproc-per-node 8.
        tiny: draw scenes for data, and take tiny networks and two steps for everything.
        dry_run: only say what would be done.
        say: where to say it.

    Returns:
        What NAME.json holds: title, data, stages, and `rows`: of each its name, `published` and `ours` numbers, and
        `state`: done, failed, left out or to do, with `why`.

    Raises:
        UsageError: no such table, or options that no run has.
        ObjcropError: catalogs that are missing or do not fit.
    """
    if rank_and_world_size()[1] > 1:
        way = way_out("give --torchrun the words for it", "give torchrun the words for it")
        raise UsageError(f"a table is reproduced by one process, which starts torchrun itself: {way}.")
    table, folder = table_of(name, only), Path(output)
    if tiny:
        if data:
            raise UsageError("data were given, but in miniature scenes are drawn for them; leave them out.")
        tests = {each.test for row in table.rows for each in transfers_of(row)}
        data = tiny_data(names_of_data(table), names_of_one_class(table), tests, folder / "tiny-data")
    options: dict[str, Any] = {
        "pretraining": pretraining or {},
        "transfer": transfer or {},
        "weights": weights,
        "tiny": tiny,
    }
    plan = Plan(table, data, folder, **options)
    if dry_run:
        for line in in_lines(plan):
            say(line)
        return _result(plan, {})
    if plan.wrong:
        raise ObjcropError(" ".join(plan.wrong))
    require("matplotlib")  # of the pictures at the end
    failed: dict[Path, str] = {}
    _write(plan, failed)
    rows = {stage.folder for planned in plan.rows for _, stage in planned.transfers}

    def begins(stage: Stage) -> None:
        say(f"{[*plan.stages].index(stage.folder) + 1}/{len(plan.stages)} {stage.kind}, {stage.name}")

    left = [stage for stage in plan.stages.values() if not stage.done]
    at_once = min(cores_here(), MOST_AT_ONCE)
    for stage, why in run_together(left, at_once, begins) if tiny else run_in_turn(left, torchrun, begins):
        if why is not None:
            failed[stage.folder] = f"{stage.kind}: {why}"
            say(f"failed, {stage.name}: {why}")
        if stage.folder in rows:
            _write(plan, failed)
    _write(plan, failed)
    return _result(plan, failed)


def in_lines(plan: Plan) -> list[str]:
    """Return a plan to read: what is wrong, each row, each stage with its command, and whether it is done."""
    lines = [f"! {sentence}" for sentence in plan.wrong]
    lines += [f"- {each.row.row}: left out, {each.left_out}" for each in plan.rows if each.left_out]
    for number, stage in enumerate(plan.stages.values(), 1):
        state = "done" if stage.done else "to do"
        lines.append(f"{number}/{len(plan.stages)} {stage.kind}, {stage.name}: {state}")
        lines.append(f"    objcrop {shlex.join(stage.command)}")
    return lines


def _why(stage: Stage, failed: Mapping[Path, str]) -> str:
    """Return why a stage failed, or one that it needs, "" where none did."""
    return failed.get(stage.folder, "") or next(filter(None, (_why(before, failed) for before in stage.after)), "")


def _result(plan: Plan, failed: Mapping[Path, str]) -> dict[str, Any]:
    table = plan.table
    result: dict[str, Any] = {"name": table.name, "title": table.title, "tiny": plan.tiny, "objcrop": __version__}
    result["data"] = {
        name: {"says": needed("data")[name][0].split(";")[0], "file": given.file, "images": given.images}
        for name, given in plan.data.items()
    }
    result["rows"] = [_row(each, failed) for each in plan.rows]
    result["stages"] = [
        {"kind": stage.kind, "folder": str(stage.folder), "command": f"objcrop {shlex.join(stage.command)}"}
        | {"seconds": _read(stage.folder / RECORD)["seconds"] if stage.done else None}
        for stage in plan.stages.values()
    ]
    return result


def _row(planned: PlannedRow, failed: Mapping[Path, str]) -> dict[str, Any]:
    row, ours = planned.row, dict[str, float]()
    for transfer, stage in planned.transfers:
        figures = _read(stage.made) if stage.done else {}
        ours |= {
            word: round(100 * figures[key], 2)
            for word, key in transfer.figures.items()
            if isinstance(figures.get(key), float)
        }
    stages = [stage for _, stage in planned.transfers]
    why = planned.left_out or "; ".join(dict.fromkeys(filter(None, (_why(each, failed) for each in stages))))
    state = "left out" if planned.left_out else "failed" if why else "done" if all(s.done for s in stages) else "to do"
    runs = [before.folder for stage in stages[:1] for before in stage.after]
    printed = published(row)
    return {
        "row": row.row,
        "recipe": row.recipe,
        "at": row.at,
        "published": printed,
        "ours": {word: ours[word] for word in printed if word in ours},
        "state": state,
        "why": why,
        "run": str(runs[0]) if runs else None,
        "measured": [str(stage.folder) for stage in stages],
    }


def _write(plan: Plan, failed: Mapping[Path, str]) -> None:
    """Write the table as it stands, in its three forms."""
    result, name = _result(plan, failed), plan.output / plan.table.name
    plan.output.mkdir(parents=True, exist_ok=True)
    for suffix, text in (
        (".json", json.dumps(result, indent=2) + "\n"),
        (".md", markdown(result)),
        (".html", html_page(result)),
    ):
        with whole_file(name.with_name(name.name + suffix)) as part:
            part.write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
