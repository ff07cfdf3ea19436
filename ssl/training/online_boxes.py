"""Boxes scored while training: `objcrop pretrain --boxes online:anchors`.

Coarse Is Better (CIB, section 3.3) scores anchors by a backbone's features in a stage of its own. Here the run does it:
before its first step, and again every `rescore_every` epochs, the momentum encoder's features choose the boxes. Those
of each rescoring are kept in the run folder; they are a function of the weights, so that a resumed run finds them there
or makes the same again.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, one_of
from objcrop.proposals.anchors import anchors_from, last_maps, weights_fingerprint
from objcrop.ranks import rank_and_world_size, wait_for_ranks
from objcrop.ssl.methods.method import Method
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.recipe import Recipe

PREFIX = "online:"


class OnlineBoxes:
    """Makes, keeps and finds the boxes of a run.

    Attributes:
        every: epochs from one scoring to the next.

    Args:
        source: "online:anchors".
        recipe: arch, size, init, seed, rescore_every.
        catalog: the images.
        run: the run folder; boxes are kept in `boxes/` in it.
        device: where scoring runs.

    Raises:
        UsageError: another source, or a backbone without feature maps that anchors could be scored by.
    """

    def __init__(self, source: str, recipe: Recipe, catalog: Catalog, run: Path, device: torch.device) -> None:
        one_of(source.removeprefix(PREFIX), ("anchors",), f"--boxes {PREFIX}…")
        self.recipe, self.catalog, self.device = recipe, catalog, device
        self.every = recipe.rescore_every or 10
        self.folder = run / "boxes"
        torch.manual_seed(recipe.seed)
        self._network, _ = backbone(recipe.arch, recipe.size, recipe.init)  # as the run begins
        last_maps(self._network)

    def first(self) -> BoxTable:
        """Return the boxes of epoch 0, scored by the weights that the run begins with."""
        return self._scored(self._network, 0)

    def due(self, epoch: int) -> bool:
        """Whether boxes are scored anew before this epoch."""
        return epoch > 0 and epoch % self.every == 0

    def of_checkpoint(self, epoch: int, batch: int) -> BoxTable:
        """Return the boxes that were in use when a checkpoint at this place of the loader was written.

        Args:
            epoch: that the loader goes on in.
            batch: of the epoch; at 0 the epoch's own rescoring is still to come.
        """
        last = epoch - 1 if batch == 0 and self.due(epoch) else epoch
        return BoxTable.load(self._file(last - last % self.every), self.catalog)

    def rescored(self, method: Method, epoch: int) -> BoxTable:
        """Return boxes scored by the momentum encoder (the encoder, where a method has none) before an epoch."""
        encoder = getattr(method, "momentum_encoder", method.encoder)
        self._network.load_state_dict(encoder.backbone.state_dict())
        return self._scored(self._network, epoch)

    def _file(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}.arrow"

    def _scored(self, network: nn.Module, epoch: int) -> BoxTable:
        file, weights = self._file(epoch), weights_fingerprint(network)
        if not self._is_of(file, weights):
            self.folder.mkdir(parents=True, exist_ok=True)
            maps = last_maps(copy.deepcopy(network))
            name = f"{PREFIX}anchors, epoch {epoch}"
            boxes = anchors_from(self.catalog, maps, weights, name, str(self.device), file.with_suffix(".parts"))
            if rank_and_world_size()[0] == 0:
                boxes.save(file)
        wait_for_ranks(f"{file} is written")
        return BoxTable.load(file, self.catalog)

    def _is_of(self, file: Path, weights: str) -> bool:
        """Whether a run that broke off left just these boxes; every rank looks before any goes on to write."""
        try:
            there = BoxTable.load(file, self.catalog).parameters.get("weights") == weights
        except ObjcropError:  # not there, or damaged: they are scored anew
            there = False
        wait_for_ranks(f"all have looked for {file}")
        return there
