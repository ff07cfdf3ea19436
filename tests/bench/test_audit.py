"""The audit passes loaders that are right, and finds in broken ones just what is broken."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from objcrop.bench import audit
from objcrop.bench.audit_images import draw_images, picture, read_gauges, read_swatches
from objcrop.bench.chance import binomial_p, smirnov
from objcrop.bench.our_factory import Pairs
from objcrop.errors import UsageError

SIZE = 64


def hue_in_yiq(image, turn):
    """What DALI and OpenCV-based chains do: I and Q rotated."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    cos, sin = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    rotation = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float32)
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("ij,jhw->ihw", matrix, image).clamp(0, 1)


class Toy:
    """A loader of fifty lines, with a fault or none."""

    def __init__(self, folder, *, batch_size, size, seed, rank, world_size, blur_p, fault=None, whole=True):
        self.paths, self.batch, self.size, self.seed = sorted(Path(folder).iterdir()), batch_size, size, seed
        self.rank, self.world, self.blur_p, self.fault, self.whole = rank, world_size, blur_p, fault, whole
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        seed = self.seed * self.epoch if self.fault == "seed" else 1000 * self.seed + self.epoch
        order = np.random.default_rng(seed).permutation(len(self.paths))
        mine = order if self.fault == "ranks" else order[self.rank :: self.world]
        torch.manual_seed(seed)
        for rows in np.split(mine, range(self.batch, len(mine), self.batch)):
            views = [torch.stack([self.view(self.image(row)) for row in rows]) for _ in range(2)]
            yield views, torch.from_numpy((rows + 2) % len(self.paths) if self.fault == "index" else rows)

    def image(self, row):
        if not self.whole:
            return torch.zeros(3, self.size, self.size)
        try:
            return tv.to_dtype(tv.pil_to_tensor(Image.open(self.paths[row])), torch.float32, scale=True)
        except OSError:
            if self.fault == "bad":
                raise
            return torch.zeros(3, 112, 144)

    def state_dict(self):
        return {"epoch": self.epoch}  # and nothing of how far it came

    def load_state_dict(self, state):
        self.epoch = state["epoch"]

    def view(self, image):
        if not self.whole:
            return image
        happens = lambda p: torch.rand(()) < p  # noqa: E731
        image = v2.RandomResizedCrop(self.size, (0.4 if self.fault == "scale" else 0.2, 1))(image)
        if happens(0.8):
            hue = 0.0 if self.fault == "yiq" else 0.1
            image = v2.ColorJitter(0.4, 0.4, 0.4, hue)(image)
            if self.fault == "yiq":
                image = hue_in_yiq(image, 0.2 * float(torch.rand(())) - 0.1)
        image = v2.RandomGrayscale(0.5 if self.fault == "grey" else 0.2)(image)
        if happens(1 - self.blur_p if self.fault == "blur" else self.blur_p):
            image = v2.GaussianBlur(7, (0.1, 2.0))(image)
        return v2.RandomHorizontalFlip()(image)


def toy(fault=None, whole=True):
    return lambda folder, **options: Toy(folder, fault=fault, whole=whole, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    draw_images(folder, audit.ROWS)
    return str(folder)


@pytest.fixture(scope="module")
def right():
    return audit.measured(audit.torchvision_views(SIZE, 4))


def faults(checks):
    return {name for name, check in checks.items() if check.verdict == "failed"}


@pytest.mark.parametrize(
    ("fault", "found"),
    [(None, set()), ("seed", {"seeds differ"}), ("ranks", {"ranks part the rows"})],
)
def test_order(folder, fault, found):
    checks, orders, batches = audit.audit_order(toy(fault, whole=False), folder, size=8, epochs=3)
    assert faults(checks) == found
    assert all(sorted(orders[f"epoch {epoch}"]) == list(range(audit.ROWS)) for epoch in range(3))
    assert len(batches) == 3 * audit.ROWS // audit.BATCH


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (None, set()),
        ("yiq", {"hue's path"}),
        ("blur", {"blur"}),
        ("grey", {"grey probability"}),
        ("scale", {"crop scale"}),
        ("index", {"views are of their row"}),
    ],
)
def test_views(folder, right, fault, found):
    options = dict(batch_size=audit.BATCH, size=SIZE, seed=1, rank=0, world_size=1, blur_p=audit.BLUR_P)
    loader = toy(fault)(folder, **options)
    samples = audit.measured([batch for epoch in range(2) for batch in audit.walk(loader, SIZE, epoch)])
    seen = faults(audit.audit_crops(samples, right) | audit.audit_colours(samples, right))
    assert seen == found


def test_resumption_and_bad_files(tmp_path):
    """Of loaders that begin an epoch anew, show black pictures, or end."""
    draw_images(tmp_path, audit.ROWS)
    ((_, anew),) = audit.audit_resumption(toy(whole=False), str(tmp_path), 8).items()
    assert anew.verdict == "failed" and anew.number == 32 and "32 of the 64 rows" in anew.sentence
    ((_, black),) = audit.audit_bad_file(toy(), str(tmp_path), SIZE).items()
    assert black.verdict == "failed" and "a flat picture is handed out as row 4" in black.sentence
    ((_, ends),) = audit.audit_bad_file(toy("bad"), str(tmp_path), SIZE).items()
    assert ends.verdict == "failed" and "ends the epoch (OSError" in ends.sentence


