"""Transfer: a checkpoint learns a task on labelled images, and is measured on others.

    objcrop transfer a/last.pt --task classification --preset linear --train train.arrow --test test.arrow -o runs/t
    torchrun --nproc-per-node 8 -m objcrop transfer …       the same, one process a GPU

The run folder holds what one of `pretrain` holds, evaluation.json, and pictures of it. A run that was broken off and
resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from objcrop import __version__
from objcrop.catalog import Catalog, catalog_at
from objcrop.doctor import commit
from objcrop.errors import ObjcropError, UsageError, printable
from objcrop.extras import require
from objcrop.ranks import any_rank, process_group, rank_and_world_size, wait_for_ranks
from objcrop.same_classes import same_classes
from objcrop.ssl.training.loop import Loop, over_ranks
from objcrop.ssl.training.recipe import acting
from objcrop.ssl.training.run_folder import RunFolder, holds_run
from objcrop.ssl.training.trainer import device_of, precision_of
from objcrop.ssl.transfer.by_name import task_class
from objcrop.ssl.transfer.origin import origin_of
from objcrop.ssl.transfer.preset import with_preset
from objcrop.ssl.transfer.task import Task
from objcrop.whole_file import whole_file

EVALUATION = "evaluation.json"


def transfer(
    checkpoint: str | os.PathLike[str],
    task: str,
    train: Catalog | str | os.PathLike[str],
    test: Catalog | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    preset: str | os.PathLike[str] | None = None,
    resume: bool | Literal["auto"] = False,
    **options: Any,
) -> dict[str, Any]:
    """Learn a task from a checkpoint on, and measure it.

    Args:
        checkpoint: a last.pt, a state dict of torchvision (`arch` says of which network), or "untrained:ARCH" for the
            floor.
        task: "classification", "detection" or "segmentation".
        train: images to learn from, a `Catalog` or its file.
        test: images to be measured on; it has no class that `train` lacks.
        output: the run folder.
        preset: published settings by name (`ssl/transfer/presets`), or a YAML file of one's own.
        resume: go on from the folder's last.pt; "auto": where there is one, else begin.
        **options: of the task (`objcrop transfer --help`), in place of what the preset says.

    Returns:
        What evaluation.json holds.

    Raises:
        UsageError: options that do not fit each other, the data or the machine.
        ObjcropError: catalogs without what the task learns, a checkpoint that cannot be used, a loss that is not a
            number, too many bad images.
        Stopped: SIGTERM or Ctrl-C; the checkpoint holds the step.
    """
    require("matplotlib")  # of the pictures at the end
    made = task_class(task)
    how = made.options.read(with_preset(preset, task, made.options, options))
    catalogs = fitting(catalog_at(train), catalog_at(test))
    device = device_of(how.device)
    with process_group("nccl" if device.type == "cuda" else "gloo"):
        if how.sync_bn and device.type != "cuda":
            raise UsageError("sync_bn (True) cannot act here: PyTorch's is for GPUs alone; leave it out.")
        if resume == "auto":  # the same on all, also where one does not see what another wrote
            resume = any_rank(holds_run(output), device)
        origin = origin_of(checkpoint, how.arch, getattr(how, "size", None))
        torch.manual_seed(how.seed)
        learns = made(how, origin, *catalogs)
        folder = RunFolder(output, resume)
        of: dict[str, Any] = {
            "task": task,
            "checkpoint": str(checkpoint),
            "preset": None if preset is None else str(preset),
        }
        run = TransferRun(learns, of, folder, device, resume)
        with run.loader:
            run.train()
        _evaluate(run, of)
        wait_for_ranks("the evaluation is written")
    return json.loads((folder.path / EVALUATION).read_text(encoding="utf-8"))


class TransferRun(Loop):
    """One run of a task.

    Args:
        task: what learns.
        of: where the run comes from, for its record: task, checkpoint, preset.
        folder: of the run.
        device: where it learns.
        resume: whether it goes on.
    """

    fixed = ("task", "arch", "size", "model", "head", "optimiser")

    def __init__(
        self, task: Task, of: Mapping[str, Any], folder: RunFolder, device: torch.device, resume: bool
    ) -> None:
        how, rank = task.how, rank_and_world_size()[0]
        self.precision = precision_of(how, device)
        bad_images = folder.path / ("bad_images.txt" if rank == 0 else f"bad_images.{rank}.txt")
        super().__init__(how, task.loader(device, self.precision, bad_images), folder, device)
        self.how, self.of = how, of
        self.task = task.to(device).train()
        self.total = how.steps or how.epochs * len(self.loader)
        if how.sync_bn and self.world > 1:
            self.task = nn.SyncBatchNorm.convert_sync_batchnorm(self.task)
        self.learns = {"method": self.task}
        learnt, decay = self.task.weights(), how.weight_decay
        if how.optimiser == "adamw":
            self.optimiser = torch.optim.AdamW(learnt, how.lr, weight_decay=decay)
        else:
            momentum: Any = {"momentum": how.momentum, "nesterov": how.nesterov}
            self.optimiser = torch.optim.SGD(learnt, how.lr, weight_decay=decay, **momentum)
        self.begin_watch(resume, "transfer", "lr")
        self.model: nn.Module = self.task
        if self.world > 1:
            self.model = over_ranks(self.task, device)
        if self.leads:
            resolved: dict[str, Any] = {"objcrop": __version__, "commit": commit(), "torch": str(torch.__version__)}
            resolved |= {"train": task.train_images.fingerprint, "test": task.test_images.fingerprint}
            resolved |= {"steps": self.total, "precision": self.precision, "processes": self.world}
            self.folder.write_recipe({**self.recorded(), "resolved": resolved})

    def recorded(self) -> dict[str, Any]:
        """Return what the run was told, as a checkpoint and the run folder hold it."""
        return {**acting(self.how), **self.of, "arch": self.task.origin.arch, "size": self.task.origin.size}

    def take_step(self, batch: Any) -> dict[str, torch.Tensor]:
        """Learn from a batch; see `Loop`."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(self.step, self.total) * group.get("scale", 1.0)
        self.optimiser.zero_grad(set_to_none=True)
        # What a step draws (dropout, regions) is its own and its rank's, wherever the run was resumed.
        torch.manual_seed((self.how.seed + (self.step << 20) + rank_and_world_size()[0]) % 2**63)
        with self.autocast():
            losses = self.model(batch.to(self.device))
            loss = torch.stack([each.float() for each in losses.values()]).sum()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return {"loss": loss.detach(), **{f"loss_{name}": each.detach() for name, each in losses.items()}}

    def too_large(self, saved_at: int) -> ObjcropError:
        """Return what to say where a step does not fit; see `Loop`."""
        kept = f"; {self.folder.checkpoint} holds step {saved_at}" if saved_at else ""
        return ObjcropError(
            f"the GPU's memory is full in step {self.step + 1}: give a smaller batch_size than {self.how.batch_size}, "
            f"more processes, or end what else runs on it{kept}."
        )


