"""The plan of a table: of each row the stages that pretrain and measure it, nothing of which is run here.

What needs a catalog that was not given is planned with the data's name in its place, so that a plan can always be read.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from objcrop.dali_pipes.loading import Loading
from objcrop.errors import ObjcropError, UsageError, shown, way_out
from objcrop.option import Options, options_of
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.recipe_rows import NONE, QUOTED, Row, needed
from objcrop.ssl.reproduction.data import given_data
from objcrop.ssl.reproduction.stage import Stage, key_of
from objcrop.ssl.reproduction.table import PROBE, Table, Transfer, table_of, transfers_of
from objcrop.ssl.reproduction.tiny import ARCH, tiny_pretraining, tiny_transfer
from objcrop.ssl.training.options import Watched
from objcrop.ssl.training.recipe import acting, name_of, needs_of, resolve, settings
from objcrop.ssl.transfer.by_name import TASKS
from objcrop.ssl.transfer.preset import with_preset
from objcrop.whole_file import regular_file

IMAGENET = "none: torchvision's weights"
UNTRAINED = "none: no pretraining"
# Options on which what comes out does not depend: who makes batches, and what is written on the way.
ASIDE = {*options_of(Watched), *options_of(Loading)} - {
    *("precision", "batch_size", "seed", "colour", "cache_side", "max_bad")
}


class PlannedRow(NamedTuple):
    """A row, and what it takes.

    Attributes:
        row: of the table.
        transfers: what measures it, each with its last stage.
        left_out: why nothing is done for it, "" where something is.
    """

    row: Row
    transfers: list[tuple[Transfer, Stage]]
    left_out: str


class Plan:
    """What a table takes.

    Args:
        table: it.
        data: catalogs by data name.
        output: folder of all tables.
        pretraining: options of all pretraining runs whose method has them.
        transfer: options of all transfers whose task has them.
        weights: torchvision's state dict for rows that begin with it.
        tiny: whether all is in miniature.

    Attributes:
        data: all that the table needs, by name.
        rows: of the table.
        stages: of all rows, each after those that it needs.
        wrong: a sentence for each catalog that is missing or does not fit.

    Raises:
        UsageError: data that the table does not need, an option that no run has, or that a row tries values of.
        ObjcropError: a catalog that cannot be read.
    """

    def __init__(
        self,
        table: Table,
        data: Mapping[str, str],
        output: Path,
        *,
        pretraining: Mapping[str, Any],
        transfer: Mapping[str, Any],
        weights: str | None,
        tiny: bool,
    ) -> None:
        self.table, self.output, self.weights, self.tiny = table, output, weights, tiny
        self.pretraining, self.transfer = dict(pretraining), dict(transfer)
        self.acting: dict[str, set[str]] = {"pretraining": set(), "transfer": set()}
        self.data, self.wrong = given_data(table, data)
        self.stages: dict[Path, Stage] = {}
        self.rows = [self._planned(row) for row in table.rows]
        if all(row.left_out for row in self.rows):
            raise UsageError(f"nothing of {table.name} can be done: {self.rows[0].row.row}: {self.rows[0].left_out}.")
        for what, given in (("pretraining", self.pretraining), ("transfer", self.transfer)):
            for name in given.keys() - self.acting[what]:
                raise UsageError(f"{shown(name)} acts in no {what} of {table.name}: mend its name, or leave it out.")

    def _planned(self, row: Row) -> PlannedRow:
        left_out = _left_out(row, self.weights)
        if left_out:
            return PlannedRow(row, [], left_out)
        checkpoint: Stage | str
        if row.trained:
            checkpoint = self._pretrain(row.recipe, row.at)
        elif row.recipe.startswith(IMAGENET):
            checkpoint = str(self.weights)
        else:
            first = next(other.recipe for other in table_of(self.table.name).rows if other.trained)
            checkpoint = f"untrained:{resolve(first, self._of_method(first, {})).arch}"
        measured = [(each, self._measure(each, checkpoint)) for each in transfers_of(row) if _can(each, row)]
        return PlannedRow(row, measured, "" if measured else "a probe takes checkpoints of objcrop alone")

    def _pretrain(self, recipe: str, at: str = "") -> Stage:
        needs = needs_of(recipe)
        setting = next((each for each in settings(recipe) if name_of(each) == at), {})
        options = self._of_method(recipe, setting)
        made = resolve(recipe, options)
        after = (self._boxes(needs["boxes"], needs["data"]),) if "boxes" in needs else ()
        words = ["pretrain", "--recipe", recipe, "--catalog", self.data[needs["data"]].file, "--resume=auto"]
        words += ["--boxes", str(after[0].made)] if after else []
        for name, value in options.items():
            words += ["--set", f"{name}={json.dumps(value)}"]
        made_from = {"options": {name: value for name, value in acting(made).items() if name not in ASIDE}}
        name = f"{recipe}-{at}".rstrip("-").replace(" ", "-")
        return self._stage("pretrain", name, words, made_from, [needs["data"]], after, "last.pt")

    def _boxes(self, boxes: str, data: str) -> Stage:
        """Return the stage of boxes by the command in needs.csv, which may begin with a run that scores them."""
        *before, command = (shlex.split(part)[1:] for part in needed("boxes")[boxes][1].split("&&"))
        after = tuple(self._pretrain_on(words[words.index("--recipe") + 1], data) for words in before)
        told = command[: command.index("-o")]
        words = [self.data[data].file if word == "CATALOG" else word for word in told]
        words = [str(after[0].made) if word == "runs/first/last.pt" else word for word in words]
        if self.tiny:
            words = [f"untrained:{ARCH}" if word.startswith("untrained:") else word for word in words]
        made_from = {"command": [word for word in words if word not in (self.data[data].file, *map(_made, after))]}
        return self._stage("boxes", f"boxes-{boxes}-{data}", words, made_from, [data], after, "boxes.arrow")

    def _pretrain_on(self, recipe: str, data: str) -> Stage:
        """Return the run of a recipe that scores boxes of these data; one that names its own has the same."""
        if needs_of(recipe).get("data", data) != data:
            raise ObjcropError(f"recipe {recipe} is not of {data}, whose boxes it scores; mend ssl/recipes/needs.csv.")
        return self._pretrain(recipe)

    def _measure(self, transfer: Transfer, checkpoint: Stage | str) -> Stage:
        after, weights = ((checkpoint,), str(checkpoint.made)) if isinstance(checkpoint, Stage) else ((), checkpoint)
        given = {**transfer.options, **(tiny_transfer(transfer.task) if self.tiny else {}), **self.transfer}
        words, made, options = _told(transfer, given)
        self.acting["transfer"] |= options.keys()
        words = [words[0], weights, *words[1:]]
        words += ["--train", self.data[transfer.train].file, "--test", self.data[transfer.test].file]
        for name, value in options.items():
            words += _as_flag(options_of(type(made))[name].flag, value)
        made_from: dict[str, Any] = {"options": {n: value for n, value in acting(made).items() if n not in ASIDE}}
        if after:
            start = after[0].name
        elif weights.startswith("untrained:"):
            start, made_from["weights"] = "untrained", weights
        else:
            start, made_from["weights"] = "torchvision", _digest_of(weights)
        name, data = f"{start}-{transfer.task}-{transfer.train}", [transfer.train, transfer.test]
        return self._stage(transfer.task, name, words, made_from, data, after, "evaluation.json")

    def _stage(
        self,
        kind: str,
        name: str,
        words: Sequence[str],
        made_from: dict[str, Any],
        data: Sequence[str],
        after: tuple[Stage, ...],
        makes: str,
    ) -> Stage:
        made_from = {"stage": kind, **made_from, "data": {each: self.data[each].content for each in data}}
        made_from = json.loads(json.dumps({**made_from, "after": [stage.folder.name[-8:] for stage in after]}))
        folder, key = self.output / "stages", key_of(made_from)
        there = sorted(folder.glob(f"*-{key}"))  # of another table, it may have another name
        folder = there[0] if there else folder / f"{name}-{key}"
        return self.stages.setdefault(folder, Stage(kind, name, tuple(words), made_from, after, folder, makes))

    def _of_method(self, recipe: str, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's setting and those options of all runs that act in its own."""
        for name in self.pretraining.keys() & setting.keys():
            raise UsageError(f"{name} is what rows of {self.table.name} try values of; leave it out.")
        bare = resolve(recipe, setting)
        given = {**(tiny_pretraining(bare.method) if self.tiny else {}), **self.pretraining}
        given = _acting(given, lambda known: replace(bare, **known), type(bare))
        self.acting["pretraining"] |= given.keys()
        if "steps" in given:
            setting = {name: None if name == "epochs" else value for name, value in setting.items()}
        return {**setting, **given}


