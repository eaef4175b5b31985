"""Attacks that search against the rule in front of them: what they want, remember and foresee."""

from __future__ import annotations

import pytest
import torch

from experiments.simulation import run_one
from fedrobust.attacks import ATTACKS, step
from fedrobust.attacks.searched import (
    SIZES,
    Trial,
    best_of,
    gradient_search,
    instantaneous,
)
from fedrobust.experiment.load import from_dict
from fedrobust.failures import Refusal
from fedrobust.seeds import generator

N, F, D = 12, 3, 20
SETTING = {
    "data": "digits",
    "model": "linear",
    "clients": 9,
    "byzantine": 2,
    "rounds": 5,
    "seed": 1,
    "rule": "trimmed_mean",
    "attack": "gradient_search",
    "worker_momentum": 0.9,
    "server": {"lr": 0.5, "evaluate_every": 5},
}


def sample(seed=0):
    source = generator(seed, "test")
    return torch.randn(N - F, D, generator=source) * 0.5 + torch.randn(D, generator=source)


def counted(rule):
    calls = []

    def ask(rows):
        calls.append(rows.clone())
        return rule(rows)

    return ask, calls


def mean_rule(rows):
    return rows.mean(0)


def median_rule(rows):
    return rows.double().quantile(0.5, dim=0).to(rows)


@pytest.mark.parametrize(("name", "most"), [("gradient_search", 36), ("drift_search", 52)])
def test_questions_a_round_are_as_documented_and_noted(name, most):
    ask, calls = counted(median_rule)
    state = step(sample(), name, n=N, f=F, rule=ask).state
    calls.clear()
    crafted = step(sample(1), name, n=N, f=F, rule=ask, state=state, round=1)
    assert len(calls) == crafted.notes["calls"] <= most <= 55
    assert all(torch.equal(rows[: N - F], sample(1)) for rows in calls)
    assert all(torch.equal(rows[-1], rows[N - F]) for rows in calls), (
        "all attackers send one vector"
    )
    assert any(torch.equal(rows[-1], crafted.updates[0]) for rows in calls), "it was tried"


def test_momentum_is_looked_through():
    """Updates are m_t = beta m_(t-1) + (1 - beta) g_t: g_t comes back, whatever m is."""
    gradients = [torch.randn(D, generator=generator(t, "g"), dtype=torch.float64) for t in range(4)]
    momentum, state = torch.zeros(D, dtype=torch.float64), None
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        found = instantaneous(momentum, state, 0.9)
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-5)
        state = {"mean": momentum.float()}


def test_the_mean_is_pushed_straight_against_the_gradient_as_far_as_may_be():
    honest = sample()
    sent = step(honest, "gradient_search", n=N, f=F, rule=mean_rule)
    assert sent.notes["size"] == SIZES[-1] and sent.notes["direction"] == "-gradient"
    push = (sent.updates[0] - honest.mean(0)).double()
    gradient = honest.double().mean(0)
    assert float(torch.cosine_similarity(push, -gradient, dim=0)) > 1 - 1e-6
    sigma = float(honest.double().std(0, correction=0).norm())
    assert float(push.norm()) == pytest.approx(256 * sigma, rel=1e-5)


def test_the_search_is_worth_more_than_any_single_size_against_a_selecting_rule():
    from fedrobust.aggregation import aggregate

    honest = sample()
    krum = {"name": "krum", "f": F}
    gradient = honest.double().mean(0)

    def worth(vector):
        rows = torch.cat([honest, vector.to(honest).expand(F, -1)])
        return -float(aggregate(rows, krum).double() @ gradient)

    sent = step(honest, "gradient_search", n=N, f=F, rule=krum).updates[0]
    coarse = {"name": "gradient_search", "refinements": 0}
    plain = step(honest, coarse, n=N, f=F, rule=krum).updates[0]
    assert worth(sent) >= worth(plain) - 1e-9
    assert worth(sent) > worth(honest.mean(0)), "Krum follows the honest mean less far"


