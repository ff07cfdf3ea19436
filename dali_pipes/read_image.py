"""From a row of the catalog to its pixels: bytes read, turned upright as the catalog says, never as a decoder thinks.

PIL decodes for whoever wants an image; DALI gets the encoded bytes where they are of a plain kind, and of all else a
lossless copy of what PIL made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.dali_pipes.photo import Photo
from objcrop.dali_pipes.plain_image import plain_image
from objcrop.errors import ObjcropError
from objcrop.exif import stored_size, stored_sizes, upright_boxes
from objcrop.pixels import decode_scaled, opened, to_rgb

if TYPE_CHECKING:
    from objcrop.dali_pipes.read_files import FileRead
    from objcrop.dali_pipes.reused_memory import ReusedMemory


class BadImage(ObjcropError):
    """An image that cannot be used for what its file holds; the message is the reason alone."""


def open_upright(catalog: Catalog, row: int) -> Image.Image:
    """Decode an image to RGB (`objcrop.pixels`), turned upright as the catalog says.

    Raises:
        BadImage: missing, undecodable, truncated, above PIL's decompression-bomb limit, or of another size than when it
            was indexed.
        ObjcropError: the file system fails for long, or the memory does.
    """
    return open_photo(catalog, row).image


def open_photo(catalog: Catalog, row: int, scale: int = 1) -> Photo:
    """Decode an image as `open_upright` does, a JPEG at 1/scale of its size."""
    # One read, then decode: a file replaced in between cannot give half of each.
    return _upright(catalog, row, _bytes_of(catalog, row), scale)


def _bytes_of(catalog: Catalog, row: int) -> bytes:
    try:
        return catalog.image_bytes(row)
    except FileNotFoundError:
        raise BadImage("the file is missing") from None
    except OSError as error:
        raise BadImage(f"cannot be read ({(error.strerror or str(error)).lower()})") from None


def _upright(catalog: Catalog, row: int, data: bytes, scale: int = 1) -> Photo:
    size, orientation = stored_size(catalog, row), catalog.orientation(row)
    try:
        with opened(data) as file:
            found, scale = file.size, decode_scaled(file, scale)
            image = to_rgb(file)
    except MemoryError:
        raise ObjcropError(
            f"{catalog.path(row)} cannot be decoded for want of memory; free some, or use fewer workers and threads."
        ) from None
    except Exception as error:  # PIL's decoders raise a dozen kinds, struct.error and SyntaxError among them
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"cannot be decoded ({type(error).__name__}: {reason})") from None
    if found != size:
        raise BadImage(f"is {found[0]}×{found[1]} now, but was {size[0]}×{size[1]} when it was indexed")
    turn = _TURNS.get(orientation)
    if turn is None:
        return Photo(image, scale)
    # Where the photo lies in what was decoded, which is rounded up to whole pixels, tells where it does once turned.
    reached = [scale * side for side in image.size]
    x0, y0 = upright_boxes([0, 0, *size], reached, [orientation])[0, :2].tolist()
    return Photo(image.transpose(turn), scale, (int(x0), int(y0)))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Encoded(NamedTuple):
    """What DALI decodes.

    data uint8 (n,); orientation: EXIF's 1..8, what turns its pixels upright; corner: x0, y0 of its pixels in the image,
    (0, 0) but for the copy of a part; views: uint8 (S, S, 3), of a photo that was decoded scaled, whose data is that of
    `NOTHING`.
    """

    data: NDArray[np.uint8]
    orientation: int
    corner: tuple[int, int] = (0, 0)
    views: tuple[NDArray[np.uint8], ...] = ()


NOTHING = Encoded(np.frombuffer(b"P6\n1 1\n255\n\0\0\0", np.uint8), 1)  # one black pixel, in place of a bad image


def encoded(catalog: Catalog, row: int, window: NDArray[np.int32] | None = None, by_pil: bool = False) -> Encoded:
    """Return an image as DALI may be given it: itself where it is plain, else a lossless copy.

    Args:
        catalog: the images.
        row: which.
        window: (4,) x0, y0, x1, y1: a copy holds this part of the upright image only; None for all of it.
        by_pil: a copy in any case, for what DALI refused although it looks plain.

    Raises:
        BadImage: see `open_upright`.
        ObjcropError: see `open_upright`.
    """
    data = _bytes_of(catalog, row)
    return _encoded(catalog, row, data, stored_size(catalog, row), catalog.orientation(row), window, by_pil)


def _encoded(
    catalog: Catalog,
    row: int,
    data: bytes,
    size: tuple[int, int],
    orientation: int,
    window: NDArray[np.int32] | None,
    by_pil: bool,
) -> Encoded:
    plain = None if by_pil else plain_image(data)
    if plain is not None and plain.size == size:
        return Encoded(plain.data, orientation)
    image = _upright(catalog, row, data).image
    x0, y0, x1, y1 = (0, 0, *image.size) if window is None else window.tolist()
    pixels = np.asarray(image)[y0:y1, x0:x1]
    head = b"P6\n%d %d\n255\n" % (x1 - x0, y1 - y0)
    return Encoded(np.concatenate([np.frombuffer(head, np.uint8), pixels.reshape(-1)]), 1, (x0, y0))


def views_or_encoded(
    catalog: Catalog,
    row: int,
    scale: int,
    views_of: Callable[[Photo], tuple[NDArray[np.uint8], ...]],
    window: NDArray[np.int32],
    by_pil: bool,
) -> Encoded | BadImage:
    """Return a JPEG as its views, decoded scaled and cut here, and what cannot be scaled as `encoded` does.

    Args:
        catalog: the images.
        row: which.
        scale: see `open_photo`.
        views_of: cuts them.
        window: see `encoded`.
        by_pil: see `encoded`.
    """
    try:
        data = _bytes_of(catalog, row)
        if data[:2] == b"\xff\xd8":
            return NOTHING._replace(views=views_of(_upright(catalog, row, data, scale)))
        return _encoded(catalog, row, data, stored_size(catalog, row), catalog.orientation(row), window, by_pil)
    except BadImage as error:
        return error


def read_encoded(
    catalog: Catalog,
    rows: Sequence[int],
    windows: NDArray[np.int32] | None,
    by_pil: Container[int],
    pool: ThreadPoolExecutor,
    threads: int,
    memory: ReusedMemory,
) -> list[Encoded | BadImage]:
    """Read many images at once.

    Args:
        catalog: the images.
        rows: N of them.
        windows: (N, 4), or None for the whole images; see `encoded`.
        by_pil: rows of which PIL makes a copy; see `encoded`.
        pool: where the reading runs.
        threads: parts that the rows are cut into, since a task of its own for each would cost more than its reading.
        memory: where files are read to.

    Returns:
        Each image, or why it is bad.
    """
    from objcrop.dali_pipes.read_files import read_files  # numba takes a second to come

    # What the catalog holds is looked up for all at once: to do so one by one costs as much as to read the files.
    sizes = [(width, height) for width, height in stored_sizes(catalog, rows).tolist()]
    orientations = catalog.orientations_of(rows).tolist()
    places = catalog.image_bytes.near(rows)

    def one(i: int, file: FileRead | None) -> Encoded | BadImage:
        by_copy = rows[i] in by_pil
        if file is not None and file.size == sizes[i] and not by_copy:
            return Encoded(file.data, orientations[i])
        window = None if windows is None else windows[i]
        try:
            data = _bytes_of(catalog, rows[i]) if file is None or file.size else file.data.tobytes()
            return _encoded(catalog, rows[i], data, sizes[i], orientations[i], window, by_copy)
        except BadImage as error:
            return error

    def some(part: range) -> list[Encoded | BadImage]:
        files = [None] * len(part) if places is None else read_files(places[part.start : part.stop], memory)
        return [one(i, file) for i, file in zip(part, files)]

    catalog.image_bytes.ahead(rows)
    share = max(-(-len(rows) // threads), 1)
    parts = [range(at, min(at + share, len(rows))) for at in range(0, len(rows), share)]
    return [image for part in pool.map(some, parts) for image in part]


def upright_pixels(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Turn images (…, h, w, C) upright: `upright_array` for tensors, which have no negative strides."""
    mirrored = [axis for axis, when in ((-2, (2, 3, 7, 8)), (-3, (3, 4, 6, 7))) if orientation in when]
    pixels = pixels.flip(mirrored) if mirrored else pixels
    return pixels.transpose(-3, -2) if orientation >= 5 else pixels
