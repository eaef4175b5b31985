"""Plug-ins from a Python file that the user has named."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import os
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from fedrobust.plugins.kinds import Part, PlugInError
from fedrobust.plugins.room import ROOM

MARK = "__fedrobust_plugin__"


def use(path: str | Path) -> list[Part]:
    """Load a Python file of the user's; what is marked by ``fedrobust.plugin`` enters its table.

    Other functions of the file are found by name, once an experiment asks for them. A file that was
    loaded before and has not changed is not loaded again.

    Raises
    ------
    PlugInError
        If the file is not there or fails, or a name in it is taken.
    """
    file = Path(path).expanduser().resolve()
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise PlugInError(f"--use {str(path)!r}: {error.strerror}") from error
    if file in ROOM.files and ROOM.files[file][0] == digest:
        return [part for part, _ in ROOM.parts.values() if part.digest == digest]
    # The file has changed: its former parts would stand in the way of the new ones' names.
    for kind, name in [key for key, (part, _) in ROOM.parts.items() if part.origin == file.name]:
        ROOM.take(kind, name)
    module = _loaded(file)
    ROOM.files[file] = (digest, module)
    found = [Part(*mark, value, file.name, digest) for mark, value in _marked(module)]
    for part in found:
        ROOM.put(part)
    return found


def functions_in(path: str | Path) -> list[str]:
    """Return the public functions that a file in use defines itself, in its order."""
    _, module = ROOM.files[Path(path).expanduser().resolve()]
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


def digest(path: str | Path) -> str:
    """Return the first twelve digits of a used file's SHA-256."""
    return ROOM.files[Path(path).expanduser().resolve()][0]


def _marked(module: ModuleType) -> list[tuple[tuple[str, str], Any]]:
    """Return what a module itself marks by ``fedrobust.plugin``, each thing once."""
    own = {id(v): v for v in vars(module).values() if home(v) == module.__name__}
    marks = [(getattr(value, MARK, None), value) for value in own.values()]
    return [(mark, value) for mark, value in marks if isinstance(mark, tuple)]


def _loaded(file: Path) -> ModuleType:
    """Run a file as a module of its own name, so that its classes and functions have a home."""
    name = f"fedrobust_use_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PlugInError(f"--use {str(file)!r} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle find the module of a class by its name.
    sys.modules[name] = module
    before = list(sys.path)
    sys.path.insert(0, str(file.parent))  # it may import its neighbours, as a script would
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # foreign code: whatever it raises is its mistake
        del sys.modules[name]
        where = f"line {_line(error, file)}: " if _line(error, file) else ""
        raise PlugInError(
            f"--use {str(file)!r} failed: {where}{type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path[:] = before
    return module


def _line(error: BaseException, file: Path) -> int:
    """Return the last line of a file that an error passed through; 0 for none."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def used() -> str:
    """Return the files that this process has loaded, joined as in PATH."""
    return os.pathsep.join(map(str, ROOM.files))


def use_all(paths: str) -> None:
    """Load several files, their paths joined as in PATH; nothing for the empty text."""
    for path in filter(None, paths.split(os.pathsep)):
        use(path)


def in_files(kind: str, name: str) -> Part | None:
    """Find a function by its name in the files that were named."""
    for file, (digest, module) in ROOM.files.items():
        value = vars(module).get(name)
        if value is not None and not inspect.ismodule(value) and not name.startswith("_"):
            return Part(kind, name, value, file.name, digest)
    return None


def home(value: Any) -> str:
    """Return the module in which an object's function or class is written."""
    value = getattr(value, "compute", getattr(value, "craft", value))
    while isinstance(value, partial):
        value = value.func
    return str(getattr(value, "__module__", None) or type(value).__module__)
