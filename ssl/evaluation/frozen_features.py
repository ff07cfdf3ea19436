"""What a backbone says of every image: the features that probes read, from the centre crop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.devices import resolve_device
from objcrop.errors import ObjcropError
from objcrop.progress import tracked
from objcrop.ssl.evaluation.on_all_ranks import share, walked
from objcrop.ssl.networks.backbones import backbone, backbone_weights, width_at
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint


class Features(NamedTuple):
    """Features float32 (N, width), labels float32 (N, C) and catalog rows int64 (N,), on the CPU."""

    x: torch.Tensor
    y: torch.Tensor
    rows: torch.Tensor


def frozen_backbone(checkpoint: str | os.PathLike[str], size: int | None = None) -> tuple[nn.Module, int]:
    """Return an encoder without heads, and the side of its views.

    Args:
        checkpoint: a last.pt, or "untrained:ARCH" for random weights (seed 0): the floor of any probe.
        size: side of the views, pixels; None is the run's (224 for an untrained one).

    Raises:
        UsageError: the network cannot take views of this size.
        ObjcropError: the checkpoint is unusable.
    """
    name = str(checkpoint)
    if name.startswith("untrained:"):
        return _untrained(name.split(":", 1)[1], size or 224), size or 224
    saved = load_checkpoint(checkpoint, BACKBONE)
    trained = int(saved["recipe"]["size"])
    network, _ = backbone(saved["recipe"]["arch"], trained)
    try:
        network.load_state_dict(backbone_weights(saved, checkpoint))
    except RuntimeError as error:
        what = " ".join(str(error).split())[:160]
        raise ObjcropError(
            f"{checkpoint} does not hold the weights of its {saved['recipe']['arch']} ({what})."
        ) from None
    resized: Any = getattr(network, "set_input_size", None)  # timm's, which interpolates position embeddings
    if size is not None and size != trained and resized is not None:
        resized((size, size))
    width_at(network, size or trained, saved["recipe"]["arch"])
    return network, size or trained


def trained_by(checkpoint: str | os.PathLike[str]) -> str | None:
    """Return the method of a checkpoint; None of an untrained network."""
    if str(checkpoint).startswith("untrained:"):
        return None
    return load_checkpoint(checkpoint, BACKBONE)["recipe"].get("method")


def _untrained(arch: str, size: int) -> nn.Module:
    """Return a network of random weights, drawn in float64: in float32 processors draw other last digits."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return backbone(arch, size)[0].float()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def features(
    network: nn.Module,
    catalog: Catalog,
    size: int,
    *,
    backend: str = "dali",
    device: str = "auto",
    batch_size: int = 64,
    max_bad: float = 0.01,
    shared: bool = False,
) -> Features:
    """Encode every image's centre crop; unreadable images are left out, up to the share `max_bad`.

    Where they are `shared`, each rank encodes its share, of the same batches as one process has, and all must ask;
    `joined` puts their parts together.
    """
    mine = share(len(catalog), batch_size) if shared else list(range(len(catalog)))
    some = catalog if len(mine) == len(catalog) else catalog.take(mine)
    here, rows = resolve_device(device), torch.tensor(mine)
    network = network.eval().to(here)
    parts = []
    with ExitStack() as stack:
        loader: Any = ()
        if mine:
            loader = stack.enter_context(
                load_views(
                    some,
                    crops="centre",
                    augment="none",
                    size=size,
                    batch_size=min(batch_size, len(some)),
                    backend=backend,
                    device=here,
                    rank=0,
                    world_size=1,
                    shuffle=False,
                    drop_last=False,
                    max_bad=min(max_bad * len(catalog) / len(some), 1.0),  # all that are bad may be this rank's
                )
            )
        for batch in walked(loader, "testing") if shared else tracked(loader, len(loader), "batches of features"):
            good = ~batch.substituted.cpu()
            found = network(batch.views[0]).float().cpu()[good]
            parts.append(Features(found, batch.labels.cpu()[good], rows[batch.index.cpu()[good]]))
    return joined(parts)


def joined(parts: Sequence[Features]) -> Features:
    """Return the features of all parts, such as those of ranks, by row."""
    some = [part for part in parts if len(part.rows)]
    if not some:
        return Features(torch.empty(0, 0), torch.empty(0, 0), torch.empty(0, dtype=torch.int64))
    x, y, rows = map(torch.cat, zip(*some))
    order = rows.argsort()
    return Features(x[order], y[order], rows[order])
