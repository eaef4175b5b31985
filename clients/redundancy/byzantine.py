"""What Byzantine file workers send for each of their files.

All nodes hold the data, so an omniscient attacker needs no side channel: it computes what the
honest workers will send. The Byzantine workers of one round agree on their values unless the
adversary does not collude.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clients.node import Node
from clients.redundancy.gradients import CHUNK, FileGradients
from fedrobust.attacks import craft, threat_model
from fedrobust.redundancy import Corruption, rounds
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.seeds import generator

APART = 1e-3
ANY = -1  # one vector, whatever the file


class ByzantineWorkers:
    """The Byzantine workers of one round on one host, and the values that they send.

    What they see: "own" the true gradient of the very file, "colluding" those of all files that one
    of them holds, "omniscient" those of all files, each once. (The authors' code takes the moments
    over all honest returns: the same weights where every file has r copies.)

    Notes
    -----
    Byzantine workers that do not collude scale their value by 1 + rank / 1000, so that no two
    agree: an interpretation, the papers only say that they act by themselves.
    """

    def __init__(self, node: Node, honest: FileGradients, workers: tuple[int, ...]) -> None:
        self._experiment = e = node.experiment
        self._honest = honest
        self.workers = workers
        self.distorts_from = e.redundancy.distorts_from
        self.corruption: Corruption = rounds.corruption(e, workers, honest.assignment)
        self._level = threat_model.knowledge(e.attack)
        place = honest.place
        b = place.statistics.numel()
        self._model = torch.cat([place.vector, place.statistics]) if b else place.vector
        self._layers = node.model.layers + ((("statistics", (b,)),) if b else ())
        self._common: Tensor | None = None
        self._sent: dict[tuple[int, int], Tensor] = {}
        self._digests: dict[tuple[int, int], bytes] = {}

    def distorts(self, worker: int, file: int) -> bool:
        """Whether a worker distorts a file."""
        return bool(self.corruption.distorted[worker, file])

    def value(self, worker: int, file: int) -> Tensor:
        """Return what a worker sends for a file, (d + b,): the truth where it does not distort."""
        if not self.distorts(worker, file):
            return self._honest.value(file)
        key = self._key(worker, file)
        if key not in self._sent:
            rank, place = key
            self._sent[key] = _apart(self._crafted(place), rank).clone()
        return self._sent[key]

    def digest(self, worker: int, file: int) -> bytes:
        """Return the digest of what a worker sends for a file.

        The value itself is not kept: who is flagged is never asked for it. All Byzantine holders'
        digests are made at once, from one crafted value.
        """
        if not self.distorts(worker, file):
            return self._honest.digest(file)
        key = self._key(worker, file)
        if key not in self._digests:
            crafted = self._crafted(key[1])
            holders = (other for other in self.workers if self.distorts(other, file))
            for made in {self._key(other, file) for other in holders} - set(self._digests):
                self._digests[made] = digest(_apart(crafted, made[0]))
        return self._digests[key]

    def sketches(self, worker: int, files: Sequence[int], *, seed: int, size: int) -> Tensor:
        """Return sketches of what a worker sends, (files, size) float64."""
        made = self._honest.sketches(files, seed=seed, size=size)
        false = [place for place, file in enumerate(files) if self.distorts(worker, file)]
        for start in range(0, len(false), CHUNK):
            part = false[start : start + CHUNK]
            values = torch.stack([self.value(worker, files[place]) for place in part])
            made[part] = sketch(values, seed=seed, size=size)
        return made

    def _key(self, worker: int, file: int) -> tuple[int, int]:
        """Name a value: who of those that do not collude, and which file where it matters."""
        rank = 0 if self.corruption.colluding else 1 + self.workers.index(worker)
        return rank, file if self._level == "own" else ANY

    def _crafted(self, file: int) -> Tensor:
        if file != ANY:
            return self._craft(self._honest.value(file)[None], file)
        if self._common is None:
            self._common = self._craft(self._view(), 0).clone()
        return self._common

    def _craft(self, view: Tensor, file: int) -> Tensor:
        e = self._experiment
        source = generator(e.seed, "attack", round=self._honest.place.plan.round, client=file)
        rows = craft(
            view,
            e.attack,
            n=e.clients,
            f=len(self.workers),
            round=self._honest.place.plan.round - 1,
            rule=e.rule,
            generator=source,
            layers=self._layers,
            model=self._model,
        )
        return rows[0]

    def _view(self) -> Tensor:
        """Return the gradients that the attackers see, (files seen, d)."""
        holds = self._honest.assignment.matrix
        if self._level == "omniscient":
            return self._honest.all_values()
        seen = holds[list(self.workers)].any(0).nonzero().flatten().tolist()
        return torch.stack([self._honest.value(file) for file in seen])


def _apart(value: Tensor, rank: int) -> Tensor:
    """Move a value away from those of the other ranks; rank 0 colludes."""
    return value * (1 + APART * rank) if rank else value


def byzantine_of(node: Node, honest: FileGradients, workers: tuple[int, ...]) -> ByzantineWorkers:
    """Return the Byzantine workers of a turn, made once for all workers of a host."""
    made = honest.beside.get(workers)
    if made is None:
        made = honest.beside[workers] = ByzantineWorkers(node, honest, workers)
    return made
