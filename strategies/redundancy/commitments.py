"""Read what workers commit to, and tell which copies agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message
from torch import Tensor

from fedrobust.flower import commit_reveal
from fedrobust.redundancy import Assignment, label_digests, label_values
from fedrobust.redundancy.commitments import ROUNDING, sketch, sketches_agree
from fedrobust.redundancy.uploads import DIGEST
from fedrobust.seeds import derive
from strategies.redundancy.exchange import Exchange, RoundLog, read_all
from strategies.redundancy.reveal import ask_sketches

Accept = Callable[[int, int, Tensor], bool]
SAME = 5 * ROUNDING  # as in ``sums``: two sketches of one vector


def held_files(files: Assignment, workers: Iterable[int]) -> dict[int, list[int]]:
    """Return worker -> its files, in order."""
    return {w: files.matrix[w].nonzero().flatten().tolist() for w in workers}


def read_commitments(
    heard: Mapping[int, Message], held: Mapping[int, list[int]], ledger: RoundLog
) -> dict[tuple[int, int], bytes]:
    """Read who committed to what: (worker, file) -> digest."""

    def read(message: Message, worker: int) -> tuple[bytes, ...]:
        return commit_reveal.read_digests(message, files=len(held[worker]))

    promised: dict[tuple[int, int], bytes] = {}
    for worker, digests in read_all(heard, held, read, ledger).items():
        ledger.up("commit", DIGEST * len(digests))
        promised |= {(worker, f): d for f, d in zip(held[worker], digests, strict=True)}
    return promised


def labels_of(
    promised: Mapping[tuple[int, int], bytes],
    files: Assignment,
    exchange: Exchange,
    ledger: RoundLog,
    *,
    tolerance: float,
    size: int,
    secret: int,
) -> tuple[Tensor, Accept | None]:
    """Tell which copies agree: by their digests, or with a tolerance by their sketches.

    The sketches' seed follows from the server's secret, and is sent after everybody has committed
    to a digest of the whole vector. Also returned, with a tolerance: a check of a revealed value
    against its sender's sketch.
    """
    shape = {"workers": files.workers, "files": files.files}
    if not tolerance:
        return label_digests(promised, **shape), None
    held = held_files(files, sorted({worker for worker, _ in promised}))
    seed = derive(secret, "sketches of copies", round=exchange.round)
    sketches = ask_sketches(exchange, held, seed=seed, size=size, ledger=ledger)

    def accept(worker: int, file: int, value: Tensor) -> bool:
        own = sketch(value, seed=seed, size=size)
        return sketches_agree(own, sketches[worker, file], tolerance=SAME)

    return label_values(sketches, tolerance=tolerance, **shape), accept
