"""The second half of commit and reveal: fetch the values of single files, and check them.

Every value is compared with its sender's own commitment, so a worker that reveals anything else is
caught, whatever the vote; the next worker that committed to the same value is asked instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.failures import Refusal
from fedrobust.flower import commit_reveal
from fedrobust.flower.commit_reveal import FLOAT
from fedrobust.redundancy.commitments import digest
from fedrobust.redundancy.sources import Holders, by_worker, shared_out
from strategies.redundancy.exchange import Exchange, RoundLog, read_all

Promised = Mapping[tuple[int, int], bytes]


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """What one round's reveal needs to know.

    Attributes
    ----------
    questions, ledger
        Whom to ask, and where to note what comes of it.
    promised
        (worker, file) -> the digest that it committed to.
    holders
        File -> the workers that committed to its chosen value.
    length, largest
        Length of a file's value (d + b), and its greatest accepted magnitude.
    late
        Workers that were silent before: they are asked where nobody else can be.
    """

    questions: Exchange
    ledger: RoundLog
    promised: Promised
    holders: Holders
    length: int
    largest: float
    late: Collection[int] = ()

    def believed(self, file: int) -> list[int]:
        """Return the holders of a file that have kept their word, those in time first."""
        usable = [worker for worker in self.holders[file] if self.ledger.usable(worker)]
        in_time = [worker for worker in usable if worker not in self.late]
        return in_time or usable

    def sources(self, files: Iterable[int], *, fewest: bool = False) -> dict[int, int]:
        """Choose file -> a believed holder to fetch it from, as ``shared_out`` does."""
        able = {file: found for file in files if (found := self.believed(file))}
        first = self.questions.round % len(self.questions.clients)
        return shared_out(able, fewest=fewest, first=first)


def reveal_files(
    job: Reveal,
    files: Iterable[int],
    accept: Callable[[int, int, Tensor], bool] = lambda worker, file, value: True,
) -> tuple[dict[int, Tensor], dict[int, int]]:
    """Fetch whole values, one per file.

    Parameters
    ----------
    accept
        A further check of (worker, file, value) where the value matches its digest, for copies
        compared by tolerance; a worker that fails it is caught.

    Returns
    -------
    file -> its value (d + b,), and file -> the worker it came from. A file that nobody can reveal
    any more is in neither.
    """
    values: dict[int, Tensor] = {}
    origin: dict[int, int] = {}
    pending = list(files)
    # Ends: what is not delivered in a pass puts a holder into the log, and ``believed`` leaves it
    # out.
    while sources := job.sources(pending):
        for worker, got in _ask_slices(job, sources, 0, job.length).items():
            for file, value in got.items():
                if digest(value) != job.promised[worker, file]:
                    job.ledger.catch(worker, f"revealed another value of file {file}")
                elif not accept(worker, file, value):
                    job.ledger.catch(worker, f"sketched another value than that of file {file}")
                else:
                    values[file], origin[file] = value, worker
        pending = [file for file in pending if file not in values]
    return values, origin


def reveal_slices(
    job: Reveal, files: Iterable[int], *, width: int, combine: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[int, int]]:
    """Fetch and aggregate ``width`` coordinates at a time: memory O(files x width + d).

    Digests are checked when the last slice has come. A worker that fails is caught, and the whole
    pass is made again without it: at most one pass more for each Byzantine worker.

    Returns
    -------
    The aggregate (d + b,), and file -> the worker it came from.

    Raises
    ------
    ValueError
        If no file can be revealed.
    """
    while sources := job.sources(files):
        hashes = {file: hashlib.sha256() for file in sources}
        result, before = torch.empty(job.length), len(job.ledger.caught) + len(job.ledger.refused)
        for start in range(0, job.length, width):
            stop = min(start + width, job.length)
            rows = {f: v for got in _ask_slices(job, sources, start, stop).values()
                    for f, v in got.items()}  # fmt: skip
            # Somebody was refused or silent: the pass begins anew with another holder of its files.
            if len(rows) < len(sources):
                break
            for file, row in rows.items():
                # Little-endian, as ``digest`` has it, on whatever machine the server is.
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
        worker: commit_reveal.order(
            "reveal",
            arrays=len(files),
            size=len(files) * (stop - start) * FLOAT,
            files=files,
            start=start,
            stop=stop,
        )
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
    questions: Exchange,
    files_of: Mapping[int, list[int]],
    *,
    seed: int,
    size: int,
    ledger: RoundLog,
) -> dict[tuple[int, int], Tensor]:
    """Ask workers for sketches of files; return (worker, file) -> sketch.

    The seed must have been drawn after everything that the sketches are to check has come.
    """
    asked = {
        worker: commit_reveal.order(
            "sketch", size=len(files) * size * FLOAT, seed=seed, width=size, files=files
        )
        for worker, files in files_of.items()
    }
    replies = questions.ask(asked)

    def read(message: Message, worker: int) -> Tensor:
        return commit_reveal.read_sketches(message, files=len(files_of[worker]), size=size)

    found: dict[tuple[int, int], Tensor] = {}
    for worker, rows in read_all(replies, asked, read, ledger).items():
        ledger.up("sketch", rows.numel() * FLOAT)
        found |= {(worker, file): row for file, row in zip(files_of[worker], rows, strict=True)}
    return found
