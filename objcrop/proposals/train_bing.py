"""Training BING from ground-truth boxes: `objcrop train-bing CATALOG -o weights.json`, some minutes on two cores.

Stage I: of every window size, the place that overlaps an object best (by half at least) is a positive, and places that
overlap none by half are negatives; a linear SVM on their 8×8 normed gradients is the template. Positives are taken
from the very maps that proposing scores, so that training sees what use will see. Stage II: the template runs over the
images, and for each size a logistic regression on its scores learns how likely a window is to be the best one of all
on an object. The paper has a linear SVM there, on whether a window overlaps an object by half; but hinge scores of rare
sizes do not compare, and so learnt, sizes that find what a better one finds too come later: of the objects in 600
images of VOC2007 trainval that were not learnt from, 10 boxes found 29.6 % instead of 27.9, 100 55.9 instead of 55.2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torchvision.ops import box_iou

from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import ObjcropError
from objcrop.kernels.bing import (
    NONE,
    SIZES,
    BingModel,
    in_whole_numbers,
    shrunk_gradients,
    shrunk_rows,
    stage_one,
    usable,
    window_boxes,
)
from objcrop.option_value import seed_of
from objcrop.progress import tracked
from objcrop.proposals.bing import REACH_OF_FEW
from objcrop.proposals.canvas import on_canvas

BATCH = 16
NEGATIVES = 3  # an image and size


def train_bing(catalog: Catalog, *, canvas: int = 320, images: int = 1500, seed: int = 0) -> BingModel:
    """Train both stages.

    Args:
        catalog: images with ground truth; crowd regions and difficult objects are left out.
        canvas: side that images are resized to, pixels.
        images: how many to learn from, a random sample; all where there are fewer.
        seed: of sample and negatives.

    Raises:
        ObjcropError: fewer than 20 objects to learn from.
    """
    rng = np.random.default_rng(seed_of(seed))
    with_objects = [row for row in range(len(catalog)) if len(_objects(catalog, row))]
    rows = sorted(rng.permutation(with_objects)[:images].tolist())
    if sum(len(_objects(catalog, row)) for row in rows) < 20:
        raise ObjcropError(
            f"the catalog of {catalog.root} has fewer than 20 objects to learn from; index it with its annotations."
        )
    sizes = [size for size in range(36) if usable(size, canvas)]
    batches = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
    positives, negatives, of_size = _windows(catalog, batches, sizes, canvas, rng)
    template = _svm(torch.cat([positives, positives.flip(-1)]), negatives)
    # A size with next to no objects would be calibrated on chance.
    sizes = [size for size in sizes if of_size[size] >= max(10, 0.002 * of_size.sum())] or sizes
    scale, offset = _calibrate(catalog, batches, template, sizes, canvas)
    return BingModel(template, scale, offset, canvas)


def _objects(catalog: Catalog, row: int) -> torch.Tensor:
    truth = catalog.annotations(row)
    return torch.from_numpy(truth.boxes[~truth.crowd & ~truth.difficult].copy())


def _loaded(
    catalog: Catalog, batches: list[list[int]], canvas: int, what: str
) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Yield images on the canvas and their objects there; unreadable ones are left out."""
    for rows in tracked(batches, len(batches), what):
        images, objects = [], []
        for row in rows:
            try:
                images.append(np.asarray(open_upright(catalog, row)))
            except BadImage:
                continue
            objects.append(_objects(catalog, row) * (canvas / torch.from_numpy(catalog.sizes_of([row])[0]).repeat(2)))
        if images:
            yield on_canvas(images, canvas), objects


