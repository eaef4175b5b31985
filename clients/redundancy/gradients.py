"""The gradients of one round's files at one model, each computed once, whoever asks for it.

In simulation all workers of a host share one bench: redundancy is simulated, not paid for. On a
real node the bench holds what that node has computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from clients.node import Node
from fedrobust.adversarial import adversarial_objective
from fedrobust.evaluation import pixels
from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy import Assignment, rounds
from fedrobust.redundancy.commitments import digest, sketch
from fedrobust.seeds import generator
from fedrobust.training import one_thread, train_local
from fedrobust.training.losses import Loss, cross_entropy
from fedrobust.vector import FlatModel

LARGEST = 8 * 2**30  # bytes of gradients that a bench keeps; with more, it computes them anew
CHUNK = 64  # files sketched at once


class FileGradients:
    """Honest values of a round: gradients, digests and sketches of files, on demand.

    Parameters
    ----------
    node
        Holds the whole training set and a scratch model.
    """

    def __init__(self, node: Node) -> None:
        self.experiment = node.experiment
        self._node = node
        self._memory = torch.empty(0)
        self.turn: tuple[int, bytes] | None = None

    def turn_to(self, vector: Tensor, round: int) -> FileGradients:
        """Start on a round's files at a model, unless that is where it stands; return itself.

        The memory of the last round is used again: whoever still holds a value of it loses it.
        """
        turn = (round, digest(vector))
        if self.turn == turn:
            return self
        self.turn, self.round, self._vector = turn, round, vector.cpu()
        self.assignment: Assignment = rounds.assignment(self.experiment, round=round)
        examples = len(self._node.labels[0])
        self._indices = rounds.file_indices(self.experiment, examples=examples, round=round)
        fits = self.assignment.files * vector.nbytes <= LARGEST
        shape = (self.assignment.files if fits else 0, vector.numel())
        if tuple(self._memory.shape) != shape:
            self._memory = torch.empty(shape)
        self._rows = self._memory
        self._ready: set[int] = set()
        self._digests: dict[int, bytes] = {}
        self._sketches: dict[tuple[int, int], dict[int, Tensor]] = {}
        return self

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self._vector.numel()

    def files_of(self, client: int) -> list[int]:
        """Return a worker's files, in order."""
        return self.assignment.matrix[client].nonzero().flatten().tolist()

    def gradient(self, file: int) -> Tensor:
        """Return the mean gradient over a file's samples, (d,). Read only."""
        if file in self._ready:
            return self._rows[file]
        group = self.experiment.redundancy.vmap_files
        first = file - file % group
        files = range(first, min(first + group, self.assignment.files))
        made = [self._compute(file)] if group == 1 else list(self._compute_together(files))
        if not len(self._rows):
            return made[file - first]
        for place, value in zip(files, made, strict=True):
            self._rows[place] = value
        self._ready.update(files)
        return self._rows[file]

    def all_gradients(self) -> Tensor:
        """Return the gradients of all files, (files, d). Read only."""
        made = [self.gradient(file) for file in range(self.assignment.files)]
        return self._rows if len(self._rows) else torch.stack(made)

    def digest(self, file: int) -> bytes:
        """Return the digest of a file's gradient."""
        if file not in self._digests:
            self._digests[file] = digest(self.gradient(file))
        return self._digests[file]

    def sketches(self, files: Sequence[int], *, seed: int, size: int) -> Tensor:
        """Return sketches of the files' gradients, (len(files), size) float64."""
        known = self._sketches.setdefault((seed, size), {})
        wanted = [file for file in {*files, *self._ready} if file not in known]
        for start in range(0, len(wanted), CHUNK):
            part = sorted(wanted)[start : start + CHUNK]
            made = sketch(torch.stack([self.gradient(f) for f in part]), seed=seed, size=size)
            known |= dict(zip(part, made, strict=True))
        return torch.stack([known[file] for file in files])

    def total(self, files: Sequence[int], value: Callable[[int], Tensor] | None = None) -> Tensor:
        """Return the sum over files of their gradients, or of what ``value`` makes of each."""
        value = value or self.gradient
        result = torch.zeros_like(self._vector)
        for file in files:
            result += value(file)
        return result

    def _compute_together(self, files: range) -> Tensor:
        """Compute a group's gradients at once, (len(files), d), by vmap over the files."""
        chosen = self._indices[files.start : files.stop]
        data = self._node.images[0][chosen], self._node.labels[0][chosen]
        with one_thread():
            made = gradients_together(self._node.model, self._vector, *data).cpu()
        if decay := self.experiment.training.weight_decay:
            made.add_(self._vector, alpha=decay)
        return made

    def _compute(self, file: int) -> Tensor:
        """Compute a gradient; all that is random in it is seeded by the file, not by the worker."""
        chosen = self._indices[file]
        images, labels = self._node.images[0][chosen], self._node.labels[0][chosen]
        seeded = partial(generator, self.experiment.seed, round=self.round, client=file)
        with one_thread():
            update, _ = train_local(
                self._node.model,
                self._vector.to(images.device),
                images,
                labels,
                replace(self.experiment.training, batch_size=len(labels)),
                generator=seeded("file order"),
                loss=_loss(self.experiment, seeded("file perturbation")),
            )
        return update.cpu()


def gradients_together(model: FlatModel, vector: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy gradient of each file, (files, d).

    Parameters
    ----------
    model
        Gives the architecture; its parameters are overwritten. No batch normalisation.
    vector
        Where the gradients are taken, (d,).
    images, labels
        uint8 (files, samples, C, H, W) and int64 (files, samples).
    """
    model.load(vector)
    parameters = {name: p.detach() for name, p in model.module.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model.module, values, (x,)), y)

    made = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, pixels(images), labels)
    return torch.cat([made[name].flatten(1) for name in parameters], 1)


def _loss(experiment: Experiment, source: torch.Generator) -> Loss:
    settings = experiment.adversarial
    if not settings.perturbation:
        return cross_entropy
    return adversarial_objective(
        perturbation=settings.perturbation,
        loss=settings.loss,
        fraction=settings.fraction,
        generator=source,
    )


def open_bench(node: Node, vector: Tensor, round: int) -> FileGradients:
    """Return the host's bench, turned to a round and a model (d,)."""
    return _open(_Key(node.experiment.run_id, node)).turn_to(vector, round)


@dataclass(frozen=True)
class _Key:
    """A node, known by its experiment."""

    run_id: str
    node: Node = field(compare=False)


@lru_cache(maxsize=1)
def _open(key: _Key) -> FileGradients:
    return FileGradients(key.node)
