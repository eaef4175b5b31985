"""BatchNorm's running statistics on the server: aggregated apart from the updates, by a rule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.aggregation import aggregate
from fedrobust.experiment.load import resolve_f
from fedrobust.experiment.schema import Experiment
from fedrobust.experiment.validate import rule_needs_f
from fedrobust.flower.screening import Reply
from fedrobust.spec import parse_spec

RULE = "median"  # a claim of one client must not become the statistics of all


def averaged(experiment: Experiment, before: Tensor, replies: Sequence[Reply]) -> Tensor:
    """Return the aggregated statistics (b,); those from before where nobody sent any.

    Under the policy "local" they serve the server's evaluation alone. The paper evaluates with one
    worker's; one worker may be Byzantine.
    """
    rows = [reply.statistics for reply in replies if reply.statistics is not None]
    if not rows:
        return before
    spec = parse_spec(experiment.batchnorm.get("rule", RULE))
    spec = resolve_f(spec, rule_needs_f(spec["name"]), experiment.byzantine)
    return aggregate(torch.stack(rows), spec)


def statistics_down(experiment: Experiment, statistics: Tensor | None) -> Tensor | None:
    """Return what clients are sent: nothing where they keep their own."""
    return None if experiment.batchnorm["name"] == "local" else statistics
