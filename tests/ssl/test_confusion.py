"""The confusion matrix and its scores against sets of pixels counted one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from objcrop.ssl.transfer.confusion import confusion, segmentation_scores
from objcrop.ssl.transfer.segmenter import IGNORED

LABELS = arrays(np.uint8, (2, 5, 4), elements=st.sampled_from([0, 1, 2, 3, IGNORED]))
PREDICTED = arrays(np.int64, (2, 5, 4), elements=st.integers(0, 3))


@given(LABELS, PREDICTED)
def test_scores_are_those_of_counted_pixels(labels, predicted):
    parts = [confusion(torch.from_numpy(p), torch.from_numpy(y), 4) for y, p in zip(labels, predicted, strict=True)]
    scores = segmentation_scores(sum(parts), "abcd")
    pixels = [(y, p) for y, p in zip(labels.flat, predicted.flat, strict=True) if y != IGNORED]
    iou, accuracy = {}, []
    for c, name in enumerate("abcd"):
        union = [pair for pair in pixels if c in pair]
        labelled = [pair for pair in pixels if pair[0] == c]
        hit = [pair for pair in pixels if pair == (c, c)]
        iou[name] = len(hit) / len(union) if union else None
        accuracy += [len(hit) / len(labelled)] if labelled else []
    assert scores["per_class"] == pytest.approx(iou)
    known = [value for value in iou.values() if value is not None]
    assert scores["miou"] == (pytest.approx(np.mean(known)) if known else None)
    assert scores["mean_accuracy"] == (pytest.approx(np.mean(accuracy)) if accuracy else None)
    right = [y == p for y, p in pixels]
    assert scores["accuracy"] == (pytest.approx(np.mean(right)) if pixels else None)
