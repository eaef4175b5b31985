"""LALR: worked steps, limits, invariances, a literal version, schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fedrobust.training.compression import Quantized, quantize
from fedrobust.training.lalr import LalrState, lalr_step, lamb, lars, layerwise, step_layers
from fedrobust.training.schedules import SCHEDULES, lr_at
from fedrobust.training.transforms import chain, scale_by_adam, trace

THETA, GRAD = torch.tensor([3.0, 4.0]), torch.tensor([0.1, -0.2])
EXACT = {"rtol": 0, "atol": 5e-7}
CLIP = (0.0, 10.0)
CHAINS = {
    "lamb": lambda lr, decay, eps=1e-6: lamb(
        lr=lr, betas=(0.9, 0.999), eps=eps, weight_decay=decay, clip=CLIP
    ),
    "lars": lambda lr, decay, **_: lars(lr=lr, beta=0.9, weight_decay=decay, clip=CLIP),
    "layerwise": lambda lr, decay, **_: layerwise(lr=lr, weight_decay=decay, clip=CLIP),
}


def test_worked_first_step() -> None:
    (after,), state = lalr_step([THETA], [GRAD], None, lr=0.01)
    torch.testing.assert_close(after, torch.tensor([2.9646435, 4.0353542]), **EXACT)
    assert state.step == 1
    torch.testing.assert_close(state.means[0], 0.1 * GRAD)
    torch.testing.assert_close(state.squares[0], 0.001 * GRAD**2)
    u = state.means[0] / (state.squares[0].sqrt() + 1e-6) + 1e-4 * THETA
    torch.testing.assert_close(u, torch.tensor([3.1615780, -3.1613777]), rtol=1e-6, atol=0)
    assert float(u.norm()) == pytest.approx(4.4710049, rel=1e-6)
    assert 5 / float(u.norm()) == pytest.approx(1.1183168, rel=1e-6)


def test_zero_weights_step_at_ratio_one() -> None:
    (after,), _ = lalr_step([torch.zeros(2)], [GRAD], None, lr=0.01, weight_decay=0.0)
    torch.testing.assert_close(after, torch.tensor([-0.0316128, 0.0316178]), **EXACT)


@pytest.mark.parametrize("name", CHAINS)
def test_zero_update_changes_nothing(name: str) -> None:
    (after,), _ = step_layers(CHAINS[name](0.01, 0.0), [THETA], [torch.zeros(2)], None)
    assert torch.equal(after, THETA)


@pytest.mark.parametrize("size", [11.0, 1e3, 1e6])
def test_tau_is_cut_at_its_upper_bound(size: float) -> None:
    theta = torch.tensor([size, 0.0])
    (after,), _ = lalr_step([theta.double()], [GRAD.double()], None, lr=0.01, weight_decay=0.0)
    assert float((after - theta).norm()) == pytest.approx(0.01 * 10, rel=1e-9)


def test_lower_bound_moves_a_zero_layer_by_lr_times_c_l() -> None:
    (after,), _ = lalr_step([torch.zeros(2)], [GRAD], None, lr=0.01, clip=(2.0, 10.0))
    assert float(after.norm()) == pytest.approx(0.02, rel=1e-5)


def test_worked_layerwise_and_lars_steps() -> None:
    grad = torch.tensor([0.6, 0.8])
    (after,), memory = step_layers(CHAINS["layerwise"](0.01, 0.0), [THETA], [grad], None)
    torch.testing.assert_close(after, torch.tensor([2.97, 3.96]), **EXACT)
    assert memory == ()
    (after,), memory = step_layers(CHAINS["lars"](0.01, 0.0), [THETA], [grad], None)
    torch.testing.assert_close(after, torch.tensor([2.97, 3.96]), **EXACT)
    torch.testing.assert_close(memory[0][0], 0.1 * grad)
    decayed, _ = step_layers(CHAINS["lars"](0.01, 0.5), [THETA], [grad], None)
    u = 0.1 * grad + 0.5 * THETA
    torch.testing.assert_close(decayed[0], THETA - 0.01 * 5 / u.norm() * u)


def test_a_chain_hands_each_part_its_own_memory() -> None:
    both = chain(trace(0.5), scale_by_adam((0.9, 0.9), 0.0), trace(0.25))
    assert both.moments == 4
    memory = both.init([THETA])
    updates, memory = both.apply([GRAD], [THETA], memory)
    first = 0.5 * GRAD
    scaled = 0.1 * first / (0.1 * first**2).sqrt()
    kept = [moment[0] for moment in memory]
    for value, expected in zip(kept, [first, 0.1 * first, 0.1 * first**2, 0.75 * scaled],
                               strict=True):  # fmt: skip
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(updates[0], 0.75 * scaled)


@pytest.mark.parametrize("name", CHAINS)
def test_step_ignores_the_scale_of_the_gradient_and_has_length_lr_tau(name: str) -> None:
    theta = [torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    grads = [torch.randn_like(p) for p in theta]
    step = CHAINS[name](0.02, 0.0, eps=0.0)
    one, _ = step_layers(step, theta, grads, None)
    for scale in (1e-6, 1e4):
        other, _ = step_layers(step, theta, [scale * g for g in grads], None)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    for before, after in zip(theta, one, strict=True):
        moved = float((after - before).norm())
        assert moved == pytest.approx(0.02 * float(before.norm()), rel=1e-9)


def literal_lamb(theta: Tensor, grads: list[Tensor], lr: float) -> Tensor:
    """One tensor, coordinate by coordinate, straight from the update rule."""
    m, v, p = [0.0] * len(theta), [0.0] * len(theta), theta.tolist()
    for grad in grads:
        g = grad.tolist()
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b * b for a, b in zip(v, g, strict=True)]
        u = [a / (math.sqrt(b) + 1e-6) + 1e-4 * c for a, b, c in zip(m, v, p, strict=True)]
        tau = min(math.sqrt(sum(c * c for c in p)), 10.0)
        length = math.sqrt(sum(c * c for c in u))
        ratio = tau / length if tau > 0 and length > 0 else 1.0
        p = [c - lr * ratio * d for c, d in zip(p, u, strict=True)]
    return torch.tensor(p, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_many_steps_equal_the_literal_version_and_the_state_carries_over(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(6, generator=generator, dtype=torch.float64)
    grads = [torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(7)]
    params, state = [theta], None
    for grad in grads:
        params, state = lalr_step(params, [grad], state, lr=0.03)
    torch.testing.assert_close(params[0], literal_lamb(theta, grads, 0.03), rtol=1e-12, atol=1e-12)
    fresh, _ = lalr_step(params, [grads[0]], None, lr=0.03)
    carried, _ = lalr_step(params, [grads[0]], state, lr=0.03)
    assert not torch.allclose(fresh[0], carried[0])


def test_replicas_that_decode_the_same_bytes_stay_equal() -> None:
    """Two-sided quantisation: server and workers step on the same decoded average."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(40, 3, generator=generator), torch.randn(7, generator=generator)]
    replicas = [[p.clone() for p in start] for _ in range(4)]
    states: list[LalrState | None] = [None] * 4
    for _ in range(10):
        packets = []
        for p in start:
            up = [quantize(torch.randn_like(p), generator=generator) for _ in range(3)]
            average = torch.stack([q.dequantize() for q in up]).mean(0)
            packets.append(quantize(average, generator=generator).to_bytes())
        for i in range(4):
            grads = [Quantized.from_bytes(packet).dequantize() for packet in packets]
            replicas[i], states[i] = lalr_step(replicas[i], grads, states[i], lr=0.05)
    for other in replicas[1:]:
        assert all(torch.equal(a, b) for a, b in zip(replicas[0], other, strict=True))
    assert not torch.equal(replicas[0][0], start[0])


