"""The run folder: last.pt, previous.pt, metrics.jsonl, the resolved recipe, bad_images.txt."""

from __future__ import annotations

import json
import logging
import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from objcrop.errors import ObjcropError, UsageError, way_out
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.training.checkpoint import previous
from objcrop.whole_file import (
    UNFINISHED,
    StrPath,
    read_text,
    refuse_unwritable,
    refuse_unwritable_folder,
    whole_file,
)


def holds_run(path: StrPath) -> bool:
    """Whether a checkpoint of a run lies in the folder."""
    last = Path(path) / "last.pt"
    return os.path.lexists(last) or os.path.lexists(previous(last))


class RunFolder:
    """Paths of a run, and its metrics file.

    Args:
        path: the folder; made if it is not there.
        resume: whether a run in it is to be gone on with.

    Raises:
        UsageError: another run lies in it and `resume` is False.
        ObjcropError: `resume` is True and there is no checkpoint, or the folder cannot be made or written, or something
            that is no file lies where the run will write one.
    """

    def __init__(self, path: StrPath, resume: bool) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "last.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.recipe = self.path / "recipe.yaml"
        refuse_unwritable_folder(self.path)
        held = holds_run(self.path)
        if resume and not held:
            way = way_out("start without --resume", "start a new run")
            if rank_and_world_size()[1] > 1:
                way += ", or let all machines share the folder, where another has it"
            raise ObjcropError(f"there is no checkpoint to resume from in {self.path}; {way}.")
        if not resume and held:
            way = way_out("go on with --resume, or name another --output", "name another folder, or remove it")
            if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
                way = way_out("let torchrun start it with --resume auto", "take resume='auto'")
            raise UsageError(f"{self.path} holds a run already: {way}.")
        self.path.mkdir(parents=True, exist_ok=True)
        for file in (self.checkpoint, previous(self.checkpoint), self.metrics, self.recipe):
            refuse_unwritable(file)
        if not resume:  # a run that broke before its first checkpoint began anew
            self.metrics.unlink(missing_ok=True)

    @property
    def wandb_id(self) -> Path:
        """The file that keeps this run's id at Weights & Biases."""
        return self.path / "wandb_id.txt"

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        """Keep the resolved recipe, versions and data beside the run."""
        with whole_file(self.recipe) as part:
            part.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    def remove_unfinished(self) -> None:
        """Remove what was half written when a run was killed: each may be as large as a checkpoint."""
        for part in self.path.glob(f"{UNFINISHED}*"):
            part.unlink(missing_ok=True)

    def cut_metrics(self, step: int) -> None:
        """Drop lines after `step`: steps that a broken run took and a resumed one takes again.

        Lines that are none, as a kill or a full disk leaves them, go too.
        """
        if not self.metrics.exists():
            return
        kept, broken = [], 0
        for text in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            line = _line(text)
            broken += line is None
            if line is not None and line["step"] <= step:
                kept.append(text + "\n")
        if broken:
            logging.getLogger("objcrop").warning("%d damaged lines of %s are dropped.", broken, self.metrics)
        with whole_file(self.metrics) as part:
            part.write_text("".join(kept), encoding="utf-8")

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            ObjcropError: the disk is full.
        """
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            way = way_out("go on with --resume", "resume it")
            raise ObjcropError(
                f"{self.metrics} cannot be written ({error.strerror}); free some space or mend its rights, then {way}: "
                "the last checkpoint is whole."
            ) from None


def what_next(folder: Path) -> list[str]:
    """Return a line that says where a run is that came to its end, and lines of commands that go on from there."""
    lines = read_metrics(folder / "metrics.jsonl")
    taken = f"{lines[-1]['step']:,} steps" if lines else "no step"
    run = shlex.quote(os.fspath(folder))
    return [
        f"→ {folder}: {taken}; the network in last.pt, its record in metrics.jsonl and recipe.yaml",
        "What next:",
        f"  objcrop probe {run}/last.pt --train LABELLED --test HELD_OUT   # what its features are worth",
        f"  objcrop report {run} -o report.html                            # curves and options, beside other runs",
        f"  objcrop export {run}/last.pt -o backbone.pth                   # for other programs",
    ]


def read_metrics(path: StrPath) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl; a last one that was cut off in the middle is left out.

    Raises:
        ObjcropError: the file is not there or no metrics file; the line is named.
    """
    text = read_text(path, "metrics file", "`objcrop pretrain` writes it in its run folder")
    lines = []
    texts = text.splitlines()
    for number, one in enumerate(texts, 1):
        line = _line(one)
        if line is not None:
            lines.append(line)
        elif one.strip() and (number < len(texts) or text.endswith("\n")):
            raise ObjcropError(f"line {number} of {path} is no line of a metrics file of objcrop; remove it.")
    return lines


def _line(text: str) -> dict[str, Any] | None:
    """Return a line of metrics: a whole number as `step`, and numbers that a float can hold; None for any other."""
    try:
        line = json.loads(text)
        numbers = [float(value) for value in line.values() if not isinstance(value, (str, bool))]
        whole = type(line["step"]) is int and line["step"] >= 0
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return line if whole and len(numbers) == len(line) else None
