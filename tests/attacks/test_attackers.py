"""Byzantine nodes in anybody's app: replaced at the grid, or by a mod around the client."""

import logging

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from clients import byzantine
from fedrobust.attacks import craft
from fedrobust.flower import Attackers, InProcessGrid, RobustGrid
from fedrobust.flower.broken_replies import BROKEN
from fedrobust.spec import SpecError


def app_of(mods=()):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        place = context.node_config["partition-id"]
        held = {name: a.numpy() for name, a in message.content["arrays"].items()}
        held["w"] = held["w"] + np.arange(3, dtype=np.float32) * (place + 1)
        arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in held.items()})
        metrics = MetricRecord({"num-examples": 10, "loss": 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def ask(grid, nodes=range(1, 6)):
    w, count = np.ones(3, np.float32), np.asarray(4, np.int64)
    arrays = ArrayRecord({"w": Array(w), "count": Array(count)})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({})})
    replies = grid.send_and_receive([Message(content, node, "train") for node in nodes])
    return {reply.metadata.src_node_id: reply for reply in replies}


def updates(replies):
    return {node: reply.content["arrays"]["w"].numpy() - 1 for node, reply in replies.items()}


def inner(mods=()):
    return InProcessGrid(app_of(mods), clients=5, run_config={})


HONEST = torch.arange(3.0) * torch.arange(1.0, 6.0)[:, None]  # node i + 1 steps by (i + 1) (0 1 2)


@pytest.mark.parametrize(
    "attack",
    [{"name": "sign_flip", "scale": 4.0}, "alie", "ipm", {"name": "min_max"}, "seesaw",
     {"name": "alie", "knowledge": "colluding"}],
    ids=str,
)  # fmt: skip
def test_the_attacks_are_ours_on_what_the_nodes_answer(attack):
    grid = Attackers(inner(), attack=attack, nodes=(4, 5))
    got = updates(ask(grid))
    colluding = not isinstance(attack, str) and attack.get("knowledge") == "colluding"
    view = HONEST[3:] if colluding else HONEST[:3]
    expected = craft(view, attack, n=5, f=2, own=HONEST[3:])
    assert np.allclose([got[4], got[5]], expected, atol=1e-6)
    assert all(np.allclose(got[node], HONEST[node - 1]) for node in (1, 2, 3))
    assert grid.replaced == 2 and list(grid.history.node) == [4, 5]


def test_everything_else_of_a_reply_stays():
    reply = ask(Attackers(inner(), attack="ipm", nodes=(5,)))[5]
    assert reply.content["arrays"]["w"].numpy().dtype == np.float32
    assert reply.content["arrays"]["count"].numpy() == 4
    assert dict(reply.content["metrics"]) == {"num-examples": 10, "loss": 1.0}


