"""The doctor tries each way of decoding in a child: one that dies, or errs, is a line, and the others go on."""

import io
import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
from rich.console import Console

from objcrop import decoding_probe, doctor
from objcrop.child_process import Child
from objcrop.decoding_probe import Probed, Way, advice, probe_decoding, ways
from objcrop.doctor import Finding, examine_decoding, found, print_findings

SAFE = Probed("whole", 0.0, views=1024, mean_off=0.4, max_off=9)
DEAD = Probed("union", 0.65, trouble="killed by SIGSEGV")
MOVED = Probed("whole", 0.65, views=1024, mean_off=0.4, max_off=9, moved=0.12, max_moved=201)
OFF = Probed("union", 0.0, views=1024, mean_off=31.0, max_off=255)


def dies_at_unions(folder, device, way):
    """Stands in the place of `probe_way`."""
    if way.decode == "union":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decoding_probe.probe_way(folder, device, way)


def test_a_way_that_kills_its_process_is_a_line(monkeypatch):
    monkeypatch.setattr(decoding_probe, "probe_way", dies_at_unions)
    dead, lives = probe_decoding("cpu", [Way("union", 0.0), Way("whole", 0.0)], images=4)
    assert (dead.trouble, dead.views) == ("killed by SIGSEGV", 0) and not dead.safe
    assert "dies_at_unions" in dead.said  # where it was
    assert lives.safe and (lives.views, lives.moved, lives.max_moved) == (8, 0, 0) and lives.mean_off < 0.5


class Shaken:
    """A loader whose pixels change once somebody else works."""

    def __init__(self, loader, epoch):
        self.loader, self.epoch, self.walks = loader, epoch, 0
        self.set_epoch = loader.set_epoch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loader.close()

    def __iter__(self):
        self.walks += 1
        for batch in self.loader:
            if self.walks == self.epoch:
                batch.views[1][2, :, 5:9, 5:9] += 0.4
            yield batch


@pytest.mark.parametrize(("epoch", "moves"), [(1, 1), (3, 1 / 6)])
def test_pixels_that_change_are_seen(tmp_path, monkeypatch, epoch, moves):
    """Of 8 views one is off: in the idle pass, where all six busy ones differ from it; in one of the busy ones."""
    from objcrop.formats import index
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(tmp_path, 4)
    catalog, _ = index(tmp_path, "scenes")
    catalog.save(tmp_path / "photos.arrow")
    propose(catalog, "gt").save(tmp_path / "boxes.arrow")
    decoding_probe.keep_expected(tmp_path)
    views = decoding_probe._views
    monkeypatch.setattr(decoding_probe, "_views", lambda *way: Shaken(views(*way), epoch))
    of = Probed("union", 0.0, **decoding_probe.probe_way(tmp_path, "cpu", Way("union", 0.0)))
    assert of.moved == pytest.approx(moves / 8) and 20 <= of.max_moved <= 26 and not of.safe
    assert (of.max_off > 0) == (of.mean_off > 0) == (epoch == 1)


def test_what_is_tried():
    assert ways("cuda") == [("whole", 0.0), ("whole", 0.65), ("union", 0.0), ("union", 0.65)]
    assert ways("cpu") == [("whole", 0.0), ("union", 0.0)]


def test_advice():
    first, second = advice([SAFE, MOVED, Probed("union", 0.0, views=4), DEAD])
    assert first == 'Use load_views(…, backend="dali", device="cuda", decode="whole", hw_decoder_load=0.0).'
    assert 'decode="union", hw_decoder_load=0.0.' in second and "0.65" not in second
    assert advice([DEAD, MOVED, OFF]) == [
        "No way of decoding on this GPU is safe.",
        'Use load_views(…, backend="dali", device="cpu").',
    ]


def test_the_table_of_a_gpu():
    findings = [Finding("DALI decodes", True, ""), Finding("GPU in torch", True, "H100")]
    console = Console(file=io.StringIO(), width=160)
    print_findings(findings, [SAFE, MOVED, DEAD], console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["safe", "whole", "0.0", "0.40", "9", "0.00%", "0"] in rows
    assert ["not", "safe", "whole", "0.65", "0.40", "9", "12.00%", "201"] in rows
    assert ["not", "safe", "union", "0.65", "killed", "by", "SIGSEGV"] in rows
    result = found(findings, [SAFE, DEAD])
    assert [way["safe"] for way in result["decoding"]] == [True, False] and "whole" in result["verdict"][0]


@pytest.mark.parametrize("absent", ["GPU in torch", "DALI decodes"])
def test_without_a_gpu_nothing_is_tried(absent, monkeypatch):
    monkeypatch.setattr(decoding_probe, "probe_decoding", lambda *_: pytest.fail("tried"))
    assert examine_decoding([Finding(name, name != absent, "") for name in ("GPU in torch", "DALI decodes")]) == []


def test_versions_are_told_without_a_gpu(monkeypatch):
    pytest.importorskip("nvidia.nvimgcodec")
    version = doctor._nvjpeg()
    assert int(version.split(".")[0]) >= 12
    old = SimpleNamespace(nvjpegGetProperty=lambda part, number: setattr(number._obj, "value", (12, 4, 0)[part]))
    monkeypatch.setattr("ctypes.CDLL", lambda name: old)
    assert doctor._nvjpeg() == '12.4.0; older than 13.2, so decode="union" decodes on the CPU'


def test_nvjpeg_is_looked_for_where_the_plugin_looks(tmp_path, monkeypatch):
    codec = pytest.importorskip("nvidia.nvimgcodec")
    name = f"libnvjpeg.so.{codec.__cuda_version__ // 1000}"
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    opened = []
    monkeypatch.setattr("ctypes.CDLL", lambda name: opened.append(name) or SimpleNamespace(nvjpegGetProperty=print))
    doctor._nvjpeg()
    assert opened == [str(tmp_path / name)]


def test_a_commit_is_told_of_a_checkout_alone(tmp_path, monkeypatch):
    """An environment in somebody else's checkout once told their commit, and a machine without git ended the run."""
    assert doctor.commit()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert doctor.commit() is None
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qm", "theirs", "--allow-empty"],
        cwd=tmp_path,
        check=True,
    )
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "site-packages" / "objcrop" / "doctor.py"))
    assert doctor.commit() is None


@pytest.mark.gpu
def test_on_a_gpu():
    with Child(doctor.launch_one) as child:
        assert child().startswith("launched")
    (default,) = probe_decoding("cuda", ways("cuda")[:1], images=32)
    assert default.safe, default


def test_no_kernel_is_launched_without_a_gpu():
    with pytest.raises(RuntimeError, match="no GPU"):
        doctor._own_kernels()