def test_inputs_and_old_state_stay_as_they_are() -> None:
    theta, grad = torch.nn.Parameter(THETA.clone()), GRAD.clone()
    _, state = lalr_step([theta], [grad], None, lr=0.1)
    kept = state.means[0].clone(), state.squares[0].clone()
    (after,), _ = lalr_step([theta], [grad], state, lr=0.1)
    assert torch.equal(theta, THETA) and torch.equal(grad, GRAD) and theta.grad is None
    assert torch.equal(state.means[0], kept[0]) and torch.equal(state.squares[0], kept[1])
    assert not after.requires_grad and after.dtype == torch.float32


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_bad_gradient_never_becomes_the_model(bad: float, name: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        step_layers(CHAINS[name](0.1, 1e-4), [THETA], [torch.tensor([bad, 0.0])], None)


def test_errors_name_the_need_and_the_fact() -> None:
    with pytest.raises(ValueError, match=r"gradients of shapes \[\(2,\)\], got \[\(3,\)\]"):
        lalr_step([THETA], [torch.ones(3)], None, lr=0.1)
    with pytest.raises(ValueError, match="clip needs"):
        lalr_step([THETA], [GRAD], None, lr=0.1, clip=(2.0, 1.0))
    _, memory = step_layers(CHAINS["lars"](0.1, 0.0), [THETA], [GRAD], None)
    with pytest.raises(ValueError, match="needs 2 moments each"):
        step_layers(CHAINS["lamb"](0.1, 0.0), [THETA], [GRAD], memory)


def test_warm_up_then_milestones() -> None:
    schedule = {"name": "multistep", "milestones": [75, 90, 95]}
    rates = [lr_at(k, lr=0.01, schedule=schedule, warmup=20) for k in range(140)]
    assert rates[:20] == pytest.approx([0.01 * (k + 1) / 20 for k in range(20)])
    assert rates[20:95] == pytest.approx([0.01] * 75)
    assert rates[95:110] == pytest.approx([0.001] * 15)
    assert rates[110:115] == pytest.approx([1e-4] * 5)
    assert rates[115:] == pytest.approx([1e-5] * 25)


def test_cosine_and_constant() -> None:
    schedule = {"name": "cosine", "steps": 100, "final": 0.1}
    rates = [lr_at(k, lr=1.0, schedule=schedule) for k in range(121)]
    assert rates[0] == 1.0 and rates[50] == pytest.approx(0.55)
    assert rates[100:] == pytest.approx([0.1] * 21)
    assert rates[:101] == sorted(rates[:101], reverse=True)
    assert lr_at(999, lr=0.3) == 0.3


def test_every_schedule_starts_at_lr_after_warm_up() -> None:
    given = {
        "constant": {}, "multistep": {"milestones": [5]}, "cosine": {"steps": 9},
        "step": {"every": 2}, "exponential": {}, "cyclic": {"steps": 6}, "plateau": {"losses": []},
    }  # fmt: skip
    assert set(SCHEDULES) == set(given)
    for name, settings in given.items():
        spec = {"name": name, **settings}
        assert lr_at(3, lr=0.2, schedule=spec, warmup=4) == pytest.approx(0.2)
        assert lr_at(4, lr=0.2, schedule=spec, warmup=4) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        lr_at(0, lr=1.0, schedule="cosin")
    with pytest.raises(ValueError, match="at least 0"):
        lr_at(-1, lr=1.0)
