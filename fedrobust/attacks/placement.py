"""Whom the adversary corrupts: which client ids are Byzantine in a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from fedrobust.ranges import whole
from fedrobust.seeds import generator
from fedrobust.spec import Spec, resolve, split

Ids = tuple[int, ...]


def drawn(clients: int, byzantine: int, seed: int, draw: int) -> Ids:
    """Draw ids without replacement, sorted."""
    order = torch.randperm(clients, generator=generator(seed, "placement", round=draw))
    return tuple(sorted(order[:byzantine].tolist()))


def random(*, clients: int, byzantine: int, seed: int, round: int = 0) -> Ids:
    """Drawn from the seed, once for the whole run."""
    return drawn(clients, byzantine, seed, 0)


def first(*, clients: int, byzantine: int, seed: int, round: int = 0) -> Ids:
    """Clients 0 .. byzantine - 1, as in ALIE's released code."""
    return tuple(range(byzantine))


def fixed(*, ids: Sequence[int], clients: int, byzantine: int, seed: int, round: int = 0) -> Ids:
    """Clients of a given list.

    Raises
    ------
    ValueError
        Unless the list holds ``byzantine`` different ids of existing clients.
    """
    # A string is a sequence too, of letters.
    if isinstance(ids, str) or not isinstance(ids, Sequence):
        raise ValueError(f"placement 'fixed' needs a list of ids, got {ids!r}")
    chosen = sorted({whole(one, "placement 'fixed'", "id", high=clients - 1) for one in ids})
    if len(ids) != byzantine or len(chosen) != byzantine:
        raise ValueError(f"placement 'fixed' needs {byzantine} different ids, got {list(ids)}")
    return tuple(chosen)


def window(*, length: int, clients: int, byzantine: int, seed: int, round: int = 0) -> Ids:
    """Drawn anew for every ``length`` rounds: the adversary moves on.

    Raises
    ------
    ValueError
        If length < 1.
    """
    whole(length, "placement 'window'", "length", low=1)
    # From 1 on: draw 0 is that of "random", and a window is another adversary.
    return drawn(clients, byzantine, seed, 1 + round // length)


PLACEMENTS: dict[str, Callable[..., Ids]] = {
    "random": random,
    "first": first,
    "fixed": fixed,
    "window": window,
}
SUPPLIED = ("clients", "byzantine", "seed", "round")


def place(spec: Spec, *, clients: int, byzantine: int, seed: int, round: int = 0) -> Ids:
    """Return the sorted ids of the Byzantine clients in this round.

    Raises
    ------
    SpecError
        For an unknown placement or setting.
    ValueError
        Unless 0 <= byzantine <= clients.
    """
    # Every client asks in every round: what costs more than a look is done once. A table that
    # holds another function under the name is another question.
    name, given = split(spec)
    words = repr(sorted(given.items()))
    return _placed(_Question(PLACEMENTS.get(name), words, clients, byzantine, seed, round, spec))


@dataclass(frozen=True)
class _Question:
    """What the answer depends on; a spec is compared by its words, as it cannot be hashed."""

    function: Callable[..., Ids] | None
    words: str
    clients: int
    byzantine: int
    seed: int
    round: int
    spec: Spec = field(compare=False)


@lru_cache(maxsize=1024)
def _placed(asked: _Question) -> Ids:
    function, given = resolve(PLACEMENTS, asked.spec, kind="placement", supplied=SUPPLIED)
    clients, byzantine = asked.clients, asked.byzantine
    if not 0 <= byzantine <= clients:
        raise ValueError(f"placement needs 0 <= byzantine <= {clients} clients, got {byzantine}")
    return function(
        **given, clients=clients, byzantine=byzantine, seed=asked.seed, round=asked.round
    )
