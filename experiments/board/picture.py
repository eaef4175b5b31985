"""The board as a picture: accuracy against the share of attackers, one small panel a rule, SVG.

The same rows give the same text on every machine: it is compared with the file in a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from experiments.board.protocol import PROTOCOL
from experiments.board.rows import in_order, named
from experiments.report.plots import COLOURS, DASHES

Row = dict[str, Any]
FILE = Path(__file__).parents[1] / "images" / "board.svg"
ACROSS, WIDE, HIGH = 5, 168, 118  # panels in a line, and the size of one
LEFT, TOP, INNER, TALL = 26, 20, 134, 76  # where the axes of a panel are
HEAD = 44
MOST = 0.4  # the largest share of attackers on the axis
KINDS = (
    ("clean", "no attack", "#777777", DASHES[2]),
    ("fixed_accuracy", "best published attack", COLOURS[0], DASHES[1]),
    ("auto", "auto", COLOURS[1], DASHES[0]),
)
Point = tuple[float, float]


def picture(rows: Sequence[Row], federation: str = "mixed") -> Markup:
    """Draw every rule in one federation, the best worst case first.

    A panel has the accuracy without an attack, under the most harmful published attack and under
    ``auto``; a cross stands where the rule refuses so many attackers.
    """
    ordered = in_order(rows)
    lines = -(-len(ordered) // ACROSS)
    width, height = ACROSS * WIDE + 8, HEAD + lines * HIGH + 6
    panels = [_panel(row, federation, i) for i, row in enumerate(ordered)]
    budgets = ", ".join(sorted({row["budget"] for row in rows}))
    title = (
        f"Accuracy in % against the share of attackers in %: federation {federation},"
        f" protocol {PROTOCOL}, budget {budgets}"
    )
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}"'
        ' font-family="sans-serif" font-size="9">\n'
        '<rect width="100%" height="100%" fill="#ffffff"/>\n'
        '<text x="8" y="15" font-size="12" font-weight="bold" fill="#14201E">{}</text>\n'
    ).format(width, height, title, title)
    return head + _legend() + Markup("").join(panels) + Markup("</svg>\n")


def series(row: Row, federation: str, key: str) -> list[Point]:
    """Return (share of attackers, accuracy) of a federation's cells that have a key, by share.

    Without attackers every kind of accuracy is the one without an attack.
    """
    found = []
    for cell in row["cells"]:
        if cell["federation"] == federation and "clean" in cell:
            found.append((cell["share"], cell[key] if cell["byzantine"] else cell["clean"]))
    return sorted(found)


def _legend() -> Markup:
    parts, at = [], 8
    for _, word, colour, dash in KINDS:
        drawn = '<path d="M{} 29h22" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
        text = '<text x="{}" y="32" fill="#14201E">{}</text>\n'
        parts.append(Markup(drawn + text).format(at, colour, dash, at + 27, word))
        at += 44 + 5 * len(word)
    cross = '<text x="{}" y="32" fill="#14201E">× refused</text>\n'
    return Markup("").join(parts) + Markup(cross).format(at)


def _panel(row: Row, federation: str, place: int) -> Markup:
    x, y = WIDE * (place % ACROSS) + 4, HEAD + HIGH * (place // ACROSS)
    lines = Markup("").join(
        _curve(series(row, federation, key), colour, dash) for key, _, colour, dash in KINDS
    )
    crosses = Markup("").join(
        Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle" font-size="12">×</text>').format(
            *_at(cell["share"], 0.0)
        )
        for cell in row["cells"]
        if cell["federation"] == federation and "refused" in cell
    )
    title = '<text x="{}" y="13" font-size="10" font-weight="bold" fill="#14201E">{}</text>'
    return (
        Markup('<g transform="translate({} {})">').format(x, y)
        + Markup(title).format(LEFT, named(row))
        + _axes()
        + lines
        + crosses
        + Markup("</g>\n")
    )


def _axes() -> Markup:
    parts = []
    for value in (0.0, 0.5, 1.0):
        _, up = _at(0.0, value)
        drawn = '<path d="M{} {:.1f}h{}" stroke="#dddddd"/>'
        text = '<text x="{}" y="{:.1f}" text-anchor="end" fill="#555555">{:.0f}</text>'
        parts.append(Markup(drawn + text).format(LEFT, up, INNER, LEFT - 4, up + 3, 100 * value))
    for share in (0.0, 0.1, 0.2, MOST):
        along, _ = _at(share, 0.0)
        text = '<text x="{:.1f}" y="{}" text-anchor="middle" fill="#555555">{:.0f}</text>'
        parts.append(Markup(text).format(along, TOP + TALL + 11, 100 * share))
    return Markup("").join(parts)


def _curve(points: Sequence[Point], colour: str, dash: str) -> Markup:
    if not points:
        return Markup("")
    way = "L".join("{:.1f} {:.1f}".format(*_at(*point)) for point in points)
    drawn = '<path d="M{}" fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
    return Markup(drawn).format(way, colour, dash)


def _at(share: float, accuracy: float) -> Point:
    return LEFT + INNER * share / MOST, TOP + TALL * (1 - accuracy)


def write(rows: Sequence[Row], path: Path = FILE) -> Path:
    """Write the picture that the README shows."""
    path.write_text(picture(rows), encoding="utf-8")
    return path
