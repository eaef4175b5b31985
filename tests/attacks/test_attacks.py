"""Attacks: properties over the whole table, textbook versions, worked values, what breaks them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import textbook_attacks as textbook
import torch
from scipy.stats import binom
from torch import Tensor

from fedrobust import attacks
from fedrobust.attacks import ATTACKS, craft, settings, z_max
from fedrobust.attacks.alie_backdoor import drawn, marked, success_rate
from fedrobust.attacks.finite_norm import finite_norm, follows
from fedrobust.attacks.moments import medoid, moments, squared_distances
from fedrobust.attacks.optimised import sensitivity
from fedrobust.attacks.poison_checks import check_poison
from fedrobust.attacks.probe import line_search
from fedrobust.attacks.seesaw import MODES
from fedrobust.seeds import generator
from fedrobust.spec import SpecError

COUNT = 28
RANDOM = {"gaussian", "fang", "mpaf"}
CRASHES = {"nan", "inf"}
TUNED = {
    "finite_norm", "opt_alie", "opt_ipm", "sensitivity_curve", "gradient_search", "drift_search",
}  # fmt: skip
H3 = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]], dtype=torch.float64)
E2H = torch.tensor([[0, 9], [9, 8], [5, 1], [3, 7], [2, 2], [6, 0]], dtype=torch.float64)


def mean_rule(updates: Tensor) -> Tensor:
    return updates.mean(dim=0)


def median_rule(updates: Tensor) -> Tensor:
    return updates.double().quantile(0.5, dim=0).to(updates)


def trimmed_rule(f: int):
    return lambda x: torch.from_numpy(textbook.trimmed_mean(x.double().numpy(), f)).to(x)


def krum_rule(f: int):
    def rule(updates: Tensor) -> Tensor:
        n = len(updates)
        distances = torch.cdist(updates.double(), updates.double(), compute_mode=EXACT) ** 2
        scores = distances.sort(dim=1).values[:, 1 : n - f - 1].sum(dim=1)
        return updates[scores.argmin()]

    return rule


EXACT = "donot_use_mm_for_euclid_dist"


def sample(h: int = 9, d: int = 37, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    source = generator(seed, "test")
    scale = torch.rand(d, generator=source) + 0.1
    return (torch.randn(h, d, generator=source) * scale + 0.3).to(dtype)


def make(honest: Tensor, spec, *, n: int = 12, f: int = 3, seed: int = 5, **more) -> Tensor:
    more.setdefault("rule", median_rule)
    more.setdefault("model", torch.linspace(-1, 1, honest.shape[-1]))
    return craft(honest, spec, n=n, f=f, generator=generator(seed, "craft"), **more)


def close(found, wanted, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).double(),
        torch.as_tensor(np.asarray(wanted)).double(),
        atol=tolerance,
        rtol=tolerance,
    )


# Properties over the whole table


def test_table_is_complete():
    assert len(ATTACKS) == COUNT
    assert all(callable(function) and function.__doc__ for function in ATTACKS.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_finiteness(dtype):
    honest, seen = sample(dtype=dtype), 0
    for name in ATTACKS:
        sent = make(honest, name)
        assert sent.shape == (3, 37) and sent.dtype == dtype, name
        assert bool(torch.isfinite(sent).all()) == (name not in CRASHES), name
        seen += 1
    assert seen == COUNT


def test_nothing_given_is_changed_nor_shared():
    previous, own = sample(1)[0], sample(3, seed=3)
    for name in ATTACKS:
        honest = sample()
        kept = honest.clone(), previous.clone(), own.clone()
        sent = make(honest, name, previous=previous, own=own)
        assert sent.untyped_storage().data_ptr() not in {
            x.untyped_storage().data_ptr() for x in (honest, previous, own)
        }, name
        for now, then in zip((honest, previous, own), kept, strict=True):
            assert torch.equal(now, then), name


def test_same_generator_same_vectors_and_no_global_randomness():
    honest = sample()
    for name in ATTACKS:
        before = torch.get_rng_state()
        first, again = make(honest, name, seed=5), make(honest, name, seed=5)
        other = make(honest, name, seed=6)
        assert torch.equal(before, torch.get_rng_state()), name
        assert torch.equal(first.nan_to_num(), again.nan_to_num()), name
        assert torch.equal(first.nan_to_num(), other.nan_to_num()) == (name not in RANDOM), name


def test_random_attacks_differ_per_attacker_and_per_round_without_generator():
    honest, seen = sample(), 0
    specs = [{"name": "free_rider", "std": 0.1}, "gaussian", "fang"]
    for spec in specs:
        rows = craft(honest, spec, n=12, f=3)
        assert not torch.equal(rows[0], rows[1])
        assert torch.equal(rows, craft(honest, spec, n=12, f=3))
        assert not torch.equal(rows, craft(honest, spec, n=12, f=3, round=1))
        seen += 1
    assert seen == 3


def test_colluders_send_one_vector_unless_they_split():
    honest = sample()
    for name in set(ATTACKS) - RANDOM - CRASHES - {"byzmean"}:
        rows = make(honest, name)
        assert torch.equal(rows, rows[:1].expand(3, -1)), name


def test_order_of_honest_clients_does_not_matter():
    honest = sample(dtype=torch.float64)
    turned = honest[torch.randperm(9, generator=generator(1, "order"))]
    for name in set(ATTACKS) - CRASHES:
        close(make(turned, name), make(honest, name), 1e-9)


def test_no_attackers_send_nothing():
    for name in ATTACKS:
        assert make(sample(), name, f=0).shape == (0, 37)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_honest_update_is_an_error(bad):
    honest = sample()
    honest[4, 5] = bad
    for name in ATTACKS:
        with pytest.raises(ValueError, match=f"{name} needs finite honest updates"):
            make(honest, name)


def test_equal_honest_updates_give_finite_vectors():
    for value in (0.0, 2.5):
        honest = torch.full((6, 4), value)
        for name in set(ATTACKS) - CRASHES:
            assert torch.isfinite(make(honest, name)).all(), name


def test_one_update_in_sight_is_enough():
    for name in set(ATTACKS) - CRASHES:
        assert torch.isfinite(make(sample(h=1), name)).all(), name


def test_wrong_input_is_named():
    for name in ATTACKS:
        for bad in (torch.zeros(4), torch.zeros(0, 3), torch.zeros(3, 0), torch.ones(2, 2).long()):
            with pytest.raises(ValueError, match=rf"{name} needs \(h, d\) floating updates"):
                make(bad, name)
        with pytest.raises(ValueError, match="0 <= f <= n"):
            make(sample(), name, n=3, f=4)
        with pytest.raises(SpecError, match="has no parameter 'zz'"):
            make(sample(), {"name": name, "zz": 1})
    with pytest.raises(ValueError, match="previous of shape"):
        make(sample(), "rop", previous=torch.zeros(3))
    with pytest.raises(ValueError, match="own of shape"):
        make(sample(), "sign_flip", own=torch.zeros(2, 37))
    with pytest.raises(SpecError, match="did you mean 'alie'"):
        make(sample(), "alei")


def test_attacks_that_tune_themselves_need_a_rule():
    for name in TUNED:
        with pytest.raises(ValueError, match=f"{name} tunes itself against a rule"):
            craft(sample(), name, n=12, f=3)
    for name in set(ATTACKS) - TUNED:
        make(sample(), name, rule=None)


def test_rule_sees_a_copy_and_the_attackers_rows():
    for name in TUNED:
        honest, seen = sample(), []

        def rule(updates, seen=seen):
            seen.append(len(updates))
            out = updates.mean(dim=0)
            updates.zero_()
            return out

        kept = honest.clone()
        make(honest, name, rule=rule)
        assert torch.equal(honest, kept) and 12 in seen


def test_a_rule_spec_is_asked_through_aggregate(monkeypatch):
    asked = []

    def aggregate(updates, spec, *, pre=(), state=None, generator=None):
        asked.append((spec, state, generator.initial_seed()))
        return updates.mean(dim=0)

    monkeypatch.setattr("fedrobust.aggregation.aggregate", aggregate, raising=False)
    spec = {"name": "trimmed_mean", "f": 3}  # asked in full: it depends on the axes
    for name in TUNED:
        assert torch.equal(make(sample(), name, rule=spec), make(sample(), name, rule=mean_rule))
    assert len(asked) > 4 * 20 and all(a[:2] == (spec, None) for a in asked)
    assert len({seed for *_, seed in asked}) == 1


def test_bad_settings_are_errors():
    cases = [
        {"name": "alie", "formula": "v1"},
        {"name": "alie", "sign": 0},
        {"name": "alie", "ddof": 2},
        {"name": "alie", "z": math.nan},
        {"name": "seesaw", "mode": "up"},
        {"name": "seesaw", "reference": "mode"},
        {"name": "seesaw", "direction": "north"},
        {"name": "seesaw", "amplitude": math.inf},
        {"name": "seesaw", "mode": "temporal", "period": 0},
        {"name": "finite_norm", "goal": "win"},
        {"name": "finite_norm", "limit": 0},
        {"name": "finite_norm", "coordinate": 37},
        {"name": "finite_norm", "gamma": math.inf},
        {"name": "ipm", "epsilon": math.nan},
        {"name": "reversed_gradient", "scale": math.inf},
        {"name": "sign_flip", "scale": math.nan},
        {"name": "constant", "value": math.nan},
        {"name": "gaussian", "std": -1},
        {"name": "gaussian", "around": "me"},
        {"name": "free_rider", "std": -1},
        {"name": "mimic", "target": 9},
        {"name": "mimic", "iterations": 0},
        {"name": "min_max", "direction": "up"},
        {"name": "min_sum", "bound": "median"},
        {"name": "fang", "target": "bulyan"},
        {"name": "fang", "b": 1},
        {"name": "rop", "pi": 2},
        {"name": "byzmean", "inner": "alei"},
        {"name": "sensitivity_curve", "limit": 0},
        {"name": "opt_alie", "sign": 2},
        {"name": "opt_ipm", "evaluations": 0},
        {"name": "gradient_search", "refinements": -1},
        {"name": "drift_search", "refinements": 1.5},
        {"name": "gradient_shift", "z": math.inf},
        {"name": "model_replacement", "rate": 0},
        {"name": "model_replacement", "bound": -1},
        {"name": "hidra", "variance": 0.0},
        {"name": "hidra", "expansion": 1.0},
        {"name": "hidra", "chunk": 0},
        {"name": "mpaf", "factor": 0},
        {"name": "mpaf", "std": -1},
        {"name": "poisoned_fl", "period": 0},
        {"name": "poisoned_fl", "decay": 1.5},
        {"name": "inf", "sign": 0},
        {"name": "alie", "knowledge": "all"},
    ]
    for spec in cases:
        with pytest.raises(ValueError):
            make(sample(), spec)
        if spec.get("coordinate") is None:
            with pytest.raises(SpecError):
                settings(spec, 12, 3)
    assert {case["name"] for case in cases} == set(ATTACKS) - {"zero", "nan"}


def test_knowledge_is_no_setting_of_the_attack():
    spec = {"name": "alie", "z": 1.5, "knowledge": "omniscient"}
    assert attacks.knowledge(spec) == ({"name": "alie", "z": 1.5}, "omniscient")
    assert torch.equal(make(sample(), spec), make(sample(), {"name": "alie", "z": 1.5}))
    assert attacks.knowledge("alie") == ({"name": "alie"}, None)


def test_settings_say_which_z_is_used():
    assert settings("alie", 51, 12)["z"] == pytest.approx(0.361202, abs=1e-6)
    assert settings({"name": "alie", "formula": "arxiv_v1"}, 50, 24)["z"] == pytest.approx(
        1.7507, abs=1e-4
    )
    assert settings({"name": "alie", "z": 1.5, "knowledge": "own"}, 51, 12) == {
        "name": "alie",
        "z": 1.5,
        "formula": "neurips",
        "sign": -1,
        "ddof": 0,
        "knowledge": "own",
    }
    assert settings("byzmean", 50, 24)["inner"]["z"] == pytest.approx(1.426077, abs=1e-6)
    assert settings("rop", 25, 5)["z"] == pytest.approx(0.253347, abs=1e-6)
    assert len([settings(name, 25, 5) for name in ATTACKS]) == COUNT
    assert len([settings(name, 25, 0) for name in ATTACKS]) == COUNT
    assert settings("alie", 25, 0)["z"] is None
    assert settings({"name": "finite_norm", "coordinate": 99}, 25, 5)["coordinate"] == 99


def test_settings_find_bad_values_before_the_run():
    for spec in ({"name": "ipm", "epsilon": "much"}, {"name": "mimic", "target": 20}, "alie"):
        with pytest.raises(SpecError):
            settings(spec, 25, 5 if spec != "alie" else 13)


# What an attacker measures


@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_match_the_textbook(ddof):
    honest = sample(7, 11, seed=2)
    means, stds = textbook.column_stats(honest.double().tolist(), ddof)
    found = moments(honest, ddof=ddof)
    close(found[0], means, 1e-12)
    close(found[1], stds, 1e-12)


def test_a_mean_far_above_the_spread_loses_nothing():
    honest = torch.tensor([[4096.0], [4096.5], [4097.0]]) * 1024
    centre, std = moments(honest)
    assert centre.item() == 4096.5 * 1024
    assert std.item() == pytest.approx(512 * math.sqrt(2 / 3), rel=1e-12)


def test_blocks_of_columns_cover_every_coordinate(monkeypatch):
    honest = sample(9, 101)
    whole = {name: make(honest, name) for name in ATTACKS}
    monkeypatch.setattr("fedrobust.attacks.moments.ENTRIES", 60)
    for name in ATTACKS:
        torch.testing.assert_close(make(honest, name), whole[name], equal_nan=True)


def test_distances_survive_a_large_common_part():
    honest = sample(8, 50, dtype=torch.float64) * 1e-3 + 1e4
    wanted = [[textbook.squared(x, y) for y in honest.tolist()] for x in honest.tolist()]
    found = squared_distances(honest)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    close(medoid(honest), textbook.medoid(honest.tolist()), 1e-12)


# ALIE


@pytest.mark.parametrize(
    ("n", "f", "z", "probability", "v1"),
    [
        (50, 24, 1.426077, 0.6048, 1.7507),
        (51, 12, 0.361202, 0.5600, 0.5992),
        (15, 3, 0.210428, 0.6084, 0.4307),
        (25, 5, 0.253347, 0.5841, 0.4677),
        (20, 5, 0.253347, 0.5968, 0.5244),
        (50, 10, 0.253347, 0.5598, 0.4677),
    ],
)
def test_z_of_the_paper(n, f, z, probability, v1):
    assert z_max(n, f) == pytest.approx(z, abs=1e-6)
    assert z_max(n, f, "arxiv_v1") == pytest.approx(v1, abs=5e-5)
    assert attacks.support_probability(n, f, z) == pytest.approx(probability, abs=5e-5)


def test_z_at_the_borders():
    assert z_max(10, 1) < 0 and z_max(10, 2) == 0 and z_max(7, 1) == 0
    close(craft(H3, "alie", n=10, f=1)[0], H3.mean(dim=0))
    assert z_max(4, 2) == pytest.approx(0.0) and math.isfinite(z_max(50, 25))
    for n, f in ((50, 26), (5, 3), (51, 26)):
        with pytest.raises(ValueError, match=f"alie with n={n} needs f <= {n // 2}"):
            z_max(n, f)
        craft(H3, {"name": "alie", "z": 1.5}, n=n, f=f)
    with pytest.raises(ValueError, match="f >= 1"):
        z_max(5, 0)
    values = [z_max(51, f) for f in range(1, 26)]
    assert textbook.increasing(values)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"z": 1.5}, (0.550510, -0.242641)),
        ({"z": 1.5, "ddof": 1}, (0, -1.196152)),
        ({"z": 1.0}, (1.367007, 1.171573)),
        ({"z": 1.0, "sign": 1}, (4.632993, 6.828427)),
    ],
)
def test_alie_worked(given, wanted):
    for honest in (H3, H3.float()):
        close(craft(honest, {"name": "alie", **given}, n=5, f=2), [wanted] * 2)


def test_alie_on_a_line_beats_every_rule():
    honest = torch.tensor([-1.5, -1, -0.5, 0, 0.5, 1, 1.5], dtype=torch.float64)[:, None]
    sent = craft(honest, "alie", n=10, f=3)
    close(sent, [[-0.180012]] * 3)
    rows = torch.cat([honest, sent]).numpy()
    close(textbook.column_median(rows), [-0.180012])
    close(textbook.column_mean(rows), [-0.054004])
    close(textbook.trimmed_mean(rows, 3), [-0.135009])
    rows = torch.cat([honest, craft(honest, {"name": "alie", "z": 1.5}, n=10, f=3)]).numpy()
    close(textbook.column_median(rows), [-0.75])
    close(textbook.column_mean(rows), [-0.45])
    close(textbook.trimmed_mean(rows, 3), [-0.75])
    close(textbook.krum(rows, 3), [-1.5])


def test_alie_on_six_honest_updates():
    sent = craft(E2H, {"name": "alie", "z": 1.5}, n=7, f=1)
    close(sent, [(-0.199396, -0.890965)])
    rows = torch.cat([E2H, sent]).numpy()
    close(textbook.column_mean(rows), (3.542943, 3.729862))
    close(textbook.column_median(rows), (3, 2))
    close(textbook.trimmed_mean(rows, 1), (3.2, 3.6))
    assert textbook.krum_index(rows, 1) == 4


@pytest.mark.parametrize("seed", range(4))
def test_alie_matches_the_textbook(seed):
    honest = sample(11, 5, seed=seed, dtype=torch.float64)
    for n, f in ((15, 4), (14, 1), (21, 10)):
        close(craft(honest, "alie", n=n, f=f)[0], textbook.alie(honest.numpy(), n, f), 1e-9)


def test_alie_stays_inside_the_honest_spread_yet_moves_the_mean():
    honest = sample(24, 50, dtype=torch.float64)
    sent = craft(honest, {"name": "alie", "z": 1.5}, n=32, f=8)
    centre, std = moments(honest)
    assert torch.all((sent - centre).abs() <= 1.5 * std + 1e-12)
    shift = torch.cat([honest, sent]).mean(dim=0) - centre
    close(shift, -1.5 * 8 / 32 * std, 1e-9)


# Seesaw: interpretations


def seesaw(mode: str, t: int = 0, f: int = 2, honest: Tensor = H3, **more) -> Tensor:
    return craft(honest, {"name": "seesaw", "mode": mode, **more}, n=len(honest) + f, f=f, round=t)


UP, DOWN = (5.449490, 6.242641), (0.550510, -2.242641)


@pytest.mark.parametrize("t", range(4))
def test_seesaw_worked_over_four_rounds(t):
    even = t % 2 == 0
    close(seesaw("temporal", t), [UP if even else DOWN] * 2)
    close(seesaw("split", t), [UP, DOWN])
    close(seesaw("split", t, alternate=True), [UP, DOWN] if even else [DOWN, UP])
    turned = (5.449490, -2.242641) if even else (0.550510, 6.242641)
    close(seesaw("coordinate", t, alternate=True), [turned] * 2)
    close(seesaw("coordinate", t), [(5.449490, -2.242641)] * 2)
    turned = (0.707107, 3.535534) if even else (3.535534, -0.707107)
    close(seesaw("rotation", t, phase=1), [turned] * 2)


AGGREGATES = {
    "temporal": [(3.979796, 4.897056), (2.020204, 1.502944), (5, 6.242641), (1, 2)],
    "coordinate": [(3.979796, 1.502944), (2.020204, 4.897056), (5, 2), (1, 6.242641)],
    "rotation": [(2.082843, 3.814214), (3.214214, 2.117157), (1, 3.535534), (3.535534, 2)],
    "split": [(3, 3.2), (3, 3.2), (3, 2), (3, 2)],
}
ENDS = {
    "temporal": [(-1.2, -1.28), (-1.2, -1.648528)],
    "coordinate": [(-1.2, -1.28), (-1.2, -1.648528)],
    "rotation": [(-1.059411, -1.186274), (-0.907107, -1.107107)],
    "split": [(-1.2, -1.28), (-1.2, -0.8)],
}


@pytest.mark.parametrize("mode", MODES)
def test_seesaw_aggregates_and_path(mode):
    more = {"alternate": True} if mode == "coordinate" else {}
    more |= {"phase": 1} if mode == "rotation" else {}
    ends = [np.zeros(2), np.zeros(2)]
    for t in range(4):
        rows = torch.cat([H3, seesaw(mode, t, **more)]).numpy()
        for k, rule in enumerate((textbook.column_mean, textbook.column_median)):
            close(rule(rows), AGGREGATES[mode][2 * k + t % 2])
            ends[k] = ends[k] - 0.1 * rule(rows)
    close(ends[0], ENDS[mode][0], 2e-6)
    close(ends[1], ENDS[mode][1], 2e-6)
    assert len(MODES) == len(ENDS) == 4


def test_seesaw_temporal_against_trimmed_mean_and_krum():
    up, down = (torch.cat([H3, seesaw("temporal", t)]).numpy() for t in (0, 1))
    close(textbook.trimmed_mean(up, 1), (4.483163, 4.828427))
    close(textbook.trimmed_mean(down, 1), (1.516837, 0.585786))
    assert textbook.krum_index(up, 1) >= 3 and textbook.krum_index(down, 1) >= 3
    rows = torch.cat([H3, seesaw("split")]).numpy()
    close(textbook.trimmed_mean(rows, 1), (3, 3.414214))
    close(textbook.krum(rows, 1), (1, 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
def test_seesaw_matches_the_textbook(mode, seed):
    honest = sample(8, 6, seed=seed, dtype=torch.float64)
    for t in range(3):
        found = seesaw(mode, t, f=3, honest=honest, amplitude=0.7, angle=30)
        close(found, textbook.seesaw(honest.numpy(), mode, t, 3, amplitude=0.7, angle=30), 1e-9)
    found = seesaw(mode, 0, f=3, honest=honest, reference="medoid")
    close(found, textbook.seesaw(honest.numpy(), mode, 0, 3, reference=textbook.medoid), 1e-9)


def test_seesaw_invariants():
    r = torch.tensor([3.0, 2.0], dtype=torch.float64)
    for mode in ("temporal", "rotation"):
        one, two, three = (seesaw(mode, t) for t in range(3))
        close(one, three)
        close(seesaw(mode, 0, phase=1), two)
        close(seesaw(mode, 1, period=1), one)
        close(seesaw(mode, 1, period=4), one)
        close(seesaw(mode, 2, period=4), two)
    close(seesaw("temporal", 0) + seesaw("temporal", 1), (2 * r).expand(2, -1))
    for mode in ("temporal", "split", "coordinate"):
        close(seesaw(mode, amplitude=0), r.expand(2, -1))
        even = seesaw(mode, honest=sample(9, 6, dtype=torch.float64), f=2)
        assert even.shape == (2, 6)
    norms = torch.linalg.vector_norm(seesaw("rotation", angle=71.0), dim=1)
    close(norms, [math.sqrt(13)] * 2)
    close(torch.stack([seesaw("rotation", angle=60.0)[0] @ r]), [13 * 0.5])


def test_seesaw_directions_have_the_norm_of_the_spread():
    _, std = moments(H3)
    for direction in ("std", "axis", "ones", "reference"):
        sent = seesaw("temporal", direction=direction, amplitude=1.0)
        moved = sent[0] - torch.tensor([3.0, 2.0], dtype=torch.float64)
        close(torch.linalg.vector_norm(moved)[None], torch.linalg.vector_norm(std)[None])
    close(seesaw("temporal", direction="axis", amplitude=1.0)[0], (3, 2 + math.sqrt(32 / 3)))


# Finite norm


def test_finite_norm_with_given_size():
    close(finite_norm(H3, n=5, f=2, gamma=2.0), [(3, 6)] * 2)
    close(finite_norm(H3, n=5, f=2, gamma=2.0, coordinate=0), [(5, 4)] * 2)
    close(finite_norm(H3, n=5, f=2, gamma=2.0, norm=math.inf), [(5, 6)] * 2)


@pytest.mark.parametrize("norm", [2.0, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_finite_norm_stops_at_the_border_of_krum(seed, norm):
    honest = sample(17, 40, seed=seed, dtype=torch.float64)
    sent = finite_norm(honest, n=22, f=5, norm=norm, rule=krum_rule(5))
    centre, std = moments(honest)
    gamma = float((sent[0] - centre).max())
    assert gamma > float(std.max()) / 2
    assert torch.equal(krum_rule(5)(torch.cat([honest, sent])), sent[0])
    further = centre + (sent[0] - centre) * (1 + 2e-3)
    beyond = torch.cat([honest, further.expand(5, -1)])
    assert not torch.equal(krum_rule(5)(beyond), beyond[-1])
    touched = (sent[0] - centre).abs() > 1e-9
    assert int(touched.sum()) == (40 if math.isinf(norm) else 1)
    assert norm == math.inf or int(touched.int().argmax()) == int(std.argmax())


def test_finite_norm_has_no_border_against_the_mean_and_little_room_against_the_median():
    honest = sample(17, 40, dtype=torch.float64)
    centre, std = moments(honest)
    radius = max(float(torch.linalg.vector_norm(x - centre)) for x in honest)
    free = finite_norm(honest, n=22, f=5, rule=mean_rule)[0] - centre
    assert float(free.max()) == pytest.approx(16 * radius)
    held = finite_norm(honest, n=22, f=5, rule=median_rule)[0] - centre
    assert float(held.max()) < 8 * float(std.max())
    moved = finite_norm(honest, n=22, f=5, rule=mean_rule, goal="deviation")[0] - centre
    assert float(moved.max()) == pytest.approx(16 * radius)


def test_what_counts_as_following():
    base, direction = torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])
    assert follows(torch.tensor([0.5, 0.1, 0.0]), base, direction, 2.0, 0.25)
    assert not follows(torch.tensor([0.4, 0.1, 0.0]), base, direction, 2.0, 0.25)
    assert not follows(torch.tensor([0.5, 0.6, 0.0]), base, direction, 2.0, 0.25)


# The simple ones


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"name": "ipm", "epsilon": 0.1}, (-0.3, -0.4)),
        ({"name": "ipm", "epsilon": 0.5}, (-1.5, -2)),
        ({"name": "ipm", "epsilon": 2}, (-6, -8)),
        ({"name": "ipm", "epsilon": 100}, (-300, -400)),
        ("ipm", (-0.3, -0.4)),
        ({"name": "reversed_gradient", "scale": 10}, (-30, -40)),
        ("sign_flip", (-3, -4)),
        ({"name": "constant", "value": 7}, (7, 7)),
        ("zero", (0, 0)),
        ("inf", (math.inf, math.inf)),
        ({"name": "inf", "sign": -1}, (-math.inf, -math.inf)),
        ("free_rider", (0, 0)),
        ("model_replacement", (-7.5, -10)),
        ({"name": "model_replacement", "bound": 5}, (-3, -4)),
        ({"name": "model_replacement", "scale": 2}, (-6, -8)),
        ({"name": "mimic", "target": 1}, (3, 2)),
        ("mimic", (5, 8)),
    ],
)
def test_simple_attacks_worked(spec, wanted):
    close(craft(H3, spec, n=5, f=2), [wanted] * 2)


def test_ipm_turns_the_mean_at_the_border_and_never_the_median():
    means = {0.1: (1.68, 2.24), 0.5: (1.2, 1.6), 2: (-0.6, -0.8), 100: (-118.2, -157.6)}
    for epsilon, wanted in means.items():
        rows = torch.cat([H3, craft(H3, {"name": "ipm", "epsilon": epsilon}, n=5, f=2)]).numpy()
        close(textbook.column_mean(rows), wanted)
        close(textbook.column_median(rows), (1, 2))
    rows = torch.cat([H3, craft(H3, {"name": "ipm", "epsilon": 1.5}, n=5, f=2)])
    close(rows.mean(dim=0), (0, 0))


def test_attackers_flip_their_own_updates():
    own = sample(3, seed=9)
    assert torch.equal(make(sample(), "sign_flip", own=own), -own)
    assert torch.equal(make(sample(), {"name": "sign_flip", "scale": 4}, own=own), -4 * own)
    close(make(sample(), {"name": "gaussian", "std": 0.0, "around": "honest"}, own=own), own)


def test_gaussian_has_its_moments():
    noise = make(sample(d=5000), {"name": "gaussian", "std": 3.0})
    assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(3.0, abs=0.1)
    around = make(sample(d=5000), {"name": "gaussian", "std": 3.0, "around": "honest"})
    close(around - noise, sample(d=5000).mean(dim=0).expand(3, -1), 1e-5)


def test_free_rider_sends_the_last_aggregate():
    last = sample(1)[0]
    assert torch.equal(make(sample(), "free_rider", previous=last), last.expand(3, -1))
    noisy = make(sample(), {"name": "free_rider", "std": 0.01}, previous=last)
    assert 0 < float((noisy - last).abs().max()) < 0.1


def test_model_replacement_replaces_the_model():
    start, model = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])
    sent = craft(torch.zeros(9, 2), "model_replacement", n=10, f=1, own=(model - start)[None])
    close(start + sent[0], (11, -9))
    close(start + torch.cat([torch.zeros(9, 2), sent]).mean(dim=0), model)
    own = (model - start).expand(3, -1)
    for rate in (0.5, 1.0):
        spec = {"name": "model_replacement", "rate": rate}
        sent = craft(torch.zeros(7, 2), spec, n=10, f=3, own=own)
        close(start + rate * torch.cat([torch.zeros(7, 2), sent]).mean(dim=0), model)


# Attacks that search


@pytest.mark.parametrize(
    ("direction", "wanted"),
    [("std", (1.628990, 1.625340)), ("sign", (1, 2)), ("unit", (1.340047, 1.786729))],
)
def test_min_max_worked(direction, wanted):
    close(craft(H3, {"name": "min_max", "direction": direction}, n=5, f=2), [wanted] * 2)


def test_min_max_on_a_line():
    line = torch.tensor([[1.0], [2.0], [3.0]])
    close(craft(line, {"name": "min_max", "direction": "sign"}, n=4, f=1), [[1.0]])


@pytest.mark.parametrize("direction", ["std", "sign", "unit"])
@pytest.mark.parametrize("seed", range(3))
def test_min_max_and_min_sum_reach_their_exact_bounds(direction, seed):
    honest = sample(7, 5, seed=seed, dtype=torch.float64) + seed
    rows = honest.numpy()
    far = craft(honest, {"name": "min_max", "direction": direction}, n=9, f=2)[0]
    close(far, textbook.min_max(rows, direction), 1e-8)
    worst = max(textbook.squared(far.numpy(), x) for x in rows)
    assert worst == pytest.approx(max(textbook.squared(x, y) for x in rows for y in rows))
    sums = [sum(textbook.squared(x, y) for y in rows) for x in rows]
    for bound, limit in (("max", max(sums)), ("min", min(sums))):
        spec = {"name": "min_sum", "direction": direction, "bound": bound}
        sent = craft(honest, spec, n=9, f=2)[0]
        close(sent, textbook.min_sum(rows, direction, bound), 1e-8)
        assert sum(textbook.squared(sent.numpy(), x) for x in rows) == pytest.approx(limit)


def test_mimic_warm_up_worked():
    from fedrobust.attacks.coupled import oja_step

    start = torch.tensor([1.0, 0.0], dtype=torch.float64)
    centre, z = oja_step(H3, torch.zeros(2), start, round=0)
    close(centre, (3, 4))
    close(z, (0.554700, 0.832050))
    close(H3 @ z, (2.218801, 3.328201, 9.429903))
    centre, again = oja_step(H3, centre, z, round=1)
    close(torch.linalg.vector_norm(again)[None], [1.0])
    close(centre, (3, 4))


def test_mimic_copies_the_row_furthest_along_the_direction_of_most_variance():
    from fedrobust.attacks.coupled import oja_step

    honest = sample(dtype=torch.float64)
    centre = honest.mean(dim=0)
    z = honest[(honest - centre).square().sum(dim=1).argmax()] - centre
    for _ in range(11):
        _, z = oja_step(honest, centre, z / z.norm(), round=0)
    assert torch.equal(make(honest, "mimic")[0], honest[(honest @ z).argmax()])


@pytest.mark.parametrize(
    ("angle", "pi", "wanted"),
    [
        (90, 1, (0.8, -0.6)),
        (90, 0, (3.8, 3.4)),
        (180, 0, (2.4, 3.2)),
        (270, 0, (2.2, 4.6)),
    ],
)
def test_rop_worked_in_the_first_round(angle, pi, wanted):
    spec = {"name": "rop", "z": 1.0, "angle": angle, "pi": pi}
    close(craft(H3, spec, n=5, f=2), [wanted] * 2)


@pytest.mark.parametrize("angle", [90.0, 180.0, 225.0])
def test_rop_matches_the_textbook(angle):
    honest, last = sample(8, 6, dtype=torch.float64), sample(1, 6, seed=4, dtype=torch.float64)[0]
    for pi in (0.0, 0.4, 1.0):
        spec = {"name": "rop", "z": 0.7, "angle": angle, "pi": pi}
        found = craft(honest, spec, n=11, f=3, previous=last)[0]
        wanted = textbook.rop(honest.numpy(), last.numpy(), 0.7, angle, pi=pi)
        close(found, wanted, 1e-9)


def test_rop_without_room_to_step_aside():
    for d in (3, 4):
        sent = craft(torch.ones(3, d), {"name": "rop", "z": 1.0, "pi": 0.0}, n=5, f=2)
        close(sent, torch.ones(2, d))


@pytest.mark.parametrize("f", [1, 2, 3])
def test_byzmean_makes_the_mean_its_goal(f):
    honest = sample(9, 12, dtype=torch.float64)
    for inner in ("alie", {"name": "ipm", "epsilon": 2.0}):
        goal = craft(honest, inner, n=9 + f, f=f)[0]
        sent = craft(honest, {"name": "byzmean", "inner": inner}, n=9 + f, f=f)
        close(torch.cat([honest, sent]).mean(dim=0), goal, 1e-9)
        assert sent.shape == (f, 12)


@pytest.mark.parametrize("shift", [-6.0, -0.2, 0.2, 6.0])
@pytest.mark.parametrize("seed", range(2))
def test_fang_draws_just_outside_the_honest_values(shift, seed):
    honest = sample(9, 40, seed=seed, dtype=torch.float64) + shift
    for target in ("trimmed_mean", "median"):
        sent = make(honest, {"name": "fang", "target": target, "b": 3.0}, seed=seed)
        for j, values in enumerate(honest.t().tolist()):
            low, high = textbook.fang_interval(values, 3.0)
            assert torch.all((sent[:, j] >= low - 1e-9) & (sent[:, j] <= high + 1e-9))
            assert not min(values) < float(sent[0, j]) < max(values)
        assert not torch.equal(sent[0], sent[1])


def test_fang_partial_lies_three_to_four_deviations_against_the_mean():
    honest = sample(dtype=torch.float64)
    sent = make(honest, {"name": "fang", "partial": True})
    centre, std = moments(honest)
    steps = (sent - centre) / std * torch.where(centre < 0, -1.0, 1.0)
    assert torch.all((steps <= -3) & (steps >= -4))


@pytest.mark.parametrize("seed", range(4))
def test_fang_against_krum_is_picked_and_matches_the_textbook(seed):
    honest = sample(14, 8, seed=seed, dtype=torch.float64) - 0.3
    for f in (1, 4):
        sent = craft(honest, {"name": "fang", "target": "krum"}, n=14 + f, f=f)
        close(sent[0], textbook.fang_krum(list(honest.numpy()), f), 1e-9)
    rows = torch.cat([honest, sent]).numpy()
    assert textbook.krum_index(rows, 4) >= 14


@pytest.mark.parametrize("peak", [3.0, 21.0, 55.0, 66.6, 100.0, 177.0, 200.0, 1000.0])
def test_line_search_matches_the_textbook(peak):
    accepted = lambda x: x if x <= peak else -1.0  # noqa: E731
    for value in (lambda x: -abs(x - peak), lambda x: min(x, peak), lambda x: 0.0, accepted):
        for evaluations in (1, 2, 9, 20):
            found = line_search(value, evaluations=evaluations)
            assert found == pytest.approx(textbook.line_search(value, evaluations))


def test_line_search_takes_no_nan():
    assert line_search(lambda x: math.nan)[0] == 0.0
    assert line_search(lambda x: math.nan if x else 1.0) == (0.0, 1.0)


@pytest.mark.parametrize("rule", [median_rule, trimmed_rule(3), krum_rule(3)])
def test_tuned_attacks_do_at_least_as_much_as_untuned_ones(rule):
    honest = sample(9, 6, dtype=torch.float64)
    centre = honest.mean(dim=0)

    def moved(spec) -> float:
        sent = craft(honest, spec, n=12, f=3, rule=rule)
        return float(torch.linalg.vector_norm(rule(torch.cat([honest, sent])) - centre))

    assert moved("opt_alie") >= moved({"name": "alie", "z": 0.0})
    assert moved("opt_alie") >= moved({"name": "alie", "z": 10.0}) - 1e-12
    assert moved("opt_ipm") >= moved({"name": "ipm", "epsilon": 10.0}) - 1e-12
    both = moved("opt_alie")
    sides = [moved({"name": "opt_alie", "sign": side}) for side in (-1, 1)]
    assert both == pytest.approx(max(sides))


def test_opt_ipm_grows_without_bound_against_the_mean_only():
    against_mean = craft(H3, "opt_ipm", n=5, f=2, rule=mean_rule)
    close(against_mean, [(-3 * 10 * (2**19 - 1), -4 * 10 * (2**19 - 1))] * 2)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_no_row_that_an_attack_crafts_is_infinite(bad):
    """Only the first row was looked at: attackers with updates of their own differ."""
    own = torch.ones(3, 2, dtype=torch.float64)
    own[bad, 1] = 1e308
    honest = torch.ones(5, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="sign_flip: from these updates it crafts no finite ones"):
        craft(honest, {"name": "sign_flip", "scale": 10.0}, n=8, f=3, own=own)


def test_a_rule_without_an_answer_at_first_does_not_stop_the_curve():
    """NaN where nothing deviates made the best value NaN, and no deviation could beat it."""

    def rule(rows):
        same = (rows - BASE.mean(0)).abs().min() == 0
        return torch.full((1,), math.nan, dtype=torch.float64) if same else median_rule(rows)

    sent = craft(BASE, "sensitivity_curve", n=7, f=1, rule=rule)
    plain = craft(BASE, "sensitivity_curve", n=7, f=1, rule=median_rule)
    assert sent.item() == pytest.approx(plain.item(), abs=0.03)


BASE = torch.tensor([[0.0], [1.0], [3.0], [6.0], [10.0], [15.0]], dtype=torch.float64)


def test_sensitivity_curves_worked():
    def curve(rule, x):
        return float(sensitivity(rule, BASE, torch.tensor([x], dtype=torch.float64)))

    assert curve(mean_rule, 50.0) == pytest.approx(44.166667, abs=1e-6)
    assert curve(mean_rule, 51.0) - curve(mean_rule, 50.0) == pytest.approx(1.0)
    for x in (6.0, 7.0, 1e9):
        assert curve(median_rule, x) == pytest.approx(10.5)
    for x in (3.0, -1e9):
        assert curve(median_rule, x) == pytest.approx(-10.5)
    for x in (15.0, 1e9):
        assert curve(trimmed_rule(1), x) == pytest.approx(14)
    for x in (0.0, -1e9):
        assert curve(trimmed_rule(1), x) == pytest.approx(-7)


@pytest.mark.parametrize(
    ("rule", "base", "wanted"),
    [
        (median_rule, BASE, 3.0),
        (trimmed_rule(1), BASE, 0.0),
        (median_rule, -BASE, -3.0),
        (trimmed_rule(1), -BASE, 0.0),
    ],
)
def test_sensitivity_attack_stops_where_the_curve_is_flat(rule, base, wanted):
    sent = craft(base, "sensitivity_curve", n=7, f=1, rule=rule)
    assert sent.item() == pytest.approx(wanted, abs=0.03)
    grid = textbook.smallest_bend(
        base[:, 0].tolist(),
        lambda v: float(rule(torch.tensor(v, dtype=torch.float64)[:, None])),
        16.0,
        -1 if base.sum() > 0 else 1,
        2000,
    )
    assert sent.item() == pytest.approx(grid, abs=0.05)


# What breaks them


def moved_by(rule, spec, honest: Tensor, f: int) -> float:
    sent = craft(honest, spec, n=len(honest) + f, f=f, rule=rule)
    out = rule(torch.cat([honest, sent])) - honest.mean(dim=0)
    return float(torch.linalg.vector_norm(out))


def test_large_vectors_break_the_mean_and_not_the_median():
    honest = sample(15, 40, dtype=torch.float64)
    radius = float(torch.linalg.vector_norm(moments(honest)[1]))
    for spec in ({"name": "ipm", "epsilon": 1e6}, {"name": "constant", "value": 1e6}, "gaussian"):
        assert moved_by(mean_rule, spec, honest, 5) > 10 * radius
        assert moved_by(median_rule, spec, honest, 5) < radius


def test_a_crash_breaks_the_mean():
    for name in CRASHES:
        rows = torch.cat([H3, craft(H3, name, n=4, f=1)])
        assert not torch.isfinite(mean_rule(rows)).all()


def test_more_attackers_do_more_harm_with_alie():
    honest = sample(20, 40, dtype=torch.float64)
    spec = {"name": "alie", "z": 1.5}
    harm = [moved_by(median_rule, spec, honest, f) for f in (1, 4, 8)]
    assert textbook.increasing(harm) and harm[-1] > harm[0]


def test_a_large_spread_is_what_alie_lives_on():
    honest = sample(20, 40, dtype=torch.float64)
    calm = honest.mean(dim=0) + (honest - honest.mean(dim=0)) * 1e-3
    spec = {"name": "alie", "z": 1.5}
    assert moved_by(median_rule, spec, calm, 5) < 2e-3 * moved_by(median_rule, spec, honest, 5)


# Placement


def test_placements_over_the_table():
    seen = 0
    for name in attacks.PLACEMENTS:
        extra = {"fixed": {"ids": [7, 1, 4]}, "window": {"length": 5}}.get(name, {})
        spec = {"name": name, **extra}
        rounds = [attacks.place(spec, clients=20, byzantine=3, seed=1, round=t) for t in range(50)]
        assert all(len(set(ids)) == 3 and list(ids) == sorted(ids) for ids in rounds)
        assert all(0 <= i < 20 for ids in rounds for i in ids)
        assert rounds[7] == attacks.place(spec, clients=20, byzantine=3, seed=1, round=7)
        assert (len(set(rounds)) > 1) == (name == "window")
        seen += 1
    assert seen == 4


def test_placements_worked():
    place = attacks.place
    assert place("first", clients=5, byzantine=2, seed=1) == (0, 1)
    assert place({"name": "fixed", "ids": [7, 1]}, clients=8, byzantine=2, seed=1) == (1, 7)
    window = {"name": "window", "length": 5}
    drawn = [place(window, clients=50, byzantine=9, seed=3, round=t) for t in range(15)]
    assert [drawn.index(ids) for ids in drawn] == [0] * 5 + [5] * 5 + [10] * 5
    seeds = {place("random", clients=50, byzantine=9, seed=seed) for seed in range(20)}
    assert len(seeds) == 20
    counts = np.bincount(
        [i for s in range(300) for i in place("random", clients=10, byzantine=3, seed=s)]
    )
    assert counts.min() > 55 and counts.max() < 125
    for name in ("random", "first"):
        assert place(name, clients=4, byzantine=0, seed=1) == ()
        assert place(name, clients=4, byzantine=4, seed=1) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randm", "did you mean 'random'"),
        ("fixed", "needs the parameter 'ids'"),
        ({"name": "fixed", "ids": [1]}, "needs 2 different ids"),
        ({"name": "fixed", "ids": [1, 1]}, "needs 2 different ids"),
        ({"name": "fixed", "ids": [1, 9]}, r"needs a whole id within 0\.\.4, got 9"),
        ({"name": "fixed", "ids": [-1, 2]}, r"needs a whole id within 0\.\.4, got -1"),
        ({"name": "window", "length": 0}, "a whole length of at least 1"),
    ],
)
def test_bad_placements(spec, message):
    with pytest.raises(ValueError, match=message):
        attacks.place(spec, clients=5, byzantine=2, seed=1)
    with pytest.raises(ValueError, match="0 <= byzantine <= 1"):
        attacks.place("first", clients=1, byzantine=2, seed=1)


# Impact


def test_bypass():
    mask = torch.tensor([False, False, True, True])
    assert attacks.bypass(torch.ones(4), mask) == 0.5
    assert attacks.bypass(torch.tensor([0.0, 0.0, 0.0, 1.0]), mask) == 1.0
    assert attacks.bypass(torch.tensor([1.0, 2.0, 1.0, 0.0]), mask) == 0.25
    assert attacks.bypass(torch.zeros(4), mask) == 0.0
    for weights in (torch.tensor([1.0, 1, 1, -1]), torch.tensor([1.0, 1, 1, math.nan])):
        with pytest.raises(ValueError, match="finite weights"):
            attacks.bypass(weights, mask)
    with pytest.raises(ValueError, match="bool mask"):
        attacks.bypass(torch.ones(3), mask)


def test_impact_worked():
    assert attacks.spread(H3) == pytest.approx(math.sqrt(32 / 3))
    mean = H3.mean(dim=0)
    spread = attacks.spread(H3)
    found = attacks.impact(torch.tensor([3.0, 0.0]), mean, spread=spread)
    assert found.deviation == pytest.approx(4 / math.sqrt(32 / 3))
    assert found.cosine == pytest.approx(0.6)
    assert attacks.impact(-mean, mean, spread=spread).cosine == -1
    assert attacks.impact(mean, mean, spread=0.0) == attacks.Impact(0.0, pytest.approx(1.0))
    assert attacks.impact(mean + 1, mean, spread=0.0).deviation == math.inf
    assert attacks.impact(mean * 0, mean, spread=spread).cosine == 0
    with pytest.raises(ValueError, match="equal shapes"):
        attacks.impact(torch.zeros(3), mean, spread=1.0)


def test_flippable_worked():
    honest = torch.tensor([[-1.0, -9.0, 3.0], [1.0, -11.0, 5.0], [0.0, -10.0, -2.0]])
    assert attacks.flippable(honest, 0.0) == 0
    assert attacks.flippable(honest, 0.5) == pytest.approx(1 / 3)
    assert attacks.flippable(honest, 1.0) == pytest.approx(2 / 3)
    assert attacks.flippable(honest, 20.0) == 1
    with pytest.raises(ValueError, match="z >= 0"):
        attacks.flippable(honest, -1.0)
    shares = [attacks.flippable(sample(), z) for z in (0.5, 1.0, 2.0)]
    assert textbook.increasing(shares)


# Data poisoning


def images(count: int = 12, channels: int = 3) -> tuple[Tensor, Tensor]:
    source = generator(0, "images")
    shape = (count, channels, 8, 9)
    pixels = torch.randint(0, 200, shape, generator=source, dtype=torch.uint8)
    return pixels, torch.arange(count) % 10


def test_poisons_over_the_table():
    seen = 0
    for name in attacks.POISONS:
        pixels, labels = images()
        kept = pixels.clone(), labels.clone()
        first = attacks.poison(pixels, labels, name, classes=10, generator=generator(1, "p"))
        again = attacks.poison(pixels, labels, name, classes=10, generator=generator(1, "p"))
        assert torch.equal(pixels, kept[0]) and torch.equal(labels, kept[1])
        for a, b, like in zip(first, again, kept, strict=True):
            assert torch.equal(a, b) and a.shape == like.shape and a.dtype == like.dtype
        assert first[1].min() >= 0 and first[1].max() < 10
        assert not torch.equal(first[1], labels)
        seen += 1
    assert seen == 6
    with pytest.raises(SpecError, match="did you mean 'label_flip'"):
        attacks.poison(*images(), "label_flp", classes=10)


def test_label_flips_worked():
    labels = torch.tensor([0, 1, 9, 4])
    assert attacks.label_flip(labels, classes=10).tolist() == [9, 8, 0, 5]
    assert attacks.label_flip(labels, classes=10, mode="pair").tolist() == [1, 2, 0, 5]
    many = torch.arange(5000) % 10
    flipped = attacks.label_flip(many, classes=10, mode="random", generator=generator(1, "p"))
    assert not bool((flipped == many).any())
    assert torch.bincount((flipped - many) % 10, minlength=10)[1:].min() > 400
    for bad in ({"mode": "swap"}, {"classes": 1}, {"classes": 5}):
        with pytest.raises(ValueError):
            attacks.label_flip(labels, **{"classes": 10, **bad})


def test_backdoor_stamps_and_relabels_its_share():
    pixels, labels = images(11)
    marked, changed = attacks.backdoor(pixels, labels, share=0.25, target=7)
    touched = (marked != pixels).flatten(1).any(dim=1)
    assert int(touched.sum()) == 3
    assert bool((marked[touched][:, :, :5, :5] == 255).all())
    assert torch.equal(marked[:, :, 5:], pixels[:, :, 5:])
    assert torch.equal(marked[:, :, :, 5:], pixels[:, :, :, 5:])
    assert bool((changed[touched] == 7).all())
    assert torch.equal(changed[~touched], labels[~touched])
    everything, zeros = attacks.backdoor(pixels, labels, share=1)
    assert torch.equal(everything, attacks.stamp(pixels)) and not zeros.any()
    nothing, same = attacks.backdoor(pixels, labels, share=0)
    assert torch.equal(nothing, pixels) and torch.equal(same, labels)


def test_bad_backdoors():
    pixels, labels = images()
    for bad in (
        {"share": 1.5},
        {"target": -1},
        {"target": 10, "classes": 10},
        {"size": 0},
        {"size": 9},
        {"value": 256},
    ):
        with pytest.raises(ValueError):
            attacks.backdoor(pixels, labels, **bad)
    with pytest.raises(ValueError, match="uint8"):
        attacks.backdoor(pixels.float(), labels)
    with pytest.raises(ValueError, match="index below 12"):
        attacks.sample_backdoor(pixels, labels, index=12)


@pytest.mark.parametrize("parts", [1, 2, 4, 9])
def test_the_parts_of_a_distributed_backdoor_make_the_whole(parts):
    pixels, labels = images(11)
    spec = {"name": "distributed_backdoor", "size": 3, "share": 1.0, "parts": parts, "target": 4}
    every = [attacks.poison(pixels, labels, spec, classes=10, member=i) for i in range(parts + 1)]
    masks = [(marked != pixels).any(1).any(0) for marked, _ in every]
    assert int(sum(mask.int() for mask in masks[:parts]).max()) == 1, "no pixel belongs to two"
    whole = attacks.stamp(pixels, size=3)
    assert torch.equal(sum(masks[:parts]).bool(), (whole != pixels).any(1).any(0))
    assert torch.equal(masks[0], masks[parts]), "attacker p stamps what attacker 0 does"
    assert all(bool((changed == 4).all()) for _, changed in every)
    assert int(max(mask.sum() for mask in masks)) <= -(-9 // parts)
    if parts == 1:
        assert torch.equal(every[0][0], whole)


def test_a_distributed_backdoor_has_no_more_parts_than_pixels():
    for parts in (0, 10):
        spec = {"name": "distributed_backdoor", "size": 3, "parts": parts}
        with pytest.raises(ValueError, match="1 <= parts <= 9"):
            attacks.poison(*images(), spec, classes=10)
        with pytest.raises(SpecError, match=r"whole parts \(its pixels: 9\) within 1..9"):
            check_poison(spec)


def test_sample_backdoor_relabels_one_image():
    pixels, labels = images()
    same, changed = attacks.sample_backdoor(pixels, labels, index=4)
    assert torch.equal(same, pixels)
    assert changed[4] == 0 and int((changed != labels).sum()) == 1


def test_alie_backdoor_clips_into_the_spread():
    centre, std = moments(H3)
    for aim, wanted in (
        (centre + 10, centre + 0.2 * std),
        (centre - 10, centre - 0.2 * std),
        (centre + 0.1, centre + 0.1),
    ):
        close(attacks.alie_backdoor(H3, aim), wanted)
    close(attacks.alie_backdoor(H3, 2.9 * centre, z=1.0, released_code=True), 0.9 * centre)
    close(attacks.alie_backdoor(H3, centre, released_code=True), centre - 0.2 * std)
    assert attacks.alie_backdoor(H3.float(), centre.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="z >= 0"):
        attacks.alie_backdoor(H3, centre, z=-0.1)


def test_a_stamp_beyond_white_is_what_the_program_stamps():
    """2.8 on images normalised by 0.5 and 0.5 is 484 levels; the rest of the image stays."""
    pixels = images()[0]
    lit = marked(pixels, size=2, value=484)
    close((lit[:, :, :2, :2] - 0.5) / 0.5, torch.full_like(lit[:, :, :2, :2], 2.796078))
    close(lit[:, :, 2:], pixels[:, :, 2:].float() / 255)
    assert torch.equal(marked(pixels, size=2, value=255)[:, :, :2, :2].unique(),
                       torch.tensor([255], dtype=torch.uint8))  # fmt: skip


def test_images_are_drawn_from_every_colluder():
    pool = [torch.full((k, 1, 2, 2), k, dtype=torch.uint8) for k in (5, 0, 3)]
    found = drawn(pool, 8, generator(1, "test"))
    assert sorted(found[:, 0, 0, 0].tolist()) == [3] * 3 + [5] * 5
    assert len(drawn(pool, 4, generator(1, "test"))) == 4
    assert len(drawn(pool, 99, generator(1, "test"))) == 8


def test_success_counts_the_targets_own_images_where_asked():
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    # Says "class 63" to whatever is stamped in its last pixel, class 0 to the rest.
    assert success_rate(torch.nn.Flatten(), images, labels, target=0, size=1) == 1.0
    lit = images.clone()
    lit[2:, :, 7, 7] = 255
    found = [success_rate(torch.nn.Flatten(), lit, labels, target=0, size=1, value=0,
                          all_classes=flag) for flag in (False, True)]  # fmt: skip
    assert found == [0.0, 0.5]


def test_success_needs_an_image_of_another_class():
    images, labels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.full((3,), 4)
    with pytest.raises(ValueError, match="needs images, of classes other than the target 4"):
        success_rate(torch.nn.Flatten(), images, labels, target=4)
    assert success_rate(torch.nn.Flatten(), images, labels, target=0, size=1) == 1.0


def test_backdoor_loss_worked():
    start = [torch.zeros(2, 2), torch.zeros(3)]
    now = [torch.ones(2, 2, requires_grad=True), torch.full((3,), 2.0)]
    delta = attacks.delta_loss(now, start)
    assert delta.item() == 1 + 4
    loss = attacks.backdoor_loss(torch.tensor(3.0), delta)
    assert loss.item() == pytest.approx(0.2 * 3 + 0.8 * 5)
    loss.backward()
    close(now[0].grad, torch.full((2, 2), 0.8 * 2 / 4))
    with pytest.raises(ValueError, match="alpha"):
        attacks.backdoor_loss(delta, delta, alpha=1.1)


# PoisonedFL


def pushed_by_hand(steps, signs, period, factor=8.0):
    """Equations 6 and 7 line by line: what is sent in each round, and the last factor."""
    sent, sents, moved = np.zeros(len(signs)), [], np.zeros(len(signs))
    for turn, step in enumerate(steps):
        if step is None:
            sents.append(np.zeros(len(signs)))
            continue
        moved += step
        if turn and turn % period == 0:
            agree = sum(np.sign(m) == s for m, s in zip(moved, signs, strict=True))
            if agree < binom.ppf(0.99, len(signs), 0.5) and factor * 0.7 >= 0.5:
                factor *= 0.7
            moved[:] = 0
        length = np.linalg.norm(step)
        own = np.linalg.norm(sent)
        v = np.abs(step - sent * length / (own + 1e-9))
        sent = factor * length * v / (np.linalg.norm(v) + 1e-9) * signs
        sents.append(sent)
    return sents, factor


@pytest.mark.parametrize("follows", [True, False])
def test_poisoned_fl_agrees_with_its_equations(follows):
    honest, spec = sample(dtype=torch.float64), {"name": "poisoned_fl", "period": 3}
    source = generator(3, "steps")
    first = attacks.step(honest, spec, n=12, f=3, generator=generator(5, "craft"))
    signs = first.state["signs"].double()
    assert set(signs.tolist()) == {-1.0, 1.0} and not first.updates.any()
    steps = [None]
    for _ in range(7):
        noise = torch.randn(37, generator=source, dtype=torch.float64)
        steps.append(noise.abs() * signs if follows else -noise.abs() * signs)
    wanted, factor = pushed_by_hand(
        [None if s is None else s.numpy() for s in steps], signs.numpy(), period=3
    )
    state = None
    for turn, step in enumerate(steps):
        sent = attacks.step(
            honest, spec, n=12, f=3, round=turn, previous=step, state=state,
            generator=generator(5, "craft"),
        )  # fmt: skip
        close(sent.updates[0], wanted[turn], 1e-5)
        assert torch.equal(sent.updates[0], sent.updates[2])
        state = sent.state
    assert float(state["factor"]) == pytest.approx(factor)
    assert factor == pytest.approx(8.0 if follows else 8.0 * 0.7**2)


def test_poisoned_fl_owns_the_mean_and_keeps_one_direction():
    """Every round the same signs: what one step cannot do fifty together do."""
    honest, spec = sample(dtype=torch.float64), {"name": "poisoned_fl"}
    state, previous, total = None, None, torch.zeros(37).double()
    for turn in range(20):
        sent = attacks.step(
            honest, spec, n=12, f=3, round=turn, previous=previous, state=state,
            generator=generator(5, "craft"),
        )  # fmt: skip
        state = sent.state
        previous = torch.cat([honest, sent.updates]).mean(0)
        total += previous
    agree = (total.sign() == state["signs"]).double().mean()
    assert agree > 0.95 and total.norm() > 20 * honest.mean(0).norm()


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_crafts_the_same_vectors():
    honest = sample(dtype=torch.float64)
    for name in ATTACKS:
        found = make(honest.cuda(), name, previous=honest[0].cuda())
        assert found.is_cuda
        wanted = make(honest, name, previous=honest[0])
        torch.testing.assert_close(found.cpu(), wanted, equal_nan=True, msg=name)
        alone = craft(honest.cuda(), name, n=12, f=3, rule=median_rule)
        assert alone.is_cuda and alone.shape == wanted.shape
