"""Whose word decides how much a client counts: in experiments, strategies, and around any app."""

import json
import math

import numpy as np
import pytest
import tomli_w
import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from experiments import deployment
from experiments.simulation import run_one
from experiments.weight_shares import sentences
from fedrobust import simulate
from fedrobust.aggregation import WEIGHTINGS, weighing
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.failures import Refusal
from fedrobust.flower import InProcessGrid, Robust, RobustGrid
from fedrobust.flower.reply_metrics import claim_of
from fedrobust.secret import fresh
from fedrobust.spec import SpecError
from strategies.session import run
from tests.flower.test_robust_wrapper import app_of, lead, record
from tests.strategies.test_strategies import reply, start

UNEVEN = {"partition": {"name": "dirichlet", "alpha": 0.5}}
TABLE = {str(client): float(client + 1) for client in range(10)}


def test_the_table_of_weightings():
    assert set(WEIGHTINGS) == {"equal", "attested", "truncated", "claimed"}
    assert weighing("equal", rule="krum")([1, 2], [3, 4]) is None
    claims = weighing("claimed", rule="mean")([1, 2, 3, 4], [3, math.inf, -5, None])
    assert claims.tolist() == [3, 0, 0, 0]
    table = {"name": "attested", "table": {"7": 2.0, 9: 1}}
    assert weighing(table, rule="median")([9, 8, 7], [1e9] * 3).tolist() == [1, 0, 2]


def test_truncated_takes_the_rules_f_and_refuses_for_one_round_only():
    spec = {"name": "truncated", "share": 0.5}
    weigh = weighing(spec, rule={"name": "trimmed_mean", "f": 2})
    found = weigh(range(6), [1000.0, 1000, 1, 1, 1, 1])
    assert float(found[:2].sum()) == pytest.approx(0.5)
    with pytest.raises(Refusal, match=r"share > 0\.666667"):
        weigh(range(3), [1.0, 1, 1])
    with pytest.raises(Refusal, match="clients claim anything"):
        weigh(range(6), [0.0] * 6)
    own = weighing(spec | {"f": 1}, rule={"name": "trimmed_mean", "f": 2})
    assert float(own(range(6), [1000.0, 1000, 1, 1, 1, 1])[0]) <= 0.5


@pytest.mark.parametrize(
    ("spec", "rule", "words"),
    [
        ("atested", "mean", "unknown weights 'atested'; did you mean 'attested'"),
        ({"name": "truncated"}, "mean", "needs the parameter 'share'"),
        ({"name": "truncated", "share": 0.4}, "median", "needs a whole f of at least 1, got None"),
        ({"name": "truncated", "share": 1.5, "f": 1}, "median", "share > 0 and <= 1, got 1.5"),
        ({"name": "attested"}, "mean", "need one of table and file"),
        ({"name": "attested", "table": {"1": -2.0}}, "mean", "'1' >= 0, got -2.0"),
        ({"name": "attested", "table": {"1": 0.0}}, "mean", "at least one above 0"),
        ({"name": "attested", "file": "nowhere.toml"}, "mean", "cannot read 'nowhere.toml'"),
        ({"name": "attested", "table": {"1": 1.0}}, {"name": "krum", "f": 1}, "no weighted form"),
        ("claimed", "median", "with the plain mean only, got 'median'"),
    ],
)
def test_what_cannot_be_weighted_says_why(spec, rule, words):
    with pytest.raises(SpecError, match=words):
        weighing(spec, rule=rule)


# Experiments


def rows(small, **changes):
    return run_one(from_dict({**small, **changes}))


def test_the_row_holds_the_weights_of_the_partition(small):
    told = {name: rows(small, **UNEVEN, rule="mean", weights=name)[1:]
            for name in ("equal", "attested", "claimed")}  # fmt: skip
    assert "client_weights" not in told["equal"][0]
    used = told["attested"][0]["client_weights"]
    assert sum(used) == pytest.approx(1, abs=1e-5) and max(used) > 2 * min(used)
    assert told["claimed"][0]["client_weights"] == used, "honest clients claim what they hold"
    assert told["attested"][0]["weights"] == used
    assert told["equal"][-1]["loss"] != told["attested"][-1]["loss"] == told["claimed"][-1]["loss"]


