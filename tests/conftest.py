"""Small real files for every test: photos-like JPEGs of several sizes and turns, with boxes."""

import os
import pathlib
import subprocess
import tempfile
import zlib

if "PYTEST_XDIST_WORKER" in os.environ:  # test processes share the cores: threads on top would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from children import ROOT, pytest_timeout_set_timer  # noqa: F401, the second is a hook
from hypothesis import HealthCheck, settings
from PIL import Image

# Child processes test this checkout, and say where they are as they die or are ended.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["PYTHONFAULTHANDLER"] = "1"
# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Let temporary files, those of child processes too, go away with the session's folder."""
    folder = str(tmp_path_factory.mktemp("tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


def photo(width, height, seed):
    """A smooth, colourful picture with edges: what JPEG and resize filters meet in photos."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    picture = np.zeros((height, width, 3))
    for _ in range(6):
        fx, fy, phase = rng.normal(0, 9), rng.normal(0, 9), rng.uniform(0, 6)
        picture += np.sin(x * fx + y * fy + phase)[..., None] * rng.normal(0, 0.5, 3)
    for _ in range(5):
        x0, y0 = rng.integers(0, width - 3), rng.integers(0, height - 3)
        picture[y0 : y0 + height // 4, x0 : x0 + width // 4] += rng.normal(0, 0.8, 3)
    return Image.fromarray((255 / (1 + np.exp(-picture))).astype(np.uint8))


def write_photos(folder, n, seed=0):
    """Write n JPEGs, every fifth turned by EXIF, every seventh a PNG; return their names."""
    sizes = [(160, 120), (121, 163), (200, 90), (97, 97), (140, 150)]
    names = []
    for i in range(n):
        image = photo(*sizes[i % len(sizes)], seed + i)
        name = f"{i:03d}.{'png' if i % 7 == 6 else 'jpg'}"
        exif = Image.Exif()
        if i % 5 == 4:
            exif[0x0112] = 6
        image.save(folder / name, **({"quality": 90, "exif": exif} if name.endswith("jpg") else {}))
        names.append(name)
    return names


def boxes_for(catalog, seed=0):
    """Up to four boxes an image, none on every sixth."""
    rng = np.random.default_rng(seed)
    boxes = []
    for row, (w, h) in enumerate(catalog.sizes):
        k = 0 if row % 6 == 5 else int(rng.integers(1, 5))
        low = rng.uniform(0, 0.7, (k, 2)) * (w, h)
        high = np.minimum(low + rng.uniform(0.1, 0.5, (k, 2)) * (w, h), (w, h))
        boxes.append(np.concatenate([low, high], 1).astype(np.float32))
    return boxes


@pytest.fixture(autouse=True)
def gpus_for_those_marked(request):
    """Hide the GPU from tests without the mark `gpu`, and from their children: they test what a CPU does, anywhere."""
    with pytest.MonkeyPatch.context() as patch:  # its own: a test's `monkeypatch` is to be undone before its folders
        if request.node.get_closest_marker("gpu") is None:
            import torch

            if torch.cuda.is_available():
                torch.cuda.init()  # with all GPUs in sight, whoever comes first
                patch.setattr(torch.cuda, "is_available", lambda: False)
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture
def objcrop(monkeypatch, capsys):
    """Run a command in this process (one of its own takes seconds to import PyTorch); its code and what it said."""

    from objcrop.cli import main

    def run(*arguments, cwd=None):
        code = 0
        with monkeypatch.context() as patch:
            patch.chdir(cwd or ".")
            capsys.readouterr()
            try:
                main([str(word) for word in arguments])
            except SystemExit as stop:
                code = stop.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A catalog of 24 pictures and its boxes."""
    from objcrop.boxes import BoxTable
    from objcrop.formats import index

    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 24)
    catalog, _ = index(folder, "folder")
    return catalog, BoxTable.from_arrays(catalog, boxes_for(catalog))


@pytest.fixture(scope="session")
def turned(tmp_path_factory):
    """A catalog of 24 JPEGs and PNGs of odd sizes in all eight orientations, and its boxes."""
    from objcrop.boxes import BoxTable
    from objcrop.formats import index

    folder = tmp_path_factory.mktemp("turned")
    for i in range(24):
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        name = f"{i:02d}.{'png' if i % 3 else 'jpg'}"
        photo(*[(131, 97), (80, 143), (57, 61)][i % 3], i).save(folder / name, exif=exif)
    catalog, _ = index(folder, "folder")
    assert sorted(catalog.orientations.tolist()) == sorted([*range(1, 9)] * 3)
    return catalog, BoxTable.from_arrays(catalog, boxes_for(catalog))


@pytest.fixture(scope="session")
def save_photos():
    """The function that writes n pictures into a folder."""
    return write_photos


@pytest.fixture(scope="session")
def spoil_png():
    """The function that damages a PNG's pixels so that only decoding shows it: the checksum is right."""

    def spoil(path):
        data = bytearray(pathlib.Path(path).read_bytes())
        at = data.index(b"IDAT")
        end = at + 4 + int.from_bytes(data[at - 4 : at], "big")
        data[at + 200 : at + 240] = bytes(40)
        data[end : end + 4] = zlib.crc32(data[at:end]).to_bytes(4, "big")
        pathlib.Path(path).write_bytes(data)

    return spoil


@pytest.fixture(scope="session")
def test_data():
    """The folder of real images, where there is one."""
    folder = os.environ.get("OBJCROP_TEST_DATA")
    if not folder:
        pytest.skip("OBJCROP_TEST_DATA names no folder of real images")
    return pathlib.Path(folder)


def pytest_collection_modifyitems(items):
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="no GPU"))
