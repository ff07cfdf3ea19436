"""Files read without Python: the same bytes and the same opinion of them, and nothing that Python would wait for."""

import os

import numpy as np
import pytest
from encoded_kinds import PLAIN, RARE
from hypothesis import given
from hypothesis import strategies as st

from objcrop.dali_pipes.plain_image import plain_image
from objcrop.dali_pipes.plain_jpeg import MOST_PARTS, jpeg_parts
from objcrop.dali_pipes.read_files import AT_ONCE, file_memory
from objcrop.dali_pipes.read_files import read_files as read_places
from objcrop.formats import index
from objcrop.image_bytes import source_at
from objcrop.place import Place

MEMORY = file_memory(8, 1, 2)


def read_files(paths, memory=MEMORY):
    return read_places([Place(str(path), str(path)) for path in paths], memory)


@pytest.mark.parametrize("kinds", [PLAIN, RARE])
def test_files_are_what_python_reads(tmp_path, kinds):
    paths = [tmp_path / f"{i} – ü\n" for i in range(len(kinds))]
    for path, data in zip(paths, kinds.values()):
        path.write_bytes(data)
    for data, file in zip(kinds.values(), read_files(paths)):
        plain = plain_image(data) if data[:2] == b"\xff\xd8" else None
        if not data:
            assert file is None  # Python says that it is empty
        elif plain is None:
            assert file.size is None and file.data.tobytes() == data
        else:
            assert file.size == plain.size and file.data.tobytes() == plain.data.tobytes()


def test_what_is_no_file_is_left_to_python(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(PLAIN["baseline"])
    (tmp_path / "secret.jpg").write_bytes(PLAIN["baseline"])
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "round.jpg", tmp_path / "round.jpg")
    names = ["missing.jpg", "", "photo.jpg/photo.jpg", "pipe.jpg", "round.jpg", "photo.jpg", "x" * 300]
    found = read_files([f"{tmp_path}/{name}" for name in names])
    assert [file is not None for file in found] == [name == "photo.jpg" for name in names]
    assert read_files(["/dev/zero", "/proc/self/cmdline", "/proc/self/mem"]) == [None] * 3
    assert read_files(["a\0b", str(tmp_path / "photo.jpg")]) == [None, None]
    with open(tmp_path / "giant.jpg", "wb") as file:
        file.truncate((1 << 24) + 1)
    assert read_files([tmp_path / "giant.jpg"]) == [None]
    assert read_files([]) == []


def test_no_file_stays_open_and_many_are_read(tmp_path):
    for i in range(3 * AT_ONCE + 5):
        (tmp_path / f"{i}.bin").write_bytes(os.urandom(1 + 997 * i))
    files = sorted(tmp_path.iterdir())
    before = len(os.listdir("/proc/self/fd"))
    found = read_files(files)
    assert [file.data.tobytes() for file in found] == [path.read_bytes() for path in files]
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_used_again_once_no_image_is_left_of_it(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(PLAIN["baseline"])
    memory, paths = file_memory(2, 1, 2), [str(tmp_path / "photo.jpg")] * 2
    first = read_files(paths, memory)
    where, kept = first[0].data.ctypes.data, first[1].data
    del first
    assert read_files(paths, memory)[0].data.ctypes.data != where  # the other image lies there still
    assert kept.tobytes() == PLAIN["baseline"]
    del kept
    assert where in [file.data.ctypes.data for _ in range(2) for file in [read_files(paths, memory)[0]]]


@given(st.data())
def test_what_is_left_of_a_jpeg(data):
    """Segments of metadata among those of the image, against bytes put together again."""
    photo = PLAIN["baseline"]
    cuts, at = [], 2
    while photo[at + 1] != 0xDA:  # before each segment up to the scan
        cuts.append(at)
        at += 2 + int.from_bytes(photo[at + 2 : at + 4], "big")
    more = data.draw(st.lists(st.tuples(st.sampled_from(cuts), st.sampled_from([0xE1, 0xE2, 0xED, 0xFE]), st.binary())))
    written = photo
    for place, marker, body in sorted(more, key=lambda one: -one[0]):
        segment = bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body
        written = written[:place] + segment + written[place:]
    found = plain_image(written)
    assert found.size == (40, 30) and found.data.tobytes() == photo


def test_what_is_cut_into_very_many_parts_goes_pils_way():
    photo, parts = PLAIN["baseline"], np.empty((MOST_PARTS, 2), np.int64)
    tables = photo.index(b"\xff\xdb")
    table = photo[tables : tables + 2 + int.from_bytes(photo[tables + 2 : tables + 4], "big")]
    for many in (MOST_PARTS - 2, MOST_PARTS + 2):
        written = photo[:tables] + (b"\xff\xfe\0\3." + table) * many + photo[tables:]
        count = jpeg_parts(np.frombuffer(written, np.uint8), parts)[0]
        assert (count > 0) == (many < MOST_PARTS) == (plain_image(written) is not None)


def test_a_loader_of_files_opens_none_in_python(tmp_path, monkeypatch):
    from objcrop.dali_pipes.load_views import load_views
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(tmp_path, 6)
    catalog, _ = index(tmp_path / "images", "folder")
    options = {"size": 32, "batch_size": 5, "shuffle": False, "device": "cpu"}
    with load_views(catalog, **options) as loader:
        expected = next(iter(loader))
    asked = []
    monkeypatch.setattr("objcrop.image_bytes.read_file", lambda path: asked.append(path))
    with load_views(catalog, **options) as loader:
        batch = next(iter(loader))
    assert not asked
    assert all(np.array_equal(a, b) for a, b in zip(batch.views, expected.views))


def test_ranges_of_files_that_hold_many(tmp_path):
    kinds = [*PLAIN.values(), *(data for data in RARE.values() if data)]
    shards, places = [b"", b""], []
    for i, data in enumerate(kinds):
        shards[i % 2] += b"head" + data
        places.append((i % 2, len(shards[i % 2]) - len(data), len(data)))
    for name, held in zip("ab", shards):
        (tmp_path / name).write_bytes(held)
    sources = [source_at(str(tmp_path), name) for name in "ab"]
    asked = [Place(f"{tmp_path}/{'ab'[n]}", "", sources[n], offset, length) for n, offset, length in places]
    before = len(os.listdir("/proc/self/fd"))
    for data, file in zip(kinds, read_places(asked, MEMORY)):
        plain = plain_image(data) if data[:2] == b"\xff\xd8" else None
        assert file.data.tobytes() == (data if plain is None else plain.data.tobytes())
        assert file.size == (None if plain is None else plain.size)
    other = sources[0]._replace(changed="another time")
    gone = asked[0]._replace(path=f"{tmp_path}/gone")
    table = asked[0]._replace(source=sources[0]._replace(column="image"), length=-1)
    beyond = asked[0]._replace(offset=len(shards[0]) - 1)
    giant = asked[0]._replace(length=1 << 40)  # no memory is asked for
    odd = [asked[0]._replace(source=other), asked[1], gone, table, beyond, giant]
    assert [file is not None for file in read_places(odd, MEMORY)] == [False, True, False, False, False, False]
    assert len(os.listdir("/proc/self/fd")) == before
