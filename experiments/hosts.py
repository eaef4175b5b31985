"""How many host processes a run through Flower's engine has."""

from __future__ import annotations

import os
import re

import torch

from fedrobust.experiment.schema import ConfigError, Experiment

AUTO = "auto"


def hosts_of(text: str) -> int:
    """Read how many hosts somebody wants: a number, or "auto", which is 0.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if text == AUTO:
        return 0
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise ConfigError([f"--hosts {text!r}: choose a number from 1 on, or auto"])
    return int(text)


def check_hosts(hosts: int, grid: str) -> None:
    """Refuse a number of hosts that is none, and hosts on a grid without any.

    Raises
    ------
    ConfigError
        With what is allowed.
    """
    if type(hosts) is not int or hosts < 0:
        raise ConfigError([f"hosts = {hosts!r}: a number from 1 on, or 0 for one a core or GPU"])
    if hosts and grid != "flower":
        raise ConfigError([f"hosts = {hosts}: grid {grid!r} has none; choose grid flower"])


def usual_hosts(experiment: Experiment, device: str) -> int:
    """Return how many hosts use this machine: one a core or GPU, no more than there are clients."""
    if device == "cpu":
        known = hasattr(os, "sched_getaffinity")
        usable = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    else:
        usable = torch.cuda.device_count() if device == "cuda" else 1
    return max(1, min(usable, experiment.clients))
