"""The votes of colluders: none does more harm; over the grid; and ``auto`` of an ensemble."""

from __future__ import annotations

import pytest
import torch

from clients.client_app import app
from experiments.results import Results
from experiments.simulation import run_one
from fedrobust.attacks import threat_model
from fedrobust.attacks.members import ENSEMBLE, members, stand_for_auto
from fedrobust.ensemble import combine
from fedrobust.ensemble.lies import best_vote, margin, runner_up
from fedrobust.experiment import auto
from fedrobust.experiment.load import expand, from_dict
from fedrobust.experiment.schema import ConfigError
from fedrobust.flower import CohortGrid, InProcessGrid
from strategies import server_app
from strategies.session import run

PLAIN = ("soft", "hard", "weighted")
PLAN = {"paradigm": "same", "train_images": 1000, "test_images": 80, "batch_size": 32,
        "lr": 0.2}  # fmt: skip


def experiment(attack, *, byzantine=2, clients=7, rule=None, **plan):
    table = {"data": "digits", "model": "linear", "clients": clients, "byzantine": byzantine,
             "rounds": 1, "seed": 4, "attack": attack, "ensemble": PLAN | plan}  # fmt: skip
    return from_dict(table | ({"rule": rule} if rule else {}))


def honest(seed=0, *, h=5, count=300, classes=4):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=source)
    noise = torch.randn(h, count, classes, generator=source)
    towards = torch.nn.functional.one_hot(labels, classes)
    return (noise + 1.2 * towards).softmax(2), labels


@pytest.mark.parametrize("vote", PLAIN)
def test_no_other_votes_make_more_images_wrong(vote):
    """Against 400 draws of votes, each member its own, certain ones and mixed ones among them."""
    answers, labels = honest()
    lie = best_vote(answers, labels, vote, f=2, what="probabilities")
    attacked = combine(torch.cat([answers, lie.expand(2, -1, -1)]), vote)
    beaten = attacked != labels
    clean = combine(answers, vote) != labels
    assert clean.double().mean() < 0.4 < 0.5 < beaten.double().mean() < 1
    source = torch.Generator().manual_seed(1)
    for turn in range(400):
        sharp = (0.0, 1.0, 30.0)[turn % 3]
        other = (sharp * torch.randn(2, *lie.shape, generator=source)).softmax(2)
        if turn % 2:
            other = torch.nn.functional.one_hot(other.argmax(2), lie.shape[1]).float()
        wrong = combine(torch.cat([answers, other]), vote) != labels
        assert not bool((wrong & ~beaten).any())


def test_a_tie_goes_to_the_lower_class_and_is_used():
    answers = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])[:2]
    lower, higher = torch.tensor([1]), torch.tensor([0])
    lie = best_vote(answers, lower, "hard", f=2, what="labels")
    assert lie.argmax(1).tolist() == [0], "class 0 wins the tie of two to two"
    assert combine(torch.cat([answers, lie.expand(2, -1, -1)]), "hard").tolist() == [0]
    lie = best_vote(answers, higher, "hard", f=1, what="labels")
    assert lie.argmax(1).tolist() == [1], "the honest vote is wrong, and stays so"


def test_one_logit_decides_a_mean_of_logits():
    answers, labels = honest(2)
    answers = answers.log() * 50
    lie = best_vote(answers, labels, "mean_logit", f=1, what="logits")
    assert bool((combine(torch.cat([answers, lie[None]]), "mean_logit") != labels).all())
    assert bool(torch.isfinite(lie).all())


@pytest.mark.parametrize("rule", ["median", "krum", "trimmed_mean"])
def test_against_a_rule_it_is_at_least_as_bad_as_full_confidence(rule):
    answers, labels = honest(3, count=60)
    spec = {"name": rule} if rule == "median" else {"name": rule, "f": 1}
    vote = {"name": "robust", "rule": spec}
    lie = best_vote(answers, labels, vote, f=1, what="probabilities")
    attacked = torch.cat([answers, lie[None]])
    rival = answers.mean(0).scatter(1, labels[:, None], -1).argmax(1)
    certain = torch.cat([answers, torch.nn.functional.one_hot(rival, 4).float()[None]])
    assert bool((margin(attacked, labels, vote) <= margin(certain, labels, vote) + 1e-6).all())
    wrong = [float((combine(a, vote) != labels).double().mean()) for a in (answers, attacked)]
    assert wrong[1] > wrong[0] + 0.1


def test_the_runner_up_is_the_second_class():
    answer = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]])
    lie = runner_up(answer, what="probabilities")
    assert lie.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert runner_up(answer, what="logits").tolist() == [[0, 0, 1000], [0, 0, 1000]]


# Over the grid


