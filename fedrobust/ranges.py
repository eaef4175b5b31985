"""Settings of plug-ins: a value that means nothing is refused where it enters, in one sentence."""

from __future__ import annotations

import math
import numbers
from typing import Any

from fedrobust.spec import SpecError


def whole(value: Any, who: str, name: str, *, low: int = 0, high: int | None = None) -> int:
    """Return a whole number of low..high; True and False are no numbers.

    Raises
    ------
    SpecError
        ``dnc needs a whole coordinates of at least 1, got 0``.
    """
    # numpy's whole numbers count, which are no int; True is an int, and does not.
    right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        span = f"of at least {low}" if high is None else f"within {low}..{high}"
        raise SpecError(f"{who} needs a whole {name} {span}, got {value!r}")
    return int(value)


def real(
    value: Any,
    who: str,
    name: str,
    *,
    above: float = -math.inf,
    low: float = -math.inf,
    high: float = math.inf,
) -> float:
    """Return a finite number that is > above, >= low and <= high.

    Raises
    ------
    SpecError
        ``norm_clipping needs bound > 0, got -1.0``.
    """
    right = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # isfinite as well: infinity would pass bounds that are infinite by default.
    if not right or not math.isfinite(value) or not (value > above and low <= value <= high):
        bounds = [f"> {above:g}"] * (above > -math.inf) + [f">= {low:g}"] * (low > -math.inf)
        bounds += [f"<= {high:g}"] * (high < math.inf)
        said = f"{name} {' and '.join(bounds)}" if bounds else f"a finite {name}"
        raise SpecError(f"{who} needs {said}, got {value!r}")
    return float(value)


def truth(value: Any, who: str, name: str) -> bool:
    """Return True or False, and nothing that merely counts as either.

    Raises
    ------
    SpecError
        ``bucketing needs permute to be true or false, got 'no'``.
    """
    if not isinstance(value, bool):
        raise SpecError(f"{who} needs {name} to be true or false, got {value!r}")
    return value
