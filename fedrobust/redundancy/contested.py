"""Drop contested files: keep only values that every possible honest set confirms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.redundancy.agreement import MISSING, agreement
from fedrobust.redundancy.covers import NODES, coverable, graph_of


@dataclass(frozen=True)
class Uncontested:
    """What survives the contested rule.

    Attributes
    ----------
    chosen
        (files,): the first candidate worker that holds the file's value, or -1: contested, dropped.
    sure
        (files,) bool: kept, and true whatever at most q workers send.
    candidates
        (workers,) bool: heard, and a member of some clique of at least K-q workers. All honest
        workers are; the others that were heard are Byzantine.
    capped
        Whether a search was cut short: files were then dropped that need not have been.
    """

    chosen: Tensor
    sure: Tensor
    candidates: Tensor
    capped: bool


def uncontested(
    labels: Tensor, *, q: int, copies: Tensor | None = None, nodes: int = NODES
) -> Uncontested:
    """Keep the files on which all workers that may be honest agree.

    Parameters
    ----------
    labels
        (workers, files) int64, see `fedrobust.redundancy.agreement`; ``MISSING`` where a worker
        does not hold the file or was not heard. K is the number of workers heard.
    q
        The most Byzantine workers among them.
    copies
        (files,): to how many workers each file was assigned; by default as many as answered. A file
        that is not sure needs more than half of them.
    nodes
        Bound on each search.

    Notes
    -----
    A *candidate clique* is a set of at least K-q heard workers that agree pairwise on all files
    they share; a *candidate* is a member of one. A file is kept if it has a candidate holder and
    all its candidate holders sent one value. It is sure if moreover every candidate clique holds a
    copy of it.

    Theorem. Let at most q of the workers heard be Byzantine. (1) A kept file is wrong only if no
    honest worker that was heard holds it. (2) A sure file is never wrong. (3) If each file has
    more than q copies and all of them came, every kept file is sure.

    Proof. The honest workers heard, H, are at least K-q and agree, so H is a candidate clique and
    every honest worker a candidate. (1) If an honest worker holds the file, its value is the true
    one, and all candidate holders sent that value. (2) H holds a copy of a sure file: apply (1).
    (3) Let C be a candidate clique. At most q workers are outside of it, so one of the more than q
    holders is inside.

    Hence at most C(q, r) kept files of Aspis are wrong, those that Byzantine workers own wholly,
    and no comparison of copies can do better: nothing tells such a file from an honest one. With
    r >= q+1 copies the plain mean over the kept files is exact.

    Whether a worker is a candidate is a question on vertex covers: a clique of at least K-q workers
    is the complement of a cover of at most q workers in the disagreement graph. Worker w is a
    candidate if q - |N(w)| workers cover what remains without w and its neighbours N(w); a file
    with candidate holders G is sure unless q - |G| workers cover what remains without G. A search
    that meets its cap counts as "candidate" and as "not sure", which drops files and never keeps a
    wrong one.
    """
    came = labels != MISSING
    heard = came.any(1)
    seen = agreement(labels)
    graph = graph_of((seen.counts < seen.shared).numpy())
    everyone = _mask(heard.nonzero().flatten().tolist())
    # A clique with w in it leaves its neighbours out: can what is left of q cover the rest?
    answers = [
        coverable(graph, everyone & ~(1 << w) & ~graph[w], q - graph[w].bit_count(), nodes=nodes)
        if heard[w]
        else False
        for w in range(len(labels))
    ]
    candidates = torch.tensor([answer is not False for answer in answers])
    held = came & candidates[:, None]
    # 0 where no candidate holds the file; held.any(0) below leaves such files out.
    first = held.byte().argmax(0)
    value = labels.gather(0, first[None])[0]
    single = held.any(0) & ((labels == value) | ~held).all(0)
    sure, capped = _sure(graph, everyone, held, single, q, nodes)
    votes, assigned = held.sum(0), came.sum(0) if copies is None else copies
    kept = single & (sure | (2 * votes > assigned))
    chosen = torch.where(kept, first, -1)
    return Uncontested(chosen, sure, candidates, capped or any(a is None for a in answers))


def _sure(
    graph: Sequence[int], everyone: int, held: Tensor, single: Tensor, q: int, nodes: int
) -> tuple[Tensor, bool]:
    """Tell for which files every candidate clique holds a copy; say whether a search was capped.

    Only holders that disagree with somebody change the graph: files with the same such holders and
    the same number of copies share one search.
    """
    touched = sum(1 << w for w, neighbours in enumerate(graph) if neighbours)
    sure = torch.zeros(held.shape[1], dtype=torch.bool)
    known: dict[tuple[int, int], bool | None] = {}
    holders = [0] * held.shape[1]
    for worker, file in held.nonzero().tolist():
        holders[file] |= 1 << worker
    for file in single.nonzero().flatten().tolist():
        group, count = holders[file] & touched, holders[file].bit_count()
        if (group, count) not in known:
            known[group, count] = coverable(graph, everyone & ~group, q - count, nodes=nodes)
        sure[file] = known[group, count] is False
    return sure, any(answer is None for answer in known.values())


def _mask(members: Sequence[int]) -> int:
    return sum(1 << member for member in members)
