"""What a liar among the file workers sends for each of its files.

All nodes hold the data, so an omniscient liar needs no side channel: it computes what the honest
workers will send. The Byzantine workers of one round agree on their values unless the adversary
does not collude.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clients.redundancy.gradients import FileGradients
from fedrobust.attacks import craft, threat_model
from fedrobust.redundancy import Corruption, rounds
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.seeds import generator

APART = 1e-3
ANY = -1  # one vector, whatever the file


class ByzantineWorkers:
    """The liars of one round on one host, and the values that they send.

    What they see: "own" the true gradient of the very file, "colluding" those of all files that a
    liar holds, "omniscient" those of all files, each once. (The authors' code takes the moments
    over all honest returns: the same weights where every file has r copies.)

    Notes
    -----
    Byzantine workers that do not collude scale their value by 1 + rank / 1000, so that no two
    agree: an interpretation, the papers only say that they act by themselves.
    """

    def __init__(self, bench: FileGradients) -> None:
        e = bench.experiment
        self._bench = bench
        self.clients = threat_model.members(e, round=bench.round)
        self.corruption: Corruption = rounds.corruption(e, self.clients, round=bench.round)
        self._level = threat_model.knowledge(e.attack)
        self._common: Tensor | None = None
        self._sent: dict[tuple[int, int], Tensor] = {}
        self._digests: dict[tuple[int, int], bytes] = {}

    def distorts(self, client: int, file: int) -> bool:
        """Whether a client lies about a file."""
        return bool(self.corruption.distorted[client, file])

    def value(self, client: int, file: int) -> Tensor:
        """Return what a client sends for a file, (d,): the true gradient where it does not lie."""
        if not self.distorts(client, file):
            return self._bench.gradient(file)
        rank, place = key = self._key(client, file)
        if key not in self._sent:
            value = self._crafted(place)
            self._sent[key] = value * (1 + APART * rank) if rank else value
        return self._sent[key]

    def digest(self, client: int, file: int) -> bytes:
        """Return the digest of what a client sends for a file."""
        if not self.distorts(client, file):
            return self._bench.digest(file)
        key = self._key(client, file)
        if key not in self._digests:
            self._digests[key] = digest(self.value(client, file))
        return self._digests[key]

    def sketches(self, client: int, files: Sequence[int], *, seed: int, size: int) -> Tensor:
        """Return sketches of what a client sends, (files, size) float64."""
        values = torch.stack([self.value(client, file) for file in files])
        return sketch(values, seed=seed, size=size)

    def _key(self, client: int, file: int) -> tuple[int, int]:
        """Name a value: who of those that do not collude, and which file where it matters."""
        rank = 0 if self.corruption.colluding else 1 + self.clients.index(client)
        return rank, file if self._level == "own" else ANY

    def _crafted(self, file: int) -> Tensor:
        if file != ANY:
            return self._craft(self._bench.gradient(file)[None], file)
        if self._common is None:
            self._common = self._craft(self._view(), 0)
        return self._common

    def _craft(self, view: Tensor, file: int) -> Tensor:
        e = self._bench.experiment
        source = generator(e.seed, "attack", round=self._bench.round, client=file)
        rows = craft(
            view,
            e.attack,
            n=e.clients,
            f=len(self.clients),
            round=self._bench.round - 1,
            rule=e.rule,
            generator=source,
        )
        return rows[0].clone()

    def _view(self) -> Tensor:
        """Return the gradients that the liars see, (files seen, d)."""
        holds = self._bench.assignment.matrix
        if self._level == "omniscient":
            return self._bench.all_gradients()
        seen = holds[list(self.clients)].any(0).nonzero().flatten().tolist()
        return torch.stack([self._bench.gradient(file) for file in seen])


def liars_of(bench: FileGradients) -> ByzantineWorkers:
    """Return the Byzantine workers of a bench's turn, made once for all of its node's workers."""
    if "byzantine workers" not in bench.kept:
        bench.kept["byzantine workers"] = ByzantineWorkers(bench)
    return bench.kept["byzantine workers"]
