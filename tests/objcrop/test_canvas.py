"""Canvases: DALI's way through a catalog holds what PIL's gives, whatever DALI stumbles over."""

import io
import json
import os

import numpy as np
import pytest
import torch
from nvidia.dali.tensors import TensorCPU, TensorListCPU
from PIL import Image

from objcrop.child_process import Child
from objcrop.dali_pipes import decode_crop_resize
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.kernels.bing import load_bing
from objcrop.kernels.crop_resize import pixels_of
from objcrop.proposals import canvas, propose
from objcrop.proposals.bing import WEIGHTS, BingProposer
from objcrop.proposals.canvas import on_canvas, propose_with_dali
from objcrop.proposals.from_images import propose_with_pil

SIDE = 320


class StandIn:
    """Does what the CUDA graph does, with PIL; like DALI it fails as a whole on a file it cannot read."""

    def __init__(self, feed):
        self.feed, self.runs = feed, 0

    def run(self):
        self.runs += 1
        (images,) = self.feed()
        try:
            images = [np.asarray(Image.open(io.BytesIO(bytes(image))).convert("RGB")) for image in images]
        except Exception:
            raise RuntimeError("DALI cannot decode one of these") from None
        return (TensorListCPU([TensorCPU(image) for image in images]),)


def by_opencv(windows, size, interpolation, device):
    canvases = on_canvas([pixels_of(windows, i) for i in range(len(windows.corners))], size)
    return canvases.permute(0, 2, 3, 1).round().to(torch.uint8)


@pytest.fixture
def graphs(monkeypatch):
    built = []

    def build(feed, *, batch_size, decode, **rest):
        assert batch_size <= 3 and decode == "whole"
        built.append(StandIn(feed))
        return built[-1]

    monkeypatch.setattr(decode_crop_resize, "decode_graph", build)
    monkeypatch.setattr(canvas, "crop_resize", by_opencv)
    return built


def catalog_of(folder, save_photos):
    folder.mkdir()
    save_photos(folder, 10)
    for name in ("004.jpg", "009.jpg"):  # turned by EXIF, which the stand-in does not follow: PIL does
        os.unlink(folder / name)
    return index(folder, "folder")[0]


def parts_of(catalog):
    return [range(begin, min(begin + 3, len(catalog))) for begin in range(0, len(catalog), 3)]


def same(one, other):
    for (boxes, reasons), (other_boxes, other_reasons) in zip(one, other, strict=True):
        assert reasons == other_reasons
        for (b, s), (c, t) in zip(boxes, other_boxes, strict=True):
            np.testing.assert_array_equal(b, c)
            np.testing.assert_array_equal(s, t)
    return True


def test_dali_gives_what_pil_gives(tmp_path, save_photos, graphs):
    catalog, proposer = catalog_of(tmp_path / "p", save_photos), BingProposer(WEIGHTS, 4, 0.6, "cpu", True)
    parts = parts_of(catalog)
    assert same(propose_with_dali(catalog, parts, proposer), propose_with_pil(catalog, parts, proposer))
    assert [graph.runs for graph in graphs] == [3]


def test_bad_and_changed_files(tmp_path, save_photos, graphs):
    catalog, proposer = catalog_of(tmp_path / "p", save_photos), BingProposer(WEIGHTS, 4, 0.6, "cpu", True)
    parts = parts_of(catalog)
    os.truncate(catalog.path(4), 200)
    Image.open(catalog.path(7)).resize((50, 60)).save(catalog.path(7))
    found = list(propose_with_dali(catalog, parts, proposer))
    assert same(found, propose_with_pil(catalog, parts, proposer))
    assert "cannot be decoded" in found[1][1][1] and "50×60 now" in found[2][1][1]
    assert [graph.runs for graph in graphs] == [3]  # they are seen before the graph is given them


def test_what_the_graph_stumbles_over(tmp_path, save_photos, spoil_png, graphs):
    catalog, proposer = catalog_of(tmp_path / "p", save_photos), BingProposer(WEIGHTS, 4, 0.6, "cpu", True)
    parts = parts_of(catalog)
    assert catalog.path(5).endswith(".png")
    spoil_png(catalog.path(5))  # it looks plain
    found = list(propose_with_dali(catalog, parts, proposer))
    assert same(found, propose_with_pil(catalog, parts, proposer))
    assert "cannot be decoded" in found[1][1][2]
    assert [graph.runs for graph in graphs] == [2, 1]  # the graph that failed is not used again


def test_parts_of_other_weights_are_refused(photos, tmp_path):
    content = json.loads(WEIGHTS.read_text())
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        content["template"][0][0] += 0.01
        (tmp_path / folder / "bing.json").write_text(json.dumps(content))
    one, other = (load_bing(tmp_path / folder / "bing.json").fingerprint for folder in ("a", "b"))
    assert one != other
    options = dict(workers=0, parts=tmp_path / "parts")
    table = propose(photos[0], "bing", model=tmp_path / "a" / "bing.json", **options)
    assert table.parameters["weights"] == one
    (tmp_path / "parts").mkdir()
    facts = {"method": "bing", "parameters": table.parameters, "catalog": photos[0].fingerprint, "rows": 256}
    (tmp_path / "parts" / "made_by.json").write_text(json.dumps(facts, sort_keys=True) + "\n")
    with pytest.raises(ObjcropError, match="another method, option or catalog"):
        propose(photos[0], "bing", model=tmp_path / "b" / "bing.json", **options)


def test_no_gpu_is_said(photos):
    with pytest.raises(UsageError, match=r"finds no GPU.*--device cpu"):
        propose(photos[0], "bing", device="cuda")


def propose_on_a_gpu(catalog, method):
    return propose(catalog, method, device="cuda", workers=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["bing", "anchors"])
def test_a_gpu_finds_nearly_the_same(photos, method):
    catalog, _ = photos
    cpu = propose(catalog, method, device="cpu", workers=0)
    with Child(propose_on_a_gpu) as child:  # a decoder that dies takes its process along
        gpu = child(catalog, method)
    assert abs(len(cpu.values) - len(gpu.values)) <= len(cpu.values) // 20
    from torchvision.ops import box_iou

    met = [
        float((box_iou(torch.tensor(cpu[row]), torch.tensor(gpu[row])).amax(1) > 0.9).float().mean())
        for row in range(len(catalog))
    ]
    assert np.mean(met) > 0.9