def test_a_table_or_its_file_weighs_clients_by_number(small, tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(TABLE))
    (tmp_path / "w.toml").write_text("".join(f'"{k}" = {v}\n' for k, v in TABLE.items()))
    specs = [{"name": "attested", "table": TABLE}]
    specs += [{"name": "attested", "file": str(tmp_path / f"w.{end}")} for end in ("json", "toml")]
    made = [from_dict({**small, "weights": spec}) for spec in specs]
    assert len({e.run_id for e in made}) == 1, "a run is known by the table, not by its file"
    first = run_one(made[0])[1]
    expected = [w / 55 for w in TABLE.values()]
    assert first["client_weights"] == pytest.approx(expected, abs=1e-6)


def test_equal_tables_are_no_weights(small):
    table = {"name": "attested", "table": dict.fromkeys(TABLE, 3.0)}
    plain, weighted = (rows(small, rule="median", weights=w)[-1] for w in ("equal", table))
    assert plain["loss"] == pytest.approx(weighted["loss"], abs=1e-6)


def test_truncated_claims_in_a_run(small):
    spec = {"name": "truncated", "share": 0.3}
    e = from_dict({**small, **UNEVEN, "weights": spec})
    assert e.weights == {"name": "truncated", "share": 0.3, "f": 2}, "f is written out"
    for row in run_one(e)[1:]:
        assert sum(sorted(row["client_weights"])[-2:]) <= 0.3 + 1e-5
    asked = rows(small, **UNEVEN, weights=spec | {"share": 0.45}, participation=0.8)[1:]
    assert all(row["client_weights"].count(None) == 2 for row in asked)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "krum", "weights": "attested"}, "krum has no weighted form: it counts updates"),
        ({"rule": "nnm+krum", "weights": "claimed"}, "with the plain mean only, got 'krum'"),
        ({"pre": ["nnm"], "rule": "mean", "weights": "claimed"}, "with the plain mean only"),
        ({"weights": {"name": "truncated", "share": 0.1}}, "a share above f / n = 0.2 of those"),
        ({"weights": {"name": "attested", "table": {"0": 1.0}}}, "missing or unknown: 1, 2, 3"),
        ({"weights": {"name": "attested", "table": TABLE | {"0": 500.0}}},
         "the 2 heaviest clients hold 92% of the weight, it bears less than 50%"),
        ({"weights": {"name": "attested", "file": "nowhere.json"}}, "cannot read 'nowhere.json'"),
        ({"weights": "attestd"}, "unknown weights 'attestd'; did you mean 'attested'"),
        ({"weights": 3}, "weights: a spec is a name"),
        ({"rule": "mean", "weights": "claimed", "adversarial": {"federated": {"slack": 0.1}}},
         "exclude each other"),
        ({"redundancy": {"name": "aspis", "batch": 240}, "weights": "equal"},
         "weights is not honoured in redundancy mode"),
    ],
)  # fmt: skip
def test_each_mistake_of_an_experiment_gets_its_sentence(small, changes, words):
    with pytest.raises(ConfigError) as caught:
        from_dict({**small, **changes})
    assert words in str(caught.value)


def test_on_real_nodes_somebody_has_to_attest(small):
    """There the server has a secret, and nodes may hold data that it has never seen."""
    from clients.client_app import make_app
    from clients.modes import handlers_for

    e = from_dict({**small, "weights": "attested"})
    own = handlers_for(e)
    nodes = InProcessGrid(make_app(lambda context: own), clients=10, together=own.together)
    with pytest.raises(ConfigError, match="need a table or a file where the nodes hold data"):
        run(nodes, e, secret=fresh())


def test_a_stock_strategy_has_weights_of_its_own(small):
    with pytest.raises(ConfigError, match="set weights = 'equal'"):
        simulate(small, rule=FedAvg(), weights="attested")


# Strategies and wrappers


