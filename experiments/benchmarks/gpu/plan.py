"""The cases of ``make gpu``, in order of worth."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Cell = tuple[str, "Callable[[Scale], Row]"]  # its name, and what measures it
T = TypeVar("T")
ROOM = "experiments.benchmarks.gpu"
FLOWER = ("flwr", "pydantic", "flwr_datasets")  # what a run of ours imports beside torch


@dataclass(frozen=True)
class Scale:
    """At what size, on what, and for how long a case is measured.

    Attributes
    ----------
    device
        "cuda", or what stands for it: "cpu" where it is pretended.
    pretend
        Tiny sizes, to see that everything runs.
    data_root
        Folder with the full data sets; None: stand-ins, see ``images``.
    folder
        For what a case leaves while it runs.
    seconds
        After these a long cell ends by itself and says how far it came.
    """

    device: str
    pretend: bool
    data_root: str | None
    folder: Path
    seconds: float = 60.0

    def of(self, full: T, tiny: T) -> T:
        """Return one of two sizes."""
        return tiny if self.pretend else full


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes
    ----------
    name
        Also the module's in this folder, which has ``cells(scale)``.
    what
        Its size, in words.
    least, limit
        Minutes: below ``least`` it is not begun, after ``limit`` it is ended.
    needs
        Packages without which it is skipped.
    """

    name: str
    what: str
    least: float
    limit: float
    needs: tuple[str, ...] = ()

    @property
    def lacks(self) -> list[str]:
        """Packages that it needs and that are not here."""
        return [name for name in self.needs if not importable(name)]

    def cells(self, scale: Scale) -> Iterator[Cell]:
        """Yield what it measures, by name."""
        yield from importlib.import_module(f"{ROOM}.{self.name}").cells(scale)


def importable(name: str) -> bool:
    """Whether a package can be found, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # an importer may refuse
        return False


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("marked", "the tests marked gpu", 0.3, 3.0, ("pytest", *FLOWER)),
        Case("rules", "every rule beside the limit of its arithmetic: 100 x 1 M, 20 x 1 M,"
             " 500 x 100 k, 300 x 1 M", 0.3, 2.0),
        Case("order", "order statistics by bisection and by a sort, stacked convolutions as"
             " products and grouped", 0.3, 0.8),
        Case("engine", "rounds beside the bare loop: N = 100 and 300, one by one, as one stack,"
             " under ALIE", 0.4, 2.5, FLOWER),
        Case("fleet", "300 clients of three kinds under ALIE (fleet.toml), 5 rounds, one by one"
             " and as stacks", 0.4, 1.5, FLOWER),
        Case("quickstart", "the quickstart's 20 cells of seed 1, 60 rounds, accuracy beside the"
             " CPU's", 0.5, 2.0, FLOWER),
        Case("pfl", "pfl-research's CIFAR-10 task: 1,000 clients x 50 images, cohort 50, batch 10,"
             " 1,500 rounds", 0.5, 3.0, FLOWER),
        Case("flute", "FLUTE's CNN task shape: 3,400 clients, 10 a round, batch 20, 1.2 M"
             " parameters, 100 rounds", 0.4, 1.0, FLOWER),
        Case("stock", "stock Flower beside ours: 20 clients, the small CNN", 1.0, 2.5,
             (*FLOWER, "ray")),
        Case("dat", "DAT: PreAct-ResNet-18, 8 workers x 128 images, PGD-7, 10 rounds, three"
             " precisions, 32 and 8 bits", 0.5, 1.5, FLOWER),
        Case("transfer", "the transfer paper's gpu.toml: its 12 networks and 4 attacks, 5,000"
             " images, 2 epochs, 500 attacked", 1.0, 3.0, FLOWER),
    )
}  # fmt: skip
