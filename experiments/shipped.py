"""The experiments that come with the package, by name: ``fedrobust run quickstart`` anywhere."""

from __future__ import annotations

from pathlib import Path

from fedrobust.experiment.schema import ConfigError
from fedrobust.spec import suggest

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def located(source: Path) -> Path:
    """Return a file as it is, or the shipped experiment of that name where there is no such file.

    Raises
    ------
    ConfigError
        For a word that is neither; with the names.
    """
    if source.exists() or source.suffix or len(source.parts) != 1:
        return source
    if source.name not in NAMES:
        hint = suggest(source.name, [*NAMES])
        raise ConfigError([f"no file {source.name!r}, and no shipped experiment; {hint}"])
    return FOLDER / f"{source.name}.toml"
