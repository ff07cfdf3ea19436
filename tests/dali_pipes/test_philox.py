import numpy as np
import pytest
import torch
from scipy import stats

from objcrop.dali_pipes.philox import PURPOSES, philox4x32, uniforms
from objcrop.dali_pipes.philox_torch import integers

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
VECTORS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_published_vectors(counter, key, result):
    k0, k1 = words(key)
    assert [int(word) for word in philox4x32(words(counter), (k0, k1))] == words(result)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 3, 77), (2**33 + 5, 2**32 - 1)])
@pytest.mark.parametrize("below", [1, 7, 118_287, 2**31])
def test_torch_draws_the_same_numbers(seed, epoch, below):
    samples = np.array([0, 5, 2**31 + 7, 2**32 - 1])
    word = (PURPOSES["negatives"] << 16) + np.arange(3)
    drawn = philox4x32((samples[:, None], epoch, 0, word), (seed & 0xFFFFFFFF, seed >> 32))
    expected = np.stack(drawn, axis=-1).reshape(4, 12)[:, :10] * np.uint64(below) >> np.uint64(32)
    found = integers(seed, epoch, torch.from_numpy(samples), "negatives", 10, below)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.int64))


def test_a_draw_does_not_depend_on_its_neighbours():
    one = uniforms(7, 3, np.arange(100), 1, "crop", 8)
    alone = np.stack([uniforms(7, 3, i, 1, "crop", 8) for i in range(100)])
    np.testing.assert_array_equal(one, alone)


def test_longer_draws_begin_with_the_shorter():
    np.testing.assert_array_equal(uniforms(1, 2, 3, 4, "shift", 40)[:6], uniforms(1, 2, 3, 4, "shift", 6))


OTHERS = [dict(seed=2), dict(seed=1 + 2**32), dict(epoch=1), dict(view=1), dict(purpose="box")]


@pytest.mark.parametrize("other", OTHERS)
def test_every_coordinate_matters(other):
    here = dict(seed=1, epoch=0, sample=np.arange(2000), view=0, purpose="crop")
    a, b = uniforms(**here)[:, 0], uniforms(**{**here, **other})[:, 0]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_uniform():
    assert stats.kstest(uniforms(5, 0, np.arange(20_000), 0, "flip", 4).ravel(), "uniform").pvalue > 0.01


def test_purposes_never_collide():
    assert len(set(PURPOSES.values())) == len(PURPOSES)