def test_drift_adds_up_over_the_rounds():
    state, sum_of_errors = None, torch.zeros(D, dtype=torch.float64)
    for t in range(4):
        honest = sample(t)
        crafted = step(honest, "drift_search", n=N, f=F, rule=median_rule, state=state, round=t)
        output = median_rule(torch.cat([honest, crafted.updates])).double()
        sum_of_errors += output - honest.double().mean(0)
        torch.testing.assert_close(
            crafted.state["drift"].double(), sum_of_errors, atol=1e-4, rtol=0
        )
        assert state is None or not torch.equal(state["drift"], crafted.state["drift"])
        state = crafted.state
    errors = torch.stack([median_rule(sample(t)) - sample(t).mean(0) for t in range(4)])
    assert float(sum_of_errors.norm()) > 2 * float(errors.sum(0).norm())


def test_a_refusing_rule_and_huge_updates_end_no_run():
    def refuses(rows):
        raise Refusal("no")

    sent = step(sample(), "gradient_search", n=N, f=F, rule=refuses)
    assert torch.allclose(sent.updates[0], sample().mean(0)), "the honest mean, where nothing works"
    for name in ("gradient_search", "drift_search"):
        assert torch.isfinite(step(sample() * 1e30, name, n=N, f=F, rule=median_rule).updates).all()


def test_a_mistake_in_the_rule_is_not_taken_for_a_refusal():
    def mine(rows):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        step(sample(), "gradient_search", n=N, f=F, rule=mine)


def test_rounding_decides_nothing():
    trials = [Trial("a", 1.0, 5.0), Trial("a", 2.0, 5.0 * (1 + 1e-9)), Trial("a", 4.0, 4.0)]
    assert best_of(trials).size == 1.0
    assert best_of([Trial("a", 1.0), Trial("b", 1.0, -3.0)]).direction == "b"


def test_shift_is_two_sigma_against_the_gradient():
    honest = sample()
    sent = step(honest, "gradient_shift", n=N, f=F).updates[0].double()
    centre = honest.double().mean(0)
    wanted = centre - 2 * honest.double().std(0, correction=0).norm() * centre / centre.norm()
    torch.testing.assert_close(sent, wanted, rtol=1e-5, atol=1e-5)


RULES = [
    "trimmed_mean",
    {"name": "centered_clipping", "tau": 0.1},
    "foolsgold",
    "bulyan",
    {"name": "safeguard", "window": 8, "threshold": 1.0, "short_window": 2, "short_threshold": 1.0},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r if isinstance(r, str) else r["name"])
@pytest.mark.parametrize("attack", ["gradient_search", "opt_ipm"])
def test_what_colluders_foresee_is_what_the_server_does(rule, attack):
    """Rules with memory as well: the colluders keep it as the server does."""
    n = 11 if rule == "bulyan" else 9
    e = from_dict(SETTING | {"rule": rule, "attack": attack, "clients": n})
    rows = [row for row in run_one(e) if "search" in row]
    assert len(rows) == 5
    for row in rows:
        assert row["search"]["deviation"] == pytest.approx(row["impact"]["deviation"], rel=1e-4)


def test_memory_follows_the_colluders_when_cohorts_are_sampled():
    """The first Byzantine client crafts whoever was asked, so nothing is forgotten."""
    clipping = {"name": "centered_clipping", "tau": 0.1}
    e = from_dict(SETTING | {"rule": clipping, "participation": 0.7, "rounds": 6, "byzantine": 3})
    rows = [row for row in run_one(e) if row["round"]]
    assert {tuple(row["byzantine"]) for row in rows if "byzantine" in row} and len(rows) == 6
    together = [row for row in rows if "search" in row]
    assert len(together) == 6
    for row in together:
        assert row["search"]["deviation"] == pytest.approx(row["impact"]["deviation"], rel=1e-4)


def test_search_with_momentum_does_more_harm_than_ipm_tuned_against_the_rule():
    base = SETTING | {"model": "mlp", "clients": 20, "byzantine": 4, "rounds": 25}
    base |= {"server": {"lr": 0.5, "momentum": 0.0, "evaluate_every": 25}}
    found = {}
    for attack in ("opt_ipm", "gradient_search"):
        found[attack] = run_one(from_dict(base | {"attack": attack}))[-1]["accuracy"]
    assert found["gradient_search"] < found["opt_ipm"] - 0.05


