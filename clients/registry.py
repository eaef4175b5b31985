"""The one place where a process keeps what it has set up for the runs that it serves.

Ray workers and SuperNodes hand each message to a function: between two messages nothing of ours
lives but this module. In a notebook or a test nothing is kept here: handlers are made from a node
and given to the grid.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

from flwr.app import Context

from clients.modes import Handlers, handlers_for
from clients.node import ROLE, Host, host_of
from fedrobust import plugins
from fedrobust.experiment.load import document_of, from_run_config
from fedrobust.experiment.schema import ConfigError

Value = TypeVar("Value")
MOST = 4  # runs; a process that serves more takes turns, and sets the oldest up again


class Registry(Generic[Value]):
    """The last few values that were made, by key.

    Parameters
    ----------
    most
        How many are kept: a node holds a data set, so that what is no longer used must go.

    Notes
    -----
    Two threads that ask for one key get one value; others wait meanwhile, since what is set up
    (a data set from disk) gains nothing from being set up twice at once.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return what was made for a key, made now where nothing is kept."""
        with self._lock:
            if key not in self._values:
                self._values[key] = make()
                if len(self._values) > self._most:
                    self._values.popitem(last=False)
            self._values.move_to_end(key)
            return self._values[key]


HANDLERS: Registry[Handlers] = Registry()


def handlers_of(context: Context) -> Handlers:
    """Return the handlers of the run that a context belongs to.

    The run's number is part of the key: what one run keeps is never another's, even where both have
    the same configuration.
    """
    host = host_of(context.run_config, context.node_config)
    # Sorted: a dictionary's order is no part of a configuration, and must not set a run up twice.
    settings = tuple(sorted(context.run_config.items()))
    return HANDLERS.get(
        (context.run_id, settings, host),
        lambda: _made(context, host),
    )


def _made(context: Context, host: Host) -> Handlers:
    """Set a run up; plug-ins of others come from this node's owner, in a simulation from the run.

    No server makes a node of somebody else's load a file.
    """
    owned = ROLE in context.node_config
    settings = context.node_config if owned else context.run_config
    plugins.at_hand(str(settings.get("use") or ""))
    if owned and (missing := plugins.lacking(document_of(context.run_config))):
        raise ConfigError(
            [f"this node lacks {', '.join(missing)}: start it with --use FILE.py, or install them"]
        )
    return handlers_for(from_run_config(context.run_config), host)
