"""The k-th thing of many rows, against a list of all things."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objcrop.dali_pipes import running_total as module
from objcrop.dali_pipes.running_total import kth, running_total


@pytest.mark.parametrize("block", [1, 3, 256])
@given(counts=st.lists(st.integers(0, 5), max_size=40), most=st.integers(0, 6), least=st.integers(0, 1))
def test_every_thing_is_found(block, counts, most, least):
    counts = np.array(counts, np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    def weigh(some):
        return np.maximum(np.minimum(some, most), least)

    expected = [(row, i) for row, n in enumerate(counts) for i in range(max(min(n, most), least))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(module, "PART", 2 * block)
        total = running_total(offsets, weigh)
        assert total[-1] == len(expected) and len(total) == -(-len(counts) // block) + 1
        k = np.random.default_rng(0).permutation(len(expected))
        row, which = kth(k, total, len(counts), lambda rows: counts[rows], weigh)
    assert list(zip(row.tolist(), which.tolist())) == [expected[i] for i in k]
