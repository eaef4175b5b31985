"""``attack = "auto"``: what it expands to, who wins, and every flag."""

from __future__ import annotations

import json
import math

import pytest

from experiments import expected_time, flags, worst_case
from experiments.cli_inputs import experiments_of
from experiments.results import Results
from experiments.simulation import run_one, simulate
from fedrobust.attacks import ATTACKS, strength, threat_model
from fedrobust.attacks.members import (
    FIXED,
    FIXED_ANSWERS,
    QUESTIONS,
    SEARCHED,
    SEARCHED_ANSWERS,
    is_searched,
    members,
    questions,
    stand_for_auto,
)
from fedrobust.experiment import auto
from fedrobust.experiment.load import expand, from_dict
from fedrobust.experiment.schema import ConfigError

SETTING = {
    "data": "digits",
    "model": "linear",
    "clients": 10,
    "byzantine": 2,
    "rounds": 2,
    "seed": 1,
    "rule": "trimmed_mean",
    "attack": "auto",
    "server": {"lr": 0.5, "evaluate_every": 1},
}


def run_of(attack, accuracies, *, seed=1, search=None, **changes):
    """An experiment and rows with these accuracies, as if it had run."""
    e = from_dict(SETTING | {"attack": attack, "seed": seed} | changes)
    rows = [{"round": i, "accuracy": a, "seconds": 0.5} for i, a in enumerate(accuracies)]
    for row, found in zip(rows, search or [], strict=False):
        row |= found
    return e, rows


# What it stands for


def test_auto_becomes_its_members_each_a_whole_run():
    runs = expand(SETTING)
    assert [e.attack for e in runs] == members()
    assert len(runs) == len(SEARCHED) + len(FIXED) == 16
    assert len({e.run_id for e in runs}) == 16
    assert {json.dumps(auto.same_but_attack(e), sort_keys=True) for e in runs} and all(
        auto.same_but_attack(e) == auto.same_but_attack(runs[0]) for e in runs
    )
    assert all(spec["name"] in ATTACKS for spec in members())