def test_a_strategy_weighs_nodes_by_the_operators_table():
    moves = [0.0, 1.0, 4.0]
    strategy, _, _ = start(moves, rule="mean", weights="claimed")
    told = strategy.history[0]["client_weights"]
    nodes = sorted(told)
    assert all(w == pytest.approx(1 / 3) for w in told.values())
    table = {"name": "attested", "table": {nodes[0]: 1.0, nodes[2]: 3.0}}
    strategy, _, _ = start(moves, rule="mean", weights=table)
    assert strategy.history[0]["client_weights"] == pytest.approx(
        {nodes[0]: 0.25, nodes[1]: 0.0, nodes[2]: 0.75}
    )
    kept, _, _ = start(
        moves, rule="mean", weights={"name": "attested", "table": {"987654321": 1.0}}
    )
    assert "weights need at least one above 0" in kept.history[0]["kept"]
    with pytest.raises(SpecError, match="krum has no weighted form"):
        start(moves, rule="krum:f=0", weights="truncated:share=0.5,f=1")


def claiming(claim):
    def answer(message, sent):
        values = {**sent, "w": sent["w"] + np.float32(1000)}
        return reply(message, values, **{"num-examples": claim})

    return answer


@pytest.mark.parametrize("claim", [10**9, 1e300, math.inf, math.nan, -14])
def test_one_claim_does_not_own_the_strategys_result(claim):
    moves = [claiming(claim), 1.0, 1.0, 1.0, 1.0]
    spec = {"name": "truncated", "share": 0.4, "f": 1}
    strategy, values, _ = start(moves, rule="median", weights=spec)
    assert "kept" not in strategy.history[0]
    assert float(np.abs(values["w"]).max()) <= 4.01
    assert max(strategy.history[0]["client_weights"].values()) <= 0.4 + 1e-9


@pytest.mark.parametrize("seam", ["wrapper", "grid"])
def test_claims_are_cut_around_any_app(seam):
    def moved(arrays, place):
        return {"w": arrays["w"] + np.float32(1000.0 if place == 0 else 1.0)}

    def metrics(place):
        return {"num-examples": 10**9 if place == 0 else 10}

    app = app_of(moved, metrics=metrics)
    weights = {"name": "truncated", "share": 0.4}
    given = {"rule": "trimmed_mean:f=1", "weights": weights}
    at = record(w=np.zeros(2, np.float32))
    kept = []
    if seam == "wrapper":
        strategy = Robust(FedAvg(), **given)
        result = lead(strategy, app, at, rounds=1, clients=5)
        kept.append(strategy)
    else:

        def wrap(grid):
            kept.append(RobustGrid(grid, **given))
            return kept[0]

        result = lead(FedAvg(), app, at, rounds=1, clients=5, wrap=wrap)
    assert np.allclose(result.arrays["w"].numpy(), 1.0)
    history = kept[0].history
    assert list(history.columns)[-1] == "client_weight"
    assert history.client_weight.max() == pytest.approx(0.4)
    assert history.client_weight.sum() == pytest.approx(1)
    plain = Robust(FedAvg(), rule="trimmed_mean:f=1")
    assert "client_weight" not in plain.history.columns, "the contract's columns without weights"


def test_the_wrapper_reads_the_claim_that_its_strategy_reads():
    def metrics(place):
        return {"images": 30 if place == 0 else 10}

    app = app_of(lambda arrays, place: {"w": arrays["w"] + np.float32(place)}, metrics=metrics)
    strategy = Robust(FedAvg(weighted_by_key="images"), rule="mean", weights="claimed")
    lead(strategy, app, record(w=np.zeros(2, np.float32)), rounds=1, clients=3)
    assert sorted(strategy.history.client_weight) == pytest.approx([0.2, 0.2, 0.6])
    with pytest.raises(SpecError, match="has no weighted form: name a rule"):
        Robust(FedAvg(), rule=lambda rows: rows.mean(0), weights="claimed")


def test_a_claim_is_one_number_or_none():
    def content(**records):
        return RecordDict({name: MetricRecord(table) for name, table in records.items()})

    assert claim_of(content(m={"num-examples": 3})) == 3
    assert claim_of(content(m={"num-examples": [3, 4]})) is None
    assert claim_of(content(m={"loss": 1.0})) is None
    assert claim_of(content(a={"num-examples": 3}, b={"num-examples": 9})) is None


