"""Robust accuracy, alarms, probes, and one training on the digits that has to pay off."""

from __future__ import annotations

import math
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.adversarial import (
    adversarial_loss,
    attacks_at,
    auto_attack,
    catastrophic_overfitting,
    evaluate_attacks,
    gradient_similarity,
    independent_vote_failure,
    input_curvature,
    loss_gradient,
    masking_alarms,
    overfitting_probe,
    perturb_on_surrogates,
    pgd,
    predict,
    robust_evaluation,
    robustness,
    semi_batches,
)
from fedrobust.training import lalr_step, lr_at


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, inputs: int = 16, classes: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 20), nn.Tanh(), nn.Linear(20, classes))


def test_worked_accuracies() -> None:
    y = torch.tensor([0, 1, 2, 0, 1])
    clean = torch.tensor([0, 1, 2, 0, 0])  # 4 of 5
    moved = torch.tensor([0, 0, 2, 1, 1])  # 3 of 5; 2 of the 4
    found = robustness(clean, moved, y)
    assert (found.clean, found.unconditional, found.conditional) == (0.8, 0.6, 0.5)
    assert found.both == 0.4 and found.success == 1 - found.conditional
    assert found.unconditional <= found.clean + 1 / 5  # wrong -> right
    nothing = robustness(1 - y.clamp(max=1), moved, y)
    assert nothing.clean == 0 and math.isnan(nothing.conditional)
    with pytest.raises(ValueError, match="non-empty shapes"):
        robustness(clean[:0], moved[:0], y[:0])
    with pytest.raises(ValueError, match="equal"):
        robustness(clean[:3], moved, y)


def test_worst_case_bounds_every_attack() -> None:
    net, x = network().train(), torch.rand(90, 16, generator=source())
    y = predict(net, x)
    y[:9] = (y[:9] + 1) % 3
    report = evaluate_attacks(net, x, y, attacks=attacks_at(0.05, steps=5), batch_size=40)
    assert list(report) == ["fgsm", "pgd-5", "margin-5", "worst"]
    worst = report["worst"]
    for found in report.values():
        assert found.clean == pytest.approx(0.9) and worst.unconditional <= found.unconditional
    assert worst.unconditional <= worst.clean and worst.unconditional == worst.both
    assert net.training
    weak_last = {"pgd": attacks_at(0.05)["pgd-20"], "nothing": "none"}
    found = evaluate_attacks(net, x, y, attacks=weak_last)
    assert found["worst"].unconditional == found["pgd"].both < found["nothing"].unconditional
    with pytest.raises(ValueError, match="'worst' is taken"):
        evaluate_attacks(net, x, y, attacks={"worst": "none"})
    assert evaluate_attacks(net, x, y, attacks={"no": "none"})["no"].unconditional == 0.9


def test_alarms() -> None:
    fine = {"clean": 0.9, "one_step": 0.6, "many_steps": 0.5, "transfer": 0.7, "stronger": 0.45}
    assert masking_alarms(**fine) == ()
    assert masking_alarms(clean=0.9, one_step=0.6, many_steps=0.5) == ()
    (alarm,) = masking_alarms(**{**fine, "one_step": 0.4})
    assert alarm == "many steps leave more accuracy than one step: 0.500 > 0.400"
    assert len(masking_alarms(**{**fine, "transfer": 0.2})) == 1
    assert len(masking_alarms(**{**fine, "stronger": 0.6})) == 1
    assert len(masking_alarms(**{**fine, "clean": 0.3})) == 1
    assert masking_alarms(**{**fine, "one_step": 0.49}, tolerance=0.02) == ()


def test_masked_gradients_raise_the_alarm() -> None:
    """Quantised inputs hide the gradient: steps find nothing, transferred images do."""

    class Step(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x * 64).round() / 64 + 0 * x)

    net, x = network(), torch.rand(300, 16, generator=source())
    masked, y = Step(net), predict(network(), x)
    white = predict(masked, pgd(masked, x, y, eps=0.1, step_size=0.03, steps=10))
    spec = {"name": "mi_fgsm", "eps": 0.1, "step_size": 0.02}
    black = predict(masked, perturb_on_surrogates(net, x, y, spec))
    shares = [float((labels == y).double().mean()) for labels in (white, black)]
    alarms = masking_alarms(clean=1.0, one_step=1.0, many_steps=shares[0], transfer=shares[1])
    assert any("transferred" in alarm for alarm in alarms)


def test_catastrophic_overfitting() -> None:
    assert not catastrophic_overfitting([])
    assert not catastrophic_overfitting([0.4])
    assert not catastrophic_overfitting([0.3, 0.4, 0.35])
    assert catastrophic_overfitting([0.3, 0.4, 0.02])
    assert catastrophic_overfitting([0.3, 0.4, 0.35], drop=0.01)
    net, x = network(), torch.rand(300, 16, generator=source())
    y = predict(net, x)
    assert overfitting_probe(net, x, y, eps=0.0) == 1.0
    y[256:] = 9  # beyond the probe
    assert overfitting_probe(net, x, y, eps=0.0) == 1.0
    assert overfitting_probe(net, x, y, eps=0.2) < 0.9


