"""Mutated files through the command line, in a process of their own: python tests/fuzz.py FOLDER COUNT FIRST FORMAT…
(or COMMANDS.json, to try these).

Every input ends as "done" or as one sentence with exit code 1 or 2. A line of JSON says what did not; the line before
an input is tried names it, so that a crash or a hang is known by the last one. Nothing but seeds decides the inputs.
"""

import contextlib
import faulthandler
import io
import json
import logging
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pyarrow.parquet as pq
import typer
from PIL import Image

MEMORY = 4 << 30  # bytes that an input may take beyond what the libraries hold
HANG = 60  # processor seconds of one input, which takes some hundredths: no busy machine makes them more
HOSTILE = (
    *(b"1e999", b"-1e999", b"NaN", b"-1", b"0", b"null", b"true", b'"text"', b'""', b"[]", b"{}", b"[[[[]]]]"),
    *(b"1e308", b"9" * 30, b"-" + b"9" * 400, b"9223372036854775808", b"2147483648", b"0.1", b"1e-320", b"-0.0"),
    *(b'"7"', b'"\\u0000"', b"\xff\xfe", b"[" * 3000, b'{"a":' * 1500, b"\xe2\x82\xac", b"\x00", b"inf", b"1_0"),
    *(b"\xd9\xa3", b"'", b"&amp;", b"<a>"),
)
TOKEN = re.compile(rb'-?[0-9][0-9.eE+-]*|"[^"]*"|[A-Za-z_]\w*|[\[\]{},:<>/]')


