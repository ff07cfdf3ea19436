"""A checkpoint learns to classify: steps, rates, ranks and resuming are the loop's, figures are those of loops."""

import json
import subprocess

import numpy as np
import pytest
import torch
import yaml
from children import torchrun
from PIL import Image
from torchvision import models

import objcrop
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.option import options_of
from objcrop.report import recognised
from objcrop.ssl.evaluation.average_precision import average_precision
from objcrop.ssl.evaluation.frozen_features import features, frozen_backbone
from objcrop.ssl.export import export
from objcrop.ssl.networks.backbones import read_weights
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.transfer.by_name import TASKS
from objcrop.ssl.transfer.classification import Classification
from objcrop.ssl.transfer.confusion import confusion_of
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.origin import origin_of
from objcrop.ssl.transfer.preset import FOLDER, preset_names, with_preset
from objcrop.ssl.transfer.task_options import TASK_OPTIONS
from objcrop.ssl.transfer.transfer import TransferRun, transfer

SMALL = dict(size=32, batch_size=8, steps=6, lr=0.02, device="cpu", loader="torch", workers=0, log_every_steps=1)
NET = "untrained:timm/test_resnet"
COLOURS = ("red", "green", "blue")


def coloured(folder, n, labels=None):
    """Draw noise in which one channel (or several) is bright; the names of the channels are the labels."""
    rng = np.random.default_rng(n)
    folder.mkdir()
    labels = labels or [COLOURS[i % 3] for i in range(n)]
    for i, names in enumerate(labels):
        pixels = rng.integers(0, 120, (40, 52, 3))
        pixels[..., [COLOURS.index(name) for name in ([names] if isinstance(names, str) else names)]] += 110
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return Catalog.from_files([folder / f"{i:03d}.png" for i in range(n)], labels)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    root = tmp_path_factory.mktemp("colours")
    return coloured(root / "train", 24), coloured(root / "test", 12)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixtures")
    labels = [[COLOURS[i % 3]] if i % 2 else [COLOURS[i % 3], COLOURS[(i + 1) % 3]] for i in range(24)]
    return coloured(root / "train", 24, labels), coloured(root / "test", 12, labels[:12])


def learn(photos, output, **options):
    train, test = photos
    given = {**SMALL, **options}
    return transfer(given.pop("checkpoint", NET), "classification", train, test, output, **given)


def test_fine_tuning_tells_colours_apart(colours, tmp_path):
    found = learn(colours, tmp_path / "run", steps=24)
    assert found["top1"] > 0.6 and found["tested"] == 12 and found["step"] == 24
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == found
    assert recognised(tmp_path / "run")[0] == "Transfers"
    assert {f.name for f in (tmp_path / "run").iterdir()} >= {
        "last.pt",
        "recipe.yaml",
        "metrics.jsonl",
        "confusion.png",
    }
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recorded["task"] == "classification" and recorded["resolved"]["steps"] == 24


def test_figures_are_those_of_loops():
    truth, found = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 0, 2])
    counted = np.zeros((4, 4), int)
    for t, f in zip(truth.tolist(), found.tolist()):
        counted[t, f] += 1
    assert confusion_of(truth, found, 4).tolist() == counted.tolist()


def test_the_evaluation_measures_the_network_that_is_kept(mixtures, tmp_path):
    found = learn(mixtures, tmp_path / "run")
    task = Classification(Classification.options(**_options(size=32)), origin_of(NET, size=32), *mixtures)
    task.load_state_dict(load_checkpoint(tmp_path / "run" / "last.pt")["method"])
    scores, labels, _ = features(torch.nn.Sequential(task.backbone, task.classifier), mixtures[1], 32, backend="torch")
    mean, of_each = average_precision(scores, labels)
    assert found["map"] == pytest.approx(mean, abs=1e-9)
    assert list(found["per_class"].values()) == pytest.approx(of_each, abs=1e-9)
    assert (tmp_path / "run" / "average_precision.png").stat().st_size


def _options(**given):
    return {name: value for name, value in given.items() if name in options_of(Classification.options)}


def test_a_frozen_backbone_stays_as_it_is(colours, tmp_path):
    learn(colours, tmp_path / "run", freeze=True)
    kept, begun = load_checkpoint(tmp_path / "run" / "last.pt")["method"], origin_of(NET, size=32).network.state_dict()
    assert all(torch.equal(kept[f"backbone.{name}"], value) for name, value in begun.items())
    learn(colours, tmp_path / "all")
    tuned = load_checkpoint(tmp_path / "all" / "last.pt")["method"]
    assert not all(torch.equal(tuned[f"backbone.{name}"], value) for name, value in begun.items())


