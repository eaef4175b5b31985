"""Coming from elsewhere: ByzFL's numbers and files, krum's signature, Flower's own strategies."""

import copy
import json
import pdb
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from experiments.cli_inputs import experiments_of
from experiments.interop import byzfl, byzfl_values, krum
from fedrobust import aggregation, attacks, data, simulate
from fedrobust.aggregation import aggregate, preaggregate
from fedrobust.attacks import craft
from fedrobust.data import DataError
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import InProcessGrid, Robust
from fedrobust.spec import SpecError

VALUES = json.loads((Path(byzfl.__file__).parent / "byzfl_values.json").read_text())
CASES = VALUES["cases"]

CONFIG = {
    "benchmark_config": {
        "training_algorithm": {"name": "DSGD", "parameters": {}},
        "nb_steps": 4,
        "training_seed": 5,
        "nb_training_seeds": 2,
        "nb_honest_clients": 8,
        "f": [1, 2],
        "data_distribution": [
            {"name": "gamma_similarity_niid", "distribution_parameter": [1.0, 0.5]},
            {"name": "dirichlet_niid", "distribution_parameter": 0.5},
        ],
    },
    "model": {"name": "fc_mnist", "dataset_name": "digits", "learning_rate": 0.1,
              "learning_rate_decay": 1.0, "milestones": []},
    "aggregator": [{"name": "TrMean", "parameters": {}}, {"name": "GeometricMedian"}],
    "pre_aggregators": [{"name": "Clipping", "parameters": {"c": 2.0}}, {"name": "NNM"}],
    "honest_clients": {"momentum": 0.9, "weight_decay": 0.0001, "batch_size": 25},
    "attack": [{"name": "SignFlipping"},
               {"name": "InnerProductManipulation", "parameters": {"tau": [2.0, 3.0]}}],
    "evaluation_and_results": {"evaluation_delta": 2},
}  # fmt: skip


def test_the_recorded_values_are_many_and_byzfls_own():
    assert VALUES["byzfl"] == "0.0.11"
    assert len(CASES) == 3 * (9 + 3 + 4)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['name']}-{c['seed']}")
def test_the_names_give_byzfls_numbers(case):
    rows, settings = byzfl_values.vectors(case["seed"]), case["settings"]
    if case["kind"] == "rule":
        found = aggregate(rows, byzfl.rule(case["name"], **settings))
    elif case["kind"] == "pre":
        found = preaggregate(rows, byzfl.preaggregator(case["name"], **settings))
    else:
        found = craft(rows, byzfl.attack(case["name"], **settings), n=13, f=2)[0]
    assert found.reshape(-1).tolist() == pytest.approx(case["values"], abs=2e-5)


def test_byzfl_itself_still_says_so():
    pytest.importorskip("byzfl", reason="needs byzfl 0.0.11 in the environment")
    found = byzfl_values.values()
    assert {k: v for k, v in found.items() if k != "cases"} == {
        k: v for k, v in VALUES.items() if k != "cases"
    }
    for case, recorded in zip(found["cases"], CASES, strict=True):
        # Six digits of float32 values up to 10: other processors sum in another order.
        assert case.pop("values") == pytest.approx(recorded["values"], rel=1e-5, abs=2e-5)
        assert case == {k: v for k, v in recorded.items() if k != "values"}


def test_every_mapped_name_is_one_of_ours():
    for table, ours in ((byzfl.RULES, aggregation.RULES),
                        (byzfl.PREAGGREGATORS, aggregation.PREAGGREGATORS),
                        (byzfl.PARTITIONS, data.PARTITIONERS)):  # fmt: skip
        assert {make({} if table is not byzfl.PARTITIONS else 0.5)["name"]
                for make in table.values()} <= set(ours)  # fmt: skip
    assert {make({})["name"] for make in byzfl.ATTACKS.values()} <= (
        set(attacks.ATTACKS) | set(attacks.POISONS)
    )
    with pytest.raises(ConfigError, match="no counterpart of ByzFL's aggregator 'MoNNA'"):
        byzfl.rule("MoNNA", f=1)


