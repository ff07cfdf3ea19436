"""Waits for other processes: said after ten seconds, reset by progress, given up in the end. The clock is pretended."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from children import free_port

from objcrop import parts, ranks, waiting
from objcrop.errors import ObjcropError
from objcrop.launcher import LAUNCHERS
from objcrop.proposals import from_images
from objcrop.proposals.from_images import propose_from_images
from objcrop.ranks import process_group, share_of_ranks, wait_for_ranks
from objcrop.waiting import GIVE_UP_AFTER, listed, wait_until_none_missing


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes a second a look; the times of the looks."""
    looks = []
    pretended = SimpleNamespace(monotonic=lambda: float(len(looks)), sleep=looks.append)
    monkeypatch.setattr(waiting, "time", pretended)
    return looks


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in (*(name for launcher in LAUNCHERS for name in launcher[1:]), "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_short_wait_is_not_said(clock, caplog):
    wait_until_none_missing(lambda: [1] if len(clock) < 9 else [], listed)
    assert not caplog.records


def test_a_long_wait_is_said_and_not_too_often(clock, caplog):
    wait_until_none_missing(lambda: [1, 3] if len(clock) < 1000 else [], listed)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Waiting for ranks 1 and 3, 11 s so far."
    assert 5 <= len(said) <= 8


def test_progress_resets_the_limit(clock):
    """Five come, each just before the wait would be given up."""
    wait_until_none_missing(lambda: list(range(5 - int(len(clock) // (GIVE_UP_AFTER - 10)))), listed)
    assert len(clock) > 4 * GIVE_UP_AFTER


def test_a_wait_without_progress_ends_in_a_sentence(clock):
    with pytest.raises(ObjcropError, match="gave up waiting for rank 7: nothing new came for 60 minutes") as caught:
        wait_until_none_missing(lambda: [7], listed)
    assert "\n" not in str(caught.value) and len(clock) == pytest.approx(GIVE_UP_AFTER, abs=3)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([3], "rank 3"), ([1, 2], "ranks 1 and 2"), (range(20), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more")],
)
def test_ranks_are_listed(numbers, words):
    assert listed(list(numbers)) == words


def one_box(images):
    return [(np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.float32)) for _ in images]


def propose(catalog, folder):
    return propose_from_images(catalog, "one", {}, lambda: one_box, parts=folder, rows=4, workers=0)


def test_a_share_of_the_work_says_whose_is_missing_and_until_what(monkeypatch, clock, caplog):
    """Rank 1 is done; rank 2 does an item three times just before it is given up, and then no more."""
    import torch.distributed as dist

    store = dist.HashStore()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(ranks, "_waits", iter([7, 7, 7]))
    for rank, items in ((1, "abc"), (0, "ab")):
        monkeypatch.setattr(ranks, "rank_and_world_size", lambda rank=rank: (rank, 3))
        share = share_of_ranks(items, "their parts are there")
        assert list(islice(share, 2)) == ["a", "b"]
        assert list(share if rank else ()) == (["c"] if rank else [])

    def slowly(second, looked=clock.append):
        looked(second)
        if len(clock) % (GIVE_UP_AFTER - 10) == 0 and len(clock) < 3 * GIVE_UP_AFTER:
            store.set("objcrop/share/7/2", str(len(clock)))

    monkeypatch.setattr(waiting.time, "sleep", slowly)
    with pytest.raises(ObjcropError, match="gave up waiting for rank 2 of 3 until their parts are there"):
        next(share)
    assert "Waiting for rank 2 of 3 until their parts are there, 11 s so far." in caplog.text
    assert len(clock) == pytest.approx(3 * (GIVE_UP_AFTER - 10) + GIVE_UP_AFTER, abs=5)


def test_the_parts_of_ranks_that_are_gone_are_made_alone(photos, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(from_images, "_write", lambda *a, write=from_images._write: (made.append(a[1]), write(*a)))
    monkeypatch.setattr(from_images.shutil, "rmtree", lambda *_, **__: None)
    first = propose(photos[0], tmp_path / "parts")
    for part in (2, 5):
        (tmp_path / "parts" / f"{part:07d}.npz").unlink()
    made.clear()
    assert propose(photos[0], tmp_path / "parts").fingerprint == first.fingerprint
    assert made == [2, 5]


def test_without_a_folder_to_share_each_rank_makes_all(photos, monkeypatch, clock):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert propose(photos[0], None).counts(np.arange(24)).tolist() == [1] * 24


def test_world_size_without_rank_is_one_sentence(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ObjcropError, match="set RANK too, or unset WORLD_SIZE"):
        propose(photos[0], tmp_path / "parts")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_that_does_not_come_together_says_who_is_missing(rank, monkeypatch, clock, caplog):
    port = free_port()
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(ranks, "SAY_AFTER", 0.02)  # of the socket, which goes by a real clock
    monkeypatch.setattr(waiting, "GIVE_UP_AFTER", 12.0)
    expected = f"rank {1 - rank} of 2 at 127.0.0.1:{port}"
    with pytest.raises(ObjcropError, match=f"gave up waiting for {expected}"), process_group("gloo"):
        raise AssertionError("nobody came")
    assert f"Waiting for {expected}" in caplog.text


def test_a_slow_rank_is_no_dead_rank(monkeypatch):
    import torch.distributed as dist

    options, store = {}, dist.HashStore()
    store.set("left/1", "")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: options.update(given))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(ranks, "_meet", lambda place: (store, store))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with process_group("nccl"):
        assert options["timeout"].total_seconds() == GIVE_UP_AFTER


def test_a_launcher_that_names_no_meeting_point_is_one_sentence(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ObjcropError, match="srun started 2 processes, but MASTER_ADDR"), process_group("gloo"):
        pass


def test_a_wait_between_ranks_says_who_and_until_what(monkeypatch, clock, caplog):
    import torch.distributed as dist

    store = dist.HashStore()
    monkeypatch.setattr(ranks, "rank_and_world_size", lambda: (1, 3))
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(ranks, "_waits", iter(range(9)))
    store.set("objcrop/wait/0/0", "")
    with pytest.raises(ObjcropError, match="gave up waiting for rank 2 of 3 until the checkpoint is written"):
        wait_for_ranks("the checkpoint is written")
    assert "Waiting for rank 2 of 3 until the checkpoint is written, 11 s so far." in caplog.text
    for rank in (0, 2):
        store.set(f"objcrop/wait/1/{rank}", "")
    wait_for_ranks("all have read it")


def test_a_killed_worker_of_propose_is_one_sentence(photos, tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    class Killed(ThreadPoolExecutor):
        def __init__(self, *arguments):
            super().__init__(1)

        def submit(self, call, *arguments):
            def die():
                raise BrokenProcessPool("A process in the process pool was terminated abruptly …")

            return super().submit(die)

    monkeypatch.setattr(parts, "ProcessPoolExecutor", Killed)
    with pytest.raises(ObjcropError, match=r"was killed.*fewer --workers.*what is done is kept") as caught:
        propose_from_images(photos[0], "one", {}, None, parts=tmp_path / "parts", rows=4, workers=2)
    assert "\n" not in str(caught.value)


def test_srun_and_mpirun_are_said_once(monkeypatch, caplog):
    ranks._say_who.cache_clear()
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert [ranks.known_rank() for _ in range(3)] == [(1, 2)] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Open MPI says that this is process 1 (from 0) of 2, which share the work; set WORLD_SIZE=1 in the environment "
        "where each does its own."
    ]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ranks.rank_and_world_size() == (0, 1)