# What a round measured


def test_every_evaluated_row_of_a_simulation_holds_its_coefficient(small):
    for rule, attack in (("mean", "none"), ("trimmed_mean", "ipm"), ("median", "none")):
        told = rows(small, rule=rule, attack=attack)[1:]
        assert all(row["kappa"] >= 0 for row in told)
        assert (max(row["kappa"] for row in told) < 1e-9) == (rule == "mean")
    small["server"] |= {"evaluate_every": 2}
    assert ["kappa" in row for row in rows(small, rule="median")] == [False, False, True, True]
    small["server"] |= {"evaluate_every": 1}
    attacked = rows(small, rule="trimmed_mean", attack="ipm")[1]
    assert attacked["kappa"] == pytest.approx(attacked["impact"]["deviation"] ** 2, rel=1e-3)


def test_real_nodes_have_no_coefficient(small):
    from clients.client_app import make_app
    from clients.modes import handlers_for

    e = from_dict(small)
    own, told = handlers_for(e), []
    nodes = InProcessGrid(make_app(lambda context: own), clients=10, together=own.together)
    run(nodes, e, secret=fresh(), on_row=told.append)
    assert len(told) == 4 and not any("kappa" in row for row in told)


def test_the_coefficient_in_blocks_is_that_of_the_whole():
    from fedrobust.aggregation import measured

    source = torch.Generator().manual_seed(0)
    honest = torch.randn(3, 400_000, generator=source) * 1e-3 + 50
    aggregate = honest[0] + 1e-3
    exact = honest.double()
    mean = exact.mean(0)
    spread = float((exact - mean).square().sum()) / 3
    expected = float((aggregate.double() - mean).square().sum()) / spread
    assert measured(aggregate, honest) == pytest.approx(expected, rel=1e-6)
    assert measured(aggregate.double(), honest.double()) == pytest.approx(expected, rel=1e-9)
    huge = torch.tensor([[1e30, 0.0], [-1e30, 0.0]])
    assert measured(huge[0], huge) == pytest.approx(1.0), "squares beyond float32"
    tiny = torch.tensor([[1e-25, 0.0], [-1e-25, 0.0]])
    assert measured(tiny[0], tiny) == pytest.approx(1.0), "squares below float32"


# What is said before the start

UNEQUAL = {"partition": {"name": "sizes", "shares": [5.0, 3.0, *[0.25] * 8]}}


def test_check_says_what_the_heaviest_hold(small):
    told = [
        from_dict({**small, **UNEQUAL, "rule": rule, "weights": weights})
        for rule, weights in (
            ("median", "attested"), ("median", "equal"), ("mean", "claimed"),
            ("trimmed_mean", {"name": "truncated", "share": 0.4}),
            ("median", {"name": "attested", "table": TABLE}),
        )
    ]  # fmt: skip
    assert sentences(told, data_root=None) == [
        "median: the 2 heaviest of 10 clients hold 80% of the weight, NOT less than half",
        "mean: clients count by what they claim; one claim may own the result",
        "trimmed_mean f=2: no 2 clients hold more than 40% of the weight",
        "median: the 2 heaviest of 10 clients hold 35% of the weight, less than half",
    ]


def test_sizes_that_a_rule_does_not_bear_are_refused_before_the_start(small):
    e = from_dict({**small, **UNEQUAL, "weights": "attested"})
    with pytest.raises(ConfigError, match="the 2 heaviest clients hold 80% of the weight"):
        check_against_data([e])
    check_against_data([from_dict({**small, **UNEQUAL, "weights": "attested:share=0.4"})])


def test_nodes_of_their_own_data_are_refused_before_anything_is_sent(small, tmp_path):
    file = tmp_path / "e.toml"
    file.write_text(tomli_w.dumps({**small, "weights": "attested"}))
    with pytest.raises(ConfigError, match="need a table or a file where the nodes hold data"):
        deployment.deploy(file, None, superlink="127.0.0.1:1", output=tmp_path)
