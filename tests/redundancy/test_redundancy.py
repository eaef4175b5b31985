"""Detection, windows, votes, adversaries, codes and commitments, and what breaks them."""

from __future__ import annotations

import itertools
import tomllib
from math import comb
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.cliques import random_graph
from fedrobust.redundancy import (
    ADVERSARIES,
    agreement,
    assign,
    choose,
    corrupt,
    corrupted_labels,
    detect,
    label_digests,
    label_values,
    latency,
    majority,
    permute,
    representatives,
    vote,
    window_adversaries,
    window_init,
    window_step,
)
from fedrobust.redundancy.agreement import MISSING, cluster, exact, relative_distances
from fedrobust.redundancy.assignment import from_blocks
from fedrobust.redundancy.voting import check_second_stage, without
from tests import textbook_redundancy as textbook

ROOT = Path(__file__).parents[2]
TABLES = tomllib.loads((ROOT / "experiments/papers/aspis/tables.toml").read_text())


def judged(workers, q, attack, rule="strict", scheme="aspis"):
    """Return the detection, and how many files are dropped and wrong after it."""
    made = assign(scheme, workers=workers, replication=3)
    labels = corrupted_labels(made, corrupt(attack, made, q=q))
    seen = agreement(labels)
    found = detect(seen.counts, q=q, files_per_pair=seen.shared, rule=rule)
    return found, *outcome(labels, choose(labels, found))


def outcome(labels, chosen):
    dropped = chosen < 0
    values = labels[chosen.clamp(min=0), torch.arange(labels.shape[1])]
    return int(dropped.sum()), int((~dropped & (values != 0)).sum())


def one_based(workers):
    return {worker + 1 for worker in workers}


@pytest.mark.parametrize("rule", ["strict", "paper"])
@pytest.mark.parametrize(("q", "dropped"), [(2, 0), (3, 1)])
def test_att1_with_seven_workers(rule, q, dropped):
    found, lost, wrong = judged(7, q, "att1", rule)
    assert found.accepted
    assert [one_based(clique) for clique in found.cliques] == [set(range(q + 1, 8))]
    assert one_based(found.byzantine) == set(range(1, q + 1))
    assert (lost, wrong) == (dropped, 0)


def test_att2_with_seven_workers_two_byzantine():
    made = assign("aspis", workers=7, replication=3)
    labels = corrupted_labels(made, corrupt("att2", made, q=2))
    counts = agreement(labels).counts
    edges = counts == 5
    assert edges.sum() // 2 == 17
    assert edges.sum(1).tolist() == [4, 4, 4, 4, 6, 6, 6]
    found, dropped, wrong = judged(7, 2, "att2")
    assert [one_based(c) for c in found.cliques] == [{1, 2, 5, 6, 7}, {3, 4, 5, 6, 7}]
    assert (found.accepted, dropped, wrong) == (False, 0, 2)
    bad = (majority(labels) == 1).nonzero().flatten()
    assert [one_based(made.holders[file].tolist()) for file in bad] == [{1, 2, 3}, {1, 2, 4}]


def test_att2_with_seven_workers_three_byzantine():
    found, dropped, wrong = judged(7, 3, "att2")
    assert [one_based(c) for c in found.cliques] == [{1, 2, 3, 7}, {4, 5, 6, 7}]
    assert (found.accepted, dropped, wrong) == (False, 0, 10)
    made = assign("aspis", workers=7, replication=3)
    counts = agreement(corrupted_labels(made, corrupt("att2", made, q=3))).counts
    assert (counts == 5).sum() // 2 == 12


def test_the_paper_rule_convicts_the_victims_and_the_strict_rule_does_not():
    fooled, _, wrong = judged(7, 3, "small_d", "paper")
    assert fooled.accepted
    assert one_based(fooled.byzantine) == {4, 5}
    assert len(fooled.cliques[0]) == 5
    assert wrong == 10
    strict, _, wrong = judged(7, 3, "small_d", "strict")
    assert not strict.accepted
    assert wrong == 7


