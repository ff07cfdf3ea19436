"""The k greatest against a stable sort."""

import numpy as np
import pytest
import torch

from objcrop.kernels.first_of_equal import first_of_equal


@pytest.mark.parametrize("n", [1, 7, 100, 20_000])
@pytest.mark.parametrize("values", [1, 3, 1000, 1 << 45])
def test_it_is_a_stable_sort(n, values):
    scores = np.random.default_rng(n).integers(-values, values, (3, n))
    for k in {0, 1, n // 100, n // 2, n}:
        best, at = first_of_equal(torch.from_numpy(scores), k)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(at, expected)
        np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, 1))


def test_nothing_has_no_greatest():
    assert first_of_equal(torch.zeros(2, 0, dtype=torch.int64), 0)[1].shape == (2, 0)
