"""A batch in which DALI stumbles is looked at as it was decoded; want of memory and a GPU's failure blame no file."""

import gc
import weakref

import numpy as np
import pytest
import torch

from objcrop.dali_pipes import dali_loader, decode_crop_resize, read_image
from objcrop.dali_pipes.decode_crop_resize import decode_graph, decode_whole, trouble_of
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError
from objcrop.formats import index

OPTIONS = dict(size=32, batch_size=8, augment="none", max_bad=0.5, threads=2, shuffle=False)
# As DALI 2.4 puts them: allocators' errors, and an error of CUDA with its stack.
FULL = [
    "Critical error in pipeline:\nError in operator `nvidia.dali.fn.decoders.image`: CUDA allocation failed",
    "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory\nStacktrace (12 entries):\n[frame 0]: …",
    "Can't allocate 536870912 bytes on device 0. Current memory usage: 84 GB",
    "std::bad_alloc",
]
BROKEN = (
    "Error in mixed operator:\nCUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal access\nStacktrace"
)


@pytest.fixture
def spoilt(tmp_path, save_photos, spoil_png):
    """A catalog of 24 photos, of which one looks plain and cannot be decoded."""
    save_photos(tmp_path, 24)
    catalog, _ = index(tmp_path, "folder")
    spoil_png(tmp_path / "006.png")
    return catalog


class Failing:
    """A graph that says something in the place of its first batch."""

    def __init__(self, feed, said):
        self.feed, self.said = feed, said

    def run(self, stream=None):
        self.feed()
        raise RuntimeError(self.said)


def failing(monkeypatch, said, module=dali_loader):
    monkeypatch.setattr(module, "decode_graph", lambda feed, **options: Failing(feed, said))


@pytest.mark.parametrize("batchwise", [False, True])
def test_one_bad_file_is_replaced_and_its_neighbours_stay(spoilt, batchwise):
    with load_views(spoilt, **OPTIONS) as loader:
        loader.batchwise = batchwise
        batches = list(loader)
        assert list(loader.bad_images.reasons) == [6] and not loader._by_pil
    assert [row for b in batches for row in b.requested[b.substituted].tolist()] == [6]
    with load_views(spoilt, **OPTIONS) as again:
        again.batchwise = batchwise
        again.bad_images.add(6, "is known to be bad")
        for ours, other in zip(batches, again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours.views, other.views, strict=True))


def test_graphs_never_lie_side_by_side(spoilt, monkeypatch):
    """The old one's memory is free before the new one, or that which tries each image, takes its own."""
    alive, most, decoding = [], [], []

    def built(feed, **options):
        alive[:] = [graph for graph in alive if graph() is not None]
        most.append(len(alive))
        graph = decode_graph(feed, **options)
        decoding.append({name: options[name] for name in ("device", "device_id", "decode", "hw_decoder_load")})
        alive.append(weakref.ref(graph))
        return graph

    for module in (dali_loader, decode_crop_resize):
        monkeypatch.setattr(module, "decode_graph", built)
    gc.collect()
    gc.disable()
    try:
        with load_views(spoilt, **OPTIONS) as loader:
            loader.decode = "whole"
            assert len(list(loader)) == 3
    finally:
        gc.enable()
    # One that fails, one that tries each image, another from behind the image it failed at, and the new one.
    assert most == [0] * 4 and not [graph for graph in alive if graph() is not None]
    assert decoding == [dict(device="cpu", device_id=None, decode="whole", hw_decoder_load=0.0)] * 4


def test_what_dali_refuses_and_pil_reads_is_copied(photos, monkeypatch):
    """A stand-in for a GPU's decoder that refuses one file, in a batch and alone."""
    refused = 5
    data = read_image.encoded(photos[0], refused).data

    def built(feed, **options):
        def looked_at():
            batch = feed()
            if any(np.array_equal(image, data) for image in batch[0]):
                raise RuntimeError("nvImageCodec failure: '#8'")
            return batch

        return decode_graph(looked_at, **options)

    with load_views(photos[0], **OPTIONS) as loader:
        expected = list(loader)
    for module in (dali_loader, decode_crop_resize):
        monkeypatch.setattr(module, "decode_graph", built)
    with load_views(photos[0], **OPTIONS) as loader:
        for ours, other in zip(expected, loader, strict=True):
            assert not other.substituted.any()
            assert all(torch.equal(a, b) for a, b in zip(ours.views, other.views, strict=True))
        assert loader._by_pil == {refused}


@pytest.mark.parametrize("said", FULL)
@pytest.mark.parametrize("cache", [None, "host"])
def test_want_of_memory_blames_no_file(photos, monkeypatch, said, cache):
    failing(monkeypatch, said, decode_crop_resize if cache else dali_loader)
    with load_views(photos[0], **OPTIONS, cache=cache) as loader:
        with pytest.raises(ObjcropError, match=r"memory is full.*batch_size, decoder_padding or prefetch") as caught:
            next(iter(loader))
        assert not loader.bad_images.reasons and "\n" not in str(caught.value)


def test_want_of_memory_as_the_graph_is_built(photos, monkeypatch):
    from nvidia.dali import Pipeline

    def build(self):
        raise RuntimeError(FULL[0])

    monkeypatch.setattr(Pipeline, "build", build)
    with load_views(photos[0], **OPTIONS) as loader, pytest.raises(ObjcropError, match="memory is full"):
        next(iter(loader))
    with pytest.raises(ObjcropError, match="memory is full"):
        next(decode_whole(photos[0], [range(4)], threads=1, prefetch=1))


def test_a_gpus_failure_is_said(photos, monkeypatch):
    failing(monkeypatch, BROKEN)
    with load_views(photos[0], **OPTIONS) as loader:
        with pytest.raises(ObjcropError, match=r"GPU failed .*cudaErrorIllegalAddress.*decode='whole'") as caught:
            next(iter(loader))
        assert not loader.bad_images.reasons and "\n" not in str(caught.value)
    assert trouble_of("nvImageCodec failure: '#8'\nError while decoding sample 3", 8) is None


def test_a_way_of_decoding_that_refuses_all_is_said(photos, monkeypatch):
    """As nvImageCodec 0.9 is reported to do on an A100: once a run would have gone PIL's way without a word."""
    for module in (dali_loader, decode_crop_resize):
        failing(monkeypatch, "nvImageCodec failure: '#8'", module)
    with load_views(photos[0], **OPTIONS) as loader:
        with pytest.raises(ObjcropError, match=r"none of the 8 images .*decode='whole'.*'#8'") as caught:
            next(iter(loader))
        assert not loader.bad_images.reasons and not loader._by_pil and "\n" not in str(caught.value)


def test_a_batch_that_fails_as_a_batch_is_said(photos, monkeypatch):
    failing(monkeypatch, "something else")
    with load_views(photos[0], **OPTIONS) as loader:
        with pytest.raises(ObjcropError, match=r"decodes one by one.*something else") as caught:
            next(iter(loader))
        assert "\n" not in str(caught.value)


def test_decoders_that_are_not_whole_are_said(photos, monkeypatch):
    """Without its OpenCV, nvImageCodec reads neither PNG nor PNM, of which PIL's copies are."""
    failing(monkeypatch, "Critical error in pipeline:\nError in CPU operator\n\nencountered:\n\nFailed to decode #2")
    monkeypatch.setattr(dali_loader, "refused_alone", lambda feed, **how: [2])
    said = r"decodes neither .*PIL's copy.*it said: Failed to decode #2$"
    with load_views(photos[0], **OPTIONS) as loader, pytest.raises(ObjcropError, match=said):
        next(iter(loader))
