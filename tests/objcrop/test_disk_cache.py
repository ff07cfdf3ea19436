"""The disk cache: what it gives is what was put, it stays within its limit, and no crash or neighbour spoils it."""

import os
import random
import signal
import sys
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from children import running

from objcrop.disk_cache import HEAD, DiskCache
from objcrop.errors import ObjcropError
from objcrop.place import Place, SourceFile


def place(i):
    return Place("s3://bucket/a.tar", f"{i}.jpg", SourceFile("a.tar", 99, "etag"), i, 7)


def content(i, size=1000):
    return np.random.default_rng(i).bytes(size)


def taken(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("??/[!.]*"))


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
    assert DiskCache(tmp_path / "deep/er", 1).get(one) == content(3)


def test_what_was_unread_for_longest_goes(tmp_path):
    cache = DiskCache(tmp_path, 100 * (1000 + HEAD) / 1e9)
    now = 1_700_000_000
    for i in range(95):
        cache.put(place(i), content(i))
        os.utime(cache._path(place(i)), (now + i, now + i))
    for i in range(10):
        assert cache.get(place(i)) is not None  # read now, so that they are the youngest
    for i in range(95, 120):
        cache.put(place(i), content(i))
        assert taken(tmp_path) <= cache.limit
    assert all(cache.get(place(i)) == content(i) for i in [*range(10), *range(110, 120)])
    assert [cache.get(place(i)) for i in range(10, 20)] == [None] * 10


def test_an_image_of_a_tenth_of_the_limit_is_not_kept(tmp_path):
    cache = DiskCache(tmp_path, 1e-5)
    cache.put(place(0), content(0, 1001))
    assert cache.get(place(0)) is None and taken(tmp_path) == 0


@pytest.mark.parametrize("bend", [lambda d: d[:-1], lambda d: b"", lambda d: d[:5] + b"\0" + d[6:], lambda d: d + b"x"])
def test_a_spoilt_file_is_never_used(tmp_path, bend):
    cache = DiskCache(tmp_path, 1)
    cache.put(place(0), b"\1" * 500)
    path = cache._path(place(0))
    path.write_bytes(bend(path.read_bytes()))
    assert cache.get(place(0)) is None and not path.exists()
    cache.put(place(0), content(0))
    assert cache.get(place(0)) == content(0)


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
    script, limit = tmp_path / "writer.py", 40 * (1000 + HEAD)
    script.write_text(WRITER)
    cache, drawn = DiskCache(tmp_path / "cache", limit / 1e9), random.Random(0)
    for round_ in range(4):
        with ExitStack() as stack:
            command = [sys.executable, script, str(tmp_path / "cache"), str(limit / 1e9)]
            children = [stack.enter_context(running([*command, str(3 * round_ + k)])) for k in range(3)]
            for child in children:
                for _ in range(drawn.randrange(20, 120)):
                    assert child.stdout.readline(), child.stderr.read()
            for child in children:
                child.send_signal(signal.SIGKILL)
        assert taken(tmp_path / "cache") <= limit
    for i in range(60):
        assert cache.get(place(i)) in (None, content(i))
    for i in range(60, 120):  # and it goes on, within its limit
        cache.put(place(i), content(i))
    assert taken(tmp_path / "cache") <= limit


def test_a_lost_ledger_is_counted_anew_and_leftovers_go(tmp_path):
    cache = DiskCache(tmp_path, 50 * (1000 + HEAD) / 1e9)
    for i in range(45):
        cache.put(place(i), content(i))
    (tmp_path / "bytes-used").write_bytes(b"")
    leftover = cache._path(place(0)).parent / ".left"
    leftover.write_bytes(b"half")
    os.utime(leftover, (1, 1))
    cache.put(place(50), content(50))
    assert not leftover.exists() and cache.get(place(50)) == content(50)
    used = int.from_bytes((tmp_path / "bytes-used").read_bytes(), "little")
    assert used == taken(tmp_path)


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjcropError, match="is a file, not a folder"):
        DiskCache(tmp_path / "file", 1)
    cache = DiskCache(tmp_path / "cache", 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for i in range(3):
        cache.put(place(i), content(i))
    assert len(caplog.messages) == 1 and "no space left" in caplog.messages[0].lower()


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    cache = DiskCache(tmp_path, 1)
    cache.put(place(0), content(0))
    held = cache._path(place(0)).read_bytes()
    assert int.from_bytes(held[:4], "little") == zlib.crc32(held[4:]) and held[4:] == content(0)