def _windows(
    catalog: Catalog,
    batches: list[list[int]],
    sizes: list[int],
    canvas: int,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return 8×8 patches of positives and negatives, (n, 8, 8), and how many positives each size has."""
    positives, negatives, of_size = [], [], np.zeros(len(SIZES), np.int64)
    for images, objects in _loaded(catalog, batches, canvas, "stage I"):
        for size in sizes:
            gradients = shrunk_gradients(shrunk_rows(images, size), size)[:, 0]
            patches = gradients.unfold(1, 8, 1).unfold(2, 8, 1)  # (B, h, w, 8, 8), a view
            shape = (patches.shape[1], patches.shape[2])
            places = window_boxes(size, shape, canvas)
            for image, truth in enumerate(objects):
                overlap = box_iou(places, truth)
                best, at = overlap.max(0)
                good = at[best >= 0.5].unique()
                poor = torch.from_numpy(rng.integers(0, len(places), NEGATIVES))
                poor = poor[overlap[poor].amax(1) < 0.5]
                positives.append(patches[image, good // shape[1], good % shape[1]])
                negatives.append(patches[image, poor // shape[1], poor % shape[1]])
                of_size[size] += len(good)
    return torch.cat(positives), torch.cat(negatives), of_size


def _svm(positives: torch.Tensor, negatives: torch.Tensor, decay: float = 1e-3) -> torch.Tensor:
    """Return the template (8, 8) of a linear SVM with squared hinge loss, both classes weighing the same."""
    x = torch.cat([positives, negatives]).flatten(1) / 255
    sign = torch.cat([torch.ones(len(positives)), -torch.ones(len(negatives))])
    share = torch.where(sign > 0, 0.5 / len(positives), 0.5 / len(negatives))
    weight, bias = torch.zeros(64, requires_grad=True), torch.zeros((), requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        hinge = (1 - sign * (x @ weight + bias)).clamp(min=0).square()
        value = (share * hinge).sum() + 0.5 * decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach().view(8, 8) / 255


def _calibrate(
    catalog: Catalog, batches: list[list[int]], template: torch.Tensor, sizes: list[int], canvas: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset of each size; offset -inf for sizes that found nothing."""
    seen: dict[int, list[torch.Tensor]] = {size: [] for size in sizes}
    hits: dict[int, list[torch.Tensor]] = {size: [] for size in sizes}
    whole, unit = in_whole_numbers(template)
    for images, objects in _loaded(catalog, batches, canvas, "stage II"):
        scores, boxes, numbers = stage_one(images, whole, sizes, reach=REACH_OF_FEW)
        for image, truth in enumerate(objects):
            found = scores[image] > NONE
            best, at = torch.where(found[:, None], box_iou(boxes[image], truth), 0).max(0)
            hit = torch.zeros(len(found), dtype=torch.bool)
            hit[at[best >= 0.5]] = True
            for size in sizes:
                chosen = (numbers == size) & found
                seen[size].append(scores[image][chosen])
                hits[size].append(hit[chosen])
    scale, offset = torch.ones(len(SIZES)), torch.full((len(SIZES),), -torch.inf)
    for size in sizes:
        x, y = torch.cat(seen[size]).double() / unit, torch.cat(hits[size]).double()
        if y.any():
            scale[size], offset[size] = _logistic(x, y)
    return scale, offset


def _logistic(x: torch.Tensor, y: torch.Tensor, steps: int = 25) -> tuple[float, float]:
    """Fit y ~ sigmoid(scale × x + offset) by Newton's method, a weak prior on the slope keeping it above 0."""
    mean, std = x.mean(), x.std().clamp(min=1e-6)
    z = torch.stack([(x - mean) / std, torch.ones_like(x)], 1)
    weight = torch.tensor([0.5, float(torch.logit(y.mean().clamp(1e-6, 1 - 1e-6)))], dtype=x.dtype)
    prior = torch.tensor([0.5, 0.0], dtype=x.dtype)
    strength = torch.diag(torch.tensor([1.0, 1e-6], dtype=x.dtype))
    for _ in range(steps):
        p = torch.sigmoid(z @ weight)
        slope = z.T @ (p - y) + strength @ (weight - prior)
        bend = (z * (p * (1 - p))[:, None]).T @ z + strength
        weight = weight - torch.linalg.solve(bend, slope)
    steep = max(float(weight[0]), 0.05)
    return steep / float(std), float(weight[1]) - steep * float(mean) / float(std)
