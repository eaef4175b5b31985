"""Assignments and distortion: every printed number, read from one data file."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tomllib
from math import comb
from pathlib import Path

import pytest
import torch

from experiments import distortion as report
from fedrobust.redundancy import (
    SCHEMES,
    NotApplicable,
    assign,
    distortion,
    gamma_bound,
    permute,
    traffic,
)
from fedrobust.redundancy.assignment import check_batch
from fedrobust.redundancy.galois import field, prime_power
from fedrobust.redundancy.search import extreme_set
from fedrobust.redundancy.worst_case import (
    att2_count,
    majority_bound,
    random_fraction,
    second_eigenvalue,
    small_d_count,
)
from fedrobust.spec import SpecError
from tests import textbook_redundancy as textbook

ROOT = Path(__file__).parents[2]
TABLES = tomllib.loads((ROOT / "experiments/papers/aspis/tables.toml").read_text())
K15, K25, K50 = TABLES["k15"], TABLES["k25"], TABLES["k50"]
FITTING = {
    "aspis": (7, 3),
    "aspis_plus": (15, 3),
    "byzshield_mols": (15, 3),
    "byzshield_ramanujan": (25, 5),
    "detox": (15, 3),
    "draco_repetition": (15, 3),
    "draco_cyclic": (7, 5),
    "none": (7, 1),
}


def blocks(assignment):
    return [set(column.nonzero().flatten().tolist()) for column in assignment.matrix.T]


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def printed(value, table_value):
    """Whether a computed fraction rounds to the four printed decimals."""
    return abs(value - table_value) <= 0.5e-4 + 1e-9


def test_every_scheme_keeps_its_word():
    assert FITTING.keys() == SCHEMES.keys()
    assert len(SCHEMES) == 8
    for name, (workers, replication) in FITTING.items():
        made = assign(name, workers=workers, replication=replication)
        assert made.matrix.dtype == torch.bool
        assert made.matrix.shape == (workers, made.files)
        assert set(made.copies.tolist()) == {replication}
        assert made.load * workers == made.files * replication
        assert torch.equal(made.pair_counts, made.pair_counts.T)
        assert made.pair_counts.diagonal().tolist() == list(made.loads)
        assert [set(row.tolist()) for row in made.holders] == blocks(made)


def test_aspis_sizes():
    rows = TABLES["aspis_sizes"]["rows"]
    assert len(rows) == 8
    for workers, replication, files, load, pair in rows:
        made = assign("aspis", workers=workers, replication=replication)
        assert (made.files, made.load) == (files, load)
        assert off_diagonal(made.pair_counts).unique().tolist() == [pair]
        assert made.holders[0].tolist() == list(range(replication))


def test_k15_and_k25_sizes():
    for table in (K15, K25):
        for name, files in table["files"].items():
            made = assign(name, workers=table["workers"], replication=table["replication"])
            assert (made.files, made.load) == (files, table["loads"][name])


@pytest.mark.parametrize("workers", [3, 7, 9, 13, 15, 19, 21, 25, 27, 31, 33, 37])
def test_steiner_triple_systems(workers):
    made = assign("aspis_plus", workers=workers, replication=3)
    assert off_diagonal(made.pair_counts).unique().tolist() == [1]
    assert made.load == (workers - 1) // 2
    assert made.files == workers * (workers - 1) // 6


@pytest.mark.parametrize(("workers", "files"), [(10, 30), (16, 80), (22, 154)])
def test_twofold_triple_systems(workers, files):
    made = assign("aspis_plus", workers=workers, replication=3)
    assert off_diagonal(made.pair_counts).unique().tolist() == [2]
    assert (made.files, made.load) == (files, workers - 1)


def test_the_16_worker_design_repeats_no_block():
    made = assign("aspis_plus", workers=16, replication=3)
    assert len({frozenset(block) for block in blocks(made)}) == 80


@pytest.mark.parametrize(("workers", "replication"), [(21, 5), (25, 5), (49, 7), (31, 31 - 26)])
def test_planes_or_a_clear_refusal(workers, replication):
    if workers == 31:
        with pytest.raises(ValueError, match="r a prime power"):
            assign("aspis_plus", workers=workers, replication=replication)
        return
    made = assign("aspis_plus", workers=workers, replication=replication)
    assert off_diagonal(made.pair_counts).unique().tolist() == [1]
    assert set(made.copies.tolist()) == {replication}


def test_latin_squares_by_hand():
    made = assign("byzshield_mols", workers=15, replication=3)
    held = {w: made.matrix[w].nonzero().flatten().tolist() for w in (0, 5, 10)}
    assert held == {0: [0, 9, 13, 17, 21], 5: [0, 8, 11, 19, 22], 10: [0, 7, 14, 16, 23]}


@pytest.mark.parametrize("size", [4, 5, 7, 8, 9, 16])
def test_latin_squares_are_orthogonal_over_every_field(size):
    made = assign("byzshield_mols", workers=3 * size, replication=3)
    assert (made.files, made.load) == (size**2, size)
    square = torch.arange(3 * size) // size
    same = square[:, None] == square
    pairs = made.pair_counts
    assert (pairs[~same] == 1).all()
    assert (off_diagonal(pairs)[off_diagonal(same)] == 0).all()
    assert second_eigenvalue(made) == pytest.approx(1 / 3)


@pytest.mark.parametrize("order", [2, 3, 4, 5, 7, 8, 9])
def test_fields_obey_the_axioms(order):
    gf = field(order)
    everything = list(range(order))
    for a in everything:
        assert sorted(gf.add[a].tolist()) == everything
        if a:
            assert sorted(gf.multiply[a].tolist()) == everything
    for a, b, c in itertools.product(everything, repeat=3):
        left = gf.multiply[a, gf.add[b, c]]
        assert left == gf.add[gf.multiply[a, b], gf.multiply[a, c]]
        assert gf.multiply[a, gf.multiply[b, c]] == gf.multiply[gf.multiply[a, b], c]


def test_gf8_uses_x3_plus_x_plus_1():
    assert field(8).multiply[2].tolist() == [0, 2, 4, 6, 3, 1, 7, 5]
    assert prime_power(12) is None
    with pytest.raises(ValueError, match="prime power"):
        field(6)


def test_ramanujan_spectra():
    made = assign("byzshield_ramanujan", workers=25, replication=5)
    values = torch.linalg.svdvals(made.matrix.double())
    expected = torch.tensor([5.0] + [5**0.5] * 20 + [0.0] * 4, dtype=torch.float64)
    assert torch.allclose(values, expected, atol=1e-6)
    assert second_eigenvalue(made) == pytest.approx(1 / 5)
    first = assign("byzshield_ramanujan", workers=35, replication=5)
    assert (first.files, first.load) == (49, 7)
    assert second_eigenvalue(first) == pytest.approx(1 / 5)
    wide = assign({"name": "byzshield_ramanujan", "m": 10}, workers=25, replication=5)
    assert (wide.files, wide.load) == (50, 10)


def test_detox_gives_the_remainder_to_the_last_group():
    made = assign("detox", workers=25, replication=3)
    assert made.copies.tolist() == [3] * 7 + [4]
    assert made.load == 1


def test_uneven_loads_are_a_tuple():
    made = assign("aspis", workers=5, replication=3)
    lame = type(made)(made.matrix[:, :4])
    assert isinstance(lame.load, tuple)
    assert sum(lame.load) == 12


def test_permute_keeps_the_design():
    made = assign("aspis_plus", workers=15, replication=3)
    before = made.matrix.clone()
    moved = permute(made, torch.Generator().manual_seed(3))
    again = permute(made, torch.Generator().manual_seed(3))
    assert torch.equal(moved.matrix, again.matrix)
    assert torch.equal(made.matrix, before)
    assert not torch.equal(moved.matrix, before)
    assert off_diagonal(moved.pair_counts).unique().tolist() == [1]


def test_k15_table():
    seen = 0
    for i, q in enumerate(K15["q"]):
        for attack, prefix in (("optimal", ""), ("weak", "weak_")):
            for name in ("aspis", "none", "detox", "byzshield_mols"):
                if prefix + name not in K15:
                    continue
                got = distortion(name, workers=15, replication=3, q=q, attack=attack)
                assert printed(got.fraction, K15[prefix + name][i]), (name, q, attack)
                if not prefix and name + "_count" in K15:
                    assert got.count == K15[name + "_count"][i]
                    assert got.fraction == got.count / got.files
                seen += 1
        bound = gamma_bound("byzshield_mols", workers=15, replication=3, q=q)
        assert round(bound, 2) == K15["gamma"][i]
        assert att2_count(q=q, replication=3) == comb(2 * q, 3) // 2
    assert seen == 6 * 6


def test_k15_worst_sets():
    for q, names in zip(K15["q"], K15["worst_sets"], strict=True):
        got = distortion("byzshield_mols", workers=15, replication=3, q=q)
        assert [worker + 1 for worker in got.byzantine] == names


def test_k25_table():
    sets = 0
    for i, q in enumerate(K25["q"]):
        got = distortion("byzshield_ramanujan", workers=25, replication=5, q=q)
        assert got.count == K25["byzshield_ramanujan_count"][i]
        assert printed(got.fraction, K25["byzshield_ramanujan"][i])
        for name in ("none", "detox"):
            other = distortion(name, workers=25, replication=5, q=q)
            assert printed(other.fraction, K25[name][i])
        bound = gamma_bound("byzshield_ramanujan", workers=25, replication=5, q=q)
        assert abs(bound - K25["gamma"][i]) <= 0.005 + 1e-9
        assert got.count <= bound
        if str(q) in K25["known_sets"]:
            assert [worker + 1 for worker in got.byzantine] == K25["known_sets"][str(q)]
            sets += 1
    assert sets == 3


def test_k50_end_points():
    for attack in ("optimal", "weak"):
        for name, value in K50[attack].items():
            got = distortion(name, workers=50, replication=3, q=K50["q"], attack=attack)
            assert round(got.fraction, K50["digits"]) == value


def test_small_cases_of_aspis():
    seen = 0
    for key, counts in TABLES["aspis_counts"].items():
        if key == "source":
            continue
        workers, replication = map(int, key.split(","))
        for q, count in counts.items():
            got = distortion("aspis", workers=workers, replication=replication, q=int(q))
            assert got.count == count
            if key in TABLES["aspis_fractions"]:
                assert printed(got.fraction, TABLES["aspis_fractions"][key][q])
            seen += 1
    assert seen == 10
    table = TABLES["small_d"]
    for q, count, bound in zip(table["q"], table["count"], table["bound"], strict=True):
        assert small_d_count(q=q, replication=3) == count
        assert att2_count(q=q, replication=3) == bound


def test_aspis_plus_table():
    seen = 0
    for key, table in TABLES["aspis_plus"].items():
        if key == "source":
            continue
        workers = int(key)
        made = assign("aspis_plus", workers=workers, replication=3)
        assert made.files == table["files"]
        for i, q in enumerate(table["q"]):
            got = distortion("aspis_plus", workers=workers, replication=3, q=q)
            assert got.count == table["worst"][i] <= majority_bound(made, q=q)
            assert round(got.fraction, 3) == table["fraction"][i]
            mean = random_fraction(made, q=q)
            assert round(mean, 3) == table["random"][i]
            exact = (comb(q, 2) * (workers - q) + comb(q, 3)) / comb(workers, 3)
            assert mean == pytest.approx(exact)
            seen += 1
    assert seen == 11
    made = assign("aspis_plus", workers=25, replication=3)
    more = TABLES["aspis_plus_random"]
    assert [round(random_fraction(made, q=q), 3) for q in more["q"]] == more["random"]


def test_detox_random_sets():
    for workers, replication, q, share in TABLES["detox_random"]["rows"]:
        made = assign("detox", workers=workers, replication=replication)
        assert printed(random_fraction(made, q=q), share)


@pytest.mark.parametrize(
    ("name", "workers", "replication"),
    [("byzshield_mols", 12, 3), ("byzshield_ramanujan", 9, 3), ("aspis_plus", 9, 3),
     ("detox", 10, 3), ("aspis", 7, 3)],
)  # fmt: skip
def test_search_equals_trying_every_set(name, workers, replication):
    made = assign(name, workers=workers, replication=replication)
    for q in range((workers - 1) // 2 + 1):
        count, chosen = extreme_set(made, q=q)
        assert count == textbook.worst_majority(blocks(made), workers, q)
        assert textbook.wrong_files_by_majority(blocks(made), set(chosen)) == count
        least, kind = extreme_set(made, q=q, least=True)
        assert least == textbook.least_majority(blocks(made), workers, q)
        assert textbook.wrong_files_by_majority(blocks(made), set(kind)) == least


def test_search_gives_up_instead_of_running_on():
    made = assign("aspis_plus", workers=25, replication=3)
    with pytest.raises(NotApplicable, match="needs more than 1000 steps"):
        extreme_set(made, q=12, nodes=1000)


def test_byzshield_closed_form_for_few_byzantine():
    for q, count in ((0, 0), (1, 0), (2, 1), (3, 3)):
        assert distortion("byzshield_mols", workers=15, replication=3, q=q).count == count
    for q, count in ((2, 0), (3, 1), (4, 1), (5, 2)):
        assert distortion("byzshield_mols", workers=35, replication=5, q=q).count == count


def test_draco_is_exact_or_not_applicable():
    assert distortion("draco_cyclic", workers=9, replication=5, q=2).fraction == 0
    with pytest.raises(NotApplicable, match="needs replication 7"):
        distortion("draco_repetition", workers=15, replication=5, q=3)


@pytest.mark.parametrize(
    ("spec", "workers", "replication", "words"),
    [
        ("aspis", 7, 4, "replication must be odd"),
        ("aspis", 100, 5, "too many to list"),
        ("aspis", 3, 5, "needs as many workers"),
        ("aspis", 7, -1, "odd and positive"),
        ("aspis_plus", 8, 3, "1 or 3 mod 6"),
        ("aspis_plus", 1, 1, "a prime power"),
        ("byzshield_mols", 18, 3, "prime power"),
        ("byzshield_mols", 9, 3, "r <= l - 1"),
        ("byzshield_mols", 16, 3, "r \\* l"),
        ("byzshield_ramanujan", 81, 9, "prime s"),
        ("byzshield_ramanujan", 18, 3, "prime s"),
        ("byzshield_ramanujan", 16, 3, "case 1"),
        ({"name": "byzshield_ramanujan", "m": 7}, 25, 5, "multiple of s=5"),
        ("aspsi", 7, 3, "did you mean 'aspis'"),
        ({"name": "aspis", "m": 7}, 7, 3, "no parameter 'm'"),
    ],
)
def test_what_does_not_fit_is_refused(spec, workers, replication, words):
    with pytest.raises(ValueError, match=words):
        assign(spec, workers=workers, replication=replication)


def test_distortion_refuses():
    with pytest.raises(ValueError, match="less than half"):
        distortion("aspis", workers=14, replication=3, q=7)
    with pytest.raises(ValueError, match="unknown attack"):
        distortion("aspis", workers=15, replication=3, q=2, attack="best")
    with pytest.raises(SpecError, match="unknown scheme"):
        distortion("nothing", workers=15, replication=3, q=2)
    with pytest.raises(NotApplicable, match="equal loads"):
        gamma_bound("detox", workers=25, replication=3, q=2)


def test_batches_fit_the_files():
    made = assign("aspis", workers=15, replication=3)
    assert check_batch(910, made) == 2
    for batch in (455, 1000):
        with pytest.raises(ValueError, match="multiple of 455 files"):
            check_batch(batch, made)


def test_traffic_of_a_round():
    rows = TABLES["traffic"]["rows"]
    assert len(rows) == 7
    for row in rows:
        made = assign(row["scheme"], workers=row["workers"], replication=3)
        got = traffic(made, parameters=TABLES["traffic"]["parameters"])
        assert got.digests / 1e3 == pytest.approx(row["digests"], abs=0.05 + 0.005 * row["digests"])
        for key in ("busiest", "naive", "per_file", "per_worker"):
            assert getattr(got, key) / 1e9 == pytest.approx(row[key], rel=0.02), (row, key)
    aspis = traffic(assign("aspis", workers=15, replication=3), parameters=11_173_962)
    assert aspis.naive / (aspis.per_worker + aspis.digests) > 90


def test_report_table_and_picture():
    schemes = ["aspis", "none", "detox", "byzshield_mols", "draco_cyclic"]
    frame = report.table(schemes, workers=15, replication=3)
    assert len(frame) == 5 * 7
    row = frame[(frame.scheme == "aspis") & (frame.q == 4)].iloc[0]
    assert (row["count"], row["files"]) == (28, 455)
    text = report.markdown(frame)
    assert "| 4 | 28/455 = 0.0615 | 4/15 = 0.2667 | 2/5 = 0.4000 | 5/25 = 0.2000 | n/a |" in text
    axes = report.figure(frame).axes[0]
    assert [line.get_text() for line in axes.get_legend().get_texts()] == schemes
    assert len(axes.lines) == 10


def test_clique_benchmark_lines():
    command = [sys.executable, "-m", "experiments.benchmarks.cliques", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 7
    keys = {"case", "seconds", "reference", "reference_seconds", "ratio", "goal", "peak_bytes"}
    assert all(line.keys() == keys for line in lines)
    assert "cliques" in lines[-1]["case"]  # a cap is no longer met: K = 100, q = 25 ends in 3 nodes
