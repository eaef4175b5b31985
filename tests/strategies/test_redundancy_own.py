"""Redundancy with somebody's own model, loss and data: a whole ServerApp and ClientApp."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import nn
from torch.utils.data import Dataset

from clients.redundancy import FileWorker
from fedrobust.flower import InProcessGrid
from fedrobust.flower.commit_reveal import setting
from strategies import RedundantStrategy


class Circles(Dataset):
    """Points inside and outside of a circle."""

    def __init__(self):
        self.x = torch.rand(560, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], (self.x[i].norm() < 0.8).float()


def net():
    torch.manual_seed(0)
    hidden = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    return nn.Sequential(hidden, nn.Flatten(0))


LOSS = nn.BCEWithLogitsLoss()
RESULT = "result.json"
server, client = ServerApp(), ClientApp()
worker = FileWorker(model=net, loss=LOSS, data=Circles())


@server.main()
def main(grid, context):
    strategy = RedundantStrategy(model=net, loss=LOSS, data=Circles(), workers=7, replication=3,
                                 q=2, batch=280, server_lr=1.0)  # fmt: skip
    rounds = int(context.run_config.get("rounds", 3))
    final = strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds)
    told = {"rows": strategy.history, "accuracy": accuracy(final.arrays)}
    home = context.run_config.get("output") or os.environ["REDUNDANCY_OUTPUT"]
    Path(str(home), RESULT).write_text(json.dumps(told))


@client.train()
def train(message, context):
    if worker_of(message, context) in (0, 1):  # two of the seven are Byzantine
        return byzantine(message, context)
    return worker(message, context)


def worker_of(message, context):
    return context.node_config["partition-id"]


def byzantine(message, context):
    """Answer nonsense where values are asked for: negated sums and files."""
    reply = worker(message, context)
    if setting(message, "stage") in ("sum", "reveal"):
        arrays = reply.content["arrays"]
        for name in list(arrays):
            arrays[name] = ArrayRecord({"x": -1 * torch.from_numpy(arrays[name].numpy())})["x"]
    return reply


def accuracy(arrays):
    module, data = net().eval(), Circles()
    module.load_state_dict(arrays.to_torch_state_dict())
    inside = torch.tensor([float(data[i][1]) for i in range(len(data))])
    return float(((module(data.x) > 0).float() == inside).float().mean())


def app(message, context):
    return client(message, context)


def test_an_apps_own_model_and_data_in_process(tmp_path):
    grid = InProcessGrid(app, clients=7, run_config={})
    context = grid.contexts[1]
    context.run_config = {"output": str(tmp_path), "rounds": 60}
    server(grid, context)
    told = json.loads((tmp_path / RESULT).read_text())
    assert told["accuracy"] > 0.85
    assert set(told["rows"][-1]["proven"]) <= {"0", "1"}
    assert told["rows"][-1]["proven"]
    assert all("kept" not in row for row in told["rows"])


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_same_app_in_flowers_simulation(tmp_path):
    """Seven nodes on Ray: the same rows as in process, bit for bit."""
    results = {}
    for way in ("process", "flower"):
        home = tmp_path / way
        home.mkdir()
        if way == "process":
            grid = InProcessGrid(app, clients=7, run_config={})
            context = grid.contexts[1]
            context.run_config = {"output": str(home), "rounds": 3}
            server(grid, context)
        else:
            code = SIMULATE.format(home=str(home))
            subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
        results[way] = json.loads((home / RESULT).read_text())
    found = [
        [
            (row["kept_files"], row["bytes_by_stage"]["commit"], "kept" in row)
            for row in told["rows"]
        ]
        for told in results.values()
    ]
    assert found[0] == found[1]
    assert results["flower"]["rows"][-1]["proven"]
    assert results["flower"]["accuracy"] == pytest.approx(results["process"]["accuracy"], abs=0.05)


SIMULATE = """
import os
os.environ["REDUNDANCY_OUTPUT"] = {home!r}
from flwr.simulation import run_simulation
from tests.strategies.test_redundancy_own import client, server
run_simulation(
    server_app=server,
    client_app=client,
    num_supernodes=7,
    backend_config={{"client_resources": {{"num_cpus": 1}}, "init_args": {{"num_cpus": 2}}}},
)
"""
