"""Checks of rounds that train differently, and of weights by claimed losses."""

from __future__ import annotations

from collections.abc import Iterator

from fedrobust.experiment.schema import Experiment


def phases(e: Experiment) -> Iterator[str]:
    """Check the rounds without labels, and those on labelled images only."""
    s, loss = e.semi, e.adversarial.loss["name"]
    if s.mode == "none" and (s.labelled < 1 or s.fraction or s.teacher_rounds):
        yield "semi.labelled, semi.fraction and semi.teacher_rounds need a semi.mode"
    if s.mode == "pseudo" and not s.teacher_rounds:
        yield "semi.mode = 'pseudo' needs teacher_rounds"
    if s.mode == "trades" and loss not in ("trades", "mart"):
        yield f"semi.mode = 'trades' needs the loss trades or mart, got {loss}"
    if (before := e.pretrain.rounds + s.teacher_rounds) >= e.rounds:
        yield (
            f"pretrain.rounds + semi.teacher_rounds need to be below rounds = {e.rounds}, "
            f"got {before}"
        )


def slack(e: Experiment) -> Iterator[str]:
    """Check SFAT's weights, which follow claimed losses."""
    settings = e.adversarial.federated
    if settings.slack_top > e.clients:
        yield (f"adversarial.federated.slack_top needs 1..{e.clients}, got {settings.slack_top}")
    if settings.slack and e.defence != "mean":
        yield (
            "adversarial.federated.slack weighs by claimed losses: it needs the rule mean, got"
            f" {e.defence}"
        )
