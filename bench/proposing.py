"""How much of the rate of decoding alone `propose --method bing | anchors` keeps: 80 % is wanted on a GPU.

An H200 beside 16 cores kept 21 % (BING) and 29 % (anchors); bench/GPU_QUEUE.md says what is known of why.

    objcrop bench proposals voc.arrow --rate --device cuda -o bench/results/h200_proposals_rate.json

A part of the catalog after another, as the command works: decoded by DALI on a GPU or by PIL in threads on a CPU,
scored, written to disk. Decoding alone is the same walk over whole images that nobody looks at. All take turns,
`repeats` times, each after two parts that are not counted; the catalog is begun anew where it is too small. Making the
network, reading the catalog and joining the parts at the end are not in it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from objcrop.bench.stopwatch import Stopwatch
from objcrop.catalog import Catalog
from objcrop.dali_pipes.decode_crop_resize import decode_whole, default_threads
from objcrop.devices import device_kind, resolve_device
from objcrop.errors import one_of, refuse_without_gpu
from objcrop.proposals.anchors import AnchorProposer
from objcrop.proposals.bing import WEIGHTS, BingProposer
from objcrop.proposals.canvas import ROWS, CanvasProposer, propose_with_dali
from objcrop.proposals.from_images import finished_parts, propose_with_pil, read_images

PROPOSERS: dict[str, Callable[[str], CanvasProposer]] = {
    "bing": lambda device: BingProposer(WEIGHTS, 10, 0.6, device, False),
    "anchors": lambda device: AnchorProposer("untrained:resnet50", "mean-sqrt-area", 5, 0.5, device, False),
}
DECODING = "decoding alone"
WARM_UP = 2  # parts


def bench_proposing(catalog: Catalog, *, device: str = "auto", repeats: int = 3, images: int = 2048) -> dict[str, Any]:
    """Measure both methods and decoding alone.

    Args:
        catalog: the images.
        device: "auto", "cpu" or "cuda".
        repeats: measurements of each.
        images: in each measurement, rounded up to whole parts.

    Returns:
        `rates`: for each name the stopwatch's summary; `share_of_decoding` of each method; `verdict`.

    Raises:
        UsageError: no GPU for "cuda".
    """
    refuse_without_gpu(one_of(device, ("auto", "cpu", "cuda"), "device"))
    device = device_kind(device)
    epoch = [range(begin, min(begin + ROWS, len(catalog))) for begin in range(0, len(catalog), ROWS)]
    counted = -(-images // len(epoch[0]))
    parts = (epoch * -(-(WARM_UP + counted) // len(epoch)))[: WARM_UP + counted]
    watches = {name: Stopwatch() for name in (DECODING, *PROPOSERS)}
    for name, watch in [*watches.items()] * repeats:
        with closing(_walk(name, catalog, parts, device)) as walk:
            for _ in islice(walk, WARM_UP):
                pass
            watch.lap(walk)
    rates = {name: watch.summary() for name, watch in watches.items()}
    shares = {name: rates[name]["images_per_s"] / rates[DECODING]["images_per_s"] for name in PROPOSERS}
    return {
        "what": "propose beside decoding alone, images a second",
        "device": device,
        "catalog_images": len(catalog),
        "rates": rates,
        "share_of_decoding": {name: round(share, 3) for name, share in shares.items()},
        "verdict": [f"{name}: {share:.0%} of the rate of decoding alone." for name, share in shares.items()],
    }


def _walk(name: str, catalog: Catalog, parts: list[range], device: str) -> Generator[range, None, None]:
    """Yield the rows of each part when it is done."""
    if name == DECODING:
        yield from _decoded(catalog, parts, device)
        return
    with tempfile.TemporaryDirectory(prefix="objcrop-bench-") as folder:
        how = propose_with_dali if device == "cuda" else propose_with_pil
        numbered = dict(enumerate(parts))
        for part in finished_parts(catalog, lambda: PROPOSERS[name](device), numbered, how, Path(folder)):
            yield parts[part]


def _decoded(catalog: Catalog, parts: list[range], device: str) -> Iterator[range]:
    if device == "cuda":
        graph: dict[str, Any] = {"threads": default_threads(device), "prefetch": 2, "device": device}
        graph["device_id"] = resolve_device(device).index
        for rows, _ in zip(parts, decode_whole(catalog, parts, **graph)):
            yield rows
        return
    with ThreadPoolExecutor(os.cpu_count() or 1) as readers:
        for rows in parts:
            read_images(catalog, rows, readers.map)
            yield rows
