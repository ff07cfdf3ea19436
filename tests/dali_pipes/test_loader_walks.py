"""One walk of a loader at a time, however others' loops begin, leave and count it."""

import threading
import weakref
from itertools import count, islice

import pytest
import torch

from objcrop.dali_pipes.cached_loader import CachedLoader
from objcrop.dali_pipes.dali_loader import DaliLoader, _GraphRun
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError

BACKENDS = {"torch": dict(backend="torch", workers=0), "dali": dict(backend="dali", threads=1)}


@pytest.fixture(params=BACKENDS)
def loader(photos, request):
    options = dict(crops="obj-obj", size=16, batch_size=8, augment="none", rank=0, world_size=1)
    with load_views(photos[0], boxes=photos[1], **options, **BACKENDS[request.param]) as loader:
        yield loader


def walk(loader):
    return [batch.index.tolist() for batch in loader]


def expected(loader):
    """Rows of the first three epochs' batches, from the plan."""
    return [[loader.batches.plan((epoch, batch)).row.tolist() for batch in range(3)] for epoch in range(3)]


def test_a_walk_within_a_walk_is_refused(loader, caplog):
    with pytest.raises(ObjcropError, match="build a second loader"):
        for _ in loader:
            for _ in loader:
                assert "while an earlier one is still open" in caplog.text  # said at once


def test_two_walks_alive_at_once_are_refused(loader):
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(ObjcropError, match="another walk of this loader began"):
        next(first)
    assert len(list(second)) == 2  # the later one goes on


def test_an_abandoned_walk_is_forgotten(loader, caplog):
    """Left by break, by an error, or still held somewhere, as a notebook's last traceback holds it."""
    for _ in loader:
        break
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert "while an earlier one is still open" not in caplog.text
    held = iter(loader)
    next(held)
    assert [walk(loader), walk(loader)] == expected(loader)[:2]


@pytest.mark.parametrize("move", ["set_epoch", "load_state_dict", "set_boxes"])
def test_a_walk_does_not_go_on_elsewhere(loader, move):
    batches = iter(loader)
    next(batches)
    to = {"set_epoch": 1, "load_state_dict": loader.state_dict(), "set_boxes": loader.planner.boxes}
    getattr(loader, move)(to[move])
    with pytest.raises(ObjcropError, match="moved elsewhere"):
        next(batches)


def test_loops_that_count_batches_move_on_too(loader):
    """Lightning takes len(loader) batches and never asks whether there is one more."""
    rows = [[batch.index.tolist() for batch in islice(loader, len(loader))] for _ in range(2)]
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (2, 0)
    assert [*rows, walk(loader)] == expected(loader)


def test_zip_and_epochs_set_by_hand(loader):
    """`zip(range(n), loader)` takes one batch less than it looks at; set_epoch puts the order right."""
    rows = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        rows.append([batch.index.tolist() for _, batch in zip(range(3), loader)])
    assert rows == expected(loader)[:2]


def test_a_walk_after_an_error_begins_anew(loader, monkeypatch):
    next(iter(loader))
    loader.set_epoch(0)
    stream = loader._stream

    def broken(start):
        raise OSError("a passing error")
        yield

    monkeypatch.setattr(loader, "_stream", broken)
    loader._stop()
    for _ in range(2):
        with pytest.raises(OSError, match="passing"):
            next(iter(loader))
    monkeypatch.setattr(loader, "_stream", stream)
    assert walk(loader) == expected(loader)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_short_batch_of_an_evaluation_is_shared_too(photos, backend):
    """Each rank has as many batches, and no row is lost."""
    options = dict(crops="centre", augment="none", size=16, batch_size=9, shuffle=False, drop_last=False)
    shares = []
    for rank in range(3):
        with load_views(photos[0], **options, rank=rank, world_size=3, **BACKENDS[backend]) as loader:
            shares.append(walk(loader))
    assert [[len(batch) for batch in share] for share in shares] == [[3, 3, 2]] * 3
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(24))


