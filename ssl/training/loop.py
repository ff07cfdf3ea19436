"""Steps over a loader until all are taken, whatever is learnt: reports, checkpoints, stops and goes on.

Pretraining (`trainer.Run`) and transfer (`transfer.TransferRun`) say what a step is; a run that was broken off and
resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import ObjcropError, way_out
from objcrop.ranks import any_rank, average_over_ranks, rank_and_world_size, wait_for_ranks
from objcrop.ssl.training.checkpoint import load_newest, read_by_all, restoring, save_checkpoint
from objcrop.ssl.training.options import Watched
from objcrop.ssl.training.recipe import acting
from objcrop.ssl.training.run_folder import RunFolder
from objcrop.ssl.training.stop_signal import Stopped, StopSignal
from objcrop.ssl.training.watch import Watch

SAVING = 1 / 20  # the share of a run's time, at most, that writes checkpoints at epochs' ends


class Loop(ABC):
    """A run's steps.

    Attributes:
        options: of the run.
        loader: its batches.
        folder: where it is kept.
        device: where it learns.
        precision: of a step, "bf16" or "fp32".
        step: steps taken.
        total: steps to take.
        learns: what learns, saved by name; "method" among them, None for what is not there.
        optimiser: of these.
        watch: what is seen of the run.
        fixed: options that a resumed run must have begun with.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    total: int
    precision: str
    learns: dict[str, nn.Module | None]
    optimiser: torch.optim.Optimizer
    watch: Watch

    def __init__(self, options: Watched, loader: ViewLoader, folder: RunFolder, device: torch.device) -> None:
        self.options, self.loader, self.folder, self.device = options, loader, folder, device
        self.leads, self.world = rank_and_world_size()[0] == 0, rank_and_world_size()[1]
        self.step = 0
        self._written, self._writing = time.perf_counter(), 0.0  # the last checkpoint: when, and what it took

    @abstractmethod
    def take_step(self, batch: Any) -> dict[str, torch.Tensor]:
        """Learn from this rank's part of a batch; return the loss and what else is watched, scalars on the device."""

    @abstractmethod
    def too_large(self, saved_at: int) -> ObjcropError:
        """Return what to say where a step does not fit into the GPU's memory; `saved_at` is the checkpoint's step."""

    def before_epoch(self) -> None:  # noqa: B027, most have nothing to do
        """Do what is due before a walk of the loader."""

    def before_batches(self, epoch: int, batch: int) -> None:  # noqa: B027
        """Do what is due before a resumed walk goes on from there."""

    def figures(self) -> dict[str, float]:
        """Return further figures of a report."""
        return {}

    def begin_watch(self, resume: bool, what: str, rate: str) -> None:
        """Begin to watch, and go on from the last checkpoint where the run is resumed; what learns is made by then.

        Args:
            resume: whether it is.
            what: the run's name beside its bar.
            rate: the name of the option that is its learning rate.
        """
        saved = self._restore() if resume else None
        self.watch = Watch(self.options, self.folder, self.total, self.step, what=what, rate=rate)
        if saved is not None:
            with restoring(self.folder.checkpoint):
                self.watch.load_state_dict(saved["watch"], self.device)

    def train(self) -> Path:
        """Take all steps that are left; return the last checkpoint's path."""
        options, saved_at = self.options, self.step
        batches = self.watch.batches(self.loader)
        with self.watch, StopSignal() as stop:
            while self.step < self.total:
                self.before_epoch()
                for batch in batches:
                    try:
                        self.watch.add(self.take_step(batch), torch.from_numpy(batch.plan.row))
                    except torch.OutOfMemoryError as error:
                        raise self.too_large(saved_at) from error
                    looks = self.step % options.log_every_steps == 0 or self.step == self.total
                    if looks:
                        rate = self.optimiser.param_groups[0]["lr"]
                        self.watch.report(self.step, self.loader.epoch, rate, self.figures())
                    # Asking the others costs a wait for the device, so on a GPU it is done where one waits anyway.
                    if (looks or self.device.type == "cpu") and any_rank(bool(stop.asked), self.device):
                        self._save()
                        way = way_out("go on with the same command and --resume", "run the same command again")
                        raise Stopped(
                            f"stopped after step {self.step} of {self.total} as asked, and saved it in "
                            f"{self.folder.path}: {way}.",
                            stop.asked or 15,
                        )
                    if options.checkpoint_every_steps and self.step % options.checkpoint_every_steps == 0:
                        self._save()
                        saved_at = self.step
                    if self.step == self.total:
                        break
                if saved_at != self.step and self._save(at_once=self.step == self.total):
                    saved_at = self.step
        return self.folder.checkpoint

    def autocast(self) -> Any:
        """Return the context that a step's networks compute in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def average_norms(self) -> None:
        """Make BatchNorm's running statistics the same on every rank."""
        modules = [module for module in self.learns.values() if module is not None]
        norms = [m for module in modules for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        average_over_ranks([b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None])

    def recorded(self) -> dict[str, Any]:
        """Return the options that a checkpoint holds."""
        return acting(self.options)

    def _save(self, at_once: bool = True) -> bool:
        """Write the checkpoint, or see that it may wait: an epoch may be over sooner than a checkpoint is written.

        Returns:
            Whether it was written: on every rank alike, once it lies there whole.
        """
        # Whether it is written or not, which a clock decides, so that a run gives the same each time.
        self.watch.settle(self.step)
        self.average_norms()
        began = time.perf_counter()
        if not at_once and not any_rank(self.leads and self._writing <= SAVING * (began - self._written), self.device):
            return False
        if self.leads:
            content = {
                "step": self.step,
                **{name: None if module is None else module.state_dict() for name, module in self.learns.items()},
                "optimiser": self.optimiser.state_dict(),
                "loader": self.loader.state_dict(),
                "watch": self.watch.state_dict(),
                "recipe": self.recorded(),
            }
            save_checkpoint(self.folder.checkpoint, content)
        wait_for_ranks("the checkpoint is written")
        self._written = time.perf_counter()
        self._writing = self._written - began
        return True

    def _restore(self) -> dict[str, Any]:
        saved, mine = load_newest(self.folder.checkpoint), self.recorded()
        for name in self.fixed:
            if name in mine and saved["recipe"].get(name) != mine[name]:
                raise ObjcropError(
                    f"{self.folder.checkpoint} was trained with {name}={saved['recipe'].get(name)}, not {mine[name]}; "
                    "resume with what the run began with."
                )
        with restoring(self.folder.checkpoint):
            for name, module in self.learns.items():
                if module is not None:
                    module.load_state_dict(saved[name])
            self.optimiser.load_state_dict(saved["optimiser"])
            at = {name: int(saved["loader"][name]) for name in ("epoch", "batch")}
        self.before_batches(**at)
        self.loader.load_state_dict(saved["loader"])
        self.step = int(saved["step"])
        read_by_all(self.folder.checkpoint, self.step, self.device)
        if self.leads:
            self.folder.remove_unfinished()
            self.folder.cut_metrics(self.step)
        return saved


def over_ranks(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a module whose gradients are averaged over all ranks.

    Its buffers are made the same when a checkpoint is written, not in every step.
    """
    # PyTorch 2.13 has another name for it, and warns of the old one in every rank.
    new = "forward_sync_buffers" in inspect.signature(nn.parallel.DistributedDataParallel).parameters
    how: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True, **how)
