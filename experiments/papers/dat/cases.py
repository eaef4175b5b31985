"""The rows of DAT's tables: what differs from the table's TOML file, and the reference.

References of the toy are two seeds of an implementation written for this project's specification;
the paper's own tables are not available.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNKNOWN = "not available"
SGD = {
    "server.optimizer": "sgd",
    "server.lr": 0.1,
    "server.momentum": 0.9,
    "training.weight_decay": 5e-4,
}


@dataclass(frozen=True)
class Case:
    """One row of a table."""

    label: str
    reference: str = UNKNOWN
    changes: dict[str, Any] = field(default_factory=dict)


def _fgsm(eps: float) -> dict[str, Any]:
    return {"name": "fgsm", "eps": eps, "clip_start": False}


TOY, FASHION, CIFAR = 0.15, 0.1, 0.03137255  # radii; the last is 8/255
CLEAN: dict[str, Any] = {"adversarial.perturbation": ""}
LOCAL = {
    "clients": 5,
    "rounds": 20,
    "training": {"mode": "update", "epochs": 1, "batch_size": 32, "lr": 0.05, "momentum": 0.9},
    # A step of 1 along the mean update: the mean of the clients' models, FedAvg.
    "server": {"lr": 1.0, "momentum": 0.0, "evaluate_every": 20},
}
NON_IID = {"partition": {"name": "dirichlet", "alpha": 0.1}}


def _bits(bits: int, sides: str) -> dict[str, Any]:
    return {"compression.bits": bits, "compression.sides": sides}


def _full_batch(**server: Any) -> dict[str, Any]:
    """All images in each of 50 steps, the natural loss and schedule as in the other rows."""
    given = {"momentum": 0.9, "evaluate_every": 50, "warmup": 8}
    schedule = {"name": "multistep", "milestones": [30]}
    return {
        "rounds": 50,
        # More than any client holds: the whole share.
        "training.batch_size": 10_000,
        "server": given | {"schedule": schedule} | server,
    }


def _grid(eps: float) -> tuple[Case, ...]:
    """Standard, FGSM and PGD, each with SGD and LALR, and LALR's PGD with 8 bits."""
    fgsm = {"adversarial.perturbation": _fgsm(eps)}
    return (
        Case("standard, SGD", UNKNOWN, CLEAN | SGD),
        Case("standard, LALR", UNKNOWN, CLEAN),
        Case("DAT-FGSM, SGD", UNKNOWN, SGD | fgsm),
        Case("DAT-FGSM, LALR", UNKNOWN, fgsm),
        Case("DAT-PGD, SGD", UNKNOWN, SGD),
        Case("DAT-PGD, LALR", UNKNOWN),
        Case("DAT-PGD, LALR, 8 bit one-sided", UNKNOWN, _bits(8, "up")),
        Case("DAT-PGD, LALR, 8 bit two-sided", UNKNOWN, _bits(8, "both")),
    )


LALR = {"name": "lalr"}

TABLES: dict[str, tuple[Case, ...]] = {
    "toy": (
        Case("standard, LALR", "98.7, 98.7 / 10.1, 19.4", CLEAN),
        Case("DAT-PGD, LALR", "98.7, 99.0 / 72.3, 74.3"),
        Case("DAT-PGD, SGD", "99.5, 99.2 / 76.3, 79.8", SGD),
        Case("DAT-FGSM, LALR", "99.0, 98.5 / 68.5, 68.3", {"adversarial.perturbation": _fgsm(TOY)}),
        Case("DAT-PGD, LALR, 8 bit one-sided", "98.7, 98.5 / 70.8, 74.8", _bits(8, "up")),
        Case("DAT-PGD, LALR, 8 bit two-sided", "98.7, 98.7 / 70.8, 73.6", _bits(8, "both")),
        Case("DAT-PGD, LALR, 4 bit one-sided", UNKNOWN, _bits(4, "up")),
        Case("DAT-PGD, LALR, 4 bit two-sided", UNKNOWN, _bits(4, "both")),
        Case("FedAvg clean, IID", "98.7, 98.7 / 19.4, 24.4", LOCAL | CLEAN),
        Case("FAT mixed, IID", "97.2, 98.0 / 68.3, 72.8", LOCAL),
        Case("FAT mixed, Dirichlet 0.1", "81.1, 73.6 / 54.9, 46.1", LOCAL | NON_IID),
        Case(
            "FAT adversarial only, IID",
            "96.0, 98.5 / 68.3, 73.8",
            LOCAL | {"adversarial.loss": {"name": "standard"}},
        ),
        Case(
            "full batch, LALR 0.01", "93.7, 95.7 / 51.9, 52.1", _full_batch(lr=0.01, optimizer=LALR)
        ),
        Case(
            "full batch, LALR 0.03", "98.0, 98.0 / 65.0, 64.0", _full_batch(lr=0.03, optimizer=LALR)
        ),
        Case("full batch, SGD 0.05", "96.2, 97.7 / 50.1, 64.7", _full_batch(lr=0.05)),
        Case("full batch, SGD 0.2", "35.5, 76.8 / 10.6, 13.6", _full_batch(lr=0.2)),
        Case("full batch, SGD 0.8", "8.6, 10.3 / 8.6, 10.3", _full_batch(lr=0.8)),
    ),
    "fashionmnist": _grid(FASHION),
    "cifar10": _grid(CIFAR),
}
