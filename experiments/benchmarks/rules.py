"""Every rule's time over the limit of its arithmetic, and over the peers' where installed.

``python -m experiments.benchmarks.rules --json [--device cuda]``; about ten minutes on 2 cores. The
limit is one read of the matrix (its sum), one product ``X @ X.T``, or a rule's own passes; rule and
reference take turns in one run and their medians are compared. ``peak_bytes`` is what a call adds
to the memory in use; the matrix itself is ``matrix_bytes``. Peers: byzfl (``pip install byzfl``)
and Flower's own functions.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.benchmarks.measuring import Call, Row, peak_of, show, side_by_side
from fedrobust.aggregation import PREAGGREGATORS, RULES, aggregate, preaggregate
from fedrobust.model_layers import Layers
from fedrobust.spec import parameters

SIZES = ((20, 1_000_000), (100, 1_000_000), (100, 100_000), (500, 100_000))
GOAL_SIZES = ((100, 1_000_000), (500, 100_000))  # the goals of the limits are set for these
PEER_GOAL = 0.2  # of the peer's time
PEER_BYTES = 8e9  # byzfl's nnm holds n - f copies of the matrix: not beyond this

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}

READ, PRODUCT, PASSES = "one read", "X @ X.T", "reads of its own passes"
COORDINATE_WISE = (
    "mean", "median", "trimmed_mean", "meamed", "phocas", "sign_majority", "fedrdf",
)  # fmt: skip
# What a rule goes over the matrix for, one by one: norms, weighted sums, signs, finite values.
OWN_PASSES = {
    "rfa": 8, "centered_clipping": 3, "norm_clipping": 3, "cge": 3, "fltrust": 4, "rsa": 2,
    "sign_guard": 3, "rlr": 3, "fednga": 3, "lasa": 8, "alignins": 6,
}  # fmt: skip
# A second gives the mixed rows, is the second window's, or takes the distances of cluster means.
PRODUCTS = {"nnm": 2, "safeguard": 2, "hierarchical_clustering_krum": 2}
# The result is a matrix: its norms are read, it is written.
COPIES = ("clip", "arc", "bucketing", "foundation")
COMBINATORIAL = ("mda", "smea")  # n = 20 only
SELECTING = ("lasa", "alignins")
# safeguard and foolsgold keep sums of the size of the matrix, zeno evaluates a model n times.
SETTINGS: dict[str, dict[str, Any]] = {
    "centered_clipping": {"tau": 10.0},
    "norm_clipping": {"bound": 10.0},
    "clip": {"bound": 10.0},
    "bucketing": {"size": 2},
    "safeguard": {
        "window": 10, "threshold": 1e3, "short_window": 5, "short_threshold": 1e3,
    },
    "rlr": {"threshold": 20},
    "huber": {"threshold": 300.0},
    "filtering": {"variance": 1e6},  # nothing is removed: one eigenproblem in each group
    "zeno": {"loss": lambda step: float(step[0])},
}  # fmt: skip


def byzantine(name: str, n: int) -> int:
    """Return a fifth of the clients, as far as the rule tolerates them."""
    return min(n // 5, (n - 3) // 4) if name == "bulyan" else n // 5


def layers(d: int) -> Layers:
    """Return ten layers of equal size, and a bias of what is left."""
    each = d // 1010
    even = tuple((f"weight{i}", (each, 100)) for i in range(10))
    return (*even, ("bias", (d - 1000 * each,)))


def spec_of(name: str, updates: Tensor) -> dict[str, Any]:
    """Return a rule's or pre-aggregator's spec for these updates."""
    n = len(updates)
    function = (RULES | PREAGGREGATORS)[name]
    given = SETTINGS.get(name, {})
    if "f" in parameters(function):
        given = given | {"f": byzantine(name, n)}
    if name == "median_of_means":
        given = given | {"groups": 2 * (n // 5) + 1}
    if name == "fltrust":
        given = given | {"root": updates[0].clone()}
    if name == "lasa":
        given = given | {"layers": layers(updates.shape[1])}
    if name == "alignins":
        given = given | {"model": updates[0].clone()}
    return {"name": name, **given}


def ours(name: str, updates: Tensor) -> Call:
    """Return one call of the rule."""
    spec = spec_of(name, updates)
    generator = torch.Generator().manual_seed(0)
    if name in PREAGGREGATORS:
        return lambda: preaggregate(updates, spec, generator=generator)
    return lambda: aggregate(updates, spec, generator=generator)


def reference(name: str, updates: Tensor) -> tuple[str, Call, float | None]:
    """Return the limit of a rule: its name, a call that takes it, and the goal for the ratio."""
    text, call, goal = _limit(name, updates)
    return text, call, goal if tuple(updates.shape) in GOAL_SIZES else None


def _limit(name: str, updates: Tensor) -> tuple[str, Call, float | None]:
    n = len(updates)
    if name in COORDINATE_WISE:
        return READ, updates.sum, 4.0 if n <= 100 else 8.0
    if name in OWN_PASSES:
        passes = OWN_PASSES[name]
        # A selection among the values of each update costs more than reads of them.
        goal = None if name in SELECTING else 1.5
        return f"{passes} {PASSES}", lambda: [updates.sum() for _ in range(passes)], goal
    if name in COPIES:
        return "a read and a copy", lambda: (updates.sum(), updates.clone()), 1.5
    products = PRODUCTS.get(name, 1)
    goal = None if name in COMBINATORIAL or name in ("zeno", "filtering") else 1.5
    text = PRODUCT if products == 1 else f"{products} {PRODUCT}"
    return text, lambda: [updates @ updates.T for _ in range(products)], goal


@dataclass(frozen=True)
class Peer:
    """The same rule elsewhere: what it is called, and how to call it on the updates."""

    name: str
    prepare: Callable[[Tensor, int], Call]


def byzfl(class_name: str, *, overwrites: bool = False, **fixed: Any) -> Peer:
    """Return a class of byzfl as a peer; ``f`` is passed where the class takes it.

    One that ``overwrites`` its input gets a copy each time: clipped once, nothing is left to do.
    """

    def prepare(updates: Tensor, f: int) -> Call:
        made = getattr(importlib.import_module("byzfl"), class_name)
        takes_f = "f" in made.__init__.__code__.co_varnames
        rule = made(**fixed, **({"f": f} if takes_f else {}))
        return lambda: rule(updates.clone() if overwrites else updates)

    return Peer(f"byzfl {class_name}{', on a copy' * overwrites}", prepare)


def flower(function_name: str, *more: Callable[[int, int], Any]) -> Peer:
    """Return a function of ``flwr.server.strategy.aggregate`` as a peer."""

    def prepare(updates: Tensor, f: int) -> Call:
        from fedrobust.flower._compat_apps import older_averages  # our own rules need no Flower

        module = older_averages()
        rows = [([row.numpy()], 1) for row in updates]
        rest = [value(len(updates), f) for value in more]
        return lambda: getattr(module, function_name)(rows, *rest)

    return Peer(f"flwr {function_name}", prepare)


def _flower_bulyan(updates: Tensor, f: int) -> Call:
    from fedrobust.flower._compat_apps import older_averages

    module = older_averages()
    rows = [([row.numpy()], 1) for row in updates]
    return lambda: module.aggregate_bulyan(rows, f, module.aggregate_krum, to_keep=0)


PEERS: dict[str, tuple[Peer, ...]] = {
    "mean": (byzfl("Average"),),
    "median": (byzfl("Median"), flower("aggregate_median")),
    "trimmed_mean": (byzfl("TrMean"), flower("aggregate_trimmed_avg", lambda n, f: f / n)),
    "meamed": (byzfl("Meamed"),),
    "krum": (byzfl("Krum"), flower("aggregate_krum", lambda n, f: f, lambda n, f: 0)),
    "multi_krum": (
        byzfl("MultiKrum"),
        flower("aggregate_krum", lambda n, f: f, lambda n, f: n - f),
    ),
    "bulyan": (Peer("flwr aggregate_bulyan", _flower_bulyan),),
    "rfa": (byzfl("GeometricMedian"),),
    "centered_clipping": (byzfl("CenteredClipping"),),
    "mda": (byzfl("MDA"),),
    "caf": (byzfl("CAF"),),
    "nnm": (byzfl("NNM"),),
    "bucketing": (byzfl("Bucketing", s=2),),
    "clip": (byzfl("Clipping", overwrites=True, c=10.0),),
    "arc": (byzfl("ARC", overwrites=True),),
}
SLOW = {
    ("flwr aggregate_bulyan", 100),
    ("flwr aggregate_bulyan", 500),
    ("flwr aggregate_krum", 500),
}


def rows_of(
    name: str,
    updates: Tensor,
    *,
    device: str,
    peers: bool,
    clock: Clock = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Measure one rule: beside its limit, then beside each peer."""
    n, d = updates.shape
    size = f"{name} {n} x {d}"
    call = ours(name, updates)
    text, limit, goal = reference(name, updates)
    seconds, limit_seconds = side_by_side(call, limit, device=device, clock=clock)
    more = {"matrix_bytes": updates.numel() * 4, "rule": name, "n": n, "d": d}
    yield (
        line(size, seconds, text, limit_seconds, goal)
        | more
        | {"peak_bytes": peak_of(call, device=device)}
    )
    for peer in PEERS.get(name, ()) if peers and device == "cpu" else ():
        too_large = peer.name == "byzfl NNM" and 4.0 * n * n * d > PEER_BYTES
        if too_large or (peer.name, n) in SLOW:
            continue
        try:
            # A copy: a peer may write into what it is given, and ours is timed on it again.
            theirs = peer.prepare(updates.clone(), byzantine(name, n))
            seconds, peer_seconds = side_by_side(call, theirs, times=3, limit=10.0, clock=clock)
        except (ImportError, ValueError):  # not installed, or it refuses this n and f
            continue
        yield line(size, seconds, peer.name, peer_seconds, PEER_GOAL) | more


