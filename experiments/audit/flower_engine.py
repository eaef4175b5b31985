"""A cell through Flower's own simulation engine (Ray), for a check of the in-process cells."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiments.audit.application import Application
from experiments.audit.cell import Cell
from fedrobust.flower._compat import load_app
from fedrobust.flower._compat_apps import simulate_app

PATIENCE = 120.0  # seconds until all nodes are there


def lead(
    application: Application, cell: Cell, folder: Path, stage: dict[str, Any], lead_server: Any
) -> None:
    """Run a cell in the engine; its clients load the app themselves, in Ray's actors.

    The engine starts the server before its nodes: attackers chosen then would be none, so the app's
    main waits until all of them are there.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        end = time.monotonic() + PATIENCE
        while len(list(grid.get_node_ids())) < application.nodes:
            if time.monotonic() > end:
                raise TimeoutError(f"not all of {application.nodes} nodes came up")
            time.sleep(0.1)
        theirs = load_app(application.server, RuntimeError, folder)
        lead_server(theirs, grid, application, cell, stage)

    simulate_app(
        server,
        application.client,
        folder=folder,
        nodes=application.nodes,
        run_config=application.run_config,
    )
