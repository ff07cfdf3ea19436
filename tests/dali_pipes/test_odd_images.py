"""One definition of a file's pixels: odd files give the same views on every backend, in any batch, and end no run."""

import io
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.read_image import open_upright
from objcrop.exif import upright_array
from objcrop.formats import index
from objcrop.proposals.bing import WEIGHTS, BingProposer
from objcrop.proposals.canvas import propose_with_dali
from objcrop.proposals.from_images import propose_with_pil

WIDE, HIGH = 96, 72


def scene():
    y, x = np.mgrid[0:HIGH, 0:WIDE]
    red = np.where((x < 30) & (y < 20), 230, 40)
    return np.stack([red, x * 2 + 30, 220 - y * 2], -1).astype(np.uint8)


def bytes_of(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif_block(orientation, kind=3, order="MM", doubled=False):
    """An EXIF block of one tag; kind: TIFF's number of the type (3 SHORT, 4 LONG, 10 SRATIONAL)."""
    big = "big" if order == "MM" else "little"
    value = orientation.to_bytes({3: 2, 4: 4}.get(kind, 4), big)
    if kind == 10:  # behind the directory: numerator, denominator
        entry, rest = (26).to_bytes(4, big), orientation.to_bytes(4, big) + (1).to_bytes(4, big)
    else:
        entry, rest = value.ljust(4, b"\0"), b""
    tag = (0x0112).to_bytes(2, big) + kind.to_bytes(2, big) + (1).to_bytes(4, big) + entry
    head = order.encode() + (42).to_bytes(2, big) + (8).to_bytes(4, big)
    tiff = head + (1).to_bytes(2, big) + tag + b"\0" * 4 + rest
    return (b"Exif\0\0" * 2 if doubled else b"Exif\0\0") + tiff


def xmp(orientation, element=False):
    inside = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if element else ""
    attribute = "" if element else f' tiff:Orientation="{orientation}"'
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/"{attribute}>{inside}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    )


def jpeg_with(*segments):
    plain = bytes_of(Image.fromarray(scene()), "JPEG", quality=95, subsampling=0)
    return plain[:2] + b"".join(b"\xff\xe1" + (len(s) + 2).to_bytes(2, "big") + s for s in segments) + plain[2:]


def png_with(name, body, behind):
    plain = bytes_of(Image.fromarray(scene()), "PNG")
    chunk = len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    at = plain.index(b"IEND") - 4 if behind else 33
    return plain[:at] + chunk + plain[at:]


def raw_profile(orientation):
    block = exif_block(orientation)
    return b"Raw profile type exif\0" + b"\nexif\n%8d\n" % len(block) + block.hex().encode()


XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
LONG_TEXT = PngImagePlugin.PngInfo()
LONG_TEXT.add_text("Comment", "x" * (1 << 21), zip=True)
LONG_ITXT = PngImagePlugin.PngInfo()
LONG_ITXT.add_itxt("Comment", "x" * (1 << 21), zip=True)
LONG_XMP = PngImagePlugin.PngInfo()
LONG_XMP.add_itxt("XML:com.adobe.xmp", xmp(6) + " " * (1 << 21), zip=True)
XMP_TEXT = PngImagePlugin.PngInfo()
XMP_TEXT.add_itxt("XML:com.adobe.xmp", xmp(6))

# File name to bytes and the orientation meant.
TURNED = {
    **{f"exif_{o}.jpg": (jpeg_with(exif_block(o)), o) for o in range(1, 9)},
    "little.jpg": (jpeg_with(exif_block(8, order="II")), 8),
    "long.jpg": (jpeg_with(exif_block(6, kind=4)), 6),
    "srational_6.jpg": (jpeg_with(exif_block(6, kind=10)), 6),
    "srational_3.jpg": (jpeg_with(exif_block(3, kind=10)), 3),
    "two.jpg": (jpeg_with(exif_block(6), exif_block(1)), 6),
    "doubled.jpg": (jpeg_with(exif_block(5, doubled=True)), 5),
    "xmp.jpg": (jpeg_with(XMP_HEAD + xmp(6).encode()), 6),
    "xmp_element.jpg": (jpeg_with(XMP_HEAD + xmp(3, element=True).encode()), 3),
    "nonsense.jpg": (jpeg_with(exif_block(77)), 1),
    "broken.jpg": (jpeg_with(b"Exif\0\0MM\0*\xff\xff\xff\xff"), 1),
    "before.png": (png_with(b"eXIf", exif_block(6)[6:], behind=False), 6),
    "behind.png": (png_with(b"eXIf", exif_block(6)[6:], behind=True), 6),
    "raw_before.png": (png_with(b"tEXt", raw_profile(3), behind=False), 3),
    "raw_behind.png": (png_with(b"tEXt", raw_profile(8), behind=True), 8),
    "xmp.png": (bytes_of(Image.fromarray(scene()), "PNG", pnginfo=XMP_TEXT), 6),
    "exif.webp": (bytes_of(Image.fromarray(scene()), "WEBP", lossless=True, exif=exif_block(6)), 6),
    "xmp.webp": (bytes_of(Image.fromarray(scene()), "WEBP", lossless=True, xmp=xmp(7).encode()), 7),
    "long_text.png": (bytes_of(Image.fromarray(scene()), "PNG", pnginfo=LONG_TEXT), 1),
    "long_xmp.png": (bytes_of(Image.fromarray(scene()), "PNG", pnginfo=LONG_XMP), 1),  # Pillow refuses to read it
    "long_itxt.png": (bytes_of(Image.fromarray(scene()), "PNG", pnginfo=LONG_ITXT), 1),
}
GREY16 = (scene()[..., 2].astype(np.uint16) << 8) + 7
LAB = np.stack([scene()[..., 2], *[np.full((HIGH, WIDE), 0, np.uint8)] * 2], -1)  # no hue: a grey ramp
# File name to bytes and the pixels meant, grey (H, W).
RANGED = {
    "grey16.png": (bytes_of(Image.fromarray(GREY16), "PNG"), GREY16 / 257),
    "dark16.png": (bytes_of(Image.fromarray(GREY16 >> 6), "PNG"), (GREY16 >> 6) / 257),
    "grey16.pgm": (b"P5 %d %d 65535\n" % (WIDE, HIGH) + GREY16.astype(">u2").tobytes(), GREY16 / 257),
    "max100.pgm": (b"P5 %d %d 100\n" % (WIDE, HIGH) + (scene()[..., 1] // 3).tobytes(), (scene()[..., 1] // 3) * 2.55),
    "grey16.jp2": (bytes_of(Image.fromarray(GREY16), "JPEG2000"), GREY16 / 257),
    "grey16.tif": (bytes_of(Image.fromarray(GREY16), "TIFF"), GREY16 / 257),
    "share.tif": (bytes_of(Image.fromarray((GREY16 / 65535).astype(np.float32)), "TIFF"), GREY16 / 257),
    "float255.tif": (bytes_of(Image.fromarray((GREY16 / 257).astype(np.float32)), "TIFF"), GREY16 / 257),
    "signed.tif": (bytes_of(Image.fromarray(scene()[..., 1].astype(np.float32) * 2 - 300), "TIFF"), None),
    "lab.tif": (bytes_of(Image.frombytes("LAB", (WIDE, HIGH), LAB.tobytes()), "TIFF"), None),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A catalog of all of them, some bad files among them."""
    folder = tmp_path_factory.mktemp("odd")
    for name, (data, _) in {**TURNED, **RANGED}.items():
        (folder / name).write_bytes(data)
    Image.fromarray(scene()).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(scene()).convert("P").save(folder / "first.gif")
    return index(folder, "folder")[0]


def keys_of(catalog):
    return catalog.table["key"].to_pylist()


@pytest.mark.parametrize("name", TURNED)
def test_the_catalog_has_the_orientation_meant(odd, name):
    row = keys_of(odd).index(name)
    assert odd.orientations[row] == TURNED[name][1]
    expected = upright_array(scene(), TURNED[name][1])
    found = np.asarray(open_upright(odd, row)).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("name", RANGED)
def test_more_than_eight_bits_are_scaled(odd, name):
    found = np.asarray(open_upright(odd, keys_of(odd).index(name))).astype(int)
    meant = RANGED[name][1]
    assert (len(np.unique(found)) > 2 and found.max() < 255) or meant is None
    if meant is not None:
        np.testing.assert_allclose(found, np.repeat(meant[..., None], 3, -1), atol=1)


def views_of(catalog, **options):
    """Return each row's plain view of the whole image, and of its loader's substituted rows the numbers."""
    how = dict(crops="centre", augment="none", size=32, shuffle=False, drop_last=False, max_bad=1.0)
    with load_views(catalog, **how, **options) as loader:
        batches = list(loader)
    assert torch.cat([b.requested for b in batches]).tolist() == list(range(len(catalog)))
    bad = torch.cat([b.substituted for b in batches])
    return torch.cat([b.views[0] for b in batches]) * 0.226 * 255, set(bad.nonzero().flatten().tolist())


WAYS = [dict(backend="dali", threads=2), dict(backend="dali", threads=2, cache="host")]


def compare(catalog, batch_sizes):
    reference, bad = views_of(catalog, backend="torch", workers=0, batch_size=8)
    good = [row for row in range(len(catalog)) if row not in bad]
    for way in WAYS:
        for batch_size in batch_sizes:
            found, also_bad = views_of(catalog, **way, batch_size=min(batch_size, len(catalog)))
            assert also_bad == bad, {keys_of(catalog)[row] for row in also_bad ^ bad}
            apart = (found - reference).abs().mean((1, 2, 3))[good]
            assert apart.max() < 1, [keys_of(catalog)[good[i]] for i in (apart >= 1).nonzero().flatten()]
    return bad


def test_backends_agree_on_made_files(odd):
    assert not compare(odd, (1, 8, 64))


def test_proposals_see_the_same_canvases(odd):
    class Looks(BingProposer):
        def of_canvases(self, canvases, sizes):
            seen.append(canvases)
            return super().of_canvases(canvases, sizes)

    canvases = []
    for walk in (propose_with_dali, propose_with_pil):
        seen = []
        found = list(walk(odd, [range(0, 20), range(20, len(odd))], Looks(WEIGHTS, 4, 0.6, "cpu", True)))
        assert [len(boxes) for boxes, _ in found] == [20, len(odd) - 20] and not any("".join(bad) for _, bad in found)
        canvases.append(torch.cat(seen))
    apart = (canvases[0] - canvases[1]).abs().mean((1, 2, 3))  # of 255: another filter
    assert apart.max() < 2, [keys_of(odd)[i] for i in (apart >= 2).nonzero().flatten()]


@pytest.fixture(scope="module")
def found_odd(test_data, tmp_path_factory):
    """A catalog of every odd file at hand among real photos."""
    folder = tmp_path_factory.mktemp("found")
    sources = [test_data / "odd", *(test_data.parent / "cases" / name for name in ("decoders", "field/images"))]
    for source in sources:
        for file in source.iterdir() if source.is_dir() else ():
            if file.name != "huge_7680x4320.jpg":
                shutil.copy(file, folder / f"{source.name}_{file.name}")
    for i, file in enumerate(sorted((test_data / "voc07_224" / "test").iterdir())[:30]):
        shutil.copy(file, folder / f"real_{i}.jpg")
    return index(folder, "folder")[0]


def test_backends_agree_on_found_files(found_odd):
    bad = compare(found_odd, (1, 8, 64))
    assert 0 < len(bad) < 8


CRASHES = """
import sys
from objcrop import load_views
from objcrop.catalog import Catalog

catalog, (batches, threads, seed) = Catalog.load(sys.argv[1]), map(int, sys.argv[2:])
how = dict(crops="scene-scene", augment="none", size=16, batch_size=64, backend="dali", max_bad=1.0, threads=threads)
with load_views(catalog, **how, seed=seed) as loader:
    done = 0
    while done < batches:
        for batch in loader:
            assert len(batch) == 64
            done += 1
print(done, len(loader.bad_images.reasons))
"""


def run_with_bad_files(test_data, tmp_path, batches, threads, seed=0):
    """Put bad files in place of good ones after indexing, one to eight a batch of 64, and run; return what was bad."""
    good = sorted((test_data / "voc07_224" / "test").iterdir())[:128]
    for i, file in enumerate(good):
        shutil.copy(file, tmp_path / f"{i:03d}.jpg")
    catalog = index(tmp_path, "folder")[0]
    catalog.save(tmp_path / "c.arrow")
    bad = [test_data / "odd" / name for name in ("truncated_app14.jpg", "ff00_header.jpg", "junk_header.jpg")]
    bad += [test_data / "odd" / name for name in ("zero_byte.jpg", "gif_named.jpg", "voc_truncated_header.jpg")]
    bad += [test_data / "odd" / name for name in ("lossless_sof3.jpg", "truncated.jpg", "voc_sof_zero_height.jpg")]
    rng = np.random.default_rng(seed)
    for place in rng.choice(128, 12, replace=False):
        shutil.copy(bad[int(rng.integers(len(bad)))], tmp_path / f"{place:03d}.jpg")
    run = subprocess.run(
        [sys.executable, "-c", CRASHES, tmp_path / "c.arrow", str(batches), str(threads), str(seed)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, (run.returncode, run.stderr[-1000:])
    done, found = map(int, run.stdout.split())
    assert done >= batches and found == 12


@pytest.mark.parametrize("threads", [2, 8])
def test_no_bad_file_kills_the_process(test_data, tmp_path, threads):
    run_with_bad_files(test_data, tmp_path, 6, threads, seed=threads)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("seed", range(12))
def test_no_bad_file_kills_the_process_at_length(test_data, tmp_path, threads, seed):
    run_with_bad_files(test_data, tmp_path, 90, threads, seed)
