"""What sampling does to f: the clients that are asked may hold more Byzantine ones than f."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedrobust.aggregation import check
from fedrobust.aggregation.cohorts import smallest_cohort, smallest_f
from fedrobust.failures import Refusal
from fedrobust.redundancy import rounds
from fedrobust.spec import Spec

DELTA = 0.01  # with which probability f may be exceeded in some round, unless told otherwise


def size(participation: float, clients: int) -> int:
    """Return how many clients are asked in each round."""
    return max(1, round(participation * clients))


def implied_f(values: Mapping[str, Any]) -> int:
    """Return the f that a rule was not given.

    Under a redundancy scheme the files that can be wrong. Else the Byzantine clients, or where only
    some clients are asked, the least f that is exceeded in none of the rounds but with probability
    ``DELTA``.

    Parameters
    ----------
    values
        An experiment's fields so far: clients, byzantine, rounds, and what else is given.
    """
    scheme, byzantine, clients = values.get("redundancy"), values["byzantine"], values["clients"]
    cohort = size(values.get("participation", 1.0), clients)
    turns = values.get("rounds", 1)
    # Numbers out of range have sentences of their own, elsewhere.
    drawn = cohort < clients and 0 <= byzantine <= clients and turns >= 1
    if (scheme is not None and scheme.name) or not drawn:
        return rounds.implied_f(values)
    return smallest_f(
        clients=clients, byzantine=byzantine, cohort=cohort, rounds=turns, delta=DELTA
    )


def check_cohort(
    rule: Spec, *, pre: Sequence[Spec], clients: int, byzantine: int, cohort: int, turns: int
) -> None:
    """Check that the rule bears its f among those that are asked.

    Raises
    ------
    Refusal
        ``krum with f=9 needs at least 21 updates, got 20; asked 59 at a time it bears the f that
        they need``.
    """
    try:
        check(rule, n=cohort, pre=pre)
    except Refusal as error:
        # Everybody is asked already: no larger cohort can help.
        if cohort == clients:
            raise
        least = smallest_cohort(
            rule, clients=clients, byzantine=byzantine, rounds=turns, delta=DELTA, pre=pre
        )
        asked = f"asked {least} at a time it bears the f that they need"
        none = f"no cohort of these {clients} clients is large enough for it"
        raise Refusal(f"{error}; {none if least is None else asked}") from error
