"""Fetch sums over files instead of the files, and check them by sketches drawn afterwards.

The order of the steps is what makes the check hold. The sums come first: what arrived is a
commitment that nobody can take back. Then the server draws a seed that nobody could foresee, and
all holders of the summed files sketch what they committed to. A worker that knew the seed before
could add any vector of the sketch's null space to its sum. Each attempt has a seed of its own, for
the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.flower import commit_reveal
from fedrobust.flower.commit_reveal import FLOAT
from fedrobust.redundancy.commitments import (
    ROUNDING,
    digest,
    sketch,
    sketches_agree,
    sums_agree,
)
from fedrobust.redundancy.sources import by_worker, split
from strategies.redundancy.exchange import read_all
from strategies.redundancy.reveal import Reveal, ask_sketches, reveal_files

SIZE = 8  # Gaussian directions: enough to see an error, see `sketch`
SAME = 5 * ROUNDING  # of two sketches of one float32 vector
SLACK = 5 * ROUNDING  # of a sum, relative to the sum of its files' norms
Sketches = Mapping[tuple[int, int], Tensor]


@dataclass(frozen=True)
class PartialSum:
    """The checked sum (d + b,) of some files."""

    files: tuple[int, ...]
    total: Tensor


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far the workers' word is trusted.

    Attributes
    ----------
    seed
        Attempt -> the seed of its sketches, from the server's secret.
    q
        The most Byzantine workers among the holders.
    known
        Whether every Byzantine worker is convicted already: nothing needs a check.
    """

    seed: Callable[[int], int]
    q: int
    known: bool = False


def reveal_sums(
    job: Reveal, *, groups: int = 1, check: Check
) -> tuple[list[PartialSum], dict[int, int]]:
    """Fetch every file as part of a sum.

    Parameters
    ----------
    groups
        Fewest sums that are wanted; each is one worker's, over files of its own.

    Returns
    -------
    The sums, disjoint, and file -> the worker it came from; files that nobody could reveal are left
    out.

    Notes
    -----
    A sum over one file is compared with its digest. A longer one is compared with the sketches of
    its files, on each of which all its holders must agree, or more than q of them; a file whose
    holders differ is fetched by itself, and its digest says who was false.

    What a Byzantine worker can add unseen to a sum is bounded: an error e passes only if its sketch
    is shorter than ``SLACK`` times the sum of the norms of the files' sketches. With 8 Gaussian
    directions, |e| is then below 20 ``SLACK`` = 1e-3 times the sum of the norms except with
    probability 4e-10.
    """
    found: list[PartialSum] = []
    origin: dict[int, int] = {}
    alone: set[int] = set()  # files that no sum may hold any more
    attempt = 0
    while sources := job.sources(set(job.holders) - set(origin) - alone, fewest=True):
        answers = _ask_sums(job, split(by_worker(sources), groups))
        seed = check.seed(attempt)
        doubtful = [f for answer in answers for f in answer.files if len(answer.files) > 1]
        sketches = _sketched(job, doubtful, seed) if doubtful and not check.known else {}
        own = _own_sketches(answers, seed) if sketches else {}
        disputed = set[int]()
        for answer in answers:
            worker = sources[answer.files[0]]
            differ, missing = _unsure(job, answer.files, sketches, check)
            alone |= missing
            disputed |= set(sorted(differ)[:1])  # one is proof enough
            if differ or missing or not job.ledger.usable(worker):
                continue
            if check.known or _holds(job, worker, answer, sketches, own):
                found.append(answer)
                origin |= dict.fromkeys(answer.files, worker)
            else:
                job.ledger.catch(worker, "revealed a sum that is not that of its files")
        values, singly = reveal_files(job, sorted(disputed))
        for file, value in values.items():
            _compare_sketches(job, file, value, sketches, seed)
        found += [PartialSum((file,), value) for file, value in values.items()]
        origin |= singly
        attempt += 1
    values, singly = reveal_files(job, sorted(alone - set(origin)))
    found += [PartialSum((file,), value) for file, value in values.items()]
    return found, origin | singly


