"""torchvision's JPEG decoder on the GPU, and its v2 transforms there.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; files that are no JPEG are left
out, EXIF is not looked at. A batch is decoded at once, but v2 draws once a call, so every view is made on its own.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import TwoViews, Wanted, shuffled


def torchvision_gpu(wanted: Wanted) -> Generator[TwoViews, None, None]:
    """Yield batches without end; the files of the next batch are read while this one is made."""
    paths = [path for path in wanted.paths() if path.lower().endswith((".jpg", ".jpeg"))]
    order, view = shuffled(len(paths)), moco_v2(wanted.size)
    with ThreadPoolExecutor(wanted.threads) as pool:

        def reading() -> list[Future[torch.Tensor]]:
            return [pool.submit(read_file, paths[row]) for row in islice(order, wanted.batch_size)]

        ahead = reading()
        while True:
            encoded, ahead = [file.result() for file in ahead], reading()
            images = decode_jpeg(encoded, ImageReadMode.RGB, device=wanted.device)
            one, two = (torch.stack([view(image) for image in images]) for _ in range(2))
            yield TwoViews((one, two))
