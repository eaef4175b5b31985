"""fedrobust's Flower server app: ``flwr run .`` starts here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from fedrobust import plugins, secret
from fedrobust.attacks import threat_model
from fedrobust.experiment.against_data import check_against_data
from fedrobust.experiment.honoured import RESUME, refused_feature
from fedrobust.experiment.load import from_run_config
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.failures import PluginError
from fedrobust.flower import CohortGrid, GuardedGrid
from fedrobust.flower._compat import superlink_address
from fedrobust.flower._compat_apps import hurry
from fedrobust.flower.cohort_host import MISTAKE
from fedrobust.flower.shared_rows import FOLDER, RowsFile
from fedrobust.runs.folder import RunFolder
from fedrobust.simulation import stragglers
from fedrobust.text import FAILED, printable
from strategies.base import Row
from strategies.checkpointing import Checkpoints
from strategies.session import run

POLL = 0.01  # seconds between two looks for replies in Flower's simulation; 0: its own intervals

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run configuration.

    Nodes are cohort hosts; with ``nodes = "clients"`` each is one client, as on real machines.
    """
    try:
        log(INFO, "fedrobust: %s", whereabouts(grid, context))
        _run(grid, context.run_config)
    except Exception as error:
        # Whoever started ``flwr run`` looks for this mark in the log, and shows what follows it.
        log(ERROR, "%s%s: %s", FAILED, type(error).__name__, printable(error, limit=2000))
        raise


def _run(grid: Grid, config: Mapping[str, Any]) -> None:
    # Before the settings are read: they may name what a plug-in's file defines.
    plugins.at_hand(str(config.get("use") or ""))
    experiment = from_run_config(config)
    log(INFO, "fedrobust: %s, %s clients", experiment.name, experiment.clients)
    if config.get("resume") and (wrong := refused_feature(experiment.mode, RESUME)):
        raise ConfigError(wrong)
    root = str(config.get("data-root", "")) or None
    # Before the run's folder is opened and any node is asked: what is wrong costs nothing yet.
    check_against_data([experiment], data_root=root)
    carried = carry(grid, experiment, config)
    with ExitStack() as stack:
        folder, checkpoints = None, None
        if output := str(config.get("output", "")):
            own_parts = plugins.identities(experiment.to_dict(), root=root)
            recording = RunFolder(output, experiment).recording(
                resume=bool(config.get("resume")), own=own_parts
            )
            folder = stack.enter_context(recording)
            checkpoints = Checkpoints(folder.save, folder.saved)
        own = server_secret(config, folder) if config.get("nodes") == "clients" else None

        def on_row(row: Row) -> None:
            log(INFO, "%s", sentence(row))
            if folder is not None:
                folder.append(row)
            if config.get("nodes") != "clients":
                # After it is on disk: the row that ends the run is the one that somebody will want
                # to read.
                end_on_mistakes(row)

        attacks = Path(output) if output else None
        device = str(config.get("device") or "cpu") if config.get("nodes") != "clients" else "cpu"
        where: dict[str, Any] = {"data_root": root, "attacks": attacks, "device": device}
        kept: dict[str, Any] = {"checkpoints": checkpoints, "secret": own}
        run(carried, experiment, on_row=on_row, **kept, **where)


def whereabouts(grid: Grid, context: Context) -> str:
    """Say which SuperLink a run went to: several may listen on one machine."""
    address = superlink_address(grid) or "no address of its own"
    home = os.environ.get("FLWR_HOME") or "the default"
    return f"run {context.run_id} of the SuperLink at {address}, Flower home: {home}"


def end_on_mistakes(row: Row) -> None:
    """End a simulation in which an attack's own code failed: it was not withstood.

    Hosts are trusted. A reply of a real node never ends a run, whatever it says.

    Raises
    ------
    PluginError
        With the attack's name.
    """
    for entry in row.get("rejected", []):
        _, found, said = str(entry["reason"]).partition(MISTAKE)
        if found:
            raise PluginError(said)


def server_secret(config: Mapping[str, Any], folder: RunFolder | None) -> int | None:
    """Return what a real server's draws follow from, and keep it in the run's folder.

    A run that continues takes its checkpoint's (None: ``run`` finds it there); a run that repeats
    another one reads the file that ``secret-file`` names, on this machine; any other draws its own.
    The run's configuration goes to every node: it may hold the file's name, never the secret.
    """
    if folder is not None and folder.saved is not None and folder.saved.get(secret.KEY) is not None:
        return None
    named = str(config.get("secret-file", ""))
    chosen = secret.read(Path(named)) if named else secret.fresh()
    if folder is not None:
        secret.write(folder.path / secret.FILE, chosen)
    return chosen


def carry(grid: Grid, experiment: Experiment, config: Mapping[str, Any]) -> Grid:
    """Return the grid whose nodes are the experiment's clients.

    Raises
    ------
    ConfigError
        If real nodes are to collude: there is no side channel between machines.
    """
    if config.get("nodes") == "clients":
        crafts = threat_model.kind(experiment.attack["name"]) in ("craft", "trained")
        if crafts and threat_model.knowledge(experiment.attack) != "own":
            raise ConfigError(["on real nodes an attacker knows its own data: knowledge = 'own'"])
        if experiment.attack["name"] in threat_model.COLLUDING:
            name = experiment.attack["name"]
            raise ConfigError([f"on real nodes no member knows the others' answers: {name!r}"])
        return GuardedGrid(grid)
    hosts = int(config.get("hosts", 0))
    count = hosts or max(1, len(list(grid.get_node_ids())))
    # Rounded up: the fullest host answers for so many clients in one message.
    guarded = GuardedGrid(grid, clients=-(-experiment.clients // count))
    if poll := float(config.get("poll", POLL)):
        hurry(grid, poll)
    return CohortGrid(
        guarded,
        clients=experiment.clients,
        hosts=hosts,
        shared=shared_rows(experiment),
        asked=stragglers.sample_size(experiment),
    )


def shared_rows(experiment: Experiment) -> RowsFile | None:
    """Return what makes rows that hosts on this machine write; None where updates are bytes.

    The run's launcher says where; of a quantised update the bytes are what is measured.
    """
    folder = os.environ.get(FOLDER, "")
    if not folder or experiment.mode != "federated" or experiment.compression.on:
        return None
    return RowsFile(Path(folder))


def sentence(row: Row) -> str:
    """Say a round in one line."""
    words = [f"round {row['round']}"]
    if "accuracy" in row:
        words.append(f"accuracy {row['accuracy']:.4f}")
        words[-1] += f", loss {row['loss']:.4f}" if "loss" in row else ""  # a vote has none
    elif "loss" in row:
        words.append(f"loss {row['loss']:.4f}")
    if row.get("rejected"):
        names = ", ".join(f"{r['client']} ({r['reason'][:60]})" for r in row["rejected"][:3])
        words.append(f"{len(row['rejected'])} rejected: {names}")
    if "kept" in row:
        words.append(f"model kept: {row['kept']}")
    return "; ".join(words)
