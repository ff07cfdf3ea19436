"""Watching a run: sums on the device, read every few steps.

They go to metrics.jsonl, the progress bar, TensorBoard and Weights & Biases. A loss that is not a number ends the run,
collapsed embeddings are reported.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from objcrop.bench.headroom import Headroom, headroom
from objcrop.errors import ObjcropError
from objcrop.extras import from_extra, require
from objcrop.progress import quiet, terminal
from objcrop.ranks import average_over_ranks, gather_ranks, rank_and_world_size
from objcrop.ssl.training.options import Watched
from objcrop.ssl.training.recipe import Embedding, acting
from objcrop.ssl.training.run_folder import RunFolder
from objcrop.whole_file import whole_file

Batch = TypeVar("Batch")
COLLAPSED = 0.1  # of the standard deviation 1/√dim that embeddings spread evenly over the sphere have


class Watch:
    """Sums of what is watched since the last report.

    Args:
        recipe: log_every_steps, dim, tensorboard, wandb.
        folder: the run's.
        total: steps of the run.
        step: the step it is at.
        what: the run's name beside its bar.
        rate: the name of the option that is its learning rate.
    """

    def __init__(
        self,
        recipe: Watched,
        folder: RunFolder,
        total: int,
        step: int,
        *,
        what: str = "pretrain",
        rate: str = "base_lr",
    ) -> None:
        self.recipe, self.folder, self.total, self.rate = recipe, folder, total, rate
        self.leads = rank_and_world_size()[0] == 0
        self.console = Console()
        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (self.leads and self.console.is_terminal) or quiet(),
        )
        self.task = self.bar.add_task(what, total=total, completed=step, line="")
        self.writers = _writers(recipe, folder, step) if self.leads else []
        self.warned = False
        self.losses: list[torch.Tensor] = []
        self.rows: list[torch.Tensor] = []
        self.room: Headroom[Any] | None = None
        self.waited = 0.0  # up to the last report
        self._reset()

    def __enter__(self) -> Watch:
        self.bar.disable = self.bar.disable or not terminal.acquire(blocking=False)
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if not self.bar.disable:
            terminal.release()
        for writer in self.writers:
            writer.close()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.images = 0
        self.began = time.perf_counter()

    def batches(self, loader: Iterable[Batch]) -> Iterable[Batch]:
        """Return a loader's batches, to be walked once an epoch, with an eye on how long the device waits for them."""
        self.room = headroom(loader, say=lambda sentence: None)
        return self.room

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, so that a report after a resumed break says what it would have said."""
        return {"sums": {k: v.cpu() for k, v in self.sums.items()}, "steps": self.steps, "images": self.images}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from saved sums."""
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}
        self.steps, self.images = state["steps"], state["images"]

    def add(self, watched: dict[str, torch.Tensor], rows: torch.Tensor) -> None:
        """Count a step; `watched` are scalars on the device, `rows` this rank's catalog rows."""
        for name, value in watched.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), dtype=torch.float64, device=value.device)) + value
        self.losses.append(watched["loss"])
        self.rows.append(rows)
        self.steps += 1
        self.images += len(rows) * rank_and_world_size()[1]

    def settle(self, step: int) -> None:
        """Make the sums the same on all ranks, and stop if a loss was not a number.

        Raises:
            ObjcropError: it was; the step is named and the rows since the last look are kept in nan_rows.json.
        """
        average_over_ranks(list(self.sums.values()))
        if self.losses and not math.isfinite(float(self.sums["loss"])):
            self._not_a_number(step)
        self.losses, self.rows = [], []

    def _not_a_number(self, step: int) -> None:
        bad = (~torch.isfinite(torch.stack(self.losses).float())).int()
        anywhere = gather_ranks(bad).amax(0)
        first = step - len(self.losses) + int(anywhere.argmax()) + 1
        rows = gather_ranks(torch.stack(self.rows)).movedim(0, 1).flatten(1).tolist()
        if self.leads:
            begin = step - len(self.losses) + 1
            kept = {f"step {begin + i}": r for i, r in enumerate(rows)}
            with whole_file(self.folder.path / "nan_rows.json") as part:
                part.write_text(json.dumps(kept) + "\n", encoding="utf-8")
        loss, rate = float(self.losses[first - 1 - step + len(self.losses)]), getattr(self.recipe, self.rate)
        raise ObjcropError(
            f"the loss is {loss} at step {first}; lower {self.rate} ({rate}), or look at the images, whose rows are in "
            f"{self.folder.path / 'nan_rows.json'}."
        )

    def report(self, step: int, epoch: int, rate: float, more: dict[str, float]) -> None:
        """Write a line, show it, begin anew.

        Args:
            step: taken so far.
            epoch: of the loader.
            rate: the learning rate.
            more: further figures.
        """
        self.settle(step)
        took = max(time.perf_counter() - self.began, 1e-9)
        waited = self.room.first + self.room.waited if self.room is not None else 0.0
        line: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            **{name: round(float(value) / self.steps, 6) for name, value in self.sums.items()},
            **{name: round(value, 6) for name, value in more.items()},
            "lr": rate,
            "images_per_s": round(self.images / took, 1),
            "starvation": round((waited - self.waited) / took, 4),
        }
        if self.leads:
            self.folder.log(line)
            for writer in self.writers:
                writer.write(line)
            self._show(line)
        self.waited = waited
        self._reset()

    def _show(self, line: dict[str, Any]) -> None:
        text = (
            f"loss {line['loss']:.3f}  lr {line['lr']:.4g}  {line['images_per_s']:.0f} img/s  "
            f"waiting {line['starvation']:.0%}"
        )
        if not self.bar.disable:
            self.bar.update(self.task, completed=line["step"], line=text)
        elif not quiet() and (line["step"] % (self.recipe.log_every_steps * 10) == 0 or line["step"] == self.total):
            self.console.print(f"step {line['step']}/{self.total}  {text}", highlight=False)
        evenly = self.recipe.dim**-0.5 if isinstance(self.recipe, Embedding) else 0.0
        if line.get("embedding_std", 1.0) < COLLAPSED * evenly and not self.warned:
            self.warned = True
            logging.getLogger("objcrop").warning(
                "The embeddings have collapsed at step %d (their standard deviation is %.4f, spread evenly it is "
                "%.4f): lower base_lr or ema, or for moco-v2 keep the queue well below the number of samples.",
                line["step"],
                line["embedding_std"],
                evenly,
            )


