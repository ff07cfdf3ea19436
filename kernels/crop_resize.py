"""Windows of images in memory resized to square views, antialiased, upright whatever frame the images lie in.

On a GPU by the kernel of crop_resize.cu, on a CPU by crop_resize_cpu. Either reads the window and nothing
around it, so that a view does not depend on how much of its image was decoded.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from objcrop.errors import ObjcropError
from objcrop.kernels import nvrtc

TILE, BLOCK = (32, 32), (32, 8)  # columns and rows of a view that a block makes, and its threads: of crop_resize.cu
FILTERS = {"bilinear": 0, "bicubic": 1}


class Windows(NamedTuple):
    """Windows of RGB images in memory, wherever each lies; whoever holds this holds the images too.

    Attributes:
        corners: int64 (N,), address of each window's upper left pixel.
        steps: int32 (N, 2), bytes from a pixel to its right neighbour, and to the one below; negative or swapped where
            the image is stored turned.
        sizes: int32 (N, 2), width and height, not 0.
    """

    corners: Any
    steps: Any
    sizes: Any


def pixels_of(windows: Windows, i: int) -> NDArray[np.uint8]:
    """Return a window in the CPU's memory as an array (h, w, 3), which is no copy and keeps nothing alive."""
    right, down = windows.steps[i].tolist()
    width, height = windows.sizes[i].tolist()
    return np.asarray(_Memory(int(windows.corners[i]), (height, width, 3), (down, right, 1)))


class _Memory:
    """Bytes at an address, by NumPy's array interface (version 3)."""

    def __init__(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.__array_interface__ = {
            **{"version": 3, "typestr": "|u1", "data": (address, False)},  # torch warns of what cannot be written
            **{"shape": shape, "strides": strides},
        }


def resize_uint8(window: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize uint8 (h, w, 3) to (*size, 3) by torch, antialiased: whole photos, of which it makes large ones faster.

    Args:
        window: uint8 (h, w, 3), RGB; the result lies on its device.
        size: height and width of the result.
        interpolation: "bilinear", within 1 of 255 of PIL's and of ours, or "bicubic".
    """
    pixels = window[None].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    if pixels.is_cuda:  # torch resizes bytes on the CPU alone
        pixels = pixels.float()
    small = interpolate(pixels, size=size, mode=interpolation, antialias=True, align_corners=False)
    if pixels.is_cuda:
        small = small.round().clamp(0, 255).to(torch.uint8)
    return small[0].permute(1, 2, 0).contiguous()


@torch.no_grad()
def crop_resize(windows: Windows, size: int, interpolation: str, device: torch.device) -> torch.Tensor:
    """Crop and resize a batch; on a GPU nothing is copied or waited for.

    Args:
        windows: their images in the memory of `device`; tensors there, on a CPU arrays will do.
        size: side of the views, pixels.
        interpolation: "bilinear" or "bicubic".
        device: where the images are.

    Returns:
        uint8 (N, size, size, 3) on the device.

    Raises:
        ObjcropError: no CuPy, on a GPU.
    """
    out = torch.empty(len(windows.corners), size, size, 3, dtype=torch.uint8, device=device)
    if device.type == "cpu":
        from objcrop.kernels.crop_resize_cpu import crop_resize_into  # numba takes a second to come

        crop_resize_into(out.numpy(), windows, interpolation)
        return out
    if not nvrtc.available():
        raise ObjcropError("cropping on a GPU needs CuPy: install the extra cuda13 (or cuda12), or take device='cpu'.")
    if out.numel():
        grid = -(-size // TILE[0]), -(-size // TILE[1]), len(out)
        numbers = np.int32(size), np.int32(FILTERS[interpolation])
        arguments = (*(part.contiguous() for part in windows), *numbers, out)
        nvrtc.launch("crop_resize", "crop_resize", grid, BLOCK, arguments)
    return out
