"""What a recipe file and flags may say, and which wins."""

import pytest
import yaml

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.recipe import FOLDER, Recipe, as_dict, resolve


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe = resolve(written(tmp_path, "dim: 64\nema: 0.5\nshift: [10, 20]\n"), {"ema": 0.9})
    assert (recipe.dim, recipe.ema, recipe.shift, recipe.arch) == (64, 0.9, (10, 20), Recipe().arch)
    assert resolve(None, {**as_dict(recipe)}) == recipe
    assert resolve(written(tmp_path, ""), {}) == Recipe()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_numbers_of_shipped_recipes_are_numbers(name):
    recipe = resolve(name, {})
    assert all(type(getattr(recipe, field)) is float for field in ("base_lr", "weight_decay", "ema", "dilate"))


# Each published row that this version can train, and the paper's number.
ROWS = {
    "oac-table1-supervised": "66.3",
    "oac-table3-moco-v2-scene-scene": "49.8",
    "oac-table3-byol-scene-scene": "50.2",
    "oac-table3-moco-v2-gt-obj-scene": "58.9",
    "oac-table3-moco-v2-gt-obj-obj-dilate": "60.2",
    "oac-table3-moco-v2-unsupervised-obj-scene": "58.0",
    "oac-table3-moco-v2-edge-boxes-obj-scene": "57.1",
    "oac-table3-moco-v2-bing-obj-scene": "58.1",
    "oac-table3-byol-bing-obj-scene": "58.5",
    "oac-table3-moco-v2-bing-obj-obj-dilate": "58.6",
    "oac-table3-byol-bing-obj-obj-dilate": "59.1",
    "oac-text-moco-v2-bing-obj-obj-shift": "54.1",
    "cib-table1-byol-image": "39.8",
    "cib-table1-byol-gt": "33.1",
    "cib-table1-byol-grid": "41.6",
    "cib-table1-moco-v2-image": "26.9",
    "cib-table1-moco-v2-gt": "28.7",
    "cib-table1-moco-v2-grid": "37.2",
}


def test_there_is_a_recipe_a_row():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*ROWS, "moco-v2", "byol"}


@pytest.mark.parametrize("name", ROWS)
def test_recipes_of_rows_hold_differences_and_what_the_papers_say(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    comment, said = text.split("method:")[0], yaml.safe_load(text)
    assert f"mAP {ROWS[name]}" in comment
    recipe = resolve(name, {})
    bare = resolve(None, {"method": said["method"]})
    told = {key: value for key, value in said.items() if key != "method"}
    assert all(getattr(recipe, key) != getattr(bare, key) for key in told if key != "hidden"), "a default is repeated"
    assert (recipe.arch, recipe.size, recipe.batch_size) == ("resnet50", 224, 256)
    assert recipe.epochs == (90 if recipe.method == "supervised" else 800 if "cib" in name else 200)
    if recipe.method == "moco-v2":
        assert recipe.learning_rate == (0.3 if "cib" in name else 0.03)
        assert (recipe.temperature, recipe.dim, recipe.queue, recipe.ema, recipe.weight_decay) == (
            *(0.2, 128, 65536, 0.999),
            1e-4,
        )
        assert recipe.virtual_devices == (1 if "cib" in name else 8)
    if recipe.method == "byol":
        assert recipe.ema == (0.99 if "cib" in name else 0.996) and recipe.optimiser == "lars"
    if "dilate" in name:
        assert recipe.dilate == 0.2
    assert (recipe.crops == "within-box") == (("-gt" in name and "cib" in name) or "grid" in name)


def test_rates_without_a_point_are_numbers_too(tmp_path):
    recipe = resolve(written(tmp_path, "base_lr: 1e-2\nweight_decay: 1e-6\n"), {})  # YAML 1.1 reads 1e-2 as text
    assert recipe.learning_rate == pytest.approx(0.01) and recipe.weight_decay == 1e-6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("base_lr: fast", "base_lr"),
        ("batch_size: many", "batch_size"),
        ("steps: 0", "steps"),
        ("steps: -4", "steps"),
        ("size: 32.5", "size"),
        ("batch_sise: 8", "did you mean 'batch_size'"),
        ("zzzzzz: 8", "known are"),
        ("batch_size: 24\nqueue: 100", "take 96"),
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
