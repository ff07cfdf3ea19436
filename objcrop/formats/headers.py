"""The headers of many images, read in parallel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.exif import MISSING, Header, read_header, why_unreadable
from objcrop.image_bytes import IN_FLIGHT
from objcrop.parts import run_parts
from objcrop.place import Place, is_address
from objcrop.progress import tracked
from objcrop.ray_cluster import cluster_at_hand

PART = 64  # images that a thread, or a worker of a cluster, takes at a time


def read_headers(places: Sequence[Place], verify: bool) -> list[Header | str]:
    """Return for each image its header, or the reason why there is none.

    Args:
        places: where the images lie.
        verify: decode every image too.

    Raises:
        ObjcropError: a disk or the network fails for long, or a file of many images is not what it was.
    """
    far = any(is_address(place.path) for place in places)
    threads = IN_FLIGHT if far else min(32, 4 * (os.cpu_count() or 1))
    parts = {begin: places[begin : begin + PART] for begin in range(0, len(places), PART)}
    what = "decoding" if verify else "reading headers"
    if cluster_at_hand():
        found = dict(tracked(run_parts(partial(_reader, verify, threads if far else 1), parts), len(parts), what))
        _refuse_unseen(parts, found)
    else:
        with ThreadPoolExecutor(threads) as pool:
            read = pool.map(_reader(verify), parts.values())
            found = dict(tracked(zip(parts, read), len(parts), what))
    return [header for begin in parts for header in found[begin]]


def _reader(verify: bool, threads: int = 1) -> Callable[[Sequence[Place]], list[Header | str]]:
    """Return what reads the headers of some images."""

    def one(place: Place) -> Header | str:
        try:
            place.key.encode()
            return read_header(place, verify=verify)
        except ObjcropError:  # the disk's fault, not the file's
            raise
        except Exception as error:  # a damaged file can raise anything in Pillow; the reason is listed
            return why_unreadable(error)

    def read(places: Sequence[Place]) -> list[Header | str]:
        with warnings.catch_warnings():
            # Between one and two times Pillow's pixel limit it only warns; such images are used.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")
            if threads == 1:
                return list(map(one, places))
            with ThreadPoolExecutor(threads) as pool:
                return list(pool.map(one, places))

    return read


def _refuse_unseen(parts: dict[int, Sequence[Place]], found: dict[int, list[Header | str]]) -> None:
    """Raise where a machine of the cluster sees none of a part's images, and this one does."""
    for begin, headers in found.items():
        first = parts[begin][0].path
        if all(header == MISSING for header in headers) and os.path.lexists(first):
            raise ObjcropError(
                f"a machine of the Ray cluster does not see {first}, which is here: let the images lie where all "
                "machines see them."
            )
