"""DRACO's codes, and commitments that a attacker cannot open twice."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from fedrobust.redundancy import assign
from fedrobust.redundancy.commitments import (
    ROUNDING,
    check_sum,
    digest,
    sketch,
    sketches_agree,
)
from fedrobust.redundancy.draco import (
    decode_cyclic,
    decode_repetition,
    encode_cyclic,
    encode_repetition,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("n", "s"), [(3, 1), (5, 1), (7, 2), (9, 2), (9, 4), (7, 3), (15, 3)])
def test_cyclic_code_recovers_the_sum_and_names_the_byzantine(n, s):
    for trial in range(24):
        source = generator(trial)
        gradients = torch.randn(n, 200, generator=source, dtype=torch.float64)
        sent = encode_cyclic(gradients, s=s)
        byzantine = torch.randperm(n, generator=source)[: trial % (s + 1)]
        size = (1e-3, 1.0, 100.0, 1e8)[trial % 4]
        error = torch.randn(len(byzantine), 200, generator=source, dtype=torch.float64)
        sent[byzantine] += size * error
        before = sent.clone()
        found = decode_cyclic(sent, s=s, generator=source)
        assert (found.total - gradients.sum(0)).abs().max() < 1e-9
        assert found.byzantine == tuple(sorted(byzantine.tolist()))
        assert found.consistent
        assert found.total.dtype == torch.float64
        assert torch.equal(sent, before)


@pytest.mark.parametrize(("n", "s"), [(5, 1), (7, 2), (9, 2)])
@pytest.mark.parametrize("wrong", ["reversed", "zero", "constant", "nan", "inf"])
def test_cyclic_code_in_single_precision(n, s, wrong):
    source = generator(n)
    gradients = torch.randn(n, 500, generator=source)
    sent = encode_cyclic(gradients, s=s)
    assert sent.dtype == torch.complex64
    for attacker in range(1, s + 1):
        sent[attacker] = {
            "reversed": -100 * sent[attacker],
            "zero": 0 * sent[attacker],
            "constant": torch.full_like(sent[attacker], -100),
            "nan": torch.full_like(sent[attacker], torch.nan),
            "inf": torch.full_like(sent[attacker], torch.inf),
        }[wrong]
    found = decode_cyclic(sent, s=s, generator=source)
    assert torch.allclose(found.total, gradients.sum(0), atol=1e-4)
    assert found.byzantine == tuple(range(1, s + 1))
    assert found.total.dtype == torch.float32


def test_cyclic_combinations_use_only_the_tasks_held():
    held = assign("draco_cyclic", workers=7, replication=5).matrix
    code = encode_cyclic(torch.eye(7, dtype=torch.float64), s=2)
    assert torch.equal(code != 0, held)
    assert held[5].nonzero().flatten().tolist() == [0, 1, 2, 5, 6]


def test_too_many_byzantine_workers_are_noticed():
    source = generator(2)
    sent = encode_cyclic(torch.randn(9, 50, generator=source), s=2)
    sent[:4] += 5 * torch.randn(4, 50, generator=source)
    assert not decode_cyclic(sent, s=2, generator=source).consistent


def test_repetition_code():
    made = assign("draco_repetition", workers=15, replication=5)
    gradients = torch.randn(3, 40, generator=generator(0))
    sent = encode_repetition(gradients, made)
    assert sent.shape == (15, 40)
    sent[[3, 7]] = -sent[[3, 7]]
    found = decode_repetition(sent, made, s=2)
    assert torch.equal(found.total, gradients[0] + gradients[1] + gradients[2])
    assert found.byzantine == (3, 7)
    assert found.consistent
    sent[[0, 1, 2]] = 9.0
    assert not decode_repetition(sent, made, s=2).consistent


def test_codes_refuse():
    made = assign("draco_repetition", workers=15, replication=3)
    with pytest.raises(ValueError, match="against s=2 needs replication 5, got 3"):
        decode_repetition(torch.ones(15, 2), made, s=2)
    with pytest.raises(ValueError, match="needs replication 7, got 5"):
        encode_cyclic(torch.ones(5, 2), s=3)
    with pytest.raises(ValueError, match="complex"):
        decode_cyclic(torch.ones(5, 2), s=1, generator=generator(0))
    with pytest.raises(ValueError, match="one file per worker"):
        encode_repetition(torch.ones(7, 2), assign("aspis_plus", workers=7, replication=3))


def test_digest_is_that_of_little_endian_float32():
    vector = torch.tensor([1.0, -2.5, 0.0])
    assert digest(vector) == hashlib.sha256(struct.pack("<3f", 1.0, -2.5, 0.0)).digest()
    assert digest(vector.view(3, 1)) == digest(vector)
    wide = torch.arange(6.0).view(2, 3)
    assert digest(wide.T) == digest(wide.T.contiguous()) != digest(wide)
    assert digest(torch.tensor([-0.0])) != digest(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="needs float32"):
        digest(vector.double())


def test_sketches_are_linear_and_keep_distances():
    x = torch.randn(4, 100_000, generator=generator(1))
    before = x.clone()
    made = sketch(x, seed=5, size=256)
    assert torch.equal(x, before)
    assert made.shape == (4, 256)
    assert made.dtype == torch.float64
    # single precision within a block: equal up to ROUNDING relative to the norm
    assert torch.allclose(made[2], sketch(x[2], seed=5, size=256), atol=ROUNDING * 316)
    total = sketch(x.double().sum(0), seed=5, size=256)
    assert torch.allclose(made.sum(0), total, atol=4 * ROUNDING * 316)
    assert torch.allclose(made.norm(dim=1), x.double().norm(dim=1), rtol=0.25)
    assert not torch.equal(made, sketch(x, seed=6, size=256))
    noisy = sketch(x[0] + 1e-2 * x[1], seed=5, size=256)
    assert sketches_agree(made[0], noisy, tolerance=0.05)
    assert not sketches_agree(made[0], made[1], tolerance=0.05)
    assert not sketches_agree(made[0], -100 * made[0], tolerance=0.99)
    assert not sketches_agree(made[0] * torch.nan, made[0], tolerance=0.05)
    with pytest.raises(ValueError, match="must be in"):
        sketches_agree(made[0], made[1], tolerance=1.5)
    with pytest.raises(ValueError, match="at least 1"):
        sketch(x, seed=5, size=0)


def test_a_false_sum_is_noticed():
    files = torch.randn(20, 3000, generator=generator(3))
    made = sketch(files, seed=9)
    total = files.sum(0)
    assert check_sum(total, made, seed=9)
    assert check_sum(total, list(made), seed=9)
    assert not check_sum(total + 1e-2, made, seed=9)
    assert not check_sum(files[:19].sum(0), made, seed=9)
    assert not check_sum(total * torch.nan, made, seed=9)
    one = total.clone()
    one[17] += 1.0
    assert not check_sum(one, made, seed=9)


def test_who_knows_the_seed_can_hide_in_the_null_space():
    files = torch.randn(5, 300, generator=generator(3))
    made = sketch(files, seed=9)
    signs = sketch(torch.eye(300), seed=9)
    hidden = torch.linalg.svd(signs.T)[2][-1].float()
    false = files.sum(0) + 50 * hidden
    assert check_sum(false, made, seed=9)
    assert not check_sum(false, sketch(files, seed=10), seed=10)


def test_an_error_in_two_coordinates_shows_in_every_sketch():
    """Random signs miss it in one direction of two; Gaussian ones never do."""
    files = torch.randn(5, 3000, generator=generator(3))
    false = files.sum(0)
    false[0] += 1.0
    false[1] += 1.0
    for seed in range(50):
        assert not check_sum(false, sketch(files, seed=seed, size=8), seed=seed)
