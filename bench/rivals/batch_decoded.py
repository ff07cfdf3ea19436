"""A decoder of whole batches, torchcodec's or nvImageCodec's own, and torchvision's v2 transforms behind it.

On a GPU both decode JPEGs there by nvJPEG, and the views are made there.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; files that are no JPEG are left
out. v2 draws once a call, so every view is made on its own; on a CPU in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted, in_batches

Decode = Callable[[Sequence[bytes]], Sequence[torch.Tensor]]  # to uint8 (3, H, W)


def loader(wanted: Wanted, by: str, device: str) -> Epochs:
    """Return the loader; the files of the next batch are read while this one is made.

    Args:
        wanted: what is asked for.
        by: "torchcodec" or "nvimgcodec".
        device: "cpu" or "cuda", where images are decoded and views made.
    """
    decode, paths, view = DECODERS[by](wanted, device), wanted.paths(), moco_v2(wanted)
    torch.manual_seed(wanted.seed)

    def epoch(number: int) -> Iterator[TwoViews]:
        rows = [row for row in wanted.rows(number) if paths[row].lower().endswith((".jpg", ".jpeg"))]
        batches = in_batches(rows, wanted.batch_size)
        with ThreadPoolExecutor(wanted.threads) as pool:
            each = map if device == "cuda" else pool.map

            def reading(batch: list[int]) -> list[Future[bytes]]:
                return [pool.submit(Path(paths[row]).read_bytes) for row in batch]

            ahead = reading(batches[0])
            for batch, coming in zip(batches, [*batches[1:], []]):
                encoded, ahead = [file.result() for file in ahead], reading(coming)
                images = decode(encoded)
                one, two = (torch.stack(list(each(view, images))) for _ in range(2))
                yield TwoViews((one, two), torch.tensor(batch))

    return Epochs(epoch)


def _torchcodec(wanted: Wanted, device: str) -> Decode:
    from torchcodec.decoders import decode_jpeg

    return lambda encoded: decode_jpeg(list(encoded), mode="RGB", device=device)


def _nvimgcodec(wanted: Wanted, device: str) -> Decode:
    """It chooses among its own decoders."""
    from nvidia import nvimgcodec

    on_gpu = device == "cuda"
    where = nvimgcodec.NVIMGCODEC_DEVICE_CURRENT if on_gpu else nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
    backends = None if on_gpu else [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
    decoder = nvimgcodec.Decoder(device_id=where, max_num_cpu_threads=wanted.threads, backends=backends)

    def decode(encoded: Sequence[bytes]) -> Sequence[torch.Tensor]:
        images = decoder.decode([nvimgcodec.CodeStream(data) for data in encoded])
        pixels = [torch.as_tensor(image if on_gpu else np.asarray(image), device=device) for image in images]
        return [image.permute(2, 0, 1) for image in pixels]

    return decode


DECODERS = {"torchcodec": _torchcodec, "nvimgcodec": _nvimgcodec}
