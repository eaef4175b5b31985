"""From whom a file is fetched, and which files come as one sum: alike for server and attackers."""

from __future__ import annotations

from collections.abc import Mapping

Holders = Mapping[int, list[int]]


def shared_out(able: Holders, *, fewest: bool = False, first: int = 0) -> dict[int, int]:
    """Choose file -> one of its holders, so that all send about equally much.

    ``fewest`` first restricts the choice to a small set of workers that holds every file: for
    sums, of which each worker sends one vector however many files are in it. Who is left out
    of that set changes with ``first``, so that over a run all upload about equally much.
    """
    if fewest:
        chosen = hitting_set(able, first=first)
        able = {file: [w for w in found if w in chosen] for file, found in able.items()}
    load: dict[int, int] = {}
    result = {}
    # Files with few holders first: they have the least choice, the others even the load out.
    for file in sorted(able, key=lambda f: (len(able[f]), f)):
        worker = min(able[file], key=lambda w: (load.get(w, 0), w))
        load[worker] = load.get(worker, 0) + 1
        result[file] = worker
    return result


def hitting_set(able: Holders, *, first: int = 0) -> set[int]:
    """Return a small set of workers that holds every file: greedily, who holds most comes next.

    Among equals the next one after ``first`` comes, in the circle of the workers.
    """
    left, chosen = dict(able), set[int]()
    while left:
        counts: dict[int, int] = {}
        for found in left.values():
            for worker in found:
                counts[worker] = counts.get(worker, 0) + 1
        best = min(counts, key=lambda w: (-counts[w], w < first, w))
        chosen.add(best)
        left = {file: found for file, found in left.items() if best not in found}
    return chosen


def by_worker(sources: Mapping[int, int]) -> dict[int, list[int]]:
    """Turn file -> worker around: worker -> its files, in order."""
    groups: dict[int, list[int]] = {}
    for file in sorted(sources):
        groups.setdefault(sources[file], []).append(file)
    return groups


def split(groups: Mapping[int, list[int]], wanted: int) -> dict[int, list[list[int]]]:
    """Cut each worker's files into as many parts as give ``wanted`` sums in all, about equal."""
    parts = -(-wanted // len(groups))  # rounded up
    cut = {}
    for worker, files in groups.items():
        count = min(parts, len(files))
        cut[worker] = [files[place::count] for place in range(count)]
    return cut
