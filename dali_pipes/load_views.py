"""The front door of the loaders: one call, three ways to fill it."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

import torch

from objcrop.boxes import BoxTable, boxes_at
from objcrop.catalog import Catalog, catalog_at
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.crops import why_no_boxes
from objcrop.dali_pipes.loading import ViewOptions
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlanner
from objcrop.devices import device_kind
from objcrop.errors import UsageError
from objcrop.extras import require
from objcrop.launcher import cores_here
from objcrop.option import takes_options

TENSOR_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@takes_options(ViewOptions)
def load_views(
    catalog: str | os.PathLike[str] | Catalog,
    *,
    boxes: str | os.PathLike[str] | BoxTable | None = None,
    bad_images: str | os.PathLike[str] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **options: Any,
) -> ViewLoader:
    """Load two (or more) object-aware views of every image.

    All backends give the same rows, boxes, windows and colour decisions, which depend on nothing but
    (seed, epoch, sample, view); pixels agree within the tolerance of tests/dali_pipes/test_loader_contract.py.

    An option that cannot act in the chosen combination is refused where it is given; None stands for "not given".

    Args:
        catalog: a `Catalog`, the file that `objcrop index` wrote, or a folder of photos, which is indexed first.
        boxes: a `BoxTable`, or the file that `objcrop propose` wrote; needed by policies with "obj" or "box".
        bad_images: text file that lists unreadable images as they are found.
        rank: this process, 0 to world_size - 1; None asks torch.distributed, or else the launcher's environment
            (torchrun, srun, mpirun), as iteration begins. rank=0 with world_size=1 takes all rows in any process.
        world_size: number of processes; given together with `rank`.
        **options: by the decorator.

    Returns:
        A `ViewLoader`: iterate it, `len` it, close it or use it in a `with`.

    Raises:
        UsageError: an unknown name, an option out of range or that cannot act, boxes missing, no GPU for "cuda",
            no such GPU.
        ObjcropError: a catalog or box file that cannot be used.
    """
    chosen = ViewOptions.read(options)
    idle = why_no_boxes(chosen)
    if boxes is not None and idle is not None:
        raise UsageError(f"boxes cannot act here: {idle}; leave it out, or take crops that are, as obj-obj+dilate.")

    if boxes is None and chosen.view_boxes:
        raise UsageError("view_boxes is True, but there are no boxes; give boxes too.")
    images = catalog_at(catalog)
    if chosen.disk_cache is not None:
        images = images.cached_on_disk(chosen.disk_cache, chosen.disk_cache_gb)
    boxes = None if boxes is None else boxes_at(boxes, images)
    planner = ViewPlanner(images, boxes, chosen, seed=chosen.seed, view_boxes=chosen.view_boxes)
    if planner.boxes_left_out:
        assert boxes is not None
        _say_left_out(boxes.fingerprint, planner.boxes_left_out, chosen.boxes_drawn)
    contract: dict[str, Any] = {"batch_size": chosen.batch_size, "shuffle": chosen.shuffle}
    contract |= {"drop_last": chosen.drop_last, "rank": rank, "world_size": world_size}
    contract |= {"device": chosen.device, "dtype": TENSOR_TYPES[chosen.dtype], "prefetch": chosen.prefetch}
    contract |= {"decode_scaled": chosen.decode_scaled}
    what = f"{chosen.crops}, {chosen.augment}, {chosen.size} px, by {chosen.backend} on {chosen.device}"
    logging.getLogger("objcrop").info("Views of %d samples: %s.", planner.samples, what)
    bad = BadImages(images, chosen.max_bad, bad_images)
    if chosen.backend == "torch":
        from objcrop.dali_pipes.torch_loader import TorchLoader

        workers = cores_here() if chosen.workers is None else chosen.workers
        return TorchLoader(planner, bad, workers=workers, colour=chosen.colour, **contract)
    require("nvidia.dali")
    from objcrop.dali_pipes.dali_loader import DaliLoader
    from objcrop.dali_pipes.decode_crop_resize import default_threads

    threads = chosen.threads or default_threads(device_kind(chosen.device), beside_training=chosen.cache is None)
    contract |= {"threads": threads, "decode": chosen.decode}
    contract |= {"hw_decoder_load": chosen.hw_decoder_load, "decoder_padding": chosen.decoder_padding}
    if chosen.cache is not None:
        from objcrop.dali_pipes.cached_loader import CachedLoader

        return CachedLoader(planner, bad, cache=chosen.cache, cache_side=chosen.cache_side, **contract)
    return DaliLoader(planner, bad, **contract)


@lru_cache
def _say_left_out(boxes: str, left_out: int, most: int | None) -> None:
    """Warn once of boxes (by their fingerprint) that are never drawn, however many loaders draw from the table."""
    logging.getLogger("objcrop").warning(
        "%d boxes are never drawn, because %d stand before each in its image: raise max_boxes to draw from all.",
        left_out,
        most,
    )
