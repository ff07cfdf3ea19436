"""What MAE draws: a row an image, the patches it is shown, what it draws of the others, and the image.

What it draws has no mean and no contrast where it was trained without them (`norm_pix`); then each patch is given those
of the image, as the authors show theirs.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

from objcrop.catalog import Catalog, catalog_at
from objcrop.contact_sheet import GAP, PAPER, as_picture
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import UsageError
from objcrop.ssl.methods.mae import MAE, masks, patches_of
from objcrop.ssl.methods.method import Data
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint, restoring
from objcrop.ssl.training.recipe import resolve
from objcrop.whole_file import whole_file


def draw_reconstructions(
    checkpoint: str | os.PathLike[str],
    catalog: Catalog | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    images: int = 6,
    seed: int = 0,
) -> None:
    """Draw the first images of a catalog as a checkpoint of MAE sees, draws and should have drawn them.

    Args:
        checkpoint: a last.pt.
        catalog: the images, a `Catalog` or its file; their centre crops are shown.
        output: PNG to write.
        images: how many.
        seed: of the masks.

    Raises:
        UsageError: the checkpoint is of another method.
        ObjcropError: a checkpoint or catalog that cannot be used.
    """
    saved = load_checkpoint(checkpoint, BACKBONE)
    method = saved["recipe"].get("method")
    if method != "mae":
        raise UsageError(f"{checkpoint} was trained by {method}, which draws nothing; give a checkpoint of mae.")
    network = ("method", "arch", "size", "mask", "norm_pix", "decoder_dim", "decoder_depth")
    recipe = resolve(None, {name: saved["recipe"].get(name) for name in network})
    mae = MAE(recipe, Data(("scene",))).eval()  # type: ignore[arg-type]  # a recipe of mae
    with restoring(Path(checkpoint)):
        mae.load_state_dict(saved["method"])
    photos = catalog_at(catalog)
    loading = {"size": recipe.size, "batch_size": min(images, len(photos)), "shuffle": False, "drop_last": False}
    with load_views(photos, crops="centre", augment="none", device="cpu", rank=0, world_size=1, **loading) as loader:
        views = next(iter(loader)).views[0]
    sheet = reconstructed(mae, views, seed)
    side = as_picture(views[0]).width + GAP
    paper = Image.new("RGB", (GAP + 3 * side, GAP + len(views) * side), PAPER)
    for column, shown in enumerate(sheet):
        for row, view in enumerate(shown):
            paper.paste(as_picture(view), (GAP + column * side, GAP + row * side))
    with whole_file(output) as part:
        paper.save(part, format="PNG")


@torch.no_grad()
def reconstructed(mae: MAE, views: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return views (N, 3, S, S) as they are seen, the hidden patches grey, as drawn, and as they are."""
    order = masks(seed, 0, range(len(views)), mae.patches)
    hidden = order[:, mae.seen :, None]
    patches = patches_of(views, mae.side)
    _, drawn = mae.drawn(views, order)
    wanted = patches.gather(1, hidden.expand(-1, -1, patches.shape[2]))
    if mae.recipe.norm_pix:
        var, mean = torch.var_mean(wanted, dim=2, keepdim=True)
        drawn = drawn * (var + 1e-6).sqrt() + mean
    at = hidden.expand_as(drawn)
    seen, made = (patches.scatter(1, at, part) for part in (torch.zeros_like(drawn), drawn))
    return views_of(seen, mae.side), views_of(made, mae.side), views


def views_of(patches: torch.Tensor, side: int) -> torch.Tensor:
    """Put patches (N, L, side × side × 3) together to views (N, 3, S, S), the inverse of `patches_of`."""
    n, many, _ = patches.shape
    along = round(many**0.5)
    grid = patches.reshape(n, along, along, side, side, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, 3, along * side, along * side)
