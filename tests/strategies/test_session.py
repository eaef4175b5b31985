"""Whole runs: each fault costs its sender the vote, every attack runs, every grid agrees."""

import math

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from experiments.simulation import run_one
from fedrobust import simulate
from fedrobust.attacks import ATTACKS, KNOWLEDGE, POISONS, TRAINED, threat_model
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import CohortGrid, InProcessGrid
from fedrobust.flower.serialization import PROTOCOL
from fedrobust.runs.folder import timeless
from strategies.handshake import ProtocolError, await_clients
from strategies.session import run

REASONS = {
    "missing_key": "missing arrays: update",
    "extra_key": "extra arrays: surprise",
    "wrong_shape": "update of shape (651,), expected (650,)",
    "wrong_dtype": "dtype float64, expected float32",
    "oversized": "update of shape (1300,), expected (650,)",
    "nan_value": "not finite",
    "inf_value": "not finite",
    "huge": "magnitude 1e+30",
    "many_examples": "num-examples 1000000000 outside",
    "negative_examples": "num-examples -14 outside",
    "garbage": "no npy array",
    "exception": "a malicious client raises on purpose",
    "silence": "no reply before the deadline",
}


def experiment(small, **changes):
    return from_dict(small | changes)


def test_every_fault_is_tried():
    assert set(REASONS) == set(threat_model.FAULTS)
    assert len(REASONS) == 13


@pytest.mark.parametrize("fault", REASONS)
def test_a_faulty_reply_costs_its_sender_the_vote(small, fault):
    bad = experiment(small, attack=fault)
    rows = run_one(bad)
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["replies"] == 8
        named = {entry["client"]: entry for entry in row["rejected"]}
        assert set(named) == set(threat_model.members(bad))
        for client, entry in named.items():
            assert REASONS[fault] in entry["reason"]
            assert entry["node"] == client + 1
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]


def test_too_few_replies_keep_the_model(small):
    rows = run_one(experiment(small, attack="silence", server={"min_replies": 9, "lr": 0.5}))
    assert all("min_replies asks for 9, got 8" in row["kept"] for row in rows[1:])
    starved = experiment(small, byzantine=3, attack="silence", rule={"name": "krum", "f": 3})
    rows = run_one(starved)
    assert all("krum" in row["kept"] and "got 7" in row["kept"] for row in rows[1:])
    assert rows[-1]["accuracy"] == rows[0]["accuracy"]


@pytest.mark.parametrize("attack", [*ATTACKS, *TRAINED, *POISONS])
def test_every_attack_runs_and_no_model_ends_as_nan(small, attack):
    rows = run_one(experiment(small, rule="median", attack=attack, rounds=2))
    assert math.isfinite(rows[-1]["loss"])
    assert rows[-1]["byzantine"]


def test_a_distributed_backdoor_gets_in_though_nobody_stamps_the_whole(small):
    """Two attackers of ten, each with half of the pattern: success is measured with all of it."""
    settings = {"size": 3, "share": 1.0}
    attack = {"name": "distributed_backdoor", "parts": 2, **settings}
    found = {
        name: run_one(experiment(small, rule=rule, attack=attack, rounds=15))[-1]
        for name, rule in (("mean", "mean"), ("krum", "krum"))
    }
    assert found["mean"]["attack_success"] > 0.9
    assert found["krum"]["attack_success"] < 0.1


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_knowledge_changes_what_is_crafted(small, knowledge):
    attack = {"name": "alie", "z": 1.5, "knowledge": knowledge}
    rows = run_one(experiment(small, rule="mean", attack=attack, rounds=2))
    others = [
        run_one(experiment(small, rule="mean", attack=attack | {"knowledge": k}, rounds=2))
        for k in KNOWLEDGE
        if k != knowledge
    ]
    assert all(rows[-1]["loss"] != other[-1]["loss"] for other in others)


def through_cohorts(e, hosts):
    from clients.client_app import app

    rows = []
    nodes = InProcessGrid(app, clients=hosts, run_config={"experiment": e.to_toml()})
    run(CohortGrid(nodes, clients=e.clients), e, on_row=rows.append)
    return rows


@pytest.mark.parametrize("worker_momentum", [0.0, 0.9])
def test_every_grid_gives_the_same_rounds(small, worker_momentum):
    e = experiment(small, attack="alie", rule="nnm+krum", worker_momentum=worker_momentum)
    here = timeless(run_one(e))
    for hosts in (1, 2, 4):
        assert timeless(through_cohorts(e, hosts)) == here


class Shuffled(InProcessGrid):
    """Replies come back in another order."""

    def send_and_receive(self, messages, *, timeout=None):
        return super().send_and_receive(messages, timeout=timeout)[::-1]


