"""Optimizers and schedules against PyTorch's own, with and without the released code's quirks."""

import warnings

import pytest
import torch

from experiments.papers.transfer import authors
from fedrobust.ensemble.assignment import fits
from fedrobust.ensemble.practice import OURS, Progress, rate_and_momentum
from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import NodeSettings
from fedrobust.spec import SpecError
from fedrobust.training.augment import AUGMENTATIONS, apply, draw
from fedrobust.training.optimizers import OPTIMIZERS, build_optimizer
from fedrobust.training.schedules import SCHEDULES, lr_at

EPOCHS, BATCHES, LR = 200, 7, 0.1


def reference(make, *, each_batch=False, losses=None, momentum=0.9):
    """Rates (and momenta) at each epoch's start, from PyTorch's scheduler itself."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR, momentum=momentum)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(optimizer)
        rates, momenta = [], []
        for epoch in range(EPOCHS):
            rates.append(optimizer.param_groups[0]["lr"])
            momenta.append(optimizer.param_groups[0]["momentum"])
            optimizer.step()
            for _ in range(BATCHES if each_batch else 1):
                scheduler.step(*([losses[epoch]] if losses else []))
    return torch.tensor(rates), torch.tensor(momenta)


def now(epoch, *, images=10 * BATCHES, batch_size=10, losses=()):
    return Progress(epoch, 0, EPOCHS, BATCHES, images, batch_size, losses)


def ours(name, value=0.0, *, rate=rate_and_momentum, losses=(), **more):
    node = NodeSettings("cnn", "sgd_m", LR, 0.9, 0.0, name, value)
    rates = [rate(node, now(e, losses=losses[:e], **more))[0] for e in range(EPOCHS)]
    return torch.tensor(rates)


S = torch.optim.lr_scheduler


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_step_decays_with_a_whole_step_and_never_with_the_released_codes():
    same(ours("step", 19), reference(lambda o: S.StepLR(o, 19))[0])
    assert len(set(ours("step", 19).tolist())) == 11
    assert len(set(ours("step", 18.528, rate=authors.rate).tolist())) == 1
    same(ours("step", 18.528, rate=authors.rate), reference(lambda o: S.StepLR(o, 18.528))[0])
    same(ours("step", 18.528), ours("step", 19))


def test_exponential():
    same(ours("exponential", 0.914579), reference(lambda o: S.ExponentialLR(o, 0.914579))[0])


def test_cosine_moves_each_step_and_rises_again_only_with_quirks():
    period = 17 * BATCHES
    torchs = reference(lambda o: S.CosineAnnealingLR(o, period), each_batch=True)[0]
    same(ours("cosine", 17, rate=authors.rate), torchs)
    correct = ours("cosine", 17)
    same(correct[:17], torchs[:17])
    assert bool((correct[17:] < 1e-9).all())
    whole = ours("cosine")
    assert bool((whole.diff() < 0).all()) and float(whole[-1]) < 1e-4


def test_cosine_with_quirks_takes_a_broken_number_of_steps():
    quotient = 27 / 4
    torchs = reference(lambda o: S.CosineAnnealingLR(o, 17 * quotient), each_batch=True)[0]
    same(ours("cosine", 17, rate=authors.rate, images=27, batch_size=4), torchs)


def test_plateau_follows_the_training_loss():
    losses = [1 / (1 + e) if e < 30 else 0.05 + 0.001 * (e % 3) for e in range(EPOCHS)]
    torchs = reference(lambda o: S.ReduceLROnPlateau(o), losses=losses)[0]
    same(ours("plateau", losses=losses)[:120], torchs[:120])  # below 1e-8 PyTorch stops
    assert lr_at(0, lr=1.0, schedule="plateau", losses=[1.0] * 12) == pytest.approx(0.1)
    assert lr_at(0, lr=1.0, schedule="plateau", losses=[1.0] * 11) == 1.0
    with pytest.raises(SpecError, match="needs the parameter 'losses'"):
        lr_at(0, lr=1.0, schedule="plateau")


def test_the_cycle_is_one_triangle_and_with_quirks_a_slow_climb():
    slow, momenta = reference(lambda o: S.CyclicLR(o, LR, 10 * LR, step_size_up=2000))
    same(ours("cyclic", rate=authors.rate), slow)
    assert float(slow[-1]) < 2 * LR
    plain = NodeSettings("cnn", "sgd", LR, 0.0, 0.0, "cyclic")
    same(torch.tensor([authors.rate(plain, now(e))[1] for e in range(EPOCHS)]), momenta)
    half = EPOCHS * BATCHES // 2
    torchs = reference(
        lambda o: S.CyclicLR(o, LR, 10 * LR, step_size_up=half, cycle_momentum=False),
        each_batch=True,
    )[0]
    same(ours("cyclic"), torchs)
    assert rate_and_momentum(plain, now(50))[1] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_quadratic(name):
    w = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    step = build_optimizer(name, [w], lr=0.05, momentum=0.5, weight_decay=1e-3)
    group = step.param_groups[0]
    assert group.get("nesterov", False) == (name == "sgd_n")
    if "momentum" in group:
        assert group["momentum"] == 0.5
    for _ in range(40):
        step.zero_grad()
        (w**2).sum().backward()
        step.step()
    assert float((w**2).sum().detach()) < 13


def test_what_does_not_fit_is_refused():
    assert len(OPTIMIZERS) == 10 and len(SCHEDULES) == 7
    with pytest.raises(SpecError, match="did you mean 'rmsprop'"):
        build_optimizer("rmsprob", [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(SpecError, match="sgd_n needs a positive momentum"):
        build_optimizer("sgd_n", [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    capable = ["sgd", "sgd_m", "sgd_n", "rmsprop"]
    assert [n for n in OPTIMIZERS if fits(n, "cyclic")] == capable
    assert all(fits(n, "cosine") for n in OPTIMIZERS)


@pytest.mark.parametrize("name", ["none", *AUGMENTATIONS, "flip+crop", "crop+paper"])
def test_views_keep_shape_range_and_seed(name):
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    kept = images.clone()
    draws, again = (draw(name, 6, torch.Generator().manual_seed(3)) for _ in "ab")
    view = pixels(apply(images, name, draws))
    assert view.shape == images.shape and torch.equal(view, pixels(apply(images, name, again)))
    assert torch.equal(images, kept)
    assert float(view.min()) >= 0 and float(view.max()) <= 1
    assert torch.equal(view, pixels(images)) == (name == "none")


def test_a_view_is_the_same_alone_and_among_others():
    """The cohort engine augments all clients' images at once."""
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    for name in AUGMENTATIONS:
        draws = draw(name, 6, torch.Generator().manual_seed(3))
        together = apply(images, name, draws)
        alone = torch.cat([apply(images[i : i + 1], name, draws[:, i : i + 1]) for i in range(6)])
        torch.testing.assert_close(together, alone)


def test_validation_on_augmented_images_is_the_released_codes():
    images = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8)
    whose = {"seed": 1, "client": 2, "epoch": 3}
    assert torch.equal(OURS.validation_view(images, "paper", **whose), images)
    for name in ("light", "paper"):
        seen = authors.PRACTICE.validation_view(images, name, **whose)
        other = authors.PRACTICE.validation_view(images, name, **whose | {"epoch": 4})
        assert seen.dtype == torch.uint8 and seen.shape == images.shape
        assert not torch.equal(seen, images) and not torch.equal(seen, other)
