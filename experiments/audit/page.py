"""The audit as one self-contained HTML page; everything that comes from the app is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from experiments.audit.text import plain

STYLE = """
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem
auto;padding:0 1rem}h1{font-size:1.5rem}table{border-collapse:collapse;margin:1rem 0;display:block;
overflow-x:auto}th,td{padding:.25rem .6rem;text-align:left;border-bottom:1px solid #8884}
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{padding:.8rem;background:#8882;
overflow-x:auto}.holds{color:#1a7f37}.weak,.broke{color:#cf222e}.none{color:#9a6700}
code{font-size:.8rem}small{opacity:.75}
"""
COLUMNS = ("phase", "attack", "k", "defence", "seam", "seed", "outcome", "value", "fall",
           "replaced", "refused", "seconds", "reason", "repeat")  # fmt: skip
CLASSES = {"holds": "holds", "no result": "none", "weak": "weak", "not audited": "none"}


def page(document: dict[str, Any]) -> str:
    """Write the page of an audit's document, see ``Audit.document``."""
    made = document["verdict"]
    app = document["app"]
    parts = [
        f'<h1>{_(app["name"])}: <span class="{CLASSES[made["word"]]}">{_(made["word"])}</span>',
        "</h1>",
        f"<p>{_(made['sentence'])}; {_(app['nodes'])} nodes, {_(app['shape'])}; fails under a "
        f"share of {_(made['threshold'])}; exit code {_(made['exit_code'])}.</p>",
        _metric(document["metric"]),
        _defences(document["defences"]),
        _remedy(document["remedy"]),
        _cells(document["cells"]),
        _list(
            "From which f on it breaks", [f"{a}: {f}" for a, f in document["breaks_from"].items()]
        ),
        _list("Not tried", [f"{row['what']}: {row['why']}" for row in document["not_tried"]]),
        _list("Notes", document["notes"]),
        f"<p><small>Folder {_(app['folder'])}, SHA-256 before {_(app['sha256_before'])}, after "
        f"{_(app['sha256_after'])}. {_(document['seconds'])} s. "
        f"{_(', '.join(f'{k} {v}' for k, v in document['versions'].items()))}.</small></p>",
    ]
    title = f"<title>Audit of {_(app['name'])}</title>"
    # A second wall behind the escaping: nothing in the page may run, or load anything.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"{title}<style>{STYLE}</style></head><body>"
    )
    return head + "\n".join(filter(None, parts)) + "</body></html>\n"


def _(value: Any) -> str:
    """Escape a value; numbers with three digits."""
    if value is None:
        return ""
    return escape(f"{value:.4g}" if isinstance(value, float) else plain(value))


def _metric(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return ""
    return (
        f"<p>Judged by {_(metric['name'])} ({_(metric['direction'])}, {_(metric['source'])}): "
        f"clean {_(metric['mean'])} &plusmn; {_(metric['spread'])}, before training "
        f"{_(metric['before'])}; a fall beyond {_(metric['tolerated'])} breaks.</p>"
    )


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{_(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        cells = "".join(_td(column, row[column]) for column in columns)
        body += f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _td(column: str, value: Any) -> str:
    if column == "outcome":
        return f'<td class="{CLASSES.get(value, "broke")}">{_(value)}</td>'
    if column == "repeat":
        return f"<td><code>{_(value)}</code></td>"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f'<td class="n">{_(value)}</td>' if number else f"<td>{_(value)}</td>"


def _defences(defences: list[dict[str, Any]]) -> str:
    if not defences:
        return ""
    columns = ("name", "seam", "saved", "tried", "cost", "slower", "why")
    return "<h2>Defences</h2>" + _table(columns, defences)


def _cells(cells: list[dict[str, Any]]) -> str:
    return "<h2>Cells</h2>" + _table(COLUMNS, cells) if cells else ""


def _remedy(lines: str) -> str:
    return f"<h2>Measured with</h2><pre>{escape(lines)}</pre>" if lines else ""


def _list(title: str, entries: list[str]) -> str:
    items = "".join(f"<li>{_(entry)}</li>" for entry in entries)
    return f"<h2>{_(title)}</h2><ul>{items}</ul>" if items else ""
