"""Upright images: what a file's header says of its size and EXIF orientation, and boxes and masks turned to match.

EXIF tag 0x0112 (EXIF 2.32, 4.6.4) holds 1..8: how the stored pixels are mirrored, then transposed, to stand upright.
The *stored frame* is the grid of pixels in the file, the *upright frame* the one a viewer shows.
"""

from __future__ import annotations

import io
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from objcrop.catalog import Catalog
from objcrop.image_bytes import open_place
from objcrop.pixels import PNG, can_be_decoded, decoded, png_head, to_rgb
from objcrop.place import Place
from objcrop.read_file import patiently

# Ranges to upright: mirror left-right, mirror top-bottom, then swap x and y.
_MIRROR_X = np.isin(np.arange(9), (2, 3, 7, 8))
_MIRROR_Y = np.isin(np.arange(9), (3, 4, 6, 7))
_SWAP = np.isin(np.arange(9), (5, 6, 7, 8))

MISSING = "no such file"


class Header(NamedTuple):
    """What a header says: stored width and height in pixels, and the EXIF orientation 1..8 of the decoded pixels."""

    width: int
    height: int
    orientation: int


def read_header(place: Place, *, verify: bool = False) -> Header:
    """Read stored size and orientation of one image, without decoding it.

    The orientation is data of the catalog from here on: no decoder is asked for it again. The rule: the EXIF tag
    0x0112, wherever in the file it lies (in a JPEG with several blocks the first; in a PNG also behind the pixels, or
    as the text that ImageMagick writes), a number of any type; where there is none, XMP's tiff:Orientation; 1 where
    neither says 1..8 or the data is damaged, as in image viewers. Pillow turns TIFF upright while decoding; for it the
    size is the upright one and the orientation 1.

    Args:
        place: where an image lies, of any format Pillow knows.
        verify: also decode every pixel and convert to RGB.

    Raises:
        ObjcropError: the file system fails for long.
        Exception: whatever Pillow raises (OSError, SyntaxError, ValueError, DecompressionBombError, ...);
            `why_unreadable` makes a short sentence of it.
    """

    def read() -> Header:
        with open_place(place, whole=verify) as file:
            if file.read(8) != PNG:
                file.seek(0)
                with Image.open(file) as image:
                    header = _header(image)
                    if verify:
                        to_rgb(image)
                return header
            try:
                header = _png_header(file, texts=True)
            except ValueError:  # of a text that is too long for Pillow
                header = _png_header(file, texts=False)
            if verify:
                file.seek(0)
                decoded(file.read())
            return header

    return patiently(place.path, read)


def _png_header(file: IO[bytes], texts: bool) -> Header:
    file.seek(len(PNG))
    with Image.open(io.BytesIO(png_head(file, texts))) as image:
        return _header(image)


def _header(image: Image.Image) -> Header:
    if min(image.size) < 1:
        raise ValueError(f"the header says {image.width}x{image.height} pixels")
    if not can_be_decoded(image):
        raise ValueError(f"Pillow has no decoder for {image.format}")
    return Header(*image.size, orientation=_orientation(image))


def why_unreadable(error: Exception) -> str:
    """Return the reason for which `read_header` failed, in one line without the path."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, UnicodeEncodeError):
        return "the name is not UTF-8"
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: {error}"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image that Pillow knows, or its header is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__


def upright_sizes(sizes: npt.ArrayLike, orientations: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Return upright (width, height), int32 (N, 2), from stored (width, height) (N, 2) and orientations 1..8 (N,)."""
    stored = np.asarray(sizes, np.int32).reshape(-1, 2)
    swap = _SWAP[np.asarray(orientations)].reshape(-1, 1)
    return np.where(swap, stored[:, ::-1], stored)


def stored_size(catalog: Catalog, row: int) -> tuple[int, int]:
    """Return width and height of a catalog's image as they lie in its file."""
    width, height = stored_sizes(catalog, [row])[0].tolist()
    return width, height