def test_steps_are_those_of_a_plain_loop(colours, tmp_path, monkeypatch):
    """The weights after two steps, by hand: SGD on cross-entropy of the same batches in the same network."""
    seen, step = [], TransferRun.take_step
    monkeypatch.setattr(TransferRun, "take_step", lambda run, batch: (seen.append(batch), step(run, batch))[1])
    learn(colours, tmp_path / "run", steps=2, momentum=0.5, weight_decay=0.01, milestones=(0.5, 1.0))
    torch.manual_seed(0)
    network = origin_of(NET, size=32).network.train()
    torch.manual_seed(0)
    classifier = torch.nn.Linear(network(seen[0].views[0]).shape[1], 3)
    network = origin_of(NET, size=32).network.train()
    weights = [*network.parameters(), *classifier.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for batch, rate in zip(seen, (0.02, 0.002)):
        loss = torch.nn.functional.cross_entropy(classifier(network(batch.views[0])), batch.labels.argmax(1))
        for w, g, v in zip(weights, torch.autograd.grad(loss, weights), velocity):
            v.mul_(0.5).add_(g + 0.01 * w.detach())
            w.data -= rate * v
    kept = load_checkpoint(tmp_path / "run" / "last.pt")["method"]
    torch.testing.assert_close(kept["classifier.weight"], classifier.weight.detach(), atol=1e-5, rtol=1e-4)


def test_a_broken_run_goes_on_as_if_nothing_had_happened(colours, tmp_path, monkeypatch):
    whole = learn(colours, tmp_path / "whole")
    step = TransferRun.take_step

    def breaks(run, batch):
        if run.step == 4:
            raise KeyboardInterrupt
        return step(run, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TransferRun, "take_step", breaks)
        learn(colours, tmp_path / "broken", checkpoint_every_steps=2)
    resumed = learn(colours, tmp_path / "broken", checkpoint_every_steps=2, resume=True)
    assert resumed == whole
    ends = [load_checkpoint(tmp_path / name / "last.pt")["method"] for name in ("whole", "broken")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    losses = [[line["loss"] for line in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("whole", "broken")]
    assert losses[0] == losses[1]
    with pytest.raises(UsageError, match="holds a run already"):
        learn(colours, tmp_path / "broken")
    with pytest.raises(ObjcropError, match="was trained with size=32, not 40"):
        learn(colours, tmp_path / "broken", size=40, resume=True)


def test_two_ranks_learn_what_one_process_learns(colours, tmp_path):
    """Frozen, so that BatchNorm, which sees half of the batch on each rank, plays no part."""
    for name, catalog in zip(("train", "test"), colours):
        catalog.save(tmp_path / f"{name}.arrow")
    flags = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    catalogs = ["--train", tmp_path / "train.arrow", "--test", tmp_path / "test.arrow", "-o", tmp_path / "two"]
    command = torchrun("-m", "objcrop", "transfer", NET, "--task", "classification", "--freeze", *catalogs, *flags)
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    one = learn(colours, tmp_path / "one", freeze=True)
    two = json.loads((tmp_path / "two" / "evaluation.json").read_text())
    assert run.stdout.count("evaluation.json") == 1 and one == two
    ends = [load_checkpoint(tmp_path / name / "last.pt")["method"] for name in ("one", "two")]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)


def test_a_bad_image_is_stepped_over(tmp_path):
    train, test = coloured(tmp_path / "train", 9), coloured(tmp_path / "test", 6)
    (tmp_path / "train" / "004.png").write_bytes(b"no image")
    (tmp_path / "test" / "002.png").write_bytes(b"no image")
    found = learn((train, test), tmp_path / "run", batch_size=3, max_bad=0.5)
    assert found["tested"] == 5 and (tmp_path / "run" / "bad_images.txt").read_text().startswith("004.png\t")


def test_weights_of_torchvision_and_of_ours_are_origins(colours, tmp_path):
    torch.manual_seed(3)
    network = models.resnet18()
    torch.save(network.state_dict(), tmp_path / "r18.pth")
    taken = origin_of(tmp_path / "r18.pth", "resnet18")
    assert taken.arch == "resnet18" and torch.equal(taken.network.conv1.weight, network.conv1.weight)
    with pytest.raises(ObjcropError, match=r"r18\.pth are of another network"):
        origin_of(tmp_path / "r18.pth")
    tiny = dict(method="byol", arch="timm/test_resnet", hidden=16, dim=8, **{**SMALL, "steps": 1})
    tiny.pop("lr")
    last = objcrop.pretrain(None, colours[0], None, tmp_path / "run", **tiny)
    ours = origin_of(last)
    assert (ours.arch, ours.size) == ("timm/test_resnet", 32)
    with pytest.raises(UsageError, match=r"arch \(resnet18\) cannot act here"):
        origin_of(last, "resnet18")
    with pytest.raises(ObjcropError, match=r"none\.pt"):
        origin_of(tmp_path / "none.pt")


def test_a_run_of_transfer_is_no_origin(colours, tmp_path):
    """Once an export of it held no weights, and said so in a number alone."""
    learn(colours, tmp_path / "run", steps=1)
    last = tmp_path / "run" / "last.pt"
    said = "last.pt is of a run of transfer, and a network for classification; name the last.pt of a run of pretrain"
    for use in (
        lambda: export(last, tmp_path / "w.pt", "torchvision"),
        lambda: frozen_backbone(last),
        lambda: read_weights(str(last)),
        lambda: learn(colours, tmp_path / "again", checkpoint=last),
    ):
        with pytest.raises(ObjcropError, match=said):
            use()


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        (dict(milestones=(0.5, 0.75)), [1, 1, 0.1, 0.01]),
        (dict(schedule="poly"), [1, 0.75**0.9, 0.5**0.9, 0.25**0.9]),
        (dict(schedule="cosine"), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_rates_fall(options, rates):
    made = Transfer(lr=1.0, **options)
    assert [made.rate(step, 4) for step in range(4)] == pytest.approx(rates)


def test_the_rate_rises_for_a_tenth_of_the_run_at_most():
    made = Transfer(lr=2.0, warmup_steps=100, warmup_factor=0.5, milestones=(1, 1))
    assert [made.rate(step, 40) for step in range(5)] == pytest.approx([1, 1.25, 1.5, 1.75, 2])


def test_each_task_has_its_options():
    assert {name: task.options for name, task in TASKS.items()} == TASK_OPTIONS


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_options_of_their_task(name):
    task = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["task"]
    TASKS[task].options.read(with_preset(name, task, TASKS[task].options, {}))


def test_flags_take_the_place_of_what_a_preset_says(tmp_path):
    options = TASKS["classification"].options
    assert with_preset("fine-tune", "classification", options, {"epochs": 3, "lr": None})["epochs"] == 3
    assert "steps" not in with_preset("fine-tune", "classification", options, {"epochs": 3})
    (tmp_path / "mine.yaml").write_text("task: classification\nlr: 0.5\n")
    assert with_preset(tmp_path / "mine.yaml", "classification", options, {}) == {"lr": 0.5}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("name, value", [("cache", "host"), ("decode", "whole"), ("decode_scaled", True)])
def test_ways_of_decoding_act_in_neither_of_these_tasks(task, name, value):
    options = TASKS[task].options
    with pytest.raises(UsageError, match=rf"{name} \('?{value}'?\) cannot act here"):
        options.read(with_preset(None, task, options, {name: value})).refuse_what_cpus_lack()


def test_wrong_use_is_said_in_a_sentence(colours, mixtures, tmp_path):
    (tmp_path / "odd.yaml").write_text("task: classification\nlearning: 1\n")
    (tmp_path / "none.yaml").write_text("just words\n")
    train, test = colours
    bare = Catalog.build(train.root, train.keys(), train.sizes)
    one = coloured(tmp_path / "one", 3, ["red"] * 3)
    fewer = coloured(tmp_path / "fewer", 4, ["red", "green"] * 2)
    wrong = [
        (UsageError, "task is 'tracking', but it must be one of", dict(task="tracking")),
        (UsageError, "preset is 'nope', but it must be one of", dict(preset="nope")),
        (UsageError, "'learning' is not an option of classification", dict(preset=tmp_path / "odd.yaml")),
        (ObjcropError, "must hold `task: NAME`", dict(preset=tmp_path / "none.yaml")),
        (UsageError, "'learning_rate' is not an option", dict(learning_rate=1)),
        (UsageError, "sync_bn .True. cannot act here", dict(sync_bn=True)),
        (ObjcropError, "has no labels to learn", dict(train=bare)),
        (UsageError, "one class only", dict(train=one, test=one)),
        (UsageError, "1 classes that are not learnt .*blue", dict(train=fewer)),
        (UsageError, "has 2 classes, but --single-label", dict(train=mixtures[0], single_label=True)),
        (UsageError, "batch_size is 64, but an epoch has only 24", dict(batch_size=64)),
    ]
    for kind, sentence, given in wrong:
        options = {"task": "classification", "train": train, "test": test, **SMALL, **given}
        with pytest.raises(kind, match=sentence):
            transfer(NET, output=tmp_path / "run", **options)
    assert not (tmp_path / "run" / "last.pt").exists()
