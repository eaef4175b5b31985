"""One record per plug-in: all that the rest of the system knows about a rule or pre-aggregator.

A rule is written as one function. It returns the aggregate (d,), or what each update counts (n,)
(a rule that is a weighted sum), or an ``Outcome`` (a rule with memory, or with weights beside a
term that is no update); ``kind`` says which. The rule ``(n, d) -> (d,)`` itself is derived.

A rule asks for more by the names of its keyword-only parameters: ``generator``, ``memory``,
``clients``, ``weights``; ``root`` and ``loss``, from data of the server's own; ``layers`` (names
and shapes of the model's tensors, see ``fedrobust.model_layers``) and ``model`` (the parameters
that updates are measured from). Whoever runs it hands them in; one with a default is optional.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor

from fedrobust import docstrings
from fedrobust.spec import parameters

Settings = dict[str, Any]
FROM_SERVER = ("root", "loss")  # what a rule may ask of data of the server's own
FROM_RUN = ("layers", "model")  # and of the model that is trained
ASKED = (*FROM_SERVER, *FROM_RUN)
OWN_DATA = "from data of the server's own: set server.root_images, or put it in the spec"
MISSING = {
    "root": OWN_DATA,
    "loss": OWN_DATA,
    "layers": "(names and shapes of the model's tensors), which a run hands in: elsewhere put"
    " layers=[[name, shape], ...] in the spec",
    "model": "(the parameters that the updates are measured from), which a run hands in: elsewhere"
    " put them in the spec",
}
SUPPLIED = ("generator", "memory", "clients", "weights")  # what the system hands in, not the spec


def weighted(updates: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the rows; a single row is returned as it is."""
    chosen = weights.nonzero().flatten()
    if len(chosen) == 1 and weights[chosen[0]] == 1:
        # A copy: the aggregate must not be a view of a client's row.
        return updates[chosen[0]].clone()
    if updates.dtype == torch.float32 and bool((weights[chosen].abs() < 1e-30).any()):
        # float32 keeps few digits of a weight this small, and the row it belongs to may be huge
        return (weights.to(updates.device) @ updates.double()).to(updates.dtype)
    return weights.to(updates) @ updates


def one(settings: Settings) -> int:
    """Return the fewest updates of a rule that takes any number."""
    return 1


def always(settings: Settings) -> bool:
    """Say yes whatever the settings are."""
    return True


def never(settings: Settings) -> bool:
    """Say no whatever the settings are: what nobody has said."""
    return False


def majority(settings: Settings) -> int:
    """Return 2 f + 1."""
    return 2 * int(settings["f"]) + 1


def from_the_rows(settings: Settings) -> bool:
    """Whether an iteration starts from products of the rows, not from a coordinate-wise median."""
    return settings.get("start") != "median"


def nothing(settings: Settings) -> str:
    """Return what a rule looks at that asks nothing of the read which guards it."""
    return ""


def distances(settings: Settings) -> str:
    """Return "distances": the rule looks at the distances of all pairs of rows."""
    return "distances"


def angles(settings: Settings) -> str:
    """Return "angles": the rule looks at the angles of all pairs of rows."""
    return "angles"


def lengths(settings: Settings) -> str:
    """Return "lengths": the rule looks at the length of each row."""
    return "lengths"


