"""The disk cache: what it gives is what was put, it stays within its limit, and no crash or neighbour spoils it."""

import os
import pickle
import random
import resource
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from children import running

from objcrop import disk_cache
from objcrop.disk_cache import BUCKET, SEGMENTS, SLOT, DiskCache, _name_of
from objcrop.errors import ObjcropError
from objcrop.place import Place, SourceFile


def place(i):
    return Place("s3://bucket/a.tar", f"{i}.jpg", SourceFile("a.tar", 99, "etag"), i, 7)


def content(i, size=1000):
    return np.random.default_rng(i).bytes(size)


def segments(folder):
    return sorted(Path(folder).glob("*.images"), key=lambda path: int(path.stem))


def taken(folder):
    return sum(path.stat().st_size for path in segments(folder))


def of_images(count):
    """The gigabytes in which so many images fit, a few in each segment."""
    return count * 1000 / 1e9


@pytest.fixture
def one_bucket(monkeypatch):
    """An index of one bucket."""
    monkeypatch.setattr(disk_cache, "BUCKETS", 1)
    _name_of.cache_clear()
    yield
    _name_of.cache_clear()


def test_it_gives_what_was_put_and_nothing_else(tmp_path):
    cache = DiskCache(tmp_path / "deep/er", 1)
    for i in range(20):
        assert cache.get(place(i)) is None
        cache.put(place(i), content(i))
    assert [cache.get(place(i)) for i in range(20)] == [content(i) for i in range(20)]
    one = place(3)
    others = [one._replace(path="s3://bucket/b.tar"), one._replace(offset=400), one._replace(length=8)]
    others += [one._replace(source=one.source._replace(changed="other")), one._replace(source=None)]
    assert [cache.get(other) for other in others] == [None] * 5
    for another in (DiskCache(tmp_path / "deep/er", 2), pickle.loads(pickle.dumps(cache))):
        assert another.get(one) == content(3)
        another.put(one, content(3))  # it is there already
    assert taken(tmp_path / "deep/er") == 20 * 1000


def test_what_was_unused_for_longest_goes(tmp_path):
    cache = DiskCache(tmp_path, of_images(3 * SEGMENTS))
    for i in range(3 * SEGMENTS):
        cache.put(place(i), content(i))
    assert len(segments(tmp_path)) == SEGMENTS and taken(tmp_path) == cache.limit
    now = 1_700_000_000
    for i, path in enumerate(segments(tmp_path)):
        os.utime(path, (now + i, now + i))
    for i in (0, 4, 8):  # read now, so that the first three segments are the youngest
        assert cache.get(place(i)) == content(i)
    for i in range(100, 115):
        cache.put(place(i), content(i))
        assert taken(tmp_path) <= cache.limit
    assert all(cache.get(place(i)) == content(i) for i in [*range(9), *range(24, 96), *range(100, 115)])
    assert [cache.get(place(i)) for i in range(9, 24)] == [None] * 15


def test_images_of_a_segment_are_kept_and_larger_ones_are_not(tmp_path):
    cache = DiskCache(tmp_path, of_images(SEGMENTS))
    for i, size in enumerate((1000, 1001, 0)):
        cache.put(place(i), content(i, size))
    assert [cache.get(place(i)) for i in range(3)] == [content(0), None, None] and taken(tmp_path) == 1000


@pytest.mark.parametrize("bend", [lambda d: d[:-1], lambda d: b"", lambda d: d[:5] + b"\0" + d[6:], lambda d: b"x" + d])
def test_a_spoilt_image_is_never_used_and_is_put_anew(tmp_path, bend):
    cache = DiskCache(tmp_path, 1)
    cache.put(place(0), b"\1" * 500)
    (segment,) = segments(tmp_path)
    segment.write_bytes(bend(segment.read_bytes()))
    assert cache.get(place(0)) is None
    cache.put(place(0), content(0))
    assert cache.get(place(0)) == content(0)