def _acting(given: Mapping[str, Any], made: Callable[[Any], Options], group: type[Options]) -> dict[str, Any]:
    """Return those of the given options that a group has, and that act beside the others."""
    known = {name: value for name, value in given.items() if name in options_of(group)}
    together = made(known)
    return {name: value for name, value in known.items() if together.acts(name)}


def _left_out(row: Row, weights: str | None) -> str:
    """Return why nothing is done for a row, "" where something is."""
    if row.recipe == QUOTED:
        return "quoted from elsewhere"
    if row.recipe.startswith(IMAGENET):
        says = "begins with torchvision's weights"
        return "" if weights else way_out(f"{says}, give --weights FILE", f"{says}, which are not given")
    if not row.trained:
        return "" if row.recipe == UNTRAINED else row.recipe.removeprefix(NONE)
    if "data" not in needs_of(row.recipe):
        return "its data are not named"
    tried = [name_of(setting) for setting in settings(row.recipe)]
    return "" if row.at == "" or row.at in tried else row.at


def _can(transfer: Transfer, row: Row) -> bool:
    """Whether a transfer measures a number of a row, from what the row begins with."""
    if transfer.task == PROBE:
        return row.trained or row.recipe == UNTRAINED
    return transfer.task in TASKS


def _told(transfer: Transfer, given: Mapping[str, Any]) -> tuple[list[str], Options, dict[str, Any]]:
    """Return the first words of the command, its options as they are read, and those that must be told."""
    if transfer.task == PROBE:
        options = _acting(given, lambda known: ProbeOptions(**known), ProbeOptions)
        return ["probe"], ProbeOptions.read(options), options
    group = TASKS[transfer.task].options

    def whole(known: Mapping[str, Any]) -> dict[str, Any]:
        return with_preset(transfer.preset, transfer.task, group, known)

    options = _acting(given, lambda known: group(**whole(known)), group)
    words = ["transfer", "--task", transfer.task, "--preset", transfer.preset, "--resume=auto"]
    return words, group.read(whole(options)), options


def _as_flag(flag: str, value: Any) -> list[str]:
    name = "--" + flag.replace("_", "-")
    if isinstance(value, bool):
        return [name if value else f"--no-{name[2:]}"]
    return [name, ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)]


def _digest_of(weights: str) -> str:
    file = regular_file(weights, "file of weights", "give torchvision's state dict")
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for block in iter(lambda: content.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()[:16]


def _made(stage: Stage) -> str:
    return str(stage.made)
