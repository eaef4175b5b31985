"""Local training of many clients at once: parameters stacked, one batched pass a step.

The readable engine is ``train_local``; this one gives the same updates up to float error. Clients
of one kind (equal recipes but for batch size and length, one kind of loss) share a stack; in each
step those whose mini-batches have equal sizes share a pass.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedrobust.cohort.convolutions import as_asked
from fedrobust.cohort.member import Member
from fedrobust.cohort.memory import chunk_of
from fedrobust.cohort.schedule import Batch, schedule, whole
from fedrobust.cohort.stack import Stack
from fedrobust.evaluation import pixels
from fedrobust.spec import suggest
from fedrobust.training import augment
from fedrobust.training.local import (
    Draw,
    Recipe,
    length,
    local_optimizer,
    shortening,
    train_local,
)
from fedrobust.training.losses import Loss, StackableLoss
from fedrobust.training.precision import precision
from fedrobust.vector import FlatModel

COHORTS = ("off", "auto", "vmap")
CACHED = 20_000  # parameters; measured: 8 k trained 1.2 times as fast in a stack, 80 k 0.75
Result = tuple[Tensor, float]


class CohortError(ValueError):
    """Clients that cannot be trained as one stack."""


def train_cohort(
    model: FlatModel,
    start: Tensor,
    members: Sequence[Member],
    *,
    cohort: str = "auto",
    budget: int | None = None,
) -> list[Result]:
    """Train several clients from ``start``; return what ``train_local`` returns for each.

    Parameters
    ----------
    model
        Scratch model: its architecture is everybody's, its parameters are overwritten.
    start
        Global parameters, (d,).
    members
        The clients. BatchNorm normalises with each client's own mini-batch, as one by one; running
        statistics are nobody's update and are left as they are.
    cohort
        "off": one by one, bit for bit ``train_local``. "vmap": as stacks. "auto": as stacks where
        that is possible and pays (``worthwhile``), the others one by one.
    budget
        Bytes that one stack may take; None: a quarter of the GPU's memory, 256 MiB on a CPU.

    Raises
    ------
    CohortError
        With "vmap", for dropout (it draws from the global generator), for losses that are no
        ``StackableLoss``, for members with a ``draw``, and for adversarial examples with BatchNorm
        (the attack would need each client's running statistics).
    """
    if cohort not in COHORTS:
        raise ValueError(f"unknown cohort {cohort!r}; {suggest(cohort, list(COHORTS))}")
    if cohort == "off":
        return [_alone(model, start, member) for member in members]
    results: dict[int, Result] = {}
    for places in _kinds(members):
        kind = [members[i] for i in places]
        if cohort == "auto" and not worthwhile(model, kind):
            trained = [_alone(model, start, member) for member in kind]
        elif reason := obstacle(model.module, kind[0].loss, kind[0].draw):
            raise CohortError(f"training.cohort = 'vmap' is not possible: {reason}")
        else:
            trained = _by_chunks(model, start, kind, budget)
        results |= dict(zip(places, trained, strict=True))
    return [results[i] for i in range(len(members))]


def worthwhile(model: FlatModel, members: Sequence[Member]) -> bool:
    """Whether stacking these clients is possible and faster than one by one.

    On a CPU it is for small networks of matrix products: a stacked convolution becomes a grouped
    one, slower there than the same convolutions one after the other, and rows of parameters that
    one client keeps in the processor's cache travel through memory when there are many.
    """
    if len(members) < 2 or obstacle(model.module, members[0].loss, members[0].draw):
        return False
    if model.vector.device.type != "cpu":
        return True
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in model.module.modules())
    return not convolves and model.d <= CACHED


def obstacle(module: nn.Module, loss: Loss, draw: Draw | None = None) -> str:
    """Say why clients with this network, loss and draw cannot be stacked; empty where they can."""
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in module.modules()):
        return "dropout draws from the global generator"
    if any(isinstance(m, nn.RNNBase) for m in module.modules()):
        return "recurrent layers have no form for a stack"
    if not isinstance(loss, StackableLoss):
        return f"the loss {loss!r} has no form for a stack: see fedrobust.training.stackable"
    if draw is not None:
        return "a draw of one's own has no length, by which a stack shrinks from its end"
    if loss.evaluates and has_batch_statistics(module):
        return "adversarial examples with BatchNorm need each client's running statistics"
    return ""


def unstackable(model: FlatModel, loss: Loss, inputs: Tensor, targets: Tensor) -> str:
    """Say why clients with such examples cannot be trained as one stack; empty where they can.

    Where nothing is known against it two clients take one step together: what a model's own code
    does, such as a branch on values, shows in the trace alone.

    Parameters
    ----------
    inputs, targets
        A few examples, as a client holds them.
    """
    if reason := obstacle(model.module, loss):
        return reason
    recipe = Recipe(batch_size=len(targets))
    pair = [Member(inputs, targets, recipe, torch.Generator(), loss) for _ in range(2)]
    try:
        _train_stack(model, model.vector.clone(), pair)
    except Exception as error:  # a user's model or loss may raise anything
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
    return ""


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether an image's output depends on the other images of its batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def _alone(model: FlatModel, start: Tensor, member: Member) -> Result:
    return train_local(
        model, start, member.images, member.labels, member.recipe,
        generator=member.generator, loss=member.loss, out=member.out, draw=member.draw,
    )  # fmt: skip


def _kinds(members: Sequence[Member]) -> list[list[int]]:
    """Group the members' places by what one optimizer and one loss can do at once."""
    groups: dict[Hashable, list[int]] = {}
    for i, member in enumerate(members):
        recipe = replace(member.recipe, batch_size=1, epochs=1, steps=0)
        shape = tuple(member.images.shape[1:])
        loss = member.loss.settings if isinstance(member.loss, StackableLoss) else member.loss
        # By its text: a recipe holds tables, which have no hash.
        groups.setdefault((repr(recipe), shape, loss, member.draw is None), []).append(i)
    return list(groups.values())


def _by_chunks(
    model: FlatModel, start: Tensor, members: list[Member], budget: int | None
) -> list[Result]:
    """Train as many at once as fit; the longest first, so that each stack shrinks from its end."""
    order = sorted(range(len(members)), key=lambda i: -_length(members[i]))
    ranked = [members[i] for i in order]
    largest = max(min(m.recipe.batch_size, len(m.labels)) for m in members)
    size = chunk_of(model, ranked[0].images[:1], largest, budget)
    results: dict[int, Result] = {}
    for first in range(0, len(ranked), size):
        trained = _train_stack(model, start, ranked[first : first + size])
        results |= dict(zip(order[first : first + size], trained, strict=True))
    return [results[i] for i in range(len(members))]


def _length(member: Member) -> int:
    if member.recipe.mode == "gradient":
        return 1
    return length(len(member.labels), member.recipe)


def _train_stack(model: FlatModel, start: Tensor, members: list[Member]) -> list[Result]:
    """Train members, sorted by falling length, with one stack of parameters."""
    recipe, lengths = members[0].recipe, [_length(member) for member in members]
    stack, plan = Stack(model, start, len(members)), schedule(members)
    optimizer = local_optimizer(stack.vector, stack.gradient, recipe)
    losses, updates = start.new_zeros(len(members), dtype=torch.float64), [start] * len(members)
    for step in range(lengths[0]):
        # Sorted by falling length: those who still train are the first ones.
        active = sum(length > step for length in lengths)
        sizes = [own[step] for own in plan.sizes[:active]]
        for places in _parts(model.module, _stackable(members[0]), sizes):
            values = _backward(stack, places, members, plan.batch(places, step))
            _add(losses, places, values)
        if recipe.clip:
            stack.gradient.mul_(shortening(stack.gradient, recipe.clip))
        if recipe.mode == "update":
            optimizer.step()
        for i in (i for i in range(active) if lengths[i] == step + 1):
            # At once: the optimizer goes on to move the rows of those who have finished, too.
            updates[i] = _update(stack, start, members[i], i)
    # The one wait for the device: until here nothing has asked for a value.
    means = (loss / length for loss, length in zip(losses.tolist(), lengths, strict=True))
    return list(zip(updates, means, strict=True))


def _add(losses: Tensor, places: Sequence[int], values: Tensor) -> None:
    """Add some clients' losses to their sums, on the device."""
    if whole(places):
        losses[: len(places)] += values.double()
    else:
        losses[list(places)] += values.double()


def _update(stack: Stack, start: Tensor, member: Member, place: int) -> Tensor:
    """Return what a client that has finished sends."""
    out = torch.empty_like(start) if member.out is None else member.out
    if member.recipe.mode == "update":
        return torch.sub(start, stack.vector[place], out=out)
    return torch.add(stack.gradient[place], start, alpha=member.recipe.weight_decay, out=out)


def _parts(module: nn.Module, loss: StackableLoss, sizes: list[int]) -> Iterator[list[int]]:
    """Group the clients that share a pass, by the sizes of their mini-batches.

    Mini-batches of different sizes are filled up where that changes nothing: where the loss leaves
    out the rows that are added, and no BatchNorm sees them.
    """
    if loss.pads and not has_batch_statistics(module):
        yield list(range(len(sizes)))
        return
    for size in sorted(set(sizes)):
        yield [i for i, own in enumerate(sizes) if own == size]


def _backward(stack: Stack, places: list[int], members: list[Member], batch: Batch) -> Tensor:
    """Put the clients' mini-batch gradients into the stack; return their losses."""
    recipe, loss = members[places[0]].recipe, _stackable(members[places[0]])
    sources = [_stackable(members[i]).generator for i in places]
    images = batch.images
    if batch.draws is not None:
        flat = augment.apply(images.flatten(0, 1), recipe.augment, batch.draws)
        images = flat.view(images.shape)
    leaves = stack.leaves(places)
    x = pixels(images)
    with precision(recipe.precision, x.device), as_asked():
        losses = loss.stacked(stack.networks(leaves), x, batch.labels, sources)
    with precision(recipe.precision, x.device, backward=True):
        # The rows are independent: the gradient of the sum is each client's own.
        stack.keep(places, torch.autograd.grad(losses.sum(), leaves))
    return losses.detach()


def _stackable(member: Member) -> StackableLoss:
    assert isinstance(member.loss, StackableLoss), "obstacle() lets no other loss in"
    return member.loss
