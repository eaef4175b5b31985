"""What a poison needs of its settings, and of the data set that it is to poison.

An attacker that cannot act is no attack that was withstood: everything here is checked before the
start, first without the data (types and ranges), then against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedrobust.attacks.alie_backdoor import MEASURED_ON
from fedrobust.attacks.backdoors import CORNERS
from fedrobust.attacks.data import FLIPS, POISONS
from fedrobust.attacks.tables import TRAINED
from fedrobust.ranges import real, truth, whole
from fedrobust.spec import Spec, SpecError, parameters, split, suggest


@dataclass(frozen=True)
class Victim:
    """The data that attackers poison; None is what nobody knows yet.

    Attributes
    ----------
    classes
        Number of classes.
    side
        Height or width of the images, the smaller one.
    images
        The fewest images that one of the attackers holds.
    held
        The classes of which one of the attackers holds an image at least.
    """

    classes: int | None = None
    side: int | None = None
    images: int | None = None
    held: frozenset[int] | None = None


def check_poison(spec: Spec, victim: Victim = Victim()) -> None:
    """Check the settings of a poison, or of an attack that trains a backdoor.

    Parameters
    ----------
    spec
        Of ``POISONS`` or ``TRAINED``; names of settings are checked elsewhere.
    victim
        What is known of the data; by default nothing.

    Raises
    ------
    SpecError
        ``backdoor needs a whole target within 0..9, got 12``.
    """
    name, given = split(spec)
    # Defaults are checked as well: a pattern of 5 x 5 does not fit into every image.
    settings = settings_of({**POISONS, **TRAINED}[name]) | given
    for key, value in settings.items():
        # A check of one poison's own setting goes before the one of that name for all.
        if (check := CHECKS.get((name, key)) or CHECKS.get(("", key))) is not None:
            check(value, name, victim)
    if name == "edge_case" and settings["source"] == settings["target"]:
        raise SpecError("edge_case needs a target other than its source")
    # After the loop, which made sure that the size is a whole number.
    if "parts" in settings:
        pixels = settings["size"] ** 2
        whole(settings["parts"], name, f"parts (its pixels: {pixels})", low=1, high=pixels)


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a poison's settings that have a default, as they are by default."""
    return {k: p.default for k, p in parameters(function).items() if p.default is not p.empty}


def _below(count: int | None) -> int | None:
    return None if count is None else count - 1


def _target(value: Any, name: str, victim: Victim) -> None:
    whole(value, name, "target", high=_below(victim.classes))


def _source(value: Any, name: str, victim: Victim) -> None:
    whole(value, name, "source", high=_below(victim.classes))
    if victim.held is not None and value not in victim.held:
        raise SpecError(
            f"{name} needs attackers with images of class {value}: none of them has any"
        )


def _size(value: Any, name: str, victim: Victim) -> None:
    whole(value, name, "size", low=1, high=victim.side)


def _index(value: Any, name: str, victim: Victim) -> None:
    whole(value, name, "index", high=_below(victim.images))


def _modulo(value: Any, name: str, victim: Victim) -> None:
    whole(value, name, "modulo", low=2, high=victim.classes)  # 1 leaves class 0 as it is


def _mode(value: Any, name: str, victim: Victim) -> None:
    if value not in FLIPS:
        raise SpecError(f"unknown {name} mode {value!r}; {suggest(str(value), list(FLIPS))}")


def _measured_on(value: Any, name: str, victim: Victim) -> None:
    if value not in MEASURED_ON:
        hint = suggest(str(value), list(MEASURED_ON))
        raise SpecError(f"unknown {name} measured_on {value!r}; {hint}")


Check = Callable[[Any, str, Victim], Any]
CHECKS: Mapping[tuple[str, str], Check] = {
    ("", "target"): _target,
    ("", "size"): _size,
    ("", "value"): lambda value, name, _: whole(value, name, "value", high=255),
    ("", "share"): lambda value, name, _: real(value, name, "share", above=0, high=1),
    ("label_flip", "mode"): _mode,
    ("many_triggers", "triggers"): lambda value, name, _: whole(
        value, name, "triggers", low=1, high=CORNERS
    ),
    ("edge_case", "source"): _source,
    ("edge_case", "tail"): lambda value, name, _: real(value, name, "tail", above=0, high=1),
    ("sample_backdoor", "index"): _index,
    ("sample_backdoor", "modulo"): _modulo,
    ("alie_backdoor", "z"): lambda value, name, _: real(value, name, "z", low=0),
    ("alie_backdoor", "alpha"): lambda value, name, _: real(value, name, "alpha", low=0, high=1),
    ("alie_backdoor", "epochs"): lambda value, name, _: whole(value, name, "epochs", low=1),
    ("alie_backdoor", "batch_size"): lambda value, name, _: whole(value, name, "batch_size", low=1),
    ("alie_backdoor", "local_lr"): lambda value, name, _: real(value, name, "local_lr", above=0),
    ("alie_backdoor", "value"): lambda value, name, _: whole(value, name, "value", high=1000),
    ("alie_backdoor", "train_images"): lambda value, name, _: whole(value, name, "train_images"),
    ("alie_backdoor", "measured_on"): _measured_on,
    ("alie_backdoor", "released_code"): lambda value, name, _: truth(value, name, "released_code"),
}
