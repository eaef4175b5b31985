"""What Byzantine file workers send for each of their files.

All nodes hold the data, so an omniscient attacker needs no side channel: it computes what the
honest workers will send. The Byzantine workers of one round agree on their values unless the
adversary does not collude.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Context
from torch import Tensor

from clients.node import Node
from clients.redundancy.crafting import APART, agreed, layers_of, model_of, rank, thinks
from clients.redundancy.gradients import CHUNK, FileGradients
from clients.redundancy.memory import Memory, keep
from fedrobust.attacks import craft, threat_model
from fedrobust.redundancy import Corruption, rounds
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.seeds import generator

ANY = -1  # one vector, whatever the file


class ByzantineWorkers:
    """The Byzantine workers of one round on one host, and the values that they send.

    What they see: "own" the true gradient of the very file, "colluding" those of all files that one
    of them holds, "omniscient" those of all files, each once. (The authors' code takes the moments
    over all honest returns: the same weights where every file has r copies.)

    Notes
    -----
    Byzantine workers that do not collude scale their value by 1 + rank / 1000, so that no two
    agree: an interpretation, the papers only say that they act by themselves. An attack that asks
    the rule asks the second stage over what it knows will be voted for: see ``counted``.
    """

    def __init__(
        self, node: Node, honest: FileGradients, workers: tuple[int, ...], context: Context
    ) -> None:
        self._node, self._context = node, context
        self._experiment = e = node.experiment
        self._honest = honest
        self.workers = workers
        self.distorts_from = e.redundancy.distorts_from
        self.corruption: Corruption = rounds.corruption(e, workers, honest.assignment)
        self._level = threat_model.knowledge(e.attack)
        self._agreed: Memory | None = None
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
            number, place = key
            self._sent[key] = _apart(self._crafted(place), number).clone()
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

    def remember(self, context: Context) -> Mapping[str, Any]:
        """Let a worker's node keep what the attackers know; return what they say of their choice.

        Nothing is kept for attacks that neither remember nor ask the rule.
        """
        if not thinks(self._experiment):
            return {}
        known, plan = self._common(), self._honest.place.plan
        if known.model is not None:  # made here, not taken over from an earlier stage
            keep(context, known, server_round=plan.round, workers=self.workers)
        return known.notes

    def _key(self, worker: int, file: int) -> tuple[int, int]:
        """Name a value: who of those that do not collude, and which file where it matters."""
        number = rank(self.corruption, self.workers, worker)
        return number, file if self._level == "own" else ANY

    def _crafted(self, file: int) -> Tensor:
        if file == ANY:
            sent = self._common().sent
            assert sent is not None, "all that is agreed on is a vector"
            return sent
        e, turn = self._experiment, self._honest.place.plan.round
        rows = craft(
            self._honest.value(file)[None],
            e.attack,
            n=e.clients,
            f=len(self.workers),
            round=turn - 1,
            rule=e.rule,
            generator=generator(e.seed, "attack", round=turn, client=file),
            layers=layers_of(self._node, self._honest),
            model=model_of(self._honest),
        )
        return rows[0]

    def _common(self) -> Memory:
        if self._agreed is None:
            self._agreed = agreed(
                self._node, self._honest, self.workers, self.corruption, self._context
            )
        return self._agreed


def _apart(value: Tensor, number: int) -> Tensor:
    """Move a value away from those of the other ranks; rank 0 colludes."""
    return value * (1 + APART * number) if number else value


def byzantine_of(
    node: Node, honest: FileGradients, workers: tuple[int, ...], context: Context
) -> ByzantineWorkers:
    """Return the Byzantine workers of a turn, made once for all workers of a host."""
    made = honest.beside.get(workers)
    if made is None:
        made = honest.beside[workers] = ByzantineWorkers(node, honest, workers, context)
    return made
