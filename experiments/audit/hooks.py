"""Seams into an app whose code stays as it is: what it makes is noted, what it starts is defended.

Everything here changes classes of Flower for the life of the process: a cell's own, which ends.
"""

from __future__ import annotations

from typing import Any

from flwr.server import History
from flwr.serverapp.strategy import Result, Strategy

from fedrobust.flower import Robust
from fedrobust.flower.robust_wrapper import PRIVATE, ROBUST


class Seen:
    """What the app's server made.

    Attributes
    ----------
    results, histories
        Every ``Result`` of the new API and ``History`` of the older one, the last last.
    strategies
        One entry a started strategy: its class, whether it has a ``start`` of its own, whether it
        is robust or private by itself.
    """

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.histories: list[Any] = []
        self.strategies: list[dict[str, Any]] = []
        self.robust: list[Robust] = []
        self.defending = False  # while the audit's own Robust is made


def watch(rule: str | None, seed: int) -> Seen:
    """Note what the server makes from now on; put a rule in front of every started strategy.

    Parameters
    ----------
    rule
        None: nothing is defended.
    """
    seen = Seen()
    _note_instances(Result, seen.results)
    _note_instances(History, seen.histories)

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        made: Any = object.__new__(cls)
        if not seen.defending:  # an instance attribute shadows any start, own ones included
            vars(made)["start"] = _Start(made, seen, rule, seed)
        return made

    # Never deleted again: without a __new__ of its own, object's would refuse every argument.
    Strategy.__new__ = new  # type: ignore[method-assign, assignment]
    return seen


def _note_instances(kind: type, into: list[Any]) -> None:
    original = kind.__init__  # type: ignore[misc]

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        into.append(self)

    kind.__init__ = noting  # type: ignore[misc]


class _Start:
    """The ``start`` of one strategy: noted, and led by ``Robust`` where there is a rule."""

    def __init__(self, strategy: Strategy, seen: Seen, rule: str | None, seed: int) -> None:
        self._strategy, self._seen, self._rule, self._seed = strategy, seen, rule, seed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        strategy = self._strategy
        own = type(strategy).start is not Strategy.start
        self._seen.strategies.append({
            "name": type(strategy).__name__,
            "own_start": own,
            "robust": isinstance(strategy, (*ROBUST, Robust)),
            "private": isinstance(strategy, PRIVATE),
        })  # fmt: skip
        # Out of the way for once: below, ``start`` has to be the one of the class.
        vars(strategy).pop("start", None)
        try:
            if self._rule is None:
                return strategy.start(*args, **kwargs)
            self._seen.defending = True
            robust = Robust(strategy, rule=self._rule, seed=self._seed)
            self._seen.defending = False
            self._seen.robust.append(robust)
            return robust.start(*args, **kwargs)
        finally:
            # Back again: an app may start one strategy several times.
            vars(strategy)["start"] = self
