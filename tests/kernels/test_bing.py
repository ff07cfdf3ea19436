"""BING step by step against loops that follow the definitions, and as a whole on scenes it was not trained on."""

import json

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.kernels.bing import (
    NONE,
    SIZES,
    BingModel,
    bing,
    in_whole_numbers,
    load_bing,
    normed_gradients,
    only_peaks,
    shrunk_gradients,
    shrunk_rows,
    stage_one,
    usable,
    window_boxes,
)
from objcrop.proposals import propose
from objcrop.proposals.bing import WEIGHTS
from objcrop.proposals.train_bing import train_bing
from objcrop.sample_scenes import draw_scenes


def test_gradients_by_a_loop():
    image = np.random.default_rng(0).integers(0, 256, (3, 6, 9)).astype(int)
    expected = np.zeros((6, 9))
    for y in range(6):
        for x in range(9):
            left, right, above, below = max(x - 1, 0), min(x + 1, 8), max(y - 1, 0), min(y + 1, 5)
            dx = np.abs(image[:, y, right] - image[:, y, left]).max() * (1 if right - left == 2 else 2)
            dy = np.abs(image[:, below, x] - image[:, above, x]).max() * (1 if below - above == 2 else 2)
            expected[y, x] = min(dx + dy, 255)
    np.testing.assert_array_equal(normed_gradients(torch.from_numpy(image)[None].float())[0, 0].numpy(), expected)


@pytest.mark.parametrize("reach", [2, 3])
def test_enough_rounds_are_the_greedy_rule(reach):
    scores = np.random.default_rng(1).normal(size=(14, 17)).astype(np.float32)
    left, expected = scores.copy(), np.full_like(scores, NONE)
    while (left > NONE).any():
        y, x = np.unravel_index(left.argmax(), left.shape)
        expected[y, x] = scores[y, x]
        left[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = NONE
    found = only_peaks(torch.from_numpy(scores)[None, None], reach, rounds=40)[0, 0].numpy()
    np.testing.assert_array_equal(found, expected)


def test_a_window_scores_what_its_patch_does():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 3, 96, 96), generator=generator).float()
    template, unit = in_whole_numbers(torch.randn(8, 8, generator=generator))
    assert torch.equal(template, template.round()) and 2**21 < 255 * template.abs().sum() <= 2**22 + 2**13 and unit > 1
    size = SIZES.index((32, 64))
    scores, boxes, numbers = stage_one(images, template, [size], per_size=6)
    assert (numbers == size).all() and (scores.diff(dim=1) <= 0).all()
    gradients = shrunk_gradients(shrunk_rows(images, size), size)
    assert gradients.shape[-2:] == (12, 24)  # 96 pixels, a window of 32 × 64 to 8 × 8
    for image in range(2):
        for score, (x0, y0, x1, y1) in zip(scores[image].tolist(), boxes[image].tolist()):
            x, y = round(x0 / 4), round(y0 / 8)
            assert score == int((gradients[image, 0, y : y + 8, x : x + 8] * template).long().sum())
            assert (x1, y1) == (min(x0 + 32, 96), min(y0 + 64, 96))


@pytest.mark.parametrize("canvas", [320, 96, 100, 257])
def test_shrunk_images_are_torchs(canvas):
    images = torch.randint(0, 256, (1, 3, canvas, canvas), generator=torch.Generator().manual_seed(3)).float()
    for size in filter(lambda size: usable(size, canvas), range(36)):
        sides = [max(8, round(8 * canvas / min(side, canvas))) for side in SIZES[size][::-1]]
        theirs = torch.nn.functional.interpolate(images, size=sides, mode="bilinear", align_corners=False)
        ours = shrunk_gradients(shrunk_rows(images, size), size)
        assert ours.shape[-2:] == theirs.shape[-2:] and torch.equal(ours, ours.round())
        off = (ours - normed_gradients(theirs.round())).abs()
        assert float(off.max()) <= (0 if canvas == 320 else 8)  # where each pixel lies between two, it is torch's own


def test_a_template_of_nothing_scores_nothing():
    template, unit = in_whole_numbers(torch.zeros(8, 8))
    assert not template.any() and unit == 1


