"""A report of everything there is, on one page: what it shows, what it refuses, and what a browser makes of it."""

import io
import json
import shutil

import pytest
import yaml
from html_page import Page
from PIL import Image

from objcrop.bench.machine import write_result
from objcrop.box_stats import stats
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.proposals import propose
from objcrop.report import report
from objcrop.sample_scenes import draw_scenes

PROBE = {
    "checkpoint": "a/last.pt",
    "size": 64,
    "train_images": 200,
    "test_images": 100,
    "linear": "optimum",
    "linear_map": 0.51234,
    "linear_per_class": {"disc": 0.25, "ring": None},
    "knn_map": 0.4,
    "chance_map": 0.1,
}
TRANSFER = {"task": "detection", "checkpoint": "a/last.pt", "preset": None, "step": 20, "ap": 0.31, "bad_images": 0}
SETTING = {"setting": {"dilate": 0.1, "scale": [0.2, 1]}, "steps": 9, "loss": 2}
SWEEP = {"recipe": "oac-table9-dilate", "runs": [SETTING]}
RATES = {"images_per_s": 1234.5, "images_per_s_min": 1200.1, "images_per_s_max": 1300.2, "raw": [3, 1, 2]}
LOADERS = {
    "verdict": ["dali is faster."],
    "loaders": {"dali": RATES},
    "stages": {"read": 0.09, "decode": 0.74},
    "what": "views of loaders",
}


