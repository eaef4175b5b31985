"""The honest updates that an attacker cannot see, imagined from those that it can."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.attacks.moments import own_blocks


def imagined(view: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Return honest updates as they may be, (rows, d), from the few that an attacker has.

    Every value is one of the view's values in that coordinate, drawn by itself, its offset from
    their mean widened by sqrt(h / (h - 1)): mean and spread of each coordinate, and the usual
    distance of two rows, are those that the view lets one expect.

    Parameters
    ----------
    view
        (h, d).
    """
    h = len(view)
    widened = (h / (h - 1)) ** 0.5 if h > 1 else 1.0
    found = view.new_empty(rows, view.shape[1])
    for columns, block in own_blocks(view):
        centre = block.mean(0)
        chosen = torch.randint(h, (rows, block.shape[1]), generator=generator)
        offsets = block.sub_(centre).gather(0, chosen.to(block.device)).mul_(widened)
        found[:, columns] = offsets.add_(centre).to(found)
    return found