def _evaluate(run: TransferRun, of: Mapping[str, Any]) -> None:
    """Measure what was learnt and keep it, where that was not done before; all ranks take part."""
    path, task = run.folder.path / EVALUATION, run.task
    done = run.leads and path.exists() and json.loads(path.read_text(encoding="utf-8")).get("step") == run.step
    if any_rank(done, run.device):
        return
    found = task.eval().evaluate(run.folder.path)
    if found is None:
        return
    figures: dict[str, Any] = {**of, "arch": task.origin.arch, "size": task.origin.size, "step": run.step}
    figures |= {"train_images": len(task.train_images), "test_images": len(task.test_images)}
    figures |= found
    with whole_file(path) as part:
        part.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def fitting(train: Catalog, test: Catalog) -> tuple[Catalog, Catalog]:
    """Return the catalogs with the classes of `train`.

    Raises:
        UsageError: `test` has a class that `train` lacks.
    """
    if not train.classes:  # which a task has its own sentence for
        return train, test
    new = [name for name in test.classes if name not in train.classes]
    if new:
        names = ", ".join(map(printable, new[:3])) + ", …" * (len(new) > 3)
        raise UsageError(
            f"the catalog of {test.root} has {len(new)} classes that are not learnt from that of {train.root} "
            f"({names}): index both from annotations of one set."
        )
    return same_classes(train, test)
