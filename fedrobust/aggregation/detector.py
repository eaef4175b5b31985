"""FLDetector: whoever does not do what its own past predicts is out for good."""

from __future__ import annotations

import torch
from torch import Tensor

from fedrobust.aggregation.columns import chosen_variant, equal_shares, median
from fedrobust.aggregation.distances import TINY
from fedrobust.aggregation.history import Memory, numbered, places_of
from fedrobust.aggregation.outcome import Outcome
from fedrobust.aggregation.record import weighted
from fedrobust.aggregation.selection import even
from fedrobust.failures import Refusal
from fedrobust.ranges import whole
from fedrobust.seeds import generator as seeded

MOST_CLUSTERS = 7
INNER = {"mean": True, "median": False}  # whether it is a weighted sum of the updates


def fldetector_step(
    updates: Tensor,
    *,
    window: int = 10,
    start: int = 50,
    references: int = 10,
    inner: str = "median",
    memory: Memory | None = None,
    clients: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Outcome:
    """Exclude for good the clients whose own past does not predict what they send.

    A client's update is predicted from its last one plus the approximate Hessian (L-BFGS) times the
    model's last step. Its score is the mean of its normalised errors over some rounds; where the
    gap statistic finds more than one cluster of scores, the cluster of higher ones is out.

    Parameters
    ----------
    window
        N: rounds that a score averages, and pairs that the Hessian is approximated from.
    start
        Rounds before anything is predicted.
    references
        Uniform samples that the gap statistic compares with.
    inner
        What aggregates those who are left: "mean", or "median" (coordinate-wise).
    memory, clients
        See ``foolsgold``. The memory is a matrix of the size of the updates and 2 N rows.
    generator
        For the references; None draws from a fixed one.

    Raises
    ------
    ValueError
        For settings out of range, or if nobody is left.

    References
    ----------
    Zhang, Cao, Jia, Gong, FLDetector, KDD 2022, section 4 and Algorithm 1; gap statistic of
    Tibshirani, Walther, Hastie 2001; L-BFGS in the form of Byrd, Nocedal, Schnabel 1994. The
    model's step is taken to be proportional to the aggregate: no server momentum. Clusters on a
    line are found exactly. Once it has found somebody the paper starts training anew, without them
    and without detection; here the model is kept, and nobody else is looked for. Needs f < n / 2.
    The gap statistic is asked anew each round: without any attacker honest clients are put out now
    and then (in 4 of 10 runs of 20 rounds, 12 alike clients on a quadratic).
    """
    whole(window, "fldetector", "window", low=1)
    whole(start, "fldetector", "start", low=1)
    whole(references, "fldetector", "references", low=1)
    weighs = chosen_variant(INNER, inner, "fldetector's inner rule")
    numbers, kept = numbered(updates, clients), dict(memory or {})
    turn = int(kept.get("round", torch.tensor(0)))
    out = kept.get("out", numbers[:0])
    errors = kept.get("errors", torch.zeros(0, window))
    known = kept.get("error_clients", numbers[:0])
    if turn >= start and "steps" in kept and not len(out):
        errors, known = _noted(kept, updates, numbers, errors, known)
        source = seeded(0, "fldetector") if generator is None else generator
        out = _detected(errors, known, references, source)
    good = ~torch.isin(numbers, out)
    if not bool(good.any()):
        raise Refusal(f"fldetector has excluded all {len(numbers)} clients that answered")
    weights = even(good.nonzero().flatten(), len(updates)) if weighs else None
    left = updates[good.to(updates.device)]
    result = median(left) if weights is None else weighted(left, equal_shares(left))
    told = {
        "round": torch.tensor(turn + 1), "out": out, "errors": errors, "error_clients": known,
        "last": updates.clone(), "last_clients": numbers.clone(), "aggregate": result,
    }  # fmt: skip
    return Outcome(result.clone(), told | _pairs(kept, result, window), weights)


def _pairs(kept: Memory, result: Tensor, window: int) -> Memory:
    """Return the model's last steps and the changes of the aggregate that came with them."""
    if "aggregate" not in kept or kept["aggregate"].shape != result.shape:
        return {}
    before = kept["aggregate"]
    # The server subtracts the aggregate: that is the model's step.
    pairs = {"steps": -before[None], "changes": (result - before)[None]}
    if "steps" in kept:
        pairs = {key: torch.cat([kept[key], new])[-window:] for key, new in pairs.items()}
    return pairs


def _noted(
    kept: Memory, updates: Tensor, numbers: Tensor, errors: Tensor, known: Tensor
) -> tuple[Tensor, Tensor]:
    """Add this round's errors, adding up to 1, as the last column; NaN for who cannot be judged."""
    judged = torch.isin(numbers, kept["last_clients"])
    # One client's error among one is always 1, and says nothing.
    if kept["last"].shape[1] != updates.shape[1] or int(judged.sum()) < 2:
        return errors, known
    places = places_of(numbers[judged], kept["last_clients"])
    now, last = updates[judged.to(updates.device)], kept["last"][places.to(updates.device)]
    along = hessian_product(kept["steps"], kept["changes"], -kept["aggregate"])
    away = _lengths(now, last, along.to(now.device))
    fresh = numbers[judged & ~torch.isin(numbers, known)]
    known = torch.cat([known, fresh])
    width = errors.shape[1]
    errors = torch.cat([errors, torch.full((len(fresh), width), torch.nan)])
    column = torch.full((len(known), 1), torch.nan)
    column[places_of(numbers[judged], known), 0] = (away / away.sum().clamp(min=TINY)).float()
    return torch.cat([errors, column], 1)[:, -width:], known


def _lengths(now: Tensor, last: Tensor, along: Tensor) -> Tensor:
    """Return |now - last - along| of each row, (n,) float64; block by block."""
    squared = torch.zeros(len(now), dtype=torch.float64, device=now.device)
    width = max(1, (1 << 20) // len(now))
    for a, b, c in zip(now.split(width, 1), last.split(width, 1), along.split(width), strict=True):
        squared += (a.double() - b.double() - c).square().sum(1)
    return squared.sqrt().cpu()


def hessian_product(steps: Tensor, changes: Tensor, vector: Tensor) -> Tensor:
    """Return the L-BFGS approximation of the Hessian times a vector, (d,) float64.

    Parameters
    ----------
    steps, changes
        (N, d) each: differences of the model, and of the gradient, the newest last.

    References
    ----------
    Byrd, Nocedal, Schnabel, Representations of Quasi-Newton Matrices, 1994, theorem 2.3.
    """
    s, y, v = steps.double(), changes.double(), vector.double()
    products = s @ y.T
    lower, diagonal = products.tril(-1), torch.diag(products.diagonal())
    sigma = products[-1, -1] / (s[-1] @ s[-1]).clamp(min=TINY)
    middle = torch.cat([
        torch.cat([sigma * (s @ s.T), lower], 1), torch.cat([lower.T, -diagonal], 1),
    ])  # fmt: skip
    sides = torch.cat([sigma * (s @ v), y @ v])
    # Not an inverse: steps that repeat make the matrix singular.
    inside = torch.linalg.pinv(middle) @ sides
    found = sigma * v - torch.cat([sigma * s, y]).T @ inside
    return found if bool(torch.isfinite(found).all()) else torch.zeros_like(v)


def _detected(errors: Tensor, known: Tensor, references: int, source: torch.Generator) -> Tensor:
    """Return the clients of the higher cluster of scores; none where there is one cluster."""
    whole_window = ~errors.isnan().any(1)
    scores, judged = errors[whole_window].double().mean(1), known[whole_window]
    if len(scores) < 3 or clusters(scores, references, source) < 2:
        return known[:0]
    ordered, order = scores.sort(stable=True)
    cut = splits(ordered, 2)[1][0]
    return judged[order[cut:]]


def clusters(scores: Tensor, references: int, source: torch.Generator) -> int:
    """Return how many clusters the gap statistic finds among scores (n,).

    References
    ----------
    Tibshirani, Walther, Hastie, Estimating the number of clusters in a data set via the gap
    statistic, 2001, section 3.
    """
    span = float(scores.max() - scores.min())
    if span <= 1e-9 * float(scores.abs().max()):
        return 1
    ordered = ((scores - scores.min()) / span).sort().values
    most = min(MOST_CLUSTERS, len(scores) - 1)
    shape = (references, len(scores))
    drawn = torch.rand(shape, generator=source, dtype=torch.float64, device=source.device).cpu()
    spreads = torch.stack([_spreads(row.sort().values, most) for row in drawn])
    gaps = spreads.mean(0) - _spreads(ordered, most)
    slack = (1 + 1 / references) ** 0.5 * spreads.std(0, correction=0)
    for k in range(most - 1):
        if gaps[k] >= gaps[k + 1] - slack[k + 1]:
            return k + 1
    return most


def _spreads(ordered: Tensor, most: int) -> Tensor:
    """Return the logarithm of the squared distances within 1 .. most clusters."""
    found = [splits(ordered, k)[0] for k in range(1, most + 1)]
    # Points that coincide with their means have the logarithm of 0.
    return torch.tensor(found, dtype=torch.float64).clamp(min=1e-12).log()


def splits(ordered: Tensor, k: int) -> tuple[float, list[int]]:
    """Cut sorted values into k clusters of the least squared distances from their means.

    Returns
    -------
    The sum of squared distances, and the k - 1 places where a cluster begins.
    """
    n = len(ordered)
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    squares = torch.cat([ordered.new_zeros(1), ordered.square().cumsum(0)])
    begin, end = torch.arange(n + 1)[:, None], torch.arange(n + 1)[None, :]
    count = (end - begin).clamp(min=1)
    cost = squares[None, :] - squares[:, None] - (sums[None, :] - sums[:, None]) ** 2 / count
    # Differences of running sums: rounding may make them negative.
    cost = torch.where(begin < end, cost.clamp(min=0), torch.inf)
    best, cuts = cost[0], []
    for _ in range(k - 1):
        reached, place = (best[:, None] + cost).min(0)
        cuts.append(place)
        best = reached
    at, places = n, []
    for place in reversed(cuts):
        at = int(place[at])
        places.append(at)
    return float(best[n]), places[::-1]
