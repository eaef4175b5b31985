"""What is learned: the loss of outputs against targets, and the numbers that are measured of them.

A loss is a function ``(outputs, targets, *, settings) -> scalar``, the mean over a batch; a metric
``(outputs, targets) -> number``, of the whole test set at once, or a list of numbers. A user's own
stand in the same tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedrobust.evaluation import evaluate, outputs_of
from fedrobust.spec import Spec, resolve, split
from fedrobust.training.losses import IGNORED, Loss, Networks, StackableLoss
from fedrobust.training.losses import cross_entropy as stacked_cross_entropy

OutputLoss = Callable[..., Tensor]
Number = float | list[float]


def cross_entropy(outputs: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Classes: logits (B, classes) against labels (B,)."""
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing, ignore_index=IGNORED)


def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sequences: logits (B, T, classes) against tokens (B, T); -1 counts for nothing."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Several labels at once: logits (B, labels) against 0 or 1 (B, labels)."""
    return F.binary_cross_entropy_with_logits(fitting(outputs, targets), targets.float())


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Regression: mean squared error."""
    return F.mse_loss(fitting(outputs, targets), targets.float())


def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """Regression: squared below ``delta``, linear above."""
    return F.huber_loss(fitting(outputs, targets), targets.float(), delta=delta)


TASK_LOSSES: dict[str, OutputLoss] = {
    "cross_entropy": cross_entropy,
    "token_cross_entropy": token_cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "huber": huber,
}
OF_CLASSES = ("cross_entropy",)  # what needs one class an example
OF_VALUES = ("mse", "huber", "binary_cross_entropy")  # what has no classes at all


def fitting(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return outputs in the shape of the targets; (B, 1) may stand for (B,), nothing else may.

    Torch's own losses would spread (B, 1) against (B,) to (B, B), with a warning at best.

    Raises
    ------
    ValueError
        If the shapes differ in anything else.
    """
    if outputs.shape == targets.shape:
        return outputs
    if outputs.shape == (*targets.shape, 1):
        return outputs.squeeze(-1)
    if targets.shape == (*outputs.shape, 1):
        return outputs.unsqueeze(-1)
    raise ValueError(f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}")


@dataclass(frozen=True)
class Metric:
    """A number that is measured on the test set.

    Attributes
    ----------
    compute
        ``(outputs, targets) -> number`` or a list of numbers, of the whole set, on the CPU.
    best
        Whether more is better ("max") or less ("min"): which attack is the worst follows from it.
    by_client
        ``compute`` also takes how much each test example counts for each client, (n, N): rows sum
        to one.
    """

    compute: Callable[..., Any]
    best: Literal["max", "min"] = "max"
    by_client: bool = False


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of the targets that have the largest output; -1 counts for nothing."""
    known = targets != IGNORED
    return float((outputs.argmax(-1) == targets)[known].float().mean())


def class_accuracy(outputs: Tensor, targets: Tensor) -> list[float]:
    """Share of each class's examples that are found, by class; NaN for a class without any."""
    found = outputs.argmax(-1) == targets
    return [float(found[targets == c].float().mean()) for c in range(outputs.shape[-1])]


def worst_class(outputs: Tensor, targets: Tensor) -> float:
    """The least of the accuracies by class, of the classes that are there."""
    return min(value for value in class_accuracy(outputs, targets) if value == value)


def client_accuracy(outputs: Tensor, targets: Tensor, counts: Tensor) -> list[float]:
    """Accuracy for each client, in order: on test examples like its own; see ``examples_of``."""
    known = targets != IGNORED
    found = ((outputs.argmax(-1) == targets) & known).flatten(1 if targets.dim() > 1 else 0)
    right = found.double() if targets.dim() == 1 else found.double().mean(1)
    return [float(value) for value in (counts.double() @ right)]


def worst_client(outputs: Tensor, targets: Tensor, counts: Tensor) -> float:
    """The least of the accuracies by client."""
    return min(client_accuracy(outputs, targets, counts))


