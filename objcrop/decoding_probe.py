"""Which ways of decoding a GPU does right: each is tried in a process of its own, and its pixels are looked at.

Two faults are reported of libraries beneath DALI, and neither ends as an error that could be caught:

- a decoder that takes the process along: nvImageCodec 0.9 with windows of JPEGs on an H100 (NVIDIA/nvImageCodec#55);
- a decoder that writes out of its stream's order, into memory that earlier work still reads: nvJPEG's hardware decoder
  on an H100 (pytorch/vision#9606). Pixels are wrong, without a word, when the GPU is busy.

So every way loads the same views three times: the consumer waiting for each batch; keeping its own stream full of work;
keeping the loader's stream full. What is safe lives, changes no pixel when the GPU is busy, and agrees with the CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from objcrop.child_process import Child, ChildDied, alive
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views

# Mean difference from the CPU's decoder in a view, of 255 levels. Decoders round differently, and one that does not
# smooth the chroma, as hardware may not, is 1.7 levels off in the worst of such views (measured with libjpeg-turbo;
# single pixels 100); pixels of another image, or none, are tens of levels off.
NEAR = 4.0
BATCH = 128  # JPEGs at once, enough to keep a hardware decoder's engines busy
PASSES = 3  # of each kind of busy


class Way(NamedTuple):
    """How JPEGs are decoded; the options of `load_views`."""

    decode: str
    hw_decoder_load: float


@dataclass(frozen=True)
class Probed:
    """What came of a way.

    Attributes:
        decode: "whole" or "union".
        hw_decoder_load: share of the JPEGs for the GPU's own decoder.
        trouble: how the process died, "" where it lived; then the numbers are 0.
        views: how many were looked at.
        mean_off: mean difference from the CPU's views, of 255 levels, in the worst view.
        max_off: the largest difference of a pixel from them.
        moved: share of the views of which a pixel changed when the GPU was busy.
        max_moved: by how much at most, of 255 levels.
        said: the last words of one that died: where it was, and what its libraries had to say.
    """

    decode: str
    hw_decoder_load: float
    trouble: str = ""
    views: int = 0
    mean_off: float = 0.0
    max_off: int = 0
    moved: float = 0.0
    max_moved: int = 0
    said: str = ""

    @property
    def safe(self) -> bool:
        """Whether this may be used here."""
        return not self.trouble and self.moved == 0 and self.mean_off <= NEAR


def ways(device: str) -> list[Way]:
    """Return the ways to try, the default first; a CPU has no hardware decoder."""
    loads = (0.0, 0.65) if device == "cuda" else (0.0,)
    return [Way(decode, load) for decode in ("whole", "union") for load in loads]


def probe_decoding(
    device: str = "cuda", tried: Sequence[Way] | None = None, *, images: int = 512, quiet: float | None = None
) -> list[Probed]:
    """Try ways of decoding on scenes drawn for the purpose.

    Args:
        device: "cuda"; "cpu" tries the CPU's operators, which says that this probe works.
        tried: the ways; None for `ways(device)`.
        images: JPEGs of 500×375 pixels, two views of each.
        quiet: seconds without a batch after which a way is taken to hang; None for `child_process.QUIET`.

    Returns:
        What came of each, in their order.

    Raises:
        ObjcropError: not even a CPU decodes here.
    """
    from objcrop.formats import index
    from objcrop.progress import tracked
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scenes

    limit = {} if quiet is None else {"quiet": quiet}
    tried = ways(device) if tried is None else tried
    with tempfile.TemporaryDirectory(prefix="objcrop-probe-") as name:
        folder = Path(name)
        draw_scenes(folder, images)
        catalog, _ = index(folder, "scenes")
        catalog.save(folder / "photos.arrow")
        propose(catalog, "gt").save(folder / "boxes.arrow")
        keep_expected(folder)
        probed = []
        for way in tracked(tried, len(tried), "decoding"):
            with Child(probe_way, **limit) as child:  # a new process each: one that lives may be ill all the same
                try:
                    probed.append(Probed(*way, **child(folder, device, way)))
                except ChildDied as died:
                    probed.append(Probed(*way, trouble=str(died), said=child.said()[-2000:]))
        return probed


def keep_expected(folder: Path) -> None:
    """Write the views as the CPU makes them, uint8 (N, V, 3, S, S)."""
    with _views(folder, "cpu", None) as loader:
        np.save(folder / "expected.npy", torch.cat([_levels(batch) for batch in loader]).numpy())


def probe_way(folder: Path, device: str, way: Way) -> dict[str, Any]:
    """Be a child: return the numbers of a `Probed`."""
    expected = torch.from_numpy(np.load(folder / "expected.npy")).split(BATCH)
    with _views(folder, device, way) as loader:
        idle = []
        for batch in alive(loader):
            idle.append(_levels(batch))
            if device == "cuda":
                torch.cuda.synchronize()
        work = _Work(device)
        moved = []
        for turn in range(2 * PASSES):
            loader.set_epoch(0)
            # Nothing is read back until the pass is over, so that work is queued ahead of the device as in training.
            apart = []
            for kept, batch in alive(zip(idle, loader)):
                work.queue(getattr(loader, "side_stream", None) if turn % 2 else None)
                apart.append((_levels(batch).int() - kept.int()).abs().flatten(2).amax(2))
            moved.append(torch.cat(apart).cpu())
    off = [(kept.cpu().int() - right.int()).abs().flatten(2) for kept, right in zip(idle, expected, strict=True)]
    mean_off = torch.cat([each.float().mean(2) for each in off])
    changes = torch.stack(moved)
    return {
        "views": mean_off.numel(),
        "mean_off": round(float(mean_off.max()), 3),
        "max_off": max(int(each.max()) for each in off),
        "moved": float((changes > 0).float().mean()),
        "max_moved": int(changes.max()),
    }


class _Work:
    """Matrix products that keep a GPU busy for longer than it decodes a batch.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        self.matrix = torch.randn(*[8192 if device == "cuda" else 64] * 2, device=device)

    def queue(self, stream: torch.cuda.Stream | None) -> None:
        """Put some into a stream, None for the current one."""
        with torch.cuda.stream(stream):
            for _ in range(5):
                self.matrix @ self.matrix