def test_the_hole_of_the_paper_rule_grows_as_computed():
    table = TABLES["small_d"]
    for q, count, bound in zip(table["q"], table["count"], table["bound"], strict=True):
        fooled, _, wrong = judged(15, q, "small_d", "paper")
        assert fooled.accepted
        assert not fooled.byzantine & set(range(q))
        assert wrong == count
        strict, _, wrong = judged(15, q, "small_d", "strict")
        assert not strict.accepted
        assert wrong <= bound


@pytest.mark.parametrize(("q", "wrong", "dropped"), [(2, 2, 0), (4, 28, 4), (6, 110, 20)])
def test_fifteen_workers(q, wrong, dropped):
    assert judged(15, q, "att2")[1:] == (0, wrong)
    assert judged(15, q, "att1")[1:] == (dropped, 0)
    made = assign("aspis", workers=15, replication=3)
    attack = corrupt("att2", made, q=q)
    assert int(attack.distorted.any(0).sum()) == comb(2 * q, 3) - comb(q, 3)


def test_nobody_is_flagged_without_an_attack():
    labels = torch.where(assign("aspis", workers=15, replication=3).matrix, 0, MISSING)
    seen = agreement(labels)
    for q in (0, 3, 7):
        for rule in ("strict", "paper"):
            found = detect(seen.counts, q=q, files_per_pair=13, rule=rule)
            assert found.accepted
            assert not found.byzantine
            assert found.honest == set(range(15))
    assert torch.equal(choose(labels, found), labels.add(1).argmax(0))


def test_no_byzantine_allowed_for_flags_nobody():
    made = assign("aspis", workers=7, replication=3)
    seen = agreement(corrupted_labels(made, corrupt("att1", made, q=2)))
    found = detect(seen.counts, q=0, files_per_pair=seen.shared)
    assert not found.accepted
    assert not found.byzantine
    state = window_step(window_init(7), seen.counts, q=0, files_per_pair=seen.shared, length=5)
    assert state.flagged == ()


def test_lone_files_are_why_a_second_stage_stays():
    found, dropped, wrong = judged(15, 4, "lone_files")
    assert found.accepted
    assert not found.byzantine
    assert (dropped, wrong) == (0, comb(4, 3))


@pytest.mark.parametrize(("workers", "q"), [(7, 2), (7, 3), (9, 4), (11, 5)])
def test_random_disagreements_never_pass_the_bound_under_the_strict_rule(workers, q):
    source = torch.Generator().manual_seed(workers)
    made = assign("aspis", workers=workers, replication=3)
    honest_held = made.matrix.clone()
    honest_held[:q] = False
    worst = 0
    for trial in range(60):
        victims = torch.zeros(q, workers, dtype=torch.bool)
        shared = torch.randperm(workers - q, generator=source)[: 1 + trial % q] + q
        victims[:, shared] = True
        if trial % 3:
            drawn = torch.rand(q, workers, generator=source) < 0.3
            victims = (victims | drawn) & (torch.arange(workers) >= q)
        free = torch.stack([~(honest_held & ~row[:, None]).any(0) for row in victims])
        agreed = (free | ~made.matrix[:q]).all(0)
        distorted = torch.zeros_like(made.matrix)
        distorted[:q] = made.matrix[:q] & (agreed if trial % 2 else free)
        labels = torch.where(made.matrix, distorted.long(), MISSING)
        seen = agreement(labels)
        found = detect(seen.counts, q=q, files_per_pair=seen.shared)
        wrong = outcome(labels, choose(labels, found))[1]
        worst = max(worst, wrong)
        if found.accepted:
            assert found.honest >= set(range(q, workers))
            assert wrong <= comb(q, 3)
    assert 0 < worst <= comb(2 * q, 3) // 2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 3))
