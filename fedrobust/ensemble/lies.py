"""What Byzantine members of an ensemble answer to do most harm, computed for the vote in force."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.ensemble.votes import one_hot, scores
from fedrobust.experiment.schema import Experiment
from fedrobust.spec import Spec

SURE = 1e3  # a logit this far above the others is a probability of exactly 1 in float32
RIVALS = 3  # classes that are tried against a rule
SHARES = (1.0, 0.5, 0.25, 0.125)  # of the way from the honest mean to full confidence


def spelled_out(experiment: Experiment) -> dict[str, Spec]:
    """Return name -> vote of each vote of an ensemble; "robust" aggregates with its rule."""
    logits = experiment.ensemble.answer == "logits"
    robust = {"name": "robust", "rule": experiment.rule, "logits": logits}
    return {name: robust if name == "robust" else name for name in experiment.ensemble.votes}


def runner_up(answer: Tensor, *, what: str) -> Tensor:
    """Answer the second class of one's own prediction, with full confidence.

    Parameters
    ----------
    answer
        The honest answer, (B, C) probabilities or logits.
    what
        "probabilities" or "logits".
    """
    second = answer.topk(2, dim=1).indices[:, 1]
    return _certain(second, answer.shape[1], what)


def best_vote(answers: Tensor, labels: Tensor, vote: Spec, *, f: int, what: str) -> Tensor:
    """Return the answer with which f colluders make a vote wrong wherever they can, (B, C).

    Parameters
    ----------
    answers
        What the honest members answer, (h, B, C): probabilities, logits or one-hot labels.
    labels
        The true classes (B,) int64.
    vote
        As for ``combine``.
    what
        "probabilities", "logits" or "labels".

    Notes
    -----
    All of them answer the same. For "soft", "hard", "weighted" and "mean_logit" no other answers
    make more images wrong: a member moves the difference of a class's score and the true one's by 1
    at most (without bound for mean_logit), full confidence in one class moves it by as much, and
    the class with the highest honest score besides the true one needs the least, the lowest of
    equals winning ties. For "robust" the answers are searched: three rivals, at several shares of
    the way from the honest mean, and for each image the honest answer that is most wrong.
    """
    name = vote if isinstance(vote, str) else vote["name"]
    classes = answers.shape[2]
    if name != "robust":
        totals = _without(scores(answers, vote), labels)
        target = totals.argmax(1)  # the first of equal scores, which a tie goes to
        if name != "mean_logit":
            return _certain(target, classes, what)
        # Whatever the honest sum is, this is more; float32 holds it.
        far = 2 * answers.abs().sum((0, 2)).clamp_min(1.0)
        return one_hot(target[None], classes=classes)[0] * far[:, None]
    return _against_a_rule(answers, labels, vote, f=f, what=what)


def margin(answers: Tensor, labels: Tensor, vote: Spec) -> Tensor:
    """Return the true class's score less the highest other one, (B,)."""
    found = scores(answers, vote)
    true = found.gather(1, labels[:, None])[:, 0]
    return true - _without(found, labels).amax(1)


def _against_a_rule(answers: Tensor, labels: Tensor, vote: Spec, *, f: int, what: str) -> Tensor:
    """Try answers on the vote itself, and keep for each image the one of the least margin."""
    answers = answers.nan_to_num(0.0)  # of members that broke
    h, count, classes = answers.shape
    mean = answers.mean(0)
    rivals = _without(mean, labels).topk(min(RIVALS, classes - 1), dim=1).indices.T
    ends = [_certain(rival, classes, what) for rival in rivals]
    tried = [mean + share * (end - mean) for end in ends for share in SHARES]
    # Rules that choose members choose among honest ones: the most wrong of them, sent f times more.
    own = _without(answers.flatten(0, 1), labels.repeat(h)).amax(1).view(h, count)
    own = own - answers.gather(2, labels.expand(h, count)[..., None])[..., 0]
    tried.append(answers[own.argmax(0), torch.arange(count)])
    margins = [margin(torch.cat([answers, one.expand(f, -1, -1)]), labels, vote) for one in tried]
    best = torch.stack(margins).argmin(0)  # the first of equals: full confidence
    return torch.stack(tried)[best, torch.arange(count)]


def _certain(target: Tensor, classes: int, what: str) -> Tensor:
    """Return full confidence in classes (B,), as members answer it: (B, C)."""
    rows = one_hot(target[None], classes=classes)[0]
    return rows * SURE if what == "logits" else rows


def _without(values: Tensor, labels: Tensor) -> Tensor:
    """Return scores (B, C) in which the true class is out of the running."""
    # Counted votes are whole numbers, which have no infinity.
    return values.double().scatter(1, labels[:, None], -torch.inf)
