"""The papers' rows: each has a recipe of its numbers or says why not, and a recipe of each kind trains."""

import re
from collections import Counter

import pytest
import yaml

from objcrop.formats import FORMATS
from objcrop.option import options_of
from objcrop.proposals import METHODS as PROPOSALS
from objcrop.ssl.methods.by_name import METHODS, method_class
from objcrop.ssl.recipe_rows import NONE, QUOTED, needed, recipe_lines, recipe_page, rows
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import FOLDER, groups_of, name_of, needs_of, resolve, settings
from objcrop.ssl.training.trainer import pretrain

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OF_ROWS = [name for name in NAMES if name[:3] in ("oac", "cib")]
COUNT = {  # lines of result in each table, counted in the papers
    "OAC": (12, 10, 11, 12, 4, 9, 3, 4, 4, 6, 7, 4, 4),
    "CIB": (8, 6, 12, 7, 6, 8, 14, 9, 6, 8, 7, 8, 8, 10, 4),
}


def at_first(name):
    return resolve(name, (settings(name) or [{}])[0])


def test_every_line_of_every_table_is_a_row():
    found = Counter((row.paper, row.table) for row in rows() if row.table != "text")
    assert found == {(paper, str(table)): n for paper, lines in COUNT.items() for table, n in enumerate(lines, 1)}
    assert len({(row.paper, row.table, row.row) for row in rows()}) == len(rows())


def test_rows_name_recipes_and_settings_that_there_are():
    for row in rows():
        assert row.trained != (row.recipe == QUOTED or row.recipe.startswith(NONE)) and row.published
        if row.trained:
            assert row.recipe in NAMES, row
            tried = [name_of(setting) for setting in settings(row.recipe)]
            assert (
                not tried
                or row.at in (*tried, "one of its settings" if row.table == "text" else tried[0])
                or (row.table == "text" and not row.at)
            ), row
    of_rows = {row.recipe for row in rows()}
    assert set(OF_ROWS) <= of_rows, set(OF_ROWS) - of_rows
    for name in OF_ROWS:  # each setting is a row of its table, or the row is a curve
        at = {row.at for row in rows() if row.recipe == name}
        tried = {name_of(setting) for setting in settings(name)}
        assert not tried or at >= tried or at <= {"", "one of its settings"}, name


def test_every_method_has_a_recipe_of_its_own_name():
    assert set(NAMES) - set(OF_ROWS) >= {name for name in METHODS if name != "supervised"}


