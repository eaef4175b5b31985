"""What one aggregation yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """One aggregation.

    Attributes
    ----------
    aggregate
        (d,).
    state
        What the rule remembers for the next round: None, a tensor, or a table of tensors.
    weights
        How much each update counted, (n,), 0 for the rejected; None where a rule takes values
        apart from their updates.
    """

    aggregate: Tensor
    state: Any
    weights: Tensor | None