def test_f_nodes_are_drawn_once_from_the_seed():
    def drawn(seed):
        grid = Attackers(inner(), attack="ipm", f=2, seed=seed)
        ask(grid, nodes=(1,)), ask(grid)
        return grid.nodes

    assert drawn(1) == drawn(1) and len(drawn(1)) == 2
    assert len({drawn(seed) for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="attackers with f=9 need as many nodes, got 5"):
        ask(Attackers(inner(), attack="ipm", f=9))


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_each_broken_reply_is_sent_and_survived_by_the_rule(name):
    grid = Attackers(inner(), attack=name, nodes=(5,))
    replies = ask(grid)
    assert grid.replaced == 1
    assert (5 in replies) == (name != "silence")
    behind = RobustGrid(Attackers(inner(), attack=name, nodes=(5,)), rule="median")
    assert np.allclose(updates(ask(behind))[1][1], 3 if "examples" in name or "metric" in name
                       else 2.5)  # fmt: skip


def test_broken_replies_are_what_they_say():
    def sent(name):
        return ask(Attackers(inner(), attack=name, nodes=(5,)))[5]

    assert sent("exception").has_error() and not sent("empty").content
    assert np.isnan(sent("nan_value").content["arrays"]["w"].numpy()).all()
    assert sent("wrong_shape").content["arrays"]["w"].numpy().shape == (4,)
    assert set(sent("other_keys").content["arrays"]) == {"hostile-w", "hostile-count"}
    assert sent("many_examples").content["metrics"]["num-examples"] == 10**12
    assert sent("negative_examples").content["metrics"]["num-examples"] == -31
    assert np.isnan(sent("nan_examples").content["metrics"]["num-examples"])
    assert sent("extra_metric").content["metrics"]["hostile"] == 1.0
    with pytest.raises(ValueError, match=r"magic|pickle|Cannot load|load"):
        sent("garbage").content["arrays"]["w"].numpy()


def test_an_attack_that_does_nothing_is_loud(caplog):
    caplog.set_level(logging.WARNING, logger="flwr")
    grid = Attackers(inner(), attack=lambda honest, *, n, f: HONEST[4:], nodes=(5,))
    ask(grid)
    assert grid.replaced == 0 and "replaced no reply" in caplog.text
    assert list(grid.history.reason) == ["the attack sends what the node would have sent"]


def test_a_later_round_that_is_too_small_for_an_attack_stays_honest(caplog):
    grid = Attackers(inner(), attack="alie", nodes=(4, 5), seed=1)
    ask(grid)
    told = updates(ask(grid, nodes=[4]))
    np.testing.assert_allclose(told[4], HONEST[3])
    assert "alie with n=1 needs f <= 0" in grid.history.reason.iloc[-1]
    assert "replaced no reply: alie with n=1" in caplog.text
    with pytest.raises(ValueError, match="alie with n=1 needs f <= 0"):
        ask(Attackers(inner(), attack="alie", nodes=(4, 5), seed=1), nodes=[4])


def test_wrong_calls_have_a_sentence():
    for given, sentence in (
        ({"attack": "sign_flipp", "f": 1}, "did you mean 'sign_flip'"),
        ({"attack": "label_flip", "f": 1}, "changes a client's data"),
        ({"attack": {"name": "silence", "z": 1}, "f": 1}, "'silence' has no parameters, got z"),
        ({"attack": "ipm"}, "one of f and nodes"), ({"attack": "ipm", "f": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=sentence):
            Attackers(inner(), **given)
    for knowledge in ("omniscient", "colluding"):
        with pytest.raises(SpecError, match="its own update, not"):
            byzantine("alie", knowledge=knowledge)


def only_last(mod):
    def chosen(message, context, call_next):
        if context.node_config["partition-id"] == 4:
            return mod(message, context, call_next)
        return call_next(message, context)

    return chosen


def test_the_mod_makes_a_node_byzantine():
    mod = byzantine({"name": "sign_flip", "scale": 4.0})
    got = updates(ask(inner([only_last(mod)])))
    assert np.allclose(got[5], -4 * HONEST[4]) and np.allclose(got[4], HONEST[3])
    broken = ask(inner([only_last(byzantine("wrong_shape"))]))[5]
    assert broken.content["arrays"]["w"].numpy().shape == (4,)


def test_the_mod_draws_anew_each_round_and_repeats_with_a_seed():
    def rounds(seed):
        grid = inner([only_last(byzantine({"name": "gaussian", "std": 1.0}, seed=seed))])
        return [updates(ask(grid))[5] for _ in range(2)]

    first, second = rounds(1)
    assert not np.allclose(first, second)
    assert np.array_equal([first, second], rounds(1))
    assert not np.allclose(first, rounds(None)[0])


def test_an_attack_of_one_node_that_changes_nothing_is_loud(caplog):
    caplog.set_level(logging.WARNING, logger="flwr")
    alone = byzantine({"name": "alie", "n": 10})  # one update has no spread
    got = updates(ask(inner([only_last(alone)])))
    assert np.allclose(got[5], HONEST[4]) and "changed nothing" in caplog.text


def test_a_strategy_is_hurt_by_them_and_saved():
    start = ArrayRecord({"w": Array(np.ones(3, np.float32)), "count": Array(np.asarray(4))})

    def last(wrap):
        grid = wrap(Attackers(inner(), attack={"name": "sign_flip", "scale": 9.0}, nodes=(5,)))
        strategy = FedAvg(fraction_evaluate=0.0)
        return strategy.start(grid, start, num_rounds=2).arrays["w"].numpy()[2]

    assert last(lambda grid: grid) < -1
    assert last(lambda grid: RobustGrid(grid, rule="trimmed_mean:f=1")) > 5
