"""What the second stage will count in a round, as those reckon it who know what is distorted.

Byzantine workers of an experiment know the files, the scheme and each other: they can run the
server's detection and votes for themselves, on the labels that their own copies will give. What
follows from the server's secret they cannot know: the order in which it shuffles files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy.adversaries import Corruption, corrupted_labels
from fedrobust.redundancy.assignment import Assignment
from fedrobust.redundancy.decision import CONTESTED, Verdict, judge
from fedrobust.redundancy.plan import CODED
from fedrobust.redundancy.rounds import wrong_files
from fedrobust.redundancy.sources import by_worker, shared_out, split
from fedrobust.redundancy.voting import bucket_count
from fedrobust.redundancy.window import Window

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The vectors that are aggregated in a round, and which files of them are wrong.

    Attributes
    ----------
    groups
        The files of each vector, whose mean it is; single files where no sums are taken.
    wrong
        Each kept file that is wrong -> the worker whose copy stands for it.
    plain
        Whether the plain mean of all files is taken, not the rule.
    window
        The state of detection "window" after this round.
    """

    groups: Groups
    wrong: Mapping[int, int]
    plain: bool
    window: Window | None = None

    @property
    def kept(self) -> int:
        """How many files are kept."""
        return sum(map(len, self.groups))

    @property
    def owned(self) -> tuple[int, ...]:
        """Which of the vectors hold a wrong file."""
        held = enumerate(self.groups)
        return tuple(place for place, files in held if any(file in self.wrong for file in files))

    def base(self, values: Tensor) -> Tensor:
        """Return the vectors (m, d) of the files' true values (files, d), wrong files as zeros."""
        made = values.new_zeros(len(self.groups), values.shape[1])
        for row, files in zip(made, self.groups, strict=True):
            true = [file for file in files if file not in self.wrong]
            for file in true:
                row += values[file]
            if len(files) > 1:
                row /= len(files)
        return made


def counted(
    experiment: Experiment,
    files: Assignment,
    corruption: Corruption,
    *,
    server_round: int,
    window: Window | None = None,
    draws: torch.Generator,
) -> Counted:
    """Return what the server will aggregate if everybody answers in time.

    Parameters
    ----------
    files
        The round's assignment.
    corruption
        Which copies are distorted.
    window
        State of detection "window" after the last round.
    draws
        Of the shuffled files, in the place of the server's own.

    Notes
    -----
    Copies count as equal only where they are. Under ``redundancy.tolerance`` a distorted copy that
    is nearer than that is one of the true ones, which these reckon as wrong.
    """
    s, everything = experiment.redundancy, tuple(range(files.files))
    if s.name == CODED:  # it decodes the exact sum
        return Counted(groups=(everything,), wrong={}, plain=True)
    if s.distorts_from == "reveal":  # what is revealed against a promise is fetched elsewhere
        corruption = replace(corruption, distorted=torch.zeros_like(corruption.distorted))
    labels = corrupted_labels(files, corruption)
    verdict, after = judge(
        labels, q=s.q, detection=s.detection, length=s.window, window=window, copies=files.copies
    )
    chosen = verdict.chosen.tolist()
    stands = {file: worker for file, worker in enumerate(chosen) if worker >= 0}
    distorted = corruption.distorted
    wrong = {file: worker for file, worker in stands.items() if bool(distorted[worker, file])}
    plain = verdict.plain or (experiment.rule["name"] == "mean" and not experiment.pre)
    if not stands:
        groups: Groups = ()
    elif plain:
        groups = (tuple(stands),)
    elif s.detection == CONTESTED:
        groups = _buckets(experiment, verdict, labels, server_round, list(stands), draws)
    else:
        order = list(stands) if s.coordinates else _shuffled(list(stands), draws)
        groups = tuple((file,) for file in order)
    return Counted(groups=groups, wrong=wrong, plain=plain, window=after)


def _buckets(
    experiment: Experiment,
    verdict: Verdict,
    labels: Tensor,
    server_round: int,
    kept: list[int],
    draws: torch.Generator,
) -> Groups:
    """Return the files of each sum: by whom they come from, or by the order of files."""
    s = experiment.redundancy
    most = 0 if verdict.bound is None else wrong_files(s)
    count = bucket_count(experiment.rule["name"], files=len(kept), wrong=most)
    if s.tolerance:
        order = _shuffled(kept, draws)
        return tuple(tuple(order[place::count]) for place in range(count))
    first = server_round % s.workers
    sources = shared_out(verdict.holders(labels), fewest=True, first=first)
    cut = split(by_worker(sources), count)
    return tuple(tuple(part) for parts in cut.values() for part in parts)


def _shuffled(files: list[int], draws: torch.Generator) -> list[int]:
    return [files[place] for place in torch.randperm(len(files), generator=draws).tolist()]
