"""Ranks that fall silent end the others; those that live, are slow or are done do not. The clock is pretended."""

from types import SimpleNamespace

import pytest

from objcrop import heartbeat
from objcrop.heartbeat import EVERY, LOST_AFTER


class Run:
    """Rank `rank` listens; every beat of its clock, `others(second)` says what the store holds of the others."""

    def __init__(self, monkeypatch, rank, world, others, seconds):
        import torch.distributed as dist

        self.store, self.now, self.ended = dist.HashStore(), 0.0, None
        self.others, self.seconds = others, seconds
        monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(heartbeat, "end", self.end)
        heartbeat._beat(self.store, rank, world, self)

    def end(self, lost):
        if self.ended is None:
            self.ended = self.now, lost

    def wait(self, seconds):
        self.now += seconds
        for other, said in self.others(self.now).items():
            self.store.set(f"beat/{other}", said)
        return self.ended is not None or self.now > self.seconds

    def is_set(self):
        return False


def test_rank_0_hears_who_falls_silent(monkeypatch):
    """Rank 2 says nothing after a minute."""
    run = Run(monkeypatch, 0, 3, lambda now: {1: str(now), **({2: str(now)} if now <= 60 else {})}, 1000)
    assert run.ended == (pytest.approx(60 + LOST_AFTER, abs=2 * EVERY), [2])
    assert int(run.store.get("beat/0")) >= (60 + LOST_AFTER) / EVERY - 2


def test_a_rank_that_never_spoke_is_silent_too(monkeypatch):
    assert Run(monkeypatch, 0, 2, lambda now: {}, 1000).ended == (pytest.approx(LOST_AFTER, abs=2 * EVERY), [1])


@pytest.mark.parametrize(
    ("rank", "others"),
    [
        (0, lambda now: {1: str(now // 100), 2: str(now)}),  # slow
        (0, lambda now: {1: str(now) if now < 50 else heartbeat.OVER, 2: str(now)}),  # done
        (1, lambda now: {0: str(now)}),  # of rank 2 only rank 0 has to hear
    ],
)
def test_those_that_live_or_are_done_are_not_lost(monkeypatch, rank, others):
    assert Run(monkeypatch, rank, 3, others, 2000).ended is None


def test_a_store_out_of_reach_is_silence(monkeypatch):
    import torch.distributed as dist

    class Gone(dist.HashStore):
        def set(self, *_):
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(dist, "HashStore", Gone)
    others = Run(monkeypatch, 1, 2, lambda now: {}, 1000)
    assert others.ended == (pytest.approx(LOST_AFTER, abs=2 * EVERY), [0])


def test_what_is_said_at_the_end(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(heartbeat.os, "_exit", codes.append)
    heartbeat.end([1, 3])
    assert codes == [1]
    assert capsys.readouterr().err.startswith("objcrop: ranks 1 and 3 of this run have been silent for 120 s; look at")


def test_a_rank_that_is_done_says_so_and_one_that_fails_does_not():
    import torch.distributed as dist

    for fails, said in ((False, True), (True, False)):
        store = dist.HashStore()
        try:
            with heartbeat.heartbeat(store, 1, 2):
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert store.check(["beat/1"]) is said
