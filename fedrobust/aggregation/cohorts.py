"""How many Byzantine clients a sampled cohort holds: what f has to be, and how large a cohort.

Of N clients, B Byzantine, m are asked in each of T rounds, drawn without replacement: the number of
Byzantine ones among them is hypergeometric, and rounds are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedrobust.aggregation.preconditions import tolerated
from fedrobust.ranges import real, whole
from fedrobust.spec import Spec


def exceeds(f: int, *, clients: int, byzantine: int, cohort: int, rounds: int = 1) -> float:
    """Return the probability that more than f of those asked are Byzantine in any of the rounds.

    Parameters
    ----------
    clients, byzantine
        N and B, 0 <= B <= N.
    cohort
        m, 1..N, how many are asked in a round.
    rounds
        T >= 1.

    Raises
    ------
    ValueError
        For a number out of its range.
    """
    from scipy.stats import hypergeom

    _check(clients, byzantine, cohort, rounds)
    whole(f, "a cohort", "f")
    # sf is P(more than f), not f and more.
    once = float(hypergeom.sf(f, clients, byzantine, cohort))
    # 1 - (1 - p)^T, without losing a small p beside 1
    return -math.expm1(rounds * math.log1p(-once)) if once < 1 else 1.0


def smallest_f(
    *, clients: int, byzantine: int, cohort: int, rounds: int = 1, delta: float = 0.01
) -> int:
    """Return the least f that is exceeded in none of the rounds but with probability delta.

    Parameters
    ----------
    delta
        In (0, 1).
    """
    real(delta, "a cohort", "delta", above=0, high=1)
    _check(clients, byzantine, cohort, rounds)
    most = min(byzantine, cohort)
    given = {"clients": clients, "byzantine": byzantine, "cohort": cohort, "rounds": rounds}
    # More than "most" cannot be among them, whatever rounding says.
    return next(f for f in range(most + 1) if f == most or exceeds(f, **given) <= delta)


def smallest_cohort(
    rule: Spec,
    *,
    clients: int,
    byzantine: int,
    rounds: int = 1,
    delta: float = 0.01,
    pre: Sequence[Spec] = (),
) -> int | None:
    """Return the least cohort in which the rule bears the f that it needs; None if none does.

    Parameters
    ----------
    rule, pre
        As for ``aggregate``; their own f is left aside.
    clients, byzantine, rounds, delta
        As for ``smallest_f``.
    """
    for cohort in range(1, clients + 1):
        needed = smallest_f(
            clients=clients, byzantine=byzantine, cohort=cohort, rounds=rounds, delta=delta
        )
        try:
            borne = tolerated(rule, n=cohort, pre=pre)
        except ValueError:  # too few for the rule even with f = 0
            continue
        # A rule that takes no f is held to bear less than half.
        if (2 * needed < cohort) if borne is None else needed <= borne:
            return cohort
    return None


def _check(clients: int, byzantine: int, cohort: int, rounds: int) -> None:
    whole(clients, "a cohort", "clients", low=1)
    whole(byzantine, "a cohort", "byzantine", high=clients)
    whole(cohort, "a cohort", "cohort", low=1, high=clients)
    whole(rounds, "a cohort", "rounds", low=1)
