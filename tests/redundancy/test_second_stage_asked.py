"""Attacks that ask the rule under redundancy ask what the server does with the voted files."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from flwr.app import Context, RecordDict

from clients.client_app import app
from clients.redundancy import crafting, memory, worker
from clients.redundancy.foresight import SecondStage
from experiments import notices
from experiments.simulation import run_one
from fedrobust.attacks import reach
from fedrobust.attacks.reduction import in_span
from fedrobust.attacks.tables import ATTACK_RECORDS
from fedrobust.experiment.load import expand, from_dict
from fedrobust.flower import CohortGrid, InProcessGrid
from fedrobust.redundancy import Window
from fedrobust.runs.folder import RunFolder, timeless
from strategies.checkpointing import Checkpoints
from strategies.redundancy import strategy as server
from strategies.session import run
from tests.conftest import Stopped, stop_after

SEARCH = {"name": "gradient_search"}


def build(small, attack, *, q=2, clients=7, rounds=3, rule="median", **scheme):
    table = {"name": "aspis", "detection": "strict"} | scheme
    table.setdefault("batch", {"aspis": 70, "none": 70}.get(table["name"], 60))
    changes = {"clients": clients, "byzantine": q, "rounds": rounds, "attack": attack,
               "rule": rule, "placement": "first", "redundancy": table}  # fmt: skip
    return from_dict(small | {"training": {}} | changes)


@pytest.fixture
def both(monkeypatch):
    """Run an experiment; return what attackers foresaw and what the server made, by round."""
    foreseen, made = [], []
    ask, decide = SecondStage.foreseen, server.decide

    def asked(self, sent):
        foreseen.append((self, sent, self.outcome(sent).aggregate.clone()))
        return ask(self, sent)

    def decided(*args):
        made.append(decide(*args))
        return made[-1]

    monkeypatch.setattr(SecondStage, "foreseen", asked)
    monkeypatch.setattr(server, "decide", decided)

    def run(e):
        rows = run_one(e)
        return rows, foreseen, [outcome.value for outcome in made]

    return run


VOTED = {"name": "detox", "detection": "none", "clients": 15, "q": 4}
SCHEMES = {
    "strict": {},
    "contested": {"detection": "contested"},
    "paper": {"detection": "paper"},
    "majority": {"detection": "none", "adversary": "att3"},
    "apart": {"detection": "none", "adversary": "att1"},
    "buckets": {"detection": "contested", "q": 5, "clients": 11, "batch": 330,
                "adversary": "lone_files"},
    "window": {"name": "aspis_plus", "detection": "window", "clients": 9, "batch": 72},
    "detox": VOTED,
    "krum": VOTED | {"clients": 21, "rule": "krum", "batch": 70},
    "memory": VOTED | {"rule": {"name": "centered_clipping", "tau": 0.5}},
    "slices": {"coordinates": 100},
    "one copy": {"name": "none", "detection": "none"},
    "code": {"name": "draco_cyclic", "replication": 5, "rule": "mean", "detection": "none",
             "batch": 70},
}  # fmt: skip
NOTHING_OWNED = ("contested", "apart", "window", "code")


@pytest.mark.parametrize("case", SCHEMES)
def test_what_is_foreseen_is_what_the_server_makes(small, both, case):
    e = build(small, SEARCH, **SCHEMES[case])
    rows, foreseen, made = both(e)
    assert len(foreseen) == len(made) == 3, "asked once a round, for all attackers"
    for (_, _, expected), value in zip(foreseen, made, strict=True):
        assert torch.allclose(expected, value, rtol=1e-4, atol=1e-6)
    for row in rows[1:]:
        assert 24 <= row["search"]["calls"] <= 36
        assert row["search"]["wrong_files"] == pytest.approx(row.get("wrong_files", 0.0))
        assert row["search"]["operands"] >= row["search"]["owned"]
    assert rows[1]["path"] == {"contested": "sum", "buckets": "buckets", "code": "code"}.get(
        case, "files"
    )
    assert (rows[1]["search"]["owned"] > 0) == (case not in NOTHING_OWNED)


@pytest.mark.parametrize(
    "attack", [SEARCH, {"name": "drift_search"}, {"name": "opt_ipm"}, {"name": "rop"}]
)
def test_attackers_on_hosts_of_their_own_send_the_same(small, monkeypatch, attack):
    """Each node's own state holds what it needs, in all stages of a round and in the next one."""
    e = build(small, attack, name="detox", detection="none", clients=9, batch=36, rounds=3)
    together = run_one(e)
    calls = []
    original = worker.byzantine_of

    def apart(node, honest, workers, context):
        calls.append(workers)
        honest.beside.clear()
        return original(node, honest, workers, context)

    monkeypatch.setattr(worker, "byzantine_of", apart)
    alone = run_one(e)
    assert timeless(alone) == timeless(together) and len(calls) > 6
    assert together[-1]["wrong_files"] > 0


