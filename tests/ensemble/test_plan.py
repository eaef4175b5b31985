"""Plans: node tables, shares, tuning, and the released code's own assignment."""

import json
from dataclasses import replace

import pytest
import torch

from experiments.papers.transfer.authors import (
    ITERATIONS,
    LISTS,
    MASTERS,
    authors_cycle,
    released_code,
)
from fedrobust.data import Dataset
from fedrobust.ensemble import attacker_share, nodes_of, shares_of
from fedrobust.ensemble.assignment import fits
from fedrobust.ensemble.plan import NODE_SCHEDULES
from fedrobust.ensemble.shares import split
from fedrobust.ensemble.tuning import rungs, search, tune
from fedrobust.experiment.load import expand, from_dict
from fedrobust.experiment.modes import AXES, PARADIGMS
from fedrobust.experiment.schema import ConfigError, NodeSettings

SMALL = ["small_dense", "small_vgg", "small_resnet", "small_wide", "small_mobile", "small_plain"]
ATTRIBUTE = {"architecture": "model", "optimizer": "optimizer", "scheduler": "schedule"}


def plan(paradigm, *, clients=7, seed=1, attack=None, **settings):
    wanted = {"paradigm": paradigm, "architectures": SMALL, **settings}
    rule = {"rule": "mean"} if paradigm == "fedavg" else {}
    return from_dict(
        {"data": "fashionmnist-sample", "model": "small_dense", "byzantine": 0, "rounds": 4,
         "clients": 1 if paradigm == "central" else clients, "seed": seed, **rule,
         "attack": "none", "ensemble": wanted, "transfer": attack or {}}
    )  # fmt: skip


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_each_paradigm_has_its_node_table(paradigm):
    e = plan(paradigm)
    nodes = nodes_of(e)
    assert len(nodes) == e.clients
    for axis in AXES:
        values = [getattr(node, ATTRIBUTE[axis]) for node in nodes]
        available = {"architecture": 6, "optimizer": 9, "scheduler": 5}[axis]
        if axis not in e.ensemble.axes:
            assert set(values) == {values[0]}
        elif axis != "scheduler":
            assert len(set(values)) == min(len(nodes), available)
        else:
            assert len(set(values)) >= 4
    assert all(fits(node.optimizer, node.schedule) for node in nodes)
    assert nodes[0].model == "small_dense" and nodes[0].optimizer == "sgd_m"
    assert nodes == nodes_of(plan(paradigm))


def test_it_saw_every_paradigm():
    assert len(PARADIGMS) == 13


def test_small_systems_differ_pairwise_on_every_axis():
    for seed in range(8):
        nodes = nodes_of(plan("full", clients=5, seed=seed))
        for attribute in ("model", "optimizer", "schedule"):
            values = [getattr(node, attribute) for node in nodes]
            assert len(set(values)) == (5 if attribute != "schedule" else len(set(values)))
            assert len(set(values)) >= 4


def test_a_nodes_own_table_wins_and_is_checked():
    e = plan("same", nodes=[{}, {"model": "small_vgg", "lr": 0.2}])
    assert nodes_of(e)[1].model == "small_vgg" and nodes_of(e)[1].lr == 0.2
    assert nodes_of(e)[2].model == "small_dense"
    with pytest.raises(ConfigError) as wrong:
        plan("same", nodes=[{"modl": "cnn"}])
    assert str(wrong.value) == "unknown key 'ensemble.nodes.modl'; did you mean 'model'?"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"paradigm": "sam"}, "unknown ensemble.paradigm 'sam'; did you mean 'same'?"),
        ({"optimizer": "sgdm"}, "unknown ensemble.optimizer 'sgdm'; did you mean 'sgd_m'?"),
        ({"augment": "flip+crap"}, "ensemble.augment: unknown augmentation 'crap'"),
        ({"trials": 3, "paradigm": "tuned", "validation": 0.0}, "set ensemble.validation"),
        ({"paradigm": "architecture", "architectures": []}, "needs ensemble.architectures"),
        ({"answer": "labels"}, "allows the vote 'hard' only"),
        ({"votes": ["mean_logit"]}, "needs ensemble.answer = 'logits'"),
        ({"paradigm": "central", "lr": 0}, "ensemble.lr needs a positive number"),
        ({"optimizer": "adam", "schedule": "cyclic"}, "a cyclic schedule needs momentum"),
        ({"quirk": True}, "unknown key 'ensemble.quirk'; did you mean 'quirks'?"),
        ({"quirks": 1}, "ensemble.quirks: needs true or false, got 1"),
        ({"paradigm": "fedavg", "nodes": [{"model": "cnn"}]}, "averages one model"),
        ({"nodes": [{"model": "resnet81"}]}, "unknown model 'resnet81'"),
    ],
)
def test_wrong_plans_are_refused(settings, sentence):
    with pytest.raises(ConfigError) as wrong:
        plan(settings.pop("paradigm", "same"), **settings)
    assert sentence in str(wrong.value)