@pytest.mark.usefixtures("one_bucket")
def test_a_spoilt_index_gives_nothing_wrong(tmp_path):
    """Each bit of an entry is turned; what follows is found again, or not found, and can be put again."""
    cache = DiskCache(tmp_path, 1)
    for i in range(3):
        cache.put(place(i), content(i))
    index = tmp_path / "index"
    sound = index.read_bytes()
    at = sound.index(_name_of(place(1))[0])
    for bit in range(8 * SLOT.size):
        spoilt = bytearray(sound)
        spoilt[at + bit // 8] ^= 1 << bit % 8
        index.write_bytes(spoilt)
        assert cache.get(place(1)) is None and cache.get(place(2)) == content(2)
        cache.put(place(1), content(1))
        assert cache.get(place(1)) == content(1)


@pytest.mark.usefixtures("one_bucket")
def test_a_bucket_that_is_full_forgets_lost_segments_first_then_the_oldest(tmp_path):
    cache = DiskCache(tmp_path, of_images(SEGMENTS))  # an image in each segment
    for i in range(16):
        cache.put(place(i), content(i))
    assert all(cache.get(place(i)) == content(i) for i in range(16))
    segments(tmp_path)[7].unlink()
    cache.put(place(16), content(16))
    assert [i for i in range(17) if cache.get(place(i)) is None] == [7]
    cache.put(place(17), content(17))
    assert [i for i in range(18) if cache.get(place(i)) is None] == [0, 7]
    assert (tmp_path / "index").stat().st_size == BUCKET


WRITER = """
import sys, random
import numpy as np
from objcrop.disk_cache import DiskCache
from objcrop.place import Place, SourceFile
place = lambda i: Place("s3://bucket/a.tar", f"{i}.jpg", SourceFile("a.tar", 99, "etag"), i, 7)
content = lambda i: np.random.default_rng(i).bytes(1000)
cache, drawn = DiskCache(sys.argv[1], float(sys.argv[2])), random.Random(int(sys.argv[3]))
while True:
    i = drawn.randrange(60)
    found = cache.get(place(i))
    assert found in (None, content(i)), i
    if found is None:
        cache.put(place(i), content(i))
    print(i, flush=True)
"""


def test_processes_share_it_and_are_killed(tmp_path):
    """Four times three write and read at once, and are killed. Nothing wrong is ever read, the limit holds."""
    script, gigabytes = tmp_path / "writer.py", of_images(40)
    script.write_text(WRITER)
    cache, drawn = DiskCache(tmp_path / "cache", gigabytes), random.Random(0)
    for round_ in range(4):
        with ExitStack() as stack:
            command = [sys.executable, script, str(tmp_path / "cache"), str(gigabytes)]
            children = [stack.enter_context(running([*command, str(3 * round_ + k)])) for k in range(3)]
            for child in children:
                for _ in range(drawn.randrange(20, 120)):
                    assert child.stdout.readline(), child.stderr.read()
            for child in children:
                child.send_signal(signal.SIGKILL)
        assert 0 < taken(tmp_path / "cache") <= cache.limit
    for i in range(60):
        assert cache.get(place(i)) in (None, content(i))
    for i in range(60, 120):  # and it goes on, within its limit
        cache.put(place(i), content(i))
        assert cache.get(place(i)) == content(i)
    assert taken(tmp_path / "cache") <= cache.limit


def test_threads_share_it(tmp_path):
    """Eight put at once, of a limit that holds all but what is left over in each segment; none is lost."""
    cache = DiskCache(tmp_path, of_images(10 * SEGMENTS))

    def some(first):
        for i in range(first, 160, 8):
            cache.put(place(i), content(i))

    threads = [threading.Thread(target=some, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(cache.get(place(i)) == content(i) for i in range(160)) and taken(tmp_path) == 160 * 1000


def test_a_forked_process_appends_beside_its_parent(tmp_path):
    cache = DiskCache(tmp_path, 1)
    cache.put(place(0), content(0))  # the segment is open in both
    child = os.fork()
    for i in range(1, 100, 2):
        cache.put(place(i + (child == 0)), content(i + (child == 0)))
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert all(cache.get(place(i)) == content(i) for i in range(100)) and taken(tmp_path) == 101 * 1000


def test_files_that_are_lost_are_misses(tmp_path):
    cache = DiskCache(tmp_path, of_images(2 * SEGMENTS))
    for i in range(60):
        cache.put(place(i), content(i))
    (tmp_path / "index").unlink()
    anew = DiskCache(tmp_path, of_images(2 * SEGMENTS))
    assert not any(anew.get(place(i)) for i in range(60))
    for i in range(100):
        anew.put(place(i), content(i))
        assert taken(tmp_path) <= anew.limit and anew.get(place(i)) == content(i)
    for path in segments(tmp_path):
        path.unlink()
    assert anew.get(place(99)) is None
    anew.put(place(99), content(99))
    assert anew.get(place(99)) == content(99)


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjcropError, match="is a file, not a folder"):
        DiskCache(tmp_path / "file", 1)
    cache = DiskCache(tmp_path / "cache", 1)
    cache.put(place(0), content(0))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskCache, "_append", full)
    for i in range(1, 4):
        cache.put(place(i), content(i))
    assert len(caplog.messages) == 1 and "no space left" in caplog.messages[0].lower()
    assert cache.get(place(0)) == content(0)


@pytest.mark.usefixtures("one_bucket")
def test_a_write_cut_short_is_a_full_disk(tmp_path, caplog):
    cache = DiskCache(tmp_path, 1)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        for i in range(3):
            cache.put(place(i), content(i))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert taken(tmp_path) == 1500 and "no space left" in caplog.messages[0].lower() and len(caplog.messages) == 1
    assert [cache.get(place(i)) for i in range(3)] == [content(0), None, None]
