"""The calling convention of the krum library: ``aggregate(gradients, *, n, f)``.

Its own Krum is the variant "plain" here, that of its May 2026 snapshot "epfl".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrobust import aggregation
from fedrobust.aggregation import RULES
from fedrobust.spec import parameters


def aggregator(name: str, **settings: Any) -> Callable[..., Tensor]:
    """Return a rule of ours behind krum's signature.

    The function takes a list of gradients or one (n, d) tensor, ``n`` and ``f`` by keyword, and
    ``out``, a vector to write into. ``n`` must be the number of gradients.

    Raises
    ------
    SpecError
        For an unknown rule or setting, here rather than at the first call.
    """
    # f is not known yet, and 0 is in every rule's range.
    aggregation.build({"name": name, **settings, **({"f": 0} if _takes_f(name) else {})})

    def aggregate(
        gradients: Sequence[Tensor] | Tensor, out: Tensor | None = None, *, n: int, f: int
    ) -> Tensor:
        rows = gradients if isinstance(gradients, Tensor) else torch.stack(list(gradients))
        if len(rows) != n:
            raise ValueError(f"{name} was told n={n} and got {len(rows)} gradients")
        chosen = {"f": f} if _takes_f(name) else {}
        result = aggregation.aggregate(rows, {"name": name, **settings, **chosen})
        return result if out is None else out.copy_(result)

    return aggregate


def _takes_f(name: str) -> bool:
    return name in RULES and "f" in parameters(RULES[name])
