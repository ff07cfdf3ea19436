"""A table of the papers made anew: its rows, the plan of stages, what is done again when, and the pages."""

import csv
import json
import re
import subprocess
import sys

import pytest
import typer
from children import running, until
from html_page import Page

from objcrop.catalog import Catalog
from objcrop.cli import app, main
from objcrop.cli_options import assignments
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.recipe_rows import needed, rows
from objcrop.ssl.reproduction import stage as stages
from objcrop.ssl.reproduction.page import html_page, markdown
from objcrop.ssl.reproduction.plan import ASIDE, Plan
from objcrop.ssl.reproduction.reproduce import reproduce
from objcrop.ssl.reproduction.table import (
    TRANSFERS,
    published,
    table_names,
    table_of,
    transfers_of,
)
from objcrop.ssl.reproduction.tiny import tiny_data
from objcrop.ssl.training.recipe import acting, resolve
from objcrop.ssl.transfer.by_name import TASKS
from objcrop.ssl.transfer.preset import with_preset

NUMBERED = [row for row in rows() if row.table.isdigit()]


def planned(name, data, folder, only=(), tiny=True, **options):
    options = {"pretraining": {}, "transfer": {}, "weights": None, **options}
    return Plan(table_of(name, only), data, folder, tiny=tiny, **options)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tiny_data(["coco", "cub", "cub-test"], ["cub", "cub-test"], ["cub-test"], tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def in_this_process(monkeypatch):
    """Run stages without a process each, which would load PyTorch anew; the list holds what was run."""
    ran = []

    def run(command, log):
        words = command[command.index("objcrop") + 1 :]
        ran.append(words)
        with pytest.MonkeyPatch.context() as patch:
            sentences = []
            patch.setattr("objcrop.cli_errors.say", lambda sentence, style: sentences.append(sentence))
            try:
                main(words)
            except SystemExit:
                return sentences[-1].removeprefix("objcrop: ")
        return None

    monkeypatch.setattr(stages, "_run", run)
    in_turn = lambda left, at_once, begins: stages.run_in_turn(left, (), begins)  # noqa: E731
    monkeypatch.setattr("objcrop.ssl.reproduction.reproduce.run_together", in_turn)
    return ran


def test_every_printed_number_is_read():
    for row in NUMBERED:
        numbers = re.findall(r"(?<![\w.])\d+\.\d+", row.published)
        assert list(published(row).values()) == list(map(float, numbers)) and numbers, row


def test_transfers_are_of_rows_tasks_presets_and_data_that_there_are():
    with TRANSFERS.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        fit = [r for r in NUMBERED if (r.paper, r.table) == (line["paper"], line["table"]) and line["rows"] in r.row]
        assert fit and line["train"] in needed("data") and line["test"] in needed("data")
        of_task = [transfer for row in fit for transfer in transfers_of(row) if transfer.task == line["task"]]
        assert any(transfer[3:] == (line["train"], line["test"]) for transfer in of_task)
        words = {word for row in fit for word in published(row)}
        assert words & set(of_task[0].figures), "it measures nothing that is printed"
        if line["task"] != "probe":
            options = TASKS[line["task"]].options
            options.read(with_preset(line["preset"], line["task"], options, of_task[0].options))


def test_every_printed_number_is_measured_but_objectness():
    """That is of boxes, which `stats` measures."""
    for row in (row for row in NUMBERED if row.trained):
        assert published(row).keys() - {w for each in transfers_of(row) for w in each.figures} <= {"objectness"}, row
    assert len(table_names()) == 13 + 15


@pytest.mark.parametrize(
    ("name", "tiny"),
    [
        *((name, False) for name in table_names()),
        *((name, True) for name in ("oac-table1", "oac-table12", "cib-table5", "cib-table6", "cib-table8")),
    ],
)
def test_every_table_has_a_plan_whose_commands_say_what_is_recorded(name, tiny, tmp_path):
    plan = planned(name, {}, tmp_path, tiny=tiny)
    assert plan.wrong and all(sentence.count("objcrop index") for sentence in plan.wrong)
    commands = typer.main.get_command(app)
    seen = set()
    for stage in plan.stages.values():
        assert {before.folder for before in stage.after} <= seen, "a stage comes before one that it needs"
        seen.add(stage.folder)
        stage.folder.mkdir(parents=True)  # the look at an output wants its folder
        word, *rest = stage.command
        given = commands.get_command(None, word).make_context(word, rest).params
        if word == "pretrain":
            read = acting(resolve(given["recipe"], assignments(given["set_"])))
        elif word == "transfer":
            group = TASKS[given["task"]].options
            told = {name: value for name, value in given.items() if name in group.__dataclass_fields__}
            read = acting(group.read(with_preset(given["preset"], given["task"], group, told)))
        else:
            continue
        read = {option: value for option, value in read.items() if option not in ASIDE}
        assert json.loads(json.dumps(read)) == stage.made_from["options"], stage.command
    for row in plan.rows:
        assert row.left_out or {word for t, _ in row.transfers for word in t.figures} & set(published(row.row))


def test_what_changes_is_made_again_and_what_follows(scenes, tmp_path):
    def folders(data=scenes, **options):
        plan = planned("cib-table7", data, tmp_path, ["CUB"], **options)
        assert not plan.wrong
        return {stage.name: stage.folder.name for stage in plan.stages.values()}

    before = folders()
    changed = lambda after: {name for name in before if before[name] != after[name]}  # noqa: E731
    assert len(before) == 6 and not changed(folders())
    assert not changed(folders(pretraining={"threads": 1, "device": "cpu"}, transfer={"prefetch": 3}))
    assert changed(folders(pretraining={"dim": 8})) == set(before)
    assert changed(folders(pretraining={"queue": 16})) == {
        *("cib-table3-moco-v2-image", "boxes-anchors-coco-coco", "cib-table3-byol-our"),
        "cib-table3-byol-our-classification-cub",
    }
    transfers = {name for name in before if "classification" in name}
    assert changed(folders(transfer={"lr": 0.5})) == transfers
    # The same images, one of which has another class.
    catalog = Catalog.load(scenes["cub"])
    labels = [catalog.classes[c] for c in catalog.label_matrix(range(len(catalog))).argmax(1)]
    labels[0] = next(name for name in catalog.classes if name != labels[0])
    other = Catalog.from_files([catalog.path(row) for row in range(len(catalog))], labels)
    assert other.fingerprint == catalog.fingerprint
    other.save(tmp_path / "other.arrow")
    assert changed(folders({**scenes, "cub": str(tmp_path / "other.arrow")})) == transfers
    catalog.save(tmp_path / "moved.arrow")
    assert not changed(folders({**scenes, "cub": str(tmp_path / "moved.arrow")}))


def test_a_table_in_miniature_a_row_that_fails_and_again(tmp_path, in_this_process, monkeypatch, capsys):
    work, run = tmp_path / "work", stages._run
    broken = lambda command, log: "the disk is full." if "propose" in command else run(command, log)  # noqa: E731
    monkeypatch.setattr(stages, "_run", broken)
    words = ["reproduce", "cib-table7", "--only", "CUB", "--tiny", "--output", str(work)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1 and "1 of 2 rows failed (CUB, BYOL, our)" in capsys.readouterr().err
    first, second = json.loads((work / "cib-table7.json").read_text())["rows"]
    assert first["state"] == "done" and first["published"] == {"top-1": 74.0} and 0 <= first["ours"]["top-1"] <= 100
    assert (second["state"], second["why"], second["ours"]) == ("failed", "boxes: the disk is full.", {})
    assert [words[0] for words in in_this_process] == ["pretrain", "transfer", "pretrain"]

    monkeypatch.setattr(stages, "_run", run)
    main(words)
    assert [words[0] for words in in_this_process[3:]] == ["propose", "pretrain", "transfer"]
    result = json.loads((work / "cib-table7.json").read_text())
    assert [row["state"] for row in result["rows"]] == ["done", "done"]
    evaluated = json.loads((tmp_path / result["rows"][1]["measured"][0] / "evaluation.json").read_text())
    assert result["rows"][1]["ours"] == {"top-1": round(100 * evaluated["top1"], 2)}
    main(words)
    assert len(in_this_process) == 6, "what is done was done again"
    main([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert said.count(": done\n") == 6 and "to do" not in said
    assert "| CUB, BYOL, our | 75.4 | " in (work / "cib-table7.md").read_text()
    assert (work / "cib-table7.html").read_text().count("data:image/png;base64,") == 4  # numbers, losses, 2 confusions


RESULT = {
    "title": "OAC, <Table> 6",
    "tiny": False,
    "objcrop": "0",
    "data": {"coco": {"says": "a & b", "file": "x|y.arrow", "images": 118287}},
    "stages": [{"kind": "pretrain", "folder": "f", "command": "objcrop pretrain --set 'a=<b>'", "seconds": 7200}],
    "rows": [
        {"row": "δ < 0.1", "published": {"AP50": 81.0}, "ours": {}, "state": "failed", "why": "a | b <c>"}
        | {"run": None, "measured": []}
    ],
}


def test_pages_hold_whatever_a_name_holds():
    page = Page(html_page(RESULT))
    for words in ("OAC, <Table> 6", "δ < 0.1", "failed: a | b <c>", "a & b", "'a=<b>'", "118,287", "2.0 hours"):
        assert words in page.text
    lines = markdown(RESULT).splitlines()
    assert "| δ < 0.1 | 81.0 |  | failed: a \\| b <c> |" in lines
    assert "| coco | 118,287 | `x\\|y.arrow` | a & b |" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["oac-table99"], "no table of the two papers; take one of: oac-table1,"),
        (["cib-table7", "--only", "Zebras"], "no row of cib-table7 holds"),
        (["cib-table7", "--data", "coco"], "--data takes NAME=CATALOG"),
        (["cib-table7", "--data", "voc07=x.arrow"], "data is 'voc07', but it must be one of: coco, cub,"),
        (["cib-table7", "--data", "coco=missing.arrow"], "missing.arrow"),
        (["cib-table7", "--only", "CUB"], "needs cub-test (CUB-200-2011 test, 5,794 images): give --data cub-test=C"),
        (
            ["cib-table7", "--set", "quue=3", "--dry-run"],
            "'quue' acts in no pretraining of cib-table7: mend its name, or leave it out",
        ),
        (["cib-table7", "--set-transfer", "linear_lr=3", "--dry-run"], "'linear_lr' acts in no transfer of cib-table7"),
        (
            ["oac-table3", "--only", "scene-scene", "--set", "dilate=0.3", "--dry-run"],
            "'dilate' acts in no pretraining",
        ),
        (["cib-table7", "--tiny", "--data", "coco=x.arrow"], "in miniature scenes are drawn"),
    ],
)
def test_wrong_use(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *words, "--output", str(tmp_path / "out")])
    error = " ".join(capsys.readouterr().err.split())
    assert ended.value.code in (1, 2) and said in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("table", "data", "said"),
    [
        (
            "cib-table6",
            {"cityscapes": "cub"},
            "cityscapes, X, has not the masks that segmentation learns; make it by `o",
        ),
        ("cib-table6", {"voc0712": "cub"}, "voc0712, X, has not the boxes that detectors learn; make it by `objcrop i"),
        ("cib-table7", {"cub": "coco"}, "cub, X, has not the one class an image that top-1 is of; make it by `objcro"),
        (
            "oac-table3",
            {"openimages-subset": "bare"},
            "openimages-subset, X, has not the labels that classifiers learn",
        ),
        ("cib-table7", {"cub": "cub", "cub-test": "other"}, "has 1 classes that are not learnt from that of"),
    ],
)
def test_data_that_do_not_fit_are_told_before_any_work(scenes, tmp_path, table, data, said):
    catalog = Catalog.load(scenes["cub-test"])
    files = [catalog.path(row) for row in range(len(catalog))]
    Catalog.from_files(files).save(tmp_path / "bare.arrow")
    Catalog.from_files(files, ["zebra"] * len(files)).save(tmp_path / "other.arrow")
    there = {**scenes, "bare": str(tmp_path / "bare.arrow"), "other": str(tmp_path / "other.arrow")}
    with pytest.raises(ObjcropError) as error:
        reproduce(table, {name: there[which] for name, which in data.items()}, tmp_path / "out")
    assert said.replace("X", there[next(iter(data.values()))]) in str(error.value) and not (tmp_path / "out").exists()


