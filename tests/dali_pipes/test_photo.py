"""Large photos decoded scaled: near the views of the whole photo, exact in place, and nothing else is touched."""

import io
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.photo import Photo, scales_of
from objcrop.dali_pipes.read_image import BadImage, open_photo
from objcrop.exif import upright_array
from objcrop.formats import index

SIDE = 24
BACKENDS = {"torch": dict(backend="torch", workers=0), "dali": dict(backend="dali", threads=2)}


@given(st.lists(st.tuples(*[st.integers(1, 900)] * 4), min_size=1, max_size=8))
def test_a_photo_is_scaled_as_far_as_its_narrowest_window_allows(drawn):
    sides = (24, 37)
    windows = np.array([[(3, 5, 3 + a, 5 + b), (0, 1, c, 1 + d)] for a, b, c, d in drawn], np.int32)
    for (a, b, c, d), scale in zip(drawn, scales_of(windows, sides).tolist()):
        allowed = [s for s in (4, 2) if min(a, b) / s >= 2 * 24 and min(c, d) / s >= 2 * 37]
        assert scale == max(allowed, default=1)


def ramp(width, height):
    """Return values 0..255 that rise evenly, more steeply across than down."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    return 170 * x / width + 85 * y / height


@given(
    st.tuples(st.integers(60, 130), st.integers(60, 130)),
    st.sampled_from((1, 2, 4)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_window_lies_where_it_lay(size, scale, before, drawn):
    (width, height), (left, top) = size, (b % scale for b in before)
    wide, high = (-(-(n + b) // scale) * scale for n, b in zip(size, (left, top)))
    y, x = np.mgrid[0:high, 0:wide] + 0.5
    whole = 170 * (x - left) / width + 85 * (y - top) / height  # goes on beyond the photo's edges
    cells = whole.reshape(high // scale, scale, wide // scale, scale).mean((1, 3))
    image = Image.fromarray(np.rint(cells.clip(0, 255)).astype(np.uint8)).convert("RGB")
    x0, y0 = (int(d * (n - 33)) for d, n in zip(drawn, size))
    x1, y1 = (a + 33 + int(d * (n - a - 33)) for a, d, n in zip((x0, y0), drawn[2:], size))
    view = np.asarray(Photo(image, scale, (left, top)).view((x0, y0, x1, y1), 8, "bilinear"))[1:-1, 1:-1, 0]
    v, u = (np.mgrid[1:7, 1:7] + 0.5) / 8
    expected = 170 * (x0 + u * (x1 - x0)) / width + 85 * (y0 + v * (y1 - y0)) / height
    # Rounded three times, and a tenth of a pixel for filters that are sums of few pixels.
    np.testing.assert_allclose(view, expected, atol=1.5 + 0.1 * scale * (170 / width + 85 / height))


def jpeg(image, orientation=1, **how):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92, "exif": exif, **how})
    return file.getvalue()


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_lies_where_it_lay(tmp_path, orientation, scale):
    stored = np.rint(np.stack([ramp(249, 185)] * 3, -1)).astype(np.uint8)  # 4 × 63 and 4 × 47, less 3
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.fromarray(stored), orientation))
    found = open_photo(index(tmp_path, "folder")[0], 0, scale)
    assert found.scale == scale and max(found.image.size) == -(-249 // scale)
    upright = Image.fromarray(np.ascontiguousarray(upright_array(stored, orientation)))
    for window in [(0, 0, *upright.size), (7, 9, 120, 111), (upright.width - 70, upright.height - 67, *upright.size)]:
        expected = np.asarray(upright.crop(window).resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
        apart = np.abs(np.asarray(found.view(window, 8, "bilinear")) - expected)
        assert apart[1:-1, 1:-1].max() <= 1 and apart.max() <= 4  # beyond the edge lies what libjpeg makes of it


# Photos to how they are saved; all but the last four are decoded scaled where the windows allow it.
LARGE = {
    "plain.jpg": dict(),
    "turned_6.jpg": dict(orientation=6),
    "turned_3.jpg": dict(orientation=3),
    "progressive.jpg": dict(progressive=True),
    "full_chroma.jpg": dict(subsampling=0),
    "half_chroma.jpg": dict(subsampling=1),
    "grey.jpg": dict(mode="L"),
    "cmyk.jpg": dict(mode="CMYK"),
}
OTHERS = ["lossless.png", "lossless.webp", "small.jpg", "smaller.jpg"]


@pytest.fixture(scope="module")
def photos_of_all_kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for seed, (name, how) in enumerate(LARGE.items()):
        how = dict(how)
        (folder / name).write_bytes(jpeg(photo(611, 523, seed).convert(how.pop("mode", "RGB")), **how))
    photo(611, 523, 20).save(folder / "lossless.png")
    photo(611, 523, 21).save(folder / "lossless.webp", lossless=True)
    (folder / "small.jpg").write_bytes(jpeg(photo(95, 130, 22)))
    (folder / "smaller.jpg").write_bytes(jpeg(photo(80, 60, 23)))
    return index(folder, "folder")[0]


def load(catalog, backend, **options):
    how = dict(crops="scene-scene", augment="none", size=SIDE, batch_size=6, seed=5)
    return load_views(catalog, **{**how, **BACKENDS[backend], **options})


def views_of(catalog, backend, **options):
    """Return views of three epochs on the scale of 0..255 (n, 2, 3, S, S), rows and windows."""
    with load(catalog, backend, **options) as loader:
        batches = [batch for _ in range(3) for batch in loader]
    views = torch.cat([torch.stack(batch.views, 1) for batch in batches])
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    rows, windows = (np.concatenate([getattr(batch.plan, name) for batch in batches]) for name in ("row", "windows"))
    return views * std * 255, rows, windows


@pytest.fixture(scope="module")
def found(photos_of_all_kinds):
    return {
        (backend, scaled): views_of(photos_of_all_kinds, backend, decode_scaled=scaled)
        for backend in BACKENDS
        for scaled in (False, True)
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_are_near_those_of_whole_photos_and_others_are_the_same(photos_of_all_kinds, found, backend):
    names = photos_of_all_kinds.table["key"].to_pylist()
    (whole, rows, windows), (near, *_) = found[backend, False], found[backend, True]
    room = (windows[..., 2:] - windows[..., :2]).min((1, 2))
    scaled = np.array([names[row] in LARGE for row in rows]) & (room >= 4 * SIDE)
    assert set(LARGE) == {names[row] for row in rows[scaled]} and (~scaled & (room >= 4 * SIDE)).any()
    apart = (near - whole).abs().flatten(2).numpy()  # sample, view, pixel
    assert not apart[~scaled].any()
    assert apart[scaled].any(-1).all()
    assert apart[scaled].mean() < 0.5 and apart[scaled].mean(-1).max() < 2 and apart[scaled].max() < 40


def test_views_of_real_photos_are_near_what_pil_makes_of_them_whole(test_data, tmp_path):
    files = sorted((test_data / "scenes_cc0" / "images").iterdir())[:6]
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    views, rows, windows = views_of(index(tmp_path, "folder")[0], "torch", decode_scaled=True, size=48)
    apart = []
    for made, row, of_row in zip(views, rows, windows):
        with Image.open(files[row]) as file:
            whole = file.convert("RGB")
        for view, window in zip(made, of_row):
            expected = np.asarray(whole.crop(window.tolist()).resize((48, 48), Image.Resampling.BILINEAR))
            mean = torch.tensor([0.485, 0.456, 0.406]) * 255
            apart.append((view.permute(1, 2, 0) + mean - torch.tensor(expected)).abs().numpy())
    scaled = np.repeat((windows[..., 2:] - windows[..., :2]).min((1, 2)) >= 4 * 48, 2)
    assert scaled.mean() > 0.7
    apart = np.array(apart)[scaled]
    assert apart.mean() < 1 and apart.mean((1, 2, 3)).max() < 3 and apart.max() < 40


def test_backends_make_the_same_views_of_scaled_photos(found):
    (ours, rows, windows), (theirs, other_rows, other_windows) = found["torch", True], found["dali", True]
    np.testing.assert_array_equal(rows, other_rows)
    np.testing.assert_array_equal(windows, other_windows)
    assert (ours - theirs).abs().mean() < 0.5
    assert ((ours - theirs).abs().flatten(1).amax(1) < 0.01).numpy().mean() >= 0.5  # PIL's, to the bit


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_goes_on_as_it_was(photos_of_all_kinds, backend):
    def endless(loader):
        while True:
            yield from loader

    options = dict(decode_scaled=True, augment="moco-v2", batch_size=4)
    with load(photos_of_all_kinds, backend, **options) as loader:
        walk = endless(loader)
        next(walk)
        state, rest = loader.state_dict(), list(islice(walk, 4))
    with load(photos_of_all_kinds, backend, **options) as loader:
        loader.load_state_dict(state)
        for a, b in zip(rest, endless(loader)):
            assert torch.equal(a.index, b.index) and all(torch.equal(x, y) for x, y in zip(a.views, b.views))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_several_sizes(photos_of_all_kinds, backend):
    options = dict(local_views=2, local_size=16, batch_size=4)
    batches = []
    for scaled in (False, True):
        with load(photos_of_all_kinds, backend, decode_scaled=scaled, **options) as loader:
            batches.append(next(iter(loader)))
    for a, b in zip(*(batch.views for batch in batches), strict=True):
        assert a.shape == b.shape and 0 < (a - b).abs().mean() < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_photos_are_replaced(tmp_path, backend):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(photo(400, 420, i)))
    catalog = index(tmp_path, "folder")[0]
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "3.jpg").write_bytes(jpeg(photo(401, 420, 3)))  # as large in quarters
    (tmp_path / "4.jpg").unlink()
    with load(catalog, backend, decode_scaled=True, max_bad=1.0) as loader:
        (batch,) = loader
        reasons = loader.bad_images.reasons
    assert batch.substituted.tolist() == [row in (1, 3, 4) for row in batch.requested.tolist()]
    assert set(reasons) == {1, 3, 4} and "truncated" in reasons[1] and "missing" in reasons[4]
    assert reasons[3] == "is 401×420 now, but was 400×420 when it was indexed"
    with pytest.raises(BadImage, match="401×420 now"):
        open_photo(catalog, 3, 4)
