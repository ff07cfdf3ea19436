"""The front door of the loaders: one call, three ways to fill it."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import Any

import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import augment_recipe
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.view_options import VIEW_OPTIONS, Setting, read_options, refuse_idle
from objcrop.dali_pipes.view_plan import ViewPlanner
from objcrop.errors import UsageError
from objcrop.launcher import cores_here

TENSOR_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Options of the plan, and what the planner calls them.
PLANNED = {name: name for name in ("scale", "scale_min", "min_side", "dilate_by", "max_boxes")}
PLANNED |= {"dilate": "delta", "shift": "distance"}


def load_views(
    catalog: str | os.PathLike[str] | Catalog,
    *,
    boxes: str | os.PathLike[str] | BoxTable | None = None,
    view_boxes: bool = False,
    crops: str = "scene-scene",
    augment: str = "moco-v2",
    size: int = 224,
    batch_size: int = 256,
    backend: str = "dali",
    device: str | torch.device = "cpu",
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = True,
    workers: int | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
    decode: str | None = None,
    hw_decoder_load: float | None = None,
    decoder_padding: int | None = None,
    colour: str | None = None,
    dtype: str = "fp32",
    cache: str | None = None,
    cache_side: int | None = None,
    max_bad: float = 0.01,
    bad_images: str | os.PathLike[str] | None = None,
    random_crop: bool | None = None,
    scale: tuple[float, float] | None = None,
    scale_min: float | str | None = None,
    min_side: int | str | None = None,
    dilate: float | None = None,
    dilate_by: str | None = None,
    shift: tuple[float, float] | None = None,
    max_boxes: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> ViewLoader:
    """Load two (or more) object-aware views of every image.

    All backends give the same rows, boxes, windows and colour decisions, which depend on nothing but
    (seed, epoch, sample, view); pixels agree within the tolerance of tests/dali_pipes/test_loader_contract.py.

    An option that cannot act in the chosen combination is refused where it is given; None stands for "not given", and
    the default is named below.

    Args:
        catalog: a `Catalog`, or the file that `objcrop index` wrote.
        boxes: a `BoxTable`, or the file that `objcrop propose` wrote; needed by policies with "obj" or "box".
        view_boxes: each batch carries where the images' boxes lie in each view, `batch.boxes`.
        crops: a crop policy: scene, scene-scene, obj-scene, obj-obj, obj-obj+dilate, dilate-dilate, obj-obj+shift,
            within-box, centre.
        augment: moco-v2, byol, flip or none.
        size: side of the views, pixels.
        batch_size: the global batch, over all processes, as in facebookresearch/moco; each process gets its share, by
            `rank` and `world_size`.
        backend: "torch" (PIL in worker processes) or "dali".
        device: "cpu", "cuda" or "cuda:N": where the views lie, and for "dali" where they are made. "cuda" is PyTorch's
            current GPU as iteration begins, or that of the launcher's local rank where none was chosen.
        seed: 0 to 2**64 - 1.
        shuffle: False walks the catalog in order.
        drop_last: False keeps the short batch at the end, for evaluation.
        workers: processes of the torch backend; default: this process's share of the cores (all of them, but for the
            other ranks of torchrun on this machine); 0 works in this process.
        threads: threads of the dali backend; default: the same share, on "cuda" at most 24.
        prefetch: batches kept ready (per worker with "torch"), 2.
        decode: the "whole" image (default), or the "union" of an image's windows; dali on "cuda" only: a CPU decodes
            the union. Views are the same. `objcrop bench loader --tune` finds this, threads, prefetch and the next two;
            try a decoder on a machine before a run does, since some versions end the process on some GPUs at the union.
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes, 0; dali on "cuda" only.
        decoder_padding: MiB of GPU memory that each thread sets aside to decode in, 16; dali on "cuda" only.
        colour: "float" (default), or "pil" for the chain of facebookresearch/moco; torch backend only.
        dtype: "fp32", "bf16" or "fp16".
        cache: "device" or "host" keeps decoded images there, so that later epochs decode nothing; dali backend only.
        cache_side: keep images smaller, with this shorter side in pixels; None keeps them as they are.
        max_bad: largest share of the catalog that may turn out unreadable before the loader stops.
        bad_images: text file that lists unreadable images as they are found.
        random_crop: True makes every view a random-resized crop of its region, False takes each region whole (CIB Table
            15); by default the object view of obj-scene is whole and all others are cropped.
        scale: smallest and largest crop as shares of the region it is drawn from, (.2, 1); BYOL's is (.08, 1).
        scale_min: the smallest share inside a box for obj-obj, dilate and shift; "auto" (default) after OAC 3.
        min_side: smallest side of a box in pixels; "auto" (default) is min(size, half the image's shorter side), OAC's
            letter 224.
        dilate: growth of each axis in total, a share of the image, .1 (OAC: .1 for COCO, .2 for OpenImages).
        dilate_by: "image" (default) or "box": what `dilate` is a share of.
        shift: smallest and largest distance, pixels of the original image, (80, 100).
        max_boxes: one of the first so many boxes of an image is drawn, 10 (OAC's number of proposals).
        rank: this process, 0 to world_size - 1; None asks torch.distributed, or else the launcher's environment
            (torchrun, srun, mpirun), as iteration begins. rank=0 with world_size=1 takes all rows in any process.
        world_size: number of processes; given together with `rank`.

    Returns:
        A `ViewLoader`: iterate it, `len` it, close it or use it in a `with`.

    Raises:
        UsageError: an unknown name, an option out of range or that cannot act, boxes missing, no GPU for "cuda",
            no such GPU.
        ObjcropError: a catalog or box file that cannot be used.
    """
    asked = {name: value for name, value in locals().items() if name in VIEW_OPTIONS and name != "device"}
    given = read_options(asked, VIEW_OPTIONS)
    policy = crop_policy(crops, random_crop)
    refuse_idle(given, VIEW_OPTIONS, Setting(policy, backend, str(device), cache, workers, view_boxes))

    images = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
    if isinstance(boxes, (str, os.PathLike)):
        boxes = BoxTable.load(boxes, images)
    elif boxes is not None and boxes.catalog_fingerprint != images.fingerprint:
        raise UsageError("the boxes were made for another catalog; make them for this one with `objcrop propose`.")
    elif boxes is None and view_boxes:
        raise UsageError("view_boxes is True, but there are no boxes; give boxes too.")
    planner = ViewPlanner(
        images,
        boxes,
        policy,
        augment_recipe(augment, len(policy.views)),
        size=given["size"],
        seed=given["seed"],
        view_boxes=view_boxes,
        **{name: given[option] for option, name in PLANNED.items() if option in given},
    )
    if planner.boxes_left_out:
        assert boxes is not None
        _say_left_out(boxes.fingerprint, planner.boxes_left_out, planner.max_boxes)
    contract: dict[str, Any] = {name: given[name] for name in ("batch_size", "shuffle", "drop_last")}
    contract |= {"prefetch": given.get("prefetch", 2), "device": device, "dtype": TENSOR_TYPES[dtype]}
    contract |= {"rank": rank, "world_size": world_size}
    bad = BadImages(images, given["max_bad"], bad_images)
    if backend == "torch":
        from objcrop.dali_pipes.torch_loader import TorchLoader

        contract |= {"workers": given.get("workers", cores_here()), "colour": given.get("colour", "float")}
        return TorchLoader(planner, bad, **contract)
    from objcrop.dali_pipes.dali_loader import DaliLoader
    from objcrop.dali_pipes.decode_crop_resize import default_threads

    decoding = ("decode", "hw_decoder_load", "decoder_padding")
    contract |= {name: given[name] for name in decoding if name in given}
    contract["threads"] = given.get("threads", default_threads(str(device)))
    if cache is not None:
        from objcrop.dali_pipes.cached_loader import CachedLoader

        contract |= {"cache": cache, "cache_side": given.get("cache_side")}
        return CachedLoader(planner, bad, **contract)
    return DaliLoader(planner, bad, **contract)


@lru_cache
def _say_left_out(boxes: str, left_out: int, most: int) -> None:
    """Warn once of boxes (by their fingerprint) that are never drawn, however many loaders draw from the table."""
    logging.getLogger("objcrop").warning(
        "%d boxes are never drawn, because %d stand before each in its image: raise max_boxes to draw from all.",
        left_out,
        most,
    )