@pytest.mark.parametrize("hosts", [1, 2])
def test_every_grid_gives_the_same_rows(small, hosts):
    e = build(
        small, {"name": "drift_search"}, **VOTED | {"rule": "krum", "clients": 21, "batch": 70}
    )
    nodes = InProcessGrid(app, clients=hosts, run_config={"experiment": e.to_toml()})
    rows = []
    run(CohortGrid(nodes, clients=e.clients), e, on_row=rows.append)
    assert timeless(rows) == timeless(run_one(e)) and "search" in rows[-1]


@pytest.mark.parametrize("attack", [SEARCH, {"name": "drift_search"}, {"name": "rop"}])
def test_a_run_that_is_taken_up_goes_on_as_it_would_have(small, tmp_path, monkeypatch, attack):
    """What attackers remember is in their nodes' state, and so in the checkpoint."""
    monkeypatch.setattr(
        "experiments.simulation.Checkpoints", lambda write, saved: Checkpoints(write, saved, 0.0)
    )
    e = build(small, attack, rounds=4, **VOTED)
    folder = RunFolder(tmp_path, e)
    with pytest.raises(Stopped):
        run_one(e, folder=folder, on_row=stop_after(2))
    assert timeless(run_one(e, folder=folder, resume=True)) == timeless(run_one(e))
    told = json.loads((folder.path / "environment.json").read_text())["resumed"]
    assert told[0]["after"] == 1


def test_others_begin_afresh(small):
    """What was remembered in another round, or by other attackers, is not taken up."""
    context = Context(0, 1, {}, state=RecordDict(), run_config={})
    known = memory.Memory(
        attack={"mean": torch.ones(3)}, model=torch.zeros(3), sent=torch.ones(3),
        window=Window(2, torch.eye(3, dtype=torch.bool), (1,)),
    )  # fmt: skip
    memory.keep(context, known, server_round=4, workers=(0, 1))
    after = memory.recall(context, server_round=5, workers=(0, 1))
    assert torch.equal(after.attack["mean"], torch.ones(3)) and after.sent is None
    assert after.window.iteration == 2 and after.window.flagged == (1,)
    assert torch.equal(after.window.disagreed, torch.eye(3, dtype=torch.bool))
    again = memory.recall(context, server_round=4, workers=(0, 1))
    assert torch.equal(again.sent, torch.ones(3)) and again.model is None
    for turn, workers in ((5, (0, 2)), (6, (0, 1))):
        assert memory.recall(context, server_round=turn, workers=workers) == memory.Memory()


@pytest.mark.parametrize("rule", ["krum", {"name": "centered_clipping", "tau": 0.5}])
def test_questions_in_coordinates_get_the_same_answer(small, both, rule):
    e = build(small, SEARCH, name="detox", detection="none", clients=21, rule=rule, batch=70)
    _, foreseen, _ = both(e)
    for stage, sent, aggregate in foreseen:
        asked, view, (moved,) = in_span(stage, stage.view, [sent])
        assert view.shape[1] < stage.view.shape[1]
        found = asked(torch.cat([view, moved[None]]))
        # Products keep their values in another basis: those with the view are enough to tell.
        assert torch.allclose(view @ found.double(), stage.view.double() @ aggregate.double(),
                              rtol=1e-4, atol=1e-6)  # fmt: skip


