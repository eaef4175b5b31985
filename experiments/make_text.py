"""Make the text that ships with the package: docstrings of Python's standard library, by module.

``python -m experiments.make_text`` with CPython 3.11 writes the npz beside the loaders, and the
licence under which the text is distributed. Modules whose source names a copyright or a licence of
its own are left out; of each other one with enough of them, the first ``LENGTH`` characters of its
docstrings are taken, in the order of the source.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from pathlib import Path

import numpy as np

from fedrobust.data.builtin import ALPHABET

HERE = Path(__file__).parents[1] / "fedrobust" / "data"
TARGET, LICENCE = HERE / "docstrings_sample.npz", HERE / "docstrings_sample.LICENSE.txt"
LENGTH = 4000
MOST = 40
OTHERS = re.compile(r"copyright|licen[cs]e", re.IGNORECASE)
KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NOTICE = """docstrings_sample.npz holds docstrings of the standard library of CPython 3.11, in lower
case, with characters outside its alphabet replaced by a space. They are distributed under the
licence below.

"""


def docstrings(source: str) -> str:
    """Return all docstrings of a module, one behind the other."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, KINDS)]
    return "\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def coded(text: str) -> np.ndarray:
    """Return places in the alphabet, uint8; what is not in it is a space."""
    space = ALPHABET.index(" ")
    codes = {letter: place for place, letter in enumerate(ALPHABET)}
    return np.array([codes.get(letter, space) for letter in text.lower()], dtype=np.uint8)


def main() -> None:
    """Write the text and its licence."""
    found: dict[str, np.ndarray] = {}
    library = Path(sysconfig.get_path("stdlib"))
    # Sorted: a file system lists in any order, and the first ``MOST`` are taken.
    for path in sorted(library.glob("[a-z]*.py")):
        source = path.read_text(encoding="utf-8")
        text = "" if OTHERS.search(source) else docstrings(source)
        if len(text) >= LENGTH and len(found) < MOST:
            found[path.stem] = coded(text[:LENGTH])
    names = list(found)
    np.savez_compressed(TARGET, text=np.stack([found[n] for n in names]), names=np.array(names))
    licence = (library / "LICENSE.txt").read_text(encoding="utf-8")
    start = licence.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    end = licence.index("BEOPEN.COM LICENSE AGREEMENT")
    LICENCE.write_text(NOTICE + licence[start:end].strip() + "\n", encoding="utf-8")
    print(f"{len(names)} modules, {TARGET.stat().st_size} bytes: {', '.join(names)}")


if __name__ == "__main__":
    main()