def test_a_short_batch_that_leaves_a_rank_with_nothing_is_one_sentence(photos):
    options = dict(crops="centre", augment="none", size=16, batch_size=9, shuffle=False, drop_last=False)
    with pytest.raises(UsageError, match="leaves 6 of 24 samples for the last batch of 9 processes"):
        load_views(photos[0], **options, rank=8, world_size=9)


@pytest.mark.parametrize("more", [dict(backend="torch", workers=2), dict(backend="dali"), dict(cache="host")], ids=str)
def test_a_loader_that_nobody_holds_goes_and_its_producer_too(photos, more, capfd):
    """In a notebook, each run of a cell left a thread with its batches behind, on a GPU in its memory."""
    catalog, _ = photos

    def made():
        loader = load_views(catalog, crops="scene-scene", size=32, batch_size=8, device="cpu", **more)
        for _ in loader:
            return weakref.ref(loader)

    gone = [made() for _ in range(2)]
    assert [loader() for loader in gone] == [None, None]
    for thread in threading.enumerate():
        if thread.name == "objcrop-producer":
            thread.join()
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_cache_that_was_not_filled_is_filled_another_time(photos, monkeypatch):
    catalog, _ = photos
    options = dict(crops="scene-scene", size=32, batch_size=8, device="cpu", cache="host")
    with load_views(catalog, **options) as loader, load_views(catalog, **options) as other:
        with monkeypatch.context() as patch:
            patch.setattr(CachedLoader, "_wait", lambda self: pytest.fail("interrupted"))
            with pytest.raises(pytest.fail.Exception):
                next(iter(loader))
        first, wanted = next(iter(loader)), next(iter(other))
    assert all(torch.equal(*views) for views in zip(first.views, wanted.views))


@pytest.mark.parametrize("where", ["decoding", "finishing"])
def test_batches_before_one_that_fails_are_handed_out_and_none_behind_it(photos, monkeypatch, where):
    """One batch is finished while the next is decoded: neither may get lost with the other, nor overtake it."""
    kind, name = {"decoding": (_GraphRun, "next_batch"), "finishing": (DaliLoader, "_finish_cpu")}[where]
    plain, calls = getattr(kind, name), count()

    def fails(self, *arguments):
        if next(calls) == 2:
            raise KeyError(where)
        return plain(self, *arguments)

    monkeypatch.setattr(kind, name, fails)
    options = dict(crops="centre", size=16, batch_size=4, shuffle=False, rank=0, world_size=1)
    with load_views(photos[0], **options, **BACKENDS["dali"]) as loader, pytest.raises(KeyError, match=where):
        for at, batch in enumerate(loader):
            assert batch.index.tolist() == list(range(4 * at, 4 * at + 4))
    assert at == 1


def test_the_next_batch_is_decoded_while_one_is_finished(photos, monkeypatch):
    """On 16 cores most of them waited, now for the views, now for the files."""
    asked, (decode, finish) = threading.Semaphore(0), (_GraphRun.next_batch, DaliLoader._finish_cpu)
    finished = count()

    def decoded(self):
        asked.release()
        return decode(self)

    def waits(self, *arguments):
        asked.acquire()
        if next(finished):  # but the first, for which somebody waits
            asked.acquire()  # in vain, were the next not asked for before this one is done
            asked.release()
        return finish(self, *arguments)

    monkeypatch.setattr(_GraphRun, "next_batch", decoded)
    monkeypatch.setattr(DaliLoader, "_finish_cpu", waits)
    options = dict(crops="centre", size=16, batch_size=4, shuffle=False, rank=0, world_size=1)
    with load_views(photos[0], **options, **BACKENDS["dali"]) as loader:
        assert len(walk(loader)) == 6
        asked.release(100)  # so that what is still in the making ends
