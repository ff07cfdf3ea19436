"""The options of loaders: how many images come at once, in which order, and who decodes them where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.dali_pipes.crops import Crops
from objcrop.errors import way_out
from objcrop.option import Options, option
from objcrop.option_value import SEED, Unfit, flag, number, text, whole, word

_NAMES = "'auto', 'cpu', 'cuda' or 'cuda:N'"
_NAME = text(r"auto|cpu|cuda(:[0-9]{1,3})?", _NAMES)


def device_name(value: Any) -> str:
    """The kind of devices: their names, and torch's own objects."""
    if type(value).__module__ == "torch":  # torch.device; what else torch has is no name of a device
        value = str(value)
    if not isinstance(value, str):
        raise Unfit(_NAMES)
    return _NAME(value)


def _backend_is(backend: str) -> Callable[[Loading], str | None]:
    def idle(at: Loading) -> str | None:
        if at.backend == backend:
            return None
        needs = f"it needs backend='{backend}'"
        return way_out(f"{needs} (--loader {backend})", needs)

    return idle


def _batches_lie_ready(at: Loading) -> str | None:
    works_here = at.backend == "torch" and at.workers == 0
    return "with workers 0 the torch loader makes each batch when it is asked for" if works_here else None


def _gpu_decodes_batches(at: Loading) -> str | None:
    if at.backend != "dali" or not at.on_gpu:
        needs = "it needs backend='dali' on a GPU"
        return way_out(f"{needs} (--loader dali --device cuda)", needs)
    return None if at.cache is None else "a cache decodes each image once and whole"


def _photos_are_decoded_for_views(at: Loading) -> str | None:
    if at.backend == "torch":
        return None
    if at.cache is not None:
        return "a cache decodes each image once and whole"
    if at.on_gpu:
        needs = "a GPU decodes photos in full; it needs a CPU or backend='torch'"
        return way_out(f"{needs} (--device cpu or --loader torch)", needs)
    return None


def _cache_is_kept(at: Loading) -> str | None:
    return None if at.cache is not None else "nothing is kept, give cache='device' or 'host' too"


def _is_kept_on_disk(at: Loading) -> str | None:
    return None if at.disk_cache is not None else "nothing is kept on disk, give disk_cache too"


@dataclass(frozen=True)
class Backend(Options):
    """Who makes the views, and where: asked wherever images are loaded."""

    group: ClassVar[str] = "loading"

    backend: str = option(
        "dali", word("torch", "dali"), "dali, or torch: PIL in worker processes, as people have it today", flag="loader"
    )
    device: str = option(
        "auto",
        device_name,
        "auto (a GPU where there is one), cpu, cuda or cuda:N: where the views lie, and for dali where they are made; "
        "cuda is PyTorch's current GPU, or that of the launcher's local rank where none was chosen",
    )

    @property
    def on_gpu(self) -> bool:
        """Whether the views lie on a GPU."""
        from objcrop.devices import device_kind

        return device_kind(self.device) == "cuda"


@dataclass(frozen=True)
class Loading(Backend):
    """How images become batches."""

    batch_size: int = option(
        256,
        whole(1, 2**24),
        "the global batch, over all processes, as in facebookresearch/moco; each process gets its share",
    )
    seed: int = option(0, SEED, "of order, views and whatever else is drawn, 0 to 2**64 - 1")
    workers: int | None = option(
        None,
        whole(0, 4096),
        "processes of the torch backend, 0 works in this process; default: this process's share of the cores (all of "
        "them, but for the other ranks of torchrun on this machine)",
        idle=_backend_is("torch"),
    )
    threads: int | None = option(
        None,
        whole(1, 4096),
        "threads of the dali backend; default: the same share, on a GPU half of it (for a cache all), at most 24",
        idle=_backend_is("dali"),
    )
    prefetch: int = option(2, whole(1, 1024), "batches kept ready (per worker with torch)", idle=_batches_lie_ready)
    decode: str | None = option(
        None,
        word("union", "whole"),
        "the whole image (default on a GPU) or the union of an image's windows (always on a CPU); views are the same. "
        "`objcrop doctor` says which is safe on a machine, `objcrop bench loader --tune` what is fastest, with how "
        "many threads and batches",
        idle=_gpu_decodes_batches,
    )
    decode_scaled: bool = option(
        False,
        flag,
        "decode JPEGs at half or a quarter of their size where this leaves each window twice its view's pixels a side, "
        "which saves a sixth to a half of the work on large photos; their views change by less than 1 of 255 on "
        "average, none by 3",
        idle=_photos_are_decoded_for_views,
    )
    hw_decoder_load: float = option(
        0.0, number(0, 1), "share of the JPEGs that the GPU's own decoder takes", idle=_gpu_decodes_batches
    )
    decoder_padding: int = option(
        16, whole(0, 65536), "MiB of GPU memory that each thread sets aside to decode in", idle=_gpu_decodes_batches
    )
    colour: str = option(
        "float", word("float", "pil"), "float, or pil for the chain of facebookresearch/moco", idle=_backend_is("torch")
    )
    cache: str | None = option(
        None,
        word("device", "host"),
        "device or host keeps decoded images there, so that later epochs decode nothing",
        idle=_backend_is("dali"),
    )
    cache_side: int | None = option(
        None,
        whole(8, 65536),
        "keep images smaller, with this shorter side in pixels; default: as they are",
        idle=_cache_is_kept,
    )
    disk_cache: str | None = option(
        None, text(), "folder on a local disk where encoded images are kept once they are read, for what lies far away"
    )
    disk_cache_gb: float = option(
        100.0,
        number(0.001, 10**6),
        "the most that images may take there, 10**9 bytes; what was not used for longest goes",
        idle=_is_kept_on_disk,
    )
    max_bad: float = option(
        0.01, number(0, 1), "largest share of the catalog that may turn out unreadable before the loader stops"
    )


@dataclass(frozen=True)
class ViewOptions(Loading, Crops):
    """All options of `load_views`: what views are, how they are loaded, and how batches are handed out."""

    shuffle: bool = option(True, flag, "false walks the catalog in order")
    drop_last: bool = option(True, flag, "false keeps the short batch at the end, for evaluation")
    dtype: str = option("fp32", word("fp32", "bf16", "fp16"), "fp32, bf16 or fp16")
    view_boxes: bool = option(False, flag, "each batch carries where the images' boxes lie in each view, `batch.boxes`")
