"""MkDocs hooks: pages that are read off the code, so that they cannot fall behind it.

A line ``<!-- make: NAME ARGUMENTS -->`` of a page becomes what the function NAME returns.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer.main
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from experiments import listing
from experiments.board import page, rows
from experiments.cli import app
from experiments.docs import notebook_pages
from experiments.papers import verdicts as decided

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = re.compile(r"^<!-- make: (\w+) ?(.*?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page's marks; MkDocs calls this for each page."""
    return MARK.sub(lambda mark: MAKERS[mark[1]](mark[2]), markdown)


def on_files(files: Files, *, config: Any, **_: Any) -> Files:
    """Take in the pictures that the README shows too."""
    for picture in sorted((ROOT / "experiments" / "images").glob("*.png")):
        files.append(File.generated(config, f"images/{picture.name}", abs_src_path=str(picture)))
    return files


def formulas() -> dict[str, dict[str, str]]:
    """Return rule -> formula and what it survives, as written by hand."""
    return tomllib.loads((HERE / "formulas.toml").read_text(encoding="utf-8"))


def rules(kind: str) -> str:
    """Describe every rule or pre-aggregator: what, formula, settings, limits, paper."""
    written, parts = formulas(), []
    for entry in listing.tables(kind)[kind]:
        told = written[entry["name"]]
        lines = [
            f"### {entry['name']}\n\n{entry['what']}\n",
            f"{formula(told)}\n",
            f"- **Settings:** {_code(entry['parameters']) or 'none'}",
            f"- **Needs:** {entry['needs']}",
            f"- **Breakdown:** {told['breakdown']}",
            f"- **Paper:** {linked(entry) or 'none'}\n",
        ]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def formula(told: dict[str, str]) -> str:
    """Return a formula as MathML, which browsers draw; as text where it is a recipe."""
    if "latex" not in told:
        return f"```text\n{told['formula']}\n```"
    return f'<div class="formula">{convert(told["latex"], display="block")}</div>'


def linked(entry: dict[str, str]) -> str:
    """Return a reference with the papers in it linked: by title, by arXiv number, or by plug-in."""
    words = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", entry["paper"])
    found = papers()
    for title, address in found["titles"].items():
        words = words.replace(title, f"[{title}]({address})", 1)
    named = found["names"].get(entry["name"])
    return f"{words} [The paper]({named})." if named else words


def papers() -> dict[str, dict[str, str]]:
    """Return where papers are: by title, and by plug-in."""
    return tomllib.loads((HERE / "papers.toml").read_text(encoding="utf-8"))


def table(kind: str) -> str:
    """Write one kind of plug-in as a table."""
    rows = [
        f"| `{e['name']}` | {_cell(e['what'])} | {_code(e['parameters'])} | {_cell(linked(e))} |"
        for e in listing.tables(kind)[kind]
    ]
    return "\n".join(
        ["| name | what it does | settings | paper |", "| --- | --- | --- | --- |", *rows]
    )


def everything(skipped: str) -> str:
    """Write every kind that has no page of its own."""
    kinds = [kind for kind in listing.tables() if kind not in skipped.split(", ")]
    return "\n\n".join(f"## {kind.capitalize()}\n\n{table(kind)}" for kind in kinds)


def commands(_: str) -> str:
    """Write every command of the program with its options."""
    group = typer.main.get_command(app)
    parts = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        parts.append(f"## fedrobust {name}\n\n{_plain(command.help or '')}\n")
        rows = []
        for parameter in command.params:
            names = (
                ", ".join(f"`{o}`" for o in parameter.opts) if parameter.opts else parameter.name
            )
            words = _cell(getattr(parameter, "help", None) or "")
            if names not in ("`--help`",):
                rows.append(f"| {names} | {words} |")
        parts.append("\n".join(["| option | what it does |", "| --- | --- |", *rows, ""]))
    return "\n".join(parts)


def file(path: str) -> str:
    """Take in another Markdown file of the repository, its links made plain words."""
    text = (ROOT / path).read_text(encoding="utf-8")
    # Their targets are paths of the repository, which the site does not have.
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def claims(paper: str) -> str:
    """Write one paper's claims and verdicts, or those of all papers."""
    if not paper:
        return decided.page(decided.PAPERS)
    found = decided.read(paper)
    return f"{decided.markdown(found)}\n{decided.measured_with(found)}"


def board(_: str) -> str:
    """Write the board's rows, the best worst case first, with their picture and their doubts."""
    found = rows.read()
    return str(page.page(found)) if found else "No rule has been measured yet."


def verdict(_: str) -> str:
    """Write for each cell of the board which rule keeps most there, and whether that is enough."""
    return page.verdict(rows.read())


def _code(settings: str) -> str:
    return ", ".join(f"`{part}`" for part in settings.split(", ") if part)


def _cell(words: str) -> str:
    # A bar would end the cell, and a bracket begin a tag.
    return words.replace("|", "\\|").replace("<", "&lt;")


def _plain(words: str) -> str:
    return " ".join(words.split()).replace("<", "&lt;")


MAKERS: dict[str, Callable[[str], str]] = {
    "rules": rules,
    "table": table,
    "everything": everything,
    "commands": commands,
    "file": file,
    "board": board,
    "claims": claims,
    "verdict": verdict,
    "notebook": notebook_pages.notebook,
    "gallery": notebook_pages.gallery,
}
