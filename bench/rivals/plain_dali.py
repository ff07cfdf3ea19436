"""DALI alone, as its documentation has it: whole images decoded, its own crops and colour, each step only where drawn.

Not the same views: no boxes, crops anywhere in the image, random numbers of DALI, hue turned in YIQ, not in HSV.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted
from objcrop.devices import resolve_device
from objcrop.kernels.colour_reference import blur_kernel_size


def loader(wanted: Wanted, device: str) -> Epochs:
    """Return the loader.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
    """
    return Dali(wanted, device, _view)


class Dali(Epochs):
    """DALI's iterator over a graph of views, which counts its epochs itself; its state is a checkpoint of DALI.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
        view: makes a view of a decoded image, in the graph.
    """

    def __init__(self, wanted: Wanted, device: str, view: Callable[[Any, Wanted], Any]) -> None:
        super().__init__(self._of_epoch)
        self.wanted, self.device, self.view = wanted, device, view
        self.iterator: Any = None

    def _begin(self, checkpoints: list[str] | None) -> None:
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

        graph = _graph(self.wanted, self.device, self.view, None if checkpoints is None else checkpoints[0])
        self.iterator = DALIGenericIterator(
            [graph], ["one", "two", "row"], reader_name="files", last_batch_policy=LastBatchPolicy.DROP, auto_reset=True
        )

    def _of_epoch(self, number: int) -> Iterator[TwoViews]:
        if self.iterator is None:
            self._begin(None)
        for (batch,) in self.iterator:
            yield TwoViews((batch["one"], batch["two"]), batch["row"].flatten().long())

    def state_dict(self) -> dict[str, Any]:
        """Return DALI's checkpoint."""
        return {"checkpoints": self.iterator.checkpoints()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin at a checkpoint."""
        self._begin(state["checkpoints"])


def _graph(wanted: Wanted, device: str, view: Callable[[Any, Wanted], Any], checkpoint: str | None) -> Any:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(
        batch_size=wanted.batch_size,
        num_threads=wanted.threads,
        device_id=resolve_device(wanted.device).index if device == "gpu" else None,
        seed=wanted.seed,
        enable_conditionals=True,
        enable_checkpointing=True,
        checkpoint=checkpoint,
    )
    def graph() -> Any:
        paths = wanted.paths()
        encoded, row = fn.readers.file(
            files=paths,
            labels=list(range(len(paths))),
            random_shuffle=True,
            shard_id=wanted.rank,
            num_shards=wanted.world_size,
            name="files",
        )
        image = fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu")
        return view(image, wanted), view(image, wanted), row

    return graph()


def _view(image: Any, wanted: Wanted) -> Any:
    from nvidia.dali import fn, types

    def happens(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def near(amount: float) -> Any:
        return fn.random.uniform(range=[1 - amount, 1 + amount])

    pixels = fn.random_resized_crop(image, size=wanted.size, random_area=[0.2, 1.0], antialias=True)
    if happens(0.8):
        hue = fn.random.uniform(range=[-36.0, 36.0])
        pixels = fn.color_twist(pixels, brightness=near(0.4), contrast=near(0.4), saturation=near(0.4), hue=hue)
    if happens(0.2):
        pixels = fn.saturation(pixels, saturation=0.0)
    if happens(wanted.blur_p):
        side = blur_kernel_size(wanted.size)
        pixels = fn.gaussian_blur(pixels, sigma=fn.random.uniform(range=[0.1, 2.0]), window_size=side)
    return normalised(pixels, wanted)


def normalised(pixels: Any, wanted: Wanted) -> Any:
    """Mirror every other view and normalise all, uint8 HWC to float32 CHW, in the graph."""
    from nvidia.dali import fn, types

    return fn.crop_mirror_normalize(
        pixels,
        mirror=fn.random.coin_flip(),
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * m for m in wanted.mean],
        std=[255 * s for s in wanted.std],
    )
