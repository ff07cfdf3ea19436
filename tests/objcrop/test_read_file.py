"""A passing error of the file system is no bad file: it is tried again, and ends the work in a sentence if it stays."""

import errno
import os
import socket

import numpy as np
import pytest

from objcrop import read_file as reading
from objcrop.dali_pipes import read_files
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.proposals import propose
from objcrop.read_file import PASSING, PAUSES, patiently, read_file


@pytest.fixture
def flaky(monkeypatch):
    """A function that makes the next n opens of names that contain `part` fail."""
    waited, opened, opened_at_once = [], os.open, read_files._open_files
    left = {}

    def fails(path, *arguments, **more):
        for part in left:
            if part in str(path) and left[part][1]:
                left[part][1] -= 1
                raise OSError(left[part][0], os.strerror(left[part][0]), str(path))
        return opened(path, *arguments, **more)

    def fail_at_once(paths):
        """As compiled code is told: no number, no file."""
        files, lengths = opened_at_once(paths)
        bad = [any(part in path and left[part][1] for part in left) for path in paths]
        read_files._closed(files[bad])
        files[bad], lengths[bad] = -1, 0
        return files, lengths

    monkeypatch.setattr(read_files, "_open_files", fail_at_once)
    monkeypatch.setattr(reading.os, "open", fails)
    monkeypatch.setattr(reading.time, "sleep", waited.append)

    def prepare(part, number, times):
        left[part] = [number, times]
        return waited

    return prepare


def test_a_file_is_read_to_its_end_whatever_its_size_is_said_to_be(tmp_path, monkeypatch):
    content = bytes(range(256)) * 9000
    (tmp_path / "photo").write_bytes(content)
    facts = os.stat(tmp_path / "photo")
    for size in (0, 5, len(content), 2 * len(content)):
        told = os.stat_result((*facts[:6], size, *facts[7:10]))
        monkeypatch.setattr(reading.os, "fstat", lambda descriptor, told=told: told)
        assert read_file(str(tmp_path / "photo")) == content


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.EINTR, errno.ETIMEDOUT])
def test_what_passes_is_waited_for(tmp_path, flaky, number):
    (tmp_path / "a").write_bytes(b"all of it")
    waited = flaky("a", number, 3)
    assert read_file(str(tmp_path / "a")) == b"all of it"
    assert waited == list(PAUSES[:3])


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.EIO, "disk"), (errno.EMFILE, "ulimit"), (errno.ENOMEM, "memory")]
)
def test_what_stays_is_a_sentence(tmp_path, flaky, number, way_out):
    (tmp_path / "a").write_bytes(b"")
    waited = flaky("a", number, 99)
    with pytest.raises(ObjcropError, match=way_out) as caught:
        read_file(str(tmp_path / "a"))
    assert str(tmp_path / "a") in str(caught.value) and waited == list(PAUSES)


def test_what_is_about_the_file_is_not_waited_for(tmp_path, flaky, monkeypatch):
    waited = flaky("nothing", errno.EIO, 0)
    assert not {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG} & PASSING
    with pytest.raises(FileNotFoundError):
        read_file(str(tmp_path / "missing"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(str(tmp_path / "pipe"))
    with socket.socket(socket.AF_UNIX) as listening, pytest.raises(OSError):
        monkeypatch.chdir(tmp_path)  # a socket's name must be short
        listening.bind("socket")
        read_file("socket")
    with pytest.raises(OSError):
        patiently("x", lambda: (_ for _ in ()).throw(OSError("of Pillow, without a number")))
    assert not waited


@pytest.fixture
def folder(tmp_path, save_photos):
    (tmp_path / "photos").mkdir()
    save_photos(tmp_path / "photos", 10)
    return tmp_path / "photos"


WAYS = [
    dict(backend="torch", workers=0),
    dict(backend="dali", threads=2),
    dict(backend="dali", threads=2, cache="host"),
]


@pytest.mark.parametrize("way", WAYS)
def test_a_loader_waits_and_marks_nothing_bad(folder, flaky, way):
    catalog, _ = index(folder)
    flaky("004.jpg", errno.EIO, 5)
    flaky("007.jpg", errno.ESTALE, 2)
    with load_views(catalog, size=16, batch_size=5, **way) as loader:
        assert not any(batch.substituted.any() for batch in loader)
        assert not loader.bad_images.reasons


@pytest.mark.parametrize("way", [*WAYS, dict(backend="torch", workers=1)])
def test_a_loader_stops_in_a_sentence(folder, flaky, way):
    catalog, _ = index(folder)
    flaky("004.jpg", errno.EIO, 10**6)
    with load_views(catalog, size=16, batch_size=5, **way) as loader:
        with pytest.raises(ObjcropError, match=r"004\.jpg cannot be read in 9 tries") as caught:
            list(loader)
        assert "\n" not in str(caught.value) and not loader.bad_images.reasons


def test_index_loses_no_photo(folder, flaky):
    flaky("00", errno.EMFILE, len(PAUSES))
    catalog, report = index(folder)
    assert len(catalog) == 10 and not report.left_out
    flaky("003", errno.EMFILE, 10**6)
    with pytest.raises(ObjcropError, match=r"003\.jpg.*ulimit"):
        index(folder)


@pytest.mark.parametrize("verify", [False, True])
def test_index_waits_while_it_reads(folder, monkeypatch, verify):
    """EIO in the middle of a file, which Pillow passes on."""
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    failures = [OSError(errno.EIO, "x")] * 3
    from objcrop import exif

    real = exif.Image.open

    def opens(file, *more):
        if failures:
            raise failures.pop()
        return real(file, *more)

    monkeypatch.setattr(exif.Image, "open", opens)
    assert len(index(folder, verify=verify)[0]) == 10 and not failures


def test_propose_waits_and_stops(folder, flaky, tmp_path):
    catalog, _ = index(folder)
    untroubled = propose(catalog, "bing", workers=0)
    flaky("002.jpg", errno.EIO, 4)
    found = propose(catalog, "bing", workers=0)
    np.testing.assert_array_equal(found.values, untroubled.values)
    flaky("002.jpg", errno.EIO, 10**6)
    with pytest.raises(ObjcropError, match=r"002\.jpg cannot be read"):
        propose(catalog, "bing", workers=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_pipe_in_place_of_a_photo_is_not_waited_for(folder, way):
    catalog, _ = index(folder)
    (folder / "001.jpg").unlink()
    os.mkfifo(folder / "001.jpg")
    with load_views(catalog, size=16, batch_size=5, max_bad=0.5, **way) as loader:
        list(loader)
        assert list(loader.bad_images.reasons.values()) == ["cannot be read (not a regular file)"]
