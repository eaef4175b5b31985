"""Pictures of the report as plain SVG, with the numbers in them that a pointer shows.

Every picture is drawn without the script; the script adds what is shown under a pointer, and hides
what a reader switches off: ``data-d`` says to which defence a thing belongs, ``data-a`` to which
attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Okabe and Ito's colours, told apart by colour-blind readers; dashes tell when they run out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#14201E", "#8A6D3B")
DASHES = ("none", "7 4", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 8, 36


@dataclass(frozen=True)
class Line:
    """A curve; ``low`` and ``high`` bound its band, and may be empty.

    Attributes
    ----------
    place
        Of its defence, which decides colour and dash.
    """

    name: str
    place: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    mark: float | None = None


@dataclass(frozen=True)
class Axis:
    """One direction of a picture: what it shows, from where to where.

    Attributes
    ----------
    words
        At whole numbers, instead of numbers.
    """

    label: str
    low: float
    high: float
    log: bool = False
    words: Sequence[str] = ()

    def share(self, value: float) -> float:
        """Return where a value is, 0 to 1."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        return (self._scaled(value) - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return where the marks are, and what stands at them."""
        if self.words:
            return [(float(i), word) for i, word in enumerate(self.words)]
        if self.log:
            # The ends themselves count, though a float may stand a little beside them.
            ends = math.ceil(self._scaled(self.low) - 1e-9), math.floor(self._scaled(self.high))
            powers = range(ends[0], ends[1] + 1, max(1, (ends[1] - ends[0]) // 5))
            return [(10.0**p, f"{10.0**p:g}") for p in powers]
        step = nice((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        # Ten digits: 3 * 0.1 is 0.30000000000000004.
        return [(i * step, f"{i * step:.10g}") for i in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        # A zero has no logarithm: it is far below any picture.
        return math.log10(max(value, 1e-300)) if self.log else value


def nice(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least ``step``."""
    power = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next((f * power for f in (1, 2, 5) if f * power >= step * (1 - 1e-9)), 10 * power)


def fitted(label: str, values: Sequence[float], *, log: bool = False, zero: bool = False) -> Axis:
    """Return the axis on which all values are seen."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if log:
        return Axis(label, low / 1.2, max(high * 1.2, low * 1.5), log=bool(known))
    low = min(low, 0.0) if zero else low
    # One value alone has no range: there is room of half of it on both sides, or of a half.
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    return Axis(label, low if zero and low == 0 else low - room, high + room)


def chart(
    lines: Sequence[Line], x: Axis, y: Axis, *, unit: str = "", joined: bool = True
) -> Markup:
    """Draw lines, or with ``joined`` false points with their names.

    Parameters
    ----------
    unit
        Behind a number, where a pointer shows it.
    """
    drawn = Markup("").join(_line(line, x, y, joined) for line in lines)
    told = Markup(' data-x="{}" data-unit="{}"').format(x.label, unit)
    name = f"{y.label} against {x.label}"
    return _svg("chart", WIDTH, HEIGHT, _axes(x, y) + drawn, name, told)


def style(place: int) -> tuple[str, str]:
    """Return colour and dash of the line at a place; no two of the first 32 are alike."""
    return COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]


def _line(line: Line, x: Axis, y: Axis, joined: bool) -> Markup:
    colour, dash = style(line.place)
    pairs = [(a, b) for a, b in zip(line.x, line.y, strict=True) if _seen(b, y)]
    inner = Markup("")
    if joined and line.low:
        ends = zip(line.x, line.low, line.high, strict=True)
        bounds = [t for t in ends if _seen(t[1], y) and _seen(t[2], y)]
        # Along the lower edge, and back along the upper one.
        way = [(a, b) for a, b, _ in bounds] + [(a, b) for a, _, b in reversed(bounds)]
        inner += Markup('<path d="{}Z" fill="{}" opacity=".15"/>').format(_path(way, x, y), colour)
    if joined:
        drawn = '<path d="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-dasharray="{}"/>'
        inner += Markup(drawn).format(_path(pairs, x, y), colour, dash)
    if line.mark is not None and y.low <= line.mark <= y.high:
        at = _path([(x.low, line.mark), (x.high, line.mark)], x, y)
        drawn = '<path d="{}" fill="none" stroke="{}" stroke-dasharray="2 3"/>'
        inner += Markup(drawn).format(at, colour)
    # A line through one point would not be seen.
    if not joined or len(pairs) == 1:
        dots = (_place(a, b, x, y) for a, b in pairs)
        inner += Markup("").join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" fill="{}"/>').format(*at, colour)
            for at in dots
        )
    at = " ".join(f"{a:g}" for a, _ in pairs)
    values = " ".join(f"{b:.5g}" for _, b in pairs)
    places = " ".join("{:.1f},{:.1f}".format(*_place(a, b, x, y)) for a, b in pairs)
    head = '<g data-d="{}" data-x="{}" data-y="{}" data-at="{}">'
    return Markup(head).format(line.name, at, values, places) + inner + Markup("</g>")


def _seen(value: float, y: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not y.log)


def _place(a: float, b: float, x: Axis, y: Axis) -> tuple[float, float]:
    across = LEFT + x.share(a) * (WIDTH - LEFT - RIGHT)
    return across, HEIGHT - BOTTOM - y.share(b) * (HEIGHT - TOP - BOTTOM)


def _path(pairs: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    places = ("{:.1f} {:.1f}".format(*_place(a, b, x, y)) for a, b in pairs)
    return "M" + "L".join(places) if pairs else "M0 0"


def _axes(x: Axis, y: Axis) -> Markup:
    floor, parts = HEIGHT - BOTTOM, []
    for value, word in y.ticks():
        _, at = _place(x.low, value, x, y)
        parts.append(Markup('<path d="M{} {:.1f}H{}"/>').format(LEFT, at, WIDTH - RIGHT))
        text = '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        parts.append(Markup(text).format(LEFT - 5, at + 3.5, word))
    for value, word in x.ticks():
        at, _ = _place(value, y.low, x, y)
        text = '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        parts.append(Markup(text).format(at, floor + 14, word))
    parts.append(Markup('<path class="floor" d="M{} {}H{}"/>').format(LEFT, floor, WIDTH - RIGHT))
    middle = (LEFT + WIDTH - RIGHT) / 2
    text = '<text class="label" x="{:.0f}" y="{}" text-anchor="middle">{}</text>'
    parts.append(Markup(text).format(middle, HEIGHT - 4, x.label))
    turned = 'transform="translate(11 {:.0f}) rotate(-90)" text-anchor="middle"'
    text = f'<text class="label" {turned}>{{}}</text>'
    parts.append(Markup(text).format((TOP + floor) / 2, y.label))
    return Markup('<g class="axes">') + Markup("").join(parts) + Markup("</g>")


def _svg(kind: str, width: float, height: float, inner: Markup, name: str, told: Markup) -> Markup:
    head = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}"{}>')
    return head.format(kind, width, height, name, told) + inner + Markup("</svg>")


CELL, NAMES = 14, 46  # height of a row and room for its name


@dataclass(frozen=True)
class Matrix:
    """Rows of cells, each one letter; ``colours`` says what a letter looks like.

    Attributes
    ----------
    names
        Of the rows; ``marked`` of them are told apart.
    columns
        Numbers of the columns.
    """

    names: Sequence[str]
    marked: Sequence[bool]
    columns: Sequence[int | str]
    cells: Sequence[str]
    label: str


def matrix(
    one: Matrix, colours: dict[str, str], *, width: float = 640, kind: str = "matrix"
) -> Markup:
    """Draw a matrix, each colour as one path."""
    step = (width - NAMES - 4) / max(1, len(one.columns))
    height = CELL * len(one.names)
    parts = [
        Markup('<path d="{}" fill="{}"/>').format(_cells(one.cells, letter, step), colour)
        for letter, colour in colours.items()
        if any(letter in row for row in one.cells)
    ]
    for i, (name, marked) in enumerate(zip(one.names, one.marked, strict=True)):
        text = '<text x="{}" y="{:.1f}" text-anchor="end"{}>{}</text>'
        mark = Markup(' class="bad"') if marked else ""
        word = f"◆ {name}" if marked else name
        parts.append(Markup(text).format(NAMES - 5, i * CELL + 10.5, mark, word))
    every = max(1, math.ceil(len(one.columns) / 12))
    for j in range(0, len(one.columns), every):
        at = NAMES + (j + 0.5) * step
        text = '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
        parts.append(Markup(text).format(at, height + 12, one.columns[j]))
    text = '<text class="label" x="{:.0f}" y="{}" text-anchor="middle">{}</text>'
    parts.append(Markup(text).format((NAMES + width) / 2, height + 27, one.label))
    return _svg(kind, width, height + 32, Markup("").join(parts), one.label, Markup(""))


def _cells(rows: Sequence[str], letter: str, step: float) -> str:
    """Return one path over all cells that hold a letter; neighbours become one bar."""
    parts = []
    for i, row in enumerate(rows):
        j = row.find(letter)
        while j >= 0:
            end = j
            while end < len(row) and row[end] == letter:
                end += 1
            at = f"M{NAMES + j * step:.1f} {i * CELL + 1}h{(end - j) * step:.1f}v{CELL - 2}"
            parts.append(f"{at}H{NAMES + j * step:.1f}z")
            j = row.find(letter, end)
    return "".join(parts)
