"""The way to a Ray cluster: this run's own on this machine, or the one that its user names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedrobust.experiment.schema import ConfigError

LOCAL, FROM_ENVIRONMENT = "local", "env"
ENVIRONMENT = "RAY_ADDRESS"
# No telemetry; and a worker without a GPU of its own sees those that the machine has, as Ray will
# do by itself: without a word in every log.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def imported() -> Any:
    """Return the module ``ray``.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(
            ["this needs Ray, which is not installed: pip install 'flwr[simulation]', or"
             " 'ray[default]'; without it runs go in_process"]
        ) from error  # fmt: skip


def address_of(given: str) -> str:
    """Return where the cluster is that a user asked for.

    Parameters
    ----------
    given
        "local": a Ray of this run's own, gone at its end. "env": what ``RAY_ADDRESS`` says.
        "auto": the cluster that was started on this machine. Else HOST:PORT, or ray://HOST:PORT.

    Raises
    ------
    ConfigError
        If the environment is asked and says nothing.
    """
    if given != FROM_ENVIRONMENT:
        return given
    if not (address := os.environ.get(ENVIRONMENT, "")):
        raise ConfigError([f"--ray-address env reads {ENVIRONMENT}, which is not set"])
    return address


@contextmanager
def connected(given: str = LOCAL) -> Iterator[Any]:
    """Be a driver of a cluster inside the block; yields the module ``ray``.

    A process that has called ``ray.init`` itself is connected already: its cluster is used, and
    stays. No other cluster is ever joined unless its address is given, whatever the environment
    or Ray's own notes on this machine say.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    ray = imported()
    if ray.is_initialized():
        yield ray
        return
    address = address_of(given)
    settings: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError([f"no Ray cluster at {address!r}: {error}"]) from error
    try:
        yield ray
    finally:
        ray.shutdown()