def test_the_attacker_is_checked():
    with pytest.raises(ConfigError, match=r"did you mean 'mi_cwa'"):
        plan("same", attack={"attacks": ["mi_cw"], "surrogates": ["small_vgg"]})
    with pytest.raises(ConfigError, match=r"set transfer\.surrogates"):
        plan("same", attack={"attacks": ["mi_cwa"]})
    assert plan("same", attack={"levels": 8}).transfer.eps == 8 / 255


def test_a_plan_survives_its_own_toml_and_cases_expand():
    e = plan("full", trials=2, nodes=[{"lr": 0.3}], attack={"attacks": ["mi_cse"],
                                                            "surrogates": ["cnn"]})  # fmt: skip
    import tomllib

    assert from_dict(tomllib.loads(e.to_toml())) == e
    document = json.loads(json.dumps(plan("same").to_dict()))
    document["cases"] = [{"clients": 3}, {"ensemble": {"paradigm": "tuned"}, "partition.alpha": 1.0,
                                          "partition.name": "dirichlet"}]  # fmt: skip
    document["sweep"] = {"seed": [1, 2]}
    runs = expand(document)
    assert [(r.seed, r.clients, r.ensemble.paradigm) for r in runs] == [
        (1, 3, "same"), (1, 7, "tuned"), (2, 3, "same"), (2, 7, "tuned")]  # fmt: skip
    assert runs[1].partition == {"name": "dirichlet", "alpha": 1.0}


def tiny(count=200):
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=source, dtype=torch.uint8)
    labels = torch.arange(count) % 10
    return Dataset("tiny", images, labels, images, labels, 10, (0.5,), (0.5,))


def test_shares_are_disjoint_and_everything_for_those_who_see_everything():
    d = tiny()
    shares = shares_of(plan("same"), d)
    assert sorted(torch.cat(shares).tolist()) == list(range(200))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for paradigm in ("central", "full_data"):
        assert all(len(s) == 200 for s in shares_of(plan(paradigm), d))
    assert all(torch.equal(a, b) for a, b in zip(shares, shares_of(plan("same"), d), strict=True))
    fewer = shares_of(plan("same", train_images=70), d)
    again = shares_of(plan("same", train_images=70, seed=9), d)
    assert set(torch.cat(fewer).tolist()) == set(torch.cat(again).tolist())
    assert sum(map(len, fewer)) == 70


def test_the_attackers_data():
    d = tiny()
    attack = {"attacks": ["mi_cwa"], "surrogates": ["small_vgg"]}
    whole, half, part = (
        attacker_share(plan("same", attack=attack | {"data": kind}), d)
        for kind in ("full", "disjoint", "share")
    )
    defended = torch.cat(shares_of(plan("same", attack=attack | {"data": "disjoint"}), d))
    assert (len(whole), len(half), len(part)) == (200, 100, 28)
    assert not set(half.tolist()) & set(defended.tolist())
    assert len(defended) == 100


def test_training_and_validation_parts_are_disjoint():
    share = torch.arange(50, 150)
    taught, held = split(share, 0.2, seed=1, node=3)
    assert len(held) == 20
    assert sorted(torch.cat([taught, held]).tolist()) == share.tolist()
    assert not torch.equal(held, split(share, 0.2, seed=1, node=4)[1])


def test_the_released_codes_cycle():
    masters = [MASTERS[f"round-{r}"] for r in range(5)]
    first = [{axis: m[ATTRIBUTE[axis]] for axis in AXES} for m in masters]
    assert len(MASTERS) == 5 and [len(LISTS[a]) for a in AXES] == [12, 9, 5]

    def distinct(axis, nodes):
        cycle = (authors_cycle([axis], first[r], r, ITERATIONS[r], nodes)[axis] for r in range(5))
        return [len(set(values)) for values in cycle]

    assert distinct("scheduler", 3)[1] == distinct("scheduler", 3)[4] == 2
    assert distinct("architecture", 7) == [7, 7, 7, 6, 7]
    assert all(count < 7 for count in distinct("optimizer", 7))
    for r in range(5):
        whole = authors_cycle(AXES, first[r], r, ITERATIONS[r], 7)
        assert {axis: whole[axis][0] for axis in AXES} == first[r]
        pairs = zip(whole["optimizer"], whole["scheduler"], strict=True)
        assert all(fits(*pair) for pair in list(pairs)[1:])