def test_state_is_a_value_and_settings_are_few():
    honest = sample()
    state = step(honest, "drift_search", n=N, f=F, rule=median_rule).state
    kept = {key: value.clone() for key, value in state.items()}
    step(sample(1), "drift_search", n=N, f=F, rule=median_rule, state=state)
    assert all(torch.equal(state[key], kept[key]) for key in kept)
    assert ATTACKS["gradient_search"] is gradient_search


def test_the_forecast_is_asked_in_the_servers_order(monkeypatch):
    """Rounding of distances depends on the order, and may decide which of two rows is nearer."""
    from clients import foresight
    from fedrobust import aggregation

    seen = []

    def noted(spec, *, pre=()):
        built = aggregation.build(spec, pre=pre)

        def apply(rows, *given, **more):
            seen.append(rows.clone())
            return built.apply(rows, *given, **more)

        return aggregation.Aggregator(built.init, apply)

    monkeypatch.setattr(foresight, "build", noted)
    e = from_dict(SETTING | {"rule": "nnm+krum", "rounds": 1})
    (row,) = [row for row in run_one(e) if "search" in row]
    asked = seen[-1]
    alike = [i for i in range(9) if sum(torch.equal(asked[i], other) for other in asked) == 2]
    assert alike == row["byzantine"] and alike != [7, 8], "the attackers stand where they belong"
    assert row["search"]["deviation"] == row["impact"]["deviation"]


def test_an_imagined_cohort_has_the_spread_and_the_distances_that_the_view_lets_expect():
    from clients.cohorts import imagined

    source = generator(1, "truth")
    centre = torch.randn(4000, generator=source)
    honest = centre + 0.3 * torch.randn(40, 4000, generator=source)
    found = imagined(honest[:5], 16, generator(2, "draws"))
    assert found.shape == (16, 4000) and found.dtype == honest.dtype
    distances = torch.pdist(honest), torch.pdist(found)
    assert float(distances[1].mean() / distances[0].mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(found, imagined(honest[:5], 16, generator(2, "draws")))
    alone = imagined(honest[:1], 3, generator(2, "draws"))
    torch.testing.assert_close(alone, honest[:1].expand(3, -1))


@pytest.mark.parametrize("level", ["own", "colluding"])
@pytest.mark.parametrize("rule", ["krum", "median"])
def test_who_sees_few_updates_asks_the_rule_with_as_many_rows_as_there_are(
    level, rule, monkeypatch
):
    """None of them is an honest client's: the attackers use what they have themselves."""
    from clients import foresight, malicious

    asked, stepped = set(), []
    build, plain = foresight.build, malicious.step

    def noted(spec, *, pre=()):
        built = build(spec, pre=pre)

        def apply(rows, *given, **more):
            asked.add(len(rows))
            return built.apply(rows, *given, **more)

        return type(built)(built.init, apply)

    def seen(view, *given, **more):
        stepped.append((len(view), more["momentum"]))
        return plain(view, *given, **more)

    monkeypatch.setattr(foresight, "build", noted)
    monkeypatch.setattr(malicious, "step", seen)
    attack = {"name": "gradient_search", "knowledge": level}
    e = from_dict(SETTING | {"rule": rule, "attack": attack, "rounds": 2})
    rows = run_one(e)
    assert asked == {9} and rows[-1]["replies"] == 9
    assert set(stepped) == ({(4, 0.0)} if level == "own" else {(2, 0.9)})
    assert run_one(e)[-1]["accuracy"] == rows[-1]["accuracy"]


def test_colluding_searchers_do_harm_with_what_they_have():
    base = SETTING | {"model": "mlp", "clients": 20, "byzantine": 4, "rounds": 25, "rule": "krum"}
    base |= {"server": {"lr": 0.5, "momentum": 0.0, "evaluate_every": 25}}
    attacked = from_dict(base | {"attack": {"name": "gradient_search", "knowledge": "colluding"}})
    clean = run_one(from_dict(base | {"attack": "none"}))[-1]["accuracy"]
    assert run_one(attacked)[-1]["accuracy"] < clean - 0.05
