"""DALI in the way of solo-learn: whole images decoded, DALI's own crops and colour, mixed by what was drawn.

Not the same views: no boxes, crops anywhere in the image, random numbers of DALI, hue turned in YIQ, not in HSV.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from objcrop.bench.rivals.wanted import TwoViews, Wanted
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.devices import resolve_device


def solo_dali(wanted: Wanted, device: str) -> Generator[TwoViews, None, None]:
    """Yield batches without end.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
    """
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    for (batch,) in DALIGenericIterator([_graph(wanted, device)], ["one", "two"]):
        yield TwoViews((batch["one"].to(wanted.device), batch["two"].to(wanted.device)))


def _graph(wanted: Wanted, device: str) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    def happens(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def mixed(condition: Any, then: Any, otherwise: Any) -> Any:
        """Both are computed, one is kept."""
        return then * condition + otherwise * (condition ^ True)

    def view(image: Any) -> Any:
        def near(amount: float) -> Any:
            return fn.random.uniform(range=[1 - amount, 1 + amount])

        crop = fn.random_resized_crop(image, size=wanted.size, random_area=[0.2, 1.0], antialias=True)
        hue = fn.random.uniform(range=[-36.0, 36.0])
        twisted = fn.color_twist(crop, brightness=near(0.4), contrast=near(0.4), saturation=near(0.4), hue=hue)
        jittered = mixed(happens(0.8), twisted, crop)
        coloured = fn.saturation(jittered, saturation=fn.cast(happens(0.2) ^ True, dtype=types.FLOAT))
        blurred = fn.gaussian_blur(coloured, sigma=fn.random.uniform(range=[0.1, 2.0]), window_size=23)
        return fn.crop_mirror_normalize(
            mixed(happens(0.5), blurred, coloured),
            mirror=fn.random.coin_flip(),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * m for m in IMAGENET_MEAN],
            std=[255 * s for s in IMAGENET_STD],
        )

    @pipeline_def(
        batch_size=wanted.batch_size,
        num_threads=wanted.threads,
        device_id=resolve_device(wanted.device).index if device == "gpu" else None,
        seed=0,
    )
    def graph() -> Any:
        encoded, _ = fn.readers.file(files=wanted.paths(), random_shuffle=True)
        image = fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu")
        return view(image), view(image)

    return graph()
