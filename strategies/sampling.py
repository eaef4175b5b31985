"""Which nodes a strategy asks in a round, and the place that each has among the clients."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO

import torch
from flwr.common import log
from flwr.serverapp import Grid

from fedrobust.seeds import generator

POLL = 1.0  # seconds between two looks for new nodes


@dataclass(kw_only=True)
class Sampling:
    """Ask a share of the connected nodes.

    Attributes
    ----------
    fraction
        Of the connected nodes, in (0, 1]; at least one is asked.
    available
        How many nodes must be connected before a round begins.
    deadline
        Seconds to wait for them; None waits as long as it takes, as Flower's own strategies do.
    seed
        Who is asked follows from it.
    check
        Raises where so many updates are too few for the rule; asked once, in the first round: a
        rule that can never run is an error, not a model that never learns.
    places
        Node id -> its place, in the order in which the nodes appeared. Rules that remember each
        client's past count clients by places.
    """

    fraction: float
    available: int
    deadline: float | None
    seed: int
    check: Callable[[int], None]
    places: dict[int, int] = field(default_factory=dict)
    _checked: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction_train needs a share in (0, 1], got {self.fraction}")
        if self.available < 1:
            raise ValueError(f"min_available_nodes needs at least 1, got {self.available}")

    def __call__(self, server_round: int, grid: Grid) -> dict[int, int]:
        """Return the nodes of a round, each with its place.

        Raises
        ------
        TimeoutError
            If too few nodes are connected before the deadline.
        ValueError
            In the first round, if fewer nodes are asked than the rule needs.
        """
        # The SuperLink lists nodes in any order, and who is drawn goes by the place in this list.
        nodes = sorted(self._connected(grid))
        for node in nodes:
            self.places.setdefault(node, len(self.places))
        count = max(1, round(self.fraction * len(nodes)))
        source = generator(self.seed, "participation", round=server_round)
        chosen = torch.randperm(len(nodes), generator=source)[:count].tolist()
        asked = [nodes[i] for i in sorted(chosen)]
        if not self._checked:
            self.check(len(asked))
            self._checked = True
        return {node: self.places[node] for node in asked}

    def _connected(self, grid: Grid) -> list[int]:
        end = None if self.deadline is None else time.monotonic() + self.deadline
        while len(nodes := list(grid.get_node_ids())) < self.available:
            if end is not None and time.monotonic() > end:
                text = f"min_available_nodes asks for {self.available}, {len(nodes)} are connected"
                raise TimeoutError(text)
            log(INFO, "waiting for nodes: %s of %s", len(nodes), self.available)
            time.sleep(POLL)
        return nodes
