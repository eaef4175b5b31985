"""All mini-batches of a stack's clients, drawn before the first step.

One matrix of positions goes to the device, once; each step gathers its images with one operation,
however many clients there are, and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedrobust.cohort.member import Member
from fedrobust.training import augment
from fedrobust.training.local import batches
from fedrobust.training.losses import IGNORED


@dataclass(frozen=True)
class Batch:
    """The mini-batches of k clients in one step, filled up to the size of the largest, B.

    Attributes
    ----------
    images, labels
        (k, B, ...); the label of a row that was filled up is ``IGNORED``, its image is anything.
    draws
        What the augmentation needs, (draws, k B); None where there is none.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor | None


@dataclass(frozen=True)
class Pool:
    """Examples of all clients in one tensor, and where each client's begin.

    Attributes
    ----------
    examples
        (N, ...).
    first
        (m,) int64 on the CPU: example j of client i is number ``first[i] + j``.
    """

    examples: Tensor
    first: Tensor


@dataclass(frozen=True)
class Schedule:
    """Who trains on what in which step.

    Attributes
    ----------
    sizes
        Images of each client's batch in each step, as many steps as the client takes.
    images, labels
        All examples, on the device.
    at_images, at_labels
        (m, steps, B) positions in them, on the device.
    filled
        (m, steps, B), true where a batch is filled up; None where none is.
    draws
        (m, steps, B, draws); None where nothing is drawn.
    """

    sizes: list[list[int]]
    images: Tensor
    labels: Tensor
    at_images: Tensor
    at_labels: Tensor
    filled: Tensor | None
    draws: Tensor | None

    def batch(self, places: Sequence[int], step: int) -> Batch:
        """Return the batches of some clients in a step."""
        wide = max(self.sizes[i][step] for i in places)

        def of(matrix: Tensor) -> Tensor:
            own = matrix[: len(places)] if whole(places) else matrix[list(places)]
            return own[:, step, :wide]

        labels = self.labels[of(self.at_labels)]
        if self.filled is not None:
            rows = of(self.filled)
            labels = labels.masked_fill(rows.view(*rows.shape, *(1,) * (labels.dim() - 2)), IGNORED)
        draws = None if self.draws is None else of(self.draws).flatten(0, 1).T
        return Batch(self.images[of(self.at_images)], labels, draws)


def schedule(members: Sequence[Member]) -> Schedule:
    """Draw the mini-batches of all steps, each client's in the order of ``train_local``."""
    device = members[0].images.device
    drawn = [_drawn(member) for member in members]
    chosen = [[batch for batch, _ in steps] for steps in drawn]
    sizes = [[len(batch) for batch in steps] for steps in chosen]
    shape = len(members), max(map(len, sizes)), max(map(max, sizes))
    images, labels = pool([m.images for m in members]), pool([m.labels for m in members])
    local, filled = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)
    for i, steps in enumerate(chosen):
        for step, batch in enumerate(steps):
            local[i, step, : len(batch)] = batch
            filled[i, step, : len(batch)] = False
    return Schedule(
        sizes,
        images.examples,
        labels.examples,
        (local + images.first[:, None, None]).to(device),
        (local + labels.first[:, None, None]).to(device),
        filled.to(device) if bool(filled.any()) else None,
        _draws(drawn, shape, device) if members[0].recipe.augment != augment.NONE else None,
    )


def whole(places: Sequence[int]) -> bool:
    """Whether the places are the first ones, without a gap: a slice is a view, a list copies."""
    return list(places) == list(range(len(places)))


def _drawn(member: Member) -> list[tuple[Tensor, Tensor]]:
    """Draw a client's batches; after each one what its augmentation needs."""
    name, source, found = member.recipe.augment, member.generator, []
    # In gradient mode a client takes one batch, whatever its recipe says of passes.
    once = member.recipe.mode == "gradient"
    for batch in batches(len(member.labels), member.recipe, source):
        found.append((batch, augment.draw(name, len(batch), source)))
        if once:
            break
    return found


def _draws(
    drawn: list[list[tuple[Tensor, Tensor]]], shape: tuple[int, ...], device: torch.device
) -> Tensor:
    needs = drawn[0][0][1]
    found = needs.new_zeros(*shape, len(needs))
    for i, steps in enumerate(drawn):
        for step, (_, draws) in enumerate(steps):
            found[i, step, : draws.shape[1]] = draws.T
    return found.to(device)


def pool(parts: Sequence[Tensor]) -> Pool:
    """Return tensors of one type as one: what they are slices of, or else a copy of them."""
    base = parts[0]._base
    if base is not None and all(part._base is base and _slices(part, base) for part in parts):
        each = max(1, base[0].numel())
        first = [int(p.storage_offset() - base.storage_offset()) // each for p in parts]
        return Pool(base, torch.tensor(first))
    sizes = torch.tensor([len(part) for part in parts])
    return Pool(torch.cat(list(parts)), sizes.cumsum(0) - sizes)


def _slices(part: Tensor, base: Tensor) -> bool:
    """Whether a tensor is some whole examples of another, one after the other."""
    offset = int(part.storage_offset() - base.storage_offset())
    return (
        part.shape[1:] == base.shape[1:]
        and base.is_contiguous()
        and part.is_contiguous()
        and offset % max(1, base[0].numel()) == 0
    )
