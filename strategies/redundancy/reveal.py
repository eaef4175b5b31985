"""The second half of commit and reveal: fetch what was voted for, and check it.

Every value is compared with its sender's own commitment, so a worker that reveals anything else is
caught, whatever the vote; the next worker that committed to the same value is asked instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import randbits

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower import commit_reveal
from fedrobust.redundancy.commitments import check_sum, digest, sketch, sketches_agree
from strategies.redundancy.exchange import Exchange, RoundLog, read_all

SAME = 1e-9  # relative difference of float64 sketches of one float32 vector, made elsewhere
Promised = Mapping[tuple[int, int], bytes]
Holders = Mapping[int, list[int]]


@dataclass(frozen=True)
class Reveal:
    """What one round's reveal needs to know.

    Attributes
    ----------
    questions, ledger
        Whom to ask, and where to note what comes of it.
    promised
        (worker, file) -> the digest that it committed to.
    holders
        File -> the workers that committed to its chosen value, in order of preference.
    d, largest
        Length of a vector, and its greatest accepted magnitude.
    """

    questions: Exchange
    ledger: RoundLog
    promised: Promised
    holders: Holders
    d: int
    largest: float

    def sources(self, files: list[int]) -> dict[int, int]:
        """Return file -> the first of its holders that is still to be believed."""
        found = {}
        for file in files:
            usable = (worker for worker in self.holders[file] if self.ledger.usable(worker))
            if (worker := next(usable, None)) is not None:
                found[file] = worker
        return found


def by_worker(sources: Mapping[int, int]) -> dict[int, list[int]]:
    """Turn file -> worker around: worker -> its files, in order."""
    groups: dict[int, list[int]] = {}
    for file in sorted(sources):
        groups.setdefault(sources[file], []).append(file)
    return groups


def reveal_files(
    job: Reveal,
    files: list[int],
    accept: Callable[[int, int, Tensor], bool] = lambda worker, file, value: True,
) -> tuple[dict[int, Tensor], dict[int, int]]:
    """Fetch whole gradients, one per file.

    Parameters
    ----------
    accept
        A further check of (worker, file, value) where the value matches its digest, for copies
        compared by tolerance; a worker that fails it is caught.

    Returns
    -------
    file -> its gradient (d,), and file -> the worker it came from. A file that nobody can reveal
    any more is in neither.
    """
    values: dict[int, Tensor] = {}
    origin: dict[int, int] = {}
    pending = list(files)
    while sources := job.sources(pending):
        for worker, got in _ask_slices(job, sources, 0, job.d).items():
            for file, value in got.items():
                if digest(value) != job.promised[worker, file]:
                    job.ledger.catch(worker, f"revealed another value of file {file}")
                elif not accept(worker, file, value):
                    job.ledger.catch(worker, f"its sketch of file {file} was another value's")
                else:
                    values[file], origin[file] = value, worker
        pending = [file for file in pending if file not in values]
    return values, origin


def reveal_slices(
    job: Reveal, files: list[int], *, width: int, combine: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[int, int]]:
    """Fetch and aggregate ``width`` coordinates at a time: memory O(files x width + d).

    Digests are checked when the last slice has come. A worker that fails is caught, and the whole
    pass is made again without it: at most one pass more for each liar.

    Returns
    -------
    The aggregate (d,), and file -> the worker it came from.

    Raises
    ------
    ValueError
        If no file can be revealed.
    """
    while sources := job.sources(files):
        hashes = {file: hashlib.sha256() for file in sources}
        result, before = torch.empty(job.d), len(job.ledger.caught) + len(job.ledger.refused)
        for start in range(0, job.d, width):
            stop = min(start + width, job.d)
            rows = {f: v for got in _ask_slices(job, sources, start, stop).values()
                    for f, v in got.items()}  # fmt: skip
            if len(rows) < len(sources):
                break
            for file, row in rows.items():
                hashes[file].update(row.contiguous().numpy().astype("<f4", copy=False).tobytes())
            result[start:stop] = combine(torch.stack([rows[file] for file in sorted(rows)]))
        else:
            for file, worker in sources.items():
                if hashes[file].digest() != job.promised[worker, file]:
                    job.ledger.catch(worker, f"revealed another value of file {file}")
        if len(job.ledger.caught) + len(job.ledger.refused) == before:
            return result, sources
    raise Refusal("no file could be revealed")


def _ask_slices(
    job: Reveal, sources: Mapping[int, int], start: int, stop: int
) -> dict[int, dict[int, Tensor]]:
    """Ask each source for a slice of its files; return worker -> file -> value."""
    groups = by_worker(sources)
    asked = {
        worker: commit_reveal.order("reveal", files=files, start=start, stop=stop)
        for worker, files in groups.items()
    }
    replies = job.questions.ask(asked)
    found: dict[int, dict[int, Tensor]] = {}

    def read(message: Message, worker: int) -> dict[str, Tensor | str]:
        names = [str(file) for file in groups[worker]]
        return commit_reveal.read_values(message, names, shape=(stop - start,), largest=job.largest)

    for worker, values in read_all(replies, asked, read, job.ledger).items():
        found[worker] = {}
        for name, value in values.items():
            if isinstance(value, str):
                job.ledger.refuse(worker, f"file {name}: {value}")
            else:
                found[worker][int(name)] = value
                job.ledger.up("reveal", value.nbytes)
    return found


def ask_sketches(
    questions: Exchange, files_of: Mapping[int, list[int]], *, size: int, ledger: RoundLog
) -> tuple[dict[tuple[int, int], Tensor], int]:
    """Draw a seed, now that all have committed; return (worker, file) -> sketch, and the seed.

    The seed comes from the system's entropy: one that followed from the experiment would be known
    to liars before they commit.
    """
    seed = randbits(62)
    order = commit_reveal.order("sketch", seed=seed, size=size)
    asked = dict.fromkeys(files_of, order)
    replies = questions.ask(asked)

    def read(message: Message, worker: int) -> Tensor:
        return commit_reveal.read_sketches(message, files=len(files_of[worker]), size=size)

    found: dict[tuple[int, int], Tensor] = {}
    for worker, rows in read_all(replies, asked, read, ledger).items():
        ledger.up("sketch", rows.nbytes)
        found |= {(worker, file): row for file, row in zip(files_of[worker], rows, strict=True)}
    return found, seed


def reveal_sum(
    job: Reveal, files_of: Mapping[int, list[int]], *, size: int, alone: bool
) -> tuple[Tensor, dict[int, int]]:
    """Fetch the sum over all files as one partial sum per worker.

    A partial sum is checked against the sketches of its files, which at least two workers that
    committed to one value must give alike; where they differ the file itself is fetched, and its
    digest says who lied. The server holds one vector per worker.

    Parameters
    ----------
    files_of
        Worker -> the files it committed to.
    size
        Of the sketches.
    alone
        Whether a worker is believed on a file of which no other one holds the chosen value: only
        where all liars are known.

    Returns
    -------
    The sum (d,), and file -> the worker it came from; files that nobody could reveal are left out.
    """
    files = sorted(job.holders)
    sketches, seed = ask_sketches(job.questions, files_of, size=size, ledger=job.ledger)
    sure = [file for file in files if _confirmed(job, file, sketches, alone)]
    total, origin = torch.zeros(job.d), dict[int, int]()
    while sources := job.sources([file for file in sure if file not in origin]):
        for worker, (held, value) in _ask_sums(job, by_worker(sources)).items():
            parts = torch.stack([sketches[worker, file] for file in held])
            if check_sum(value, parts, seed=seed):
                total += value
                origin |= dict.fromkeys(held, worker)
            else:
                job.ledger.catch(worker, "revealed a sum that is not that of its files")
    left = [file for file in files if file not in origin]
    values, singly = reveal_files(job, left)
    for file, value in values.items():
        total += value
        _compare_sketches(job, file, sketch(value, seed=seed, size=size), sketches)
    return total, origin | singly


def _ask_sums(job: Reveal, groups: Mapping[int, list[int]]) -> dict[int, tuple[list[int], Tensor]]:
    """Ask workers for the sum over their files; return worker -> its files and their sum."""
    asked = {worker: commit_reveal.order("sum", files=held) for worker, held in groups.items()}
    found: dict[int, tuple[list[int], Tensor]] = {}

    def read(message: Message, worker: int) -> Tensor | str:
        settings = {"shape": (job.d,), "largest": job.largest}
        return commit_reveal.read_values(message, ["sum"], **settings)["sum"]

    for worker, value in read_all(job.questions.ask(asked), asked, read, job.ledger).items():
        if isinstance(value, str):
            job.ledger.refuse(worker, f"sum: {value}")
        else:
            job.ledger.up("sum", value.nbytes)
            found[worker] = groups[worker], value
    return found


def _confirmed(
    job: Reveal, file: int, sketches: Mapping[tuple[int, int], Tensor], alone: bool
) -> bool:
    """Whether the holders of a file's chosen value give one sketch of it."""
    told = [sketches[w, file] for w in job.holders[file] if (w, file) in sketches]
    if not told or (len(told) == 1 and not alone):
        return False
    return all(sketches_agree(told[0], other, tolerance=SAME) for other in told)


def _compare_sketches(
    job: Reveal, file: int, true: Tensor, sketches: Mapping[tuple[int, int], Tensor]
) -> None:
    """Catch the workers whose sketch is not that of the value to which they committed."""
    for worker in job.holders[file]:
        told = sketches.get((worker, file))
        if told is not None and not sketches_agree(true, told, tolerance=SAME):
            job.ledger.catch(worker, f"its sketch of file {file} is not that of its value")
