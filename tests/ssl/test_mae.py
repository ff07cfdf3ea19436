"""MAE against lightly's modules in whole float64 steps, its pieces against loops, and what it must not notice."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from PIL import Image
from torch import nn

from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.view_plan import ViewPlan, colour_decisions
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.evaluation.reconstructions import draw_reconstructions, reconstructed, views_of
from objcrop.ssl.export import export
from objcrop.ssl.methods.mae import MAE, masks, normalised, patches_of
from objcrop.ssl.methods.method import Batch, Data
from objcrop.ssl.networks.masked_vit import Decoder, encode_seen, sincos_positions, taken, vision_transformer
from objcrop.ssl.training.checkpoint import load_checkpoint, save_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import RunFolder, read_metrics
from objcrop.ssl.training.trainer import Run, pretrain, views_for

TINY = dict(method="mae", arch="timm/test_vit", size=64, batch_size=8, decoder_dim=64, decoder_depth=2)
ONE = Data(("scene",), heads_shared=True)
ON_DISK = {**TINY, "loader": "torch", "workers": 0, "log_every_steps": 1, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def labelled(photos):
    """The photos with one of two classes each."""
    catalog, _ = photos
    rows = range(len(catalog))
    facts = (catalog.root, catalog.keys(), catalog.sizes, catalog.orientations)
    return Catalog.build(*facts, classes=["a", "b"], label_rows=rows, label_classes=[row % 2 for row in rows])


def run_of(recipe, method):
    """A run at its first step, without loader and folder; an epoch is ten steps."""
    run = object.__new__(Run)
    run.recipe, run.device, run.step, run.total, run.batches, run.world = recipe, torch.device("cpu"), 0, 50, 10, 1
    run.method = run.model = method
    run.probe, run.optimiser, run.precision = None, run._optimiser(), "fp32"
    return run


def batch_of(views, samples):
    """What the loader hands out, as far as a step looks at it."""
    n = len(samples)
    windows = np.zeros((n, 1, 4), np.int32)
    colours = colour_decisions(samples, (Augment(),), seed=0, epoch=0)
    plan = ViewPlan(sample=samples, row=samples, box=samples, regions=windows, windows=windows, **colours)
    return SimpleNamespace(views=[views], labels=torch.zeros(n, 0), index=torch.arange(n), plan=plan, boxes=())


def views_at(step, n=8, size=64):
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def test_patches_by_loops():
    views = views_at(0, 2, 12)
    cut = patches_of(views, 4)
    assert cut.shape == (2, 9, 48)
    for n in range(2):
        for patch in range(9):
            top, left = patch // 3 * 4, patch % 3 * 4
            numbers = [views[n, c, top + p, left + q] for p in range(4) for q in range(4) for c in range(3)]
            assert cut[n, patch].tolist() == numbers
    torch.testing.assert_close(cut, utils.patchify(views, 4), rtol=0, atol=0)


def test_normalised_patches_by_loops():
    patches = views_at(1, 2, 4).reshape(2, 3, 16)
    for row, own in zip(patches.flatten(0, 1).tolist(), normalised(patches).flatten(0, 1).tolist()):
        mean = sum(row) / 16
        var = sum((x - mean) ** 2 for x in row) / 15
        assert own == pytest.approx([(x - mean) / (var + 1e-6) ** 0.5 for x in row], rel=1e-12)


def test_positions_by_loops():
    width, side = 24, 5
    ours = sincos_positions(side, width)
    for row in range(side):
        for column in range(side):
            expected = []
            for at in (column, row):
                turns = [at / 10000 ** (2 * i / (width / 2)) for i in range(width // 4)]
                expected += [*np.sin(turns), *np.cos(turns)]
            np.testing.assert_allclose(ours[row * side + column], expected, atol=1e-6)
    theirs = utils.get_2d_sine_cosine_positional_embedding(width, side)
    np.testing.assert_allclose(ours, theirs[1:], atol=1e-5)
    assert not theirs[0].any()


def test_masks_are_a_function_of_seed_step_and_sample():
    samples = np.array([3, 70, 8, 8])
    order = masks(1, 5, samples, 16)
    assert order.sort(1).values.tolist() == [list(range(16))] * 4 and order[2].equal(order[3])
    assert masks(1, 5, samples[::-1].copy(), 16).flip(0).equal(order)  # whoever stands beside it
    for other in (masks(2, 5, samples, 16), masks(1, 6, samples, 16), masks(1, 5, samples + 1, 16)):
        assert not other.equal(order)
    for sample, row in zip(samples, order.tolist()):
        drawn = uniforms(1, 5, int(sample), 0, "mask", 16).tolist()
        assert row == sorted(range(16), key=drawn.__getitem__)
    seen = masks(0, 0, np.arange(20_000), 16)[:, :4]
    share = torch.bincount(seen.flatten(), minlength=16) / 20_000
    np.testing.assert_allclose(share, 0.25, atol=0.015)  # 5 standard deviations


def test_what_it_begins_with():
    torch.manual_seed(0)
    network, width = vision_transformer("timm/test_vit", 64)
    assert width == 64 and not network.pos_embed.requires_grad and network.norm.eps == 1e-6
    torch.testing.assert_close(network.pos_embed[0], torch.cat([torch.zeros(1, 64), sincos_positions(4, 64)]))
    assert 0.01 < float(network.cls_token.detach().std()) < 0.03
    decoder = Decoder(64, 4, 1, 768, 64, 2)
    assert 0.01 < float(decoder.mask_token.detach().std()) < 0.03 and decoder.norm.eps == 1e-6
    assert decoder.blocks[0].attn.num_heads == 2
    linear = [(m.weight, m.bias) for part in (network, decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    linear.append((network.patch_embed.proj.weight.reshape(64, -1), torch.zeros(1)))
    for weight, bias in linear:
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.95 * bound < float(weight.detach().abs().max()) <= bound and not bias.detach().any()
    assert network.patch_embed.proj.bias.any()


class Theirs(nn.Module):
    """Lightly's example of the method, made of its modules."""

    def __init__(self, decoder_dim, depth):
        super().__init__()
        vit = timm.create_model("test_vit", num_classes=0, img_size=64)
        self.backbone = MaskedVisionTransformerTIMM(vit, weight_initialization="skip")
        self.embed = nn.Linear(64, decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(16, decoder_dim, depth, decoder_dim // 32)
        self.predict = nn.Linear(decoder_dim, 768)

    def take(self, ours):
        """Copy the weights."""
        self.backbone.vit.load_state_dict(ours.encoder.backbone.state_dict())
        for name in ("embed", "predict"):
            getattr(self, name).load_state_dict(getattr(ours.decoder, name).state_dict())
        self.decoder.blocks.load_state_dict(ours.decoder.blocks.state_dict())
        self.decoder.norm.load_state_dict(ours.decoder.norm.state_dict())
        self.decoder.mask_token.data.copy_(ours.decoder.mask_token)
        self.decoder.pos_embed.data[0, 1:].copy_(ours.decoder.positions)

    def forward(self, images, keep, hide, norm_pix):
        seen = self.embed(self.backbone.encode(images=images, idx_keep=keep))
        whole = utils.set_at_index(seen.new_zeros(len(images), 17, seen.shape[-1]), keep, seen)
        drawn = self.predict(utils.get_at_index(self.decoder(whole, idx_mask=hide), hide))
        wanted = utils.get_at_index(utils.patchify(images, 16), hide - 1)
        return nn.functional.mse_loss(drawn, utils.normalize_mean_var(wanted) if norm_pix else wanted)

    def by_our_names(self, held):
        """Tensors by the names that they have in ours."""
        named = {}
        for name, value in held.items():
            name = name.replace("backbone.vit.", "encoder.backbone.")
            ours = name if name.startswith(("encoder.", "decoder.")) else f"decoder.{name}"
            named[ours] = value
        return named


@pytest.mark.parametrize("norm_pix", [True, False])
def test_whole_steps_are_lightlys(norm_pix):
    steps = 5
    flags = dict(base_lr=0.05, warmup_epochs=0.2, steps=50, weight_decay=0.3, norm_pix=norm_pix, seed=7)
    recipe = resolve(None, {**TINY, **flags})
    torch.manual_seed(1)
    ours = MAE(recipe, ONE).double()
    theirs = Theirs(64, 2).double()
    theirs.take(ours)
    run = run_of(recipe, ours)
    trained = dict(theirs.named_parameters())
    trained = {n: p for n, p in trained.items() if p.requires_grad and n != "backbone.mask_token"}
    decayed = [p for n, p in trained.items() if not (p.ndim == 1 or n.endswith("bias"))]
    plain = [p for n, p in trained.items() if p.ndim == 1 or n.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    for step in range(steps):
        images, samples = views_at(step), np.arange(8) * 5 + step
        watched = run.take_step(batch_of(images, samples))
        keep, hide = [], []
        for sample in samples.tolist():
            drawn = uniforms(7, step, sample, 0, "mask", 16).tolist()
            order = sorted(range(16), key=drawn.__getitem__)
            keep.append([0, *(1 + patch for patch in order[:4])])  # theirs counts the CLS token
            hide.append([1 + patch for patch in order[4:]])
        peak, warmup = 0.05 * 8 / 256, 2  # a fifth of an epoch of 10 steps
        past = (step - warmup) / (50 - warmup)
        rate = peak * (step + 1) / warmup if step < warmup else peak * 0.5 * (1 + np.cos(np.pi * past))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss = theirs(images, torch.tensor(keep), torch.tensor(hide), norm_pix)
        loss.backward()
        optimiser.step()
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10)
        gradients = theirs.by_our_names({n: p.grad for n, p in trained.items()})
        weights = theirs.by_our_names({n: p.detach() for n, p in trained.items()})
        own = {n: p for n, p in ours.named_parameters() if p.requires_grad}
        assert own.keys() == weights.keys()
        for name, p in own.items():
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-10, atol=1e-10, msg=f"gradient {step} {name}")
            torch.testing.assert_close(p.detach(), weights[name], rtol=1e-10, atol=1e-10, msg=f"weight {step} {name}")
    assert run.step == steps


@pytest.mark.parametrize(
    ("norm_pix", "loss", "norm"),
    [(True, 1.252271630551666, 2.524552511411076), (False, 1.2598022851493826, 2.5254347456113715)],
)
def test_loss_and_gradient_are_those_of_the_authors_code(norm_pix, loss, norm):
    """The numbers are what facebookresearch/mae's models_mae.py gives for these weights, views and masks in float64."""
    mae = module(arch="timm/vit_tiny_patch16_224", norm_pix=norm_pix)
    with torch.no_grad():
        for i, (name, p) in enumerate(sorted(mae.named_parameters())):
            if p.requires_grad:
                wave = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 0.37 + i).view(p.shape)
                p.copy_(0.05 * wave + ("norm" in name and name.endswith("weight")))
    views = torch.sin(torch.arange(4 * 3 * 64 * 64, dtype=torch.float64) * 0.011).view(4, 3, 64, 64)
    views = views + torch.cos(torch.arange(64, dtype=torch.float64) * 0.3)
    order = torch.tensor([sorted(range(16), key=lambda j: (7 * j + 3 * n + j * j) % 97) for n in range(4)])
    output = output_of(mae, views, order)
    output.loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in mae.parameters() if p.grad is not None])
    assert float(output.loss.detach()) == pytest.approx(loss, rel=1e-10)
    assert float(gradient.norm()) == pytest.approx(norm, rel=1e-10)


