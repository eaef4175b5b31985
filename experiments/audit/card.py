"""The report card on the terminal: one screen."""

from __future__ import annotations

import io
import re

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from experiments.audit.outcomes import HOLDS, NO_RESULT, Finding
from experiments.audit.plan import ATTACK, BROKEN_REPLY, DEFENCE, REPEAT
from experiments.audit.report import Audit
from experiments.audit.text import plain

COLOURS = {"holds": "bold green", "weak": "bold red", "not audited": "bold yellow"}
SHOWN = 4  # defences, beside the bare app
WIDTH = 110  # characters of the card as a picture


def show(audit: Audit, console: Console) -> None:
    """Print the card; whatever comes from the app is plain text."""
    made, kind = audit.summary, audit.outcome.kind
    name = plain(audit.application.name)
    shape = f", {kind.shape}" if kind else ""
    head = f"{name}: {made.word}" + ("" if made.score is None else f", {made.sentence}")
    console.print(Text(head, style=COLOURS[made.word]))
    console.print(Text(f"{audit.application.nodes} nodes{shape}; {audit.seconds:.0f} s"))
    if made.score is None:
        _line(console, made.sentence)
    _metric(audit, console)
    rows = audit.outcome.of(BROKEN_REPLY, ATTACK)
    if rows:
        console.print(_table(audit, rows))
    _defences(audit, console)
    _repeats(audit, console)
    for what, why in audit.outcome.not_tried:
        if why != "--quick":
            _line(console, f"not tried: {plain(what)}: {plain(why)}")
    left = [what for what, why in audit.outcome.not_tried if why == "--quick"]
    if left:
        _line(console, f"not tried with --quick: {', '.join(left)}")
    for note in audit.outcome.notes:
        _line(console, f"note: {plain(note)}")
    same = "unchanged" if audit.hashes[0] == audit.hashes[1] else "CHANGED"
    console.print(Text(f"folder {same}, sha256 {audit.hashes[1][:16]}"))


def _line(console: Console, text: str) -> None:
    """Print plain text; a terminal wraps it itself, a picture needs it wrapped."""
    console.print(Text(text), soft_wrap=not console.record)


def picture(audit: Audit) -> str:
    """Return the card as an SVG picture that fetches nothing from anywhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    show(audit, console)
    drawn = console.export_svg(title=f"fedrobust audit {plain(audit.application.name)}")
    # Rich's picture asks a server for its font, and says in a comment where it is from.
    return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", drawn, flags=re.DOTALL)


def _metric(audit: Audit, console: Console) -> None:
    judge = audit.outcome.judge
    if judge is None:
        return
    b = judge.baseline
    was = "" if b.before is None else f" ({b.before:.3g} before training)"
    _line(
        console,
        f"judged by {judge.metric.text}: clean {b.mean:.3f} +- {b.spread:.3f}{was}; "
        f"a fall beyond {b.tolerated:.3g} breaks",
    )


def _table(audit: Audit, rows: list[Finding]) -> Table:
    table = Table(show_lines=False, pad_edge=False)
    for column in ("attack", "f", "the app", *(d.name for d in audit.outcome.defences[:SHOWN])):
        table.add_column(escape(column), overflow="fold")
    defended = {(f.run.cell.attack, f.run.cell.k, f.run.cell.defence): f
                for f in audit.outcome.of(DEFENCE)}  # fmt: skip
    for found in rows:
        cell = found.run.cell
        start = audit.outcome.starts.get(cell.attack)
        k = f"{cell.k}" if start in (None, cell.k) else f"from {start}"
        with_defence = [
            _word(defended.get((cell.attack, cell.k, defence.name)))
            for defence in audit.outcome.defences[:SHOWN]
        ]
        table.add_row(Text(cell.attack), k, _word(found), *with_defence)
    return table


def _word(found: Finding | None) -> Text:
    if found is None:
        return Text("")
    style = {HOLDS: "green", NO_RESULT: "yellow"}.get(found.outcome, "red")
    value = "" if found.value is None else f" {found.value:.3f}"
    return Text(f"{found.outcome}{value}", style=style)


def _defences(audit: Audit, console: Console) -> None:
    for d in audit.outcome.defences:
        cost = "" if d.cost is None else f", costs {max(0.0, d.cost):.3f} without an attack"
        slower = "" if d.slower is None else f", {d.slower:.1f} x the time"
        told = f"{d.name} ({d.seam}): saves {d.saved} of {d.tried}{cost}{slower}"
        _line(console, told + (f"; {plain(d.why)}" if d.why else ""))
    if audit.remedy:
        console.print(Text("measured with, and to be pasted:", style="bold"))
        for line in audit.remedy.splitlines():
            _line(console, f"    {line}")


def _repeats(audit: Audit, console: Console) -> None:
    for found in audit.outcome.of(REPEAT):
        cell = found.run.cell
        what = "clean" if not cell.k else f"{cell.attack}, f={cell.k}"
        why = f" {plain(found.reason)}" if found.reason else ""
        console.print(Text("Flower's engine, " + what + ": ") + _word(found) + Text(why))
