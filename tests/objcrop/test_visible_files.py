"""A walk that loses nothing without a word: folders that cannot be read, errors that pass, what is no file."""

import errno
import os
import socket

import pytest
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.formats.index_report import IndexReport
from objcrop.formats.visible_files import visible_files


def photos(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(folder / name)
    return folder


def failing(monkeypatch, name, number, times):
    """Let os.scandir fail for folders of this name, so many times."""
    whole, left = os.scandir, [times]

    def scandir(path):
        if os.path.basename(path) == name and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), path)
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr("objcrop.read_file.PAUSES", (0.0,) * 8)
    return left


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_a_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch, number):
    photos(tmp_path, "a.png", "shut/b.png", "z.png")
    failing(monkeypatch, "shut", number, 99)
    catalog, report = index(tmp_path)
    assert catalog.keys() == ["a.png", "z.png"]
    ((key, reason),) = report.left_out
    assert key == "shut" and "the folder cannot be read" in reason
    with pytest.raises(ObjcropError, match="shut: the folder cannot be read"):
        index(tmp_path, strict=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_the_right_to_read_is_listed(tmp_path):
    photos(tmp_path, "a.png", "shut/b.png")
    (tmp_path / "shut").chmod(0)
    try:
        assert [key for key, _ in index(tmp_path)[1].left_out] == ["shut"]
    finally:
        (tmp_path / "shut").chmod(0o700)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EINTR, errno.ENOMEM])
def test_an_error_that_passes_loses_nothing(tmp_path, monkeypatch, number):
    photos(tmp_path, "a.png", "shut/b.png")
    left = failing(monkeypatch, "shut", number, 3)
    assert index(tmp_path)[0].keys() == ["a.png", "shut/b.png"] and left == [0]
    failing(monkeypatch, "shut", number, 99)
    with pytest.raises(ObjcropError, match="shut"):
        index(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_regular_file_is_listed_and_not_opened(tmp_path, monkeypatch):
    photos(tmp_path, "a.png", "there/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("plug.png")
        (tmp_path / "nothing.png").symlink_to("none")
        (tmp_path / "self.png").symlink_to("self.png")
        (tmp_path / "device.png").symlink_to("/dev/zero")
        (tmp_path / "link.png").symlink_to("a.png")
        (tmp_path / "again").symlink_to("there")
        (tmp_path / "loop").symlink_to(tmp_path)
        catalog, report = index(tmp_path)
    assert catalog.keys() == ["a.png", "link.png", "there/b.png"]
    listed = dict(report.left_out)
    assert listed.keys() == {"pipe.png", "plug.png", "nothing.png", "self.png", "device.png"}
    assert listed["pipe.png"] == listed["plug.png"] == listed["device.png"] == "not a regular file"
    assert listed["nothing.png"] == "a link to nothing"


def test_deep_folders_and_many_names(tmp_path):
    deep = "/".join("d" * 20 for _ in range(60))
    names = [*(f"{i}.png" for i in range(3)), f"{deep}/x.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert visible_files(str(tmp_path), str(tmp_path), IndexReport()) == sorted(names)
    assert visible_files(str(tmp_path / "none"), str(tmp_path), IndexReport()) == []
    assert visible_files(str(tmp_path), str(tmp_path), IndexReport(), ending=".png") == sorted(names)
