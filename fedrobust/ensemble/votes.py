"""Votes over the predictions of several members, some of which may be Byzantine.

A vote is a function of the answers (members, B, C) and of which of them count, (members, B), to
scores (B, C); the label is the class of the highest score, the lowest one in a tie.

References
----------
Andreina et al., On the Robustness of Distributed Machine Learning against Transfer Attacks, AAAI
2025, released code (soft, hard, weighted); the group's follow-up, arXiv 2511.13654 (mean logit).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedrobust.spec import Spec, resolve

NO_LABEL = -1
_SLACK = 1e-6  # rounding of an honest softmax or average


def soft(answers: Tensor, valid: Tensor) -> Tensor:
    """Sum the members' probabilities."""
    return _silence(answers, valid).sum(0)


def hard(answers: Tensor, valid: Tensor) -> Tensor:
    """Count the members' top classes."""
    return (_top(answers) * valid[..., None]).sum(0)


def weighted(answers: Tensor, valid: Tensor) -> Tensor:
    """Count the members' top classes, each with the probability that its member gives it."""
    answers = _silence(answers, valid)
    return (_top(answers) * answers).sum(0)


def mean_logit(answers: Tensor, valid: Tensor) -> Tensor:
    """Average the members' logits; one member with huge logits decides alone."""
    return _silence(answers, valid).sum(0) / valid.sum(0).clamp_min(1)[:, None]


def robust(
    answers: Tensor,
    valid: Tensor,
    *,
    rule: Spec,
    logits: bool = False,
    together: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Aggregate the members' rows with a rule of ``fedrobust.aggregation``.

    Parameters
    ----------
    answers, valid
        Answers and which of them count. One that does not is replaced by a row that favours no
        class, so that it counts among the rule's f and not against its least number of members:
        a member cannot stop a vote by sending NaN.
    rule
        A spec of ``fedrobust.aggregation.RULES``; n is the number of members.
    logits
        The answers are logits, bounded by finiteness alone.
    together
        One aggregation over the whole query (rows of length B * C), instead of one for each image.
        Faster; rules that choose members then choose them for all images, and an image's label
        depends on its batch.
    generator
        For rules that draw.

    Raises
    ------
    ValueError
        If the rule is unknown or has too few members.
    """
    from fedrobust.aggregation import aggregate  # rules load numba: only a robust vote waits for it

    neutral = 0.0 if logits else 1 / answers.shape[2]
    rows = answers.masked_fill(~valid[..., None], neutral)
    if together:
        flat = aggregate(rows.flatten(1), rule, generator=generator)
        return flat.reshape(answers.shape[1:])
    columns = [aggregate(rows[:, i], rule, generator=generator) for i in range(rows.shape[1])]
    return torch.stack(columns) if columns else answers.new_empty(answers.shape[1:])


VOTES: dict[str, Callable[..., Tensor]] = {
    "soft": soft,
    "hard": hard,
    "weighted": weighted,
    "mean_logit": mean_logit,
    "robust": robust,
}
_SUPPLIED = ("generator",)


def combine(
    probabilities: Tensor, vote: Spec = "soft", *, generator: torch.Generator | None = None
) -> Tensor:
    """Combine the members' answers into one label per image.

    Parameters
    ----------
    probabilities
        (members, B, C), one row of class probabilities per member and image; logits for
        ``mean_logit`` and for ``robust`` with ``logits``. A member that did not answer is simply
        no row. An answer with NaN or Inf, or a probability outside [0, 1], loses its vote on that
        image; the other images of that member still count.
    vote
        A name of ``VOTES`` or ``{"name": "robust", "rule": {"name": "krum", "f": 1}}``.
    generator
        For robust rules that draw.

    Returns
    -------
    Tensor
        int64 (B,): the class of the highest score, the lowest in a tie; -1 where no answer counts.

    Raises
    ------
    ValueError
        If the shape is another, nobody answered, or the vote is unknown.
    """
    totals, valid = _tally(probabilities, vote, generator)
    labels = totals.argmax(1)  # the first of equal scores
    return labels.masked_fill(~valid.any(0), NO_LABEL)


def scores(
    probabilities: Tensor, vote: Spec = "soft", *, generator: torch.Generator | None = None
) -> Tensor:
    """Return the scores (B, C) whose highest decides, as in ``combine``; float64 but for rules."""
    return _tally(probabilities, vote, generator)[0]


def one_hot(labels: Tensor, *, classes: int) -> Tensor:
    """Turn members' labels (members, B) into answers (members, B, C) for a vote.

    A label outside 0 .. classes - 1 becomes NaN, and so loses its vote.

    Raises
    ------
    ValueError
        If the labels are no integers of shape (members, B).
    """
    if labels.dim() != 2 or labels.is_floating_point() or labels.is_complex():
        got = f"{labels.dtype} {tuple(labels.shape)}"
        raise ValueError(f"one_hot needs integer labels (members, B), got {got}")
    known = (labels >= 0) & (labels < classes)
    # one_hot refuses labels that are none: they stand as 0 for a moment, then become NaN.
    rows = torch.nn.functional.one_hot(labels.long().masked_fill(~known, 0), classes).float()
    return rows.masked_fill(~known[..., None], torch.nan)


def _tally(answers: Tensor, vote: Spec, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    function, settings = resolve(VOTES, vote, kind="vote", supplied=_SUPPLIED)
    if not answers.is_floating_point() or answers.dim() != 3 or not answers.shape[2]:
        got = f"{answers.dtype} {tuple(answers.shape)}"
        raise ValueError(f"combine needs float answers (members, B, C), got {got}")
    if not len(answers):
        raise ValueError("combine needs at least 1 member, got 0")
    answers = answers.detach()
    valid = torch.isfinite(answers).all(2)
    # Logits have no bounds but finiteness.
    if function is not mean_logit and not settings.get("logits", False):
        valid &= ((answers >= -_SLACK) & (answers <= 1 + _SLACK)).all(2)
    if function is robust:
        return function(answers, valid, generator=generator, **settings), valid
    # float64: in float32 the order of the members would decide ties by rounding.
    return function(answers.double(), valid, **settings), valid


def _silence(answers: Tensor, valid: Tensor) -> Tensor:
    return answers.masked_fill(~valid[..., None], 0.0)


def _top(answers: Tensor) -> Tensor:
    top = answers.nan_to_num(-torch.inf).argmax(2)
    return torch.nn.functional.one_hot(top, answers.shape[2])