def test_the_order_of_replies_does_not_matter(small):
    from clients.client_app import app

    e = experiment(small, attack="alie", rule="krum")
    rows = []
    nodes = Shuffled(app, clients=10, run_config={"experiment": e.to_toml()})
    run(nodes, e, on_row=rows.append)
    assert timeless(rows) == timeless(run_one(e))


def test_simulate_takes_text_and_overrides(small):
    text = experiment(small).to_toml()
    results = simulate(text, rounds=1, rule="mean", server__lr=0.1)
    assert list(results.frame["round"]) == [0, 1]
    assert results.runs[0][0].server.lr == 0.1
    assert 0 < results.accuracy < 1
    assert "final accuracy" in repr(results)
    assert results._repr_html_().startswith("<table")
    with pytest.raises(ConfigError, match="did you mean 'in_process'"):
        simulate(text, grid="in_proces")


def test_sign_flip_breaks_the_mean_and_not_the_median(small):
    harsh = {"attack": "sign_flip", "byzantine": 4, "rounds": 15, "worker_momentum": 0.0}
    mean = simulate(small | harsh, rule="mean").accuracy
    clean = simulate(small | harsh, rule="mean", attack="none").accuracy
    assert clean > 0.8
    assert mean < clean


def test_worker_momentum_changes_the_run(small):
    plain, heavy = (run_one(experiment(small, worker_momentum=m))[-1]["loss"] for m in (0, 0.9))
    assert plain != heavy


def test_roll_call_needs_the_clients(small):
    from clients.client_app import app

    e = experiment(small)
    nodes = InProcessGrid(app, clients=3, run_config={"experiment": e.to_toml()})
    with pytest.raises(ProtocolError, match="4 clients are needed, 3 nodes"):
        await_clients(nodes, expected=4, deadline=0.01)
    assert await_clients(nodes, expected=3, deadline=1) == {1: 0, 2: 1, 3: 2}


def greeting_grid(greetings):
    """Build a grid whose node i + 1 greets with ``greetings[i]``; None raises."""

    def greet(message, context):
        words = greetings[context.node_config["partition-id"]]
        if words is None:
            raise RuntimeError("no greeting")
        return Message(RecordDict({"hello": ConfigRecord(words)}), reply_to=message)

    return InProcessGrid(greet, clients=len(greetings), run_config={})


def test_a_claim_is_a_place_and_nothing_else():
    ours = {"protocol": PROTOCOL, "version": "x"}
    greetings = [ours | {"client": 2}, ours | {"client": 2}, ours | {"client": 0}, {"client": 99}]
    assert await_clients(greeting_grid(greetings), expected=4) == {3: 0, 2: 1, 1: 2, 4: 3}
    nonsense = [ours | {"client": 1}, ours | {"client": "me"}, None]
    assert await_clients(greeting_grid(nonsense), expected=3) == {2: 0, 1: 1, 3: 2}


def test_one_stranger_is_left_out_and_many_are_an_error():
    ours = {"protocol": PROTOCOL, "version": "x"}
    other = {"protocol": PROTOCOL + 1, "version": "y", "client": 0}
    greetings = [other, ours | {"client": 1}, ours | {"client": 2}]
    assert await_clients(greeting_grid(greetings), expected=3, needed=2) == {2: 1, 3: 2}
    with pytest.raises(ProtocolError, match=r"runs fedrobust y.*install one version everywhere"):
        await_clients(greeting_grid(greetings), expected=3, needed=3)


def test_a_roll_call_that_nobody_answers_says_why():
    with pytest.raises(ProtocolError, match="RuntimeError: no greeting"):
        await_clients(greeting_grid([None, None]), expected=2)


def test_a_backdoor_gets_in_through_the_mean_and_its_success_is_measured(small):
    settings = {"name": "alie_backdoor", "z": 5.0, "size": 3, "epochs": 5}
    changes = {"byzantine": 4, "rounds": 10, "rule": "mean", "attack": settings}
    rows = run_one(experiment(small, **changes))
    assert rows[0]["attack_success"] < 0.5
    assert rows[-1]["attack_success"] > rows[0]["attack_success"]
    assert "attack_success" not in run_one(experiment(small, rounds=1))[-1]


def test_the_planted_update_stays_in_the_spread():
    import torch

    from fedrobust.attacks.alie_backdoor import alie_backdoor
    from fedrobust.data import load
    from fedrobust.models import build
    from fedrobust.seeds import generator
    from fedrobust.vector import FlatModel

    d = load("digits")
    model = FlatModel(build("linear", shape=d.shape, classes=10, mean=d.mean, std=d.std, seed=1))
    start = model.vector.clone()
    honest = torch.randn(6, model.d, generator=generator(1, "test")) * 0.1
    update = alie_backdoor(
        honest, model=model, start=start, images=d.train_images[:100], lr=0.1,
        generator=generator(1, "attack"), z=0.3, size=3,
    )  # fmt: skip
    mean, std = honest.mean(0), honest.std(0, correction=0)
    assert bool(((update - mean).abs() <= 0.3 * std + 1e-6).all())
    assert float((update - mean).norm()) > 0


