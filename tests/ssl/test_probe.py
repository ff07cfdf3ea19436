"""Probes against naive loops, closed forms and scikit-style definitions written out."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.evaluation import knn
from objcrop.ssl.evaluation.average_precision import (
    average_precision,
    average_precision_11_point,
    batchwise_map,
    judged_labels,
)
from objcrop.ssl.evaluation.fine_tune import RECIPE
from objcrop.ssl.evaluation.knn import neighbour_scores
from objcrop.ssl.evaluation.linear_probe import fit_linear, linear_scores
from objcrop.ssl.evaluation.linear_sgd import rate_at, sgd_linear_scores
from objcrop.ssl.evaluation.probe import probe
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.checkpoint import save_checkpoint
from objcrop.ssl.training.recipe import resolve


def by_rank(scores, labels):
    """Recall and precision after each image, best score first."""
    order = np.argsort(-scores)
    found, points = 0, []
    for place, i in enumerate(order, 1):
        found += labels[i] == 1
        points.append((found / (labels == 1).sum(), found / place, labels[i] == 1))
    return points


def test_average_precision_by_a_naive_loop():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 3)), (rng.random((40, 3)) < 0.3).astype(int)
    labels[:, 2] = 0  # a class that does not occur is left out
    expected = [np.mean([p for _, p, hit in by_rank(scores[:, c], labels[:, c]) if hit]) for c in range(2)]
    value, per_class = average_precision(torch.tensor(scores), torch.tensor(labels))
    assert value == pytest.approx(np.mean(expected), rel=1e-5) and np.isnan(per_class[2])


@pytest.mark.parametrize("positives", [1, 3, 10, 17])
def test_the_11_point_rule_by_a_naive_loop(positives):
    rng = np.random.default_rng(positives)
    scores, labels = rng.random(40), np.zeros(40, int)
    labels[rng.choice(40, positives, replace=False)] = 1
    points = by_rank(scores, labels)
    expected = np.mean([max(p for r, p, _ in points if r * positives >= t * positives / 10 - 1e-9) for t in range(11)])
    value, _ = average_precision_11_point(torch.tensor(scores)[:, None], torch.tensor(labels)[:, None])
    assert value == pytest.approx(expected)


def by_thresholds(scores, labels):
    """Recall and precision of the images that reach each score, as scikit-learn has them; 0 first."""
    points = [(0.0, 1.0)]
    for threshold in sorted(set(scores), reverse=True):
        reach = [label for score, label in zip(scores, labels) if score >= threshold]
        points.append((sum(reach) / sum(labels), sum(reach) / len(reach)))
    return points


@pytest.mark.parametrize("values", [3, 12, 1000])
def test_equal_scores_have_one_rank(values):
    rng = np.random.default_rng(values)
    scores, labels = rng.integers(0, values, 80) / 7.0, (rng.random(80) < 0.2).astype(int)
    points = by_thresholds(scores.tolist(), labels.tolist())
    mean = sum((r - before) * p for (before, _), (r, p) in itertools.pairwise(points))
    highest = [max(p for r, p in points[1:] if r >= tenth / 10 - 1e-9) for tenth in range(11)]
    for order in (np.arange(80), np.arange(80)[::-1], np.argsort(labels)):  # nor does the order of the images count
        s, y = torch.tensor(scores[order].copy())[:, None], torch.tensor(labels[order].copy())[:, None]
        assert average_precision(s, y)[0] == pytest.approx(mean, rel=1e-12)
        assert average_precision_11_point(s, y)[0] == pytest.approx(np.mean(highest), rel=1e-12)


@pytest.mark.parametrize("measure", [average_precision, average_precision_11_point])
def test_the_size_of_the_scores_says_nothing(measure):
    """A sigmoid, as some libraries put on scores outside 0..1, makes 1 of all scores above 17 in float32."""
    assert average_precision(
        torch.tensor([30.0, 40, 50, 20, 60])[:, None], torch.tensor([[1], [0], [1], [0], [0]])
    ) == (
        0.5,
        [0.5],
    )
    rng = np.random.default_rng(5)
    scores, labels = torch.tensor(rng.normal(size=(90, 4))), torch.tensor(rng.random((90, 4)) < 0.3).int()
    expected = measure(scores, labels)
    for mapped in (
        scores * 100,
        scores * 1e300,
        scores + 1e6,
        scores.exp(),
        -1 / scores.exp(),
        scores.argsort(0).argsort(0),
    ):
        assert measure(mapped, labels) == expected
    best, last = scores == scores.amax(0), scores == scores.amin(0)
    assert measure(torch.where(best, torch.inf, scores), labels) == expected
    for nothing in (-torch.inf, torch.nan):
        assert measure(torch.where(last, nothing, scores), labels) == expected
    constant = torch.zeros(90, 4)
    assert measure(constant, labels)[1] == pytest.approx(labels.double().mean(0).tolist())


@pytest.mark.parametrize("measure", [average_precision, average_precision_11_point])
def test_nothing_to_measure(measure):
    for images in (0, 5):
        value, per_class = measure(torch.rand(images, 2), torch.zeros(images, 2, dtype=torch.int8))
        assert np.isnan(value) and np.isnan(per_class).all()
    assert np.isnan(measure(torch.rand(3, 1), torch.full((3, 1), -1))[0])
    assert measure(torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16), torch.tensor([[1.0], [0.0]]))[0] == 1


@pytest.mark.parametrize("measure", [average_precision, average_precision_11_point])
def test_what_is_ignored_might_not_be_there(measure):
    rng = np.random.default_rng(3)
    scores, labels = torch.tensor(rng.random((50, 2))), torch.tensor((rng.random((50, 2)) < 0.4).astype(int))
    kept = torch.arange(50) % 5 != 0
    ignored = torch.where(kept[:, None], labels, -1)
    assert measure(scores, ignored)[1] == pytest.approx(measure(scores[kept], labels[kept])[1])


def test_only_difficult_objects_are_not_judged(tmp_path):
    (tmp_path / "a.jpg").touch()
    catalog = Catalog.build(
        tmp_path,
        ["a.jpg", "b.jpg", "c.jpg"],
        [(10, 10)] * 3,
        classes=["cat", "dog"],
        boxes=[(0, 0, 5, 5)] * 4,
        box_rows=[0, 1, 1, 1],
        box_classes=[0, 0, 0, 1],
        difficult=[True, True, False, True],
    )
    assert judged_labels(catalog, np.array([2, 1, 0])).tolist() == [[0, 0], [1, -1], [-1, 0]]


def test_the_linear_classifier_finds_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 10, generator=generator)
    y = (x[:, :3] > 0.4).float()
    weight, bias = fit_linear(x, y)
    assert average_precision(x @ weight + bias, y.int())[0] > 0.97
    noise = torch.randn(300, 10, generator=generator)
    assert abs(average_precision(noise @ weight + bias, y.int())[0] - float(y.mean())) < 0.12
    # At the optimum the gradient is none: mean over rows of (σ - y) x, plus the decay.
    slope = x.T @ (torch.sigmoid(x @ weight + bias) - y) / len(x) + 1e-3 * weight
    assert float(slope.abs().max()) < 1e-3


def test_single_label_is_softmax_regression():
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(120) % 4
    x = torch.nn.functional.one_hot(kind, 4).float() * 3 + torch.randn(120, 4, generator=generator)
    y = torch.nn.functional.one_hot(kind, 4).float()
    scores = linear_scores(x[:80] * 7 + 2, y[:80], x[80:] * 7 + 2, single=True)  # standardising undoes scale and offset
    torch.testing.assert_close(scores, linear_scores(x[:80], y[:80], x[80:], single=True), atol=0.02, rtol=0.02)
    assert float((scores.argmax(1) == kind[80:]).float().mean()) > 0.9


def test_noise_is_not_learnt_by_heart():
    """Features that say five things 400 times over, with noise, of 300 images: the weakest decay fits the noise."""
    generator = torch.Generator().manual_seed(0)
    told = torch.randn(900, 5, generator=generator)
    x = told @ torch.randn(5, 400, generator=generator) + 2 * torch.randn(900, 400, generator=generator)
    y = (told[:, :2] + torch.randn(900, 2, generator=generator) > 0).float()
    x = (x - x[:300].mean(0)) / x[:300].std(0)
    weight, bias = fit_linear(x[:300], y[:300])
    by_heart = average_precision(x[300:] @ weight + bias, y[300:].int())[0]
    assert average_precision(linear_scores(x[:300], y[:300], x[300:]), y[300:].int())[0] > by_heart + 0.03


def test_neighbours_by_a_naive_loop():
    rng = np.random.default_rng(0)
    x, y, x_test = rng.normal(size=(30, 5)), (rng.random((30, 3)) < 0.4).astype(float), rng.normal(size=(7, 5))
    expected = []
    for query in x_test:
        cosine = x @ query / np.linalg.norm(x, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-cosine)[:6]
        votes = np.exp(cosine[nearest] / 0.1)
        expected.append(votes @ y[nearest] / votes.sum())
    scores = neighbour_scores(*map(torch.tensor, (x, y, x_test)), k=6, temperature=0.1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert neighbour_scores(*map(torch.tensor, (x, y, x_test)), k=99).shape == (7, 3)


def test_of_equally_near_neighbours_the_first_vote():
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(size=(5, 64)), dtype=torch.float32).repeat(40, 1)  # each photo forty times
    y, x_test = torch.eye(200), torch.tensor(rng.normal(size=(9, 64)), dtype=torch.float32)
    together = neighbour_scores(x, y, x_test, k=7)
    nearest = (torch.nn.functional.normalize(x[:5]) @ x_test.T).argmax(0)
    for row, at in zip(together, nearest.tolist()):
        assert row.nonzero().flatten().tolist() == [at + 5 * copy for copy in range(7)]
    alone = torch.cat([neighbour_scores(x, y, one[None], k=7) for one in x_test])
    torch.testing.assert_close(together, alone)


class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that an operator makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_neighbours_take_no_more_memory_than_a_part_of_both_sets(monkeypatch):
    rng = np.random.default_rng(2)
    x, x_test = (torch.tensor(rng.integers(-2, 3, (n, 6)) + 0.5) for n in (500, 70))  # many equally near
    y = torch.tensor(rng.random((500, 3)) < 0.3).float()
    expected = neighbour_scores(x, y, x_test, k=9)
    monkeypatch.setattr(knn, "QUERIES", 16)
    monkeypatch.setattr(knn, "KNOWN", 32)
    with Largest() as largest:
        torch.testing.assert_close(neighbour_scores(x, y, x_test, k=9), expected, rtol=0, atol=1e-15)
    assert largest.numbers <= 16 * 32
    assert neighbour_scores(x[:40], y[:40], x_test, k=60).sum() > 0  # more neighbours than a part has


def test_the_map_of_batches_by_a_naive_loop():
    rng = np.random.default_rng(7)
    scores, labels = rng.normal(size=(70, 6)), (rng.random((70, 6)) < 0.04).astype(int)
    labels[32:48] = 0  # nothing in the third batch
    total = images = 0.0
    for begin in range(0, 70, 16):
        s, y = scores[begin : begin + 16], labels[begin : begin + 16]
        shown = [c for c in range(6) if y[:, c].any()]
        if shown:
            aps = [np.mean([p for _, p, hit in by_rank(s[:, c], y[:, c]) if hit]) for c in shown]
            total, images = total + np.mean(aps) * len(s), images + len(s)
    s, y = torch.tensor(scores), torch.tensor(labels)
    assert batchwise_map(s, y, 16) == pytest.approx(total / images, rel=1e-12)
    assert batchwise_map(100 * s, y, 16) == batchwise_map(s, y, 16)
    assert batchwise_map(s, y) == batchwise_map(s, y, 70) == average_precision(s, y)[0]
    assert np.isnan(batchwise_map(s, torch.zeros(70, 6, dtype=torch.int8)))


def test_batches_read_higher_than_the_set():
    """Of 40 classes as rare as OpenImages' some ten points, the scores being equally good (papers_check B10)."""
    rng = np.random.default_rng(0)
    labels = rng.random((4096, 40)) < 10 ** rng.uniform(-3, -1.5, 40)
    scores = torch.tensor(rng.normal(size=(4096, 40)) + 1.5 * labels)
    whole = average_precision(scores, torch.tensor(labels).int())[0]
    assert batchwise_map(scores, torch.tensor(labels).int()) > whole + 0.05


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from objcrop.formats import index
    from objcrop.sample_scenes import draw_scenes

    folder = tmp_path_factory.mktemp("scenes") / "s"
    draw_scenes(folder, 20)
    return index(folder, "scenes")[0]


