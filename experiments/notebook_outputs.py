"""Run the shipped notebooks and keep their outputs in them: text, tables, pictures.

``python -m experiments.notebook_outputs [NAME ...]`` runs each in a namespace of its own, without
Jupyter, and writes what a notebook would show below each cell.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

FOLDER = Path(__file__).parent / "notebooks"
Output = dict[str, Any]


def run(path: Path) -> dict[str, Any]:
    """Run a notebook from top to bottom and return it with its outputs."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for cell in document["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        cell["execution_count"] = number
        cell["outputs"] = _outputs("".join(cell["source"]), namespace, f"{path.stem} {number}")
    return document


def write(document: dict[str, Any], path: Path) -> None:
    """Write a notebook as Jupyter does."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _outputs(source: str, namespace: dict[str, Any], name: str) -> list[Output]:
    """Run one cell; return what it printed, and the value of its last line."""
    tree = ast.parse(source)
    end = tree.body[-1] if tree.body else None
    last = end if isinstance(end, ast.Expr) else None
    del tree.body[len(tree.body) - (last is not None) :]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(tree, name, "exec"), namespace)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    found: list[Output] = []
    if said.getvalue():
        found.append({"name": "stdout", "output_type": "stream", "text": _lines(said.getvalue())})
    if value is not None:
        found.append({"data": _shown(value), "metadata": {}, "output_type": "display_data"})
    return found


def _shown(value: Any) -> dict[str, Any]:
    """Return a value in the forms in which a notebook keeps it."""
    if isinstance(value, Figure):
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=80, metadata={"Software": None})
        return {"image/png": base64.b64encode(picture.getvalue()).decode() + "\n"}
    told: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if (html := getattr(value, "_repr_html_", None)) is not None:
        told["text/html"] = _lines(html())
    return told


def _lines(text: str) -> list[str]:
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return shown.splitlines(keepends=True)


def main(names: Iterable[str]) -> None:
    """Run the named notebooks, or all."""
    chosen = list(names) or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in chosen:
        path = FOLDER / f"{name}.ipynb"
        write(run(path), path)
        print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
