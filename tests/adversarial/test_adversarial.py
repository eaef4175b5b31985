"""White-box perturbations, losses and unlabelled data: properties, closed forms, side effects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.adversarial import (
    CRITERIA,
    LOSSES,
    PERTURBATIONS,
    adversarial_loss,
    fgsm,
    frozen,
    mi_fgsm,
    perturb,
    pgd,
    predict,
    pseudo_labels,
    quantise_images,
    rotations,
    semi_batches,
    trades_kl,
)
from fedrobust.adversarial.losses import mart, masked_cross_entropy, standard, trades
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError

EPS = 8 / 255
SPECS = {
    "none": {},
    "fgsm": {"eps": EPS},
    "pgd": {"eps": EPS, "step_size": EPS / 4, "steps": 4},
    "trades": {"eps": EPS, "step_size": EPS / 4, "steps": 4},
}
FULL = [{"name": name, **settings} for name, settings in SPECS.items()]
NORMED = [spec for spec in FULL if spec["name"] != "none"]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A small network with BatchNorm and dropout, its parts in mixed modes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(4 * 36, 5),
        )
    return net.to(dtype)


def batch(count: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 6, 6, generator=source(1), dtype=dtype)
    return x, torch.arange(count) % 5


class Linear(nn.Module):
    """Binary linear model with logits (0, w x)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        margin = x.flatten(1) @ self.weight
        return torch.stack([torch.zeros_like(margin), margin], 1)


def test_table_is_whole() -> None:
    assert set(SPECS) == set(PERTURBATIONS) and len(PERTURBATIONS) == 4
    assert len(LOSSES) == 4 and len(CRITERIA) == 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("spec", NORMED, ids=lambda s: s["name"])
def test_result_stays_in_the_ball_and_in_range(spec: dict[str, object], norm: str) -> None:
    x, y = batch()
    found = perturb(network(), x, y, {**spec, "norm": norm}, generator=source())
    delta = (found - x).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert float(size.max()) <= EPS + 1e-6 and float(size.min()) > EPS / 10
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize("spec", FULL, ids=lambda s: s["name"])
def test_everything_is_left_as_found(spec: dict[str, object]) -> None:
    net, (x, y) = network(), batch()
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net(x).sum().backward()
    x.requires_grad_(True)
    modes = [m.training for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    images = x.detach().clone()
    perturb(net, x, y, spec, generator=source())
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    for parameter, grad in zip(net.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None)
        assert grad is None or torch.equal(parameter.grad, grad)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert x.requires_grad and x.grad is None and torch.equal(x.detach(), images)


@pytest.mark.parametrize("mode", ["train", "keep"])
def test_train_mode_uses_the_batch_and_keeps_the_running_statistics(mode: str) -> None:
    net, (x, y) = network().train(), batch()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    settings = {"eps": EPS, "step_size": EPS, "steps": 1, "random_start": False}
    there = pgd(net, x, y, **settings, mode=mode)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert net.training and not torch.equal(there, pgd(net, x, y, **settings))


def test_model_is_restored_after_an_error() -> None:
    net = network().train()
    with pytest.raises(RuntimeError), frozen(net):
        assert not net.training and not net[0].weight.requires_grad
        raise RuntimeError
    assert net.training and net[3].training and net[0].weight.requires_grad


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode, None])
def test_works_without_gradients_around_it(outside: Callable[[], object] | None) -> None:
    net, (x, y) = network(), batch()
    expected = pgd(net, x, y, eps=EPS, step_size=EPS / 4, steps=3)
    if outside is None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pgd(net, x, y, eps=EPS, step_size=EPS / 4, steps=3)
    else:
        with outside():
            found = pgd(net, x * 1, y * 1, eps=EPS, step_size=EPS / 4, steps=3)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("spec", FULL, ids=lambda s: s["name"])
