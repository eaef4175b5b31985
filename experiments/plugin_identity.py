"""Which of a user's objects is which: a name, the settings that can be written down, or a number.

Two runs with the same configuration are one run. A user's function or object stands in the
configuration by this identity, so that two that differ in anything are two.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from fedrobust import aggregation, attacks
from fedrobust.aggregation.record import ASKED, SUPPLIED
from fedrobust.attacks.crafting import SUPPLIED as CRAFTING

PLAIN = (bool, int, float, str)
# What a spec may not carry under this name: the run hands it in, or the spec means something else.
RESERVED = {"name", "knowledge", "boost", *SUPPLIED, *ASKED, *CRAFTING} - {"f"}


class Numbers:
    """Numbers for namesakes that differ in what no configuration can hold, in order of appearance.

    The first of a name has none; the next is ``name#2``. Numbers last as long as the process: a
    run's identity may not depend on what has been forgotten since.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[Any]] = {}

    def named(self, name: str, mark: Any) -> str:
        """Return the name of an object: the same for the same mark, another for another."""
        known = self._known.setdefault(name, [])
        # A list: marks hold tables and references, which have no hash.
        if mark not in known:
            known.append(mark)
        place = known.index(mark)
        return f"{name}#{place + 1}" if place else name


NUMBERS = Numbers()


def spec_of(given: Any) -> dict[str, Any]:
    """Return the spec under which a user's rule, attack or strategy runs.

    Settings are the keywords of a ``functools.partial`` and the parameters of an object that
    differ from their defaults, as far as a configuration can hold them. Whatever else tells two
    namesakes apart (code, closure, globals, tensors among the settings) gives them numbers.
    """
    core = function_of(given)
    settings = writable(core)
    return {"name": NUMBERS.named(name_of(given), mark(core, settings)), **_shown(core, settings)}


def function_of(given: Any) -> Any:
    """Return what was written: a record's function, or the object itself."""
    if isinstance(given, aggregation.Rule):
        return given.compute
    return given.craft if isinstance(given, attacks.Attack) else given


def name_of(given: Any) -> str:
    """Return the name of an object: a function's own, a record's, or the object's class's."""
    if isinstance(given, aggregation.Rule | attacks.Attack):
        return given.name
    while isinstance(given, functools.partial):
        given = given.func
    name = getattr(given, "__name__", type(given).__name__)
    return "function" if name == "<lambda>" else name


def writable(core: Any) -> dict[str, Any]:
    """Return the settings of a partial or an object that a configuration can hold."""
    if isinstance(core, functools.partial):
        found: Mapping[str, Any] = core.keywords
    elif is_object(core):
        found = {k: vars(core)[k] for k in _made_with(core) if k in vars(core)}
    else:
        return {}
    taken = set(inspect.signature(core).parameters) if is_object(core) and callable(core) else set()
    return {k: v for k, v in found.items() if _plain(v) and k not in RESERVED | taken}


def accepting(function: Callable[..., Any], settings: Mapping[str, Any]) -> Callable[..., Any]:
    """Let a function have settings that it does not take, since its object holds them already."""
    signature = inspect.signature(function)
    more = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value)
        for key, value in settings.items()
        if key not in signature.parameters
    ]
    names = {parameter.name for parameter in more}

    def accepted(rows: Any, **given: Any) -> Any:
        return function(rows, **{k: v for k, v in given.items() if k not in names})

    own = list(signature.parameters.values())
    rest = [p for p in own if p.kind is inspect.Parameter.VAR_KEYWORD]
    first = [p for p in own if p not in rest]
    accepted.__signature__ = signature.replace(parameters=[*first, *more, *rest])  # type: ignore[attr-defined]
    accepted.__doc__ = function.__doc__
    return accepted


def is_object(core: Any) -> bool:
    """Whether this is an instance with attributes: no function, method, class or partial."""
    simple = (functools.partial, FunctionType, MethodType, type)
    return not isinstance(core, simple) and hasattr(core, "__dict__")


def mark(core: Any, settings: Mapping[str, Any]) -> Any:
    """Return what tells two objects apart, beside these settings, comparable by ``==``."""
    if isinstance(core, functools.partial):
        kept = {k: v for k, v in core.keywords.items() if k not in settings}
        return ("partial", mark(core.func, {}), _each(core.args), _table(kept))
    if isinstance(core, MethodType):
        return ("method", mark(core.__func__, {}), mark(core.__self__, {}))
    if isinstance(core, FunctionType):
        defaults = (_each(core.__defaults__ or ()), _table(core.__kwdefaults__ or {}))
        return ("function", core.__code__, defaults, _each(_cells(core)), _table(_globals(core)))
    if is_object(core):
        kept = {k: v for k, v in vars(core).items() if k not in settings}
        return ("object", _Reference(type(core)), _table(kept))
    return _Reference(core)


class _Reference:
    """An object, equal to itself alone; one that is gone is equal to nothing."""

    def __init__(self, value: Any) -> None:
        try:
            # Weak: numbers last as long as the process, a user's data sets should not.
            self._get: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # plain containers and numbers take no weak references
            self._get = lambda: value

    def __eq__(self, other: object) -> bool:
        mine = self._get()
        return isinstance(other, _Reference) and mine is not None and mine is other._get()

    __hash__ = None  # type: ignore[assignment]


def _made_with(core: Any) -> list[str]:
    """Return the names of the parameters of an object's class."""
    return list(inspect.signature(type(core)).parameters)


def _shown(core: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out an object's settings that are as they are by default."""
    if not is_object(core):
        return settings
    defaults = {k: p.default for k, p in inspect.signature(type(core)).parameters.items()}
    return {k: v for k, v in settings.items() if not (_plain(defaults[k]) and defaults[k] == v)}


def _plain(value: Any) -> bool:
    """Whether a configuration can hold a value: a number, a text, or a list of them."""
    if isinstance(value, list | tuple):
        # The type itself: to ``isinstance`` numpy's float64 is a float, and a configuration takes
        # none.
        return all(type(one) in PLAIN for one in value)
    return type(value) in PLAIN


def _value(value: Any) -> Any:
    if value is None or _plain(value):
        return (type(value).__name__, value)  # True is not 1
    return _each(value) if isinstance(value, tuple | list) else _Reference(value)


def _each(values: Any) -> tuple[Any, ...]:
    return tuple(_value(value) for value in values)


def _table(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(value) for key, value in values.items()}


def _cells(function: FunctionType) -> Iterator[Any]:
    """Yield what a closure holds; a cell that is still empty holds nothing."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield None


def _globals(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a function reads: ``lambda updates: clip(updates, k)`` reads k."""
    names = _names(function.__code__)
    return {k: function.__globals__[k] for k in sorted(names) if k in function.__globals__}


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*(_names(one) for one in inner))