def test_probe_of_an_untrained_network(scenes):
    result = probe("untrained:resnet18", scenes, scenes, size=32)
    assert result["train_images"] == 20 and result["linear_map"] > 0.9  # 512 features tell 20 images apart
    assert result["linear_map_11_point"] > 0.9 and result["chance_map"] < result["knn_map"] < 1
    assert result == probe("untrained:resnet18", scenes, scenes, size=32)


def test_fine_tuning_learns_what_it_is_shown(scenes):
    result = probe("untrained:timm/test_resnet", scenes, scenes, size=32, fine_tune=60)
    assert result["fine_tuned_map"] > result["chance_map"] + 0.1


def test_fine_tuning_sees_random_crops_and_their_mirror_images():
    recipe = resolve(None, RECIPE)
    assert recipe.crops == "scene" and recipe.augment == "flip" and recipe.scale == (0.08, 1.0)


def steps_by_numpy(batches, x_test, single, batch_norm, epochs, rate):
    """The released code's training of (x, y) batches, an epoch after the other, in NumPy; logits of x_test."""
    drawn = torch.randn(
        batches[0][0][1].shape[1], x_test.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    w, b = 0.01 * drawn.numpy(), 0.0
    vw, vb, mean, var = 0.0, 0.0, np.zeros(x_test.shape[1]), np.ones(x_test.shape[1])
    for epoch, of_epoch in enumerate(batches):
        step = rate * (0.1 if epoch >= 0.6 * epochs else 1) * (0.1 if epoch >= 0.8 * epochs else 1)
        for x, y in of_epoch:
            if batch_norm:
                mean = 0.9 * mean + 0.1 * x.mean(0)
                var = 0.9 * var + 0.1 * x.var(0, ddof=1)
                x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
            logits = x @ w.T + b
            if single:
                odds = np.exp(logits - logits.max(1, keepdims=True))
                slope = (odds / odds.sum(1, keepdims=True) - y) / len(y)
            else:
                slope = (1 / (1 + np.exp(-logits)) - y) / y.size
            vw, vb = 0.9 * vw + slope.T @ x, 0.9 * vb + slope.sum(0)
            w, b = w - step * vw, b - step * vb
    if batch_norm:
        x_test = (x_test - mean) / np.sqrt(var + 1e-6)
    return x_test @ w.T + b


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_the_released_codes_steps_by_numpy(scenes, single, batch_norm):
    torch.manual_seed(3)
    network, _ = backbone("timm/test_resnet", 32)
    network.eval()
    how = ProbeOptions(
        linear="sgd", linear_epochs=5, linear_lr=2.0, linear_batch_size=8, batch_norm=batch_norm, single_label=single
    )
    options = dict(crops="scene", scale=(0.08, 1), augment="flip", size=32, batch_size=8, drop_last=batch_norm)
    batches = []
    with load_views(scenes, **options) as loader, torch.no_grad():
        for _ in range(5):
            seen = [(network(batch.views[0]).double().numpy(), batch.labels.double().numpy()) for batch in loader]
            one = [np.eye(y.shape[1])[y.argmax(1)] for _, y in seen]
            batches.append([(x, hot if single else y) for (x, y), hot in zip(seen, one)])
    assert [len(x) for x, _ in batches[0]] == ([8, 8] if batch_norm else [8, 8, 4])
    x_test = torch.cat([torch.tensor(x) for x, _ in batches[0]]).float()
    expected = steps_by_numpy(batches, x_test.double().numpy(), single, batch_norm, 5, 2.0)
    scores = sgd_linear_scores(network, scenes, x_test, 32, how)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


def test_the_rate_of_the_released_code():
    rates = [rate_at(epoch, 100, 30.0) for epoch in range(100)]
    assert (
        rates[:60] == [30.0] * 60
        and rates[60:80] == pytest.approx([3.0] * 20)
        and rates[80:] == pytest.approx([0.3] * 20)
    )


def test_sgd_finds_what_is_linear(scenes):
    result = probe(
        "untrained:timm/test_resnet",
        scenes,
        scenes,
        size=32,
        linear="sgd",
        linear_epochs=40,
        linear_batch_size=20,
        batch_norm=True,
    )
    assert result["linear"] == "sgd" and result["linear_map"] > result["chance_map"] + 0.1
    assert result["linear_batchwise_map_256"] == result["linear_map"]  # 20 images are one batch


@pytest.mark.parametrize(
    ("method", "asked", "norm"), [("mae", None, True), ("mae", False, False), ("byol", None, False)]
)
def test_features_of_mae_are_normalised_before_the_classifier(scenes, tmp_path, monkeypatch, method, asked, norm):
    network, _ = backbone("timm/test_vit", 32)
    weights = {"encoder.backbone." + name: value for name, value in network.state_dict().items()}
    recipe = {"arch": "timm/test_vit", "size": 32, "method": method}
    save_checkpoint(tmp_path / "last.pt", {"step": 1, "method": weights, "recipe": recipe})
    told = []

    def scores(network, train, x_test, size, how):
        told.append(how.batch_norm)
        return torch.zeros(len(x_test), len(train.classes))

    monkeypatch.setattr("objcrop.ssl.evaluation.probe.sgd_linear_scores", scores)
    probe(tmp_path / "last.pt", scenes, scenes, linear="sgd", batch_norm=asked)
    assert told == [norm]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(linear_epochs=3), "linear_epochs .3. cannot act here: linear 'lbfgs' fits to the optimum"),
        (dict(batch_norm=True), "batch_norm .* cannot act here"),
        (dict(linear="adam"), "linear is 'adam', but it must be one of: lbfgs, sgd"),
        (dict(linear="sgd", linear_lr=0), "linear_lr is 0, but it must be a number above 0"),
        (dict(fine_tune=-1), "fine_tune is -1"),
        (dict(liner="sgd"), "'liner' is not an option: did you mean 'linear'"),
    ],
)
def test_options_that_cannot_act_are_refused(scenes, options, word):
    with pytest.raises(UsageError, match=word) as said:
        probe("untrained:resnet18", scenes, scenes, size=32, **options)
    assert "\n" not in str(said.value)


