"""The run folder: last.pt, previous.pt, metrics.jsonl, the resolved recipe, bad_images.txt."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.checkpoint import previous
from objcrop.whole_file import whole_file


class RunFolder:
    """Paths of a run, and its metrics file.

    Args:
        path: the folder; made if it is not there.
        resume: whether a run in it is to be gone on with.

    Raises:
        UsageError: another run lies in it and `resume` is False.
        ObjcropError: `resume` is True and there is no checkpoint, or the folder cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "last.pt"
        self.metrics = self.path / "metrics.jsonl"
        held = self.checkpoint.exists() or previous(self.checkpoint).exists()
        if resume and not held:
            raise ObjcropError(f"there is no checkpoint to resume from in {self.path}; start without --resume.")
        if not resume and held:
            raise UsageError(f"{self.path} holds a run already: go on with --resume, or name another --output.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume:  # a run that broke before its first checkpoint began anew
                self.metrics.unlink(missing_ok=True)
        except OSError as error:
            raise ObjcropError(f"the run folder {self.path} cannot be made ({error.strerror}).") from None

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        """Keep the resolved recipe, versions and data beside the run."""
        (self.path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    def cut_metrics(self, step: int) -> None:
        """Drop lines after `step`: steps that a broken run took and a resumed one takes again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the line that a kill cut in half
                break
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
            raise ObjcropError(f"{self.metrics} cannot be written ({error.strerror}); go on with --resume.") from None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl.

    Raises:
        ObjcropError: the file is not there or no metrics file.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    except OSError:
        raise ObjcropError(f"{path} is not there; `objcrop pretrain` writes it in its run folder.") from None
    except ValueError as error:
        raise ObjcropError(f"{path} is no metrics file of objcrop ({error}).") from None
