import numpy as np
import pytest
from scipy import stats

from objcrop.dali_pipes.epoch_order import batch_positions, permute


def test_bijection_for_every_size():
    for n in range(1, 2200):
        assert np.array_equal(np.sort(permute(np.arange(n), n, seed=n, epoch=n % 5)), np.arange(n)), n


@pytest.mark.parametrize("n", [2**20 + 1, 10**7])
def test_large_sets_need_no_table(n):
    position = np.random.default_rng(0).choice(n, 5000, replace=False)
    drawn = permute(position, n, seed=3, epoch=1)
    assert len(set(drawn.tolist())) == 5000 and drawn.min() >= 0 and drawn.max() < n


def test_every_sample_reaches_every_position():
    n, epochs = 7, 4200
    table = np.zeros((n, n))
    for epoch in range(epochs):
        table[np.arange(n), permute(np.arange(n), n, seed=1, epoch=epoch)] += 1
    assert stats.chisquare(table.ravel(), ddof=2 * n - 2).pvalue > 0.001


def test_epochs_and_seeds_differ_and_neighbours_part():
    a, b = (permute(np.arange(5000), 5000, seed=1, epoch=e) for e in (0, 1))
    assert np.mean(a == b) < 0.01
    assert abs(np.corrcoef(a, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_a_batch_without_overlap(world):
    whole = batch_positions(103, 4, 24)
    np.testing.assert_array_equal(whole, np.arange(96, 103))
    for rank in range(world):
        np.testing.assert_array_equal(batch_positions(103, 4, 24, rank=rank, world=world), whole[rank::world])
