"""Does a loader feed what its recipe says? Anybody's is held against torchvision's MoCo-v2 views, and its own word.

    objcrop bench audit my_module:make_loader -o audit.json
    objcrop bench audit objcrop.bench.our_factory:make_loader       ours, and how such a factory looks
    objcrop bench audit WebDataset                                  a contender of `bench loader`, by its name there

The audit draws images of its own (bench/audit_images.py) and calls

    make_loader(folder, *, batch_size, size, seed, rank, world_size, blur_p)

- `folder`: a path, with 0000.jpg, 0001.jpg, … in it, all RGB and of one size;
- `batch_size`: images in a batch, of one rank or of all together, whichever is the loader's way;
- `size`: side S of the views, pixels;
- `seed`: of the order and of the views;
- `rank`, `world_size`: which process this is, of how many. All of them are made here, one after the other: take the
  numbers given, start no process group;
- `blur_p`: probability of the blur.

It returns an iterable over one epoch, of pairs (views, index): views, one or more tensors (N, 3, S, S), uint8, or float
in 0..1 (so undo a normalisation); index, (N,), the number in the name of the file each view shows. Views are MoCo-v2's:
RandomResizedCrop(S, scale=(0.2, 1)), ColorJitter(0.4, 0.4, 0.4, 0.1) with probability 0.8, RandomGrayscale(0.2), a blur
of sigma 0.1 to 2 pixels with probability `blur_p`, which is not its .5, since 1 - .5 could not be told from it, and
RandomHorizontalFlip. `set_epoch(epoch)`, `state_dict()`, `load_state_dict(state)` and `close()` are called where the
loader has them.

Crops and colours are measured in the pixels, the same way in views that torchvision made of the same images, and the
two samples compared: a two-sample Kolmogorov-Smirnov test, or a binomial test where a probability is given. A check has
failed where a right loader would give that in fewer than one of 1,000 runs, all checks together.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.bench.audit_images import HEIGHT, WIDTH, draw_images, picture, read_gauges, read_swatches
from objcrop.bench.chance import binomial_p, smirnov
from objcrop.child_process import alive, in_a_line
from objcrop.devices import device_kind
from objcrop.errors import ObjcropError, UsageError, shown
from objcrop.kernels.colour_reference import blur_kernel_size
from objcrop.progress import tracked

ROWS, BATCH, BLUR_P = 96, 16, 0.2
VERDICTS = ("passed", "failed", "cannot tell")
FEW = 40  # views, of which nothing is said
LIKE = 0.8  # likeness to its row from which a view's window and tone are believed
LARGE = 0.3  # scale of windows from which a blur can be seen: smaller ones are blurred by being enlarged
UNLIKELY = 1e-3 / 16  # the share of a right loader's runs in which one check may fail
Samples = dict[str, NDArray[np.float64]]
Factory = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """What came of one check.

    Attributes:
        verdict: one of VERDICTS.
        number: what was measured, None where nothing could be.
        sentence: what it means.
    """

    verdict: str
    number: float | None
    sentence: str


def bench_audit(name: str, make: Factory | None = None, *, size: int = 64, epochs: int = 8) -> dict[str, Any]:
    """Audit the loader that a factory makes.

    Args:
        name: see `factory`; a module may lie in the working directory. Or what `make` is called.
        make: the factory itself.
        size: side of the views, pixels.
        epochs: whose views are measured.

    Returns:
        "checks", by name, with verdict, number and sentence; "orders" and "samples", which they were judged by;
        "verdict", a line on how many passed and which did not.

    Raises:
        UsageError: the factory cannot be imported, or what it makes is not as the module's docstring asks.
        ObjcropError: the factory or its loader ended with an error of its own.
    """
    make = make or factory(name)
    with tempfile.TemporaryDirectory(prefix="objcrop-audit-") as folder:
        draw_images(Path(folder), ROWS)
        try:
            checks, orders, views = audit_order(make, folder, size=size, epochs=epochs)
        except ObjcropError:
            raise
        except Exception as error:  # the user's own code
            raise ObjcropError(
                f"the loader of '{name}' ended with {in_a_line(error, typed=True)}; mend it and call again."
            ) from error
        samples = measured(views)
        right = measured(torchvision_views(size, 2 * epochs))
        checks |= audit_crops(samples, right) | audit_colours(samples, right)
        checks |= audit_resumption(make, folder, size) | audit_bad_file(make, folder, size)
    return {
        "loader": name,
        "size": size,
        "checks": {name: asdict(check) for name, check in checks.items()},
        "orders": orders,
        "samples": {key: [None if np.isnan(v) else round(float(v), 4) for v in at] for key, at in samples.items()},
        "verdict": [summary(name, checks)],
    }


def summary(name: str, checks: dict[str, Check]) -> str:
    """Return how many checks a loader passed, and which not."""
    which = {verdict: [key for key, check in checks.items() if check.verdict == verdict] for verdict in VERDICTS}
    rest = "".join(f"; {verdict}: {', '.join(which[verdict])}" for verdict in VERDICTS[1:] if which[verdict])
    return f"{name}: {len(which['passed'])} of {len(checks)} checks passed{rest}."


def factory(name: str) -> Factory:
    """Return "module:function" itself, or the factory of a contender of `bench loader`.

    Raises:
        UsageError: it cannot be imported.
    """
    from objcrop.bench.contenders import CONTENDERS

    if name in CONTENDERS:
        device = device_kind("auto")
        if why := CONTENDERS[name].left_out(device):
            raise UsageError(f"'{name}' cannot be audited here; {why}.")
        return partial(CONTENDERS[name].audited, device=device)
    module, _, within = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), within)):
        raise UsageError(
            f"the factory is {shown(name)}, but it must be module:function, such as my_module:make_loader."
        )
    if os.getcwd() not in sys.path:  # behind all else: nothing that lies here shadows what is installed
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), within)
    except Exception as error:  # the user's own code
        raise UsageError(
            f"'{name}' cannot be imported ({in_a_line(error, typed=True)}); check it and PYTHONPATH."
        ) from error
    if not callable(found):
        raise UsageError(f"'{name}' is no function; name the one that makes the loader.")
    return found


@dataclass
class Batch:
    """What the audit keeps of a batch.

    Attributes:
        views: float32 tensors (N, 3, S, S), 0 to 1.
        rows: int64 (N,).
    """

    views: list[torch.Tensor]
    rows: NDArray[np.int64]


def walk(loader: Any, size: int, epoch: int | None = None) -> Iterator[Batch]:
    """Yield an epoch's batches; of the epoch that the loader stands at where none is given.

    Raises:
        UsageError: a batch is not as asked.
    """
    if epoch is not None and hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    for pair in alive(loader):
        try:
            views, index = pair
            rows = np.asarray(torch.as_tensor(index).cpu(), dtype=np.int64).reshape(-1)
            pixels = [torch.as_tensor(view).detach().cpu() for view in views]
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"the loader gives no pair (views, index) of tensors ({in_a_line(error, typed=True)})."
            ) from error
        if rows.size and not 0 <= rows.min() <= rows.max() < ROWS:
            raise UsageError(f"the loader gives an index of {rows.min()} to {rows.max()}; files are 0 to {ROWS - 1}.")
        for view in pixels:
            if view.shape != (len(rows), 3, size, size):
                raise UsageError(f"the loader gives a view {tuple(view.shape)}, not {(len(rows), 3, size, size)}.")
        made = [view / 255 if view.dtype == torch.uint8 else view.float() for view in pixels]
        if any(view.numel() and (view.min() < -0.01 or view.max() > 1.01) for view in made):
            raise UsageError("the loader gives floats outside 0..1: undo the normalisation, or give uint8.")
        yield Batch(made, rows)


class _Made:
    """A loader of the factory, closed in the end."""

    def __init__(
        self, make: Factory, folder: str, size: int, seed: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        place: dict[str, int] = {"rank": rank, "world_size": world_size}
        self.loader = make(folder, batch_size=BATCH, size=size, seed=seed, blur_p=BLUR_P, **place)

    def __enter__(self) -> Any:
        return self.loader

    def __exit__(self, *_: object) -> None:
        if hasattr(self.loader, "close"):
            self.loader.close()


def rows_of(batches: list[Batch]) -> list[int]:
    """Return the rows of batches in their order."""
    return [int(row) for batch in batches for row in batch.rows]


def audit_order(
    make: Factory, folder: str, *, size: int, epochs: int
) -> tuple[dict[str, Check], dict[str, list[int]], list[Batch]]:
    """Check which rows come, and when; also return the orders and the batches of all epochs."""
    with _Made(make, folder, size) as loader:
        walks = [list(walk(loader, size, epoch)) for epoch in tracked(range(epochs), epochs, "epochs")]
    with _Made(make, folder, size) as loader:
        again = list(walk(loader, size, 0))
    with _Made(make, folder, size, seed=2) as loader:
        other = list(walk(loader, size, 0))
    ranks = []
    for rank in range(2):
        with _Made(make, folder, size, rank=rank, world_size=2) as loader:
            ranks.append(rows_of(list(walk(loader, size, 0))))
    orders = {f"epoch {epoch}": rows_of(batches) for epoch, batches in enumerate(walks)}
    orders |= {"epoch 0, another seed": rows_of(other), "epoch 0, again": rows_of(again)}
    orders |= {f"epoch 0, rank {rank} of 2": rows for rank, rows in enumerate(ranks)}

    wrong = max(missed_or_more(orders[f"epoch {epoch}"]) for epoch in range(epochs))
    same_epochs = agreement(orders["epoch 0"], orders["epoch 1"])
    same_seeds = agreement(orders["epoch 0"], orders["epoch 0, another seed"])
    shared, absent = len(set(ranks[0]) & set(ranks[1])), ROWS - len(set(ranks[0]) | set(ranks[1]))
    equal = same_pixels(walks[0], again)
    checks = {
        "every row once": judged(wrong == 0, wrong, f"{wrong} of {ROWS} rows are missing or come twice in an epoch."),
        "epochs differ": judged(
            same_epochs < 0.5, same_epochs, f"{same_epochs:.0%} of the places have the same row in epochs 0 and 1."
        ),
        "seeds differ": judged(
            same_seeds < 0.5, same_seeds, f"{same_seeds:.0%} of epoch 0's places have the same row with another seed."
        ),
        "a seed repeats": judged(
            orders["epoch 0"] == orders["epoch 0, again"] and equal == 1,
            equal,
            f"{equal:.0%} of the views are the same to the bit with the same seed.",
        ),
        "ranks part the rows": judged(
            shared + absent == 0, shared + absent, f"two ranks both see {shared} of {ROWS} rows, and neither {absent}."
        ),
    }
    return checks, orders, [batch for batches in walks for batch in batches]


def judged(well: bool, number: float, sentence: str) -> Check:
    """Return a check's outcome."""
    return Check("passed" if well else "failed", round(float(number), 5), sentence)