def test_attackers_who_see_fewer_files_imagine_the_others(small, both):
    e = build(small, SEARCH | {"knowledge": "colluding"}, name="detox", detection="none",
              clients=15, q=4)  # fmt: skip
    rows, foreseen, _ = both(e)
    stage = foreseen[0][0]
    assert len(stage.view) == 2 and len(stage.values) == 5, "two groups of three are theirs"
    held = [int(torch.equal(a, b)) for a in stage.view for b in stage.values]
    assert sum(held) == 2
    assert rows[-1]["search"]["owned"] == 2 == rows[-1]["wrong_files"] * 5


def test_without_attackers_the_second_stage_is_of_true_files(small, both):
    _, foreseen, _ = both(build(small, SEARCH, rounds=1, name="detox", detection="none",
                                clients=15, q=4))  # fmt: skip
    stage, _, attacked = foreseen[0]
    honest = stage(stage.view)
    assert torch.allclose(honest, stage.values.sort(0).values[2])
    assert not torch.allclose(honest, attacked)


def test_attacks_that_neither_ask_nor_remember_leave_no_trace(small):
    e = build(small, {"name": "reversed_gradient"}, rounds=1)
    assert not crafting.thinks(e) and "search" not in run_one(e)[-1]
    assert not crafting.thinks(build(small, SEARCH | {"knowledge": "own"}))
    assert crafting.thinks(build(small, SEARCH)) and crafting.thinks(build(small, {"name": "rop"}))


@pytest.mark.parametrize(
    ("detection", "own", "stronger"),
    [
        ("strict", (False, 28 / 84), ""),
        ("contested", (False, 0), "lone_files would own 21 % of what is counted"),
        ("paper", (False, 28 / 84), "would own"),
        ("none", (False, 28 / 84), "att3 would own 40 % of what is counted"),
    ],
)
def test_an_adversary_that_owns_more_is_named(small, detection, own, stronger):
    e = build(small, SEARCH, q=4, clients=9, batch=336, detection=detection)
    assert reach.reach(e) == reach.Reach(*own)
    told = reach.farther(e)
    assert stronger in told and bool(told) == bool(stronger)
    assert bool(reach.nothing(e)) == (own[1] == 0)
    if detection == "paper":
        assert "small_d would own 41 % of a plain mean" in told, "no bound beats any share of files"
    row = run_one(replace(e, rounds=1))[-1]
    assert row["wrong_files"] == pytest.approx(own[1], abs=1e-6)


def test_a_code_and_a_federation_have_no_stronger_adversary(small):
    code = build(small, SEARCH, **SCHEMES["code"])
    assert reach.farther(code) == "" and "no say" in reach.nothing(code)
    assert reach.farther(from_dict(small)) == "" == reach.nothing(from_dict(small))


def test_check_says_what_a_scheme_leaves(small):
    e = build(small, "none", q=4, clients=9, batch=336, detection="contested")
    told = notices.before(expand(e.to_dict() | {"attack": "auto"}))
    assert len(told) == 2, "once for all sixteen runs"
    assert "whatever the attackers send" in told[0] and "lone_files" in told[1]


THINKING = [name for name, record in ATTACK_RECORDS.items()
            if record.remembers or record.asks_the_rule]  # fmt: skip


@pytest.mark.parametrize("name", THINKING)
def test_every_attack_that_asks_or_remembers_runs_under_redundancy(small, name):
    assert len(THINKING) >= 12
    e = build(small, {"name": name, "knowledge": "omniscient"}, rounds=2, **VOTED)
    row = run_one(e)[-1]
    assert row["wrong_files"] == 0.4 and row["rejected"] == [] and "kept" not in row
    assert ("deviation" in row.get("search", {})) == ATTACK_RECORDS[name].asks_the_rule
