"""Calibrated logits, slack weights and falling epochs: hand examples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedrobust.adversarial import Calibrated, epochs_at, pgd, slack_weights


def test_calibrated_logits_by_hand() -> None:
    inner = nn.Linear(2, 3)
    counts = torch.tensor([100, 10, 0])
    model, x = Calibrated(inner, counts), torch.rand(4, 2)
    shift = (model(x) - inner(x)).detach()
    expected = torch.tensor([0.1 * math.log(100), 0.1 * math.log(10), 0.0])
    torch.testing.assert_close(shift, expected.expand(4, 3), rtol=0, atol=1e-6)
    assert len(list(model.parameters())) == 2
    assert set(model.state_dict()) == {"model.weight", "model.bias"}
    inner.train()
    found = pgd(model, x, torch.tensor([0, 1, 2, 0]), eps=0.1, step_size=0.1, steps=1)
    assert found.shape == x.shape and inner.training and inner.weight.requires_grad


def test_slack_weights_by_hand() -> None:
    weights = slack_weights(torch.tensor([0.9, 0.2, 0.5]), torch.tensor([1, 1, 2]))
    expected = torch.tensor([1.0, 1.4, 2.0]) / 4.4
    torch.testing.assert_close(weights, expected)
    assert float(weights.sum()) == pytest.approx(1)
    plain = slack_weights(torch.tensor([0.9, 0.2, 0.5]), torch.tensor([1, 1, 2]), alpha=0.0)
    torch.testing.assert_close(plain, torch.tensor([0.25, 0.25, 0.5]))
    two = slack_weights(torch.tensor([3.0, 1.0, 2.0]), torch.ones(3), alpha=0.2, top=2)
    torch.testing.assert_close(two, torch.tensor([1.0, 1.5, 1.5]) / 4)


@pytest.mark.parametrize(
    ("losses", "counts", "settings"),
    [
        (torch.zeros(3), torch.ones(2), {}),
        (torch.zeros(0), torch.ones(0), {}),
        (torch.tensor([math.nan, 1.0]), torch.ones(2), {}),
        (torch.zeros(2), torch.tensor([-14.0, 20.0]), {}),
        (torch.zeros(2), torch.zeros(2), {}),
        (torch.zeros(2), torch.tensor([math.inf, 1.0]), {}),
        (torch.zeros(2), torch.tensor([math.nan, 1.0]), {}),
        (torch.zeros(2), torch.ones(2), {"alpha": 1.0}),
        (torch.zeros(2), torch.ones(2), {"top": 3}),
    ],
)
def test_impossible_weights_raise(
    losses: torch.Tensor, counts: torch.Tensor, settings: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="slack_weights needs"):
        slack_weights(losses, counts, **settings)


def test_epochs_fall_to_one() -> None:
    found = [epochs_at(r, first=10, gamma=0.5, every=5) for r in range(25)]
    assert found == [10] * 5 + [5] * 5 + [2] * 5 + [1] * 10