@pytest.mark.parametrize(
    "images", [torch.full((2, 1, 6, 6), 1.01), torch.full((2, 1, 6, 6), torch.nan)]
)
def test_images_outside_the_range_raise(spec: dict[str, object], images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images need values in \[0, 1\]"):
        perturb(network(), images, torch.zeros(2).long(), spec)
    with pytest.raises(ValueError, match="images need a float tensor"):
        perturb(network(), images.nan_to_num(0).byte(), torch.zeros(2).long(), spec)
    with pytest.raises(ValueError, match=r"labels of shape \(2,\), got \(3,\)"):
        perturb(network(), images.nan_to_num(0).clamp(0, 1), torch.zeros(3).long(), spec)


def test_impossible_settings_raise() -> None:
    net, (x, y) = network(), batch()
    step = {"eps": EPS, "step_size": EPS, "steps": 1}
    for wrong, message in (
        ({"eps": -1.0}, "eps needs at least 0, got -1.0"),
        ({"steps": -1}, "steps needs"),
        ({"restarts": 0}, "restarts needs at least 1, got 0"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"loss": "margn"}, "did you mean 'margin'"),
        ({"mode": "evel"}, "did you mean 'eval'"),
        ({"restarts": 2, "random_start": False}, "need a random start"),
        ({"start": torch.zeros(1, 1, 6, 6)}, "start needs the shape"),
    ):
        with pytest.raises(ValueError, match=message):
            pgd(net, x, y, **{**step, **wrong})
    with pytest.raises(ValueError, match="has no parameter 'step'"):
        perturb(net, x, y, {"name": "pgd", "eps": EPS, "step": 1})


def test_no_steps_give_the_start_noise_alone() -> None:
    net, (x, y) = network(), batch()
    found = pgd(net, x, y, eps=EPS, step_size=1.0, steps=0, generator=source(3))
    noise = torch.rand(x.shape, generator=source(3)) * 2 * EPS - EPS
    torch.testing.assert_close(found, (x + noise).clamp(0, 1), rtol=0, atol=1e-7)
    still = pgd(net, x, y, eps=EPS, step_size=1.0, steps=0, random_start=False)
    assert torch.equal(still, x)


def test_seed_decides_and_its_absence_is_seed_zero() -> None:
    net, (x, y) = network(), batch()
    for spec in NORMED:
        one = perturb(net, x, y, spec, generator=source(4))
        assert torch.equal(one, perturb(net, x, y, spec, generator=source(4)))
        assert torch.equal(perturb(net, x, y, spec), perturb(net, x, y, spec, generator=source(0)))
    assert not torch.equal(one, perturb(net, x, y, spec, generator=source(5)))


def test_loss_grows_with_the_steps() -> None:
    net, (x, y) = network().eval(), batch(30)
    losses = []
    for steps in (0, 1, 10):
        found = pgd(net, x, y, eps=EPS, step_size=EPS / 4, steps=steps, generator=source())
        losses.append(float(F.cross_entropy(net(found), y).detach()))
    assert losses == sorted(losses) and losses[2] > losses[1]


