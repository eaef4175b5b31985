"""Groups of clients, sampling, and simulated time."""

import tomllib

import pytest

from clients.client_app import app, train_together
from experiments.simulation import run_one
from fedrobust.attacks import threat_model
from fedrobust.experiment.load import from_dict
from fedrobust.experiment.schema import ConfigError, Group
from fedrobust.flower import CohortGrid, InProcessGrid
from fedrobust.runs.folder import timeless
from fedrobust.simulation import stragglers
from strategies.session import run

GROUPS = {
    "phones": {"share": 0.4, "speed": 10.0, "latency": 0.5, "dropout": 0.3, "jitter": 0.5},
    "servers": {"share": 0.3, "batch_size": 32, "weight_decay": 0.01},
}


def experiment(small, **changes):
    return from_dict(small | changes)


def test_groups_have_their_shares_and_follow_the_seed(small):
    e = experiment(small, groups=GROUPS, clients=50)
    groups = stragglers.assign(e)
    assert [groups.count(name) for name in ("phones", "servers", "")] == [20, 15, 15]
    assert groups == stragglers.assign(e)
    assert groups != stragglers.assign(experiment(small, groups=GROUPS, clients=50, seed=4))
    thirds = {name: {"share": 1 / 3} for name in ("a", "b", "c")}
    assert (
        sorted(stragglers.assign(experiment(small, groups=thirds)))
        == ["a"] * 3 + ["b"] * 4 + ["c"] * 3
    )


def test_a_group_trains_as_it_says_and_the_rest_as_training_says(small):
    schedule = {"name": "multistep", "milestones": [2], "gamma": 0.5}
    groups = {"fast": {"share": 0.5, "optimizer": "adam", "lr": 0.01, "schedule": schedule}}
    e = experiment(small, groups=groups, training={"mode": "update", "lr": 0.2, "batch_size": 8})
    assert stragglers.recipe_of(e, "", 9) == e.training
    first, third = stragglers.recipe_of(e, "fast", 1), stragglers.recipe_of(e, "fast", 3)
    assert (first.optimizer, first.lr, first.batch_size) == ("adam", 0.01, 8)
    assert third.lr == 0.005


def test_groups_survive_the_way_through_toml(small):
    e = experiment(small, groups=GROUPS, participation=0.5)
    again = from_dict(tomllib.loads(e.to_toml()))
    assert again == e
    assert again.run_id == e.run_id != experiment(small).run_id
    assert e.groups["servers"] == Group(0.3, {"batch_size": 32, "weight_decay": 0.01})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"groups": {"a": {}}}, "the key 'groups.a.share' is missing"),
        ({"groups": {"a": 3}}, "groups.a: needs a table, got 3"),
        ({"groups": 3}, "needs tables [groups.NAME]"),
        ({"groups": {"a": {"share": 1.5}}}, "groups.a.share needs a value in (0, 1], got 1.5"),
        ({"groups": {"a": {"share": 0.7}, "b": {"share": 0.7}}}, "sum to 1.4, more than 1"),
        ({"groups": {"a": {"share": 0.5, "sped": 1.0}}}, "did you mean 'speed'?"),
        ({"groups": {"a": {"share": 0.5, "optimzer": "adam"}}}, "did you mean 'optimizer'?"),
        ({"groups": {"a": {"share": 0.5, "optimizer": "adm"}}}, "did you mean 'adam'?"),
        ({"groups": {"a": {"share": 0.5, "mode": "update"}}}, "is shared by all clients"),
        ({"groups": {"a": {"share": 0.5, "lr": "x"}}}, "groups.a.lr: needs a number, got 'x'"),
        ({"groups": {"a": {"share": 0.5, "dropout": 2.0}}}, "groups.a.dropout needs a probability"),
        ({"groups": {"a": {"share": 0.5, "speed": -1.0}}}, "groups.a.speed needs at least 0"),
        ({"groups": {"a": {"share": 0.5, "schedule": "cosin"}}}, "did you mean 'cosine'?"),
        ({"participation": 0.0}, "participation needs a share in (0, 1], got 0.0"),
        ({"participation": 0.2, "rule": "krum"}, "krum with f=2 needs at least 7 updates, got 2"),
        ({"training": {"cohort": "vmp"}}, "did you mean 'vmap'?"),
        ({"training": {"precision": "bf61"}}, "did you mean 'bf16'?"),
        ({"training": {"augment": "flipp"}}, "did you mean 'flip'?"),
        ({"training": {"clip": -1.0}}, "training.clip needs at least 0"),
    ],
)
def test_each_mistake_gets_its_sentence(small, change, sentence):
    with pytest.raises(ConfigError) as caught:
        experiment(small, **change)
    assert sentence in str(caught.value)