def test_quirks_use_that_cycle():
    settings = {"quirks": True, "master_round": 2, "iteration": 2}
    with pytest.raises(ConfigError, match=r"python -m experiments\.papers\.transfer\.authors"):
        plan("optimizer", **settings)
    with pytest.raises(ConfigError, match=r"ensemble\.master = 'round-1' needs the released code"):
        plan("same", master="round-1")
    first = {"architecture": "small_dense", "optimizer": "sgd_m", "scheduler": "cosine"}
    expected = authors_cycle(["optimizer"], first, 2, 2, 7)["optimizer"]
    with released_code():
        assert [n.optimizer for n in nodes_of(plan("optimizer", **settings))] == expected
        master = nodes_of(plan("same", master="round-1"))[0]
        assert (master.model, master.schedule) == ("regnetx_200mf", "plateau")
        with pytest.raises(ConfigError, match="did you mean 'round-1'"):
            plan("same", master="round1")
    assert [n.optimizer for n in nodes_of(plan("optimizer"))] != expected


def test_plain_sgd_has_no_momentum_unless_its_node_says_so():
    e = plan("optimizer", nodes=[{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.5}])
    nodes = nodes_of(e)
    assert [node.momentum for node in nodes[:3]] == [0.9, 0.0, 0.5]
    assert all(node.momentum == 0 for node in nodes[3:] if node.optimizer == "sgd")


NODE = NodeSettings("cnn", "sgd_m", 0.1, 0.9, 1e-4, "cosine")


def toy(calls):
    def curve(node, epochs):
        for epoch in range(epochs):
            calls.append(node.lr)
            distance = (torch.tensor(node.lr).log10() + 2) ** 2
            yield float(distance) + node.weight_decay + 1 / (epoch + 1)

    return curve


def test_halving_promotes_the_better_half_and_pays_for_no_more():
    calls, entered = [], []
    search(
        lambda trial: replace(NODE, lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True)),
        toy(calls), trials=8, epochs=12, seed=1, promoted=lambda alive: entered.append(list(alive)),
    )  # fmt: skip
    assert rungs(12) == [3, 6, 12] and rungs(2) == [2]
    assert [len(alive) for alive in entered] == [8, 4, 2]
    assert set(entered[2]) <= set(entered[1]) <= set(entered[0])
    assert len(calls) == 8 * 3 + 4 * 3 + 2 * 6


def test_tuning_stays_in_its_ranges_and_repeats():
    settings = {"trials": 8, "epochs": (6, 6), "total": 20}
    first, again, other = (tune(NODE, toy([]), seed=s, **settings) for s in (1, 1, 2))
    assert first == again != other
    assert 1e-4 <= first.lr <= 1e-1 and 0.5 <= first.momentum < 1
    assert 1e-5 <= first.weight_decay <= 1e-3 and 15 <= first.schedule_value <= 20
    assert abs(torch.tensor(first.lr).log10() + 2) < 0.6
    bare = tune(replace(NODE, optimizer="rprop", schedule="plateau"), toy([]), seed=1, **settings)
    assert bare.weight_decay == NODE.weight_decay and bare.momentum == NODE.momentum


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path):
    settings = {"trials": 8, "epochs": (6, 6), "total": 20, "seed": 1}
    whole = []
    expected = tune(NODE, toy(whole), **settings)

    def dying(node, epochs):
        for loss in toy([])(node, epochs):
            if dying.left == 0:
                raise InterruptedError
            dying.left -= 1
            yield loss

    dying.left = 20
    with pytest.raises(InterruptedError):
        tune(NODE, dying, folder=tmp_path, **settings)
    resumed = []
    assert tune(NODE, toy(resumed), folder=tmp_path, **settings) == expected
    assert len(resumed) < len(whole)
    finished = []
    assert tune(NODE, toy(finished), folder=tmp_path, **settings) == expected
    assert finished == []
    for journal in tmp_path.glob("*.jsonl"):
        assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_diverging_trial_never_wins():
    def curve(node, epochs):
        for _ in range(epochs):
            yield float("nan") if node.lr > 1e-3 else 5.0

    found = tune(NODE, curve, trials=8, epochs=(3, 3), total=10, seed=1)
    assert found.lr <= 1e-3


def test_the_schedules_listed_are_those_of_the_paper():
    assert NODE_SCHEDULES[1:] == ("cosine", "step", "exponential", "plateau", "cyclic")
