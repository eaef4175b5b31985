"""Which defence for my federation: read off the board, with the evidence beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.board.protocol import BUDGETS, PROTOCOL
from experiments.board.rows import Row, named
from experiments.board.score import counts
from fedrobust.aggregation import check
from fedrobust.experiment.load import resolve_f
from fedrobust.experiment.schema import ConfigError
from fedrobust.experiment.validate import pre_needs_f, rule_needs_f
from fedrobust.failures import Refusal

KEPT = 0.85  # of the accuracy without an attack: less is no defence that holds
HETEROGENEITY = ("iid", "mixed")
TRAINING = ("gradients", "local steps")


@dataclass(frozen=True)
class Evidence:
    """One defence in the cells that speak for a federation.

    Attributes
    ----------
    kept
        The lowest share of the accuracy without an attack that ``auto`` left, over these cells.
    holds
        Whether that is ``KEPT`` at least.
    """

    rule: str
    settings: dict[str, Any]
    kept: float
    accuracy: float
    cell: str
    winner: str
    ms: float
    budget: str

    @property
    def holds(self) -> bool:
        """Whether it keeps most of the accuracy."""
        return self.kept >= KEPT

    def command(self, n: int, f: int) -> str:
        """Return the command that tries it on the user's own experiment."""
        settings = "".join(f" -o rule.{k}={v}" for k, v in self.settings.items())
        return (
            f"fedrobust sweep FILE -o clients={n} -o byzantine={f} -o rule={self.rule}{settings}"
            " -s attack=none,auto"
        )


def recommend(
    rows: Sequence[Row],
    *,
    clients: int,
    byzantine: int,
    heterogeneity: str = "mixed",
    training: str | None = None,
    most_ms: float | None = None,
) -> list[Evidence]:
    """Return the defences that take n and f, the one that keeps most first.

    The cells that count are those of the wanted heterogeneity with at least the wanted share of
    attackers: the nearest such share, and all its federations.

    Parameters
    ----------
    training
        "gradients" or "local steps": cells of this kind alone; None: of both.
    most_ms
        Leave out rules whose aggregation of 20 x 100,000 takes longer.

    Raises
    ------
    ConfigError
        For numbers out of range, or where no cell of the board has so many attackers.
    """
    _check(clients, byzantine, heterogeneity, training)
    rows = _largest(rows)
    share = byzantine / clients

    def speaks(cell: Mapping[str, Any]) -> bool:
        kind = cell["heterogeneity"], training and cell["training"]
        return kind == (heterogeneity, training) and counts(cell) and bool(cell["byzantine"])

    known = [
        _share(c) for row in rows for c in row["cells"] if speaks(c) and _share(c) >= share - 1e-9
    ]
    if not known:
        words = " ".join(filter(None, [heterogeneity, "federation", training and f"({training})"]))
        raise ConfigError([f"the board measured no {words} with {share:.0%} attackers or more"])
    # The next larger share: what a defence does against fewer attackers promises nothing.
    nearest = min(known)
    found = []
    for row in rows:
        # Quotients: equal shares of other numbers of clients may differ in their last bits.
        cells = [c for c in row["cells"] if speaks(c) and abs(_share(c) - nearest) < 1e-9]
        cheap = most_ms is None or row["aggregation_ms"]["ms"] <= most_ms
        ran = cells and not any("refused" in c for c in cells)
        if ran and cheap and _takes(row, clients, byzantine):
            found.append(_evidence(row, cells))
    return sorted(found, key=lambda one: (-one.kept, one.ms))


def _largest(rows: Sequence[Row]) -> list[Row]:
    """Return one row a rule: that of the largest budget."""
    sizes = list(BUDGETS)
    by_size = sorted(rows, key=lambda row: sizes.index(row["budget"]))
    return list({named(row): row for row in by_size}.values())


def _share(cell: Mapping[str, Any]) -> float:
    """Return the share of attackers, unrounded."""
    return float(cell["byzantine"] / cell["clients"])


def _check(clients: int, byzantine: int, heterogeneity: str, training: str | None) -> None:
    if not 0 < byzantine < clients / 2:
        raise ConfigError([f"byzantine needs 1..below clients / 2, got {byzantine} of {clients}"])
    if heterogeneity not in HETEROGENEITY:
        allowed = ", ".join(HETEROGENEITY)
        raise ConfigError([f"unknown heterogeneity {heterogeneity!r}; choose from {allowed}"])
    if training not in (None, *TRAINING):
        raise ConfigError([f"unknown training {training!r}; choose from {', '.join(TRAINING)}"])


def _takes(row: Row, n: int, f: int) -> bool:
    """Whether the rule accepts n updates, f of them Byzantine; of other people's nobody knows."""
    if row["origin"] != "fedrobust":
        return False
    *before, name = row["rule"].split("+")
    pre = [resolve_f({"name": one}, pre_needs_f(one), f) for one in before]
    try:
        check(resolve_f({"name": name, **row["settings"]}, rule_needs_f(name), f), n=n, pre=pre)
    except Refusal:
        return False
    return True


def _evidence(row: Row, cells: Sequence[dict[str, Any]]) -> Evidence:
    # Of a model that has learned nothing the share is 0 as well, not a division by zero.
    weakest = min(cells, key=lambda c: c["auto"] / max(c["clean"], 1e-9))
    return Evidence(
        rule=row["rule"],
        settings=row["settings"],
        # An attack may by chance leave a little more than there is without one.
        kept=min(1.0, weakest["auto"] / max(weakest["clean"], 1e-9)),
        accuracy=weakest["auto"],
        cell=weakest["cell"],
        winner=weakest["winner"],
        ms=row["aggregation_ms"]["ms"],
        budget=row["budget"],
    )


def instead(rows: Sequence[Row], **asked: Any) -> str:
    """Say who would hold if the clients trained locally; empty where nobody would.

    Parameters
    ----------
    asked
        As for ``recommend``.
    """
    try:
        found = recommend(rows, **(asked | {"training": "local steps"}))
    except ConfigError:  # the board has no such cell with local steps
        return ""
    if not found or not found[0].holds:
        return ""
    first = found[0]
    return f"with local steps it would be {first.rule}, which keeps {first.kept:.0%} ({first.cell})"


def spoken(found: Sequence[Evidence], *, clients: int, byzantine: int) -> list[str]:
    """Say which defence, on what evidence, at what cost; or that none holds."""
    asked = f"n = {clients}, f = {byzantine}"
    if not found:
        return [f"no rule of the board takes {asked}: fewer attackers, or more clients"]
    first = found[0]
    evidence = (
        f"in the cell {first.cell} of protocol {PROTOCOL} ({first.budget}) it kept"
        f" {first.kept:.0%} of its accuracy under its worst attack, {first.winner}"
        f" ({100 * first.accuracy:.1f} %)"
    )
    if not first.holds:
        return [
            f"none holds for {asked}: even {first.rule}, the best of {len(found)}, does not keep"
            f" {KEPT:.0%}; {evidence}",
            f"to see it in your own federation: {first.command(clients, byzantine)}",
        ]
    return [
        f"for {asked}: {first.rule}",
        f"evidence: {evidence}",
        f"cost: {first.ms:g} ms to aggregate 20 x 100,000",
        f"try it: {first.command(clients, byzantine)}",
        *(f"next: {one.rule} keeps {one.kept:.0%}, {one.ms:g} ms" for one in found[1:3]),
    ]