def test_each_round_asks_other_clients(small):
    e = experiment(small, participation=0.5)
    asked = [stragglers.participants(e, round) for round in range(1, 30)]
    assert {len(clients) for clients in asked} == {5}
    assert all(list(clients) == sorted(set(clients)) for clients in asked)
    assert len(set(asked)) > 10
    assert {client for clients in asked for client in clients} == set(range(10))
    assert asked[3] == stragglers.participants(e, 4)


def test_times_are_hand_worked(small):
    groups = {"slow": {"share": 1.0, "speed": 10.0, "latency": 0.5}}
    e = experiment(small, groups=groups, server={"deadline": 2.0})  # mini-batches of 16 images
    sizes = [16, 10, 15, 40, *[5] * 6]  # 2.1, 1.5, 2.0, 2.1, 1.0 seconds
    times = stragglers.timing(e, stragglers.assign(e), sizes, round=1)
    assert times == stragglers.Timing((), (0, 3), 2.0)
    assert stragglers.timing(e, stragglers.assign(e), sizes, round=1, spared=(0, 3)).seconds == 2.0
    quick = experiment(small, groups=groups, server={"deadline": 9.0})
    assert stragglers.timing(quick, stragglers.assign(quick), sizes, round=1) == stragglers.Timing(
        (), (), 2.1
    )
    local = experiment(
        small, groups=groups, server={"deadline": 9.0}, training={"mode": "update", "epochs": 2}
    )
    assert stragglers.timing(local, stragglers.assign(local), sizes, round=1).seconds == 8.5


def test_dropouts_come_with_their_probability(small):
    e = experiment(small, groups={"shaky": {"share": 1.0, "dropout": 0.25}})
    groups = stragglers.assign(e)
    gone = sum(len(stragglers.timing(e, groups, [9] * 10, round=r).dropped) for r in range(1, 201))
    assert 400 < gone < 600
    always = experiment(small, groups={"shaky": {"share": 1.0, "dropout": 1.0}})
    assert stragglers.timing(always, groups, [9] * 10, round=1, spared=(2,)).dropped == (
        0, 1, 3, 4, 5, 6, 7, 8, 9,
    )  # fmt: skip


def through(e, nodes, hosts=0):
    config = {"experiment": e.to_toml()}
    together = None if hosts else train_together  # a host's own app packs them
    grid = nodes(app, clients=hosts or e.clients, run_config=config, together=together)
    rows = []
    run(CohortGrid(grid, clients=e.clients) if hosts else grid, e, on_row=rows.append)
    return timeless(rows)


class Shuffled(InProcessGrid):
    """Replies come back in another order."""

    def send_and_receive(self, messages, *, timeout=None):
        return super().send_and_receive(messages, timeout=timeout)[::-1]


def test_rows_tell_who_is_missing_and_every_grid_agrees(small):
    e = experiment(
        small, groups=GROUPS, participation=0.8, attack="alie", server={"deadline": 2.5, "lr": 0.5}
    )
    rows = timeless(run_one(e))
    told = set()
    for row in rows[1:]:
        missing = {*row["late"], *row["dropped"]}
        assert {entry["client"] for entry in row["rejected"]} == missing
        assert row["replies"] == 8 - len(missing)
        assert not missing & set(threat_model.members(e))
        assert row["simulated_seconds"] <= 2.5
        told |= missing
    assert told
    assert through(e, InProcessGrid) == rows
    assert through(e, Shuffled) == rows
    for hosts in (1, 2, 4):
        assert through(e, InProcessGrid, hosts) == rows


@pytest.mark.parametrize("changes", [{}, {"worker_momentum": 0.9}, {"groups": GROUPS}])
def test_a_stack_of_clients_gives_the_same_run_up_to_float_error(small, changes):
    common = {"attack": "alie", "rule": "nnm+trimmed_mean", **changes}
    off, stacked = (
        experiment(small, **common, training={"batch_size": 16, "cohort": cohort})
        for cohort in ("off", "vmap")
    )
    expected = run_one(off)
    for rows in (run_one(stacked), through(stacked, InProcessGrid, hosts=2)):
        for row, other in zip(rows, expected, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert row.get("rejected") == other.get("rejected")


def test_one_raising_client_costs_its_own_reply_only(small):
    for cohort in ("off", "auto", "vmap"):
        e = experiment(small, attack="exception", training={"batch_size": 16, "cohort": cohort})
        for rows in (run_one(e), through(e, InProcessGrid, hosts=2)):
            assert [row["replies"] for row in rows[1:]] == [8, 8, 8]


def test_augmentation_follows_the_client_and_the_round(small):
    plain, changed, again = (
        run_one(experiment(small, training={"batch_size": 16, "augment": name}))[-1]["loss"]
        for name in ("none", "crop", "crop")
    )
    assert plain != changed == again