def test_weights_are_told_per_client_and_the_bypass_with_them(small):
    rows = run_one(experiment(small, attack="silence", rule="multi_krum"))
    bad = set(threat_model.members(experiment(small, attack="silence")))
    for row in rows[1:]:
        assert [c for c, w in enumerate(row["weights"]) if w is None] == sorted(bad)
        assert sum(w for w in row["weights"] if w) == pytest.approx(1, abs=1e-4)
    row = run_one(experiment(small, attack="ipm:epsilon=100", rule="krum"))[-1]
    assert row["bypass"] == 0
    assert set(row["impact"]) == {"deviation", "cosine"}


@pytest.mark.parametrize("training", [{"epochs": 1}, {"steps": 3, "momentum": 0.9}])
def test_update_mode_learns(small, training):
    local = {"mode": "update", "batch_size": 16, "lr": 0.1} | training
    e = experiment(small, training=local, server={"lr": 1.0, "momentum": 0.0}, rule="median")
    rows = run_one(e)
    assert rows[-1]["accuracy"] > rows[0]["accuracy"] + 0.2


def test_an_adversary_that_moves_on_is_named_round_by_round(small):
    changes = {"attack": "nan", "placement": {"name": "window", "length": 1}, "rounds": 4}
    e = experiment(small, **changes)
    rows = run_one(e)
    told = [[entry["client"] for entry in row["rejected"]] for row in rows[1:]]
    assert told == [list(threat_model.members(e, round=r)) for r in range(1, 5)]
    assert len({tuple(clients) for clients in told}) > 1


def test_adversarial_training_is_measured_and_helps(small):
    pgd = {"name": "pgd", "eps": 0.15, "step_size": 0.04, "steps": 5}
    changes = {"rounds": 30, "rule": "median", "attack": "alie", "model": "mlp"}
    measured = {"eps": 0.15, "eval_steps": 10, "eval_images": 200}
    server = {"evaluate_every": 30, "lr": 0.2}
    plain = run_one(experiment(small, **changes, server=server, adversarial=measured))[-1]
    hardened = run_one(
        experiment(small, **changes, server=server, adversarial=measured | {"perturbation": pgd})
    )[-1]
    assert 0 <= plain["robust_accuracy"] <= plain["accuracy"]
    assert hardened["robust_accuracy"] > plain["robust_accuracy"]


def test_adversarial_settings_are_checked(small):
    for wrong, words in (
        ({"perturbation": "pgdd"}, "did you mean 'pgd'"),
        ({"loss": "trade"}, "did you mean 'trades'"),
        ({"fraction": 2.0}, "adversarial.fraction needs"),
        ({"epsilon": 1}, "unknown key 'adversarial.epsilon'"),
    ):
        with pytest.raises(ConfigError, match=words):
            experiment(small, adversarial=wrong)


@pytest.mark.parametrize("rule", ["fltrust", "zeno", "rsa"])
def test_rules_that_trust_the_servers_own_data_run(small, rule):
    settings = {"name": rule} | ({"f": 2} if rule == "zeno" else {})
    server = small.get("server", {}) | {"root_images": 50}
    attack = {"name": "opt_ipm"}  # asks the rule: what the server knows is guessed
    rows = run_one(experiment(small, rule=settings, attack=attack, server=server))
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert all("kept" not in row for row in rows)
    again = run_one(experiment(small, rule=settings, attack=attack, server=server))
    assert [{**row, "seconds": 0} for row in again] == [{**row, "seconds": 0} for row in rows]


def test_a_rule_without_the_data_that_it_needs_is_refused(small):
    with pytest.raises(ConfigError, match="fltrust needs data of the server's own"):
        experiment(small, rule="fltrust")


def test_the_roll_call_of_a_cohort_is_one_message_a_host():
    """On real nodes each message starts a process."""
    from clients.client_app import app
    from fedrobust.flower.wrapping import WrappedGrid

    sent = []

    class Counted(WrappedGrid):
        def send_and_receive(self, messages, *, timeout=None):
            sent.extend(messages)
            return self._inner.send_and_receive(sent, timeout=timeout)

    hosts = Counted(InProcessGrid(app, clients=2, run_config={}))
    found = await_clients(CohortGrid(hosts, clients=10), expected=10)
    assert found == {client + 1: client for client in range(10)}
    assert len(sent) == 2