@pytest.mark.parametrize("name", OF_ROWS)
def test_recipes_hold_differences_and_what_they_need(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    said = yaml.safe_load(text)
    assert text.startswith(f"# {name[:3].upper()} ") and max(map(len, text.splitlines())) <= 120
    recipe, needs = at_first(name), needs_of(name)
    bare = resolve(None, {"method": said["method"]})
    groups = groups_of(type(recipe), recipe.method)
    places = {(groups[key], each.key): key for key, each in options_of(type(recipe)).items()}
    told = [
        places[group, key]
        for group, inside in said.items()
        if isinstance(inside, dict) and group in groups.values()
        for key in inside
    ]
    assert all(getattr(recipe, key) != getattr(bare, key) for key in told if key != "hidden"), "a default is repeated"
    assert not {key for setting in settings(name) for key in setting} & set(told)
    assert needs["data"] in needed("data")
    assert ("boxes" in needs) == (recipe.policy.needs_boxes or method_class(recipe.method).needs_boxes)
    assert needs.get("boxes", "gt") in needed("boxes")
    for setting in settings(name):
        resolve(name, setting)


def test_needed_data_are_indexed_by_formats_that_there_are():
    formats = {name.removesuffix("NAME") for name in FORMATS}
    for says, commands in needed("data").values():
        assert says and set(re.findall(r"--format ([\w-]+:?)", f"{says} {commands}")) <= formats
        assert re.match("objcrop index .* -o ", commands)


def test_needed_boxes_are_made_by_methods_that_there_are():
    for says, commands in needed("boxes").values():
        assert says and set(re.findall(r"--method ([\w-]+)", commands)) <= set(PROPOSALS)
        assert set(re.findall(r"--recipe ([\w-]+)", commands)) <= set(NAMES)


@pytest.mark.parametrize("name", OF_ROWS)
def test_numbers_are_the_papers(name):
    """Written down here from OAC 3, 4 and appendix G, and CIB 3.2 and 4.1, without a look at the recipes."""
    recipe, data, boxes = at_first(name), needs_of(name)["data"], needs_of(name).get("boxes", "")
    swept = {key for setting in settings(name) for key in setting}
    cib = name.startswith("cib")
    arch = {"mae": "timm/vit_base_patch16_224", "cmc": "lab/resnet50"}.get(recipe.method, "resnet50")
    assert (recipe.arch, recipe.size) == (arch, 224)
    if "epochs" not in swept:
        epochs = {"openimages-subset": 200, "openimages": 75, "imagenet": 200, "coco": 800}
        if cib:
            epochs = {"voc07": 800, "coco": 400, "imagenet-100": 200, "imagenet": recipe.epochs}
        told = {"supervised": 90, "mae": 800}
        assert recipe.epochs == told.get(recipe.method, epochs[data])
    if recipe.method == "moco-v2":
        assert recipe.learning_rate == (0.3 if cib else 0.03) and recipe.batch_size == 256
        assert recipe.temperature == (0.2 if "temperature" not in swept else settings(name)[0]["temperature"])
        assert (recipe.dim, recipe.queue, recipe.ema, recipe.weight_decay) == (128, 65536, 0.999, 1e-4)
        assert recipe.virtual_devices == (1 if cib else 8)
        assert recipe.scale == (0.2, 1.0) or "scale" in swept
    if recipe.method == "byol":
        assert recipe.optimiser == "lars" and recipe.virtual_devices == 1
        assert recipe.batch_size == (512 if cib and data != "voc07" else 256)
        # CIB 4.1: the base rate of PixPro and SoCo, the augmentation of BYOL; OAC G.1 and 2.1.
        expected = (0.99, 1.0, 1e-5, (0.08, 1.0)) if cib else (0.996, 0.2, 1.5e-6, (0.2, 1.0))
        assert (recipe.ema, recipe.base_lr, recipe.weight_decay, recipe.scale) == expected
    if recipe.method == "supervised":
        assert (recipe.crops, recipe.augment, recipe.scale, recipe.learning_rate) == ("scene", "flip", (0.08, 1), 1e-3)
    if any(view.region == "dilated" for view in recipe.policy.views) and "dilate" not in swept:
        assert recipe.dilate == {"coco": 0.1, "openimages-subset": 0.2, "openimages": 0.2, "imagenet": 0.0}[data]
    if recipe.method not in ("mae", "soco", "cmc"):
        assert (recipe.crops == "within-box") == (cib and bool(boxes))
    if recipe.policy.needs_boxes and not cib and recipe.crops != "within-box":
        assert recipe.min_side == (224 if data == "coco" else "auto")
        assert recipe.boxes_drawn == (1 if "max_boxes" in swept else 1000 if boxes == "gt" else 10)
    if recipe.crops == "within-box":
        assert recipe.boxes_drawn == (1 if "max_boxes" in swept else None)
    whole = recipe.crops == "obj-scene" or "table15" in name or recipe.method == "soco"
    assert recipe.policy.views[0].whole == whole


def kinds():
    """One recipe of each kind: method, policy and whatever else decides which code runs."""
    found = {}
    for name in NAMES:
        r = at_first(name)
        key = (r.method, r.crops, r.random_crop, r.local_views, r.optimiser, r.augment, getattr(r, "heads", ""))
        found.setdefault(key, name)
    return sorted(found.values())


@pytest.mark.parametrize("name", kinds())
def test_a_recipe_of_each_kind_takes_two_steps(name, photos, tmp_path):
    catalog, boxes = photos
    made = at_first(name)
    tiny = dict(size=32, batch_size=8, steps=2, threads=2, device="cpu", bn_groups=None, queue=16, hidden=16)
    tiny |= dict(local_size=16 if made.local_views else None)
    small = {"mae": "timm/test_vit", "cmc": "lab/resnet18"}.get(made.method, "timm/test_resnet")
    tiny |= dict(arch=small, augment=None, negatives=8, prototypes=9, dim=8)
    tiny |= dict(decoder_dim=32, decoder_depth=1, pyramid_width=8, region_width=16)
    tiny |= {"min_side": 8} if made.acts("min_side") else {}
    tiny |= (settings(name) or [{}])[0]
    tiny.pop("epochs", None)
    known = options_of(type(made))
    flags = {key: value for key, value in tiny.items() if key in known and (value is None or made.acts(key))}
    recipe = resolve(name, flags)
    looks = recipe.policy.needs_boxes or method_class(recipe.method).needs_boxes
    if recipe.method == "supervised":
        pytest.skip("its photos have no labels")
    pretrain(recipe, catalog, boxes if looks else None, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_the_page_is_what_the_command_makes():
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == recipe_page()
    assert len(recipe_lines()) == len(NAMES)
