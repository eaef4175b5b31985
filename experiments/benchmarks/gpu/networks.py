"""The networks of other simulators' tasks, as their authors describe them.

Both are two 3x3 convolutions without padding, a pooling and a hidden layer of 128 (Reddi et al.,
Adaptive Federated Optimization, ICLR 2021, on EMNIST), which pfl-research and FLUTE train with
dropout of 0.25 and 0.5.
"""

from __future__ import annotations

from functools import partial

from torch import nn

Shape = tuple[int, ...]


def plain_cnn(shape: Shape, classes: int, dropout: tuple[float, float] = (0.0, 0.0)) -> nn.Module:
    """Return the network for an image of (channels, side, side); no dropout unless asked."""
    channels, side, _ = shape
    hidden = 64 * ((side - 4) // 2) ** 2
    first, second = ([nn.Dropout(share)] if share else [] for share in dropout)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        *first, nn.Flatten(), nn.Linear(hidden, 128), nn.ReLU(), *second, nn.Linear(128, classes),
    )  # fmt: skip


NETWORKS = {
    "plain_cnn": plain_cnn,
    "dropout_cnn": partial(plain_cnn, dropout=(0.25, 0.5)),
    "plain_cnn_62": lambda shape, classes: plain_cnn(shape, 62),  # FEMNIST's 62 characters
}