def test_rows_that_begin_with_other_weights(tmp_path):
    (tmp_path / "resnet50.pth").write_bytes(b"weights")
    rows = planned("oac-table4", {}, tmp_path, ["Supervised", "MoCo"], weights=str(tmp_path / "resnet50.pth")).rows
    by_name = {each.row.row: each for each in rows}
    (_, untrained), *_ = by_name["Supervised, random weights"].transfers
    (_, supervised), *_ = by_name["Supervised, ImageNet"].transfers
    assert untrained.command[:2] == ["transfer", "untrained:timm/test_resnet"] and not untrained.after
    assert supervised.command[:2] == ["transfer", str(tmp_path / "resnet50.pth")]
    (tmp_path / "resnet50.pth").write_bytes(b"others")
    again = planned("oac-table4", {}, tmp_path, ["ImageNet"], weights=str(tmp_path / "resnet50.pth")).rows
    assert again[0].transfers[0][1].folder != supervised.folder
    without = {each.row.row: each.left_out for each in planned("oac-table4", {}, tmp_path).rows}
    assert without["Supervised, ImageNet"] and without["Self-EMD"] == "quoted from elsewhere" and not without["BYOL"]
    longer = {each.row.row: each.transfers[0][0].preset for each in rows if "180k" in each.row.row}
    assert longer == {"MoCo-v2, obj-obj+dilate, 180k steps": "mask-rcnn-fpn-coco-180k"}


