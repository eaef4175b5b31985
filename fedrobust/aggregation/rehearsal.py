"""A rule tried before the start: settings that it will refuse are refused where they enter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedrobust.aggregation.aggregator import build
from fedrobust.aggregation.tables import is_built_in
from fedrobust.failures import Refusal
from fedrobust.seeds import generator
from fedrobust.spec import Spec, SpecError, split

WIDTH = 16  # coordinates of the invented updates: no setting of a rule depends on the number


def rehearse(
    spec: Spec, *, n: int, pre: Sequence[Spec] = (), weights: Tensor | None = None
) -> None:
    """Aggregate n invented updates once, nearly alike, as a first round without an attack.

    Only rules of ours are tried: a user's may count its calls. Its mistakes appear in round 1,
    under its name.

    Raises
    ------
    SpecError
        For settings out of range, alone or for this n: a bound of -1, c f >= n; and for weights
        that the rule does not bear.
    """
    if not is_built_in(split(spec)[0]):
        return
    source = generator(0, "rehearsal")
    centre = torch.ones(WIDTH)
    updates = centre + 0.1 * torch.randn(n, WIDTH, generator=source)
    server = {
        "root": lambda: centre,
        "loss": lambda: lambda step: -float(step.to(centre) @ centre),
        "layers": lambda: (("weight", (WIDTH // 2, 2)),),
        "model": lambda: centre,
    }
    try:
        build(spec, pre=pre).apply(updates, None, source, server=server, weights=weights)
    except (Refusal, TypeError) as error:
        raise SpecError(str(error)) from error