@pytest.mark.parametrize(
    ("what", "vote", "rule"),
    [("probabilities", "soft", None), ("labels", "hard", None), ("logits", "mean_logit", None),
     ("probabilities", "robust", "median")],
)  # fmt: skip
def test_the_computed_lies_do_most_harm(what, vote, rule):
    left = {}
    for attack in ("none", *threat_model.ANSWERS):
        row = run_one(experiment(attack, rule=rule, answer=what, votes=[vote]))[-1]
        left[attack] = row["accuracy"]
        if attack in ("best_vote", "runner_up", "flip"):
            assert row["rejected"] == [] and row["voters"] == 7
    assert min(left, key=left.__getitem__) == "best_vote"
    assert left["best_vote"] < left["none"] - 0.2


def test_every_grid_carries_the_side_channel():
    e = experiment("best_vote", votes=["soft", "hard"], query_images=30)
    config = {"experiment": e.to_toml()}
    found = []
    for grid in (
        InProcessGrid(app, clients=e.clients, run_config=config),
        CohortGrid(InProcessGrid(app, clients=2, run_config=config), clients=e.clients),
    ):
        rows = []
        run(grid, e, on_row=rows.append)
        found.append({k: v for k, v in rows[-1].items() if k != "seconds"})
    assert found[0] == found[1] and found[0]["rejected"] == []


def test_attacked_images_and_probes_are_lied_about_too():
    transfer = {"attacks": ["mi_fgsm"], "surrogates": ["linear"], "epochs": 1, "images": 20,
                "steps": 2}  # fmt: skip
    e = experiment("best_vote", votes=["soft"], probe_images=4)
    lied = run_one(from_dict(e.to_dict() | {"transfer": transfer}))[-1]
    true = run_one(from_dict(e.to_dict() | {"transfer": transfer, "attack": "none"}))[-1]
    assert "probes" in lied and lied["rejected"] == []
    assert lied["votes"]["soft"]["clean"] < true["votes"]["soft"]["clean"]


def test_on_real_nodes_nobody_knows_the_others_answers():
    e = experiment("best_vote")
    grid = InProcessGrid(app, clients=e.clients, run_config={"experiment": e.to_toml()})
    with pytest.raises(ConfigError, match="no member knows the others' answers: 'best_vote'"):
        server_app.carry(grid, e, {"nodes": "clients"})
    rows = []  # without the channel a colluder has nothing to compute from, and loses its vote
    alone = from_dict(e.to_dict() | {"attack": "runner_up"})
    run(InProcessGrid(app, clients=7, run_config={"experiment": alone.to_toml()}), alone,
        on_row=rows.append)  # fmt: skip
    assert rows[-1]["rejected"] == []


@pytest.mark.parametrize("attack", ["silence", "garbage", "stale", "exception", "nan"])
def test_silent_members_cannot_stop_a_rule_that_needs_more_than_are_left(attack):
    """Krum with f = 2 needs 7 of 7 members; whoever is silent counts among its f, as by NaN."""
    e = experiment(attack, rule={"name": "krum", "f": 2}, votes=["robust"])
    row = run_one(e)[-1]
    nan = run_one(from_dict(e.to_dict() | {"attack": "nan"}))[-1]
    assert row["accuracy"] == nan["accuracy"]
    assert row["voters"] == (7 if attack == "nan" else 5)


# ``auto``


def test_auto_of_an_ensemble_is_every_answer_of_the_table():
    document = {"data": "digits", "model": "linear", "clients": 7, "byzantine": 2, "rounds": 1,
                "seed": 4, "attack": "auto", "ensemble": PLAN}  # fmt: skip
    runs = expand(document)
    assert {e.attack["name"] for e in runs} == set(threat_model.ANSWERS) and len(runs) == 9
    assert [e.attack for e in runs] == members(mode=ENSEMBLE) and stand_for_auto(runs)
    assert not stand_for_auto(runs[:-1])
    with pytest.raises(ConfigError, match="in ensemble mode needs knowledge = 'omniscient'"):
        expand(document | {"attack": "auto:knowledge=own"})
    with pytest.raises(ConfigError, match="needs byzantine of at least 1"):
        expand(document | {"byzantine": 0})
    assert all(auto.weakness(e) == "" for e in runs)


def test_auto_of_an_ensemble_names_the_vote_that_wins():
    runs = [experiment(spec) for spec in ({"name": "none"}, *members(mode=ENSEMBLE))]
    results = Results(tuple((e, run_one(e)) for e in runs))
    (one,) = results.worst_cases
    assert (one.winner, one.runs) == ("best_vote", 9) and one.fixed in threat_model.ANSWERS
    assert one.accuracy <= one.fixed_accuracy < one.clean
    assert results.auto["winner"].tolist() == ["best_vote"]
    assert Results(results.runs[:-1]).worst_cases == []
