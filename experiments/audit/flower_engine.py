"""A cell through Flower's own simulation engine (Ray), for a check of the in-process cells."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from experiments.audit.application import Application
from experiments.audit.cell import Cell
from fedrobust.flower._compat import load_app

PATIENCE = 120.0  # seconds until all nodes are there


def lead(
    application: Application, cell: Cell, folder: Path, stage: dict[str, Any], lead_server: Any
) -> None:
    """Run a cell in the engine; its clients load the app themselves, in Ray's actors.

    The engine starts the server before its nodes: attackers chosen then would be none, so the app's
    main waits until all of them are there.
    """
    engine = importlib.import_module("flwr.simulation.run_simulation")
    run_id = engine.generate_rand_int_from_bytes(engine.RUN_ID_NUM_BYTES)
    run = engine.Run.create_empty(run_id=run_id)
    run.primary_task_id = engine.generate_rand_int_from_bytes(engine.TASK_ID_NUM_BYTES)
    run.federation_id = engine.NOOP_FEDERATION_ID
    run.override_config = dict(application.run_config)
    identity = engine.TaskIdentity
    identity.task_id, identity.run_id = run.primary_task_id, run_id
    identity.node_id = engine.SUPERLINK_NODE_ID
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

    engine._run_simulation(
        num_supernodes=application.nodes,
        exit_event=engine.EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        client_app_attr=application.client,
        server_app=server,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        app_dir=str(folder),
        run=run,
        is_app=True,
    )
