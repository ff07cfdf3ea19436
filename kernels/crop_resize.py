"""Windows of decoded images resized to square views, antialiased: DALI's decoder and resize for images at hand.

Used by the decoded cache. On CUDA tensors the kernel of crop_resize.cu, elsewhere torch's uint8 interpolation.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from objcrop.kernels import nvrtc

THREADS = 256
BLOCKS = 49  # a view: four pixels of a 224 view each thread
FILTERS = {"bilinear": 0, "bicubic": 1}


def resize_uint8(window: torch.Tensor, size: tuple[int, int], interpolation: str) -> torch.Tensor:
    """Resize uint8 (h, w, 3) to (*size, 3), antialiased: within 1 of 255 of PIL at an eighth of its time."""
    pixels = window.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    if pixels.is_cuda:  # torch resizes bytes on the CPU alone
        pixels = pixels.float()
    small = interpolate(pixels, size=size, mode=interpolation, antialias=True, align_corners=False)
    if pixels.is_cuda:
        small = small.round().clamp(0, 255).to(torch.uint8)
    return small[0].permute(1, 2, 0).contiguous()


@torch.no_grad()
def crop_resize(
    pixels: torch.Tensor,
    begins: torch.Tensor,
    widths: torch.Tensor,
    windows: torch.Tensor,
    size: int,
    interpolation: str,
) -> torch.Tensor:
    """Crop and resize a batch; with the kernel nothing is copied or waited for.

    Args:
        pixels: uint8 (bytes,): RGB images (H, W, 3), one behind the other.
        begins: int64 (N,): where each view's image begins.
        widths: int32 (N,): of the images, pixels.
        windows: int32 (N, 4): x0, y0, x1, y1 in pixels of the image, half-open, inside it, not empty.
        size: side of the views, pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 (N, size, size, 3) on the device of `pixels`.
    """
    out = pixels.new_empty(len(windows), size, size, 3)
    if pixels.is_cuda and nvrtc.available():
        if out.numel():
            numbers = np.int32(size), np.int32(FILTERS[interpolation])
            arguments = (pixels, begins.contiguous(), widths.contiguous(), windows.contiguous(), *numbers, out)
            nvrtc.launch("crop_resize", "crop_resize", (BLOCKS, len(windows)), (THREADS,), arguments)
        return out
    for view, (begin, width, window) in enumerate(zip(begins.tolist(), widths.tolist(), windows.tolist())):
        x0, y0, x1, y1 = window
        rows = pixels[begin + 3 * width * y0 : begin + 3 * width * y1].view(y1 - y0, width, 3)
        out[view] = resize_uint8(rows[:, x0:x1], (size, size), interpolation)
    return out