def test_single_label(scenes, photos):
    with pytest.raises(UsageError, match=r"000000?.*classes, but --single-label"):
        probe("untrained:resnet18", scenes, scenes, size=32, single_label=True)
    catalog, _ = photos
    n = len(catalog)
    one = Catalog.build(
        catalog.root,
        [catalog.path(row).split("/")[-1] for row in range(n)],
        catalog.sizes,
        catalog.orientations,
        classes=["a", "b", "c"],
        label_rows=range(n),
        label_classes=[row % 3 for row in range(n)],
    )
    result = probe("untrained:resnet18", one, one, size=32, single_label=True)
    assert result["linear_top1"] == 1 and result["chance_top1"] == pytest.approx(1 / 3, abs=1e-5)
    assert "linear_map" not in result


def test_a_class_absent_from_one_catalog_is_joined_by_name(photos):
    catalog, _ = photos
    n = len(catalog)

    def labelled(classes, ids):
        facts = (catalog.root, catalog.keys(), catalog.sizes, catalog.orientations)
        return Catalog.build(*facts, classes=classes, label_rows=range(n), label_classes=ids)

    whole = labelled(["a", "b", "c"], [row % 2 * 2 for row in range(n)])
    lacking = labelled(["c", "a"], [1 - row % 2 for row in range(n)])  # the same labels, other numbers
    for single, figure in ((True, "linear_top1"), (False, "linear_map")):
        same = probe("untrained:resnet18", whole, whole, size=32, single_label=single)
        for pair in ((whole, lacking), (lacking, whole)):
            result = probe("untrained:resnet18", *pair, size=32, single_label=single)
            assert result[figure] == pytest.approx(same[figure], abs=1e-3)


def test_wrong_use(scenes, photos, monkeypatch):
    with monkeypatch.context() as launched:
        launched.setenv("RANK", "1")
        launched.setenv("WORLD_SIZE", "2")
        with pytest.raises(UsageError, match="without torchrun"):
            probe("untrained:resnet18", scenes, scenes)
    with pytest.raises(ObjcropError, match="no labels"):
        probe("untrained:resnet18", photos[0], photos[0])
    with pytest.raises(UsageError, match="different classes"):
        probe("untrained:resnet18", scenes, photos[0])