def test_detection_equals_the_textbook(seed, q):
    source = torch.Generator().manual_seed(seed)
    made = assign("aspis", workers=7, replication=3)
    wrong = torch.rand(made.matrix.shape, generator=source) < torch.rand(1, generator=source) / 2
    wrong[q:] = False
    labels = torch.where(made.matrix, wrong.long(), MISSING)
    seen = agreement(labels)
    returned = {(w, s): int(labels[w, s]) for w, s in made.matrix.nonzero().tolist()}
    assert seen.counts.tolist() == textbook.agreements(returned, 7)
    edges = {
        frozenset(pair) for pair in itertools.combinations(range(7), 2) if seen.counts[pair] == 5
    }
    large = [c for c in textbook.maximal_cliques(edges, 7) if len(c) >= 7 - q]
    found = detect(seen.counts, q=q, files_per_pair=5)
    assert sorted(map(sorted, large)) == [list(c) for c in found.cliques]
    assert found.accepted == (len(large) == 1)
    top = [c for c in large if len(c) == max(map(len, large))]
    paper = detect(seen.counts, q=q, files_per_pair=5, rule="paper")
    assert sorted(map(sorted, top)) == [list(c) for c in paper.cliques]


def test_hard_graphs_stop_at_a_cap_and_fall_back():
    hard = random_graph(100, 25)
    for bounds in ({"limit": 0}, {"nodes": 2}):
        found = detect(hard, q=25, files_per_pair=98, **bounds)
        assert found.capped
        assert not found.accepted
        assert not found.honest
    easy = detect(torch.full((9, 9), 7), q=4, files_per_pair=7, limit=1)
    assert easy.accepted
    assert not easy.capped


def test_absent_workers_are_no_evidence():
    made = assign("aspis", workers=9, replication=3)
    labels = corrupted_labels(made, corrupt("att1", made, q=2))
    labels[8] = MISSING
    seen = agreement(labels)
    found = detect(seen.counts, q=2, files_per_pair=seen.shared)
    assert found.accepted
    assert found.absent == {8}
    assert found.byzantine == {0, 1}
    assert found.honest == set(range(2, 8))
    labels = corrupted_labels(
        assign("aspis", workers=7, replication=3),
        corrupt("att1", assign("aspis", workers=7, replication=3), q=3),
    )
    labels[:3].masked_fill_(labels[:3] != MISSING, 1)
    labels[3:6] = MISSING
    few = agreement(labels)
    for rule in ("strict", "paper"):
        assert not detect(few.counts, q=3, files_per_pair=few.shared, rule=rule).accepted
    mute = torch.zeros(5, 5, dtype=torch.int64)
    assert not detect(mute, q=2, files_per_pair=mute).accepted


def test_pairs_that_share_nothing_convict_nobody():
    made = assign("byzshield_mols", workers=15, replication=3)
    labels = torch.where(made.matrix, 0, MISSING)
    seen = agreement(labels)
    found = detect(seen.counts, q=3, files_per_pair=seen.shared)
    assert found.accepted
    assert not found.byzantine


@pytest.mark.parametrize(
    ("counts", "shared", "settings", "words"),
    [
        (torch.ones(6, 6), 1, {"q": 3}, "less than half"),
        (torch.ones(6, 6), 1, {"q": 2, "rule": "fast"}, "unknown clique rule"),
        (torch.ones(6, 5), 1, {"q": 2}, "\\(K, K\\) matrix"),
        (torch.arange(36).view(6, 6), 99, {"q": 2}, "symmetric"),
        (torch.full((6, 6), 2), 1, {"q": 2}, "more than the files"),
        (torch.full((6, 6), 2), torch.ones(5, 5), {"q": 2}, "files_per_pair must be"),
    ],
)
def test_detection_refuses(counts, shared, settings, words):
    with pytest.raises(ValueError, match=words):
        detect(counts, files_per_pair=shared, **settings)


