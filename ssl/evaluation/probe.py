"""What a checkpoint is worth: a linear classifier and nearest neighbours on frozen features, and fine-tuning.

    objcrop probe runs/a/last.pt --train labelled.arrow --test held_out.arrow [--fine-tune 20]

Multi-label catalogs are measured as mean average precision, in two forms (`average_precision`), single-label ones as
top-1. Every figure stands beside chance: the score of a constant.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
import torch

from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import ObjcropError, UsageError
from objcrop.ranks import rank_and_world_size
from objcrop.same_classes import same_classes
from objcrop.ssl.evaluation.average_precision import average_precision, average_precision_11_point, judged_labels
from objcrop.ssl.evaluation.frozen_features import features, frozen_backbone
from objcrop.ssl.evaluation.knn import neighbour_scores
from objcrop.ssl.evaluation.linear_probe import linear_scores


def probe(
    checkpoint: str | os.PathLike[str],
    train: Catalog | str | os.PathLike[str],
    test: Catalog | str | os.PathLike[str],
    *,
    size: int | None = None,
    single_label: bool = False,
    fine_tune: int = 0,
    backend: str = "dali",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a backbone.

    Args:
        checkpoint: a last.pt, or "untrained:ARCH" for random weights.
        train: labelled images that classifiers learn from, a `Catalog` or its file.
        test: labelled images that they are measured on; classes are joined by name, so either may lack some.
        size: side of the views, pixels; None is the run's.
        single_label: each image has one class: top-1 instead of mean average precision.
        fine_tune: epochs of fine-tuning; 0 for none.
        backend: see `load_views`.
        device: see `load_views`.

    Returns:
        For each of linear, knn and (where asked for) fine_tuned: `…_map` (Veit et al. 2017), `…_map_11_point` (VOC2007,
        difficult objects left out) and `…_per_class`, or `…_top1`; `chance_map` or `chance_top1`; the counts and size.

    Raises:
        UsageError: the catalogs have no class in common, `single_label` and an image with none or several, or this
            process is one of several ranks.
        ObjcropError: a catalog that cannot be used, no labels, or an unusable checkpoint.
    """
    if rank_and_world_size()[1] > 1:
        raise UsageError("a probe measures in one process; run it without torchrun.")
    train, test = same_classes(catalog_at(train), catalog_at(test))
    single = single_label
    if not train.classes:
        raise ObjcropError(f"the catalog of {train.root} has no labels to learn; index it with its annotations.")
    if single:
        _refuse_several(train)
        _refuse_several(test)
    network, side = frozen_backbone(checkpoint, size)
    x, y, _ = features(network, train, side, backend=backend, device=device)
    x_test, y_test, rows = features(network, test, side, backend=backend, device=device)
    figures: dict[str, Any] = {"checkpoint": str(checkpoint), "size": side}
    figures |= {"train_images": len(x), "test_images": len(x_test)}
    figures |= _figures("linear", linear_scores(x, y, x_test, single=single), y_test, test, rows, single)
    figures |= _figures("knn", neighbour_scores(x, y, x_test), y_test, test, rows, single)
    if fine_tune:
        from objcrop.ssl.evaluation.fine_tune import fine_tuned_scores

        with tempfile.TemporaryDirectory(prefix="objcrop-fine-tune-") as folder:
            scores, labels, seen = fine_tuned_scores(
                checkpoint,
                train,
                test,
                folder,
                epochs=fine_tune,
                single=single,
                backend=backend,
                device=device,
                size=side,
                batch_size=min(64, len(train)),
            )
        figures |= _figures("fine_tuned", scores, labels, test, seen, single)
    if single:
        figures["chance_top1"] = round(float(y_test.mean(0).max()), 5)
    else:
        figures["chance_map"] = round(float(y_test.mean(0)[y_test.any(0)].mean()), 5)
    return figures


def _figures(
    name: str, scores: torch.Tensor, labels: torch.Tensor, test: Catalog, rows: torch.Tensor, single: bool
) -> dict[str, Any]:
    if single:
        return {f"{name}_top1": round(float((scores.argmax(1) == labels.argmax(1)).float().mean()), 5)}
    mean, per_class = average_precision(scores, labels)
    mean_11, _ = average_precision_11_point(scores, torch.from_numpy(judged_labels(test, rows.numpy())))
    return {
        f"{name}_map": round(mean, 5),
        f"{name}_map_11_point": round(mean_11, 5),
        f"{name}_per_class": {
            c: None if np.isnan(ap) else round(ap, 5) for c, ap in zip(test.classes, per_class, strict=True)
        },
    }


def _refuse_several(catalog: Catalog) -> None:
    count = catalog.label_matrix(np.arange(len(catalog))).sum(1)
    if (count != 1).any():
        row = int((count != 1).argmax())
        raise UsageError(
            f"{catalog.path(row)} has {int(count[row])} classes, but --single-label takes images with one each."
        )
