"""Questions to a rule in few coordinates: exact where promised, and never assumed."""

from __future__ import annotations

import pytest
import torch

from experiments.simulation import run_one
from fedrobust.aggregation import aggregate, build, follows_rotation, rule_record
from fedrobust.aggregation.tables import PREAGGREGATOR_RECORDS, RULE_RECORDS
from fedrobust.attacks import reduction, scene, step
from fedrobust.experiment.load import from_dict
from fedrobust.seeds import generator

N, F, D = 15, 3, 60
NEEDED = {
    "centered_clipping": {"tau": 1.0},
    "norm_clipping": {"bound": 1.0},
    "median_of_means": {"groups": 5},
    "huber": {"threshold": 1.0},
    "safeguard": {"window": 8, "threshold": 9.0, "short_window": 2, "short_threshold": 9.0},
    "flame": {"noise": 0.0},
    "filtering": {"variance": 0.1},
    "rlr": {"threshold": 3},
    "mda": {"f": 1},  # of f = 3 there are thirty times as many subsets
    "smea": {"f": 1},
}
# What passes on rows this short, or without its memory, or with noise of its own.
NOT_PROMISED = {
    "projected": "with 2,048 coordinates or fewer nothing is projected",
    "randeigen": "as projected",
    "filtering": "1,000 coordinates are one group",
    "clipped_clustering": "it remembers lengths, which are no vectors",
}
ASKS_FOR_MORE = {"fltrust", "zeno", "lasa", "alignins"}  # data of the server, or the layers


def spec_of(name):
    given = {"f": F} if rule_record(name).takes_f else {}
    return {"name": name, **given, **NEEDED.get(name, {})}


def rows_of(seed=0, n=N, d=D, dtype=torch.float64):
    source = generator(seed, "test")
    away = torch.randn(d, generator=source, dtype=torch.float64)
    return (0.3 * torch.randn(n, d, generator=source, dtype=torch.float64) + away).to(dtype)


MARKED = [n for n in RULE_RECORDS if follows_rotation(spec_of(n))]


def turned(rows):
    wide = torch.randn(2 * D, D, generator=generator(7, "turn"), dtype=torch.float64)
    turn = torch.linalg.qr(wide).Q.T
    return rows @ turn, turn


@pytest.mark.parametrize("name", sorted(set(RULE_RECORDS) - ASKS_FOR_MORE))
def test_the_mark_says_whether_a_rule_follows_a_rotation(name):
    """Each marked rule does, with and without NNM; each other one does not, or says why not."""
    spec, rows = spec_of(name), rows_of()
    moved, turn = turned(rows)
    for pre in ([], [{"name": "nnm", "f": F}]):
        plain = build(spec, pre=pre).apply(rows).aggregate
        found = build(spec, pre=pre).apply(moved).aggregate @ turn.T
        off = float((plain - found).norm() / plain.norm())
        if follows_rotation(spec, pre):
            assert off < 1e-10, (name, pre)
        elif not pre:
            assert off > 1e-3 or name in NOT_PROMISED


def test_how_many_rules_are_marked_and_under_which_settings():
    assert len(MARKED) == 19 and {"krum", "geometric_median", "dnc", "caf", "smea"} <= set(MARKED)
    for spec in (
        {"name": "rfa", "start": "median"},
        {"name": "centered_clipping", "tau": 1.0, "start": "median"},
        {"name": "dnc", "f": 1, "coordinates": 5},
        {"name": "median_of_means", "groups": 3, "inner": "median"},
        {"name": "safeguard", "noise": 0.1},
        "flame", "median", "bulyan",
    ):  # fmt: skip
        assert not follows_rotation(spec), spec
    assert not follows_rotation("krum", ["foundation"]) and not follows_rotation("unheard_of")


def test_preaggregators_that_are_marked_read_products_alone():
    rows = rows_of()
    moved, _ = turned(rows)
    for name, record in PREAGGREGATOR_RECORDS.items():
        given = {"nnm": {"f": F}, "arc": {"f": F}, "clip": {"bound": 3.0}, "bucketing": {"size": 2}}
        draws = [{"generator": generator(3, "x")} if name == "bucketing" else {} for _ in (1, 2)]
        one, other = (
            record.compute(x, **given.get(name, {}), **more)
            for x, more in zip((rows, moved), draws, strict=True)
        )
        assert torch.allclose(one, other, rtol=1e-9) or not record.follows_rotation, name
    assert not PREAGGREGATOR_RECORDS["foundation"].follows_rotation


