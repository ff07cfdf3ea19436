"""Starvation, slow-down and stages, by hand-made clocks."""

import time
import types

import pytest

from objcrop.bench import headroom
from objcrop.bench.ceilings import like
from objcrop.bench.train import Stretch, figures_of, stretch, verdict_of
from objcrop.bench.where import CountedLoader, LoaderWithoutColour, stage_costs
from objcrop.dali_pipes.load_views import load_views


class Clock:
    """Time that passes only when told to."""

    now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_stretch_tells_waiting_from_stepping(monkeypatch):
    clock, finished = Clock(), []
    monkeypatch.setattr(headroom, "time", types.SimpleNamespace(perf_counter=clock))

    def batches():
        while True:
            clock.passes(3)
            yield range(4)

    def finish():
        finished.append(clock.now)
        clock.passes(0.5)

    took = stretch(batches(), lambda batch: clock.passes(1), 10, finish, clock)
    assert took == Stretch(seconds=40.5, waited=30, images=40)
    assert finished == [0, 40.5]  # at the two ends, never in between


def test_figures():
    def of(seconds, waited=0.0):
        return Stretch(seconds, waited, 100)

    figures = figures_of(
        alone=[of(5), of(4), of(10)], synthetic=[of(10), of(10), of(20)], real=[of(12, 3), of(11, 1.1), of(30, 6)]
    )
    assert figures["starvation"] == {"median": 0.2, "min": 0.1, "max": 0.25}
    assert figures["slow_down"] == {"median": 0.2, "min": 0.1, "max": 0.5}
    assert figures["loader_over_step"] == {"median": 2.0, "min": 2.0, "max": 2.5}
    assert figures["real_images_per_s"]["max"] == pytest.approx(9.1)


@pytest.mark.parametrize(
    ("feeds", "slow_down", "says"),
    [
        (3.4, 0.01, "The GPU is your limit: the loader could feed 3.4 of them."),
        (0.5, 1.0, "The loader is your limit: it feeds 50% of what the step could take."),
        (1.5, 0.3, "Alone the loader could feed 1.5 such steps"),
    ],
)
def test_verdict(feeds, slow_down, says):
    figures = {
        "loader_over_step": {"median": feeds},
        "slow_down": {"median": slow_down},
        "starvation": {"median": 0.02},
    }
    first, second = verdict_of(figures, "cuda")
    assert first.startswith(says) and second == f"Starvation 2.0%, slow-down {slow_down:.1%}."


def test_a_stage_costs_what_its_chain_takes_more():
    assert stage_costs({"plan": 0.1, "read": 0.3, "decode": 1.0}) == {"plan": 0.1, "read": 0.2, "decode": 0.7}


def test_variants_of_the_loader(photos):
    catalog, boxes = photos
    made = {"boxes": boxes, "crops": "obj-scene", "size": 32, "batch_size": 6, "threads": 2}
    with like(load_views(catalog, **made), CountedLoader) as counted, load_views(catalog, **made) as real:
        for mine, theirs in zip(counted, real):
            assert (mine.views[0] == theirs.views[0]).all()
            while counted._making.made - len(counted.ready) < counted.prefetch:
                time.sleep(0.01)  # the queue fills
        assert len(counted.ready) == len(real) and counted.ready[0] == 0
        assert max(counted.ready) == counted.prefetch
    with like(load_views(catalog, **made), LoaderWithoutColour) as bare:
        assert next(iter(bare)).views[0].shape == (6, 3, 32, 32)
