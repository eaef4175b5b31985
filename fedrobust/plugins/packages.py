"""Plug-ins of installed packages, by their entry points."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from fedrobust.plugins.kinds import KINDS, Part, PlugInError


def entry_points(*kinds: str) -> list[importlib.metadata.EntryPoint]:
    """Return every plug-in (of some kinds) that an installed package offers: read here alone."""
    groups = [KINDS[kind].group for kind in kinds or KINDS]
    # Each call reads the files of all installed packages.
    return [point for group in groups for point in importlib.metadata.entry_points(group=group)]


def offered(kind: str, name: str) -> Part | None:
    """Return the plug-in of a kind and a name that an installed package offers, loaded.

    Raises
    ------
    PlugInError
        If it cannot be loaded, or two packages offer one name; with the packages' names.
    """
    found = [point for point in entry_points(kind) if point.name == name]
    makers = list(dict.fromkeys(package_of(point) for point in found))
    if len(makers) > 1:
        raise PlugInError(f"{kind} {name!r} is offered by {' and '.join(makers)}: uninstall one")
    return part_of(kind, found[0]) if found else None


def part_of(kind: str, point: importlib.metadata.EntryPoint) -> Part:
    """Load what an entry point names.

    Raises
    ------
    PlugInError
        With the package's name, if that fails.
    """
    try:
        value = point.load()
    except Exception as error:  # foreign code: whatever it raises is its mistake
        raise PlugInError(
            f"{kind} {point.name!r} of the package {package_of(point)} cannot be loaded:"
            f" {type(error).__name__}: {error}"
        ) from error
    return Part(kind, point.name, value, package_of(point), _source_digest(point.module))


def package_of(point: importlib.metadata.EntryPoint) -> str:
    """Return the name and version of the package that an entry point belongs to."""
    package = point.dist
    return f"{package.name} {package.version}" if package is not None else "a package without name"


def _source_digest(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""
