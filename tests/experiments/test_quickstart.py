"""The README's picture: its numbers are those of the shipped experiment."""

from pathlib import Path

import pandas as pd
import pytest

from experiments.benchmarks.quickstart import EXPERIMENTS, IMAGES
from experiments.cli_inputs import experiments_of
from experiments.simulation import resolve, run_one
from fedrobust.experiment.load import expand, read
from fedrobust.experiment.schema import ConfigError

README = Path(__file__).parents[2] / "README.md"
# Other processors round otherwise, which 60 rounds amplify; an attack that holds or fails differs
# by tens of points.
APART = 0.06


def kept():
    return pd.read_csv(IMAGES / "quickstart.csv")


def test_the_picture_is_of_every_run_of_the_experiment():
    runs, frame = expand(read(EXPERIMENTS / "quickstart.toml")), kept()
    told = {(e.attack["name"], e.rule["name"], e.seed) for e in runs}
    rules = frame.defence.str.rpartition("+")[2]
    shown = set(zip(frame.attack, rules, frame.seed, strict=True))
    assert told == shown and len(frame) == len(runs) == 60


def test_the_readme_says_what_the_picture_shows():
    means = kept().groupby(["defence", "attack"]).accuracy.mean().unstack() * 100
    best = means.loc["nnm+geometric_median"]
    text = README.read_text()
    for number in (means.at["mean", "none"], means.at["mean", "sign_flip"], best.min()):
        assert f"{number:.1f} %" in text, number


def test_shipped_experiments_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"rounds": 7, "sweep": {}}
    by_name, by_path = (
        resolve(s, changes) for s in ("quickstart", EXPERIMENTS / "quickstart.toml")
    )
    assert by_name == by_path and by_name[0].rounds == 7
    assert len(experiments_of(Path("quickstart"), [], seeds=1)) == 60
    with pytest.raises(ConfigError, match=r"no file 'quikstart'.*did you mean 'quickstart'"):
        resolve("quikstart", {})
    (tmp_path / "quickstart").write_text("rounds = 1")
    with pytest.raises(ConfigError, match="'data' is missing"):  # a file of the user's comes first
        resolve("quickstart", {})


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mean", "geometric_median"])
def test_a_fresh_run_gives_the_pictures_numbers(rule):
    e = next(
        e for e in expand(read(EXPERIMENTS / "quickstart.toml"))
        if e.rule["name"] == rule and e.attack["name"] == "sign_flip" and e.seed == 1
    )  # fmt: skip
    shown = kept().query("attack == 'sign_flip' and seed == 1")
    shown = shown[shown.defence.str.rpartition("+")[2] == rule]
    assert abs(run_one(e)[-1]["accuracy"] - shown.accuracy.item()) < APART
