"""A decoder of whole batches, torchcodec's or nvImageCodec's own, and torchvision's v2 transforms behind it.

On a GPU both decode JPEGs there by nvJPEG, and the views are made there. torchcodec is where PyTorch's image decoders
have gone: those of torchvision are deprecated.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; files that are no JPEG are left
out. v2 draws once a call, so every view is made on its own; on a CPU in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import TwoViews, Wanted, shuffled

Decode = Callable[[Sequence[bytes]], Sequence[torch.Tensor]]  # to uint8 (3, H, W)


def torchcodec_v2(wanted: Wanted, device: str) -> Generator[TwoViews, None, None]:
    """Yield batches without end, decoded by torchcodec.

    Args:
        wanted: what is asked for.
        device: "cpu" or "cuda", where images are decoded and views made.
    """
    from torchcodec.decoders import decode_jpeg

    yield from _batches(wanted, device, lambda encoded: decode_jpeg(list(encoded), mode="RGB", device=device))


def nvimgcodec_v2(wanted: Wanted, device: str) -> Generator[TwoViews, None, None]:
    """Yield batches without end, decoded by nvImageCodec, which chooses among its own decoders; as `torchcodec_v2`."""
    from nvidia import nvimgcodec

    on_gpu = device == "cuda"
    where = nvimgcodec.NVIMGCODEC_DEVICE_CURRENT if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
    backends = None if on_gpu else [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
    decoder = nvimgcodec.Decoder(device_id=where, max_num_cpu_threads=wanted.threads, backends=backends)

    def decode(encoded: Sequence[bytes]) -> Sequence[torch.Tensor]:
        images = decoder.decode([nvimgcodec.CodeStream(data) for data in encoded])
        pixels = [torch.as_tensor(image if on_gpu else np.asarray(image), device=device) for image in images]
        return [image.permute(2, 0, 1) for image in pixels]

    yield from _batches(wanted, device, decode)


def _batches(wanted: Wanted, device: str, decode: Decode) -> Generator[TwoViews, None, None]:
    """Yield batches without end; the files of the next batch are read while this one is made."""
    paths = [path for path in wanted.paths() if path.lower().endswith((".jpg", ".jpeg"))]
    order, view = shuffled(len(paths)), moco_v2(wanted.size)
    with ThreadPoolExecutor(wanted.threads) as pool:
        each = map if device == "cuda" else pool.map

        def reading() -> list[Future[bytes]]:
            return [pool.submit(Path(paths[row]).read_bytes) for row in islice(order, wanted.batch_size)]

        ahead = reading()
        while True:
            encoded, ahead = [file.result() for file in ahead], reading()
            images = decode(encoded)
            one, two = (torch.stack(list(each(view, images))) for _ in range(2))
            yield TwoViews((one.to(wanted.device), two.to(wanted.device)))
