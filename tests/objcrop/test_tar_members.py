"""Members of tars against Python's tarfile, for every dialect it writes, and tars cut, bent and compressed."""

import gzip
import io
import tarfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from objcrop.formats.tar_members import BadTar, tar_members

KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE)
NAMES = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
    st.integers(90, 300).map(lambda n: "dir/" + "n" * n),
    st.integers(90, 200).map(lambda n: "d" * n + "/" + "n" * 90),
)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def packed(members, form):
    """A tar of (name, kind, bytes), less what this dialect cannot say."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data) if kind in KINDS[:2] else 0
            info.linkname = "elsewhere" if kind in KINDS[3:5] else ""
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:  # a name too long for ustar
                continue
    return buffer.getvalue()


def read(data):
    return list(tar_members(lambda at, n: data[at : at + n], len(data)))


@settings(deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.sampled_from(KINDS), st.binary(max_size=1100)), max_size=6), st.sampled_from(FORMATS)
)
@example([("a.jpg", tarfile.REGTYPE, b""), ("ü" * 60, tarfile.REGTYPE, b"x" * 512)], tarfile.PAX_FORMAT)
def test_names_and_bytes_are_those_of_tarfile(members, form):
    # Of the old kind of file with a long name tarfile makes a folder where the name's hundredth byte is a slash.
    members = [m for m in members if m[1] != tarfile.AREGTYPE or len(m[0].encode()) < 100]
    data = packed(members, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [m for m in tar.getmembers() if not m.isdir()]
        found = read(data)
        assert [m.name for m in found] == [m.name for m in expected]
        assert [bool(m.reason) for m in found] == [not m.isreg() for m in expected]
        for mine, other in zip(found, expected):
            if other.isreg():
                assert data[mine.offset : mine.offset + mine.length] == tar.extractfile(other).read()


def test_a_long_name_with_a_slash_at_its_hundredth_byte_is_no_folder():
    name = "d" * 99 + "/" + "n" * 90
    data = packed([(name, tarfile.AREGTYPE, b"x"), ("b.jpg", tarfile.REGTYPE, b"y")], tarfile.GNU_FORMAT)
    found = [(m.name, data[m.offset : m.offset + m.length], m.reason) for m in read(data)]
    assert found == [(name, b"x", ""), ("b.jpg", b"y", "")]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_tar_gives_whole_members_or_a_reason(data):
    whole = packed([("a.jpg", tarfile.REGTYPE, b"a" * 700), ("é" * 70, tarfile.REGTYPE, b"b" * 5)], tarfile.PAX_FORMAT)
    bent = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, max(len(bent) - 1, 0)), max_size=3)):
        if bent:
            bent[at] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(bent))
    except BadTar:
        return
    assert all(0 <= m.offset <= m.offset + m.length <= len(bent) for m in found)


def test_a_bent_bit_in_a_header_is_found():
    data = packed([("a.jpg", tarfile.REGTYPE, b"a" * 700), ("b.jpg", tarfile.REGTYPE, b"b")], tarfile.GNU_FORMAT)
    for at in {*range(512)} - {154, 155}:  # the two bytes that end the checksum's digits
        bent = bytearray(data)
        bent[at] ^= 1
        with pytest.raises(BadTar, match=r"no tar|damaged|compressed"):
            read(bytes(bent))


@pytest.mark.parametrize("form", FORMATS)
def test_sizes_above_eight_gigabytes(form):
    if form == tarfile.USTAR_FORMAT:
        return
    info, size = tarfile.TarInfo("big.jpg"), 9 << 30
    info.size = size
    head = info.tobuf(form)
    end = len(head) + size
    (found,) = tar_members(lambda at, n: head[at : at + n] if at < len(head) else bytes(min(n, end - at)), end)
    assert (found.name, found.offset, found.length) == ("big.jpg", len(head), size)


def test_where_and_why_a_tar_cannot_be_read():
    data = packed([("a.jpg", tarfile.REGTYPE, b"a" * 700), ("b.jpg", tarfile.REGTYPE, b"b" * 700)], tarfile.GNU_FORMAT)
    second = 512 + 1024
    for cut, says in ((second + 600, "in the middle of b.jpg, 612 bytes"), (second + 100, "byte 1536 is damaged")):
        part = io.BytesIO(data[:cut])
        members = tar_members(lambda at, n, part=part: part.getvalue()[at : at + n], cut)
        assert next(members).name == "a.jpg"
        with pytest.raises(BadTar, match=says):
            next(members)
    assert [m.name for m in read(data[: second + 512 + 1024])] == ["a.jpg", "b.jpg"]  # without the blocks that end it
    kinds = {
        gzip.compress(data): "gzip.*gunzip",
        b"\x28\xb5\x2f\xfd" + bytes(600): "zstd",
        bytes(range(256)) * 2: "no tar",
    }
    for bad, says in {**kinds, b"<!DOCTYPE html>" + b" " * 600: "web page"}.items():
        with pytest.raises(BadTar, match=says):
            read(bad)
    assert read(b"") == read(bytes(10240)) == []
