"""One cell of an audit: one run of the app, as it is or with Byzantine nodes or a defence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedrobust.flower.rule_spelling import rule_name

CLEAN = "none"
WRAPPER, GRID = "wrapper", "grid"
FINISHED, RAISED, EXITED, HUNG = "finished", "raised", "exited", "hung"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What to run.

    Attributes
    ----------
    attack
        A spec in text, ``"sign_flip:scale=4.0"``, or ``"none"``.
    k
        How many nodes are Byzantine: the last ones by node id.
    defence
        A rule in text, or ``"none"``.
    seam
        Where the defence sits: ``"wrapper"`` (``Robust`` around the strategy that is started) or
        ``"grid"`` (``RobustGrid``).
    """

    attack: str = CLEAN
    k: int = 0
    defence: str = CLEAN
    seam: str = GRID
    seed: int = 1
    engine: str = "in_process"

    @property
    def label(self) -> str:
        """The cell in one word, as ``--cell`` reads it."""
        held = (self.attack, self.k, self.defence, self.seam, self.seed, self.engine)
        return "/".join(map(str, held))

    @classmethod
    def of(cls, label: str) -> Cell:
        """Read a label.

        Raises
        ------
        ValueError
            If it is none.
        """
        parts = label.split("/")
        if len(parts) != 6:
            raise ValueError(f"a cell is attack/k/defence/seam/seed/grid, got {label!r}")
        attack, k, defence, seam, seed, engine = parts
        return cls(attack=attack, k=int(k), defence=defence, seam=seam, seed=int(seed),
                   engine=engine)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What came of a cell.

    Attributes
    ----------
    status
        "finished"; "raised": the server's code raised; "exited": the process ended by itself;
        "hung": it was ended at the time limit.
    error
        What was raised.
    facts
        What was seen, see ``experiments.audit.running``.
    """

    cell: Cell
    status: str
    error: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def as_table(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Run:
        """Read what ``as_table`` wrote."""
        return cls(Cell(**table["cell"]), table["status"], table["error"], table["seconds"],
                   dict(table["facts"]))  # fmt: skip


def attack_text(spec: Any) -> str:
    """Write an attack's spec as text: ``"sign_flip:scale=4.0"``."""
    return rule_name(spec)