def test_auto_goes_with_sweeps_and_other_attacks_and_repeats_none(tmp_path):
    document = SETTING | {
        "attack": "none",
        "sweep": {"rule": ["mean", "krum"], "attack": ["none", "min_max", "auto"]},
    }
    runs = expand(document)
    assert len(runs) == 2 * (1 + 16), "min_max is a member: it runs once"
    assert [e.attack["name"] for e in runs[:2]] == ["none", "min_max"]
    assert len(expand(SETTING, seeds=3)) == 48
    path = tmp_path / "one.toml"
    path.write_text(from_dict(SETTING | {"attack": "none"}).to_toml())
    assert len(experiments_of(path, ["attack=auto"], seeds=2)) == 32
    assert len(experiments_of(path, over=["attack=none,auto"])) == 17


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"attack": {"name": "auto", "z": 1}},
            "attack 'auto' has no parameters but knowledge, got z",
        ),
        ({"attack": "auto:z=1"}, "attack 'auto' has no parameters but knowledge, got z=1"),
        ({"attack": {"name": "auto", "knowledge": "colludin"}}, "did you mean 'colluding'"),
        ({"attack": "auto:knowledge=all"}, "unknown knowledge 'all' of attack 'auto'"),
        ({"byzantine": 0}, "attack 'auto' needs byzantine of at least 1, got 0"),
        (
            {
                "clients": 7,
                "redundancy": {"name": "aspis", "batch": 70},
                "attack": "auto:knowledge=own",
            },
            "in redundancy mode needs knowledge = 'colluding' or 'omniscient', got 'own'",
        ),
        ({"metrics": ["worst_class"]}, "compares accuracies, this task has worst_class"),
        ({"rule": "krumm"}, "did you mean 'krum'"),
        ({"attack": "atuo"}, "did you mean 'auto'"),
    ],
)
def test_what_auto_cannot_do_is_said(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        expand(SETTING | changes)


VOTED = {"clients": 9, "redundancy": {"name": "detox", "batch": 36, "detection": "none"},
         "rule": "median"}  # fmt: skip


@pytest.mark.parametrize("level", ["omniscient", "colluding"])
def test_auto_under_redundancy_is_the_same_members(level):
    runs = expand(SETTING | VOTED | {"attack": {"name": "auto", "knowledge": level}})
    assert [e.attack for e in runs] == members(level) and len(runs) == 16
    assert all(e.redundancy.name == "detox" for e in runs) and stand_for_auto(runs)
    assert not stand_for_auto(runs[1:])
    told = [run_of("none", [0.1, 0.9], **VOTED)]
    told += [run_of(spec, [0.1, 0.5], **VOTED) for spec in members(level)]
    (one,) = Results(tuple(told)).worst_cases
    assert one.defence.startswith("detox+median") and one.knowledge == level


@pytest.mark.parametrize("level", ["own", "colluding"])
def test_auto_of_attackers_who_know_less_is_members_who_know_no_more(level):
    runs = expand(SETTING | {"attack": {"name": "auto", "knowledge": level}})
    assert [e.attack for e in runs] == members(level) and len(runs) == 16
    assert runs == expand(SETTING | {"attack": f"auto:knowledge={level}"})
    known = {threat_model.knowledge(e.attack) for e in runs}
    assert known <= {"own", level} and level in known
    assert all(is_searched(spec) for spec in members(level)[:4])
    told = [run_of("none", [0.1, 0.9])] + [run_of(spec, [0.1, 0.5]) for spec in members(level)]
    (one,) = Results(tuple(told)).worst_cases
    assert one.knowledge == level and one.defence == f"trimmed_mean ({level})" and one.runs == 16
    told += [run_of(spec, [0.1, 0.4]) for spec in members()]
    assert [w.knowledge for w in Results(tuple(told)).worst_cases] == ["omniscient", level]


def test_a_single_run_cannot_be_auto():
    with pytest.raises(ConfigError, match="stands for many runs: use it with fedrobust run"):
        from_dict(SETTING)


def test_members_that_cannot_be_computed_are_left_out():
    """ALIE's own z is not defined once half of those asked are Byzantine; every other member is."""
    many = from_dict(SETTING | {"attack": "none", "byzantine": 6, "rule": "median"})
    left = [spec for spec in members() if spec not in auto.applicable(many)]
    assert all(spec["name"] in ("alie", "rop") and "z" not in spec for spec in left)
    sampled = from_dict(
        SETTING | {"attack": "none", "participation": 0.5, "rule": "median", "rounds": 9}
    )
    counts = auto.cohorts(sampled)
    assert counts.total() == 9 and {n for n, _ in counts} == {5}
    assert max(f for _, f in counts) <= 2


def test_the_answers_of_an_ensemble_are_those_of_the_table():
    names = [spec["name"] for spec in SEARCHED_ANSWERS + FIXED_ANSWERS]
    assert sorted(names) == sorted(threat_model.ANSWERS)
    assert all(is_searched(spec) for spec in SEARCHED_ANSWERS)
    assert not any(is_searched(spec) for spec in FIXED_ANSWERS)


def test_questions_of_each_member_are_known():
    assert set(QUESTIONS) == {s["name"] for s in members() if "rule" in _settings(s["name"])}
    assert [questions(spec) for spec in SEARCHED] == [36, 24, 52, 0]


def _settings(name):
    import inspect

    return inspect.signature(ATTACKS[name]).parameters


# Who wins


def test_the_winner_is_the_member_that_leaves_least_on_average_over_seeds():
    runs = [run_of("none", [0.1, 0.9, 0.9], seed=s) for s in (1, 2)]
    for spec in members():
        left = {"drift_search": (0.5, 0.54), "min_max": (0.44, 0.7)}.get(spec["name"], (0.8, 0.8))
        runs += [run_of(spec, [0.1, 0.5, a], seed=s) for s, a in zip((1, 2), left, strict=True)]
    results = Results(tuple(runs))
    (one,) = results.worst_cases
    assert (one.winner, one.fixed, one.runs, one.seeds) == ("drift_search", "min_max", 32, 2)
    assert one.accuracy == pytest.approx(0.52) and one.fixed_accuracy == pytest.approx(0.57)
    assert one.clean == pytest.approx(0.9) and one.interval > 0.02
    assert one.accuracy <= min(r[-1]["accuracy"] + 0.08 for _, r in runs)
    frame = results.auto
    assert list(frame.index) == ["trimmed_mean"] and frame["winner"].item() == "drift_search"
    assert "52.0 ± " in worst_case.words([one])["auto"].item()


def test_no_worst_case_is_told_before_every_member_ran():
    runs = [run_of(spec, [0.1, 0.5]) for spec in members()]
    assert len(Results(tuple(runs)).worst_cases) == 1
    assert Results(tuple(runs[1:])).worst_cases == []
    assert Results(tuple(runs[1:])).auto.empty
    runs.append(run_of(members()[0], [0.1, 0.5], seed=2))
    assert Results(tuple(runs)).worst_cases == [], "the second seed is not whole"


@pytest.mark.parametrize(
    ("scheme", "owned"),
    [({"name": "detox", "batch": 36, "detection": "none"}, True), ({"name": "draco_repetition",
      "batch": 18, "replication": 5}, False)],
)  # fmt: skip
def test_a_worst_case_under_redundancy_says_whether_there_was_an_attack(scheme, owned):
    table = VOTED | {"redundancy": scheme, "clients": 10 if not owned else 9}
    document = SETTING | table | {"attack": "none"}
    runs = [(e, run_one(e)) for e in expand(document)]
    runs += [(e, run_one(e)) for e in expand(SETTING | table)]
    (one,) = Results(tuple(runs)).worst_cases
    assert one.runs == 16 and one.accuracy <= one.clean
    vacuous = [told for told in one.flags if told.startswith("vacuous: a file")]
    assert bool(vacuous) == (not owned)
    if not owned:
        assert one.accuracy == one.clean, "the votes gave every true value"


@pytest.mark.slow
def test_auto_runs_from_python_on_a_rule_of_ones_own():
    def middle(updates, *, f):
        return updates.sort(0).values[f : len(updates) - f].mean(0)

    results = simulate(SETTING, rounds=2, rule=middle)
    (one,) = results.worst_cases
    assert len(results.runs) == 16
    assert one.defence.partition("#")[0] == "middle", "numbered where others had that name"
    assert one.winner in {flags.label(s) for s in members()}
    assert all(one.accuracy <= rows[-1]["accuracy"] for _, rows in results.runs)
    assert "there is no run without an attack" in " ".join(one.flags)


def test_expected_time_counts_runs_and_processes():
    said = expected_time.expected(expand(SETTING)[:4], workers=2)
    assert said.startswith("4 runs, about 1 s on 2 process(es)")
    time = expected_time.RoundTime(plain=0.1, question=0.01)
    search, coarse, drift, shift = expand(SETTING | {"rounds": 10})[:4]
    assert time.of(search) == pytest.approx(10 * (0.1 + 0.36))
    assert time.of(shift) < time.of(coarse) < time.of(search) < time.of(drift)
    assert [expected_time.spoken(s) for s in (0.2, 40, 600, 9000)] == [
        "1 s",
        "40 s",
        "10 min",
        "2.5 h",
    ]


# Flags


def rows(*accuracies):
    return [{"round": 5 * i, "accuracy": a} for i, a in enumerate(accuracies)]


def test_flag_rising():
    flat = rows(0.1, 0.5, 0.8, 0.8, 0.8, 0.805)
    assert (
        flags.rising(flat) == "" and flags.rising([]) == "" and flags.rising(rows(0.1, 0.9)) == ""
    )
    assert "by 4.0 points since round 20" in flags.rising(rows(0.1, 0.5, 0.8, 0.8, 0.8, 0.84))
    assert flags.rising(rows(0.1, 0.5, 0.8, 0.8, 0.8, 0.5)) == "", "falling is no rising"


def test_flag_below_chance():
    assert flags.below_chance(rows(0.1, 0.02), chance=0.1)
    assert not flags.below_chance(rows(0.1, 0.1), chance=0.1)
    assert not flags.below_chance(rows(0.02), chance=None)
    assert not flags.below_chance([], chance=0.1)


def test_flag_spread_over_seeds():
    assert "differ by 6.0 points" in flags.spread_over_seeds([0.5, 0.56, 0.52], what="x")
    assert not flags.spread_over_seeds([0.5, 0.549], what="x")
    assert not flags.spread_over_seeds([], what="x")


def test_flag_at_the_edge():
    at = [{"search": {"size": 256.0}}, {"search": {"size": 256.0}}, {"search": {"size": 2.0}}]
    assert "in 2 of 3 rounds" in flags.at_the_edge(at)
    assert not flags.at_the_edge(at[1:]) and not flags.at_the_edge([{"round": 1}])


def test_flag_fixed_beats_searched():
    found = {"gradient_search": 0.7, "drift_search": 0.6, "min_max": 0.5}
    ours = ["gradient_search", "drift_search"]
    assert "min_max does 10.0 points more" in flags.fixed_beats_searched(found, ours)
    assert not flags.fixed_beats_searched(found | {"min_max": 0.595}, ours)
    assert not flags.fixed_beats_searched({"min_max": 0.5}, ours)


def test_flag_fewer_candidates():
    assert "5.0 points more" in flags.fewer_do_more(0.5, 0.55)
    assert not flags.fewer_do_more(0.545, 0.55)


def test_flag_owns_nothing():
    """What a scheme outvotes is no attack, and its accuracy no sign of a strong rule."""
    none = [{"round": 0}] + [{"round": i, "path": "sum", "wrong_files": 0.0} for i in (1, 2, 3)]
    told = flags.owns_nothing(none)
    assert told.startswith("vacuous: a file that the server kept was wrong in 0 of 3 rounds")
    wrong = {"wrong_files": 0.1}
    assert flags.owns_nothing([*none, wrong]).startswith("weak: ")
    assert flags.owns_nothing([wrong, {"wrong_files": 0.0}, wrong]) == ""
    assert "0 of 1 rounds" in flags.owns_nothing([{"round": 1, "path": "code"}])
    assert flags.owns_nothing([{"round": 1, "accuracy": 0.5}]) == "", "federated"


def test_flag_memory_differs():
    def row(expected, made):
        return {"search": {"deviation": expected}, "impact": {"deviation": made}}

    assert not flags.memory_differs([row(0.5, 0.5001), {"round": 0}])
    files = {"search": {"wrong_files": 0.2, "deviation": 1.0}, "wrong_files": 0.2}
    assert not flags.memory_differs([files])
    assert "in 1 of 2 rounds" in flags.memory_differs([files, files | {"wrong_files": 0.0}])
    assert "in 1 of 2 rounds" in flags.memory_differs([row(0.5, 0.5), row(0.5, 0.7)])


def test_flags_on_the_experiment():
    def e(**changes):
        return from_dict(SETTING | {"attack": "none"} | changes)

    assert flags.is_random(e()) == "" and "dnc draws" in flags.is_random(e(rule="dnc"))
    groups = {"name": "median_of_means", "groups": 3}
    assert "order of the files" in flags.is_random(e(**VOTED | {"rule": groups}))
    assert flags.is_random(e(**VOTED)) == "" == flags.is_random(e(rule=groups))
    pre = e(pre=[{"name": "bucketing", "size": 2}], rule="median")
    assert "bucketing draws" in flags.is_random(pre)
    assert flags.told_too_few(e()) == ""
    assert "krum f = 1 is below the 2" in flags.told_too_few(e(rule={"name": "krum", "f": 1}))
    nnm = e(pre=[{"name": "nnm", "f": 1}])
    assert "nnm f = 1" in flags.told_too_few(nnm)


def test_flag_weak_without_attack():
    assert "no run without" in flags.weak_without_attack([], chance=0.1)
    assert "15.0 only" in flags.weak_without_attack([0.15], chance=0.1)
    assert "differ by" in flags.weak_without_attack([0.8, 0.9], chance=0.1)
    assert not flags.weak_without_attack([0.9, 0.91], chance=0.1)
    assert not flags.weak_without_attack([0.98], chance=0.5), "two classes"
    assert "70.0 only" in flags.weak_without_attack([0.7], chance=0.5)


def test_flag_vacuous():
    """ALIE's own z is 0 with n = 10, f = 2 and for every even n with f = 1: no attack at all."""
    for n, f in [(10, 2), (10, 1), (12, 1), (20, 1), (100, 1)]:
        assert strength.strength("alie", n=n, f=f) < 1e-6, (n, f)
        assert "vacuous" in strength.weakness("alie", n=n, f=f)
    assert strength.strength("alie", n=51, f=12) == pytest.approx(0.3612, abs=1e-3)
    assert "weak: alie with n = 51, f = 12" in strength.weakness("alie", n=51, f=12)
    for spec in ({"name": "alie", "z": 1.5}, "opt_ipm", "sign_flip", "gaussian", "nan", "min_max"):
        assert strength.weakness(spec, n=10, f=2) == "", spec
    for spec in ("opt_ipm", "sign_flip", "ipm", "gaussian", "nan", "backdoor", "silence", "none"):
        assert strength.strength(spec, n=10, f=2) is None, spec
    assert "vacuous" in flags.vacuous(from_dict(SETTING | {"attack": "alie"}))
    assert flags.vacuous(from_dict(SETTING | {"attack": "none"})) == ""


def test_flags_together_say_each_thing_once():
    runs = [run_of("none", [0.1, 0.5, 0.6, 0.7], seed=s, rounds=4) for s in (1, 2)]
    for spec in members():
        low = 0.05 if is_searched(spec) else 0.8
        runs += [run_of(spec, [0.1, 0.4, 0.4, low], seed=s, rounds=4) for s in (1, 2)]
    said = flags.flags(runs, chance=0.1)
    assert len(said) == len(set(said))
    assert any("still rising" in s for s in said) and any("below chance" in s for s in said)
    assert not any("fixed attack" in s for s in said)
    assert flags.flags(runs[:2]) == []


def test_flags_survive_runs_without_an_evaluation():
    runs = [(from_dict(SETTING | {"attack": "min_max"}), [])]
    assert math.isnan(flags.final([])) and isinstance(flags.flags(runs), list)
