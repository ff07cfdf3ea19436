"""Pretraining: views in, a backbone out.

    objcrop pretrain --catalog photos.arrow --boxes boxes.arrow --crops obj-obj+dilate --output runs/a
    torchrun --nproc-per-node 8 -m objcrop pretrain …       the same, one process a GPU

No random number is drawn while training but as a function of (seed, step): weights come from the seed, views from the
plan. A run that was broken off and resumed goes on as if nothing had happened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from objcrop import __version__
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog, catalog_at
from objcrop.child_process import in_a_line
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.loading import ViewOptions
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.devices import resolve_device
from objcrop.doctor import commit
from objcrop.errors import ObjcropError, UsageError, way_out
from objcrop.option import options_of
from objcrop.ranks import any_rank, process_group, rank_and_world_size
from objcrop.ssl.methods.by_name import method_class
from objcrop.ssl.methods.method import Batch, Data, Method
from objcrop.ssl.networks.backbones import width_at
from objcrop.ssl.training.loop import Loop, over_ranks
from objcrop.ssl.training.online_boxes import PREFIX, OnlineBoxes
from objcrop.ssl.training.online_probe import OnlineProbe
from objcrop.ssl.training.optimisers import optimiser_of
from objcrop.ssl.training.options import Watched
from objcrop.ssl.training.recipe import Queue, Recipe, acting, as_dict, resolve
from objcrop.ssl.training.run_folder import RunFolder, holds_run
from objcrop.ssl.training.schedules import cosine_rate


def compile_parts(method: Method, device: torch.device) -> None:
    """Let torch.compile work on the parts of a method that take the time; on a GPU as CUDA graphs.

    A ResNet-50 is some 1,500 kernels a step, which Python begins one by one, and a loader's threads want Python too. A
    graph is begun at once: on an H200 a step took 59 ms in place of 95, and 62 beside its loader in place of 120.
    """
    for part in method.parts_to_compile():
        part.compile(mode="reduce-overhead" if device.type == "cuda" else None)


@contextmanager
def compiler_named() -> Iterator[None]:
    """Turn what torch.compile raises, pages of its inner life, into a sentence."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
        if of_compiler or str(error).startswith("expected size"):  # the latter: Inductor's, of how tensors lie
            way = way_out("leave --compile out", "leave compile out")
            raise ObjcropError(
                f"torch.compile failed ({in_a_line(error, typed=True)}): give it a C++ compiler and Python's headers "
                f"where it lacks them (g++ and python3-dev, say), or {way}, and steps are slower."
            ) from error
        raise


def pretrain(
    recipe: Recipe | str | os.PathLike[str] | None,
    catalog: Catalog | str | os.PathLike[str],
    boxes: str | os.PathLike[str] | BoxTable | None,
    output: str | os.PathLike[str],
    *,
    resume: bool | Literal["auto"] = False,
    **options: Any,
) -> Path:
    """Train a backbone on the catalog's views.

    On a CPU that others use too, set OMP_WAIT_POLICY=PASSIVE before Python starts, as the command does: PyTorch's
    threads spin else while they wait for each other.

    Args:
        recipe: all options, or a recipe's file or name (`resolve`), or None.
        catalog: the images, or the file that `objcrop index` wrote.
        boxes: for policies that crop in boxes; "online:anchors" has them scored while training.
        output: the run folder.
        resume: go on from its last.pt; "auto": where there is one, else begin.
        **options: of a recipe, in place of what the recipe says.

    Returns:
        The path of the last checkpoint.

    Raises:
        UsageError: options that do not fit each other, the data or the machine.
        ObjcropError: a checkpoint that cannot be used, a loss that is not a number, too many bad images.
        Stopped: SIGTERM or Ctrl-C; the checkpoint holds the step.
    """
    if not isinstance(recipe, Recipe):
        recipe = resolve(recipe, options)
    elif options:
        raise UsageError(f"{next(iter(options))} is given beside a whole recipe: give it to `resolve`, or no Recipe.")
    catalog = catalog_at(catalog)
    device = device_of(recipe.device)
    with process_group("nccl" if device.type == "cuda" else "gloo"):
        source = os.fspath(boxes) if isinstance(boxes, (str, os.PathLike)) else ""
        refuse_idle_boxes(recipe, boxes is not None, source.startswith(PREFIX))
        if resume == "auto":  # the same on all, also where one does not see what another wrote
            resume = any_rank(holds_run(output), device)
        folder, online = RunFolder(output, resume), None
        if source.startswith(PREFIX):
            online = OnlineBoxes(source, recipe, catalog, folder.path, device)
            boxes = online.first()
        with views_for(recipe, catalog, boxes, output, device) as loader:
            return Run(recipe, loader, folder, device, resume, online).train()


