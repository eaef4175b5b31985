"""One record per attack: all that the rest of the system knows about it.

An attack is one function ``(honest, *, n, f, **settings) -> (f, d)``. One with memory also takes
``state`` (None at first) and returns ``Crafted``; what it remembers is a value, never modified. One
that takes ``layers`` is told the names and shapes of the model's tensors, one that takes ``model``
the global model (d,) that updates are subtracted from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedrobust import docstrings
from fedrobust.spec import parameters

KNOWLEDGE = ("own", "colluding", "omniscient")


@dataclass(frozen=True)
class Crafted:
    """What the attackers send in one round.

    Attributes
    ----------
    updates
        (f, d).
    state
        What the attack remembers for the next round: None, or a table name -> float32 tensor. In a
        run it lives in the memory of the node that crafts.
    notes
        What the attack says of its choice, for the round's row: names -> numbers or words.
    """

    updates: Tensor
    state: dict[str, Tensor] | None = None
    notes: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack on updates.

    Attributes
    ----------
    name
        Under which specs and tables know it.
    craft
        The function: ``(honest, *, n, f, ...) -> Tensor | Crafted``.
    knowledge
        What its paper lets it see: "own", "colluding" or "omniscient".
    spread
        Whether it needs several honest updates: from one alone it learns nothing.
    finite
        Whether it sends finite values only; the others are crash faults.
    trains
        Whether it trains a model of its own, which the malicious client hands to it.
    """

    name: str
    craft: Callable[..., Any]
    knowledge: str = "omniscient"
    spread: bool = False
    finite: bool = True
    trains: bool = False

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function."""
        return parameters(self.craft)

    @property
    def random(self) -> bool:
        """Whether it draws from a generator."""
        return "generator" in self.settings

    @property
    def asks_the_rule(self) -> bool:
        """Whether it tunes itself against the defence."""
        return "rule" in self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """What it cannot do without of the model: "layers", "model"."""
        given = self.settings
        return tuple(
            k for k in ("layers", "model") if k in given and given[k].default is inspect._empty
        )

    @property
    def remembers(self) -> bool:
        """Whether it keeps anything from round to round: a state, or the last aggregate."""
        return "state" in self.settings or "previous" in self.settings

    @property
    def paper(self) -> str:
        """The paper and the place in it, from the docstring."""
        return docstrings.paper(self.craft)

    @property
    def what(self) -> str:
        """The first sentence of the docstring."""
        return docstrings.summary(self.craft)