def test_every_adversary_distorts_only_what_it_holds():
    assert len(ADVERSARIES) == 9
    for scheme, workers in (("aspis", 9), ("aspis_plus", 15), ("detox", 15)):
        made = assign(scheme, workers=workers, replication=3)
        for name in ADVERSARIES:
            before = made.matrix.clone()
            attack = corrupt(name, made, q=3)
            assert len(attack.adversaries) == 3
            assert not (attack.distorted & ~made.matrix).any()
            honest = [w for w in range(workers) if w not in attack.adversaries]
            assert not attack.distorted[honest].any()
            assert torch.equal(made.matrix, before)


def test_att3_touches_majority_files_only():
    made = assign("aspis_plus", workers=15, replication=3)
    attack = corrupt("att3", made, q=4, adversaries=[3, 5, 8, 13])
    held = made.matrix[[3, 5, 8, 13]].sum(0)
    assert torch.equal(attack.distorted.any(0), 2 * held > 3)


def test_detox_sets():
    made = assign("detox", workers=15, replication=3)
    assert corrupt("detox_worst", made, q=5).adversaries == (0, 1, 3, 4, 6)
    assert corrupt("detox_benign", made, q=6).adversaries == (0, 1, 3, 6, 9, 12)
    assert corrupt("whole_group", made, q=3).adversaries == (0, 1, 2)
    for name, lost in (("detox_worst", 2), ("detox_benign", 0), ("whole_group", 2)):
        labels = corrupted_labels(made, corrupt(name, made, q=5))
        assert outcome(labels, representatives(labels)) == (0, lost)


def test_window_adversaries_hold_for_a_window():
    drawn = [window_adversaries(15, q=4, iteration=t, length=50, seed=3) for t in range(150)]
    assert drawn[0] == drawn[49]
    assert drawn[50] == drawn[99]
    assert len({*drawn}) == 3
    with pytest.raises(ValueError, match="length >= 1"):
        window_adversaries(15, q=4, iteration=0, length=0, seed=3)


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ("att1", {"q": 4}, "less than half"),
        ("att9", {"q": 2}, "unknown adversary"),
        ("att1", {"q": 2, "adversaries": [1, 1]}, "must be 2 of 7"),
        ({"name": "att2", "victims": (0, 3)}, {"q": 2}, "victims must be honest"),
    ],
)
def test_adversaries_refuse(spec, settings, words):
    with pytest.raises(ValueError, match=words):
        corrupt(spec, assign("aspis", workers=7, replication=3), **settings)


FANO = [
    "123 147 246 345 257 156 367",
    "136 347 246 145 567 235 127",
    "136 147 465 234 267 125 357",
]


def test_the_fano_example():
    state = window_init(7)
    degrees = []
    for text in FANO:
        made = from_blocks([tuple(int(c) - 1 for c in block) for block in text.split()], 7)
        seen = agreement(corrupted_labels(made, corrupt("att3", made, q=2)))
        assert seen.shared.sum() == 7 * 6
        state = window_step(state, seen.counts, q=2, files_per_pair=1, length=15)
        degrees.append(state.degrees[:2].tolist())
        if len(degrees) < 3:
            assert state.flagged == ()
    assert degrees == [[5, 5], [4, 4], [3, 3]]
    assert state.flagged == (0, 1)


def test_windows_equal_the_textbook_and_start_anew():
    source = torch.Generator().manual_seed(5)
    design = assign("aspis_plus", workers=9, replication=3)
    state, history, pairs = window_init(9), [], []
    for t in range(40):
        made = permute(design, source)
        byzantine = window_adversaries(9, q=3, iteration=t, length=11, seed=8)
        seen = agreement(corrupted_labels(made, corrupt("att1", made, q=3, adversaries=byzantine)))
        pairs.append(set(map(tuple, (seen.counts < 1).nonzero().tolist())))
        pairs[-1] = {(i, j) for i, j in pairs[-1] if i != j}
        before = state
        state = window_step(before, seen.counts, q=3, files_per_pair=1, length=6)
        history.append(list(state.flagged))
        assert state.iteration == t % 6 + 1
    assert history == textbook.degree_rule(pairs, 9, 3, 6)
    assert any(history)
    with pytest.raises(ValueError, match="length of at least 1"):
        window_step(state, seen.counts, q=3, files_per_pair=1, length=0)


def test_a_long_run_recovers_after_each_change_of_byzantine():
    source = torch.Generator().manual_seed(1)
    design = assign("aspis_plus", workers=15, replication=3)
    state, right = window_init(15), []
    for t in range(150):
        made = permute(design, source)
        byzantine = window_adversaries(15, q=2, iteration=t, length=50, seed=2)
        seen = agreement(corrupted_labels(made, corrupt("att3", made, q=2, adversaries=byzantine)))
        state = window_step(state, seen.counts, q=2, files_per_pair=seen.shared, length=15)
        right.append(set(state.flagged) == set(byzantine))
    assert right[14] and right[44] and right[74] and right[119] and right[149]


def test_more_than_q_flagged_keeps_the_newest():
    state = window_init(7)
    story = ((6, [0, 1, 2], (6,)), (5, [0, 1, 3], (6, 5)), (4, [2, 3, 6], (5, 4)))
    for worker, others, flagged in story:
        counts = torch.ones(7, 7, dtype=torch.int64)
        counts[worker, others] = counts[others, worker] = 0
        state = window_step(state, counts, q=2, files_per_pair=1, length=9)
        assert state.flagged == flagged


def test_latencies():
    rows = TABLES["latency"]["rows"]
    assert len(rows) == 5
    for row in rows:
        made = assign("aspis_plus", workers=row["workers"], replication=3)
        source = torch.Generator().manual_seed(row["workers"] + row["q"])
        took = latency(made, q=row["q"], trials=600, length=15, generator=source)
        ended = took[took > 0].double()
        assert abs(ended.median() - row["median"]) <= 0
        assert abs(ended.mean() - row["mean"]) < 4.5 * ended.std() * (1 / 600 + 1 / 2000) ** 0.5
        assert abs(((took > 0) & (took <= 5)).double().mean() - row["within5"]) < 0.1
        assert (took > 0).double().mean() > 0.98


def test_latency_is_a_coupon_collector_for_two_byzantine():
    made = assign("aspis_plus", workers=7, replication=3)
    source = torch.Generator().manual_seed(0)
    took = latency(made, q=2, trials=3000, length=60, generator=source).double()
    assert abs(took.mean() - (1 + 5 / 4 + 5 / 3)) < 0.12
    assert abs((took <= 5).double().mean() - (1 - 305 / 3125)) < 0.025


def test_without_permutation_detection_never_completes():
    made = assign("aspis_plus", workers=15, replication=3)
    source = torch.Generator().manual_seed(0)
    for q in (2, 4):
        took = latency(made, q=q, trials=500, length=15, permuted=False, generator=source)
        assert not took.any()


def test_labels_of_digests_and_missing_values():
    digests = {(0, 0): b"a", (1, 0): b"b", (2, 0): b"a", (1, 1): b"a"}
    labels = label_digests(digests, workers=4, files=2)
    assert labels.tolist() == [[0, MISSING], [1, 0], [0, MISSING], [MISSING, MISSING]]
    seen = agreement(labels)
    assert seen.counts[0].tolist() == [0, 0, 1, 0]
    assert seen.shared[0].tolist() == [0, 1, 1, 0]
    assert (seen + seen).shared[0, 1] == 2
    with pytest.raises(ValueError, match="no worker 4"):
        label_digests({(4, 0): b"a"}, workers=4, files=2)


def test_majority_counts_twice():
    labels = torch.tensor([[0, 0, 5, -1, -1, 2], [0, 1, 6, 3, -1, 2], [1, 2, 6, -1, -1, -1]])
    assert majority(labels).tolist() == [0, MISSING, 6, 3, MISSING, 2]
    assert representatives(labels).tolist() == [0, -1, 1, 1, -1, 0]
    assert representatives(labels, honest=[2]).tolist() == [2, 2, 2, -1, -1, -1]
    assert majority(without(labels, [2])).tolist() == [0, MISSING, MISSING, 3, MISSING, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 3), min_size=1, max_size=9))
def test_majority_equals_counting(column):
    came = [label for label in column if label >= 0]
    winners = [label for label in set(came) if 2 * came.count(label) > len(came)]
    assert majority(torch.tensor(column)[:, None]).tolist() == (winners or [MISSING])


def test_votes_without_a_majority_follow_the_policy():
    stack = torch.tensor([[1.0, 0.0], [1.1, 0.0], [9.0, 9.0]])
    before = stack.clone()
    assert vote(stack).value is None
    middle = vote(stack, policy="medoid")
    assert middle.row in (0, 1)
    assert not middle.majority
    near = vote(stack, tolerance=0.2)
    assert near.majority
    assert near.votes == 2
    assert torch.equal(stack, before)
    twins = vote(torch.tensor([[3.0], [7.0], [7.0]], dtype=torch.float64))
    assert (twins.value.item(), twins.row, twins.votes) == (7.0, 1, 2)
    assert twins.value.dtype == torch.float64


def test_nan_never_wins_a_medoid():
    stack = torch.tensor([[float("nan")], [2.0], [5.0]])
    assert vote(stack, policy="medoid").row in (1, 2)
    assert vote(stack * float("nan"), policy="medoid", tolerance=0.1).value is None


@pytest.mark.parametrize(
    ("stack", "settings", "words"),
    [
        (torch.ones(3, 2), {"policy": "first"}, "unknown tie policy"),
        (torch.ones(3, 2), {"tolerance": 1.0}, "must be in \\[0, 1\\)"),
        (torch.ones(0, 2), {}, "at least one copy"),
    ],
)
def test_votes_refuse(stack, settings, words):
    with pytest.raises(ValueError, match=words):
        vote(stack, **settings)


def test_second_stage_guards():
    check_second_stage("multi_krum", operands=15, distorted=6)
    check_second_stage("bulyan", operands=15, distorted=3)
    for rule, operands, distorted in (("krum", 14, 6), ("bulyan", 14, 3), ("bulyan", 5, 1)):
        with pytest.raises(ValueError, match=f"{rule} with {distorted} wrong values needs"):
            check_second_stage(rule, operands=operands, distorted=distorted)
    check_second_stage("median", operands=5, distorted=2)


def test_tolerance_tells_noise_from_attacks():
    source = torch.Generator().manual_seed(0)
    true = torch.randn(5000, generator=source)
    noise = 1e-2 * torch.randn(5000, generator=source)
    alie = true.mean() - true.std() * torch.ones(5000)
    byzantine = [alie, -100 * true, torch.full((5000,), -100.0), torch.full((5000,), torch.nan)]
    for attacker in byzantine:
        labels = cluster(torch.stack([true, true + noise, attacker]), tolerance=0.05)
        assert labels[0] == labels[1] != labels[2]
    assert exact(torch.stack([true, true + noise, true])).tolist() == [0, 1, 0]


def test_closeness_is_not_transitive_so_medoids_decide():
    row = torch.tensor([[1.00], [1.04], [1.08], [1.12], [1.16]])
    labels = cluster(row, tolerance=0.05)
    assert labels.tolist() != [0] * 5
    for label in labels.unique():
        members = row[labels == label]
        assert relative_distances(members).min(1).values.max() <= 0.05
    assert relative_distances(torch.zeros(2, 3)).max() == 0
    values = {(w, 0): row[w] for w in range(5)}
    by_value = label_values(values, workers=5, files=1, tolerance=0.05)
    assert by_value[:, 0].tolist() == labels.tolist()
    assert label_values(values, workers=5, files=1)[:, 0].tolist() == [0, 1, 2, 3, 4]
