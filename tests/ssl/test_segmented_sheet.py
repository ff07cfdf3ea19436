"""The sheet of segmented images, pixel by pixel where it is plain."""

import numpy as np
from PIL import Image

from objcrop.ssl.transfer.segmented_sheet import CELL, GAP, OPAQUE, class_colours, draw_segmented


def test_a_row_an_image(tmp_path):
    photos = [Image.new("RGB", (40, 20), (200, 100, 0)), Image.new("RGB", (10, 30), (0, 0, 50))]
    ids = [np.full((20, 40), 1), np.full((30, 10), 255)]
    draw_segmented([(photo, label, label) for photo, label in zip(photos, ids, strict=True)], tmp_path / "a.png")
    sheet = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert sheet.shape == (CELL // 2 + 3 * CELL + 3 * GAP, 3 * CELL + 4 * GAP, 3)
    cells = [GAP + column * (CELL + GAP) + 5 for column in range(3)]
    assert (sheet[GAP + 5, cells[0]] == (200, 100, 0)).all()
    mixed = OPAQUE * np.array((128, 0, 0)) + (1 - OPAQUE) * np.array((200, 100, 0))
    assert all(np.abs(sheet[GAP + 5, x] - mixed).max() <= 2 for x in cells[1:])
    assert all((sheet[-GAP - 5, x] == (0, 0, 50)).all() for x in cells)  # 255 hides nothing


def test_colours_are_voc_s():
    colours = class_colours()
    assert colours[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert colours[15].tolist() == [192, 128, 128] and colours[255].tolist() == [224, 224, 192]
    assert len({tuple(colour) for colour in colours.tolist()}) == 256