def line(
    case: str, seconds: float, reference: str, reference_seconds: float, goal: float | None
) -> dict[str, Any]:
    """Return one case."""
    return {
        "case": case,
        "seconds": seconds,
        "reference": reference,
        "reference_seconds": reference_seconds,
        "ratio": seconds / reference_seconds,
        "goal": goal,
        "peak_bytes": None,
    }


def cases(
    sizes: tuple[tuple[int, int], ...],
    names: list[str],
    *,
    device: str,
    peers: bool,
    clock: Clock = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Measure every rule at every size."""
    for n, d in sizes:
        updates = torch.randn(n, d, generator=torch.Generator().manual_seed(1)).to(device)
        for name in names:
            if name in COMBINATORIAL and n > 20:
                continue
            yield from rows_of(name, updates, device=device, peers=peers, clock=clock)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rules", nargs="*", help="only these")
    parser.add_argument("--sizes", nargs="*", help="only these, as 100x1000000")
    parser.add_argument("--no-peers", action="store_true", help="only the limits")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: on a busy machine")
    options = parser.parse_args()
    names = options.rules or [*RULES, *PREAGGREGATORS]
    sizes = tuple(tuple(map(int, size.split("x"))) for size in options.sizes or ()) or SIZES
    rows = cases(
        sizes,  # type: ignore[arg-type]
        names,
        device=options.device,
        peers=not options.no_peers,
        clock=CLOCKS[options.clock],
    )
    show(rows, _text, as_json=options.json)


def _text(row: Row) -> str:
    goal = "" if row["goal"] is None else f"  goal {row['goal']}"
    return (
        f"{row['case']:44} {row['seconds']:9.4f} s  {row['ratio']:8.2f} x {row['reference']}{goal}"
    )


if __name__ == "__main__":
    main()
