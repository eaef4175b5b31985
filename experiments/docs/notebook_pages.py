"""The shipped notebooks as pages with their stored outputs, and the gallery of their pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
Cell = dict[str, Any]


def notebook(name: str) -> str:
    """Write a notebook as Markdown: its text, its code, and what each cell gave."""
    parts = [
        f"The notebook `experiments/notebooks/{name}.ipynb`, with the outputs of its last run."
        " `pip install 'fedrobust[notebooks]'` installs Jupyter beside fedrobust."
    ]
    for place, cell in enumerate(cells(name)):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            plain = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)
            parts.append(plain)
            if place == 0:  # the title stands first on a page
                parts[:2] = [parts[1].split("\n")[0], parts[0], *parts[1].split("\n", 1)[1:]]
        else:
            parts.append(f"```python\n{text}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def gallery(_: str = "") -> str:
    """Write every picture of the notebooks with the words above it, linked to its notebook."""
    parts = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for picture, words in pictures(path.stem):
            image = f'<img alt="{escape(words)}" src="data:image/png;base64,{picture}">'
            parts.append(
                f'<figure><a href="{path.stem}.html">{image}</a>'
                f"<figcaption>{escape(words)}</figcaption></figure>"
            )
    return "\n\n".join(parts) + "\n"


def pictures(name: str) -> Iterator[tuple[str, str]]:
    """Yield each picture of a notebook with the first sentence of the text above it."""
    words = name.replace("_", " ")
    for cell in cells(name):
        if cell["cell_type"] == "markdown":
            last = "".join(cell["source"]).strip().splitlines()[-1]
            words = re.split(r"(?<=\.)\s", last.lstrip("# "))[0].rstrip(":")
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield "".join(output["data"]["image/png"]).strip(), words


def cells(name: str) -> list[Cell]:
    """Return the cells of a notebook."""
    document: Cell = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return list(document["cells"])


def _output(output: Cell) -> str:
    """Write one output: a picture, a table, or text."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).strip()
        return f'<img alt="picture" src="data:image/png;base64,{picture}">'
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return '<div class="md-typeset__scrollwrap">' + html.replace("\n", "") + "</div>"
    text = "".join(data.get("text/plain", output.get("text", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
