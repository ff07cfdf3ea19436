"""What a recipe file and flags may say, and which wins."""

import pytest
import yaml

from objcrop.errors import ObjcropError, UsageError
from objcrop.option import options_of
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.moco import MoCoRecipe
from objcrop.ssl.training.recipe import FOLDER, Recipe, acting, resolve


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe = resolve(
        written(tmp_path, "crops: {policy: obj-obj+shift, shift: [10, 20]}\nmoco-v2: {dim: 64, ema: 0.5}\n"),
        {"ema": 0.9},
    )
    assert (recipe.dim, recipe.ema, recipe.shift, recipe.arch) == (64, 0.9, (10, 20), Recipe().arch)
    assert resolve(None, acting(recipe)) == recipe
    assert resolve(written(tmp_path, ""), {}) == MoCoRecipe()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_numbers_of_shipped_recipes_are_numbers(name):
    recipe = resolve(name, {})
    numbers = [getattr(recipe, name) for name in ("base_lr", "weight_decay", "ema", "dilate") if hasattr(recipe, name)]
    assert all(type(number) is float for number in numbers) and len(numbers) >= 3


# The rows of the two papers that have a recipe, and the number that its comment names.
ROWS = {
    "oac-table1-supervised": "mAP 66.3",
    "oac-table3-moco-v2-scene-scene": "mAP 49.8",
    "oac-table3-byol-scene-scene": "mAP 50.2",
    "oac-table3-moco-v2-gt-obj-scene": "mAP 58.9",
    "oac-table3-moco-v2-gt-obj-obj-dilate": "mAP 60.2",
    "oac-table3-moco-v2-unsupervised-obj-scene": "mAP 58.0",
    "oac-table3-moco-v2-edge-boxes-obj-scene": "mAP 57.1",
    "oac-table3-moco-v2-bing-obj-scene": "mAP 58.1",
    "oac-table3-byol-bing-obj-scene": "mAP 58.5",
    "oac-table3-moco-v2-bing-obj-obj-dilate": "mAP 58.6",
    "oac-table3-byol-bing-obj-obj-dilate": "mAP 59.1",
    "oac-table4-moco-v2-scene-scene": "box AP 38.2",
    "oac-table4-moco-v2-bing-obj-scene": "box AP 39.4",
    "oac-table4-moco-v2-bing-obj-obj-dilate": "box AP 39.7",
    "oac-table4-byol-bing-obj-obj-dilate": "box AP 40.1",
    "oac-text-moco-v2-bing-obj-obj-shift": "mAP 54.1",
    "cib-table1-byol-image": "linear mAP 39.8",
    "cib-table1-byol-gt": "linear mAP 33.1",
    "cib-table1-byol-grid": "linear mAP 41.6",
    "cib-table1-byol-our": "linear mAP 42.5",
    "cib-table1-moco-v2-image": "linear mAP 26.9",
    "cib-table1-moco-v2-gt": "linear mAP 28.7",
    "cib-table1-moco-v2-grid": "linear mAP 37.2",
    "cib-table1-moco-v2-our": "linear mAP 44.9",
    "cib-table3-byol-image": "box AP 38.8",
    "cib-table3-byol-our": "box AP 40.2",
    "cib-table3-moco-v2-image": "box AP 38.2",
    "cib-table3-moco-v2-our": "box AP 39.3",
}