def signs(settings: Settings) -> str:
    """Return "signs": the rule looks at the sum of each column's signs."""
    return "signs"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An aggregation rule.

    Attributes
    ----------
    name
        Under which specs and tables know it.
    compute
        The function as written: ``(updates, **settings) -> Tensor | Outcome``.
    kind
        What it returns: "aggregate" (d,), "weights" (n,), or "outcome". A function of kind
        "outcome" that takes ``memory`` is given the state of its last outcome.
    minimum
        Settings -> the fewest updates that it takes.
    coordinate_wise
        Whether each coordinate is treated by itself: such a rule runs block by block.
    follows_scale, follows_shift
        Whether rule(c x) = c rule(x) for c > 0, and rule(x + b) = rule(x) + b.
    follows_rotation
        Settings -> whether rule(x Q) = rule(x) Q for every Q with orthonormal rows, into more
        coordinates too: it reads the rows, and what it remembers of them, through their products
        alone, and sums rows. Vectors that it remembers are floating tensors of d columns, and it
        remembers no others. Attackers then ask it in as few coordinates as there are vectors.
    bounded
        Whether f far rows (fewer than half where it takes no f) cannot carry the result beyond the
        honest ones, whatever their size.
    order_matters
        Whether the result depends on the order of the rows: groups by place, or ties that are the
        rule's habit (two rows that are each other's nearest, in Bulyan's last picks).
    kappa
        ``(n, f) -> kappa`` where (f, kappa)-robustness is published, with its place in
        ``kappa_source``; None where it is not.
    no_weights
        Why a rule without a weighted form has none.
    looks_at
        Settings -> what it takes from all rows as they come: "distances", "angles", "lengths",
        "signs", or "". The read that looks for values that are not finite finds that as well; it
        changes no result, see ``survey``.
    """

    name: str
    compute: Callable[..., Any]
    kind: Literal["aggregate", "weights", "outcome"] = "aggregate"
    minimum: Callable[[Settings], int] = one
    coordinate_wise: bool = False
    follows_scale: bool = False
    follows_shift: bool = False
    follows_rotation: Callable[[Settings], bool] = never
    bounded: bool = False
    order_matters: bool = False
    kappa: Callable[[int, int], float] | None = None
    kappa_source: str = ""
    no_weights: str = "it counts updates, whatever they weigh"
    looks_at: Callable[[Settings], str] = nothing

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function."""
        return parameters(self.compute)

    @property
    def takes_f(self) -> bool:
        """Whether it must be told how many updates may be Byzantine."""
        return "f" in self.settings

    @property
    def remembers(self) -> bool:
        """Whether it keeps memory from round to round."""
        return "memory" in self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """What it cannot do without: "root", "loss" of the server's own, "layers", "model"."""
        given = self.settings
        return tuple(k for k in ASKED if k in given and given[k].default is inspect._empty)

    @property
    def weighable(self) -> bool:
        """Whether updates may count more or less by weights of the operator's."""
        return "weights" in self.settings

    @property
    def paper(self) -> str:
        """The paper and the place in it, from the docstring."""
        return docstrings.paper(self.compute)

    @property
    def what(self) -> str:
        """The first sentence of the docstring."""
        return docstrings.summary(self.compute)

    def function(self) -> Callable[..., Tensor]:
        """Derive the rule ``(n, d) -> (d,)``, under the rule's name and docstring."""
        if self.kind == "weights":
            return _named(self, lambda rows, **given: weighted(rows, self.compute(rows, **given)))
        if self.kind == "outcome":
            return _named(self, lambda rows, **given: self.compute(rows, **given).aggregate)
        return self.compute


@dataclass(frozen=True, kw_only=True)
class PreAggregator:
    """A pre-aggregator: rows are mixed before the rule sees them.

    Attributes
    ----------
    name
        Under which specs and tables know it.
    compute
        ``(updates, **settings) -> (m, n)``, the mixing matrix: what lets a weight be traced back
        to its client.
    minimum
        Settings -> the fewest updates that it takes.
    leaves
        ``(n, settings) -> m``, how many rows remain.
    follows_scale
        Whether mixing c x gives c times the mixed x, c > 0.
    follows_rotation
        Whether it reads the rows through their products alone.
    keeps_weights
        Whether row i of the result is client i's still, so that its weight holds behind it.
    kappa
        ``(n, f, kappa of the rule) -> kappa`` of both together, where published.
    looks_at
        As a rule's.
    """

    name: str
    compute: Callable[..., Tensor]
    minimum: Callable[[Settings], int] = one
    leaves: Callable[[int, Settings], int] = lambda n, settings: n
    follows_scale: bool = True
    follows_rotation: bool = False
    keeps_weights: bool = False
    kappa: Callable[[int, int, float], float] | None = None
    kappa_source: str = ""
    looks_at: Callable[[Settings], str] = nothing

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function."""
        return parameters(self.compute)

    @property
    def paper(self) -> str:
        """The paper and the place in it, from the docstring."""
        return docstrings.paper(self.compute)

    @property
    def what(self) -> str:
        """The first sentence of the docstring."""
        return docstrings.summary(self.compute)

    def function(self) -> Callable[..., Tensor]:
        """Derive the pre-aggregator ``(n, d) -> (m, d)``."""
        return _named(self, lambda rows, **given: mixed(rows, self.compute(rows, **given)))


def mixed(rows: Tensor, mixing: Tensor) -> Tensor:
    """Return the mixed rows; a mixing that only copies or scales them needs no product."""
    copied = (mixing == 1).any(1)
    if bool(copied.all()) and int((mixing != 0).sum()) == len(mixing):
        return rows[(mixing == 1).int().argmax(1).to(rows.device)]
    scales = mixing.diagonal()
    if len(mixing) == len(rows) and torch.equal(mixing, torch.diag(scales)):
        return rows * scales.to(rows)[:, None]
    return mixing.to(rows) @ rows


def _named(record: Rule | PreAggregator, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a derived function the record's name, and the docstring and settings as written."""
    derived = wraps(record.compute)(function)
    derived.__name__ = derived.__qualname__ = record.name
    signature = inspect.signature(record.compute)
    derived.__signature__ = signature.replace(return_annotation=Tensor)  # type: ignore[attr-defined]
    return derived