def refuse_idle_boxes(recipe: Recipe, given: bool, online: bool) -> None:
    """Raise a `UsageError` where boxes, or how often they are scored anew, cannot act."""
    if method_class(recipe.method).needs_boxes:
        if not given:
            raise UsageError(f"method {recipe.method} looks at boxes; pass --boxes, made by `objcrop propose`.")
    elif given and not recipe.policy.needs_boxes:
        raise UsageError(
            f"boxes cannot act here: crops '{recipe.crops}' are not drawn from boxes; leave --boxes out, or take crops "
            "that are, as obj-obj+dilate."
        )
    if recipe.rescore_every is not None and not online:
        raise UsageError(
            f"rescore_every ({recipe.rescore_every}) cannot act here: only --boxes {PREFIX}anchors are scored anew; "
            "leave it out."
        )


def device_of(name: str) -> torch.device:
    """Return this process's device and make a GPU the current one; "cuda" is that of its local rank.

    Raises:
        UsageError: PyTorch finds no such GPU, or it belongs to another process.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True  # let it try its convolutions: a run's shapes never change
    return device


def precision_of(recipe: Watched, device: torch.device) -> str:
    """Return what a step on this device, the current one, computes in: "bf16" (autocast) or "fp32".

    Raises:
        UsageError: the recipe asks for bf16, but the GPU has none (those before Ampere).
    """
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return recipe.precision or ("bf16" if device.type == "cuda" else "fp32")
    if recipe.precision == "bf16":
        name = torch.cuda.get_device_name(device)
        raise UsageError(
            f"precision is 'bf16', but {name} has no bf16 arithmetic and imitates it slowly: leave precision out."
        )
    return "fp32"


def views_for(
    recipe: Recipe,
    catalog: Catalog,
    boxes: str | os.PathLike[str] | BoxTable | None,
    output: str | os.PathLike[str],
    device: torch.device,
) -> ViewLoader:
    """Return the loader that a recipe asks for.

    Args:
        recipe: its options.
        catalog: the images.
        boxes: for policies that crop in boxes.
        output: folder where bad images are listed.
        device: where the views lie; in the type that the step computes in, which they would be rounded to there, but
            for methods of `exact_views`.
    """
    rank, _ = rank_and_world_size()
    method = method_class(recipe.method)
    options = {name: value for name, value in acting(recipe).items() if name in options_of(ViewOptions)}
    return load_views(
        catalog,
        boxes=boxes,
        bad_images=Path(output) / ("bad_images.txt" if rank == 0 else f"bad_images.{rank}.txt"),
        view_boxes=method.needs_boxes,
        **{**options, "device": str(device), "dtype": "fp32" if method.exact_views else precision_of(recipe, device)},
    )


class Run(Loop):
    """One run: model, optimiser, loader and folder, and the step they are at."""

    fixed = ("method", "arch", "size", "dim", "hidden", "queue", "heads", "online_probe")

    def __init__(
        self,
        recipe: Recipe,
        loader: ViewLoader,
        folder: RunFolder,
        device: torch.device,
        resume: bool,
        online: OnlineBoxes | None = None,
    ) -> None:
        made_by, views = method_class(recipe.method), len(loader.policy.views)
        if views not in made_by.takes:
            least, most = made_by.takes[0], made_by.takes[-1]
            wants = str(least) if least == most else f"{least} to {most}"
            fit = [name for name, policy in POLICIES.items() if len(policy.views) in made_by.takes and name != "centre"]
            way = f": take {' or '.join(fit)}" if fit and not recipe.local_views else ""
            raise UsageError(
                f"crops '{recipe.crops}' make {views} view{'s' * (views > 1)}, but {recipe.method} takes {wants}{way}."
            )
        local = [view.local for view in loader.policy.views]
        if made_by.multi_crop and local != [place >= 2 for place in range(views)]:
            raise UsageError(
                f"crops '{recipe.crops}' make {local.count(False)} large and {sum(local)} local views, but "
                f"{recipe.method} takes 2 large ones and then local ones."
            )
        super().__init__(recipe, loader, folder, device)
        self.recipe, self.online = recipe, online
        self.batches = len(loader)  # of an epoch; later boxes may make it another number, but not the schedule
        self.total = recipe.steps or recipe.epochs * self.batches
        self.precision = precision_of(recipe, device)
        torch.manual_seed(recipe.seed)
        policy, planner = loader.policy, loader.planner
        data = Data(policy.roles, policy.heads_shared, planner.sizes, len(loader.classes), planner.samples)
        self.method: Method = made_by(recipe, data)
        for size in {size for size, is_local in zip(planner.sizes, local) if is_local}:
            width_at(self.method.encoder.backbone, size, recipe.arch)  # or a sentence
        self.method.to(device)
        if self.method.needs_boxes and recipe.accumulate > 1:
            raise UsageError(f"accumulate is {recipe.accumulate}, but {recipe.method} takes a step's boxes together.")
        if self.method.devices.here % recipe.accumulate:
            raise UsageError(
                f"accumulate is {recipe.accumulate}, but a step is taken in whole virtual devices, of which a process "
                f"has {self.method.devices.here}: let bn_groups be a multiple of {recipe.accumulate * self.world}."
            )
        self.probe = None
        if recipe.online_probe:
            self.probe = OnlineProbe(self.method.encoder.width, len(loader.classes), recipe.single_label).to(device)
        self.learns = {"method": self.method, "probe": self.probe}
        self.optimiser = self._optimiser()
        self.begin_watch(resume, "pretrain", "base_lr")
        if recipe.compile:
            compile_parts(self.method, device)
            if self.leads:
                logging.getLogger("objcrop").warning("Compiling the encoders: the first step may take minutes.")
        self.model: nn.Module = self.method
        if self.world > 1:
            self.model = over_ranks(self.method, device)
        if self.leads:
            resolved = {**loader.resolved, **self._origin()}
            self.folder.write_recipe({**as_dict(recipe), "resolved": resolved})
            said = ", ".join(f"{name} {value}" for name, value in resolved.items())
            logging.getLogger("objcrop").info("Resolved: %s.", said)
            self._warn()

    def _origin(self) -> dict[str, Any]:
        boxes = self.loader.planner.boxes
        return {
            "objcrop": __version__,
            "commit": commit(),
            "torch": str(torch.__version__),
            "catalog": self.loader.catalog.fingerprint,
            "boxes": None if boxes is None else boxes.fingerprint,
            "steps": self.total,
            "learning_rate": self.recipe.learning_rate,
            "bn_groups": self.recipe.virtual_devices,
            "precision": self.precision,
            "processes": self.world,
            **({} if self.online is None else {"rescore_every": self.online.every}),
        }

    def _warn(self) -> None:
        samples = self.loader.planner.samples
        recipe = self.recipe
        queue = recipe.queue if isinstance(recipe, Queue) and recipe.holds_negatives else 0
        if queue * 2 > samples:
            most = samples // 2 // self.recipe.batch_size * self.recipe.batch_size
            way = way_out(f"take --queue {most} or less", f"take a queue of {most} or less")
            logging.getLogger("objcrop").warning(
                "The queue of %d keys is more than half of the %d samples: it will hold the positives' own images as "
                "negatives; %s.",
                queue,
                samples,
                way if most else "take a smaller batch and queue",
            )

    def _optimiser(self) -> torch.optim.Optimizer:
        recipe, groups = self.recipe, self.method.parameter_groups()
        return optimiser_of(recipe, groups, recipe.learning_rate, fused=self.device.type == "cuda")

    def _schedule(self) -> None:
        """Set the rate of this step."""
        recipe = self.recipe
        warmup = min(round(recipe.warmup_epochs * self.batches), self.total // 10)
        ends = {"start": recipe.at_this_batch(recipe.warmup_lr), "final": recipe.at_this_batch(recipe.final_lr)}
        rate = cosine_rate(self.step, self.total, warmup, recipe.learning_rate, **ends)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def _dealt(self, whole: Views) -> Batch:
        """Return a loader's batch with its rows dealt to the virtual devices."""
        devices = self.method.devices
        views = tuple(devices.deal(view) for view in whole.views)
        labels, row = (devices.deal(t.to(self.device, non_blocking=True)) for t in (whole.labels, whole.index))
        plan, boxes = whole.plan, whole.boxes
        if devices.here > 1:
            order = devices.order(len(labels))
            plan = plan.take(order)
            boxes = tuple(each.moved(torch.from_numpy(np.argsort(order))) for each in boxes)
        return Batch(views, labels, row, plan, boxes)

    def take_step(self, batch: Views) -> dict[str, torch.Tensor]:
        """Learn from a batch.

        Args:
            batch: this rank's part.

        Returns:
            The loss and what else is watched, scalars on the device; nothing is waited for.
        """
        # Not a CUDA graph as a whole, though all shapes are static: which view is the query, the permutation, the rate
        # and BYOL's momentum are numbers of the host that change with the step and would be frozen in it.
        if self.recipe.compile:
            torch.compiler.cudagraph_mark_step_begin()  # what graphs gave in the step before is read no more
        with compiler_named() if self.recipe.compile else nullcontext():
            return self._learn_from(batch)

    def _learn_from(self, batch: Views) -> dict[str, torch.Tensor]:
        recipe = self.recipe
        self._schedule()
        rows = self._dealt(batch)
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            targets = self.method.targets(rows, self.step)
        many = len(rows.labels)
        length = many // recipe.accumulate
        outputs = []
        for begin in range(0, many, length):
            part = slice(begin, begin + length)
            last = begin + length == many
            sync = nullcontext() if last or self.world == 1 else self.model.no_sync()  # type: ignore[operator]
            with sync:
                with self.autocast():
                    output = self.model(rows.part(part), [t[part] for t in targets], self.step)
                (output.loss / recipe.accumulate).backward()
            outputs.append(output)
        self.method.before_step(self.step)
        self.optimiser.step()
        self.step += 1
        self.method.after_step(self.step / self.total)
        if self.probe is not None:
            self.probe.learn(torch.cat([o.features for o in outputs]), rows.labels)
        watched = [{"loss": o.loss.detach(), **o.watch} for o in outputs]
        return {name: torch.stack([w[name] for w in watched]).mean() for name in watched[0]}

    def too_large(self, saved_at: int) -> ObjcropError:
        """Return what to say where a step does not fit into the GPU's memory."""
        recipe, here = self.recipe, self.method.devices.here
        ways = [f"a smaller batch_size than {recipe.batch_size}"]
        if recipe.in_parts:
            ways += [f"accumulate {n}" for n in range(recipe.accumulate + 1, here + 1) if here % n == 0][:1]
        if self.precision == "fp32" and torch.cuda.is_bf16_supported(including_emulation=False):
            ways.append("precision bf16")
        kept = f"; {self.folder.checkpoint} holds step {saved_at}" if saved_at else ""
        return ObjcropError(
            f"the GPU's memory is full in step {self.step + 1}: give {', '.join(ways)} or a smaller size, or end what "
            f"else runs on it{kept}."
        )

    def before_epoch(self) -> None:
        """Draw from new boxes where an epoch is about to begin that they are due before."""
        at = self.loader.state_dict()
        if self.online is not None and at["batch"] == 0 and self.online.due(at["epoch"]):
            self.average_norms()
            self.loader.set_boxes(self.online.rescored(self.method, at["epoch"]))

    def before_batches(self, epoch: int, batch: int) -> None:
        """Draw from the boxes that the run drew from there."""
        if self.online is not None:
            self.loader.set_boxes(self.online.of_checkpoint(epoch, batch))

    def figures(self) -> dict[str, float]:
        """Return what the online probe has to say."""
        return {} if self.probe is None else self.probe.report()