def test_a_byzfl_file_is_a_sweep(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    runs = experiments_of(path)
    # 2 f x 3 distributions x 2 rules x 3 attacks x 2 seeds
    assert len(runs) == 72 and len({e.run_id for e in runs}) == 72
    assert {(e.clients, e.byzantine) for e in runs} == {(9, 1), (10, 2)}
    assert {e.seed for e in runs} == {5, 6}
    first = runs[0]
    assert [p["name"] for p in first.pre] == ["clip", "nnm"] and first.pre[1]["f"] == 1
    assert first.worker_momentum == 0.9 and first.server.momentum == 0.0
    assert first.training.weight_decay == 0.0001 and first.rounds == 4
    assert {e.partition["name"] for e in runs} == {"similarity", "dirichlet"}
    assert {e.attack["epsilon"] for e in runs} == {1.0, 2.0, 3.0}
    assert {e.model for e in runs} == {"mlp"}
    # one seed instead of two, and each run once though both of ByzFL's seeds become it
    assert len(experiments_of(path, ["data=fashionmnist-sample"], over=["seed=1"])) == 36


def test_a_run_of_a_byzfl_file(tmp_path):
    small = copy.deepcopy(CONFIG)
    small["benchmark_config"] |= {"f": 2, "data_distribution": {"name": "iid"},
                                  "nb_training_seeds": 1}  # fmt: skip
    small["aggregator"] = small["aggregator"][0]
    small["attack"] = small["attack"][0]
    (document,) = byzfl.documents(small)
    assert 0 < simulate(document).accuracy <= 1


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        (("aggregator",), [{"name": "TrMen"}], "did you mean 'TrMean'"),
        (("model", "dataset_name"), "imagenet", "unknown data set 'imagenet'"),
        (("model", "milestones"), [100], "constant here"),
        (("benchmark_config", "training_algorithm"),
         {"name": "FedAvg", "parameters": {"proportion_selected_clients": 0.5,
                                           "local_steps_per_client": 2}}, "every client"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_said(tmp_path, where, value, sentence):
    document = copy.deepcopy(CONFIG)
    document["model"]["learning_rate_decay"] = 0.5
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=sentence):
        experiments_of(path)


def test_other_json_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no ByzFL file: it has no benchmark_config"):
        experiments_of(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="malformed JSON"):
        experiments_of(path)


def test_similarity_partition():
    labels = torch.arange(1000) % 10

    def labels_held(gamma):
        shares = data.partition(labels, {"name": "similarity", "gamma": gamma}, clients=10, seed=1)
        assert sorted(torch.cat(shares).tolist()) == list(range(1000))
        return [len(labels[share].unique()) for share in shares]

    assert labels_held(0.0) == [1] * 10
    assert labels_held(1.0) == [10] * 10
    shares = data.partition(labels, {"name": "similarity", "gamma": 0.5}, clients=10, seed=1)
    assert all(int(labels[s].bincount().max()) > 40 for s in shares)
    with pytest.raises(DataError, match="gamma in"):
        data.partition(labels, {"name": "similarity", "gamma": 1.5}, clients=10, seed=1)


def test_krums_signature():
    gradients = list(byzfl_values.vectors(0))
    multi_krum = krum.aggregator("multi_krum", variant="epfl")
    expected = aggregate(torch.stack(gradients), {"name": "multi_krum", "f": 2, "variant": "epfl"})
    assert torch.equal(multi_krum(gradients, n=11, f=2), expected)
    out = torch.empty(6)
    assert multi_krum(gradients, out, n=11, f=2) is out and torch.equal(out, expected)
    assert torch.equal(krum.aggregator("median")(gradients, n=11, f=5), aggregate(
        torch.stack(gradients), "median"))  # fmt: skip
    with pytest.raises(ValueError, match="told n=12 and got 11"):
        multi_krum(gradients, n=12, f=2)
    with pytest.raises(SpecError, match="did you mean 'krum'"):
        krum.aggregator("krun")


# What Flower's own robust strategies do with 11 models, beside the rule of ours that equals it.
FLOWER = {
    "FedMedian": (FedMedian(), {"name": "median"}),
    "FedTrimmedAvg": (FedTrimmedAvg(beta=0.2), {"name": "trimmed_mean", "f": 2}),
    "Krum": (Krum(num_malicious_nodes=2), {"name": "krum", "f": 2}),
    "MultiKrum": (MultiKrum(num_malicious_nodes=2, num_nodes_to_select=5),
                  {"name": "multi_krum", "f": 2, "m": 5}),
}  # fmt: skip


def lead(strategy, seed=1):
    def client(message, context):
        """Answer with row ``partition-id`` of the test's matrix."""
        row = byzfl_values.vectors(seed)[context.node_config["partition-id"]].numpy()
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord({"w": Array(row)}), "metrics": metrics})
        return Message(content, reply_to=message)

    strategy = copy.deepcopy(strategy)
    strategy.fraction_evaluate = 0.0
    initial = ArrayRecord({"w": Array(np.zeros(6, np.float32))})
    grid = InProcessGrid(client, clients=11, run_config={})
    return strategy.start(grid=grid, initial_arrays=initial, num_rounds=1).arrays["w"].numpy()


@pytest.mark.parametrize("name", sorted(FLOWER))
def test_flowers_strategies_and_ours_agree(name):
    stock, spec = FLOWER[name]
    assert lead(stock) == pytest.approx(lead(Robust(FedMedian(), rule=spec)), abs=1e-5)


@pytest.mark.slow
def test_flowers_bulyan_is_another_rule():
    """It is one ranking, not the recursive selection: a variant here."""
    differences = []
    for seed in range(3):
        rows, flower = byzfl_values.vectors(seed), lead(Bulyan(num_malicious_nodes=2), seed)
        one_pass = aggregate(rows, {"name": "bulyan", "f": 2, "variant": "one_pass"})
        assert flower == pytest.approx(one_pass.numpy(), abs=1e-5)
        ours = aggregate(rows, {"name": "bulyan", "f": 2}).numpy()
        differences.append(np.abs(flower - ours).max())
    assert max(differences) > 1e-2, differences


def test_a_breakpoint_stops_inside_a_client(small, monkeypatch):
    """No Ray, no process: the debugger sees the client's own frame, below ``simulate``."""
    seen = []

    def stop(debugger, frame=None):
        frame = sys._getframe(1)
        while frame is not None:
            seen.append(frame.f_code.co_name)
            frame = frame.f_back

    monkeypatch.setattr(pdb.Pdb, "set_trace", stop)
    from clients import honest

    real = honest.train_alone

    def watched(*arguments, **settings):
        pdb.Pdb().set_trace()
        return real(*arguments, **settings)

    monkeypatch.setattr(honest, "train_alone", watched)
    simulate(small, rounds=1)
    assert {"train_together", "simulate", "test_a_breakpoint_stops_inside_a_client"} <= set(seen)


def test_an_experiment_object_is_a_way_in_too(small):
    assert len(simulate(from_dict(small), rounds=1).runs) == 1
