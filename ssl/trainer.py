"""Pretraining: views in, a backbone out.

    objcrop pretrain --catalog photos.arrow --boxes boxes.arrow --crops obj-obj+dilate --output runs/a
    torchrun --nproc-per-node 8 -m objcrop pretrain …       the same, one process a GPU

No random number is drawn while training but as a function of (seed, step): weights come from the seed, views from the
plan. A run that was broken off and resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from objcrop import __version__
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import ObjcropError, UsageError
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.byol import BYOL
from objcrop.ssl.checkpoint import load_checkpoint, save_checkpoint
from objcrop.ssl.lars import LARS
from objcrop.ssl.moco import MoCo
from objcrop.ssl.recipe import Recipe, as_dict
from objcrop.ssl.run_folder import RunFolder
from objcrop.ssl.schedules import cosine_rate

METHODS: dict[str, type[MoCo] | type[BYOL]] = {"moco-v2": MoCo, "byol": BYOL}


def pretrain(
    recipe: Recipe,
    catalog: Catalog,
    boxes: str | os.PathLike[str] | BoxTable | None,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
) -> Path:
    """Train a backbone on the catalog's views.

    Args:
        recipe: all options.
        catalog: the images.
        boxes: for policies that crop in boxes.
        output: the run folder.
        resume: go on from its last.pt.

    Returns:
        The path of the last checkpoint.

    Raises:
        UsageError: options that do not fit each other, the data or the machine.
        ObjcropError: a checkpoint that cannot be used, a loss that is not a number, too many bad images.
    """
    device = _device(recipe.device)
    with _process_group(device), _loader(recipe, catalog, boxes, output, device) as loader:
        return _Run(recipe, loader, RunFolder(output, resume), device, resume).train()


def _device(name: str) -> torch.device:
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError("device is 'cuda', but PyTorch finds no GPU here; pass --device cpu.")
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


class _process_group:
    """Join torchrun's process group, where there is one, and leave it again."""

    def __init__(self, device: torch.device) -> None:
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        self.mine = False

    def __enter__(self) -> None:
        import torch.distributed as dist

        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
            dist.init_process_group(self.backend)
            self.mine = True

    def __exit__(self, *_: object) -> None:
        if self.mine:
            torch.distributed.destroy_process_group()


def _loader(
    recipe: Recipe,
    catalog: Catalog,
    boxes: str | os.PathLike[str] | BoxTable | None,
    output: str | os.PathLike[str],
    device: torch.device,
) -> ViewLoader:
    rank, _ = rank_and_world_size()
    return load_views(
        catalog,
        boxes=boxes,
        crops=recipe.crops,
        augment=recipe.augment or recipe.method,
        size=recipe.size,
        batch_size=recipe.batch_size,
        backend=recipe.loader,
        device=str(device),
        seed=recipe.seed,
        workers=recipe.workers,
        threads=recipe.threads,
        max_bad=recipe.max_bad,
        bad_images=Path(output) / ("bad_images.txt" if rank == 0 else f"bad_images.{rank}.txt"),
        min_side=recipe.min_side,
        dilate=recipe.dilate,
        dilate_by=recipe.dilate_by,
        shift=recipe.shift,
        scale_min=recipe.scale_min,
        max_boxes=recipe.max_boxes,
    )


