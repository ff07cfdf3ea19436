"""The front door of the loaders: one call, three ways to fill it."""

from __future__ import annotations

import os
from typing import Any

import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import augment_recipe
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlanner
from objcrop.errors import UsageError, one_of


def load_views(
    catalog: str | os.PathLike[str] | Catalog,
    *,
    boxes: str | os.PathLike[str] | BoxTable | None = None,
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
    prefetch: int = 2,
    decode: str = "union",
    hw_decoder_load: float = 0.65,
    decoder_padding: int = 16,
    colour: str = "float",
    dtype: str = "fp32",
    cache: str | None = None,
    cache_side: int | None = None,
    max_bad: float = 0.01,
    bad_images: str | os.PathLike[str] | None = None,
    scale: tuple[float, float] = (0.2, 1.0),
    scale_min: float | str = "auto",
    min_side: int | str = "auto",
    dilate: float = 0.1,
    dilate_by: str = "image",
    shift: tuple[float, float] = (80.0, 100.0),
    max_boxes: int = 10,
    rank: int | None = None,
    world_size: int | None = None,
) -> ViewLoader:
    """Load two (or more) object-aware views of every image.

    All backends give the same rows, boxes, windows and colour decisions, which depend on nothing but
    (seed, epoch, sample, view); pixels agree within the tolerance of tests/dali_pipes/test_loader_contract.py.

    Args:
        catalog: a `Catalog`, or the file that `objcrop index` wrote.
        boxes: a `BoxTable`, or the file that `objcrop propose` wrote; needed by policies with "obj" or "box".
        crops: a crop policy: scene-scene, obj-scene, obj-obj, obj-obj+dilate, dilate-dilate, obj-obj+shift,
            within-box, centre.
        augment: moco-v2, byol or none.
        size: side of the views, pixels.
        batch_size: the global batch, over all processes, as in facebookresearch/moco; each process gets its share, by
            `rank` and `world_size`.
        backend: "torch" (PIL in worker processes) or "dali".
        device: "cpu", "cuda" or "cuda:N": where the views lie, and for "dali" where they are made. "cuda" is PyTorch's
            current GPU as iteration begins, or that of the launcher's local rank where none was chosen.
        seed: 0 to 2**64 - 1.
        shuffle: False walks the catalog in order.
        drop_last: False keeps the short batch at the end, for evaluation.
        workers: processes of the torch backend; default: the number of cores, 0 works in this process.
        threads: threads of the dali backend; default: the number of cores.
        prefetch: batches kept ready (per worker with "torch").
        decode: the "union" of an image's windows, or the "whole" image; dali on "cuda" only, where a GPU's own decoder
            may be quicker at the whole. `objcrop bench loader --tune` finds this, threads, prefetch and the next two.
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes; dali on "cuda" only.
        decoder_padding: MiB of GPU memory that each thread sets aside to decode in; dali on "cuda" only.
        colour: "float", or "pil" for the chain of facebookresearch/moco; torch backend only.
        dtype: "fp32", "bf16" or "fp16".
        cache: "device" or "host" keeps decoded images there, so that later epochs decode nothing; dali backend only.
        cache_side: keep images smaller, with this shorter side in pixels; None keeps them as they are.
        max_bad: largest share of the catalog that may turn out unreadable before the loader stops.
        bad_images: text file that lists unreadable images as they are found.
        scale: smallest and largest crop as shares of the region it is drawn from.
        scale_min: the smallest share inside a box for obj-obj, dilate and shift; "auto" after OAC 3.
        min_side: smallest side of a box in pixels, "auto" is min(size, half the image's shorter side).
        dilate: growth of each axis in total, a share of the image (OAC: 0.1 for COCO, 0.2 for OpenImages).
        dilate_by: "image" or "box": what `dilate` is a share of.
        shift: smallest and largest distance, pixels of the original image.
        max_boxes: one of the first so many boxes of an image is drawn (OAC: 10).
        rank: this process, 0 to world_size - 1; None asks torch.distributed, or else the launcher's environment
            (torchrun, srun, mpirun), as iteration begins. rank=0 with world_size=1 takes all rows in any process.
        world_size: number of processes; given together with `rank`.

    Returns:
        A `ViewLoader`: iterate it, `len` it, close it or use it in a `with`.

    Raises:
        UsageError: an unknown name, an option out of range, boxes missing, no GPU for "cuda", no such GPU.
        ObjcropError: a catalog or box file that cannot be used.
    """
    one_of(backend, ("torch", "dali"), "backend")
    one_of(colour, ("float", "pil"), "colour")
    tensor_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    one_of(dtype, tensor_type, "dtype")
    if colour == "pil" and backend != "torch":
        raise UsageError("colour='pil' is the chain of facebookresearch/moco and needs backend='torch'.")
    if cache is not None and backend != "dali":
        raise UsageError("a cache of decoded images needs backend='dali' (--loader dali).")
    if cache is None and cache_side is not None:
        raise UsageError("cache_side says how large images are kept in a cache: give cache='device' or 'host' too.")
    one_of(decode, ("union", "whole"), "decode")
    if not 0 <= hw_decoder_load <= 1:
        raise UsageError(f"hw_decoder_load is {hw_decoder_load}, but it is a share, 0 to 1.")
    if decoder_padding < 0:
        raise UsageError(f"decoder_padding is {decoder_padding}, but it is a size in MiB, 0 or more.")
    if size < 8:
        raise UsageError(f"size is {size}, but views need at least 8 pixels a side.")
    if prefetch < 1:
        raise UsageError(f"prefetch is {prefetch}, but at least one batch must be kept ready.")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}, but it must lie in 0 to 2**64 - 1.")

    images = catalog if isinstance(catalog, Catalog) else Catalog.load(catalog)
    if isinstance(boxes, (str, os.PathLike)):
        boxes = BoxTable.load(boxes, images)
    elif boxes is not None and boxes.catalog_fingerprint != images.fingerprint:
        raise UsageError("the boxes were made for another catalog; make them for this one with `objcrop propose`.")
    policy = crop_policy(crops)
    planner = ViewPlanner(
        images,
        boxes,
        policy,
        augment_recipe(augment, len(policy.views)),
        size=size,
        seed=seed,
        scale=scale,
        scale_min=scale_min,
        min_side=min_side,
        delta=dilate,
        dilate_by=dilate_by,
        distance=shift,
        max_boxes=max_boxes,
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    contract: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    contract |= {"prefetch": prefetch, "device": device, "dtype": tensor_type[dtype]}
    contract |= {"rank": rank, "world_size": world_size}
    bad = BadImages(images, max_bad, bad_images)
    if backend == "torch":
        from objcrop.dali_pipes.torch_loader import TorchLoader

        return TorchLoader(planner, bad, workers=cores if workers is None else workers, colour=colour, **contract)
    from objcrop.dali_pipes.dali_loader import DaliLoader

    contract |= {"decode": decode, "hw_decoder_load": hw_decoder_load, "decoder_padding": decoder_padding}
    if cache is not None:
        from objcrop.dali_pipes.cached_loader import CachedLoader

        one_of(cache, ("device", "host"), "cache")
        contract |= {"cache": cache, "cache_side": cache_side}
        return CachedLoader(planner, bad, threads=threads or cores, **contract)
    return DaliLoader(planner, bad, threads=threads or cores, **contract)