def test_auto_attack_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(4, 16, generator=source())
    y = predict(net, x)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(ImportError, match="needs the package 'autoattack'"):
        auto_attack(net, x, y, eps=0.1)
    with pytest.raises(ValueError, match="unknown norm"):
        auto_attack(net, x, y, eps=0.1, norm="l1")
    made = {}

    class Fake:
        def __init__(self, model: nn.Module, **settings: object) -> None:
            made.update(settings, training=model.training)

        def run_standard_evaluation(self, x: Tensor, y: Tensor, bs: int) -> Tensor:
            return x + 0

    module = types.ModuleType("autoattack")
    module.AutoAttack = Fake
    monkeypatch.setitem(sys.modules, "autoattack", module)
    net.train()
    assert torch.equal(auto_attack(net, x, y, eps=0.1), x)
    assert made["norm"] == "Linf" and made["eps"] == 0.1 and not made["training"] and net.training


def test_the_worst_case_is_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """FGSM fools the first image, AutoAttack the second: none is left, not half of them."""
    x, y = torch.tensor([[0.5, 0.55], [0.0, 1.0]]), torch.tensor([1, 1])

    def swap_the_second(model: object, x: Tensor, y: Tensor, *, eps: float) -> Tensor:
        return torch.stack([x[0], x[1].flip(0)])

    monkeypatch.setattr(robust_evaluation, "auto_attack", swap_the_second)
    row = robust_evaluation.examine(nn.Identity(), x, y, eps=0.1, attacks="fgsm+autoattack")
    assert (row["fgsm_accuracy"], row["autoattack_accuracy"]) == (0.5, 0.5)
    assert row["worst_accuracy"] == 0.0


def test_similarity_of_a_model_with_itself_is_one() -> None:
    net, x = network().train(), torch.rand(9, 16, generator=source())
    y = torch.arange(9) % 3
    ones = gradient_similarity(net, net, x, y)
    torch.testing.assert_close(ones, torch.ones(9), rtol=0, atol=1e-6)
    other = gradient_similarity(net, network(1), x, y)
    assert other.shape == (9,) and float(other.abs().max()) < 1
    torch.testing.assert_close(other, gradient_similarity(network(1), net, x, y))
    assert net.training and all(p.grad is None for p in net.parameters())

    def flipped(z: Tensor) -> Tensor:
        return -net(z)

    two = nn.Linear(16, 2)
    torch.testing.assert_close(
        gradient_similarity(two, lambda z: -two(z), x, y % 2), -torch.ones(9), rtol=0, atol=1e-6
    )
    assert float(gradient_similarity(net, lambda z: 0 * flipped(z), x, y).abs().max()) == 0


