"""What this process holds of others: files that were named, parts that were put in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

from fedrobust.plugins.kinds import KINDS, Part, PlugInError


class _Room:
    """What this process holds of others: files that were named, parts that were put in."""

    def __init__(self) -> None:
        self.files: dict[Path, tuple[str, ModuleType]] = {}
        self.parts: dict[tuple[str, str], tuple[Part, ExitStack]] = {}

    def put(self, part: Part) -> ExitStack:
        """Put a part into its table."""
        stack = ExitStack()
        try:
            stack.enter_context(KINDS[part.kind].enter(part.name, part.value))
        except PlugInError as error:
            raise PlugInError(f"{part.origin}: {error}") from error
        except ValueError as error:  # the tables of rules and attacks raise these
            raise PlugInError(f"{part.origin}: {error}") from error
        self.parts[part.kind, part.name] = (part, stack)
        return stack

    def take(self, kind: str, name: str) -> None:
        """Take a part out again."""
        _, stack = self.parts.pop((kind, name))
        stack.close()


ROOM = _Room()


@contextmanager
def installed(part: Part) -> Iterator[None]:
    """Let a plug-in stand in its table inside the block, like any of ours.

    Raises
    ------
    PlugInError
        If there is one of that name, or it is not what its kind asks for.
    """
    ROOM.put(part)
    try:
        yield
    finally:
        ROOM.take(part.kind, part.name)