class _Run:
    """One run: model, optimiser, loader and folder, and the step they are at."""

    def __init__(self, recipe: Recipe, loader: ViewLoader, folder: RunFolder, device: torch.device, resume: bool):
        if len(loader.policy.views) != 2:
            raise UsageError(f"crops '{recipe.crops}' make {len(loader.policy.views)} view, but training needs two.")
        self.recipe, self.loader, self.folder, self.device = recipe, loader, folder, device
        self.rank, self.world = rank_and_world_size()
        self.total = recipe.steps or recipe.epochs * len(loader)
        self.step = 0
        torch.manual_seed(recipe.seed)
        self.method = METHODS[recipe.method](recipe, loader.policy.roles, loader.policy.heads_shared).to(device)
        self.model: nn.Module = self.method
        self.optimiser = self._optimiser()
        if resume:
            self._restore()
        if self.world > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.method, device_ids=[device.index] if device.type == "cuda" else None
            )
        if self.rank == 0:
            self.folder.write_recipe({**as_dict(recipe), "resolved": {**loader.resolved, **self._origin()}})

    def _origin(self) -> dict[str, Any]:
        boxes = self.loader.planner.boxes
        return {
            "objcrop": __version__,
            "torch": str(torch.__version__),
            "catalog": self.loader.catalog.fingerprint,
            "boxes": None if boxes is None else boxes.fingerprint,
            "steps": self.total,
            "learning_rate": self.recipe.learning_rate,
        }

    def _optimiser(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        parameters = [p for p in self.method.parameters() if p.requires_grad]
        if (recipe.optimiser or ("lars" if recipe.method == "byol" else "sgd")) == "lars":
            return LARS(parameters, recipe.learning_rate, recipe.momentum, recipe.weight_decay)
        return torch.optim.SGD(
            parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def train(self) -> Path:
        """Take all steps that are left; return the last checkpoint's path."""
        recipe = self.recipe
        watch = _Watch(self)
        with watch:
            while self.step < self.total:
                arrived = time.perf_counter()
                for batch in self.loader:
                    watch.waited += time.perf_counter() - arrived
                    watch.add(self._one_step(batch.views), len(batch) * self.world)
                    self.step += 1
                    if self.step % recipe.log_every_steps == 0 or self.step == self.total:
                        watch.report()
                    if recipe.checkpoint_every_steps and self.step % recipe.checkpoint_every_steps == 0:
                        self._save()
                    if self.step == self.total:
                        break
                    arrived = time.perf_counter()
                self._save()
        return self.folder.checkpoint

    def _one_step(self, views: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        recipe = self.recipe
        warmup = round(recipe.warmup_epochs * len(self.loader))
        for group in self.optimiser.param_groups:
            group["lr"] = cosine_rate(self.step, self.total, warmup, recipe.learning_rate)
        autocast = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with autocast:
            loss, watched = self.model(views, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.method.after_step((self.step + 1) / self.total)
        return {"loss": loss.detach(), **watched}

    def _save(self) -> None:
        if self.rank == 0:
            content = {
                "step": self.step,
                "method": self.method.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "loader": self.loader.state_dict(),
                "recipe": as_dict(self.recipe),
            }
            save_checkpoint(self.folder.checkpoint, content)

    def _restore(self) -> None:
        saved = load_checkpoint(self.folder.checkpoint)
        for name in ("method", "arch", "size", "dim", "hidden", "queue", "heads"):
            if saved["recipe"][name] != getattr(self.recipe, name):
                raise ObjcropError(
                    f"{self.folder.checkpoint} was trained with {name}={saved['recipe'][name]}, not "
                    f"{getattr(self.recipe, name)}; resume with what the run began with."
                )
        self.method.load_state_dict(saved["method"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.loader.load_state_dict(saved["loader"])
        self.step = int(saved["step"])
        if self.rank == 0:
            self.folder.cut_metrics(self.step)


class _Watch:
    """Sums on the device between two reports; reading them is the only time the host waits for it."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.console = Console()
        self.bar = Progress(
            TextColumn("pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=run.rank != 0 or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("pretrain", total=run.total, completed=run.step, line="")
        self._reset()

    def __enter__(self) -> None:
        self.bar.start()

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.images = 0
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, watched: dict[str, torch.Tensor], images: int) -> None:
        """Count a step."""
        for name, value in watched.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value
        self.steps += 1
        self.images += images

    def report(self) -> None:
        """Read the sums, write a line, show it, begin anew.

        Raises:
            ObjcropError: the loss is not a number.
        """
        means = {name: float(value) / self.steps for name, value in self.sums.items()}
        run, took = self.run, time.perf_counter() - self.began
        if not math.isfinite(means["loss"]):
            raise ObjcropError(
                f"the loss is {means['loss']} after step {run.step}; lower base_lr ({run.recipe.base_lr}), or look at "
                "the data with `objcrop show`."
            )
        line: dict[str, Any] = {
            "step": run.step,
            "epoch": run.loader.epoch,
            **{name: round(value, 6) for name, value in means.items()},
            "lr": run.optimiser.param_groups[0]["lr"],
            "images_per_s": round(self.images / took, 1),
            "starvation": round(self.waited / took, 4),
        }
        if run.rank == 0:
            run.folder.log(line)
            shown = f"loss {line['loss']:.3f}  {line['images_per_s']:.0f} img/s  waiting {line['starvation']:.0%}"
            if self.console.is_terminal:
                self.bar.update(self.task, completed=run.step, line=shown)
            elif run.step % (run.recipe.log_every_steps * 10) == 0 or run.step == run.total:
                self.console.print(f"step {run.step}/{run.total}  {shown}", highlight=False)
        self._reset()
