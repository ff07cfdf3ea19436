"""The headers of many images, read in parallel."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.exif import Header, read_header, why_unreadable
from objcrop.image_bytes import IN_FLIGHT
from objcrop.place import Place, is_address
from objcrop.progress import tracked

PART = 64  # images that a thread takes at a time


def read_headers(places: Sequence[Place], verify: bool) -> list[Header | str]:
    """Return for each image its header, or the reason why there is none.

    Args:
        places: where the images lie.
        verify: decode every image too.

    Raises:
        ObjcropError: a disk or the network fails for long, or a file of many images is not what it was.
    """

    def read(place: Place) -> Header | str:
        try:
            place.key.encode()
            return read_header(place, verify=verify)
        except ObjcropError:  # the disk's fault, not the file's
            raise
        except Exception as error:  # a damaged file can raise anything in Pillow; the reason is listed
            return why_unreadable(error)

    def read_part(begin: int) -> list[Header | str]:
        return [read(place) for place in places[begin : begin + PART]]

    parts = range(0, len(places), PART)
    headers: list[Header | str] = []
    far = any(is_address(place.path) for place in places)
    threads = IN_FLIGHT if far else min(32, 4 * (os.cpu_count() or 1))
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Between one and two times Pillow's pixel limit it only warns; such images are used.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        for part in tracked(pool.map(read_part, parts), len(parts), "decoding" if verify else "reading headers"):
            headers += part
    return headers