@pytest.mark.parametrize("name", ["pgd", "fgsm"])
def test_linear_model_has_the_closed_form(name: str) -> None:
    weight = torch.randn(12, generator=source(6), dtype=torch.float64)
    x = 0.3 + 0.4 * torch.rand(8, 12, generator=source(7), dtype=torch.float64)
    y = torch.arange(8) % 2
    away = 0.1 * (1 - 2 * y[:, None].double()) * weight.sign()
    expected = x + away
    if name == "pgd":
        found = pgd(Linear(weight), x, y, eps=0.1, step_size=0.05, steps=5, generator=source())
    else:
        found = fgsm(Linear(weight), x, y, eps=0.1, random_start=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64
    back = pgd(Linear(weight), x, y, eps=0.1, step_size=0.05, steps=5, targeted=True)
    torch.testing.assert_close(back, x - away, rtol=0, atol=1e-12)


def test_linear_model_in_l2_moves_along_the_weight() -> None:
    weight = torch.randn(12, generator=source(6), dtype=torch.float64)
    x, y = torch.full((2, 12), 0.5, dtype=torch.float64), torch.tensor([0, 1])
    found = pgd(Linear(weight), x, y, eps=0.2, step_size=0.1, steps=60, norm="l2")
    expected = x - 0.2 * (2 * y[:, None] - 1) * weight / weight.norm()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_fgsm_from_either_end_of_the_ball() -> None:
    """delta_0 = +eps and a positive gradient: stays; delta_0 = -eps: ends at +0.25 eps."""
    net, y = Linear(torch.ones(3, dtype=torch.float64)), torch.zeros(1).long()
    x = torch.full((1, 3), 0.5, dtype=torch.float64)
    for first, last in ((0.1, 0.1), (-0.1, 0.025)):
        found = fgsm(net, x, y, eps=0.1, start=torch.full_like(x, first))
        torch.testing.assert_close(found, x + last)


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


def test_l2_start_is_uniform_in_the_ball() -> None:
    """In a disc the mean radius is 2 / 3, and a quarter of the starts lies in the inner half."""
    x = torch.full((4000, 2), 0.5)
    settings = {"eps": 0.3, "step_size": 0.1, "steps": 0, "norm": "l2", "generator": source()}
    radius = (pgd(lambda z: z, x, torch.zeros(4000).long(), **settings) - x).norm(dim=1) / 0.3
    assert float(radius.mean()) == pytest.approx(2 / 3, abs=0.02)
    assert float((radius < 0.5).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_worked_criteria() -> None:
    logits = torch.tensor([[-1.0, -3.0, -6.0], [2.0, 5.0, 1.0], [1.0, 2.0, 3.0]])
    y = torch.tensor([0, 2, -1])
    assert CRITERIA["margin"](logits, y).tolist() == [-2.0, 4.0, 0.0]
    loss = CRITERIA["cross_entropy"](logits, y)
    torch.testing.assert_close(loss[1], -logits[1].log_softmax(0)[2])
    assert loss[2] == 0


def test_gradient_evaluations() -> None:
    x, y = batch()
    one, many = Counted(network()), Counted(network())
    fgsm(one, x, y, eps=EPS)
    pgd(many, x, y, eps=EPS, step_size=EPS / 4, steps=7)
    assert (one.calls, many.calls) == (1, 7)


def literal_pgd(net: nn.Module, x: Tensor, y: Tensor, delta: Tensor, steps: int) -> Tensor:
    """The inner maximisation as the specification writes it."""
    alpha = 2 / 255
    for _ in range(steps):
        point = (x + delta).requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(net(point), y), point)[0]
        moved = torch.clip(x + delta + alpha * torch.sign(gradient), 0, 1)
        delta = torch.clip(moved - x, -EPS, EPS)
    return torch.clip(x + delta, 0, 1)


def literal_fgsm(net: nn.Module, x: Tensor, y: Tensor, delta: Tensor) -> Tensor:
    delta = delta.clone().requires_grad_(True)
    loss = F.cross_entropy(net(torch.clip(x + delta, 0, 1)), y)
    gradient = torch.autograd.grad(loss, delta)[0]
    delta = torch.clip(delta.detach() + 1.25 * EPS * torch.sign(gradient), -EPS, EPS)
    return torch.clip(x + delta, 0, 1)


@pytest.mark.parametrize("seed", range(3))
def test_literal_versions(seed: int) -> None:
    net, (x, y) = network(seed).eval().double(), batch(dtype=torch.float64)
    x = (x * 1.4 - 0.2).clamp(0, 1)  # some pixels at either end
    start = torch.rand(x.shape, generator=source(seed), dtype=torch.float64) * 2 * EPS - EPS
    found = pgd(net, x, y, eps=EPS, step_size=2 / 255, steps=5, generator=source(seed))
    torch.testing.assert_close(found, literal_pgd(net, x, y, start, 5), rtol=0, atol=1e-12)
    once = fgsm(net, x, y, eps=EPS, generator=source(seed))
    torch.testing.assert_close(once, literal_fgsm(net, x, y, start), rtol=0, atol=1e-12)


def test_clipped_pixels_move_only_without_the_clip() -> None:
    net, y = Linear(torch.ones(2, dtype=torch.float64)), torch.zeros(1).long()
    x, start = torch.tensor([[0.0, 0.5]]).double(), torch.full((1, 2), -0.1).double()
    still = fgsm(net, x, y, eps=0.1, start=start)
    moved = fgsm(net, x, y, eps=0.1, start=start, clip_start=False)
    torch.testing.assert_close(
        still, torch.tensor([[0.0, 0.525]], dtype=torch.float64), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(
        moved, torch.tensor([[0.025, 0.525]], dtype=torch.float64), rtol=0, atol=1e-8
    )


def test_an_image_does_not_depend_on_its_batch() -> None:
    net, (x, y) = network().double(), batch(10, dtype=torch.float64)
    settings = {"eps": EPS, "step_size": EPS / 4, "steps": 5, "random_start": False}
    parts = [pgd(net, x[i : i + 3], y[i : i + 3], **settings) for i in range(0, 10, 3)]
    torch.testing.assert_close(pgd(net, x, y, **settings), torch.cat(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_keep_the_best_per_sample(targeted: bool) -> None:
    net, (x, y) = network().eval(), batch(40)
    settings = {"eps": 0.02, "step_size": 0.01, "steps": 2, "targeted": targeted}
    generator = source(2)
    runs = [pgd(net, x, y, **settings, generator=generator) for _ in range(4)]
    best = pgd(net, x, y, **settings, generator=source(2), restarts=4)
    with torch.no_grad():
        fooled = torch.stack([(net(run).argmax(1) == y) == targeted for run in runs])
        loss = torch.stack([F.cross_entropy(net(run), y, reduction="none") for run in runs])
        sign = -1 if targeted else 1
        key = fooled.double() * 1e3 + sign * loss.double()
        picked = torch.stack(runs)[key.argmax(0), torch.arange(40)]
        assert torch.equal((net(best).argmax(1) == y) == targeted, fooled.any(0))
    assert torch.equal(best, picked)


def test_restarts_prefer_a_fooled_model_to_a_higher_loss() -> None:
    """A loss that grows with brightness alone: only the label tells which restart succeeded."""
    net = Linear(torch.full((4,), 1.0))
    x, y = torch.full((64, 4), 0.01), torch.ones(64).long()
    settings = {"eps": 0.5, "step_size": 0.0, "steps": 0, "loss": lambda z, _: z[:, 1]}
    one = predict(net, pgd(net, x, y, **settings, generator=source())) != y
    many = predict(net, pgd(net, x, y, **settings, generator=source(), restarts=20)) != y
    assert int(many.sum()) >= int(one.sum())


def test_over_confident_model_gives_no_nan_and_the_margin_still_climbs() -> None:
    net, (x, y) = network().eval(), batch(20)
    y = predict(net, x)
    loud = nn.Sequential(net, Scale(1e4))
    quiet = pgd(loud, x, y, eps=0.1, step_size=0.05, steps=5, random_start=False)
    moved = pgd(loud, x, y, eps=0.1, step_size=0.05, steps=5, random_start=False, loss="margin")
    assert bool(torch.isfinite(quiet).all())
    assert float((moved - x).abs().amax()) == pytest.approx(0.1, abs=1e-6)
    assert int((predict(net, moved) != y).sum()) >= int((predict(net, quiet) != y).sum())


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def test_half_images_come_back_as_float32_and_empty_batches_work() -> None:
    net, (x, y) = network(), batch()
    assert pgd(net, x.half(), y, eps=EPS, step_size=EPS, steps=1).dtype == torch.float32
    assert fgsm(net, x[:0], y[:0], eps=EPS).shape == (0, 1, 6, 6)
    assert torch.equal(fgsm(net, x, y.int(), eps=EPS), fgsm(net, x, y, eps=EPS))
    with pytest.raises(ValueError, match=r"labels need integers, got torch\.float32"):
        fgsm(net, x, y.float(), eps=EPS)


def test_trades_climbs_the_divergence_without_labels() -> None:
    net, (x, _) = network().eval(), batch(20)
    settings = {"eps": EPS, "step_size": EPS / 4, "generator": source()}
    few = trades_kl(net, x, steps=0, **settings)
    many = trades_kl(net, x, steps=5, **settings)
    assert float((few - x).abs().max()) < 0.006
    with torch.no_grad():
        net.double()
        clean = net(x.double()).softmax(1)
        low, high = (
            F.kl_div(net(z.double()).log_softmax(1), clean, reduction="batchmean")
            for z in (few, many)
        )
    assert float(high) > 10 * float(low) >= 0


def gradients(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])


def test_natural_weight_adds_the_natural_gradient() -> None:
    net, (x, y) = network().eval().double(), batch(dtype=torch.float64)
    x_adv = pgd(net, x, y, eps=EPS, step_size=EPS, steps=2)
    robust = gradients(F.cross_entropy(net(x_adv), y), net)
    natural = gradients(F.cross_entropy(net(x), y), net)
    for weight in (0.0, 0.3, 1.0):
        both = gradients(standard(net, x, y, x_adv, lambda_nat=weight), net)
        torch.testing.assert_close(both, robust + weight * natural, rtol=0, atol=1e-12)
    net.zero_grad()
    F.cross_entropy(net(x_adv), y).backward()
    F.cross_entropy(net(x), y).backward()  # the released code: two passes that accumulate
    twice = torch.cat([p.grad.flatten() for p in net.parameters()])
    one = gradients(standard(net, x, y, x_adv, lambda_nat=1.0), net)
    torch.testing.assert_close(one, twice, rtol=0, atol=1e-12)


def test_no_natural_weight_needs_no_clean_pass() -> None:
    net, (x, y) = Counted(network()), batch()
    standard(net, x, y, x)
    assert net.calls == 1


def test_unlabelled_rows_count_in_the_divergence_only() -> None:
    net, (x, y) = network().eval().requires_grad_(False), batch()
    x_adv = trades_kl(net, x, eps=0.1, step_size=0.05, steps=5)
    none = torch.full_like(y, -1)
    half = torch.where(torch.arange(6) < 3, y, none)
    assert float(masked_cross_entropy(net(x), none)) == 0
    assert float(standard(net, x, none, x_adv, lambda_nat=1.0)) == 0
    assert float(trades(net, x, none, x_adv)) > 1e-4
    assert float(trades(net, x, none, x)) == pytest.approx(0, abs=1e-7)
    assert float(mart(net, x, none, x_adv)) > 1e-4
    torch.testing.assert_close(
        trades(net, x, half, x, beta=6.0), F.cross_entropy(net(x[:3]), y[:3])
    )
    for spec in FULL:
        assert bool(torch.isfinite(perturb(net, x, half, spec)).all())
    margin = pgd(net, x, none, eps=EPS, step_size=EPS, steps=1, random_start=False, loss="margin")
    assert torch.equal(margin, x)


def test_worked_trades_and_mart() -> None:
    def net(z: Tensor) -> Tensor:
        return z

    x, x_adv = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    y = torch.tensor([0])
    p = torch.tensor([1.0, 0.0]).softmax(0)
    divergence = float((p * (p.log() - torch.tensor([0.5, 0.5]).log())).sum())
    assert float(trades(net, x, y, x_adv, beta=2.0)) == pytest.approx(
        float(-p[0].log()) + 2 * divergence, rel=1e-6
    )
    both = trades(net, x.repeat(2, 1), y.repeat(2), torch.cat([x_adv, x]), beta=2.0)
    assert float(both) == pytest.approx(float(-p[0].log()) + divergence, rel=1e-6)
    boosted = -torch.log(torch.tensor(0.5)) - torch.log(torch.tensor(1.0001 - 0.5))
    expected = float(boosted) + 5 * divergence * (1.0000001 - float(p[0]))
    assert float(mart(net, x, y, x_adv, beta=5.0)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("spec", FULL, ids=lambda s: s["name"])
def test_every_pair_trains_one_step(loss: str, spec: dict[str, object]) -> None:
    net, (x, y) = network().train(), batch()
    value = adversarial_loss(net, x, y, perturbation=spec, loss=loss, generator=source())
    value.backward()
    assert value.dim() == 0 and bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    assert net.training and net[1].training


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_fraction_of_the_batch(fraction: float) -> None:
    seen = []

    def net(z: Tensor) -> Tensor:
        seen.append(z.detach())
        return z.flatten(1)[:, :5] * 3

    x, y = batch()
    spec = {"name": "pgd", "eps": EPS, "step_size": EPS, "steps": 1}
    adversarial_loss(net, x, y, perturbation=spec, fraction=fraction)
    changed = (seen[-1] != x).flatten(1).any(1)
    assert changed.tolist() == [i < round(fraction * 6) for i in range(6)]
    with pytest.raises(ValueError, match="fraction needs"):
        adversarial_loss(net, x, y, perturbation=spec, fraction=1.5)


def test_pseudo_labels_are_the_teachers_and_keep_the_known() -> None:
    net, (x, y) = network().train(), batch()
    known = torch.where(torch.arange(6) % 2 == 0, y, torch.full_like(y, -1))
    filled = pseudo_labels(net, x, known, batch_size=2)
    with torch.no_grad():
        expected = torch.where(known >= 0, known, net.eval()(x).argmax(1))
    assert torch.equal(filled, expected) and int((known == -1).sum()) == 3


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.9])
def test_unlabelled_share_is_exact(fraction: float) -> None:
    y = torch.cat([torch.arange(57) % 3, torch.full((200,), -1)])
    seen = list(semi_batches(y, batch_size=10, fraction=fraction, generator=source()))
    free = round(10 * fraction)
    assert len(seen) == 57 // (10 - free)
    assert all(int((y[rows] < 0).sum()) == free and len(rows) == 10 for rows in seen)
    labelled = torch.cat(seen)[y[torch.cat(seen)] >= 0]
    assert len(labelled.unique()) == len(labelled)
    unlabelled = torch.cat(seen)[y[torch.cat(seen)] < 0]
    assert free == 0 or len(unlabelled.unique()) == min(200, len(unlabelled))
    with pytest.raises(ValueError, match="need as many, got 0 and 3"):
        list(semi_batches(torch.full((3,), -1), batch_size=4, fraction=0.5, generator=source()))


def test_rotations_are_labelled_by_their_quarter_turns() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    turned, labels = rotations(x)
    assert labels.tolist() == [0, 1, 2, 3]
    assert turned[1].tolist() == [[[2.0, 4.0], [1.0, 3.0]]]
    assert turned[2].tolist() == [[[4.0, 3.0], [2.0, 1.0]]]
    many, labels = rotations(torch.rand(5, 3, 8, 8, generator=source()))
    for row, turn in zip(many, labels, strict=True):
        back = row.rot90(-int(turn), dims=(1, 2))
        assert any(torch.equal(back, original) for original in many[:5])
    with pytest.raises(ValueError, match="square images"):
        rotations(torch.rand(2, 3, 4, 5))


def test_quantised_images_lie_on_the_grid_within_eps() -> None:
    base = torch.randint(0, 256, (500,), generator=source()).float()[:, None] / 255
    noise = torch.rand(500, 1, generator=source(1)) * 2 - 1
    for eps in (8 / 255, 7.6 / 255, 0.031):
        moved = (base + eps * noise.sign() * noise.abs() ** 0.1).clamp(0, 1)
        found = quantise_images(moved, reference=base, eps=eps)
        levels = (found - base) * 255
        assert torch.allclose(levels, levels.round(), atol=1e-3)
        assert float(levels.abs().max()) <= int(eps * 255 + 1e-3) + 1e-3
        nearest = quantise_images(moved)
        assert float((nearest - moved).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(quantise_images(base), base)


def test_quantised_images_off_the_grid_stay_within_eps() -> None:
    base = torch.rand(500, 1, generator=source())
    moved = (base + 0.03).clamp(0, 1)
    found = quantise_images(moved, reference=base, eps=0.03)
    assert float((found - base).abs().max()) <= 0.03 + 1e-5
    tight = quantise_images(base, reference=base, eps=0.0)
    assert float((tight - base).abs().max()) <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="together"):
        quantise_images(base, eps=0.1)


@pytest.mark.parametrize("eps", [8, 1.01, 300])
def test_a_radius_beyond_the_images_range_is_refused(eps):
    net, x, y = torch.nn.Flatten(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    wanted = f"did you mean {eps:g}/255" if eps <= 255 else f"at most 1 on images .* got {eps}$"
    for attack in (
        lambda: pgd(net, x, y, eps=eps, step_size=0.1, steps=1),
        lambda: fgsm(net, x, y, eps=eps),
        lambda: trades_kl(net, x, eps=eps, step_size=0.1, steps=1),
        lambda: mi_fgsm(net, x, y, eps=eps),
    ):
        with pytest.raises(ValueError, match=wanted):
            attack()


def test_a_radius_in_l2_may_reach_across_all_pixels():
    net, x, y = torch.nn.Flatten(), torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    found = pgd(net, x, y, eps=4, step_size=1, steps=2, norm="l2")
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    with pytest.raises(ValueError, match="at most 4 on images"):
        pgd(net, x, y, eps=4.1, step_size=1, steps=2, norm="l2")


@pytest.mark.parametrize(
    "table",
    [{"perturbation": {"name": "pgd", "eps": 8, "step_size": 2, "steps": 3}}, {"eps": 8}],
)
def test_an_experiment_with_such_a_radius_does_not_start(small, table):
    with pytest.raises(ConfigError, match="did you mean 8/255"):
        from_dict(small | {"adversarial": table})