class _TensorBoard:
    def __init__(self, folder: RunFolder, step: int) -> None:
        require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, recipe: Watched, folder: RunFolder) -> None:
        wandb = from_extra("wandb")
        name = os.fsencode(folder.path.resolve().name).decode("utf-8", "replace")[:128]
        options = {"project": recipe.wandb, "id": run_id(folder), "name": name, "resume": "allow"}
        try:
            self.run = wandb.init(**options, dir=str(folder.path), config=acting(recipe))
        except Exception as error:  # no login, no network, a project's name it does not like
            raise ObjcropError(
                f"Weights & Biases cannot begin the run ({_short(error)}); log in with `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb out."
            ) from None

    def write(self, line: dict[str, Any]) -> None:
        with _not_worth_a_run():
            self.run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def close(self) -> None:
        with _not_worth_a_run():
            self.run.finish()


def run_id(folder: RunFolder) -> str:
    """Return the run's id at Weights & Biases, the same when it is resumed, so that it goes on in the same charts.

    It is kept in the run folder, so that a folder that moved keeps its charts, and one made anew gets its own.
    """
    with suppress(OSError, UnicodeDecodeError):
        kept = folder.wandb_id.read_text(encoding="utf-8").strip() if folder.wandb_id.is_file() else ""
        if kept.isascii() and kept.isalnum():
            return kept
    made = secrets.token_hex(8)
    with whole_file(folder.wandb_id) as part:
        part.write_text(made + "\n", encoding="utf-8")
    return made


@contextmanager
def _not_worth_a_run() -> Iterator[None]:
    """Warn of a watcher that fails while a run goes on: metrics.jsonl holds the same figures."""
    try:
        yield
    except Exception as error:
        logging.getLogger("objcrop").warning("Weights & Biases does not take a report (%s).", _short(error))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _writers(recipe: Watched, folder: RunFolder, step: int) -> list[_TensorBoard | _WeightsAndBiases]:
    writers: list[_TensorBoard | _WeightsAndBiases] = []
    if recipe.tensorboard:
        writers.append(_TensorBoard(folder, step))
    if recipe.wandb:
        writers.append(_WeightsAndBiases(recipe, folder))
    return writers
