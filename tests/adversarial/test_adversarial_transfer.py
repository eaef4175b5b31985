"""Transfer attacks: bounds, limits, literal versions, and what an over-confident surrogate does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.adversarial import (
    TRANSFER_ATTACKS,
    mi_cse,
    mi_cwa,
    mi_fgsm,
    mi_sam,
    perturb_on_surrogates,
    predict,
    quantise_images,
)

EPS = 8 / 255
NAMES = sorted(TRANSFER_ATTACKS)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int, gain: float = 1.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 4)
        )
    net[4].weight.data *= gain
    return net.train()


def batch(count: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 256, (count, 1, 6, 6), generator=source(1)).to(dtype) / 255
    return x, torch.arange(count) % 4


def pair(dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    return [network(0).to(dtype), network(1).to(dtype)]


def test_table_is_whole() -> None:
    assert NAMES == ["mi_cse", "mi_cwa", "mi_fgsm", "mi_sam"]


@pytest.mark.parametrize("step_scaling", ["fixed", "proportional"])
@pytest.mark.parametrize("name", NAMES)
def test_bounds_grid_and_side_effects(name: str, step_scaling: str) -> None:
    models, (x, y) = pair(), batch()
    models[0][0].eval()
    states = [[m.training for m in model.modules()] for model in models]
    values = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    x.requires_grad_(True)
    found = TRANSFER_ATTACKS[name](models, x, y, eps=EPS, step_scaling=step_scaling)
    assert float((found - x.detach()).abs().max()) <= EPS + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    levels = (quantise_images(found) - x.detach()) * 255
    assert float(levels.abs().max()) <= 8 + 1e-3
    assert x.grad is None and not found.requires_grad and found.dtype == torch.float32
    for model, state, value in zip(models, states, values, strict=True):
        assert [m.training for m in model.modules()] == state
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(v, value[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_white_box_accuracy_falls(name: str) -> None:
    models, (x, _) = pair(), batch(40)

    def mean(z: Tensor) -> Tensor:
        return torch.stack([model(z) for model in models]).mean(0)

    for model in models:
        model.eval()
    y = predict(mean, x)
    found = TRANSFER_ATTACKS[name](models, x, y, eps=16 / 255)
    with torch.no_grad():
        before, after = F.cross_entropy(mean(x), y), F.cross_entropy(mean(found), y)
    assert float(after) > float(before) + 0.05


@pytest.mark.parametrize("name", NAMES)
def test_no_steps_return_a_copy(name: str) -> None:
    x, y = batch()
    found = TRANSFER_ATTACKS[name](pair(), x, y, eps=EPS, steps=0)
    assert torch.equal(found, x) and found.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    models, (x, y) = pair(torch.float64), batch(20, torch.float64)
    attack = TRANSFER_ATTACKS[name]
    parts = [attack(models, x[i : i + 3], y[i : i + 3], eps=EPS) for i in range(0, 20, 3)]
    together = attack(models, x, y, eps=EPS)
    torch.testing.assert_close(together, torch.cat(parts), rtol=0, atol=1e-12)


def literal(name: str, models: list[nn.Module], x0: Tensor, y: Tensor, **s: float | str) -> Tensor:
    """Section by section as the specification writes them, with the norms as plain sums."""
    alpha, r, beta, mu, eps = s["alpha"], s["r"], s["beta"], 1.0, s["eps"]

    def clip(z: Tensor) -> Tensor:
        return torch.clip(torch.max(torch.min(z, x0 + eps), x0 - eps), 0, 1)

    def gradient(z: Tensor, group: list[nn.Module]) -> Tensor:
        z = z.clone().requires_grad_(True)
        F.cross_entropy(sum(model(z) for model in group), y).backward()
        return z.grad

    def n1(g: Tensor) -> Tensor:
        return torch.stack([row / row.abs().sum() for row in g])

    def n2(g: Tensor) -> Tensor:
        return torch.stack([row / (row * row).sum().sqrt() for row in g])

    x, m, u = x0, torch.zeros_like(x0), torch.zeros_like(x0)
    for _ in range(10):
        if name == "mi_fgsm":
            m = mu * m + n1(gradient(x, models))
        elif name == "mi_sam":
            first = gradient(x, models)
            g = gradient(x - r * torch.sign(first), models)
            m = mu * m + n1(g + first if s["form"] == "official" else g)
        else:
            z = x
            if name == "mi_cwa":
                z = clip(x - r * torch.sign(gradient(x, models)))
            for model in models:
                u = mu * u + n2(gradient(z, [model]))
                z = clip(z + beta * u)
            d = z - x
            m = mu * m + (n1(d) if s["norm"] == "per_sample" else d / d.abs().sum())
        x = clip(x + alpha * torch.sign(m))
    return x


CASES = [
    ("mi_fgsm", {}, {"alpha": (1.6, 0.1)}),
    ("mi_sam", {"form": "official"}, {"alpha": (3.2, 0.2), "r": (1.6, 0.1)}),
    ("mi_sam", {"form": "paper"}, {"alpha": (3.2, 0.2), "r": (1.6, 0.1)}),
    ("mi_cse", {"normalisation": "batch"}, {"alpha": (3.2, 0.2), "beta": 50.0}),
    ("mi_cse", {}, {"alpha": (3.2, 0.2), "beta": 50.0}),
    ("mi_cwa", {"normalisation": "batch"}, {"alpha": (3.2, 0.2), "r": (16 / 15, 1 / 15)}),
    ("mi_cwa", {}, {"alpha": (3.2, 0.2), "r": (16 / 15, 1 / 15)}),
]


@pytest.mark.parametrize("step_scaling", ["fixed", "proportional"])
@pytest.mark.parametrize(("name", "given", "constants"), CASES)
def test_literal_versions(
    name: str, given: dict[str, str], constants: dict[str, object], step_scaling: str
) -> None:
    models, (x, y) = pair(torch.float64), batch(8, torch.float64)
    for model in models:
        model.eval()
    settings = {"alpha": 0.0, "r": 0.0, "beta": 250.0, "eps": EPS}
    settings |= {"form": given.get("form"), "norm": given.get("normalisation", "per_sample")}
    for key, value in constants.items():
        pick = value if isinstance(value, float) else value[0] / 255
        settings[key] = value[1] * EPS if step_scaling == "proportional" and key != "beta" else pick
    expected = literal(name, models, x, y, **settings)
    found = TRANSFER_ATTACKS[name](models, x, y, eps=EPS, step_scaling=step_scaling, **given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_defaults_are_reading_a_and_the_official_sam() -> None:
    models, (x, y) = pair(torch.float64), batch(8, torch.float64)
    step = {"step_size": 3.2 / 255, "reverse_step": 1.6 / 255}
    same = mi_sam(models, x, y, eps=EPS, step_scaling="proportional", form="official", **step)
    torch.testing.assert_close(mi_sam(models, x, y, eps=EPS), same, rtol=0, atol=1e-12)
    assert not torch.equal(mi_sam(models, x, y, eps=EPS, form="paper"), same)
    wide = {"eps": 16 / 255}
    for attack in TRANSFER_ATTACKS.values():
        one, two = (attack(models, x, y, step_scaling=r, **wide) for r in ("fixed", "proportional"))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_no_reverse_step_turns_cwa_into_cse() -> None:
    models, (x, y) = pair(), batch()
    same = mi_cse(models, x, y, eps=EPS, inner_step=250.0)
    assert torch.equal(mi_cwa(models, x, y, eps=EPS, reverse_step=0.0), same)


def test_one_surrogate_without_momentum_is_a_sign_step() -> None:
    model, (x, y) = network(0).double().eval(), batch(8, torch.float64)
    x = 0.25 + 0.5 * x
    point = x.clone().requires_grad_(True)
    F.cross_entropy(model(point), y).backward()
    found = mi_cse(model, x, y, eps=EPS, steps=1, decay=0.0, step_size=0.01)
    torch.testing.assert_close(found, x + 0.01 * point.grad.sign(), rtol=0, atol=1e-12)


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


@pytest.mark.parametrize("name", NAMES)
def test_linear_surrogate_has_the_closed_form(name: str) -> None:
    """Two classes: the sign of the gradient never changes, so every attack ends at a corner."""
    weight = torch.randn(9, 2, generator=source(3), dtype=torch.float64)
    x = torch.full((4, 9), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    away = (weight[:, 1 - y] - weight[:, y]).T.sign()
    found = TRANSFER_ATTACKS[name](Linear(weight), x, y, eps=EPS, steps=30)
    torch.testing.assert_close(found, x + EPS * away, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_over_confident_surrogates_give_no_nan(name: str) -> None:
    models, (x, _) = [network(0, 1e4), network(1, 1e4)], batch()
    for model in models:
        model.eval()
    y = predict(lambda z: models[0](z) + models[1](z), x)
    found = TRANSFER_ATTACKS[name](models, x, y, eps=EPS)
    assert bool(torch.isfinite(found).all())
    assert float((found - x).abs().max()) <= EPS + 1e-6


class Sure(nn.Module):
    """So sure of class 0 that its gradient is exactly zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([1e6 + x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1)


def test_a_saturated_image_stays_where_it_is() -> None:
    x = torch.rand(3, 1, 4, 4, generator=source())
    assert torch.equal(mi_fgsm(Sure(), x, torch.zeros(3).long(), eps=EPS), x)


@pytest.mark.parametrize("attack", [mi_cse, mi_cwa])
def test_a_saturated_surrogate_does_not_stop_the_others(attack: Callable[..., Tensor]) -> None:
    x, y = torch.full((3, 9), 0.5), torch.zeros(3).long()
    other = Linear(torch.randn(9, 2, generator=source(3)))
    found = attack([Sure(), other], x, y, eps=EPS)
    away = (other.weight[:, 1] - other.weight[:, 0]).sign()
    torch.testing.assert_close(found, (x + EPS * away).detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_diversity_and_smoothing(name: str) -> None:
    models, (x, y) = pair(), batch()
    settings = {"eps": EPS, "diversity": 0.7, "smoothing": 3}
    one = TRANSFER_ATTACKS[name](models, x, y, generator=source(2), **settings)
    assert torch.equal(one, TRANSFER_ATTACKS[name](models, x, y, generator=source(2), **settings))
    assert not torch.equal(one, TRANSFER_ATTACKS[name](models, x, y, eps=EPS))
    assert float((one - x).abs().max()) <= EPS + 1e-6


def test_specs_and_errors() -> None:
    models, (x, y) = pair(), batch()
    spec = {"name": "mi_cwa", "eps": EPS, "steps": 2}
    assert torch.equal(
        perturb_on_surrogates(models, x, y, spec), mi_cwa(models, x, y, eps=EPS, steps=2)
    )
    assert torch.equal(
        mi_fgsm(nn.ModuleList(models), x, y, eps=EPS), mi_fgsm(models, x, y, eps=EPS)
    )
    for wrong, message in (
        ({"name": "mi_cw", "eps": EPS}, "did you mean 'mi_cwa'"),
        ({"name": "mi_fgsm"}, "needs the parameter 'eps'"),
        ({"name": "mi_fgsm", "eps": -1.0}, "eps and steps of at least 0"),
        ({"name": "mi_fgsm", "eps": EPS, "step_scaling": "c"}, "unknown step_scaling 'c'"),
        ({"name": "mi_sam", "eps": EPS, "form": "offical"}, "did you mean 'official'"),
        ({"name": "mi_cse", "eps": EPS, "normalisation": "bach"}, "did you mean 'batch'"),
        ({"name": "mi_cse", "eps": EPS, "smoothing": 4}, "odd width"),
        ({"name": "mi_cse", "eps": EPS, "diversity": 2.0}, "probability"),
    ):
        with pytest.raises(ValueError, match=message):
            perturb_on_surrogates(models, x, y, wrong)
    with pytest.raises(ValueError, match="at least 1 surrogate, got 0"):
        mi_fgsm([], x, y, eps=EPS)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        mi_fgsm(models, 2 * x + 1, y, eps=EPS)
