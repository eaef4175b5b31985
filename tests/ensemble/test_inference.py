"""Votes: hand-made cases where they differ, properties over the table, Byzantine members."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fedrobust.adversarial import gradient_similarity, pgd, predict
from fedrobust.ensemble import VOTES, Ensemble, combine, one_hot, scores
from fedrobust.ensemble import answers as ask

PLAIN = ["soft", "hard", "weighted", "mean_logit"]


def answers(*rows: list[float]) -> Tensor:
    """One image: members' rows."""
    return torch.tensor(rows)[:, None]


def random(members: int, count: int = 200, classes: int = 7, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(members, count, classes, generator=generator).mul(2).softmax(2)


def test_table_is_whole() -> None:
    assert sorted(VOTES) == sorted([*PLAIN, "robust"])


def test_soft_and_hard_differ() -> None:
    votes = answers([0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [0.9, 0.1, 0.0])
    assert combine(votes).tolist() == [0]  # 1.7 against 1.3
    assert combine(votes, "hard").tolist() == [1]  # two to one
    assert combine(votes, "weighted").tolist() == [1]  # 1.2 against 0.9


def test_all_four_differ() -> None:
    votes = answers(
        [0.34, 0.33, 0.33, 0.0],
        [0.34, 0.33, 0.33, 0.0],
        [0.02, 0.03, 0.0, 0.95],
        [0, 0.36, 0.64, 0],
    )
    assert combine(votes, "hard").tolist() == [0]
    assert combine(votes, "weighted").tolist() == [3]
    assert combine(votes, "soft").tolist() == [2]
    logits = answers([0.0, 9.0, 1.0, 1.0], [2.0, 1.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0])
    assert combine(logits, "mean_logit").tolist() == [1]
    assert combine(logits.softmax(2), "hard").tolist() == [0]


def test_ties_go_to_the_lowest_class() -> None:
    votes = answers([0.0, 0.0, 1.0], [0.0, 1.0, 0.0])
    assert [combine(votes, vote).tolist() for vote in PLAIN] == [[1]] * 4
    assert combine(answers([0.5, 0.5]), "hard").tolist() == [0]


@pytest.mark.parametrize("vote", PLAIN)
def test_one_member_is_the_model(vote: str) -> None:
    rows = random(1)
    assert torch.equal(combine(rows, vote), rows[0].argmax(1))
    assert combine(rows, vote).dtype == torch.int64


@pytest.mark.parametrize("vote", PLAIN)
@pytest.mark.parametrize("seed", range(5))
def test_order_of_members_does_not_matter(vote: str, seed: int) -> None:
    rows = random(7, seed=seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(combine(rows, vote), combine(rows[order], vote))


@pytest.mark.parametrize("vote", PLAIN)
def test_input_untouched_and_batch_invariant(vote: str) -> None:
    rows = random(5)
    rows[2, 7] = math.nan
    before = rows.clone()
    together = combine(rows, vote)
    assert torch.equal(rows.nan_to_num(9), before.nan_to_num(9))
    assert torch.equal(together, torch.cat([combine(part, vote) for part in rows.split(13, dim=1)]))


def literal(rows: Tensor, vote: str) -> list[int]:
    """Slow and plain, image by image."""
    labels = []
    for image in range(rows.shape[1]):
        total = [0.0] * rows.shape[2]
        for member in range(rows.shape[0]):
            row = rows[member, image].double().tolist()
            top = row.index(max(row))
            if vote == "soft":
                total = [a + b for a, b in zip(total, row, strict=True)]
            else:
                total[top] += 1.0 if vote == "hard" else row[top]
        labels.append(total.index(max(total)))
    return labels


@pytest.mark.parametrize("vote", ["soft", "hard", "weighted"])
@pytest.mark.parametrize("seed", range(3))
def test_literal_versions(vote: str, seed: int) -> None:
    rows = random(6, seed=seed)
    assert combine(rows, vote).tolist() == literal(rows, vote)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.5, 1.5, 1e30])
@pytest.mark.parametrize("vote", ["soft", "hard", "weighted"])
def test_bad_answers_lose_their_vote(vote: str, bad: float) -> None:
    rows = random(5)
    attacked = torch.cat([rows, random(1, seed=9)])
    attacked[5, :, 3] = bad
    assert torch.equal(combine(attacked, vote), combine(rows, vote))
    partly = torch.cat([rows, random(1, seed=9)])
    partly[5, :50, 3] = bad
    assert torch.equal(combine(partly, vote)[:50], combine(rows, vote)[:50])
    honest = torch.cat([rows, random(1, seed=9)])
    assert torch.equal(combine(partly, vote)[50:], combine(honest, vote)[50:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_lose_their_vote_and_large_ones_do_not(bad: float) -> None:
    rows = torch.randn(4, 30, 5, generator=torch.Generator().manual_seed(0))
    attacked = torch.cat([rows, rows[:1]])
    attacked[4, :, 2] = bad
    assert torch.equal(combine(attacked, "mean_logit"), combine(rows, "mean_logit"))
    attacked[4] = 0
    attacked[4, :, 2] = 1e30  # the mean is what one member makes of it
    assert combine(attacked, "mean_logit").tolist() == [2] * 30


def test_nobody_counts_is_no_label() -> None:
    rows = random(3)
    rows[:, 4] = math.nan
    for vote in PLAIN:
        labels = combine(rows, vote)
        assert labels[4] == -1 and int((labels == -1).sum()) == 1


def test_rounding_of_an_honest_softmax_keeps_its_vote() -> None:
    votes = answers([1.0000001, 0.0], [0.4, 0.6])
    assert combine(votes).tolist() == [0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.rand(3, 4), r"float answers \(members, B, C\)"),
        (torch.rand(3, 4, 5, 6), r"float answers"),
        (torch.ones(3, 4, 5).long(), "float answers"),
        (torch.rand(3, 4, 0), "float answers"),
        (torch.rand(0, 4, 5), "at least 1 member, got 0"),
    ],
)
def test_other_shapes_raise(rows: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine(rows)


def test_specs_are_checked() -> None:
    with pytest.raises(ValueError, match="did you mean 'soft'"):
        combine(random(3), "sofd")
    with pytest.raises(ValueError, match="needs the parameter 'rule'"):
        combine(random(3), "robust")
    with pytest.raises(ValueError, match="has no parameter"):
        combine(random(3), {"name": "soft", "rule": "mean"})
    assert combine(torch.rand(3, 0, 5)).shape == (0,)


def test_labels_alone_can_vote() -> None:
    labels = torch.tensor([[0, 1, 9], [2, 1, 0], [2, -5, 0]])
    rows = one_hot(labels, classes=3)
    assert combine(rows, "hard").tolist() == [2, 1, 0]
    assert bool(rows[0, 2].isnan().all()) and bool(rows[2, 1].isnan().all())
    with pytest.raises(ValueError, match="integer labels"):
        one_hot(torch.rand(2, 2), classes=3)


def test_scores_decide() -> None:
    rows = random(4)
    assert torch.equal(scores(rows).argmax(1), combine(rows))
    torch.testing.assert_close(scores(rows), rows.double().sum(0))


def test_mean_logit_averages_over_those_that_count() -> None:
    rows = answers([1.0, 3.0], [3.0, 5.0], [math.nan, 0.0])
    assert scores(rows, "mean_logit").tolist() == [[2.0, 4.0]]


def robust_vote(rule: object, **settings: object) -> dict[str, object]:
    pytest.importorskip("fedrobust.aggregation")
    from fedrobust import aggregation

    if not hasattr(aggregation, "aggregate"):
        pytest.skip("needs the rules")
    return {"name": "robust", "rule": rule, **settings}


def test_robust_vote_survives_attackers_that_break_the_sum() -> None:
    rule = robust_vote({"name": "trimmed_mean", "f": 2})
    truth = torch.arange(50) % 4
    honest = torch.full((5, 50, 4), 0.2)
    honest.scatter_(2, truth.expand(5, 50)[..., None], 0.4)
    attackers = torch.zeros(2, 50, 4)
    attackers.scatter_(2, ((truth + 1) % 4).expand(2, 50)[..., None], 1.0)
    rows = torch.cat([honest, attackers])
    assert bool((combine(rows) != truth).all())
    assert torch.equal(combine(rows, rule), truth)


@pytest.mark.parametrize("together", [False, True])
def test_robust_vote_is_the_rule_over_members_rows(together: bool) -> None:
    spec = robust_vote("median", together=together)
    rows = random(5, count=20)
    expected = rows.median(0).values
    torch.testing.assert_close(scores(rows, spec), expected)
    assert torch.equal(combine(rows, spec), expected.argmax(1))


def test_krum_picks_a_member_per_image() -> None:
    spec = robust_vote({"name": "krum", "f": 1})
    rows = random(5, count=10)
    far = rows.clone()
    far[4] = one_hot(torch.zeros(1, 10).long(), classes=7)[0]
    picked = scores(far, spec)
    same = (picked[None] == far).all(2)
    assert bool(same.any(0).all())
    assert torch.equal(combine(far[:, 3:4], spec), combine(far, spec)[3:4])


def test_nan_cannot_stop_a_robust_vote() -> None:
    spec = robust_vote({"name": "krum", "f": 1})
    rows = random(5, count=10)
    rows[0] = math.nan
    labels = combine(rows, spec)
    assert bool((labels >= 0).all())
    neutral = answers([0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [math.nan, 0.0, 0.0])
    torch.testing.assert_close(
        scores(neutral, robust_vote("median")), torch.tensor([[0.6, 0.3, 0.1]])
    )
    with pytest.raises(ValueError, match="krum"):
        combine(random(3, count=2), spec)


def test_robust_vote_over_logits() -> None:
    spec = robust_vote("median", logits=True)
    rows = torch.randn(5, 12, 4, generator=torch.Generator().manual_seed(1)) * 9
    rows[0] = 1e30
    assert torch.equal(combine(rows, spec), rows.median(0).values.argmax(1))


def members(count: int = 3) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [
            nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 4))
            for _ in range(count)
        ]


@pytest.mark.parametrize("vote", ["soft", "mean_logit"])
def test_ensemble_is_the_vote_as_one_model(vote: str) -> None:
    group, x = members(), torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    rows = ask(group, x, batch_size=7, logits=vote == "mean_logit")
    assert rows.shape == (3, 50, 4) and all(member.training for member in group)
    system = Ensemble(group, vote=vote)
    assert torch.equal(predict(system, x), combine(rows, vote))
    moved = pgd(system, x, combine(rows, vote), eps=0.2, step_size=0.05, steps=5)
    assert int((predict(system, moved) != combine(rows, vote)).sum()) > 0
    similar = gradient_similarity(system, system, x, combine(rows, vote))
    torch.testing.assert_close(similar, torch.ones(50), rtol=0, atol=1e-6)


def test_ensemble_of_one_and_errors() -> None:
    group, x = members(1), torch.rand(5, 6)
    group[0].eval()
    for vote in ("soft", "mean_logit"):
        torch.testing.assert_close(Ensemble(group, vote=vote)(x).softmax(1), group[0](x).softmax(1))
    torch.testing.assert_close(ask(group, x).sum(2), torch.ones(1, 5))
    with pytest.raises(ValueError, match="no gradient of the vote 'hard'"):
        Ensemble(group, vote="hard")
    with pytest.raises(ValueError, match="at least 1 member, got 0"):
        Ensemble([])
    with pytest.raises(ValueError, match="needs members and images, got 1 and 0"):
        ask(group, x[:0])
