"""Optimizers and schedules against PyTorch's own, with and without the released code's quirks."""

import warnings

import pytest
import torch

from fedrobust.ensemble.augment import AUGMENTATIONS
from fedrobust.spec import SpecError
from fedrobust.training.optimizers import (
    LR_SCHEDULES,
    MOMENTUM_SOLVERS,
    SOLVERS,
    Schedule,
    build_solver,
    fits,
    plateau_decays,
)

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


def ours(name, value=0.0, *, quirks=False, quotient=float(BATCHES), losses=()):
    schedule = Schedule(name, value, LR, EPOCHS, BATCHES, quotient, quirks)
    return torch.tensor([schedule.at(e, 0, losses[:e]) for e in range(EPOCHS)])


S = torch.optim.lr_scheduler


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_step_decays_with_a_whole_step_and_never_with_the_released_codes():
    same(ours("step", 19), reference(lambda o: S.StepLR(o, 19))[0])
    assert len(set(ours("step", 19).tolist())) == 11
    assert len(set(ours("step", 18.528, quirks=True).tolist())) == 1
    same(ours("step", 18.528, quirks=True), reference(lambda o: S.StepLR(o, 18.528))[0])
    same(ours("step", 18.528), ours("step", 19))


def test_exponential():
    same(ours("exponential", 0.914579), reference(lambda o: S.ExponentialLR(o, 0.914579))[0])


def test_cosine_moves_each_step_and_rises_again_only_with_quirks():
    period = 17 * BATCHES
    torchs = reference(lambda o: S.CosineAnnealingLR(o, period), each_batch=True)[0]
    same(ours("cosine", 17, quirks=True), torchs)
    correct = ours("cosine", 17)
    same(correct[:17], torchs[:17])
    assert bool((correct[17:] < 1e-9).all())
    whole = ours("cosine")
    assert bool((whole.diff() < 0).all()) and float(whole[-1]) < 1e-4


def test_cosine_with_quirks_takes_a_broken_number_of_steps():
    quotient = BATCHES - 0.25
    torchs = reference(lambda o: S.CosineAnnealingLR(o, 17 * quotient), each_batch=True)[0]
    same(ours("cosine", 17, quirks=True, quotient=quotient), torchs)


def test_plateau_follows_the_training_loss():
    losses = [1 / (1 + e) if e < 30 else 0.05 + 0.001 * (e % 3) for e in range(EPOCHS)]
    torchs = reference(lambda o: S.ReduceLROnPlateau(o), losses=losses)[0]
    same(ours("plateau", losses=losses)[:120], torchs[:120])  # below 1e-8 PyTorch stops
    assert plateau_decays([1.0] * 12) == 1
    assert plateau_decays([1.0] * 11) == 0


def test_the_cycle_is_one_triangle_and_with_quirks_a_slow_climb():
    slow, momenta = reference(lambda o: S.CyclicLR(o, LR, 10 * LR, step_size_up=2000))
    same(ours("cyclic", quirks=True), slow)
    assert float(slow[-1]) < 2 * LR
    climb = Schedule("cyclic", 0, LR, EPOCHS, BATCHES, 0, True)
    same(torch.tensor([climb.momentum_at("sgd", 0.0, e) for e in range(EPOCHS)]), momenta)
    half = EPOCHS * BATCHES // 2
    torchs = reference(
        lambda o: S.CyclicLR(o, LR, 10 * LR, step_size_up=half, cycle_momentum=False),
        each_batch=True,
    )[0]
    same(ours("cyclic"), torchs)
    assert Schedule("cyclic", 0, LR, EPOCHS, BATCHES).momentum_at("sgd", 0.0, 50) == 0.0


def test_every_solver_lowers_a_quadratic():
    assert len(SOLVERS) == 9 and len(LR_SCHEDULES) == 6
    for name in SOLVERS:
        w = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
        step = build_solver(name, [w], lr=0.05, momentum=0.5, weight_decay=1e-3)
        group = step.param_groups[0]
        assert group.get("nesterov", False) == (name == "sgd_n")
        if "momentum" in group:
            assert group["momentum"] == (0.0 if name == "sgd" else 0.5)
        for _ in range(40):
            step.zero_grad()
            (w**2).sum().backward()
            step.step()
        assert float((w**2).sum().detach()) < 13, name


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="did you mean 'rmsprop'"):
        build_solver("rmsprob", [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(SpecError, match="sgd_n needs a positive momentum"):
        build_solver("sgd_n", [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert [n for n in SOLVERS if fits(n, "cyclic")] == list(MOMENTUM_SOLVERS)
    assert all(fits(n, "cosine") for n in SOLVERS)


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_views_keep_shape_range_and_seed(name):
    images = torch.rand(6, 3, 32, 32)
    kept = images.clone()
    first, again = (AUGMENTATIONS[name](images, torch.Generator().manual_seed(3)) for _ in "ab")
    assert first.shape == images.shape and torch.equal(first, again)
    assert torch.equal(images, kept)
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first, images) == (name == "none")
