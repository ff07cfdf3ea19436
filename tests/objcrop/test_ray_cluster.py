"""On a Ray cluster the work comes out as in one process, bit for bit, whatever becomes of its machines."""

import importlib.util
import json
import os
import sys
import tempfile

import numpy as np
import pytest

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.proposals import from_images
from objcrop.proposals.from_images import propose_from_images
from objcrop.ray_cluster import ray_cluster

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(autouse=True)
def short_names(monkeypatch):
    """The test processes' own folders of temporary files lie too deep for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture
def start(monkeypatch):
    """Starts machines of so many processors, the first the head, as processes here; they end with the test."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # That a machine is gone is noticed in two seconds, not in a quarter of a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    clusters = []

    def start(cpus, cluster=None, **environment):
        cluster = cluster or Cluster()
        clusters.append(cluster)
        node = cluster.add_node(
            num_cpus=cpus, env_vars=environment, include_dashboard=False, object_store_memory=80_000_000
        )
        return cluster, node

    yield start
    for cluster in set(clusters):
        cluster.shutdown()


def shared_out(catalog, folder, address):
    """Everything that works on a cluster, on this one; what came out."""
    from objcrop.box_stats import stats
    from objcrop.proposals import propose

    with ray_cluster(address):
        again, report = index(catalog.root, verify=True)
        boxes = propose(catalog, "edge-boxes", count=5, parts=folder / "b.parts", workers=0)
        measured = stats(catalog, boxes, "obj-obj+dilate", size=32, bootstrap=20)
    return again.fingerprint, report.lines(), boxes.fingerprint, boxes.values.tobytes(), json.dumps(measured)


@pytest.fixture
def labelled(photos, tmp_path):
    """The photos in a file that other processes open, with ground truth."""
    catalog, boxes = photos
    rows = np.repeat(np.arange(len(catalog)), boxes.counts(np.arange(len(catalog))))
    truth = dict(boxes=boxes.values, box_rows=rows, box_classes=np.zeros(len(rows)), classes=["thing"])
    made = Catalog.build(catalog.root, catalog.keys(), catalog.sizes, catalog.orientations, **truth)
    made.save(tmp_path / "c.arrow")
    return Catalog.load(tmp_path / "c.arrow")


@needs_ray
@pytest.mark.slow
def test_a_cluster_gives_what_one_process_gives(labelled, tmp_path, start):
    """Two machines; another version there and none at all are one sentence each."""
    alone = shared_out(labelled, tmp_path, None)
    cluster, _ = start(1)
    start(2, cluster)
    assert shared_out(labelled, tmp_path, cluster.address) == alone
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ObjcropError, match=r"has objcrop .*; install 0\.0 there"),
    ):
        patch.setattr("objcrop.ray_cluster.__version__", "0.0")
        shared_out(labelled, tmp_path, cluster.address)
    cluster.shutdown()

    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['objcrop'] = None\n")
    cluster, _ = start(1, PYTHONPATH=str(tmp_path))
    with pytest.raises(ObjcropError, match=r"machine [0-9.]+ of the Ray cluster cannot .*no objcrop .*; install"):
        shared_out(labelled, tmp_path, cluster.address)


@needs_ray
@pytest.mark.slow
def test_what_a_machine_had_when_it_died_is_made_by_another(labelled, tmp_path, start):
    cluster, _ = start(1, MACHINE="head")
    _, second = start(2, cluster, MACHINE="second")
    notes = str(tmp_path)

    def make():
        """Propose the brightest pixel; the second machine gets stuck in its third and fourth part."""
        import glob
        import os
        import time

        def begun():
            return len(glob.glob(f"{notes}/second.*"))

        def propose(images):
            import numpy as np

            machine = os.environ.get("MACHINE")
            if machine == "second":
                open(f"{notes}/second.{os.getpid()}.{time.time()}", "w").close()
                while begun() > 2:
                    time.sleep(0.05)
            while machine == "head" and begun() < 4 and not os.path.exists(f"{notes}/ended"):
                time.sleep(0.05)
            spots = [np.unravel_index(image.sum(2, dtype=int).argmax(), image.shape[:2]) for image in images]
            return [(np.array([[x, y, x + 1, y + 1]], np.float32), np.ones(1, np.float32)) for y, x in spots]

        return propose

    alone = propose_from_images(labelled, "test", {}, make, parts=None, rows=2, workers=0)
    written = from_images._write

    def ends_it(*part):
        written(*part)
        if len(list(tmp_path.glob("second.*"))) > 3 and not (tmp_path / "ended").exists():
            cluster.remove_node(second, allow_graceful=False)
            (tmp_path / "ended").touch()

    with pytest.MonkeyPatch.context() as patch, ray_cluster(cluster.address):
        patch.setattr(from_images, "_write", ends_it)
        made = propose_from_images(labelled, "test", {}, make, parts=tmp_path / "parts", rows=2, workers=0)
    assert (tmp_path / "ended").exists() and not (tmp_path / "parts").exists()
    assert made.fingerprint == alone.fingerprint and made.values.tobytes() == alone.values.tobytes()


@needs_ray
@pytest.mark.slow
def test_a_machine_that_does_not_see_the_images(labelled, tmp_path):
    """Pretended: the images go away once the program here has seen them."""
    with ray_cluster("local"):
        os.rename(labelled.root, f"{labelled.root}.gone")
        try:
            with pytest.raises(ObjcropError, match="of the Ray cluster cannot do the work: The image folder"):
                propose_from_images(labelled, "test", {}, lambda: None, parts=None, rows=8, workers=0)
        finally:
            os.rename(f"{labelled.root}.gone", labelled.root)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("127.0.0.1:1", ObjcropError, "no Ray cluster to join at '127.0.0.1:1'.*`ray start --head`"),
        ("here", UsageError, "the address of Ray is 'here', but it must be HOST:PORT, auto or local"),
    ],
)
@needs_ray
def test_an_address_where_no_cluster_is(address, error, words):
    with pytest.raises(error, match=words), ray_cluster(address):
        raise AssertionError("joined")


@needs_ray
def test_a_folder_too_deep_for_sockets(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("deep" * 30)))
    with pytest.raises(ObjcropError, match="let the variable RAY_TMPDIR name a short one"), ray_cluster("local"):
        raise AssertionError("joined")


def test_without_ray_and_under_torchrun(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"ray is not installed; pip install 'objcrop\[ray\]'"), ray_cluster("local"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="without torchrun"), ray_cluster("local"):
        pass


def test_on_the_command_line(labelled, tmp_path, objcrop):
    for words, said in (
        (("--method", "gt", "--ray", "local"), "--ray cannot act here: method 'gt' works in one process"),
        (("--method", "bing", "--ray", "local", "--workers", 2), "--workers cannot act beside --ray"),
    ):
        ended = objcrop("propose", tmp_path / "c.arrow", "-o", tmp_path / "b.arrow", *words)
        assert ended.returncode == 2 and said in ended.stderr
