"""What a checkpoint is worth: a linear classifier and nearest neighbours on frozen features, and fine-tuning.

    objcrop probe runs/a/last.pt --train labelled.arrow --test held_out.arrow [--fine-tune 20]

Multi-label catalogs are measured as mean average precision, in three forms (`average_precision`), single-label ones as
top-1. Every figure stands beside chance: the score of a constant. The linear classifier is fitted to its optimum
(`linear_probe`), or by the steps of the papers' released code (`linear_sgd`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import ObjcropError, UsageError
from objcrop.option import takes_options
from objcrop.ranks import rank_and_world_size
from objcrop.same_classes import same_classes
from objcrop.ssl.evaluation.average_precision import (
    average_precision,
    average_precision_11_point,
    batchwise_map,
    judged_labels,
)
from objcrop.ssl.evaluation.frozen_features import features, frozen_backbone, trained_by
from objcrop.ssl.evaluation.knn import neighbour_scores
from objcrop.ssl.evaluation.linear_probe import linear_scores
from objcrop.ssl.evaluation.linear_sgd import sgd_linear_scores
from objcrop.ssl.evaluation.probe_options import ProbeOptions


@takes_options(ProbeOptions)
def probe(
    checkpoint: str | os.PathLike[str],
    train: Catalog | str | os.PathLike[str],
    test: Catalog | str | os.PathLike[str],
    **options: Any,
) -> dict[str, Any]:
    """Measure a backbone.

    Args:
        checkpoint: a last.pt, or "untrained:ARCH" for random weights.
        train: labelled images that classifiers learn from, a `Catalog` or its file.
        test: labelled images that they are measured on; classes are joined by name, so either may lack some.
        **options: by the decorator.

    Returns:
        For each of linear, knn and (where asked for) fine_tuned: `…_map` (Veit et al. 2017), `…_map_11_point` (VOC2007,
        difficult objects left out), `…_batchwise_map_256` (as OAC's released code has it) and `…_per_class`, or
        `…_top1`; `chance_map` or `chance_top1`; the counts and size.

    Raises:
        UsageError: the catalogs have no class in common, `single_label` and an image with none or several, an option
            that cannot act, or this process is one of several ranks.
        ObjcropError: a catalog that cannot be used, no labels, or an unusable checkpoint.
    """
    how = ProbeOptions.read(options)
    if rank_and_world_size()[1] > 1:
        raise UsageError("a probe measures in one process; run it without torchrun.")
    train, test = same_classes(catalog_at(train), catalog_at(test))
    single = how.single_label
    if not train.classes:
        raise ObjcropError(f"the catalog of {train.root} has no labels to learn; index it with its annotations.")
    if single:
        refuse_several(train)
        refuse_several(test)
    network, side = frozen_backbone(checkpoint, how.size)
    where: dict[str, Any] = {"backend": how.backend, "device": how.device}
    x, y, _ = features(network, train, side, **where)
    x_test, y_test, rows = features(network, test, side, **where)
    figures: dict[str, Any] = {"checkpoint": str(checkpoint), "size": side}
    figures |= {"train_images": len(x), "test_images": len(x_test)}
    if how.linear == "sgd":
        if how.batch_norm is None:
            how = replace(how, batch_norm=trained_by(checkpoint) == "mae")
        scores = sgd_linear_scores(network, train, x_test, side, how)
    else:
        scores = linear_scores(x, y, x_test, single=single)
    figures |= {"linear": how.linear, **_figures("linear", scores, y_test, test, rows, single)}
    figures |= _figures("knn", neighbour_scores(x, y, x_test), y_test, test, rows, single)
    if how.fine_tune:
        from objcrop.ssl.evaluation.fine_tune import fine_tuned_scores

        with tempfile.TemporaryDirectory(prefix="objcrop-fine-tune-") as folder:
            scores, labels, seen = fine_tuned_scores(
                checkpoint,
                train,
                test,
                folder,
                epochs=how.fine_tune,
                single=single,
                **where,
                size=side,
                batch_size=min(64, len(train)),
            )
        figures |= _figures("fine_tuned", scores, labels, test, seen, single)
    if single:
        figures["chance_top1"] = round(float(y_test.mean(0).max()), 5)
    else:
        figures["chance_map"] = round(float(y_test.mean(0)[y_test.any(0)].mean()), 5)
    return figures


def in_lines(figures: Mapping[str, Any]) -> list[str]:
    """Return what `probe` measured as lines to read."""
    images = f"{figures['train_images']} images to learn from, {figures['test_images']} to test"
    lines = [f"{figures['checkpoint']}, {figures['size']} px: {images}"]
    shown = {"map": "mAP", "map_11_point": "11-point", "batchwise_map_256": "batches of 256", "top1": "top-1"}
    for kind in ("linear", "knn", "fine_tuned", "chance"):
        held = [
            f"{says} {figures[f'{kind}_{name}']:.4f}" for name, says in shown.items() if f"{kind}_{name}" in figures
        ]
        lines += [f"  {kind:<11} {'  '.join(held)}"] if held else []
    return lines


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
        f"{name}_batchwise_map_256": round(batchwise_map(scores, labels), 5),
        f"{name}_per_class": {
            c: None if np.isnan(ap) else round(ap, 5) for c, ap in zip(test.classes, per_class, strict=True)
        },
    }


def refuse_several(catalog: Catalog) -> None:
    """Raise a `UsageError` where an image has no class, or several."""
    count = catalog.label_matrix(np.arange(len(catalog))).sum(1)
    if (count != 1).any():
        row = int((count != 1).argmax())
        raise UsageError(
            f"{catalog.path(row)} has {int(count[row])} classes, but --single-label takes images with one each."
        )
