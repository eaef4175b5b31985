"""Layers and the global model reach rules and attacks that ask, whoever runs them."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedrobust import simulate
from fedrobust.aggregation import Rule, installed
from fedrobust.attacks import Attack
from fedrobust.attacks import installed as attack_installed
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import Attackers, InProcessGrid, Robust, RobustGrid
from fedrobust.model_layers import checked_layers, columns, layers_of
from fedrobust.models import low_rank
from fedrobust.models.adapters import Products
from strategies import RobustStrategy

TOLD = []
SETTING = {
    "data": "digits", "model": "mlp", "clients": 6, "byzantine": 1, "rounds": 2, "seed": 1,
    "rule": "median", "attack": "none", "server": {"lr": 0.5, "evaluate_every": 2},
}  # fmt: skip


def asking(updates, *, layers, model):
    """Note what it is told, and take the mean."""
    TOLD.append((layers, model.clone(), updates.shape[1]))
    return updates.mean(0)


ASKING = Rule(name="asking", compute=asking)


def prying(honest, *, n, f, layers, model):
    """Note what it is told, and send zeros."""
    TOLD.append((layers, model.clone(), honest.shape[1]))
    return torch.zeros(f, honest.shape[1])


@pytest.fixture(autouse=True)
def _fresh():
    TOLD.clear()


def test_layers_are_checked_and_cut_the_vector():
    layers = layers_of({"w": (2, 3), "b": (), "c": (0,)})
    assert columns(layers) == [slice(0, 6), slice(6, 7), slice(7, 7)]
    assert checked_layers([["w", [2, 3]], ["b", []], ["c", [0]]], 7, "x") == layers
    for bad, words in ((layers, "needs layers with 8 values in all, got 7"), ([3], "pairs, got")):
        with pytest.raises(ValueError, match=words):
            checked_layers(bad, 8, "x")


@pytest.mark.parametrize("rule", [ASKING, asking])
def test_a_rule_of_ones_own_is_told_in_a_simulation(rule):
    simulate(SETTING, rule=rule)
    layers, first, d = TOLD[0]
    assert sum(int(np.prod(shape)) for _, shape in layers) == d == len(first)
    assert [name.rpartition(".")[2] for name, _ in layers][:2] == ["weight", "bias"]
    assert len(TOLD) == 2 and not torch.equal(first, TOLD[1][1]), "the model of its own round"


def test_an_attack_of_ones_own_is_told_what_the_rule_is_told():
    attack = Attack(name="prying", craft=prying)
    simulate(SETTING, rule=ASKING, attack=attack)
    told = [one for one in TOLD if one[0][0][0] != "rehearsal"]  # before the start, invented rows
    assert len(told) == 4 and len({one[0] for one in told}) == 1
    assert torch.equal(told[0][1], told[1][1]) and not torch.equal(told[0][1], told[2][1])


@pytest.mark.parametrize("pre", [(), ("nnm",), ({"name": "clip", "bound": 1.0},)], ids=str)
@pytest.mark.parametrize("rule", ["lasa", "alignins"])
def test_rules_that_ask_run_by_name_under_attacks_that_ask_them(rule, pre):
    for attack in ("hidra", {"name": "opt_ipm", "evaluations": 3}):
        results = simulate(SETTING, rule=rule, pre=pre, attack=attack)
        frame = results.frame
        assert "kept" not in frame or frame["kept"].isna().all()
        assert results.accuracy > 0.1


def test_a_redundant_second_stage_is_told_too():
    redundancy = {"name": "aspis", "replication": 3, "q": 1, "batch": 60, "detection": "none"}
    setting = SETTING | {"rounds": 1, "redundancy": redundancy, "byzantine": 0}
    with installed(ASKING):
        simulate(setting | {"rule": "asking"})
    assert TOLD and sum(int(np.prod(shape)) for _, shape in TOLD[0][0]) == TOLD[0][2]


def torch_app(step):
    app = ClientApp()

    @app.train()
    def train(message, context):
        place = context.node_config["partition-id"]
        held = {name: a.numpy() for name, a in message.content["arrays"].items()}
        held = {k: v + np.float32(step(place)) if v.dtype.kind == "f" else v
                for k, v in held.items()}  # fmt: skip
        arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in held.items()})
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}),
            reply_to=message,
        )

    return app


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


WANTED = {name: tuple(p.shape) for name, p in module().named_parameters()}


def strategies(rule):
    return {
        "own": (RobustStrategy(rule=rule), lambda grid: grid),
        "around a strategy": (Robust(FedAvg(), rule=rule), lambda grid: grid),
        "in front of a grid": (FedAvg(), lambda grid: RobustGrid(grid, rule=rule)),
    }


@pytest.mark.parametrize("place", strategies("median"))
def test_rules_are_told_around_anybodys_app(place):
    start = ArrayRecord(module().state_dict())
    with installed(ASKING):
        strategy, wrap = strategies("asking")[place]
        grid = wrap(InProcessGrid(torch_app(lambda i: i), clients=5, run_config={}))
        strategy.start(grid=grid, initial_arrays=start, num_rounds=1)
    layers, model, d = TOLD[-1]
    assert dict(layers) == WANTED and d == sum(int(np.prod(s)) for s in WANTED.values())
    wanted = torch.cat([p.detach().flatten() for p in module().parameters()])
    assert torch.allclose(model.float(), wanted)


@pytest.mark.parametrize("rule", ["lasa", "alignins", "alignins:share=0.5", "lasa:sparsity=0.1"])
@pytest.mark.parametrize("place", strategies("median"))
def test_shipped_rules_that_ask_step_anybodys_model(place, rule):
    strategy, wrap = strategies(rule)[place]
    app = torch_app(lambda i: 100.0 if i == 0 else 1 + 0.1 * i)
    grid = wrap(InProcessGrid(app, clients=6, run_config={}))
    start = ArrayRecord(module().state_dict())
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=1)
    moved = result.arrays["0.bias"].numpy() - start["0.bias"].numpy()
    assert 0.5 < float(moved.mean()) < 3


def test_nodes_that_start_from_several_models_cost_a_rule_that_asks_its_round():
    """Then there is no global model; the layers are there still."""

    def answer(rule):
        grid = RobustGrid(
            InProcessGrid(torch_app(lambda i: 1.0), clients=4, run_config={}), rule=rule
        )
        messages = []
        for node in range(1, 5):
            arrays = ArrayRecord({"w": Array(np.full(3, node, np.float32))})
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({})})
            messages.append(Message(content, node, "train"))
        grid.send_and_receive(messages)
        return set(grid.history["reason"])

    assert answer("alignins") == {
        "the rule needs one model that all nodes start from, and they were sent several"
    }
    assert answer("lasa") == {""}


def test_mpaf_pulls_anybodys_model_to_its_own():
    """Updates are added there and subtracted here: the sign follows."""
    start = ArrayRecord({"w": Array(np.full(50, 5.0, np.float32))})
    attack = {"name": "mpaf", "factor": 2.5, "std": 0.1}
    grid = Attackers(
        InProcessGrid(torch_app(lambda i: 0.0), clients=5, run_config={}),
        attack=attack, nodes=(2, 4), seed=3,
    )  # fmt: skip
    result = FedAvg().start(grid=grid, initial_arrays=start, num_rounds=1)
    landed = result.arrays["w"].numpy()
    assert abs(float(landed.mean())) < 0.1 and 0.05 < float(landed.std()) < 0.2


def test_an_attack_that_asks_says_what_it_lacks_and_a_setting_may_not_take_the_name():
    def greedy(honest, *, n, f, layers, model):
        return -honest.mean(0).expand(f, -1)

    with attack_installed(Attack(name="greedy", craft=greedy)):
        from fedrobust.attacks import craft

        with pytest.raises(ValueError, match="greedy needs the names and shapes"):
            craft(torch.ones(3, 4), "greedy", n=4, f=1)
    with pytest.raises(ConfigError, match="values in all, got 4: w"):
        simulate(SETTING, rule={"name": "lasa", "layers": [["w", [4]]]})


@pytest.mark.exhaustive
def test_flowers_own_simulation_on_ray_tells_the_same():
    setting = SETTING | {"rule": "lasa", "attack": {"name": "mpaf", "factor": 100.0}}
    here, there = simulate(setting), simulate(setting, grid="flower")
    assert here.frame["kappa"].equals(there.frame["kappa"])  # none before the first round
    assert here.accuracy == there.accuracy


def test_a_rule_that_is_shown_products_is_told_of_products():
    form = Products(((7,), (5, 3), (3, 4)), ((2, 1),))
    start = torch.randn(7 + 15 + 12, generator=torch.Generator().manual_seed(0))
    known = {"layers": lambda: (("bias", (7,)), ("up", (5, 3)), ("down", (3, 4))),
             "model": lambda: start}  # fmt: skip
    told = form.offered(known, start)
    assert told["layers"]() == (("bias", (7,)), ("down", (5, 4)))
    product = start[7:22].view(5, 3) @ start[22:].view(3, 4)
    assert torch.allclose(told["model"](), torch.cat([start[:7], product.flatten()]), atol=1e-6)


@pytest.mark.parametrize("adapters", ["factors", "product"])
@pytest.mark.parametrize("rule", ["lasa", "alignins"])
def test_rules_that_ask_step_adapters(adapters, rule):
    def net(shape, classes):
        return low_rank(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), rank=2)

    for attack in ("hidra", {"name": "opt_ipm", "evaluations": 3}):
        setting = SETTING | {"adapters": adapters, "attack": attack}
        setting["training"] = {"mode": "update", "steps": 5, "batch_size": 16, "lr": 0.05}
        frame = simulate(setting, model=net, rule=rule).frame
        assert "kept" not in frame or frame["kept"].isna().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batchnorm": {"name": "average", "rule": "lasa"}}, "statistics cannot be lasa: it needs"),
        (
            {"rule": "alignins", "ensemble": {"paradigm": "same", "votes": ["robust"]}},
            "a robust vote cannot be alignins: it needs model",
        ),
    ],
    ids=["batchnorm", "vote"],
)
def test_what_is_no_update_of_a_model_has_no_layers(changes, words):
    with pytest.raises(ConfigError, match=words):
        from_dict({key: SETTING[key] for key in SETTING if key != "server"} | changes)