def module(seed=0, **flags):
    torch.manual_seed(seed)
    return MAE(resolve(None, {**TINY, **flags}), ONE).double()


def output_of(mae, views, order):
    return mae(Batch((views,), torch.zeros(len(views), 0), torch.arange(len(views))), (order,), 0)


def test_the_encoder_does_not_notice_what_is_hidden():
    mae, order, views = module(), masks(0, 0, np.arange(8), 16), views_at(3)
    other = patches_of(views, 16).clone()
    hidden = order[:, mae.seen :]
    other.scatter_(1, hidden[..., None].expand(-1, -1, 768), torch.rand(8, 12, 768, dtype=torch.float64) * 9)
    back = other.view(8, 4, 4, 16, 16, 3).permute(0, 5, 1, 3, 2, 4).reshape(8, 3, 64, 64)
    (tokens, drawn), (as_before, drawn_as_before) = mae.drawn(back, order), mae.drawn(views, order)
    assert not torch.equal(back, views)
    torch.testing.assert_close(tokens, as_before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(drawn, drawn_as_before, rtol=1e-12, atol=1e-12)


def test_contrast_and_brightness_of_a_hidden_patch_are_not_asked_for():
    patches = views_at(4).reshape(8, 16, 768)
    torch.testing.assert_close(normalised(patches * 40 + 3), normalised(patches), rtol=1e-5, atol=1e-5)


def test_the_order_within_the_seen_and_the_hidden_says_nothing():
    mae, order, views = module(), masks(0, 0, np.arange(8), 16), views_at(3)
    shuffled = torch.cat([order[:, :4].flip(1), order[:, 4:].roll(3, 1)], 1)
    torch.testing.assert_close(
        output_of(mae, views, order).loss, output_of(mae, views, shuffled).loss, rtol=1e-12, atol=0
    )


def test_all_patches_seen_is_timms_own_forward():
    network, _ = vision_transformer("timm/test_vit", 64)
    views = views_at(2).float()
    order = torch.randperm(16).expand(8, 16)
    cls = encode_seen(network.eval(), views, order)[:, 0]
    torch.testing.assert_close(cls, network(views), rtol=1e-4, atol=1e-5)
    patches = patches_of(views, 16)
    torch.testing.assert_close(taken(patches, order), patches[:, order[0]], rtol=0, atol=0)


def test_drawing_it_right_costs_nothing():
    mae, order, views = module(norm_pix=False), masks(0, 0, np.arange(8), 16), views_at(5)

    class Right(nn.Module):
        def forward(self, tokens, order):
            return taken(patches_of(views, 16), order[:, 4:]) + 2.0

    mae.decoder = Right()
    assert float(output_of(mae, views, order).loss) == pytest.approx(4.0, rel=1e-12)


def test_biases_and_norms_are_not_decayed_and_tokens_are():
    mae = module()
    decayed, plain = (
        {name for name, p in mae.named_parameters() if any(p is q for q in group["params"])}
        for group in mae.parameter_groups()
    )
    assert {"encoder.backbone.cls_token", "decoder.mask_token", "decoder.predict.weight"} <= decayed
    assert {"encoder.backbone.norm.weight", "encoder.backbone.patch_embed.proj.bias"} <= plain
    assert {n for n, _ in mae.named_parameters()} - (decayed | plain) == {"encoder.backbone.pos_embed"}


def test_the_published_numbers():
    recipe = resolve("mae", {})
    assert recipe.arch == "timm/vit_base_patch16_224" and recipe.learning_rate == pytest.approx(2.4e-3)
    assert recipe.optimiser == "adamw" and recipe.betas == (0.9, 0.95) and recipe.weight_decay == 0.05
    assert (recipe.epochs, recipe.warmup_epochs, recipe.mask, recipe.norm_pix) == (800, 40, 0.75, True)
    assert recipe.scale == (0.2, 1.0) and recipe.augment == "mae" and len(recipe.policy.views) == 1
    assert (recipe.decoder_dim, recipe.decoder_depth) == (512, 8)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (dict(arch="resnet18"), "arch is 'resnet18', but mae hides patches of a plain Vision Transformer"),
        (dict(arch="timm/test_vit3"), "plain Vision Transformer with a CLS token"),
        (dict(arch="timm/vit_tiny_patch16_224", size=50), "patches of 16 px: take 48 or 64"),
        (dict(size=50), "does not take views of 50 px .*divisible by patch size"),
        (dict(size=16), "shows none of the 1 patches"),
        (dict(mask=1e-17), "shows all of the 16 patches"),
        (dict(mask=1), "mask is 1, but it must be a number above 0 and below 1"),
        (dict(decoder_dim=50), "decoder_dim is 50, but it must be a multiple of 32"),
        (dict(accumulate=3), "accumulate is 3, but it must cut the 8 rows"),
        (dict(accumulate=8), "into parts of 2 or more"),
        (dict(bn_groups=2), "bn_groups .*cannot act here: the method's networks have no BatchNorm"),
        (dict(crops="within-box"), "make 2 views, but mae takes 1: take scene or box[.]"),
    ],
)
def test_wrong_use(photos, tmp_path, flags, word):
    with pytest.raises(UsageError, match=word) as said:
        recipe = resolve(None, {**ON_DISK, "steps": 1, **flags})
        pretrain(recipe, photos[0], photos[1] if recipe.policy.needs_boxes else None, tmp_path / "run")
    assert "\n" not in str(said.value)


