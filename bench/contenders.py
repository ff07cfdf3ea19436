"""Who takes part in the bench of loaders: ours, and the rivals in bench/rivals."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from objcrop.bench.machine import installed
from objcrop.bench.our_factory import ZERO_TO_ONE, Pairs, numbers_of
from objcrop.bench.rivals.wanted import Wanted
from objcrop.catalog import catalog_at


@dataclass(frozen=True)
class Contender:
    """One that is measured.

    Attributes:
        module: of a rival, in bench/rivals; None for our own loader.
        options: of the rival's `loader`, or of `load_views`.
        needs_gpu: makes its views on one.
        package: that must be installed.
        pip: its name there.
        processes: it works in processes of its own, each of which takes batches to begin.
        converts: it reads files that it writes beforehand.
    """

    module: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    needs_gpu: bool = False
    package: str | None = None
    pip: str | None = None
    processes: bool = True
    converts: bool = False

    @property
    def ours(self) -> bool:
        """Whether it makes its views from our plan."""
        return self.module is None

    def left_out(self, device: str) -> str | None:
        """Return why it cannot be measured, None where it can."""
        if self.package is not None and not installed(self.package):
            return f"not installed: pip install {self.pip or self.package}"
        if self.needs_gpu and device != "cuda":
            return "needs --device cuda" if torch.cuda.is_available() else "needs a GPU"
        return None

    def convert(self, wanted: Wanted) -> None:
        """Write the files that it reads, where it needs its own."""
        if self.converts:
            self._rival().convert(wanted)

    def loader(self, wanted: Wanted) -> Any:
        """Return what is walked once an epoch."""
        return wanted.loader(**self.options) if self.ours else self._rival().loader(wanted, **self.options)

    def batches(self, wanted: Wanted) -> Generator[Any, None, None]:
        """Yield batches epoch after epoch, on the device wanted."""
        loader = self.loader(wanted)
        try:
            while True:
                for batch in loader:
                    yield batch.to(wanted.device)
        finally:
            if hasattr(loader, "close"):
                loader.close()

    def audited(self, folder: str, *, size: int, device: str = "cpu", **options: Any) -> Pairs:
        """Return its loader as `objcrop bench audit` asks for one, see bench/audit.py."""
        files = sorted(map(str, Path(folder).glob("*.jpg")))
        catalog = catalog_at(folder)
        here = Path(mkdtemp(dir=folder)) if self.converts else Path(folder)
        few: dict[str, Any] = {"workers": 2, "threads": 2, "folder": here, "files": tuple(files)}
        wanted = Wanted(catalog, None, "scene-scene", size, device=device, **few, **options, **ZERO_TO_ONE)
        self.convert(wanted)
        shown = [catalog.path(row) for row in range(len(catalog))] if self.ours else files
        return Pairs(self.loader(wanted), numbers_of(shown))

    def _rival(self) -> Any:
        return importlib.import_module(f"objcrop.bench.rivals.{self.module}")


def rival(module: str, **about: Any) -> Contender:
    """Return a rival; what is no field of a `Contender` is an option of its `loader`."""
    known = {name: about.pop(name) for name in list(about) if name in Contender.__dataclass_fields__}
    return Contender(module, about, **known)


def ours(needs_gpu: bool = False, **options: Any) -> Contender:
    """Return a loader of ours."""
    return Contender(options=options, needs_gpu=needs_gpu, processes=options.get("backend") == "torch")


CONTENDERS: dict[str, Contender] = {
    "torch, colour=pil": ours(backend="torch", colour="pil"),
    "torch, colour=float": ours(backend="torch", colour="float"),
    "dali, cpu": ours(backend="dali", device="cpu"),
    "dali, cuda": ours(backend="dali", needs_gpu=True),
    # Nearly as plain DALI decodes unasked; 16 threads made it slower on an H200.
    "dali, cuda, hardware decoder": ours(backend="dali", hw_decoder_load=1.0, threads=4, needs_gpu=True),
    "dali, cpu, cache=host": ours(backend="dali", device="cpu", cache="host"),
    "dali, cuda, cache=host": ours(backend="dali", cache="host", needs_gpu=True),
    "dali, cuda, cache=device": ours(backend="dali", cache="device", needs_gpu=True),
    "PIL": rival("pil_chain"),
    "torchvision v2": rival("torchvision_v2", decode="pil"),
    "torchvision v2, torchcodec": rival("torchvision_v2", decode="torchcodec", package="torchcodec"),
    "torchvision v2, torchcodec, gpu": rival(
        "batch_decoded", by="torchcodec", device="cuda", needs_gpu=True, package="torchcodec", processes=False
    ),
    "torchvision v2, nvImageCodec": rival(
        "batch_decoded", by="nvimgcodec", device="cpu", package="nvidia.nvimgcodec", pip="nvidia-nvimgcodec-cu13"
    ),
    "torchvision v2, nvImageCodec, gpu": rival(
        "batch_decoded",
        by="nvimgcodec",
        device="cuda",
        needs_gpu=True,
        package="nvidia.nvimgcodec",
        pip="nvidia-nvimgcodec-cu13",
        processes=False,
    ),
    "lightly": rival("lightly_views", package="lightly"),
    "kornia": rival("kornia_batches", package="kornia"),
    "SPDL": rival("spdl", package="spdl", processes=False),
    "WebDataset": rival("webdataset", package="webdataset", converts=True),
    "LitData": rival("litdata", package="litdata", converts=True),
    "FFCV, no colour": rival("ffcv", package="ffcv", converts=True, processes=False),
    "DALI": rival("plain_dali", device="cpu", processes=False),
    "DALI, gpu": rival("plain_dali", device="gpu", needs_gpu=True, processes=False),
    "DALI as in solo-learn": rival("solo_dali", device="cpu", processes=False),
    "DALI as in solo-learn, gpu": rival("solo_dali", device="gpu", needs_gpu=True, processes=False),
    "DALI's torchvision, gpu": rival(
        "dali_torchvision",
        device="gpu",
        needs_gpu=True,
        package="nvidia.dali.experimental.torchvision",
        pip="'nvidia-dali-cuda130>=2.4'",
        processes=False,
    ),
}
