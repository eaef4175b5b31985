"""Speed of clique detection on the attacks of the papers and on a graph made to be hard.

``python -m experiments.benchmarks.cliques --json``; about ten seconds. ``reference`` is plain
``networkx.find_cliques`` on the same whole graph; ``goal`` is in seconds, and for the hard graph it
is the cap plus a tenth of a second.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import networkx
import torch
from torch import Tensor

from experiments.benchmarks.measuring import median_of, show
from fedrobust.redundancy import detect
from fedrobust.seeds import generator

CASES = ((15, 6), (50, 24), (100, 10))
CAP = 0.5
GOAL = 0.015


def att2_graph(workers: int, q: int, files: int = 98) -> Tensor:
    """Agreements under ATT-2: workers 0..q-1 distort and disagree with workers q..2q-1."""
    agreement = torch.full((workers, workers), files)
    agreement[:q, q : 2 * q] = agreement[q : 2 * q, :q] = files - 1
    return agreement


def random_graph(workers: int, q: int, files: int = 98) -> Tensor:
    """Agreements where each of q Byzantine workers disagrees with q random honest ones."""
    agreement = torch.full((workers, workers), files)
    source = generator(0, "clique benchmark")
    for attacker in range(q):
        victims = q + torch.randperm(workers - q, generator=source)[:q]
        agreement[attacker, victims] = agreement[victims, attacker] = files - 1
    return agreement


def peak_of(call: Callable[[], Any]) -> int:
    """Return the peak of Python's memory during a call; tensors here are 80 kB at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def plain(agreement: Tensor, *, files: int = 98, seconds: float) -> int:
    """Enumerate the maximal cliques of the whole graph within a time; return how many came."""
    edges = (agreement == files).triu(1).nonzero().tolist()
    graph = networkx.Graph(edges)
    # Who agrees with nobody is in no edge, and a clique of one.
    graph.add_nodes_from(range(len(agreement)))
    end, number = time.monotonic() + seconds, 0
    for _ in networkx.find_cliques(graph):
        number += 1
        if time.monotonic() > end:
            break
    return number


def row(name: str, agreement: Tensor, *, q: int, goal: float, times: int) -> dict[str, Any]:
    """Time one graph and return its line."""

    def ours() -> Any:
        return detect(agreement, q=q, files_per_pair=98)

    seconds = median_of(ours, times=times)
    reference = median_of(lambda: plain(agreement, seconds=CAP), times=min(times, 5))
    outcome = ours()
    return {
        "case": f"{name}: {'capped' if outcome.capped else f'{len(outcome.cliques)} cliques'}",
        "seconds": seconds,
        "reference": f"networkx find_cliques, whole graph, at most {CAP} s",
        "reference_seconds": reference,
        "ratio": seconds / reference,
        "goal": goal,
        "peak_bytes": peak_of(ours),
    }


def rows() -> Iterator[dict[str, Any]]:
    """Yield one line per case."""
    for workers, q in CASES:
        name = f"ATT-2, K={workers}, q={q}"
        yield row(name, att2_graph(workers, q), q=q, goal=GOAL, times=20)
    for workers, q in CASES:
        full = torch.full((workers, workers), 98)
        yield row(f"no attack, K={workers}, q={q}", full, q=q, goal=GOAL, times=20)
    hard = random_graph(100, 25)
    yield row("random disagreements, K=100, q=25", hard, q=25, goal=CAP + 0.1, times=1)


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    options = parser.parse_args()
    show(
        rows(),
        lambda row: f"{row['case']:50s} {1e3 * row['seconds']:9.2f} ms",
        as_json=options.json,
    )


if __name__ == "__main__":
    main()
