"""The shape of FLUTE's CNN task: its numbers of clients, images and parameters, other images.

3,400 clients, 10 a round, one pass in batches of 20 at a rate of 0.1, the server takes the mean:
``experiments/cv_cnn_femnist`` of github.com/microsoft/msrflute. FEMNIST is not at hand: each client
holds 200 images of CIFAR-10 (FEMNIST's have about as many on average), the network has 62 outputs
and no dropout, so that the clients are one stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from experiments.benchmarks.gpu.pfl import run
from experiments.benchmarks.gpu.plan import Cell, Row, Scale


def cells(scale: Scale) -> Iterator[Cell]:
    """Yield the task as one stack, and one by one."""
    for cohort in ("vmap", "off"):
        yield f"cohort = {cohort!r}", partial(measured, cohort)


def measured(cohort: str, scale: Scale) -> Row:
    """Run some rounds."""
    clients, asked, each = scale.of((3400, 10, 200), (20, 4, 10))
    task = {
        "model": "plain_cnn_62",
        "clients": clients,
        "participation": asked / clients,
        "rounds": scale.of(100, 3),
        "training": {"mode": "update", "epochs": 1, "batch_size": scale.of(20, 5), "lr": 0.1,
                     "cohort": cohort},
    }  # fmt: skip
    return run(scale, task, clients * each)
