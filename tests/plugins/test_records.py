"""One record per plug-in: what follows from it, and how a rule or an attack is added."""

import inspect

import pytest
import torch

from experiments import catalogue
from fedrobust import simulate
from fedrobust.aggregation import (
    PREAGGREGATORS,
    RULES,
    Outcome,
    Rule,
    aggregate,
    build,
    check,
    installed,
    rule_record,
    tolerated,
)
from fedrobust.aggregation.tables import PREAGGREGATOR_RECORDS, RULE_RECORDS
from fedrobust.attacks import ATTACKS, Attack, Crafted, craft, step, threat_model
from fedrobust.attacks import build as build_attack
from fedrobust.attacks import installed as attack_installed
from fedrobust.attacks.tables import ATTACK_RECORDS, TRAINED
from fedrobust.spec import parameters

NO_PAPER = {"constant", "zero", "nan", "inf"}  # faults that no paper had to invent


def test_the_tables_are_the_records():
    assert list(RULES) == list(RULE_RECORDS)
    assert list(PREAGGREGATORS) == list(PREAGGREGATOR_RECORDS)
    assert list(ATTACKS) + list(TRAINED) == list(ATTACK_RECORDS)


@pytest.mark.parametrize("record", RULE_RECORDS.values(), ids=lambda r: r.name)
def test_a_rules_function_is_named_documented_and_has_the_settings_as_written(record):
    function = RULES[record.name]
    assert function.__name__ == record.name
    assert inspect.getdoc(function) == inspect.getdoc(record.compute)
    assert parameters(function).keys() == record.settings.keys()
    assert record.paper
    assert record.what.endswith(".")
    assert record.what.count("\n") == 0
    assert (record.kappa is None) == (record.kappa_source == "")


@pytest.mark.parametrize("record", ATTACK_RECORDS.values(), ids=lambda r: r.name)
def test_an_attack_has_a_paper_and_a_knowledge_level(record):
    assert bool(record.paper) != (record.name in NO_PAPER)
    assert record.what.endswith(".")
    assert threat_model.knowledge({"name": record.name}) == record.knowledge


def running_mean(updates, *, f, decay=0.5, memory=None):
    """Average all aggregates so far, the trimmed mean of this round last.

    References
    ----------
    Nobody, A Rule for This Test, 2026, line 1.
    """
    now = aggregate(updates, {"name": "trimmed_mean", "f": f})
    state = now if memory is None else decay * memory + (1 - decay) * now
    return Outcome(state, state, None)


STATEFUL = Rule(
    name="running_mean", compute=running_mean, kind="outcome", minimum=lambda s: 2 * s["f"] + 1
)


def test_a_stateful_rule_is_added_by_one_record():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    with installed(STATEFUL):
        spec = {"name": "running_mean", "f": 2}
        rule = build(spec)
        first = rule.apply(x, rule.init())
        second = rule.apply(x * 3, first.state)
        assert torch.allclose(second.aggregate, 2 * first.aggregate)
        assert torch.equal(RULES["running_mean"](x, f=2), first.aggregate)
        with pytest.raises(ValueError, match="running_mean with f=2 needs at least 5 updates"):
            check(spec, n=4)
        assert tolerated(spec, n=7) == 3
        assert rule_record("running_mean").remembers
        entry = next(e for e in catalogue.tables()["rules"] if e["name"] == "running_mean")
        assert entry["parameters"] == "f, decay=0.5"
        assert entry["paper"].startswith("Nobody")
        with pytest.raises(ValueError, match="there is a rule 'running_mean' already"), \
                installed(STATEFUL):  # fmt: skip
            pass
    assert "running_mean" not in RULES


def test_a_stateful_rule_of_ones_own_runs(small):
    """Its memory passes from round to round: with decay 1 the first aggregate is kept for good."""
    frozen = Rule(name="frozen", compute=running_mean, kind="outcome")
    rule = {"name": "frozen", "f": 2}
    with installed(frozen):
        moving = simulate(small, rule=rule, rounds=3).accuracy
        kept = simulate(small, rule=rule | {"decay": 1.0}, rounds=3).accuracy
    assert moving != kept
    assert simulate(small, rule=STATEFUL).accuracy == moving


def growing(honest, *, n, f, factor=2.0, state=None):
    """Send minus the mean, ``factor`` times as large as in the round before."""
    size = torch.ones(1) if state is None else state["size"] * factor
    return Crafted((-size * honest.mean(0)).expand(f, -1), {"size": size})


GROWING = Attack(name="growing", craft=growing)


def test_an_attack_with_memory_is_added_by_one_record():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    with attack_installed(GROWING):
        attacker = build_attack({"name": "growing", "factor": 3.0})
        first = attacker.craft(x, attacker.init(), n=9, f=2)
        second = attacker.craft(x, first.state, n=9, f=2)
        assert torch.allclose(second.updates, 3 * first.updates)
        assert torch.equal(craft(x, "growing", n=9, f=2), first.updates)
        again = step(x, {"name": "growing", "factor": 3.0}, n=9, f=2, state=first.state)
        assert torch.equal(again.updates, second.updates)
        assert first.state["size"] == 1
    assert "growing" not in ATTACKS


def test_an_attack_with_memory_of_ones_own_remembers_in_a_run(small):
    rounds, seen = 3, []

    def watched(honest, *, n, f, state=None):
        seen.append(None if state is None else float(state["size"]))
        return growing(honest, n=n, f=f, state=state)

    simulate(small, attack=Attack(name="watched", craft=watched), rounds=rounds, grid="in_process")
    calls = [value for value in seen if value is not None]
    assert {2.0**k for k in range(rounds - 1)} <= set(calls)
