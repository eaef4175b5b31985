"""Vacuous attacks and vacuous results are named: in check, run, the report and on the board."""

import sys

import pandas as pd
import pytest
import tomli_w

from experiments import flags, notices
from experiments.board import rows
from experiments.cli import main
from experiments.results import Results
from fedrobust.experiment.load import from_dict
from tests.conftest import finals

ALIE = {"name": "alie"}
RESULT = [{"round": 0, "accuracy": 0.1}, {"round": 3, "accuracy": 0.8, "seconds": 0.1}]


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fedrobust", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (0, 1, None)
    told = capsys.readouterr()
    return " ".join((told.out + told.err).split())


def of(small, **settings):
    """Return the setting with which a case is built: n, f, and what else it needs."""
    return small | {"rule": "median", "attack": ALIE} | settings


CASES = {
    "n = 10, f = 2": ({"clients": 10, "byzantine": 2}, "sends the honest mean itself"),
    "n = 4, f = 1": ({"clients": 4, "byzantine": 1}, "sends the honest mean itself"),
    "even n with f = 1": ({"clients": 12, "byzantine": 1}, "sends the honest mean itself"),
    "weaker than the spread": (
        {"clients": 20, "byzantine": 4, "attack": {"name": "alie", "z": 0.3}},
        "nearer than an honest update is",
    ),
    "f of the rule below the attackers'": (
        {"clients": 10, "byzantine": 3, "rule": {"name": "krum", "f": 1}, "attack": "ipm"},
        "krum f = 1 is below the 3 attackers",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_settings_are_named_in_check_run_and_report(small, tmp_path, monkeypatch, capsys, case):
    settings, sentence = CASES[case]
    path = tmp_path / "case.toml"
    path.write_text(tomli_w.dumps(of(small, rounds=1, **settings)))
    monkeypatch.chdir(tmp_path)
    assert sentence in said(monkeypatch, capsys, "check", path)
    assert sentence in said(monkeypatch, capsys, "run", path)
    experiment = from_dict(of(small, **settings))
    assert sentence in Results(((experiment, RESULT),)).report()


@pytest.mark.parametrize("n", range(4, 21, 2))
def test_alie_is_nothing_at_every_even_n_with_one_attacker(small, n):
    (line,) = notices.before([from_dict(of(small, clients=n, byzantine=1))])
    assert line.startswith(f"vacuous: alie with n = {n}, f = 1 sends the honest mean itself")


@pytest.mark.parametrize(("n", "f"), [(11, 2), (20, 4), (25, 5)])
def test_alie_is_something_elsewhere(small, n, f):
    lines = notices.before([from_dict(of(small, clients=n, byzantine=f))])
    assert not [line for line in lines if "honest mean itself" in line]


def test_wide_intervals_and_what_is_lost_without_an_attack(small):
    # two seeds 3.3 points apart: t(0.975, 1) = 12.706, half of 0.033 times it is 0.21
    results = finals(small, {
        ("mean", "none", 1): 0.80, ("mean", "none", 2): 0.80,
        ("krum", "none", 1): 0.60, ("krum", "none", 2): 0.633,
    })  # fmt: skip
    wide, lost = notices.after(results)
    assert "1 of 2 cells" in wide and "krum under none, 61.7 ± 21.0, 2 seeds" in wide
    assert lost == "krum loses 18.4 points without an attack, against mean"
    page = results.report()
    assert wide.replace("±", "±") in page and lost in page
    close = finals(small, {
        ("mean", "none", 1): 0.80, ("mean", "none", 2): 0.801,
        ("krum", "none", 1): 0.78, ("krum", "none", 2): 0.781,
    })  # fmt: skip
    assert notices.after(close) == []


def test_a_run_that_never_took_a_step_is_named(small):
    experiment = from_dict(small)
    rows_ = [{"round": 0, "accuracy": 0.1}] + [
        {"round": i, "accuracy": 0.1, "kept": "too few replies"} for i in (1, 2, 3)
    ]
    assert "not one of 3 rounds took a step" in Results(((experiment, rows_),)).report()
    assert flags.never_stepped(rows_) == "not one of 3 rounds took a step: too few replies"
    del rows_[2]["kept"]
    assert flags.never_stepped(rows_) == ""
    assert "took a step" not in Results(((experiment, rows_),)).report()


def test_the_flags_of_the_board_know_the_same(small):
    runs = [
        (from_dict(of(small, seed=seed, rule={"name": "krum", "f": 1}, clients=10, byzantine=2)),
         [{"round": 1, "accuracy": value, "kept": "no step"}])
        for seed, value in ((1, 0.5), (2, 0.54))
    ]  # fmt: skip
    text = "; ".join(flags.flags(runs))
    assert "sends the honest mean itself" in text and "below the 2 attackers" in text
    assert "2 seeds give an interval of ± 25.4 points" in text and "took a step" in text
    assert "no run without an attack" in text


def test_the_board_says_beside_its_table_what_to_doubt():
    found = rows.read()
    lines = rows.doubts(found)
    flagged = {flag for row in found for cell in row["cells"] for flag in cell.get("flags", [])}
    assert flagged and all(any(flag in line for line in lines) for flag in flagged)
    row = {"rule": "x", "settings": {}, "cells": [
        {"cell": "a", "byzantine": 0, "clean": 0.5}, {"cell": "b", "byzantine": 1, "refused": "no"},
    ]}  # fmt: skip
    best = row | {"rule": "y", "cells": [{"cell": "a", "byzantine": 0, "clean": 0.9}]}
    assert rows.doubts([row, best]) == ["x loses 40.0 points without an attack in a, against y"]
    assert isinstance(rows.table(found), pd.DataFrame)