def stored_sizes(catalog: Catalog, rows: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Return width and height of some images as they lie in their files, int32 (n, 2), of `rows`, integers (n,)."""
    sizes = catalog.sizes_of(rows)
    return np.where(_SWAP[catalog.orientations_of(rows)][:, None], sizes[:, ::-1], sizes)


def stored_windows(
    windows: npt.NDArray[np.int32], sizes: npt.NDArray[np.int32], orientations: npt.NDArray[np.int8]
) -> npt.NDArray[np.int32]:
    """Turn windows from the upright frame to the stored frame, the way back of `upright_boxes`.

    Args:
        windows: (N, V, 4) x0,y0,x1,y1, half-open, pixels of the upright image.
        sizes: (N, 2) upright width and height.
        orientations: (N,) EXIF orientation 1..8.

    Returns:
        (N, V, 4) in pixels of the stored frame.
    """
    if (orientations == 1).all():
        return windows
    turned = orientations[:, None]
    swap = _SWAP[turned]
    x0, y0, x1, y1 = np.moveaxis(windows, -1, 0)
    x0, y0 = np.where(swap, y0, x0), np.where(swap, x0, y0)
    x1, y1 = np.where(swap, y1, x1), np.where(swap, x1, y1)
    width, height = (np.where(swap, sizes[:, [1 - axis]], sizes[:, [axis]]) for axis in (0, 1))
    x0, x1 = np.where(_MIRROR_X[turned], width - x1, x0), np.where(_MIRROR_X[turned], width - x0, x1)
    y0, y1 = np.where(_MIRROR_Y[turned], height - y1, y0), np.where(_MIRROR_Y[turned], height - y0, y1)
    return np.stack((x0, y0, x1, y1), axis=-1).astype(np.int32)


class UprightWalk(NamedTuple):
    """How windows are walked upright over pixels that lie in the stored frame.

    Attributes:
        first: int64 (N, V), each window's upper left pixel, counted along the rows of its image.
        steps: int32 (N, V, 2), pixels from one to its right neighbour, and to the one below.
        sizes: int32 (N, V, 2), width and height.
    """

    first: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]


def upright_walk(
    windows: npt.NDArray[np.int32], widths: npt.NDArray[np.int32], orientations: npt.NDArray[np.int8]
) -> UprightWalk:
    """Return how to walk windows upright without turning any pixel.

    Args:
        windows: (N, V, 4) x0,y0,x1,y1, half-open, pixels of the stored frame.
        widths: (N,) of the stored images.
        orientations: (N,) EXIF orientation 1..8.
    """
    x0, y0, x1, y1 = np.moveaxis(windows, -1, 0)
    sizes = np.stack([x1 - x0, y1 - y0], axis=-1)
    width = widths.astype(np.int64)[:, None]
    one_on, one_down = np.ones_like(x0), np.broadcast_to(widths[:, None].astype(np.int32), x0.shape)
    if (orientations == 1).all():
        return UprightWalk(y0 * width + x0, np.stack([one_on, one_down], axis=-1), sizes)
    turned = orientations[:, None]
    x0, one_on = np.where(_MIRROR_X[turned], (x1 - 1, -one_on), (x0, one_on))
    y0, one_down = np.where(_MIRROR_Y[turned], (y1 - 1, -one_down), (y0, one_down))
    swap = _SWAP[turned][..., None]
    steps = np.stack([one_on, one_down], axis=-1)
    return UprightWalk(
        y0 * width + x0, np.where(swap, steps[..., ::-1], steps), np.where(swap, sizes[..., ::-1], sizes)
    )


def upright_boxes(boxes: npt.ArrayLike, sizes: npt.ArrayLike, orientations: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Turn boxes from the stored frame to the upright frame.

    Args:
        boxes: (k, 4) x0,y0,x1,y1, half-open, absolute pixels of the stored frame.
        sizes: (k, 2) stored width and height of each box's image.
        orientations: (k,) EXIF orientation 1..8 of each box's image.

    Returns:
        float64 (k, 4) x0,y0,x1,y1 in the upright frame.
    """
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    width, height = np.asarray(sizes, np.float64).reshape(-1, 2).T
    o = np.asarray(orientations)
    x0, x1 = np.where(_MIRROR_X[o], width - x1, x0), np.where(_MIRROR_X[o], width - x0, x1)
    y0, y1 = np.where(_MIRROR_Y[o], height - y1, y0), np.where(_MIRROR_Y[o], height - y0, y1)
    stored, swapped = np.stack((x0, y0, x1, y1), 1), np.stack((y0, x0, y1, x1), 1)
    return np.where(_SWAP[o].reshape(-1, 1), swapped, stored)


def upright_array(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn an array (H, W, ...) of the stored frame upright (a view, any dtype)."""
    if _MIRROR_X[orientation]:
        pixels = pixels[:, ::-1]
    if _MIRROR_Y[orientation]:
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if _SWAP[orientation] else pixels


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1
    try:
        # Of the class, since that of PNG decodes the pixels first, and the head given here ends before them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        return int(value) if value in range(1, 9) else 1
    except Exception:  # anything at all can be wrong in EXIF bytes, and Pillow raises what it meets
        return 1