def missed_or_more(rows: list[int]) -> int:
    """Return how many rows do not come just once."""
    return int((np.bincount(rows, minlength=ROWS) != 1).sum())


def agreement(one: list[int], two: list[int]) -> float:
    """Return the share of places that hold the same row."""
    return float(np.mean([a == b for a, b in zip(one, two)]))


def same_pixels(one: list[Batch], two: list[Batch]) -> float:
    """Return the share of views that are the same to the bit, place by place."""
    pairs = [pair for a, b in zip(one, two) for views in zip(a.views, b.views) for pair in zip(*views)]
    return float(np.mean([torch.equal(a, b) for a, b in pairs])) if pairs else 0.0


def torchvision_views(size: int, epochs: int) -> list[Batch]:
    """Return views of every image by torchvision, two an epoch."""
    from torchvision.transforms import v2

    recipe = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(blur_kernel_size(size), (0.1, 2.0))], BLUR_P),
            v2.RandomHorizontalFlip(),
        ]
    )
    images = [torch.from_numpy(picture(row)).permute(2, 0, 1).float() / 255 for row in range(ROWS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [[torch.stack([recipe(image) for image in images]) for _ in range(2)] for _ in range(epochs)]
    return [Batch(views, np.arange(ROWS)) for views in made]


def measured(batches: list[Batch]) -> Samples:
    """Return what the pixels of all views tell; see `read_gauges` and `read_swatches`."""
    rows = np.concatenate([batch.rows for batch in batches for _ in batch.views])
    pixels = torch.cat([view for batch in batches for view in batch.views])
    gauges = rows % 2 == 0
    return read_gauges(pixels[gauges], rows[gauges]) | read_swatches(pixels[~gauges])


def audit_crops(samples: Samples, right: Samples) -> dict[str, Check]:
    """Check that views show the row they are said to show, and which part of it."""
    strangers = float((samples["fit"] < LIKE).mean())
    likeness = float(np.median(samples["fit"]))
    mine, theirs = crop_shapes(samples), crop_shapes(right)
    mirrored = samples["mirrored"][samples["fit"] >= LIKE]
    return {
        "views are of their row": judged(
            strangers < 0.02,
            strangers,
            f"{strangers:.1%} of the views are unlike the row that index names (median likeness {likeness:.3f}).",
        ),
        **{f"crop {name}": alike(mine[name], theirs[name], f"the crops' {name}") for name in mine},
        "mirror image": as_likely(mirrored == 1, 0.5, "mirrored"),
    }


def crop_shapes(samples: Samples) -> Samples:
    """Return scale, aspect (log) and place of windows, the place as a share of the room there is."""
    x, y, w, h = (samples[name][samples["fit"] >= LIKE] for name in "xywh")
    low, room = np.concatenate([x, y]), np.concatenate([WIDTH - w, HEIGHT - h])
    wide = room >= 16  # with less, a place is known too roughly
    return {
        "scale": w * h / (WIDTH * HEIGHT),
        "aspect": np.log(w / h),
        "place": low[wide] / room[wide],
    }


def alike(mine: NDArray[np.float64], right: NDArray[np.float64], what: str, step: float | None = None) -> Check:
    """Return whether two samples are of one distribution, values rounded to steps where one of them is frequent."""
    mine, right = mine[~np.isnan(mine)], right[~np.isnan(right)]
    if len(mine) < FEW:
        return Check("cannot tell", None, f"{what} can be seen in {len(mine)} views only.")
    if step is not None:
        mine, right = np.rint(mine / step), np.rint(right / step)
    distance, p = smirnov(mine, right)
    middle = f"{np.median(mine) * (step or 1):.2f} and {np.median(right) * (step or 1):.2f}"
    sentence = f"{what} and torchvision's are at most {distance:.3f} apart (p = {p:.1g}; medians {middle})."
    return judged(p >= UNLIKELY, distance, sentence)


def as_likely(happened: NDArray[np.bool_], chance: float, what: str) -> Check:
    """Return whether something happens as often as its probability says."""
    hits, tries = int(happened.sum()), len(happened)
    if tries < FEW:
        return Check("cannot tell", None, f"how many are {what} can be seen in {tries} views only.")
    p = binomial_p(hits, tries, chance)
    sentence = f"{hits} of {tries} views, {hits / tries:.3f}, are {what}; {chance:g} are right (p = {p:.1g})."
    return judged(p >= UNLIKELY, hits / tries, sentence)


def audit_colours(samples: Samples, right: Samples) -> dict[str, Check]:
    """Check what happens to colours, and how often."""
    mine, theirs = tones(samples), tones(right)
    still = (np.abs(mine["brightness"] - 1) < 0.025) & (np.abs(mine["contrast"] - 1) < 0.025)
    # A jittered view is still by chance where both factors, drawn from .6 to 1.4, are: (.05 / .8)² of the time.
    moves = 0.8 * (1 - (0.05 / 0.8) ** 2)
    grey = np.isnan(samples["hue"])
    turned = np.abs(samples["hue"]) > 0.04
    if turned.sum() < FEW:
        path = Check("cannot tell", None, f"hue is turned by more than .04 in {int(turned.sum())} views only.")
    else:
        uneven = float(np.nanmedian(samples["uneven"][turned] / np.abs(samples["hue"][turned])))
        path = judged(
            uneven < 0.3,
            uneven,
            f"where hue is turned, colours are turned by as much as each other but for {uneven:.0%} "
            "(in HSV all the same, in YIQ not).",
        )
    return {
        "jitter probability": as_likely(~still, moves, "jittered"),
        "brightness": alike(mine["brightness"], theirs["brightness"], "brightness", 0.05),
        "contrast": alike(mine["contrast"], theirs["contrast"], "contrast", 0.1),
        "chroma": alike(samples["chroma"], right["chroma"], "chroma", 0.1),
        "hue": alike(samples["hue"], right["hue"], "turns of hue", 0.02),
        "hue's path": path,
        "grey probability": as_likely(grey, 0.2, "grey"),
        "blur": alike(mine["sigma"], theirs["sigma"], "the blur's sigma"),
    }


def tones(samples: Samples) -> Samples:
    """Return brightness, contrast and sigma of the views in which they can be seen."""
    sure = samples["fit"] >= LIKE
    large = sure & (samples["w"] * samples["h"] >= LARGE * WIDTH * HEIGHT)
    return {name: samples[name][large if name == "sigma" else sure] for name in ("brightness", "contrast", "sigma")}


def audit_resumption(make: Factory, folder: str, size: int) -> dict[str, Check]:
    """Check that a loader goes on where another's state says that it was."""
    name = "resumption"
    with _Made(make, folder, size) as loader:
        if not (hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")):
            return {name: Check("cannot tell", None, "the loader has no state_dict and load_state_dict.")}
        batches = walk(loader, size, 0)
        for _ in range(2):
            next(batches)
        state = loader.state_dict()
        left = list(batches)
    try:
        with _Made(make, folder, size) as loader:
            loader.load_state_dict(state)
            resumed = list(walk(loader, size))
    except Exception as error:  # the user's own code
        return {
            name: Check("failed", None, f"the loader cannot go on from its own state ({in_a_line(error, typed=True)}).")
        }
    wrong = len(set(rows_of(left)) ^ set(rows_of(resumed)))
    equal = same_pixels(left, resumed)
    says = f"{wrong} of the {len(rows_of(left))} rows that were left are missing or come again"
    sentence = f"{says}; {equal:.0%} of the views are those of the run that went on."
    return {name: judged(wrong == 0 and len(resumed) == len(left), wrong, sentence)}


def audit_bad_file(make: Factory, folder: str, size: int) -> dict[str, Check]:
    """Check that a file cut short does not end the epoch, and say what stands in its place."""
    name, bad = "a bad file", 4
    with open(Path(folder) / f"{bad:04d}.jpg", "r+b") as file:
        file.truncate(100)
    try:
        with _Made(make, folder, size) as loader:
            batches = list(walk(loader, size, 0))
    except Exception as error:  # the user's own code
        return {name: Check("failed", None, f"a file cut short ends the epoch ({in_a_line(error, typed=True)}).")}
    rows = rows_of(batches)
    if bad not in rows:
        instead = "another row stands in its place" if len(rows) == ROWS else f"an epoch is {len(rows)} rows then"
        return {name: Check("passed", float(len(rows)), f"a file cut short is survived; {instead}.")}
    views = torch.stack([v[i] for b in batches for v in b.views for i in np.flatnonzero(b.rows == bad)])
    spread = float(views.std())
    what = "a flat picture" if spread < 0.01 else "some picture"
    return {name: Check("failed", spread, f"{what} is handed out as row {bad}, whose file is cut short.")}