def mutated(data: bytes, rng: random.Random, text: bool) -> bytes:
    """Return the bytes with one to four changes: of a token where it is text, else of bytes and lengths."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind = rng.random()
        tokens = list(TOKEN.finditer(data)) if text else []
        if tokens and kind < 0.75:
            token = rng.choice(tokens)
            other = rng.choice(HOSTILE) if rng.random() < 0.7 else rng.choice(tokens).group()
            data = data[: token.start()] + other + data[token.end() :]
        elif not data:
            data = rng.randbytes(rng.randrange(40))
        elif kind < 0.85:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind < 0.9:
            at = rng.randrange(len(data))
            data = data[:at] + rng.choice((b"\xff\xff\xff\x7f", b"\xff" * 8, bytes(8), b"\x80")) + data[at + 4 :]
        elif kind < 0.94:
            data = data[: rng.randrange(len(data))]
        else:
            begin, end = sorted(rng.randrange(len(data)) for _ in range(2))
            data = data[:begin] + data[end:] if rng.random() < 0.5 else data[:end] + data[begin:end] + data[end:]
    return data


def seeds(folder: Path) -> None:
    """Write sound files of every format into `folder`."""
    from objcrop.boxes import BoxTable
    from objcrop.formats import index

    (folder / "images").mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (30 + i, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    rle = {"size": [30, 40], "counts": [0, 300, 900]}
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [1, 2, 20.5, 20], "iscrowd": 0, "area": 410},
        {"id": 2, "image_id": 0, "category_id": 5, "bbox": [0, 0, 40, 8], "iscrowd": 1, "segmentation": rle},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [5, 5, 9, 9], "segmentation": [[5, 5, 14, 5, 14, 14]]},
        {"id": 4, "image_id": 3, "category_id": 5, "segmentation": {"size": [33, 40], "counts": "P1b0<000Z9"}},
    ]
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30 + i} for i in range(4)]
    categories = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
    coco = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(coco))
    catalog, _ = index(folder / "coco.json", "coco", root=folder / "images")
    catalog.save(folder / "c.arrow")
    catalog.save(folder / "c.parquet")
    table = BoxTable.from_arrays(catalog, [[[1, 2, 20, 20]], [], [[0, 0, 9, 9], [3, 3, 30, 30]], [[5, 5, 6, 6]]])
    table.save(folder / "b.arrow")
    table.save(folder / "b.parquet")
    found = [{"image_id": i, "category_id": 3, "bbox": [1, 2, 9, 9], "score": 0.5} for i in range(4)]
    (folder / "import.json").write_text(json.dumps(found))
    (folder / "import.csv").write_text("key,x0,y0,x1,y1,score\n0.png,1,2,9,9,0.5\n1.png,0,0,5.5,7,1\n2.png,,,,,\n")
    np.save(folder / "import.npy", np.array([[0, 1, 2, 9, 9, 0.5], [3, 0, 0, 5, 5, 1]], np.float32))
    (folder / "voc" / "Annotations").mkdir(parents=True)
    shutil.copytree(folder / "images", folder / "voc" / "JPEGImages")
    for i in range(4):
        parts = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), (2, 3, 20, 25)))
        thing = f"<object><name>cat</name><difficult>0</difficult><bndbox>{parts}</bndbox></object>"
        size = f"<size><width>40</width><height>{30 + i}</height><depth>3</depth></size>"
        xml = f"<annotation><folder>voc</folder><filename>{i}.png</filename>{size}{thing}</annotation>"
        (folder / "voc" / "Annotations" / f"{i}.xml").write_text(xml)
    (folder / "open").mkdir()
    shares = ("0.1,0.5,0.25,1,0,0,0", "0,1,0.5,0.75,1,0,1", "0.25,0.5,0,0.125,0,1,-1", "0.5,1,0.5,1,0,0,0")
    lines = [f"{i},xclick,/m/0{i % 2},1,{share},0,0" for i, share in enumerate(shares)]
    flags = "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
    first = f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,{flags}"
    (folder / "open" / "train-annotations-bbox.csv").write_text("\n".join([first, *lines]))
    (folder / "open" / "train-images-with-rotation.csv").write_text("ImageID,Rotation\n0,90.0\n1,\n2,270.0\n3,0\n")
    (folder / "open" / "class-descriptions.csv").write_text('/m/00,Cat\n/m/01,"Dog, large"\n')
    labels = ["ImageID,Source,LabelName,Confidence", "0,verification,/m/01,1", "3,machine,/m/02,0.7"]
    (folder / "open" / "labels.csv").write_text("\n".join(labels))
    listed = "path,label,x0,y0,x1,y1\n0.png,cat,1,2,20.5,20\n1.png,dog,,,,\n2.png,cat,0,0,5,5\n2.png,dog,5,5,40,30\n"
    (folder / "list.csv").write_text(listed)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(folder / "list.csv"), folder / "list.parquet")
    for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        (folder / "city" / kind / "val" / "ulm").mkdir(parents=True)
        for i in range(2):
            pixels = np.full((9, 14, 3), 7, np.uint8) if kind == "leftImg8bit" else np.eye(9, 14, dtype=np.uint8) * 7
            Image.fromarray(pixels).save(folder / "city" / kind / "val" / "ulm" / f"ulm_{i}_{ending}.png")
    (folder / "cub").mkdir()
    shutil.copytree(folder / "images", folder / "cub" / "images")
    lists = {"images": "{0}.png", "image_class_labels": "1", "train_test_split": "0", "bounding_boxes": "1 2 20 9"}
    for name, value in lists.items():
        (folder / "cub" / f"{name}.txt").write_text("".join(f"{i} {value.format(i)}\n" for i in range(4)))
    (folder / "cub" / "classes.txt").write_text("1 auk\n")
    things = [[{"bbox": [1, 2, 20, 9 + i], "category": "cat"}] for i in range(4)]
    pictures = [(folder / "images" / f"{i}.png").read_bytes() for i in range(4)]
    rows = pa.table({"image": pictures, "label": ["x", "y", None, "x"], "objects": things})
    for name, new in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with new(str(folder / f"{name}.arrow"), rows.schema) as writer:
            writer.write_table(rows, max_chunksize=2)
    objects = {str(i): {"data": [lines[i].split(","), *([] if i else [lines[1].split(",")])]} for i in range(4)}
    np.save(folder / "oac.npy", objects)  # type: ignore[arg-type]
    with zipfile.ZipFile(folder / "stored.zip", "w") as stored:
        for i, picture in enumerate(pictures):
            stored.writestr(f"{i}.png", picture)
            stored.writestr(f"{i}.json", json.dumps({"label": "x", "boxes": [{"box": [1, 2, 20, 9 + i]}]}))
    for name, packed in (("plain", "none"), ("packed", "snappy")):
        pq.write_table(rows, folder / f"{name}.parquet", row_group_size=2, compression=packed, use_dictionary=False)
    (folder / "run").mkdir()
    lines = [{"step": s, "epoch": 0, "loss": 2.5 / s, "lr": 0.03, "images_per_s": 90.5} for s in range(1, 6)]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(
        "method: moco-v2\ncrops: {policy: obj-obj+shift, size: 64, shift: [80, 100]}\ntraining: {base_lr: 0.03}\n"
    )


# A format: the sound file, whether it is text, and the commands that meet the mutated one; {} is where it lies.
FORMATS = {
    "coco": ("coco.json", True, ["index {x} --format coco --root {0}/images -o {o}.arrow"]),
    "voc": ("voc/Annotations/1.xml", True, ["index {0}/voc --format voc -o {o}.arrow"]),
    **{
        f"openimages-{what}": (
            f"open/{file}.csv",
            True,
            ["index {0}/open --format openimages --root {0}/images --image-labels {0}/open/labels.csv -o {o}.arrow"],
        )
        for what, file in (("boxes", "train-annotations-bbox"), ("classes", "class-descriptions"))
    },
    "list": ("list.csv", True, ["index {x} --format list --root {0}/images -o {o}.arrow"]),
    "list-parquet": ("list.parquet", False, ["index {x} --format list --root {0}/images -o {o}.arrow"]),
    "cityscapes": (
        "city/gtFine/val/ulm/ulm_1_gtFine_labelIds.png",
        False,
        ["index {0}/city --format cityscapes -o {o}.arrow"],
    ),
    "cub200": ("cub/bounding_boxes.txt", True, ["index {0}/cub --format cub200 -o {o}.arrow"]),
    **{
        f"arrow-{kind}": (f"{kind}.arrow", False, ["index {x} --format arrow --box-format xyxy -o {o}.arrow"])
        for kind in ("file", "stream")
    },
    "oac-dicts": ("oac.npy", False, ["index {x} --format oac-dicts --root {0}/images -o {o}.arrow"]),
    **{
        f"parquet-{kind}": (f"{kind}.parquet", False, ["index {x} --format parquet --box-format xyxy -o {o}.arrow"])
        for kind in ("plain", "packed")
    },
    "zips": ("stored.zip", False, ["index {x} --format zips -o {o}.arrow"]),
    "catalog": (
        "c.arrow",
        False,
        [
            *("stats {x} --boxes {0}/b.arrow", "propose {x} --method gt -o {o}.arrow", "join {x} {x} -o {o}.arrow"),
            "subset {x} --min-classes 2 -o {o}.arrow",
        ],
    ),
    "catalog-parquet": ("c.parquet", False, ["stats {x} --boxes {0}/b.arrow", "propose {x} --method gt -o {o}.arrow"]),
    "boxes": ("b.arrow", False, ["stats {0}/c.arrow --boxes {x} --crops obj-obj+dilate"]),
    "boxes-parquet": ("b.parquet", False, ["stats {0}/c.arrow --boxes {x} --crops within-box"]),
    "import-json": ("import.json", True, ["propose {0}/c.arrow --method import --source {x} -o {o}.arrow"]),
    "import-csv": ("import.csv", True, ["propose {0}/c.arrow --method import --source {x} -o {o}.arrow"]),
    "import-npy": ("import.npy", False, ["propose {0}/c.arrow --method import --source {x} -o {o}.arrow"]),
    "run": ("run/metrics.jsonl", True, ["plot {0}/run -o {o}.svg"]),
    "recipe": ("recipe.yaml", True, ["pretrain --recipe {x} --catalog {0}/c.arrow --boxes {0}/b.arrow -o {o}"]),
}


def try_one(words: list[str]) -> str:
    """Run a command line; return "" where it ended as it must, else what is wrong with its end."""
    from objcrop.cli import app, main
    from objcrop.errors import options_named

    said, failed, code = io.StringIO(), io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(failed):
            main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        return traceback.format_exc()
    sentences = [line for line in failed.getvalue().splitlines() if line.startswith("objcrop: ")]
    if code not in (0, 1, 2) or len(sentences) != bool(code) or "Traceback" in failed.getvalue():
        return f"code {code}: {failed.getvalue()}"
    command = typer.main.get_command(app).get_command(None, words[0])
    unknown = options_named("".join(sentences)) - {option for p in command.params for option in p.opts}
    return f"advice that cannot be taken, {unknown}: {sentences}" if unknown else ""


def fuzz(folder: Path, count: int, first: int, formats: list[str]) -> None:
    """Try `count` inputs of each format, from seed `first` on; a line of JSON for each and for each that went wrong."""
    seeds(folder)
    for name in formats:
        file, text, commands = FORMATS[name]
        sound = folder / file
        data = sound.read_bytes()
        in_place = name in ("voc", "cityscapes", "cub200", "run") or name.startswith(
            "openimages"
        )  # the command finds it by itself
        target = sound if in_place else folder / f"x{sound.suffix}"
        for seed in range(first, first + count):
            rng = random.Random(f"{name} {seed}")
            target.write_bytes(mutated(data, rng, text))
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + HANG, resource.RLIM_INFINITY))
            print(json.dumps({"trying": f"{name} {seed}"}), flush=True)
            for command in commands:
                words = [w.format(folder, x=target, o=folder / "out") for w in command.split()]
                wrong = try_one(words)
                if wrong:
                    print(json.dumps({"wrong": f"{name} {seed}: {' '.join(words)}\n{wrong}"}), flush=True)
            for left in folder.glob("out*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        sound.write_bytes(data)


def without_the_slow_parts() -> None:
    """Leave out what the files cannot touch: building the command line anew, drawing, training."""
    import objcrop.ssl.training.plot_run
    import objcrop.ssl.training.trainer
    from objcrop.cli import app

    command = typer.main.get_command(app)
    built = typer.main.get_command
    typer.main.get_command = lambda asked: command if asked is app else built(asked)

    objcrop.ssl.training.plot_run.save_picture = lambda *_, **__: None  # type: ignore[assignment]
    objcrop.ssl.training.trainer.pretrain = lambda *_, **__: Path()  # type: ignore[assignment]


def try_commands(file: str) -> None:
    """Try the command lines of a JSON file, a list of lists of words; a line of JSON for each that went wrong."""
    for words in json.loads(Path(file).read_text()):
        print(json.dumps({"trying": " ".join(words)}), flush=True)
        wrong = try_one(words)
        if wrong:
            print(json.dumps({"wrong": f"{' '.join(words)}\n{wrong}"}), flush=True)


if __name__ == "__main__":
    root, *more = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.getLogger("objcrop").setLevel(logging.ERROR)
    import torch  # noqa: F401  its libraries are in memory before the limit is set

    without_the_slow_parts()
    faulthandler.register(signal.SIGXCPU, chain=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    if root.endswith(".json"):
        try_commands(root)
    else:
        fuzz(Path(root), int(more[0]), int(more[1]), more[2:] or list(FORMATS))
