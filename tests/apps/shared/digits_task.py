"""Digits, split over the nodes; a small network in NumPy with its local steps."""

import random

import numpy as np
from flwr.app import Array, ArrayRecord
from sklearn.datasets import load_digits

HIDDEN, TEST = 32, 360


def _digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order]


IMAGES, LABELS = _digits()


def share(context):
    """Return the node's own images and labels."""
    place = int(context.node_config["partition-id"])
    count = int(context.node_config["num-partitions"])
    rows = np.arange(TEST, len(IMAGES))[place::count]
    return IMAGES[rows], LABELS[rows]


def initial():
    """Return the layers before training: w1, b1, w2, b2."""
    rng = np.random.default_rng(1)
    first = rng.normal(0, 0.15, (64, HIDDEN)).astype(np.float32)
    second = rng.normal(0, 0.2, (HIDDEN, 10)).astype(np.float32)
    return [first, np.zeros(HIDDEN, np.float32), second, np.zeros(10, np.float32)]


def forward(layers, images):
    """Return hidden values and class probabilities."""
    w1, b1, w2, b2 = layers
    hidden = np.maximum(images @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return hidden, raised / raised.sum(axis=1, keepdims=True)


def train(layers, images, labels, *, lr=0.3, epochs=4, batch=16):
    """Return the layers after some epochs of SGD."""
    w1, b1, w2, b2 = (np.array(layer) for layer in layers)
    rng = np.random.default_rng(random.randrange(2**31))
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for rows in np.array_split(order, max(1, len(images) // batch)):
            x, y = images[rows], labels[rows]
            hidden, p = forward((w1, b1, w2, b2), x)
            p[np.arange(len(y)), y] -= 1
            p /= len(y)
            back = (p @ w2.T) * (hidden > 0)
            w2 -= lr * hidden.T @ p
            b2 -= lr * p.sum(0)
            w1 -= lr * x.T @ back
            b1 -= lr * back.sum(0)
    return [w1, b1, w2, b2]


def measure(layers, images=None, labels=None):
    """Return loss and accuracy, on the server's test images unless others are given."""
    images = IMAGES[:TEST] if images is None else images
    labels = LABELS[:TEST] if labels is None else labels
    _, p = forward(layers, images)
    loss = -np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-9)).mean()
    return float(loss), float((p.argmax(1) == labels).mean())


def record(layers):
    """Return the layers as a record, named w1, b1, w2, b2."""
    return ArrayRecord(dict(zip(("w1", "b1", "w2", "b2"), map(Array, layers), strict=True)))


def layers_of(arrays):
    """Return the layers of a record."""
    return [arrays[name].numpy() for name in ("w1", "b1", "w2", "b2")]