def test_each_recipe_is_of_a_row_or_a_method():
    assert {path.stem for path in FOLDER.glob("*.yaml")} - set(METHODS) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_recipes_of_rows_hold_differences_and_what_the_papers_say(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    comment, said = text.split("\nmethod:")[0], yaml.safe_load(text)
    assert ROWS[name] in comment and max(map(len, text.splitlines())) <= 120
    recipe = resolve(name, {})
    bare = resolve(None, {"method": said["method"]})
    places = {(group, option.key): name for name, option in options_of(type(recipe)).items() for group in said}
    told = [places[group, key] for group, inside in said.items() if group != "method" for key in inside]
    assert all(getattr(recipe, key) != getattr(bare, key) for key in told if key != "hidden"), "a default is repeated"
    coco_byol = name.startswith("cib-table3-byol")
    assert (recipe.arch, recipe.size, recipe.batch_size) == ("resnet50", 224, 512 if coco_byol else 256)
    epochs = {"oac-table1": 90, "oac-table3": 200, "oac-text-m": 200, "oac-table4": 800}
    epochs |= {"cib-table1": 800, "cib-table3": 400}
    assert recipe.epochs == epochs[name[:10]]
    if recipe.method == "moco-v2":
        assert recipe.learning_rate == (0.3 if "cib" in name else 0.03)
        assert (recipe.temperature, recipe.dim, recipe.queue, recipe.ema, recipe.weight_decay) == (
            *(0.2, 128, 65536, 0.999),
            1e-4,
        )
        assert recipe.virtual_devices == (1 if "cib" in name else 8)
        assert recipe.scale == (0.2, 1.0)
    if recipe.method == "byol":
        assert recipe.optimiser == "lars" and recipe.virtual_devices == 1
        # CIB 4.1: the base rate of PixPro and SoCo, the augmentation of BYOL; OAC G.1 and 2.1.
        cib = (0.99, 1.0, 1e-5, (0.08, 1.0))
        oac = (0.996, 0.2, 1.5e-6, (0.2, 1.0))
        assert (recipe.ema, recipe.base_lr, recipe.weight_decay, recipe.scale) == (cib if "cib" in name else oac)
    if recipe.method == "supervised":
        assert (recipe.crops, recipe.augment, recipe.scale, recipe.learning_rate) == ("scene", "flip", (0.08, 1), 1e-3)
    if "dilate" in name:
        assert recipe.dilate == (0.1 if "table4" in name else 0.2)
    assert (recipe.crops == "within-box") == ("cib" in name and "image" not in name)
    assert recipe.max_boxes == (1000 if "oac" in name and "-gt-" in name else 10)
    assert recipe.min_side == (224 if "table4" in name and recipe.policy.needs_boxes else "auto")
    assert recipe.policy.views[0].whole == (recipe.crops == "obj-scene")


def test_rates_without_a_point_are_numbers_too(tmp_path):
    text = "training: {base_lr: 1e-2, weight_decay: 1e-6}\n"
    recipe = resolve(written(tmp_path, text), {})  # YAML 1.1 reads 1e-2 as text
    assert recipe.learning_rate == pytest.approx(0.01) and recipe.weight_decay == 1e-6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("training: {base_lr: fast}", "base_lr"),
        ("loading: {batch_size: many}", "batch_size"),
        ("training: {steps: 0}", "steps"),
        ("training: {steps: -4}", "steps"),
        ("crops: {size: 32.5}", "size"),
        ("loading: {batch_sise: 8}", "did you mean 'batch_size'"),
        ("crop: {policy: scene}", "did you mean 'crops'"),
        ("batch_size: 8", "is an option of loading: write loading: {batch_size: VALUE}"),
        ("training: {batch_size: 8}", "is an option of loading"),
        ("crops: scene", "crops is 'scene', but it must be a table of options"),
        ("byol: {ema: 0.5}", "options of method byol, but its method is moco-v2"),
        ("zzzzzz: 8", "known are"),
        ("loading: {batch_size: 24}\nmoco-v2: {queue: 100}", "take 96"),
    ],
)
def test_wrong_values_are_named(tmp_path, text, word):
    with pytest.raises(UsageError, match=word) as caught:
        resolve(written(tmp_path, text), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just words"])
def test_files_that_are_no_recipe(tmp_path, text):
    with pytest.raises(ObjcropError, match=r"r\.yaml") as caught:
        resolve(written(tmp_path, text), {})
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match="moco-v2"):
        resolve("mocco", {})
