"""What a ``RobustStrategy`` is told: ranges of its settings, and how much each node counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fedrobust.flower.chosen_rule import ChosenRule
from fedrobust.flower.reply_metrics import claim_of


def counted(
    chosen: ChosenRule, nodes: Sequence[int], clients: Sequence[int], read: Sequence[Any]
) -> Tensor | None:
    """Say how much each node counts, by the operator or by what it claims."""
    return chosen.weigh(nodes, [claim_of(reply.claims) for reply in read])


def check_settings(
    lr: float, momentum: float, deadline: float | None, min_replies: int, largest: float
) -> None:
    """Raise a ValueError for values out of range."""
    # Each line says what must hold, not what must not: so NaN fails every one of them.
    wrong = [
        text
        for holds, text in (
            (lr > 0, f"server_lr needs a positive number, got {lr}"),
            (0 <= momentum < 1, f"server_momentum needs a value in [0, 1), got {momentum}"),
            (deadline is None or deadline > 0, f"deadline needs positive seconds, got {deadline}"),
            (min_replies >= 1, f"min_replies needs at least 1, got {min_replies}"),
            (largest > 0, f"largest needs a positive number, got {largest}"),
        )
        if not holds
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
