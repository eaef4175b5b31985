"""Auto-PGD and Square: what the torchattacks comparison does not see."""

import pytest
import torch
from torch import nn

from fedrobust.adversarial import apgd, apgd_both, apgd_targeted, examine, pgd, predict, square
from fedrobust.adversarial.logit_ratios import dlr, targeted_dlr
from fedrobust.adversarial.square import side


def network(seed=0, classes=5):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, classes))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return net


def images(count=40):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(5))


class Flat(nn.Module):
    """A network behind steps: its gradient is zero, its answers nearly the same."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 64).round() / 64)


def test_the_ratio_by_hand():
    logits, y = torch.tensor([[4.0, 3.0, 1.0, 0.0], [1.0, 3.0, 2.0, 0.0]]), torch.tensor([0, 0])
    # (3 - 4) / (4 - 1); (3 - 1) / (3 - 1)
    torch.testing.assert_close(dlr(logits, y), torch.tensor([-1 / 3, 1.0]))
    torch.testing.assert_close(dlr(7 * logits, y), dlr(logits, y))
    # (1 - 4) / (4 - (1 + 0) / 2); (2 - 1) / (3 - (1 + 0) / 2)
    aimed = targeted_dlr(logits, y, torch.tensor([2, 2]))
    torch.testing.assert_close(aimed, torch.tensor([-3 / 3.5, 1 / 2.5]))


@pytest.mark.parametrize("attack", [apgd, apgd_targeted, apgd_both, square])
def test_an_attack_stays_in_the_ball_and_leaves_everything_as_found(attack):
    net, x = network(), images()
    y = predict(net, x)
    settings = {"queries": 60} if attack is square else {"steps": 12}
    if attack in (apgd_targeted, apgd_both):
        settings["targets"] = 4
    before = x.clone()
    found = attack(net.train(), x, y, eps=0.1, **settings)
    assert float((found - x).abs().max()) <= 0.1 + 1e-6 and torch.equal(x, before)
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert torch.equal(found, attack(net, x, y, eps=0.1, **settings)), "one seed, one result"
    assert int((predict(net, found) != y).sum()) > 0


def test_both_are_at_least_as_strong_as_pgd():
    net, x = network(), images(200)
    y = predict(net, x)
    left = {
        "pgd": pgd(net, x, y, eps=0.05, step_size=0.0125, steps=20),
        "both": apgd_both(net, x, y, eps=0.05, steps=30),
    }
    right = {name: int((predict(net, found) == y).sum()) for name, found in left.items()}
    assert 0 < right["both"] <= right["pgd"]


def test_a_model_without_gradients_is_found_out():
    masked, x = Flat(network()), images(60)
    y = predict(masked, x)
    row = examine(masked, x, y, eps=0.1, attacks="pgd+square")
    assert row["square_accuracy"] < row["robust_accuracy"] - 0.1
    assert any("random squares" in alarm for alarm in row["alarms"])
    honest = examine(network(), x, predict(network(), x), eps=0.1, attacks="fgsm+pgd+apgd+square")
    assert honest["apgd_accuracy"] <= honest["robust_accuracy"] <= honest["square_accuracy"]
    assert honest["worst_accuracy"] <= honest["apgd_accuracy"] and "alarms" not in honest


def test_squares_shrink():
    sides = [side(query, 1000, 0.8, torch.empty(1, 3, 32, 32)) for query in (1, 100, 999)]
    assert sides == sorted(sides, reverse=True) and sides[0] == 29 and sides[-1] == 1
    assert side(1, 10, 1.0, torch.empty(1, 1, 2, 2)) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda n, x, y: apgd(n, x, y, eps=0.1, loss="dlrr"), "unknown loss 'dlrr'; did you mean"),
        (lambda n, x, y: apgd(n, x, y, eps=0.1, steps=0), "at least 1 step, got 0"),
        (lambda n, x, y: apgd(n, x, y, eps=8.0), "eps needs at most 1"),
        (lambda n, x, y: apgd_targeted(n, x, y, eps=0.1), r"needs 1\.\.4 targets, got 9"),
        (lambda n, x, y: square(n, x, y, eps=0.1, queries=0), "at least 1 query, got 0"),
        (lambda n, x, y: square(n, x, y, eps=0.1, share=0), "share > 0 and <= 1, got 0"),
        (lambda n, x, y: square(n, x.flatten(1), y, eps=0.1), r"needs images \(B, C, H, W\)"),
        (lambda n, x, y: dlr(torch.zeros(2, 2), y[:2]), "needs 3 classes, got 2"),
        (lambda n, x, y: targeted_dlr(torch.zeros(2, 3), y[:2], y[:2]), "needs 4 classes, got 3"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence):
    net, x = network(), images(4)
    with pytest.raises(ValueError, match=sentence):
        call(net, x, predict(net, x))
