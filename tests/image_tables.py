"""Tables of images as `datasets` and others write them, for tests of Arrow and Parquet files."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_photos
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index

NAMES = ["cat", "dog", "bird"]
LABEL = {"names": NAMES, "_type": "ClassLabel"}
BBOX = {"feature": {"dtype": "float32", "_type": "Value"}, "length": 4, "_type": "List"}
OBJECTS = {  # as `datasets` 5 and 2 state a struct of lists, and as both state a list of structs
    "struct of lists": {
        "bbox": {"feature": BBOX, "_type": "List"},
        "category": {"feature": LABEL, "_type": "List"},
    },
    "old": {"feature": {"bbox": BBOX | {"_type": "Sequence"}, "category": LABEL}, "length": -1, "_type": "Sequence"},
    "list of structs": [{"bbox": BBOX | {"_type": "Sequence"}, "category": LABEL}],
}
ANNOTATIONS = ["key", "width", "height", "orientation", "labels", "boxes", "box_classes", "difficult", "crowd"]


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (shade % 256, shade // 256, 7)).save(buffer, "png")
    return buffer.getvalue()


def features(**columns):
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def write(path, table, *, stream=True, rows=3, **options):
    """Write an IPC file of batches of so many rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def error(*args, kind=ObjcropError, **options):
    with pytest.raises(kind) as caught:
        index(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def photos_in(folder):
    """Write photos and their COCO file; return the rows of the same as a table, and the catalog of the COCO file."""
    rng, rows, coco = np.random.default_rng(3), [], {"images": [], "annotations": []}
    for i, name in enumerate(write_photos(folder, 12)):
        with Image.open(folder / name) as image:
            width, height = image.size
        k = int(rng.integers(0, 4))
        low = rng.integers(0, 40, (k, 2))
        boxes, classes = (
            np.concatenate([low, low + rng.integers(30, 50, (k, 2))], 1).tolist(),
            rng.integers(0, 3, k).tolist(),
        )
        coco["images"].append({"id": i, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), c in zip(boxes, classes):
            box = [x0, y0, x1 - x0, y1 - y0]
            coco["annotations"].append({"id": len(coco["annotations"]), "image_id": i, "category_id": c, "bbox": box})
        image = {"bytes": (folder / name).read_bytes(), "path": name}
        rows.append({"image": image, "objects": [{"bbox": b, "category": c} for b, c in zip(boxes, classes)]})
    coco["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (folder / "coco.json").write_text(json.dumps(coco))
    catalog, _ = index(folder / "coco.json", "coco", root=folder)
    return rows, catalog


def table_of(rows, layout="struct of lists", xywh=True):
    """The rows as `datasets` would have them."""
    rows = [dict(row) for row in rows]
    for row in rows:
        boxes = [b["bbox"] for b in row["objects"]]
        if xywh:
            boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes]
        classes = [b["category"] for b in row["objects"]]
        row["objects"] = {"bbox": boxes, "category": classes}
        if layout == "list of structs":
            row["objects"] = [{"bbox": b, "category": c} for b, c in zip(boxes, classes)]
    box = pa.list_(pa.float32(), 4)
    objects = pa.struct([("bbox", pa.list_(box)), ("category", pa.list_(pa.int64()))])
    if layout == "list of structs":
        objects = pa.list_(pa.struct([("bbox", pa.list_(pa.float32())), ("category", pa.int64())]))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("objects", objects)])
    return pa.Table.from_pylist(rows, schema.with_metadata(features(image={"_type": "Image"}, objects=OBJECTS[layout])))


def images(n, **columns):
    """A table of n small pictures and other columns."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(n)], kind)
    return pa.table({"image": pictures, **columns})