def test_windows_beyond_the_canvas_are_the_canvas():
    assert window_boxes(SIZES.index((128, 128)), (1, 1), 96).tolist() == [[0, 0, 96, 96]]


def test_stage_two_orders_sizes():
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    small, large = SIZES.index((16, 16)), SIZES.index((32, 32))
    scale, offset = torch.ones(36), torch.full((36,), -torch.inf)
    offset[small], offset[large] = 0, 1e6
    boxes, scores = bing(images, BingModel(torch.ones(8, 8), scale, offset, 64), top=2000)
    width = boxes[0, :, 2] - boxes[0, :, 0]
    assert scores[0, 0] > 1e5 and width[0] == 32  # the large ones first, whatever their raw scores
    count = int((scores[0] > 1e5).sum())
    assert (width[:count] > 16).any() and (width[count : int((scores[0] > NONE).sum())] <= 16).all()


def test_models_are_kept(tmp_path):
    shipped = load_bing(WEIGHTS)
    shipped.save(tmp_path / "m.json", "a test")
    again = load_bing(tmp_path / "m.json")
    assert torch.equal(shipped.template, again.template) and torch.equal(shipped.offset, again.offset)
    content = json.loads(WEIGHTS.read_text())
    assert content["made_by"].startswith("objcrop train-bing") and len(WEIGHTS.read_bytes()) < 5000


def test_published_models_are_read(tmp_path):
    rng = np.random.default_rng(0)
    used = np.array([[0], [7], [14]], np.int32)
    parts = {
        "wS1": rng.normal(size=(8, 8)).astype(np.float32),
        "idx": used,
        "wS2": rng.normal(size=(3, 2)).astype(np.float32),
    }
    for name, matrix in parts.items():
        storage = cv2.FileStorage(str(tmp_path / f"ObjNessB2W8MAXBGR.{name}.yml.gz"), cv2.FILE_STORAGE_WRITE)
        storage.write("ObjNessB2W8MAXBGR", matrix)
        storage.release()
    model = load_bing(tmp_path)
    np.testing.assert_array_equal(model.template.numpy(), parts["wS1"])
    assert torch.isfinite(model.offset).nonzero().flatten().tolist() == [0, 7, 14]
    np.testing.assert_array_equal(model.scale[[0, 7, 14]].numpy(), parts["wS2"][:, 0])


def test_wrong_models(tmp_path):
    (tmp_path / "no.json").write_text('{"canvas": 3}')
    (tmp_path / "text.json").write_text("BING")
    (tmp_path / "nan.json").write_text(WEIGHTS.read_text().replace("-0.0006194", "NaN"))
    (tmp_path / "empty").mkdir()
    for name, word in (
        ("no.json", "no BING model"),
        ("text.json", "no BING model"),
        ("nan.json", "not finite"),
        ("empty", "OpenCV's MAXBGR"),
    ):
        with pytest.raises(ObjcropError, match=word) as caught:
            load_bing(tmp_path / name)
        assert "\n" not in str(caught.value)


def recall(catalog, boxes):
    hit = total = 0
    for row in range(len(catalog)):
        truth = torch.from_numpy(catalog.annotations(row).boxes.copy())
        total += len(truth)
        if len(boxes[row]):
            hit += int((box_iou(torch.from_numpy(boxes[row].copy()), truth).amax(0) >= 0.5).sum())
    return hit / total


def test_training_on_some_scenes_finds_objects_in_others(tmp_path):
    draw_scenes(tmp_path / "train", 40, seed=1)
    draw_scenes(tmp_path / "test", 24, seed=2)
    train, _ = index(tmp_path / "train", "scenes")
    test, _ = index(tmp_path / "test", "scenes")
    model = train_bing(train, canvas=256)
    model.save(tmp_path / "m.json", "a test")
    again = train_bing(train, canvas=256)
    torch.testing.assert_close(model.template, again.template, rtol=1e-3, atol=1e-6)  # summed in float32
    found = recall(test, propose(test, "bing", model=tmp_path / "m.json", count=50, nms=1.0, workers=0))
    by_chance = recall(test, propose(test, "random", count=50))
    assert found > by_chance + 0.2


def test_nothing_to_learn_from(photos):
    with pytest.raises(ObjcropError, match="fewer than 20 objects"):
        train_bing(photos[0])