def test_windows_are_read_from_pixels():
    """Crops of known windows, coloured, blurred and mirrored by torchvision."""
    rng = np.random.default_rng(0)
    rows = 2 * rng.integers(0, 40, 60)
    w, h = rng.integers(50, 145, 60), rng.integers(50, 113, 60)
    x, y = (rng.uniform(size=60) * (145 - w)).astype(int), (rng.uniform(size=60) * (113 - h)).astype(int)
    bright, contrast, mirrored = rng.uniform(0.6, 1.4, 60), rng.uniform(0.6, 1.4, 60), rng.random(60) < 0.5
    views = []
    for n in range(60):
        image = torch.from_numpy(picture(rows[n])).permute(2, 0, 1).float() / 255
        view = tv.resized_crop(image, y[n], x[n], h[n], w[n], [SIZE, SIZE], antialias=True)
        view = tv.adjust_contrast(tv.adjust_brightness(view, bright[n]), contrast[n])
        view = tv.gaussian_blur(view, [7, 7], [1.2, 1.2]) if n % 2 else view
        views.append(view.flip(-1) if mirrored[n] else view)
    found = read_gauges(torch.stack(views), rows)
    assert (found["mirrored"] == mirrored).all() and found["fit"].min() > 0.9
    for name, true in dict(x=x, y=y, w=w, h=h).items():
        assert np.abs(found[name] - true).max() <= 3 and np.abs(found[name] - true).mean() < 0.5, name
    assert np.abs(found["brightness"] - bright).max() < 0.02 and np.abs(found["contrast"] - contrast).max() < 0.05
    large = w * h > 0.3 * 144 * 112
    assert (found["sigma"] == np.where(np.arange(60) % 2, 1.2, 0))[large].all()


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.07])
def test_hue_is_read_from_pixels(turn):
    view = torch.from_numpy(picture(1)).permute(2, 0, 1).float()[None] / 255
    jittered = tv.adjust_contrast(tv.adjust_saturation(tv.adjust_hue(view, turn), 0.7), 1.3)
    found = read_swatches(torch.cat([jittered, tv.rgb_to_grayscale(view, 3)]))
    assert abs(found["hue"][0] - turn) < 0.005 and found["uneven"][0] < 0.005
    assert np.isclose(found["chroma"][0], 0.7 * 1.3, rtol=0.02) and np.isnan(found["hue"][1])


def test_chances():
    rng = np.random.default_rng(0)
    for hits, tries, chance in [(0, 20, 0.2), (11, 20, 0.2), (384, 768, 0.5), (130, 768, 0.2), (20, 20, 0.9)]:
        assert np.isclose(binomial_p(hits, tries, chance), stats.binomtest(hits, tries, chance).pvalue, rtol=1e-6)
    for shift in (0, 0.1, 0.5):
        one, two = rng.normal(size=300), rng.normal(shift, size=400)
        distance, p = smirnov(one, two)
        assert np.isclose(distance, stats.ks_2samp(one, two).statistic)
        assert np.isclose(p, stats.kstwobign.sf(distance * np.sqrt(300 * 400 / 700)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (3, "no pair"),
        (([torch.zeros(2, 3, 8, 9)], [0, 1]), r"a view \(2, 3, 8, 9\), not \(2, 3, 8, 8\)"),
        (([torch.full((1, 3, 8, 8), -2.0)], [0]), "undo the normalisation"),
    ],
)
def test_batches_that_are_not_as_asked(batch, sentence):
    with pytest.raises(UsageError, match=sentence):
        list(audit.walk([batch], 8))


class OnAGpu(torch.Tensor):
    """A tensor that NumPy may not read, until it is asked for on the CPU."""

    def __array__(self, *_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_our_loaders_index_is_read_from_a_gpu():
    """Once the audit of our own loaders ended there with a TypeError."""
    batch = SimpleNamespace(views=(), index=torch.tensor([2, 0]).as_subclass(OnAGpu))
    ((_, numbers),) = Pairs([batch], np.array([5, 6, 7]))
    assert numbers.tolist() == [7, 5]


def test_the_command_and_our_own_loader(tmp_path, objcrop):
    run = objcrop(
        "bench", "audit", "objcrop.bench.our_factory:make_torch_loader", "--epochs", "2", "-o", "a.json", cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "a.json").read_text())
    assert faults({k: audit.Check(**c) for k, c in result["checks"].items()}) == set()
    assert "20 of 20 checks passed." in result["verdict"][0] and result["verdict"][0] in run.stdout
    assert len(result["samples"]["x"]) == 2 * audit.ROWS and result["machine"]
    wrong = {
        "frobnicate": "must be module:function",
        "no.such:make": "cannot be imported",
        "sys:path": "is no function",
    }
    wrong |= {"math:sqrt": "ended with TypeError"}  # a function that takes other arguments
    for name, sentence in wrong.items():
        run = objcrop("bench", "audit", name, cwd=tmp_path)
        assert run.returncode in (1, 2) and sentence in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr
