"""The contested rule, its vertex covers and its bounds, against brute force."""

from __future__ import annotations

import itertools
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.redundancy import agreement, assign, corrupt, corrupted_labels, detect
from fedrobust.redundancy.agreement import MISSING
from fedrobust.redundancy.bounds import wrong_bound
from fedrobust.redundancy.contested import uncontested
from fedrobust.redundancy.covers import bits, coverable, graph_of, minimal_covers
from fedrobust.redundancy.decision import judge


def random_edges(seed, workers, density):
    draw = np.random.default_rng(seed).random((workers, workers)) < density
    edges = np.triu(draw, 1)
    return edges | edges.T


def covers_of(edges, workers, most):
    pairs = list(zip(*np.nonzero(np.triu(edges)), strict=True))
    sets = (set(s) for n in range(most + 1) for s in itertools.combinations(range(workers), n))
    return [s for s in sets if all(i in s or j in s for i, j in pairs)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.6), st.integers(0, 4))
def test_covers_equal_brute_force(seed, density, most):
    edges = random_edges(seed, 9, density)
    every = covers_of(edges, 9, most)
    minimal = [s for s in every if not any(other < s for other in every)]
    found, capped = minimal_covers(graph_of(edges), most=most)
    assert not capped
    assert sorted(sorted(bits(mask)) for mask in found) == sorted(map(sorted, minimal))
    for within in (2**9 - 1, 0b101101011):
        inside = edges & np.array([within >> i & 1 for i in range(9)], dtype=bool)
        inside = inside & inside.T
        exists = bool(covers_of(inside, 9, most))
        assert coverable(graph_of(edges), within, most) is exists


def test_a_search_that_is_cut_short_says_so():
    pairs = np.zeros((40, 40), dtype=bool)
    for i in range(20):
        pairs[i, 20 + i] = pairs[20 + i, i] = True
    found, capped = minimal_covers(graph_of(pairs), most=20, limit=10)  # there are 2^20
    assert (len(found), capped) == (10, True)
    assert minimal_covers(graph_of(pairs), most=20, nodes=5)[1]
    assert coverable(graph_of(pairs), 2**40 - 1, 20) is True
    assert coverable(graph_of(pairs), 2**40 - 1, 19) is False
    assert coverable(graph_of(random_edges(0, 30, 0.3)), 2**30 - 1, 15, nodes=2) is None


def candidate_cliques(labels, q):
    """List all sets of at least K-q heard workers that agree pairwise, by trying all of them."""
    heard = (labels != MISSING).any(1).nonzero().flatten().tolist()
    seen = agreement(labels)
    fit = (seen.counts == seen.shared).tolist()
    for out in range(q + 1):
        for left_out in itertools.combinations(heard, out):
            inside = [w for w in heard if w not in left_out]
            if all(fit[i][j] for i, j in itertools.combinations(inside, 2)):
                yield set(inside)


def by_definition(labels, q):
    """Return the kept files with their value, and the sure ones, straight from the definition."""
    cliques = list(candidate_cliques(labels, q))
    candidates = set().union(*cliques) if cliques else set()
    kept, sure = {}, set()
    for file in range(labels.shape[1]):
        came = (labels[:, file] != MISSING).nonzero().flatten().tolist()
        held = [w for w in came if w in candidates]
        values = {int(labels[w, file]) for w in held}
        if len(values) != 1:
            continue
        met = all(clique & set(came) for clique in cliques)
        if met or 2 * len(held) > len(came):
            kept[file] = values.pop()
        if met:
            sure.add(file)
    return kept, sure


def hostile_labels(seed, workers, q, absent=0):
    """Let q workers send any of four values for each of their files; some honest ones are away."""
    source = torch.Generator().manual_seed(seed)
    made = assign("aspis", workers=workers, replication=3)
    density = torch.rand(1, generator=source)
    wrong = torch.randint(1, 4, made.matrix.shape, generator=source)
    distorted = torch.rand(made.matrix.shape, generator=source) < density
    distorted[q:] = False
    labels = torch.where(made.matrix, torch.where(distorted, wrong, 0), MISSING)
    labels[workers - absent :] = MISSING
    return made, labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(0, 1))
def test_the_rule_equals_its_definition(seed, q, absent):
    _, labels = hostile_labels(seed, 8 if q == 3 else 7, q, absent)
    kept, sure = by_definition(labels, q)
    found = uncontested(labels, q=q)
    chosen = {f: int(labels[w, f]) for f, w in enumerate(found.chosen.tolist()) if w >= 0}
    assert chosen == kept
    assert set(found.sure.nonzero().flatten().tolist()) == sure
    assert found.candidates[q : len(labels) - absent].all()  # no honest worker is convicted


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(0, 2), st.sampled_from([1, 50_000]))
def test_a_sure_file_is_never_wrong_and_a_kept_one_only_if_owned_wholly(seed, q, absent, nodes):
    """Also where every search is cut short after one node."""
    made, labels = hostile_labels(seed, 11, q, absent)
    found = uncontested(labels, q=q, copies=made.copies, nodes=nodes)
    wrong = (found.chosen >= 0) & (labels.gather(0, found.chosen.clamp(min=0)[None])[0] != 0)
    honest = made.matrix[q : 11 - absent].any(0)
    assert not (wrong & honest).any()
    assert not (wrong & found.sure).any()
    heard = range(11 - absent)
    bound = wrong_bound(made, q=q, kind="wholly", heard=heard, subsets=True)
    assert int(wrong.sum()) <= bound
    if q < 3 and not absent:
        assert torch.equal(found.sure, found.chosen >= 0)


@pytest.mark.parametrize(
    ("q", "attack", "kept", "wrong", "plain"),
    [
        (2, "att2", 451, 0, True),
        (4, "att2", 399, 0, True),
        (6, "att2", 235, 0, True),
        (2, "lone_files", 455, 0, True),
        (4, "lone_files", 455, 4, False),
        (6, "lone_files", 455, 20, False),
        (4, "small_d", 396, 0, True),
        (4, "att1", 451, 0, True),
        (4, "att3", 451, 0, True),
    ],
)
def test_the_table_of_attacks(q, attack, kept, wrong, plain):
    made = assign("aspis", workers=15, replication=3)
    labels = corrupted_labels(made, corrupt(attack, made, q=q))
    verdict, _ = judge(labels, q=q, detection="contested", length=1)
    chosen = verdict.chosen
    values = labels.gather(0, chosen.clamp(min=0)[None])[0]
    count = int(((chosen >= 0) & (values != 0)).sum())
    assert (int((chosen >= 0).sum()), count, verdict.plain) == (kept, wrong, plain)


def test_one_worker_of_two_that_contradict_each_other_is_byzantine():
    """Each of q workers contradicts one honest worker on files that nobody else holds."""
    labels = torch.where(assign("aspis", workers=9, replication=3).matrix, 0, MISSING)
    labels[0, labels[0] != MISSING] = 5
    verdict, _ = judge(labels, q=1, detection="contested", length=1)
    assert verdict.flagged == (0,)
    assert verdict.known
    assert verdict.plain


def brute_bound(matrix, q, needed):
    sets = itertools.combinations(range(len(matrix)), q)
    return max(int((matrix[list(s)].sum(0) >= needed).sum()) for s in sets)


@pytest.mark.parametrize("absent", [(), (6,), (5, 6)])
@pytest.mark.parametrize("q", [1, 2])
def test_bounds_follow_who_was_heard(q, absent):
    made = assign("aspis", workers=7, replication=3)
    heard = [w for w in range(7) if w not in absent]
    rows, half = made.matrix[heard], torch.full((35,), 2)
    vote = brute_bound(rows, q, half)
    wholly = brute_bound(rows, q, torch.maximum(half, rows.sum(0)))
    for subsets in (False, True):
        bounds = {"q": q, "heard": heard, "subsets": subsets}
        assert wrong_bound(made, kind="vote", **bounds) == vote
        assert wrong_bound(made, kind="wholly", **bounds) == wholly
    cornered = wrong_bound(made, kind="cornered", q=q, heard=heard, subsets=True)
    assert wholly <= cornered <= vote
    if not absent:
        assert cornered == comb(2 * q, 3) // 2
    with pytest.raises(ValueError, match="unknown bound"):
        wrong_bound(made, q=q, kind="some")


def test_a_copy_alone_is_no_majority_of_three():
    labels = torch.tensor([[4, 4, 7], [MISSING, 4, 7], [MISSING, MISSING, 8]])
    verdict, _ = judge(labels, q=1, detection="none", length=1, copies=torch.tensor([3, 3, 3]))
    assert verdict.chosen.tolist() == [-1, 0, 0]


def test_convicted_workers_have_no_vote_in_the_fallback():
    """Worker 0 is convicted by its degree; with workers 1 and 2 it outvotes nobody any more."""
    made = assign("aspis", workers=9, replication=3)
    attack = corrupt("small_d", made, q=3)
    labels = corrupted_labels(made, attack)
    labels[0] = torch.where(made.matrix[0], 1, MISSING)
    found = detect(agreement(labels).counts, q=3, files_per_pair=7)
    assert (found.accepted, found.byzantine) == (False, {0})
    verdict, _ = judge(labels, q=3, detection="strict", length=1)
    assert not verdict.trusted[0]
    assert all(worker != 0 for worker in verdict.chosen.tolist())
    file = next(f for f, h in enumerate(made.holders.tolist()) if h == [0, 1, 8])
    assert (labels[[0, 1, 8], file] == torch.tensor([1, 0, 0])).all()
    assert verdict.chosen[file] in (1, 8)


def test_hundred_workers_take_few_nodes():
    """Random disagreements, where listing cliques did not end; a cap in nodes, not in seconds."""
    from experiments.benchmarks.cliques import random_graph

    for q in (25, 33, 49):
        counts = random_graph(100, q)
        found = detect(counts, q=q, files_per_pair=98, nodes=400)
        assert not found.capped
        assert found.accepted
        assert found.byzantine == set(range(q))


def test_the_pages_table_is_what_its_script_prints():
    from pathlib import Path

    from experiments.benchmarks.contested import rows

    page = Path("experiments/docs/pages/explanation/redundancy.md").read_text()
    for row in rows():
        told = " | ".join(f"{c['wrong']} of {c['kept']}, {c['stage']}" for c in row)
        assert f"| {row[0]['q']} | {row[0]['placement']} | {told} |" in page