def _ask_sums(job: Reveal, asked: Mapping[int, list[list[int]]]) -> list[PartialSum]:
    """Ask workers for sums over groups of their files."""
    orders = {
        worker: commit_reveal.order(
            "sum",
            arrays=len(groups),
            size=len(groups) * job.length * FLOAT,
            files=[file for group in groups for file in group],
            lengths=[len(group) for group in groups],
        )
        for worker, groups in asked.items()
    }

    def read(message: Message, worker: int) -> dict[str, Tensor | str]:
        names = [str(place) for place in range(len(asked[worker]))]
        bounds = {"shape": (job.length,), "largest": job.largest}
        return commit_reveal.read_values(message, names, **bounds)

    found = []
    for worker, values in read_all(job.questions.ask(orders), orders, read, job.ledger).items():
        for name, value in values.items():
            if isinstance(value, str):
                job.ledger.refuse(worker, f"sum: {value}")
            else:
                job.ledger.up("sum", value.nbytes)
                found.append(PartialSum(tuple(asked[worker][int(name)]), value))
    return found


def _sketched(job: Reveal, files: Iterable[int], seed: int) -> dict[tuple[int, int], Tensor]:
    """Ask all believed holders of these files for their sketches."""
    wanted: dict[int, list[int]] = {}
    for file in sorted(files):
        for worker in job.holders[file]:
            if job.ledger.usable(worker):
                wanted.setdefault(worker, []).append(file)
    return ask_sketches(job.questions, wanted, seed=seed, size=SIZE, ledger=job.ledger)


def _unsure(
    job: Reveal, files: tuple[int, ...], sketches: Sketches, check: Check
) -> tuple[set[int], set[int]]:
    """Return the files on whose sketch the holders differ, and those of which too few gave one.

    All holders that are not proven Byzantine must vouch for a file, or more than q of them: one of
    those is honest, if any holder is.
    """
    differ, missing = set[int](), set[int]()
    if check.known or len(files) == 1:
        return differ, missing
    most = check.q - len(job.ledger.caught)
    for file in files:
        told = [sketches[w, file] for w in job.holders[file] if (w, file) in sketches]
        needed = sum(worker not in job.ledger.caught for worker in job.holders[file])
        if not told or len(told) < min(needed, most + 1):
            missing.add(file)
        elif not _alike(told):
            differ.add(file)
    return differ, missing


def _alike(told: Sequence[Tensor]) -> bool:
    """Whether all sketches (size,) of a file are those of one vector."""
    if all(torch.equal(told[0], other) for other in told[1:]):  # one profile, one value: common
        return bool(torch.isfinite(told[0]).all())
    return all(sketches_agree(told[0], other, tolerance=SAME) for other in told)


def _own_sketches(answers: Sequence[PartialSum], seed: int) -> dict[tuple[int, ...], Tensor]:
    """Sketch what came, all sums in one call: files of a sum -> its sketch."""
    longer = [answer for answer in answers if len(answer.files) > 1]
    made = sketch(torch.stack([answer.total for answer in longer]), seed=seed, size=SIZE)
    return {answer.files: row for answer, row in zip(longer, made, strict=True)}


def _holds(
    job: Reveal,
    worker: int,
    answer: PartialSum,
    sketches: Sketches,
    own: Mapping[tuple[int, ...], Tensor],
) -> bool:
    """Whether a sum is that of its files: by the digest of a single one, or by the sketches."""
    if len(answer.files) == 1:
        return digest(answer.total) == job.promised[worker, answer.files[0]]
    parts = torch.stack([sketches[worker, file] for file in answer.files])
    return sums_agree(own[answer.files], parts, tolerance=SLACK)


def _compare_sketches(job: Reveal, file: int, value: Tensor, sketches: Sketches, seed: int) -> None:
    """Catch the workers whose last sketch is not that of the value to which they committed."""
    told = {w: sketches[w, file] for w in job.holders[file] if (w, file) in sketches}
    if not told:
        return
    true = sketch(value, seed=seed, size=SIZE)
    for worker, other in told.items():
        if not sketches_agree(true, other, tolerance=SAME):
            job.ledger.catch(worker, f"sketched another value than that of file {file}")