def write_run(folder, *, steps=5, method="moco-v2", dilate=0.1):
    folder.mkdir(parents=True)
    line = {"epoch": 0, "loss": 3.5, "embedding_std": 0.08, "lr": 0.1, "images_per_s": 50.0, "starvation": 0.02}
    lines = [json.dumps({"step": step, **line, "images_per_s": 50.0 * step}) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    recipe = {"method": method, "crops": {"policy": "obj-obj+dilate", "dilate": dilate, "size": 64}}
    recipe |= {"training": {"arch": "resnet18"}, "resolved": {"steps": 10}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A folder of everything that a report takes."""
    folder = tmp_path_factory.mktemp("things")
    write_run(folder / "a")
    write_run(folder / "b", method="byol", dilate=0.2)
    (folder / "a" / "bad_images.txt").write_text("one\ntwo\n")
    write_run(folder / "transfer")
    (folder / "transfer" / "evaluation.json").write_text(json.dumps(TRANSFER))
    Image.new("RGB", (30, 20), "teal").save(folder / "transfer" / "precision_recall.png")
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text(json.dumps(SWEEP))
    for name in "ab":
        (folder / f"probe_{name}.json").write_text(json.dumps({**PROBE, "checkpoint": f"{name}/last.pt"}))
        write_result(folder / f"loader_{name}.json", LOADERS)
    Image.new("RGB", (40, 20), "teal").save(folder / "loader_a.png")
    draw_scenes(folder / "scenes", 12, seed=3)
    catalog, _ = index(folder / "scenes", "scenes")
    for crops in ("obj-obj+dilate", "scene-scene"):
        boxes = propose(catalog, "gt") if crops != "scene-scene" else None
        (folder / f"stats_{crops}.json").write_text(json.dumps(stats(catalog, boxes, crops, bootstrap=10)))
    return folder


ALL = ("a", "b", "probe_a.json", "probe_b.json", "transfer", "sweep", "loader_a.json", "loader_b.json")


@pytest.fixture(scope="module")
def everything(things):
    """The page of all of it."""
    page = things / "report.html"
    report([things / name for name in ALL] + sorted(things.glob("stats_*.json")), page)
    return page


def table_with(seen, head):
    """Return the rows of the first table that has such a head, as dicts."""
    rows = next(rows for rows in seen.tables if head in rows[0])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_everything_is_on_it(everything):
    seen = Page(everything.read_text(encoding="utf-8"))
    assert seen.links == ["#runs", "#probes", "#transfers", "#sweeps", "#stats", "#benches"]
    assert len(seen.images) == 4  # curves, precision and recall, shares, bars
    first, second = table_with(seen, "run")
    assert first["run"] == "a" and first["method"] == "moco-v2" and first["step"] == "5 of 10"
    assert first["images/s"] == "150" and first["waiting"] == "2.0 %" and first["bad images"] == "2"
    assert second["method"] == "byol" and second["bad images"] == ""
    differ = next(rows for rows in seen.tables if rows[0] == ["", "a", "b"])
    assert sorted(differ[1:]) == [["crops.dilate", "0.1", "0.2"], ["method", "moco-v2", "byol"]]
    probes = table_with(seen, "linear, mAP")
    assert [(row["probe"], row["checkpoint"]) for row in probes] == [("probe_a", "a/last.pt"), ("probe_b", "b/last.pt")]
    assert (probes[0]["linear, mAP"], probes[0]["chance, mAP"], probes[0]["images, train"]) == ("0.5123", "0.1", "200")
    assert ["disc", "0.25", "0.25"] in next(rows for rows in seen.tables if rows[0] == ["", "probe_a", "probe_b"])
    (transfer,) = table_with(seen, "transfer")
    assert (transfer["ap"], transfer["bad images"]) == ("0.31", "0") and "preset" not in transfer
    (run,) = table_with(seen, "dilate")
    assert run == {"dilate": "0.1", "scale": "0.2, 1", "steps": "9", "loss": "2"}
    loaders = table_with(seen, "images per s")
    assert [row["file"] for row in loaders] == ["loader_a", "loader_b"]
    assert loaders[0]["images per s"] == "1,234 (1,200–1,300)" and loaders[0]["raw"] == "2 (1–3)"
    shares = next(rows for rows in seen.tables if "stats_scene-scene, view 1" in rows[0])
    assert shares[1][0] == "object share" and "stats_obj-obj+dilate, boxes" in shares[0]
    assert "dali is faster." in seen.text


def test_the_same_things_make_the_same_page(things, tmp_path):
    for name in ("one.html", "two.html"):
        report([things / "a", things / "stats_scene-scene.json"], tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_names_tell_folders_of_one_name_apart(tmp_path):
    for name in ("one/run", "two/run"):
        write_run(tmp_path / name)
    report([tmp_path / "one" / "run", tmp_path / "two" / "run", tmp_path / "two" / "run"], tmp_path / "r.html")
    seen = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert [row["run"] for row in table_with(seen, "run")] == ["one/run", "two/run"] and not seen.links


def test_a_run_that_has_reported_nothing_yet(tmp_path):
    write_run(tmp_path / "run", steps=0)
    (tmp_path / "run" / "recipe.yaml").unlink()
    report([tmp_path / "run"], tmp_path / "r.html")
    seen = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert table_with(seen, "run") == [{"run": "run", "step": "0"}] and not seen.images


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("missing", None, 1, ["missing is not there", "`objcrop probe`"]),
        ("missing.json", None, 1, ["missing.json is not there", "`objcrop probe`"]),
        ("last.pt", "weights", 2, ["last.pt is nothing that a report shows", "give folders of `objcrop pretrain`"]),
        ("empty.json", "{}", 2, ["empty.json is nothing that a report shows"]),
        ("list.json", "[1]", 2, ["list.json is nothing that a report shows"]),
        ("broken.json", "{", 1, ["broken.json is no JSON"]),
        ("sweep.json", '{"recipe": 1, "runs": [{}]}', 1, ["sweep: not as objcrop writes it (KeyError"]),
        ("bench.json", '{"machine": 3}', 1, ["bench: not as objcrop writes it"]),
        ("stats.json", '{"ground_truth": {}, "objectness": {"boxes": 3}}', 1, ["stats: not as objcrop writes it"]),
    ],
)
def test_what_it_does_not_take_is_said_in_a_sentence(tmp_path, objcrop, name, content, code, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    run = objcrop("report", name, "-o", "r.html", cwd=tmp_path)
    assert run.returncode == code and len(run.stderr.splitlines()) == 1, run.stderr
    assert all(word in run.stderr for word in words), run.stderr
    assert not (tmp_path / "r.html").exists()


def test_a_folder_of_something_else(tmp_path, objcrop):
    run = objcrop("report", ".", "-o", "r.html", cwd=tmp_path)
    assert run.returncode == 2 and ". is nothing that a report shows" in run.stderr


def test_nothing_to_report(tmp_path):
    with pytest.raises(UsageError, match="nothing to report: give folders"):
        report([], tmp_path / "r.html")
    with pytest.raises(ObjcropError, match="line 1 of"):
        (tmp_path / "metrics.jsonl").write_text("no line\n")
        report([tmp_path], tmp_path / "r.html")


# ---- in a browser

OVER = "[document.documentElement.scrollWidth, window.innerWidth]"
IMAGES = "[...document.images].map(image => [image.complete, image.naturalWidth])"
CONTRAST = """() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number)
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parts(getComputedStyle(node).backgroundColor)
      if (colour.length === 3 || colour[3] > 0) return light(colour)
    }
    return NaN
  }
  let least = 99
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue
    const [one, two] = [light(parts(getComputedStyle(node).color)), behind(node)]
    least = Math.min(least, (Math.max(one, two) + .05) / (Math.min(one, two) + .05))
  }
  return least
}"""


@pytest.fixture(scope="module")
def browser():
    """Chromium, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(
                executable_path=next(filter(None, map(shutil.which, names)), None),
                args=["--no-sandbox"],
            )
        except playwright.Error:
            pytest.skip("no Chromium here")
        yield browser
        browser.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_read_on_a_phone_and_a_desk_by_day_and_by_night(browser, everything, scheme, width):
    asked = []
    with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(everything.as_uri())
        inside, screen = tab.evaluate(OVER)
        assert inside <= screen, "the page is wider than the screen"
        tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        inside, screen = tab.evaluate(OVER)
        assert inside <= screen, "the page is wider than the screen when all is unfolded"
        assert all(done and size > 0 for done, size in tab.evaluate(IMAGES)) and tab.evaluate("document.images.length")
        # WCAG 2.2, 1.4.3
        assert tab.evaluate(CONTRAST) >= 4.5
        shot = Image.open(io.BytesIO(tab.screenshot())).convert("L")
        assert (shot.getpixel((3, 3)) > 200) == (scheme == "light")
    assert all(url == everything.as_uri() or url.startswith("data:") for url in asked)
