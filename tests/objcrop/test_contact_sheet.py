import numpy as np
from PIL import Image

from objcrop.contact_sheet import CELL, COLOURS, GAP, HEAD, contact_sheet
from objcrop.dali_pipes.load_views import load_views


def test_windows_are_drawn_where_they_are_and_views_as_they_are(photos, tmp_path):
    catalog, boxes = photos
    with load_views(
        catalog, boxes=boxes, crops="obj-obj+dilate", augment="none", size=40, batch_size=3, backend="torch", workers=0
    ) as loader:
        batch = next(iter(loader))
    contact_sheet(catalog, batch.index.numpy(), batch.plan, batch.views, tmp_path / "s.png", policy_name="x")
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    wide = CELL * 4 // 3
    assert sheet.shape[1] == 4 * GAP + wide + 2 * CELL
    w, h = catalog.sizes[int(batch.index[0])]
    scale = min(wide / w, CELL / h)
    x0, y0, x1, y1 = batch.plan.windows[0, 1] * scale  # drawn last, so nothing lies on it
    y = int(HEAD + (y0 + y1) / 2)
    assert tuple(sheet[y, int(GAP + x0) + 1]) == COLOURS[1]
    assert tuple(sheet[y, int(GAP + x1) - 2]) == COLOURS[1]
    shown = Image.fromarray(sheet[HEAD : HEAD + CELL, 2 * GAP + wide : 2 * GAP + wide + CELL])
    view = batch.views[0][0].permute(1, 2, 0).numpy()
    view = (view * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    assert np.abs(np.asarray(shown.resize((40, 40)), float) - view).mean() < 6
