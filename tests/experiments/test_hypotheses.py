"""The transfer study's own hypotheses: gains at equal clean accuracy, and what decides them."""

import numpy as np
import pandas as pd

from experiments.papers.transfer import hypotheses


def runs(vote, node, seeds=(1, 2, 3)):
    """Return a study where the central model has CA 0.2..0.6 and as much RA lost as CA gained."""
    systems = {"same": (7, "soft", vote), "single node of same": (7, "-", node)}
    lines = [
        {"data": "d", "seed": seed, "system": name, "n": n, "vote": how, "ca": ca, "matched_ca": ca,
         "mi_cwa cond": 1 - ca + gain + 0.001 * seed}
        for seed in seeds
        for name, (n, how, (ca, gain)) in (systems | {"central": (1, "soft", (0.6, 0.0))}).items()
    ]  # fmt: skip
    central = pd.DataFrame(
        {"seed": seed, "ca": ca, "mi_cwa cond": 1 - ca} for seed in seeds for ca in (0.2, 0.4, 0.6)
    )
    return pd.DataFrame(lines), central


def verdicts(table, central):
    return {h.name.split()[0]: h for h in hypotheses.judge(table, central)}


def test_the_gain_is_split_into_less_data_and_the_vote():
    found = verdicts(*runs(vote=(0.5, 0.15), node=(0.4, 0.1)))
    assert found["H9"].verdict == hypotheses.HOLDS and "+15.2" in found["H9"].sentence
    assert found["H10"].verdict == hypotheses.HOLDS
    assert "a node +10.2" in found["H10"].sentence
    assert "the vote adds +5.0" in found["H10"].sentence


def test_a_vote_that_only_buys_accuracy_back_adds_nothing():
    found = verdicts(*runs(vote=(0.5, 0.1), node=(0.4, 0.12)))
    assert found["H10"].verdict == hypotheses.FAILS


def test_an_interval_that_holds_zero_decides_nothing():
    assert hypotheses.beyond(pd.Series([0.3, -0.2, 0.1])) is None
    assert hypotheses.beyond(pd.Series([0.3, 0.31, 0.29])) is True
    assert hypotheses.beyond(pd.Series([-0.3, -0.31, -0.29])) is False
    assert hypotheses.beyond(pd.Series([0.3])) is True


def test_a_node_below_the_curve_is_not_compared():
    table, central = runs(vote=(0.5, 0.1), node=(0.1, 0.1))
    found = verdicts(table, central)["H10"]
    assert found.verdict == hypotheses.OPEN and "a central model" in found.sentence
    assert np.isnan(hypotheses.matched(central, 1, 0.1, "mi_cwa cond"))