def test_coordinates_keep_lengths_and_products_of_rows_close_together_and_far_from_zero():
    rows = 1e4 + 1e-4 * rows_of(d=5000)
    twice = torch.cat([rows[:2], torch.zeros(1, 5000, dtype=torch.float64)])  # not independent
    seen, other = reduction.coordinates([rows, twice])
    assert seen.shape == (N, N + 3) and not bool(other[2].any())
    torch.testing.assert_close(torch.cdist(seen, seen), torch.cdist(rows, rows), rtol=1e-4, atol=0)
    torch.testing.assert_close(seen @ other.T, rows @ twice.T, rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("attack", ["gradient_search", "drift_search"])
def test_a_search_in_coordinates_chooses_what_one_in_full_does(name, attack, monkeypatch):
    spec = spec_of(name)
    found = []
    for full in (False, True):
        if full:
            monkeypatch.setattr(scene, "reducible", lambda rule: None)
            monkeypatch.setattr(reduction, "reducible", lambda rule: None)
        state = None
        for t in range(2):
            honest = rows_of(t, n=N - F, dtype=torch.float32)
            sent = step(honest, attack, n=N, f=F, rule=spec, round=t, state=state, momentum=0.5)
            state = sent.state
        found.append(sent)
    one, other = found
    torch.testing.assert_close(one.updates, other.updates, rtol=1e-5, atol=1e-5)
    for key in ("size", "direction"):
        assert one.notes.get(key) == other.notes.get(key)
    for key, value in (one.state or {}).items():
        torch.testing.assert_close(value, other.state[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["krum", "geometric_median", "huber", "centered_clipping"])
@pytest.mark.parametrize("attack", ["opt_ipm", "opt_alie"])
def test_tuned_attacks_move_a_rule_in_coordinates_as_far_as_in_full(name, attack, monkeypatch):
    """By what they reach: where a bounded rule hardly answers any more, rounding sets the size."""
    spec, honest, found = spec_of(name), rows_of(n=N - F, dtype=torch.float32), []
    for _ in range(2):
        sent = step(honest, attack, n=N, f=F, rule=spec).updates
        moved = aggregate(torch.cat([honest, sent]), spec) - honest.mean(0)
        found.append(float(moved.norm()))
        monkeypatch.setattr(reduction, "reducible", lambda rule: None)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def widths(monkeypatch, rule):
    """In how many coordinates a search asks a rule."""
    from fedrobust import aggregation

    seen, ask = set(), aggregation.aggregate
    monkeypatch.setattr(
        aggregation,
        "aggregate",
        lambda rows, *a, **k: seen.add(rows.shape[1]) or ask(rows, *a, **k),
    )
    step(rows_of(n=N - F), "gradient_search", n=N, f=F, rule=rule)
    return seen


@pytest.mark.parametrize("name", sorted(set(RULE_RECORDS) - set(MARKED) - ASKS_FOR_MORE))
def test_an_unmarked_rule_is_asked_in_full(name, monkeypatch):
    assert widths(monkeypatch, spec_of(name)) == {D}


def test_a_marked_rule_is_asked_in_few_coordinates_unless_values_are_huge(monkeypatch):
    assert widths(monkeypatch, spec_of("krum")) == {N - F + 3}
    honest = 1e8 * rows_of(n=N - F)
    assert reduction.in_span({"name": "krum", "f": F}, honest[:, :5], [])[1].shape == (N - F, 5)
    found = scene.scene_of(honest, spec_of("krum"), None, 0.0, "gradient_search", 0)
    assert scene.in_coordinates(found) is found, "a server refuses values that coordinates hide"


def test_a_users_function_is_asked_in_full():
    seen = set()

    def mine(rows):
        seen.add(rows.shape[1])
        return aggregate(rows, {"name": "krum", "f": F})

    step(rows_of(n=N - F), "drift_search", n=N, f=F, rule=mine)
    assert seen == {D}


RUN = {
    "data": "digits",
    "model": "linear",
    "clients": 9,
    "byzantine": 2,
    "rounds": 4,
    "seed": 1,
    "worker_momentum": 0.9,
    "server": {"lr": 0.5, "evaluate_every": 4},
}
WITH_MEMORY = [
    {"name": "centered_clipping", "tau": 0.1},
    "foolsgold",
    NEEDED["safeguard"] | {"name": "safeguard", "threshold": 1.0, "short_threshold": 1.0},
    {"name": "nnm+krum"},
]


@pytest.mark.parametrize("rule", WITH_MEMORY, ids=lambda r: r if isinstance(r, str) else r["name"])
def test_a_run_in_coordinates_is_the_run_in_full(rule, monkeypatch):
    """With the rule's true memory in coordinates too; what was foreseen comes."""
    e = from_dict(RUN | {"rule": rule, "attack": "drift_search"})
    rows = [row for row in run_one(e) if "search" in row]
    monkeypatch.setattr(scene, "reducible", lambda rule: None)
    full = [row for row in run_one(e) if "search" in row]
    assert len(rows) == len(full) == 4
    for row, other in zip(rows, full, strict=True):
        assert row["search"]["calls"] == other["search"]["calls"] + 1
        assert row["search"]["size"] == pytest.approx(other["search"]["size"])
        assert row["search"]["direction"] == other["search"]["direction"]
        assert row["impact"]["deviation"] == pytest.approx(other["impact"]["deviation"], rel=1e-3)
        assert row["search"]["deviation"] == pytest.approx(row["impact"]["deviation"], rel=1e-3)