def _views(folder: Path, device: str, way: Way | None) -> ViewLoader:
    """Return the loader of a way; None is what a CPU does by default."""
    options: dict[str, Any] = {}
    if device == "cuda" and way is not None:
        options = way._asdict()
    elif way is not None and way.decode == "whole":
        options = {"cache": "host"}  # on a CPU only a cache decodes whole images
    return load_views(
        folder / "photos.arrow",
        boxes=folder / "boxes.arrow",
        crops="obj-obj+dilate",
        augment="none",
        batch_size=BATCH,
        device=device,
        shuffle=False,
        drop_last=False,
        rank=0,
        world_size=1,
        **options,
    )


def _levels(batch: Views) -> torch.Tensor:
    """Return a batch's views before they were normalised, uint8 (N, V, 3, S, S)."""
    views = torch.stack(batch.views, 1)
    mean, std = (torch.tensor(of, device=views.device)[:, None, None] for of in (IMAGENET_MEAN, IMAGENET_STD))
    return ((views * std + mean) * 255).round().clamp(0, 255).byte()


def advice(probed: Sequence[Probed]) -> list[str]:
    """Return what to use, in words and as a line of code; the ways in the order in which they are preferred."""
    safe = [way for way in probed if way.safe]
    if not safe:
        return ["No way of decoding on this GPU is safe.", 'Use load_views(…, backend="dali", device="cpu").']

    def options(way: Probed) -> str:
        return f'decode="{way.decode}", hw_decoder_load={way.hw_decoder_load}'

    lines = [f'Use load_views(…, backend="dali", device="cuda", {options(safe[0])}).']
    if safe[1:]:
        others = "; ".join(map(options, safe[1:]))
        lines.append(f"Safe here too, and `objcrop bench loader --tune` says what is fastest: {others}.")
    return lines
