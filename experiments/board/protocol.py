"""Protocol 2 of ``fedrobust benchmark``: which federations, how many attackers, what is tuned.

A change of anything here that can change a number is a new protocol: rows of different ones are
never put into one table. Protocol 1 had no table of numbers, no accuracies by class and client, no
bytes, and longer runs in the budget ``full``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import suggest

PROTOCOL = 2
Table = Mapping[str, Any]
MIXED = {"name": "dirichlet", "alpha": 0.5}
GRADIENT = {"mode": "gradient", "batch_size": 32}
LOCAL = {"mode": "update", "batch_size": 32, "steps": 5}
METRICS = ["accuracy", "class_accuracy", "worst_client"]


@dataclass(frozen=True)
class Federation:
    """A kind of federation; ``settings`` replace the budget's.

    Attributes
    ----------
    tuned
        The one key that is tuned, without an attack, on a validation split of the training set.
    grid
        Its values: the tuning budget is their number, one run each.
    gpu
        Whether it takes a GPU: its cells are "not measured" without one, and no part of the score.
    """

    name: str
    says: str
    settings: Table
    tuned: str = "server.lr"
    grid: tuple[float, ...] = (0.3, 1.0, 3.0)
    gpu: bool = False

    @property
    def training(self) -> str:
        """Return what the clients send: "gradients", or the result of "local steps"."""
        return "local steps" if self.settings["training"]["mode"] == "update" else "gradients"

    @property
    def sampled(self) -> bool:
        """Whether only some clients are asked in a round."""
        return self.settings.get("participation", 1.0) < 1

    @property
    def heterogeneity(self) -> str:
        """Return "iid" or "mixed"."""
        return "iid" if self.settings["partition"] == "iid" else "mixed"


def _federation(name: str, says: str, **settings: Any) -> Federation:
    return Federation(name, says, {"clients": 20, "training": GRADIENT, **settings})


IID = _federation("iid", "IID, gradients", partition="iid", worker_momentum=0.9)
HETEROGENEOUS = _federation(
    "mixed", "Dirichlet 0.5, gradients, worker momentum", partition=MIXED, worker_momentum=0.9
)
PLAIN = _federation("plain", "Dirichlet 0.5, gradients, no momentum", partition=MIXED)
EPOCHS = Federation(
    "local",
    "Dirichlet 0.5, five local steps",
    {
        "clients": 20,
        "partition": MIXED,
        "training": LOCAL,
        "server": {"lr": 1.0},
        "data": "second",
    },
    tuned="training.lr",
    grid=(0.1, 0.3, 1.0),
)
SAMPLED = _federation(
    "sampled", "half of 40 clients asked a round", partition=MIXED, clients=40, participation=0.5
)
FEW = _federation(
    "few", "a tenth of 120 clients asked a round", partition=MIXED, clients=120, participation=0.1
)
TABULAR = Federation(
    "table",
    "Dirichlet 0.5, gradients, breast cancer: 30 columns, two classes",
    {
        "clients": 20,
        "partition": MIXED,
        "training": GRADIENT,
        "worker_momentum": 0.9,
        "data": "breast_cancer",
        "model": "mlp",
    },
    grid=(0.1, 0.3, 1.0),
)
RESNET = Federation(
    "resnet",
    "Dirichlet 0.5, gradients, worker momentum, ResNet-18 on the second image set",
    {
        "clients": 20,
        "partition": MIXED,
        "training": GRADIENT,
        "worker_momentum": 0.9,
        "data": "second",
        "model": "resnet18",
    },
    grid=(0.03, 0.1, 0.3),
    gpu=True,
)


@dataclass(frozen=True)
class Cell:
    """One federation with so many attackers among its clients."""

    federation: Federation
    byzantine: int

    @property
    def name(self) -> str:
        """``mixed 4/20``."""
        return f"{self.federation.name} {self.byzantine}/{self.federation.settings['clients']}"


@dataclass(frozen=True)
class Budget:
    """How much of the protocol is run.

    Attributes
    ----------
    data
        The image set of most federations, and the second one.
    left_out
        What a row of this budget does not say, in words: part of the row.
    """

    name: str
    data: tuple[str, str]
    rounds: int
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    left_out: tuple[str, ...] = field(default=())


EVERY_SHARE = tuple(
    Cell(f, round(share * f.settings["clients"]))
    for f in (IID, HETEROGENEOUS, PLAIN, EPOCHS, SAMPLED)
    for share in (0.0, 0.1, 0.2, 0.4)
    # Of those who are asked more than half would be hostile at times: every rule refuses it.
    if (f, share) != (SAMPLED, 0.4)
)
NOT_YET = (
    "text",
    "whole local epochs: five steps of 32 examples stand for them",
    "knowledge other than omniscient",
)
FULL = Budget(
    "full",
    ("fashionmnist", "cifar10"),
    100,
    (1, 2, 3),
    (
        *EVERY_SHARE,
        Cell(FEW, 0),
        Cell(FEW, 1),
        Cell(TABULAR, 0),
        Cell(TABULAR, 4),
        Cell(RESNET, 4),
    ),
    NOT_YET,
)
QUICK = Budget(
    "quick",
    ("digits", "fashionmnist-sample"),
    30,
    (1,),
    (
        Cell(HETEROGENEOUS, 0),
        Cell(IID, 4),
        Cell(HETEROGENEOUS, 2),
        Cell(HETEROGENEOUS, 4),
        Cell(HETEROGENEOUS, 8),
        Cell(PLAIN, 4),
        Cell(EPOCHS, 4),
        Cell(SAMPLED, 4),
        Cell(FEW, 1),
        Cell(TABULAR, 4),
    ),
    (
        "seeds: there is one, so there are no intervals",
        "convergence: 30 rounds end before it",
        "full image sets: the digits and the FashionMNIST sample are small",
        "models beyond a hidden layer of 32",
        "other shares of attackers than 10, 20 and 40 % for mixed data, and one each elsewhere",
        *NOT_YET,
    ),
)
BUDGETS = {budget.name: budget for budget in (QUICK, FULL)}


def budget_of(name: str) -> Budget:
    """Return a budget by its name.

    Raises
    ------
    ConfigError
        If there is none of this name.
    """
    if name not in BUDGETS:
        raise ConfigError([f"unknown budget {name!r}; {suggest(name, list(BUDGETS))}"])
    return BUDGETS[name]


def document(cell: Cell, budget: Budget, rule: str, *, seed: int) -> dict[str, Any]:
    """Return the settings of one cell without an attack; the tuned key is put on top later."""
    given = dict(cell.federation.settings)
    wanted = given.pop("data", "first")
    # Either of the budget's two image sets, or a set of the federation's own.
    data = dict(zip(("first", "second"), budget.data, strict=True)).get(wanted, wanted)
    # About six looks at a run: its stability is that of the last three.
    server = {"momentum": 0.0, "evaluate_every": max(1, budget.rounds // 6)}
    return {
        "data": data,
        "model": "pooled_mlp",
        "metrics": METRICS,
        "byzantine": cell.byzantine,
        "rounds": budget.rounds,
        "seed": seed,
        "rule": rule,
        "attack": "none",
        **given,
        "server": {"lr": 0.3, **server, **given.get("server", {})},
    }
