"""Objects of a notebook on their way to the processes of a simulation of its own."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import cloudpickle

from fedrobust.packages import BESIDE
from fedrobust.plugins.files import home, use_all
from fedrobust.plugins.kinds import Part, PlugInError
from fedrobust.plugins.room import ROOM

VARIABLE = "FEDROBUST_PARTS"  # names the file with the objects of a notebook


def at_hand(paths: str = "") -> None:
    """Put in what this process was started with, for a run on Flower.

    Parameters
    ----------
    paths
        Files of ``use``, joined as in PATH.

    Notes
    -----
    The objects of a notebook come in a file that its own process wrote, for the simulation that it
    started; only the environment names that file, never a message or a configuration.
    """
    use_all(paths)
    file = os.environ.get(VARIABLE)
    if file and Path(file).is_file():
        for part in cloudpickle.loads(Path(file).read_bytes()):
            # A worker process serves many messages of a run, and each of them comes by here.
            if (part.kind, part.name) not in ROOM.parts:
                ROOM.put(part)


def write_parts(file: Path, parts: Sequence[Part]) -> None:
    """Write objects for the processes of a simulation of this one's own; see ``at_hand``.

    Raises
    ------
    PlugInError
        If an object cannot be sent to another process.
    """
    with ExitStack() as stack:
        for name in {home(part.value) for part in parts}:
            stack.enter_context(_by_value(sys.modules.get(name)))
        try:
            text = cloudpickle.dumps(list(parts))
        except Exception as error:  # whatever an object's own code raises
            raise PlugInError(
                f"an object of yours cannot be sent to another process ({type(error).__name__}:"
                f" {error}): put it into a file and name that by --use, or run in process"
            ) from error
    # Its owner's alone before it holds a byte: whoever could write it would run code in its
    # readers.
    file.touch(mode=0o600)
    file.write_bytes(text)


@contextmanager
def _by_value(module: ModuleType | None) -> Iterator[None]:
    """Send a module's functions whole, where another process could not import it by its name."""
    file = getattr(module, "__file__", None)
    packages = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib")]
    packages += [Path(__file__).parents[2] / name for name in ("fedrobust", *BESIDE)]
    if module is None or not file or any(p in Path(file).resolve().parents for p in packages):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