def test_another_methods_checkpoint_is_refused(labelled, tmp_path):
    flags = dict(steps=1, arch="timm/test_vit", size=64, batch_size=8, loader="torch", workers=0)
    pretrain(resolve(None, {**flags, "method": "supervised"}), labelled, None, tmp_path / "run")
    with pytest.raises(ObjcropError, match="was trained with method=supervised, not mae"):
        pretrain(resolve(None, {**ON_DISK, "steps": 2}), labelled, None, tmp_path / "run", resume=True)


def test_every_box_is_a_sample(photos, tmp_path):
    catalog, boxes = photos
    run = pretrain(resolve(None, {**ON_DISK, "crops": "box", "epochs": 1}), catalog, boxes, tmp_path / "run")
    samples = int(np.maximum(np.diff(boxes.offsets), 1).sum())
    assert load_checkpoint(run)["step"] == samples // 8 > len(catalog) // 8


def test_parts_of_a_step_are_the_step():
    runs = {parts: run_of(resolve(None, {**TINY, "accumulate": parts}), module(accumulate=parts)) for parts in (1, 4)}
    for step in range(3):
        losses = [float(r.take_step(batch_of(views_at(step), np.arange(8)))["loss"]) for r in runs.values()]
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for p, q in zip(*(run.method.parameters() for run in runs.values())):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def test_pixels_to_draw_are_exact_where_the_step_is_narrow(photos, tmp_path):
    """In bf16 a smooth patch would be its rounding alone: the views come in float32."""
    recipe = resolve(None, {**ON_DISK, "precision": "bf16", "steps": 2})
    with views_for(recipe, photos[0], None, tmp_path, torch.device("cpu")) as loader:
        batch = next(iter(loader))
        assert batch.views[0].dtype == torch.float32
        run = Run(recipe, loader, RunFolder(tmp_path / "run", False), loader.device, False)
        narrow = float(run.take_step(batch)["loss"])
        torch.manual_seed(0)
        wide = MAE(recipe, ONE)
        dealt = Batch(tuple(batch.views), batch.labels, batch.index, batch.plan)
        exact = float(wide(dealt, wide.targets(dealt, 0), 0).loss.detach())
    assert narrow == pytest.approx(exact, rel=0.02)