def label_accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of all labels of all examples that are right, of several labels at once."""
    return float(((outputs > 0) == (targets > 0.5)).float().mean())


def exact_match(outputs: Tensor, targets: Tensor) -> float:
    """Share of the examples of which every label is right."""
    return float(((outputs > 0) == (targets > 0.5)).flatten(1).all(1).float().mean())


def mae(outputs: Tensor, targets: Tensor) -> float:
    """Mean absolute error."""
    return float((fitting(outputs, targets) - targets).abs().mean())


def rmse(outputs: Tensor, targets: Tensor) -> float:
    """Root of the mean squared error."""
    return float((fitting(outputs, targets) - targets).square().mean().sqrt())


def r2(outputs: Tensor, targets: Tensor) -> float:
    """Share of the targets' variance that is explained; 0 is their mean, below is worse."""
    left = (targets - fitting(outputs, targets)).double().square().sum()
    return float(1 - left / (targets.double() - targets.double().mean(0)).square().sum())


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "class_accuracy": Metric(class_accuracy),
    "worst_class": Metric(worst_class),
    "client_accuracy": Metric(client_accuracy, by_client=True),
    "worst_client": Metric(worst_client, by_client=True),
    "label_accuracy": Metric(label_accuracy),
    "exact_match": Metric(exact_match),
    "mae": Metric(mae, "min"),
    "rmse": Metric(rmse, "min"),
    "r2": Metric(r2),
}


SHARES = ("accuracy", "worst_class", "worst_client", "label_accuracy", "exact_match")  # in [0, 1]


def output_loss(spec: Spec) -> OutputLoss:
    """Return the function ``(outputs, targets) -> scalar`` of a spec of ``TASK_LOSSES``.

    Raises
    ------
    SpecError
        If the spec is unknown or does not fit.
    """
    function, settings = resolve(TASK_LOSSES, spec, kind="loss")
    return partial(function, **settings) if settings else function


def loss_of(spec: Spec) -> Loss:
    """Return a spec's loss as local training takes it: of a module, its inputs and its targets."""
    if split(spec) == ("cross_entropy", {}):
        return stacked_cross_entropy
    function, kept = output_loss(spec), (split(spec)[0], repr(sorted(split(spec)[1].items())))

    def alone(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return function(module(inputs), targets)

    def stacked(networks: Networks, inputs: Tensor, targets: Tensor, sources: Any) -> Tensor:
        return networks.each(alone, inputs, targets)

    return StackableLoss(alone, stacked, kept)


def classifies(loss: Spec) -> bool:
    """Whether a loss is of one class an example."""
    return split(loss)[0] in OF_CLASSES


@torch.inference_mode()
def measured(
    module: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Spec,
    metrics: tuple[str, ...] = (),
    counts: Callable[[], Tensor] | None = None,
) -> Mapping[str, Number]:
    """Measure the loss and the metrics of a model on a set.

    Parameters
    ----------
    inputs, targets
        As in a ``Dataset``.
    loss
        A spec of ``TASK_LOSSES``.
    metrics
        Names of ``METRICS``; none: the accuracy, where outputs and targets are of classes.
    counts
        How much each example counts for each client, (n, N), made when it is first asked for.
    """
    if classifies(loss) and metrics in ((), ("accuracy",)) and split(loss)[1] == {}:
        score = evaluate(module, inputs, targets)
        return {"accuracy": score.accuracy, "loss": score.loss}
    outputs, held = outputs_of(module, inputs), targets.cpu()
    names = metrics or (("accuracy",) if _of_classes(outputs, held) else ())
    found: dict[str, Number] = {}
    for name in names:
        beside = (counts(),) if METRICS[name].by_client and counts is not None else ()
        found[name] = number(name, METRICS[name].compute(outputs, held, *beside))
    return found | {"loss": number("loss", output_loss(loss)(outputs, held))}


def _of_classes(outputs: Any, targets: Tensor) -> bool:
    """Whether outputs have one value for each class that a target may be."""
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return False
    return outputs.shape[:-1] == targets.shape and outputs.shape[-1] > int(targets.max())


def number(name: str, value: Any) -> Number:
    """Return a metric's value as a number or a list of numbers.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if isinstance(value, Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple) and all(isinstance(v, int | float) for v in value):
        return [float(v) for v in value]
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number or a list of numbers, got {value!r}"[:160])
    return float(value)