def test_an_option_that_rows_try_values_of_is_refused(tmp_path):
    with pytest.raises(UsageError, match="scale is what rows of oac-table2 try values of"):
        planned("oac-table2", {}, tmp_path, pretraining={"scale": [0.1, 1.0]})


def test_a_command_is_heard_and_its_end_is_a_sentence(tmp_path, capsys):
    def ended(code):
        return stages._run([sys.executable, "-c", code], tmp_path / "log.txt")

    assert ended("print('step 1')") is None
    assert ended("print('objcrop: no.'); print('more'); raise SystemExit(1)") == "no."
    assert re.fullmatch(r"the command killed by SIGKILL; .*log\.txt\.", ended("import os; os.kill(os.getpid(), 9)"))
    assert ended("raise SystemExit(3)").startswith("the command ended with exit code 3; its last words")
    assert "step 1" in capsys.readouterr().out and "more" in (tmp_path / "log.txt").read_text()


def test_a_command_ends_with_the_process_that_started_it(tmp_path):
    inner = "import signal, pathlib, sys\nsignal.signal(15, lambda *_: (pathlib.Path('saved').touch(), sys.exit(1)))\n"
    inner += "pathlib.Path('begun').touch()\nwhile True: signal.pause()"
    outer = "import sys, pathlib\nfrom objcrop.ssl.reproduction.stage import _run\n"
    outer += f"_run([sys.executable, '-c', {inner!r}], pathlib.Path('log.txt'))"
    with running([sys.executable, "-c", outer], cwd=tmp_path) as child:
        until(lambda: (tmp_path / "begun").exists(), child)
        child.terminate()
        assert child.wait() == 143 and (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oac-table3", "cib-table6"])
def test_whole_tables_in_miniature(name, tmp_path):
    subprocess.run([sys.executable, "-m", "objcrop", "reproduce", name, "--tiny", "-o", str(tmp_path)], check=True)
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert {row["state"] for row in result["rows"]} <= {"done", "left out"}
    assert all(row["ours"] for row in result["rows"] if row["state"] == "done")
