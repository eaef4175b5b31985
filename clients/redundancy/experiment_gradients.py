"""How an experiment's nodes compute the value of a file: its loss, augmentation and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from clients.node import Node
from clients.redundancy.gradients import FileGradients, Place
from fedrobust.adversarial import adversarial_objective
from fedrobust.evaluation import pixels
from fedrobust.models.batchnorm import load_statistics
from fedrobust.redundancy.file_gradient import reproducible, with_statistics
from fedrobust.redundancy.plan import FilePlan
from fedrobust.seeds import generator
from fedrobust.training import one_thread, train_local
from fedrobust.training.losses import Loss
from fedrobust.training.tasks import output_loss
from fedrobust.vector import FlatModel, trainable

VALUES = "file gradients"


def compute(node: Node, place: Place, indices: Tensor, files: Sequence[int]) -> Sequence[Tensor]:
    """Return the values of files, (d + b,) each: one by one, or as one group by vmap."""
    if node.experiment.redundancy.vmap_files > 1:
        return _together(node, place, indices, files)
    return [_alone(node, place, indices[file], file) for file in files]


def _alone(node: Node, place: Place, chosen: Tensor, file: int) -> Tensor:
    """Compute a value; all that is random in it is seeded by the file, not by the worker."""
    e, module = node.experiment, node.model.module
    images, labels = node.images[0][chosen], node.labels[0][chosen]
    draw = partial(generator, e.seed, round=place.plan.round, client=file)
    seed = place.plan.file_seed("dropout", file)
    if len(place.statistics):
        load_statistics(module, place.statistics)
    with one_thread(), reproducible(seed, images.device):
        update, _ = train_local(
            node.model,
            place.vector.to(images.device),
            images,
            labels,
            # The file is one batch: copies must not depend on where a worker would cut it.
            replace(e.training, batch_size=len(labels)),
            generator=draw("file order"),
            loss=_loss(node, draw("file perturbation")),
        )
    return with_statistics(update.cpu(), module) if len(place.statistics) else update.cpu()


def _together(node: Node, place: Place, indices: Tensor, files: Sequence[int]) -> Sequence[Tensor]:
    """Compute a group's gradients at once, by vmap over the files."""
    if len(place.statistics):
        raise ValueError("redundancy.vmap_files needs a model without BatchNorm: set it to 1")
    chosen = indices[list(files)]
    data = node.images[0][chosen], node.labels[0][chosen]
    with one_thread():
        loss = output_loss(node.experiment.loss)
        made = gradients_together(node.model, place.vector, *data, loss).cpu()
    if decay := node.experiment.training.weight_decay:
        made.add_(place.vector, alpha=decay)
    return list(made)


def gradients_together(
    model: FlatModel,
    vector: Tensor,
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
) -> Tensor:
    """Return the gradient of each file's mean loss, (files, d).

    Parameters
    ----------
    model
        Gives the architecture; its parameters are overwritten. No batch normalisation.
    vector
        Where the gradients are taken, (d,).
    images, labels
        uint8 (files, samples, C, H, W) and int64 (files, samples).
    loss
        Of outputs and targets.
    """
    model.load(vector)
    parameters = {name: p.detach() for name, p in trainable(model.module).items()}

    def value(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model.module, values, (x,)), y)

    made = vmap(grad(value), in_dims=(None, 0, 0))(parameters, pixels(images), labels)
    return torch.cat([made[name].flatten(1) for name in parameters], 1)


def _loss(node: Node, source: torch.Generator) -> Loss:
    settings = node.experiment.adversarial
    if not settings.perturbation:
        return node.loss
    return adversarial_objective(
        perturbation=settings.perturbation,
        loss=settings.loss,
        fraction=settings.fraction,
        generator=source,
    )


def gradients_of(node: Node, vector: Tensor, statistics: Tensor, plan: FilePlan) -> FileGradients:
    """Return the node's values, turned to a round and a model (d,)."""
    if VALUES not in node.kept:
        group = node.experiment.redundancy.vmap_files
        node.kept[VALUES] = FileGradients(partial(compute, node), group=group)
    return node.kept[VALUES].turn_to(vector, statistics, plan)
