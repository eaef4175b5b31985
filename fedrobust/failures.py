"""Two ways in which a plug-in fails: it refuses what it was given, or its own code is wrong.

A refusal is an outcome of a round (too few updates, nothing finite): the model is kept, the row
says why, the run goes on. Anything else that the code of a rule, an attack or a strategy raises is
a mistake in that code. It ends the run under the plug-in's name: counted as a refusal it would look
like a defence that held, or an attack that was withstood.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedrobust.spec import SpecError


class Refusal(ValueError):
    """A rule's own refusal to aggregate what it was given; the round keeps the model."""


class PluginError(RuntimeError):
    """A mistake in the code of a rule, an attack or a strategy; the message names it."""


REFUSALS = (Refusal, SpecError)


@contextmanager
def blamed(kind: str, name: str, *, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise what a plug-in's code raises inside the block under the plug-in's name.

    Parameters
    ----------
    kind, name
        For the sentence: ``rule 'mine' failed: NameError: name 'x' is not defined``.
    but
        What passes as it is, beside a ``PluginError`` that names its plug-in already.

    Raises
    ------
    PluginError
        From the exception itself, whose traceback stays with it.
    """
    try:
        yield
    except Exception as error:  # foreign code: whatever it raises is its mistake
        if isinstance(error, (PluginError, *but)):
            raise
        raise PluginError(f"{kind} {name!r} failed: {type(error).__name__}: {error}") from error
