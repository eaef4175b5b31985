"""Whether the packages beside ``fedrobust`` are ours: their generic names can be shadowed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from fedrobust.spec import InputError

BESIDE = ("strategies", "clients", "experiments")


class ShadowError(InputError):
    """Another package stands where Python looks first for one of ours."""


def check_packages(names: Iterable[str] = BESIDE, *, home: Path | None = None) -> None:
    """Refuse to go on where Python finds foreign packages in the place of ours.

    Parameters
    ----------
    home
        The folder in which ours stand: that of ``fedrobust``.

    Raises
    ------
    ShadowError
        With the file that was found for each.
    """
    home = home or Path(__file__).parents[1]
    wrong = []
    for name in names:
        found = _origin(name)
        if found is None:
            wrong.append(f"fedrobust's package {name!r} is missing: it belongs into {home}")
        elif found.resolve() != (home / name).resolve():
            wrong.append(
                f"the package {name!r} that Python finds is {found}, not fedrobust's own"
                f" {home / name}: start from another folder, or rename it"
            )
    if wrong:
        raise ShadowError("\n".join(wrong))


def _origin(name: str) -> Path | None:
    """Return the folder, or the single file, that an import of a name would take."""
    # Found, not imported: foreign code must not run on the way.
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [])
    return Path(places[0] if places else str(spec.origin))