def test_probe_and_exports_hold_the_encoder(photos, tmp_path):
    last = pretrain(resolve(None, {**ON_DISK, "steps": 2}), photos[0], None, tmp_path / "run")
    network, size = frozen_backbone(last)
    weights = load_checkpoint(last)["method"]
    export(last, tmp_path / "vit.pt", "timm")
    theirs = timm.create_model("test_vit", num_classes=0, img_size=64)
    theirs.load_state_dict(torch.load(tmp_path / "vit.pt", weights_only=True))
    torch.testing.assert_close(theirs.pos_embed[0, 1:], sincos_positions(4, 64))
    views = views_at(0, 2).float()
    torch.testing.assert_close(theirs.eval()(views), network.eval()(views))
    torch.testing.assert_close(weights["encoder.backbone.cls_token"], theirs.cls_token)
    # A run that begins with these weights is given them whole.
    again, _ = vision_transformer("timm/test_vit", 64, str(tmp_path / "vit.pt"))
    assert all(value.equal(theirs.state_dict()[name]) for name, value in again.state_dict().items()) and size == 64


def test_views_are_put_together_again():
    views = views_at(1, 2, 12)
    assert torch.equal(views_of(patches_of(views, 4), 4), views)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_drawing_is_the_view_and_what_is_seen_is_a_quarter(norm_pix):
    mae, views = module(norm_pix=norm_pix), views_at(6)

    class Right(nn.Module):
        def forward(self, tokens, order):
            wanted = taken(patches_of(views, 16), order[:, 4:])
            return normalised(wanted) if norm_pix else wanted

    mae.decoder = Right()
    seen, drawn, wanted = reconstructed(mae, views, 3)
    torch.testing.assert_close(drawn, views, rtol=1e-10, atol=1e-10)
    assert torch.equal(wanted, views)
    shown = (patches_of(seen, 16) == patches_of(views, 16)).all(2)
    assert shown.sum(1).tolist() == [4] * 8 and not patches_of(seen, 16)[~shown].any()
    assert shown.equal(torch.zeros(8, 16).scatter(1, masks(3, 0, np.arange(8), 16)[:, :4], 1.0).bool())


def test_a_sheet_of_reconstructions(photos, tmp_path):
    last = pretrain(resolve(None, {**ON_DISK, "steps": 1}), photos[0], None, tmp_path / "run")
    draw_reconstructions(last, photos[0], tmp_path / "sheet.png", images=3)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == sheet.height and len(sheet.getcolors(2**24)) > 1000
    saved = load_checkpoint(last)
    saved["recipe"]["method"] = "moco-v2"
    save_checkpoint(tmp_path / "other.pt", saved)
    with pytest.raises(UsageError, match="trained by moco-v2, which draws nothing"):
        draw_reconstructions(tmp_path / "other.pt", photos[0], tmp_path / "sheet.png")


def test_it_learns_to_draw(labelled, tmp_path):
    flags = dict(steps=60, base_lr=0.05, augment="none", online_probe=True)
    pretrain(resolve(None, {**ON_DISK, **flags}), labelled, None, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert np.mean(loss[-6:]) < np.mean(loss[:6]) - 0.1 and lines[-1]["embedding_std"] > 0.02
    assert all(0 <= line["online_map"] <= 1 for line in lines)