def test_loss_gradient_is_per_sample() -> None:
    net, x = network().double(), torch.rand(5, 16, generator=source(), dtype=torch.float64)
    y = torch.arange(5) % 3
    parts = [loss_gradient(net, x[i : i + 1], y[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(loss_gradient(net, x, y), torch.cat(parts), rtol=0, atol=1e-14)


@pytest.mark.parametrize("values", [[3.0, 1.0, 0.5], [2.0, -5.0, 1.0], [-1.0, -4.0, -2.0]])
def test_curvature_of_a_quadratic(values: list[float]) -> None:
    """The largest eigenvalue, not the one of largest magnitude."""
    basis = torch.linalg.qr(torch.randn(3, 3, generator=source(2), dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T

    def net(x: Tensor) -> Tensor:
        return 0.5 * ((x @ matrix) * x).sum(1, keepdim=True)

    x = torch.rand(4, 3, generator=source(), dtype=torch.float64)
    found = input_curvature(net, x, torch.zeros(4).long(), criterion=lambda z, _: z[:, 0])
    torch.testing.assert_close(found, torch.full((4,), max(values)).double(), rtol=0.01, atol=0)


def test_curvature_equals_the_full_hessian() -> None:
    net, x = network().double(), torch.rand(3, 16, generator=source(), dtype=torch.float64)
    y = torch.tensor([0, 1, 2])
    found = input_curvature(net, x, y, iterations=300)
    for i in range(3):
        hessian = torch.autograd.functional.hessian(
            lambda z, i=i: F.cross_entropy(net(z[None]), y[i : i + 1]), x[i]
        )
        assert float(found[i]) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
    with pytest.raises(ValueError, match="at least 1 iteration"):
        input_curvature(net, x, y, iterations=0)


def test_curvature_of_a_linear_loss_is_zero() -> None:
    x = torch.rand(2, 3)
    flat = input_curvature(lambda z: z, x, torch.zeros(2).long(), criterion=lambda z, _: z.sum(1))
    assert flat.tolist() == [0.0, 0.0]


def test_independent_votes() -> None:
    assert independent_vote_failure(0.3, 1) == pytest.approx(0.3)
    assert independent_vote_failure(0.3, 3) == pytest.approx(3 * 0.09 * 0.7 + 0.027)
    assert independent_vote_failure(0.5, 7) == pytest.approx(0.5)
    assert independent_vote_failure(0.6, 5) > 0.6 > 0.4 > independent_vote_failure(0.4, 5)
    with pytest.raises(ValueError, match="odd number of members, got 4"):
        independent_vote_failure(0.3, 4)
    with pytest.raises(ValueError, match="probability"):
        independent_vote_failure(1.3, 3)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    labels, order = torch.tensor(data.target), torch.randperm(1797, generator=source(0))
    images, labels = images[order], labels[order]
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def small_cnn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def train(perturbation: object, loss: object, epochs: int) -> nn.Module:
    """LALR at batch 128, three epochs of warm-up, a tenth of the rate in the last quarter."""
    x, y, _, _ = digits()
    net, generator, state, step = small_cnn().train(), source(1), None, 0
    names = list(dict(net.named_parameters()))
    total = 11 * epochs
    schedule = {"name": "multistep", "milestones": [int(0.75 * total)]}
    for _ in range(epochs + 3):
        for rows in torch.randperm(1400, generator=generator).split(128):
            value = adversarial_loss(
                net, x[rows], y[rows], perturbation=perturbation, loss=loss, generator=generator
            )
            params = list(net.parameters())
            grads = torch.autograd.grad(value, params)
            lr = lr_at(step, lr=0.01, schedule=schedule, warmup=33)
            moved, state = lalr_step(params, grads, state, lr=lr)
            net.load_state_dict(dict(zip(names, moved, strict=True)), strict=False)
            step += 1
    return net


@pytest.mark.slow
def test_adversarial_training_pays_off_on_the_digits() -> None:
    """Robust accuracy rises by 40 points at least, clean accuracy falls by 3 at most."""
    eps = 0.15
    pgd_spec = {"name": "pgd", "eps": eps, "step_size": eps / 4, "steps": 7}
    both = {"name": "standard", "lambda_nat": 1.0}
    runs = {
        "none": ("none", "natural"),
        "pgd": (pgd_spec, both),
        "fgsm": ({"name": "fgsm", "eps": eps, "clip_start": False}, both),
    }
    _, _, x, y = digits()
    attack = {"name": "pgd", "eps": eps, "step_size": eps / 8, "steps": 20}
    found, models = {}, {}
    for name, (perturbation, loss) in runs.items():
        models[name] = train(perturbation, loss, 12)
        found[name] = evaluate_attacks(models[name], x, y, attacks={"pgd": attack})["pgd"]
    gain = found["pgd"].unconditional - found["none"].unconditional
    assert gain >= 0.40, found
    assert found["pgd"].clean >= found["none"].clean - 0.03, found
    assert found["fgsm"].unconditional >= found["pgd"].unconditional - 0.10, found
    report = evaluate_attacks(models["pgd"], x, y, attacks=attacks_at(eps))
    spec = {"name": "mi_cwa", "eps": eps, "step_scaling": "proportional"}
    moved = perturb_on_surrogates([models["none"], models["fgsm"]], x, y, spec)
    transferred = robustness(predict(models["pgd"], x), predict(models["pgd"], moved), y)
    assert not masking_alarms(
        clean=report["worst"].clean,
        one_step=report["fgsm"].unconditional,
        many_steps=report["pgd-20"].unconditional,
        transfer=transferred.unconditional,
        stronger=report["worst"].unconditional,
    )


def train_semi(labels: Tensor, fraction: float) -> nn.Module:
    """TRADES and LALR, 200 steps of 64 images."""
    x, _, _, _ = digits()
    net, generator, state, step = small_cnn().train(), source(1), None, 0
    names = list(dict(net.named_parameters()))
    spec = {"name": "trades", "eps": 0.15, "step_size": 0.05, "steps": 5}
    loss = {"name": "trades", "beta": 3.0}
    while step < 200:
        for rows in semi_batches(labels, batch_size=64, fraction=fraction, generator=generator):
            value = adversarial_loss(
                net, x[rows], labels[rows], perturbation=spec, loss=loss, generator=generator
            )
            params = list(net.parameters())
            lr = lr_at(step, lr=0.01, warmup=20)
            moved, state = lalr_step(params, torch.autograd.grad(value, params), state, lr=lr)
            net.load_state_dict(dict(zip(names, moved, strict=True)), strict=False)
            step += 1
    return net


@pytest.mark.exhaustive
def test_unlabelled_images_add_robustness() -> None:
    """One label in ten: the other nine images, unlabelled, make the model more robust."""
    _, y, x_test, y_test = digits()
    tenth = torch.where(torch.arange(1400) < 140, y, torch.full_like(y, -1))
    attack = {"name": "pgd", "eps": 0.15, "step_size": 0.15 / 8, "steps": 20}
    shares = []
    for labels, fraction in ((tenth[:140], 0.0), (tenth, 0.5)):
        net = train_semi(labels, fraction)
        report = evaluate_attacks(net, x_test, y_test, attacks={"pgd": attack})
        shares.append(report["pgd"].unconditional)
    assert shares[1] > shares[0] + 0.05, shares
