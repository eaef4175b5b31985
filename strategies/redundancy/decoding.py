"""DRACO's cyclic code on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from flwr.app import Message
from torch import Tensor

from fedrobust.flower import commit_reveal
from fedrobust.redundancy.draco import PAIR, Decoded, decode_cyclic, join_floats
from fedrobust.seeds import generator
from strategies.redundancy.exchange import RoundLog, read_all


def decode(
    heard: Mapping[int, Message],
    asked: Iterable[int],
    ledger: RoundLog,
    *,
    workers: int,
    replication: int,
    length: int,
    largest: float,
    secret: int,
    round: int,
) -> Decoded:
    """Read the workers' combinations and recover the sum of all files, (length,) float64.

    The direction on which the combinations are projected follows from the server's secret, and is
    drawn when all of them have come.
    """
    # Double: in single precision the code fails from 25 workers on. Who is silent has a row of
    # zeros, which is one more wrong row to the decoder.
    received = torch.zeros(workers, length, dtype=torch.complex128)

    def read(message: Message, worker: int) -> Tensor | str:
        # Real and imaginary parts, each as the float32 nearest to it and the float32 of what is
        # left.
        shape = (4, length)
        return commit_reveal.read_values(message, ["code"], shape=shape, largest=largest)["code"]

    for worker, value in read_all(heard, asked, read, ledger).items():
        if isinstance(value, str):
            ledger.refuse(worker, value)
            continue
        ledger.up("code", value.nbytes)
        received[worker] = join_floats(value)
    source = generator(secret, "code", round=round)
    return decode_cyclic(received, s=(replication - 1) // 2, generator=source, rounding=PAIR)
