"""ALIE's training once more, as a plain loop: the description alone, nothing of our engine.

Baruch, Baruch, Goldberg, A Little Is Enough, NeurIPS 2019, and what is known of the released
program (moranant/attacking_distributed_learning). ``parity`` holds it beside the engine;
``table1`` measures with it, because the program's fixed batches are no setting of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Shapes = tuple[tuple[int, ...], ...]
Network = Callable[[list[Tensor], Tensor], Tensor]


def cnn(weights: list[Tensor], images: Tensor) -> Tensor:
    """Return the logits of the CIFAR-10 network: images (B, 3, 32, 32), normalised."""
    w1, b1, w2, b2, w3, b3, w4, b4, w5, b5 = weights
    # The description has ReLU before each pool. It is monotone: equal values, a ninth of the work.
    seen = F.relu(F.max_pool2d(F.conv2d(images, w1, b1), 3))
    seen = F.relu(F.max_pool2d(F.conv2d(seen, w2, b2), 4)).flatten(1)
    seen = F.relu(F.linear(seen, w3, b3))
    return F.linear(F.relu(F.linear(seen, w4, b4)), w5, b5)


def mlp(weights: list[Tensor], images: Tensor) -> Tensor:
    """Return the logits of the MNIST network: images (B, 1, 28, 28), normalised."""
    w1, b1, w2, b2 = weights
    return F.linear(F.relu(F.linear(images.flatten(1), w1, b1)), w2, b2)


def shares(count: int, n: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Deal the images to n workers, (k,) each, equally many: the first ones are dealt again."""
    order = generator.permutation(count)
    order = np.concatenate([order, order[: -count % n]])
    return [order[worker::n] for worker in range(n)]


def batches(
    share: np.ndarray, size: int, *, fixed: bool, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield a worker's batches for ever: the same ones in the same order, or shuffled each pass."""
    order = generator.permutation(share)
    while True:
        for start in range(0, len(order), size):
            yield order[start : start + size]
        if not fixed:
            order = generator.permutation(share)


def gradient(weights: Tensor, shapes: Shapes, network: Network, batch: tuple[Tensor, Tensor]):
    """Return one batch's gradient (d,) at ``weights`` (d,)."""
    leaf = weights.detach().requires_grad_()
    parts = leaf.split([int(np.prod(shape)) for shape in shapes])
    tensors = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    images, labels = batch
    loss = F.nll_loss(F.log_softmax(network(tensors, images), 1), labels)
    return torch.autograd.grad(loss, leaf)[0]


def little(own: np.ndarray, z: float, sign: int = -1) -> np.ndarray:
    """Return what the colluders send: (m, d) of their own gradients -> (d,)."""
    return own.mean(0) + sign * z * own.std(0)


def mean(sent: np.ndarray, m: int) -> np.ndarray:
    """Average everything."""
    return sent.mean(0)


def nearest_to_median(sent: np.ndarray, keep: int) -> np.ndarray:
    """Average the ``keep`` values of each coordinate that are nearest to its median."""
    away = sent - np.median(sent, axis=0)
    near = np.argsort(np.abs(away), axis=0, kind="stable")[:keep]
    return np.take_along_axis(sent, near, 0).mean(0)


def trimmed_mean(sent: np.ndarray, m: int) -> np.ndarray:
    """Average the n - m - 1 nearest to the median, as the program does."""
    return nearest_to_median(sent, len(sent) - m - 1)


def papers_trimmed_mean(sent: np.ndarray, m: int) -> np.ndarray:
    """Average the n - 2 m nearest to the median, as the paper says."""
    return nearest_to_median(sent, len(sent) - 2 * m)


def distances(sent: np.ndarray) -> np.ndarray:
    """Return the plain distances between all pairs, (n, n)."""
    return np.stack([np.sqrt(np.square(sent - row).sum(1)) for row in sent])


def least(table: np.ndarray, left: list[int], neighbours: int) -> int:
    """Return whose distances to its nearest others of those left add up to least."""
    totals = [sum(sorted(table[i, j] for j in left if j != i)[:neighbours]) for i in left]
    return left[int(np.argmin(totals))]


def krum(sent: np.ndarray, m: int) -> np.ndarray:
    """Return the program's Krum: plain distances to the n - m nearest others."""
    n = len(sent)
    return sent[least(distances(sent), list(range(n)), n - m)]


def papers_krum(sent: np.ndarray, m: int) -> np.ndarray:
    """Return the paper's Krum: squared distances to the n - m - 2 nearest others."""
    n = len(sent)
    return sent[least(distances(sent) ** 2, list(range(n)), n - m - 2)]


def picked(table: np.ndarray, m: int, missing: int) -> list[int]:
    """Pick n - 2 m by Krum again and again on what is left."""
    left, chosen = list(range(len(table))), list[int]()
    while len(chosen) < len(table) - 2 * m:
        chosen.append(least(table, left, max(1, len(left) - m - missing)))
        left.remove(chosen[-1])
    return chosen


def bulyan(sent: np.ndarray, m: int) -> np.ndarray:
    """Pick by the program's Krum, average the n - 4 m - 1 nearest to the median."""
    chosen = picked(distances(sent), m, 0)
    return nearest_to_median(sent[chosen], len(sent) - 4 * m - 1)


def papers_bulyan(sent: np.ndarray, m: int) -> np.ndarray:
    """Pick by the paper's Krum, average the n - 4 m nearest to the median."""
    chosen = picked(distances(sent) ** 2, m, 2)
    return nearest_to_median(sent[chosen], len(sent) - 4 * m)


PROGRAM = {"mean": mean, "trimmed_mean": trimmed_mean, "krum": krum, "bulyan": bulyan}
PAPER = {
    "mean": mean,
    "trimmed_mean": papers_trimmed_mean,
    "krum": papers_krum,
    "bulyan": papers_bulyan,
}


@dataclass(frozen=True)
class Setting:
    """What the two descriptions share: n workers, the first m collude."""

    n: int = 51
    m: int = 12
    z: float = 1.5
    sign: int = -1
    lr: float = 0.1
    momentum: float = 0.9
    decay: float = 0.0  # F of the schedule lr F / (t + F), which the program never uses; 0: none


def train(
    weights: Tensor,
    shapes: Shapes,
    network: Network,
    workers: list[Iterator[tuple[Tensor, Tensor]]],
    rule: Callable[[np.ndarray, int], np.ndarray],
    setting: Setting,
) -> Iterator[Tensor]:
    """Yield the weights (d,) after each round, for ever."""
    velocity = torch.zeros_like(weights)
    for turn in count():
        taken = [gradient(weights, shapes, network, next(worker)) for worker in workers]
        sent = torch.stack(taken).numpy()
        if setting.m:
            sent[: setting.m] = little(sent[: setting.m], setting.z, setting.sign)
        lr = setting.lr * (setting.decay / (turn + setting.decay) if setting.decay else 1)
        step = torch.from_numpy(np.asarray(rule(sent, setting.m)))
        velocity = setting.momentum * velocity - lr * step
        weights = weights + velocity
        yield weights
