"""Redundancy with somebody's own model, loss and data: a whole ServerApp and ClientApp."""

from __future__ import annotations

import json
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
    rounds = int(context.run_config.get("rounds", 2))
    final = strategy.start(grid, strategy.initial_arrays(), num_rounds=rounds)
    told = {"rows": strategy.history, "accuracy": accuracy(final.arrays)}
    Path(str(context.run_config["output"]), RESULT).write_text(json.dumps(told))


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


@pytest.mark.slow
def test_the_same_app_in_flowers_simulation(tmp_path):
    """Seven nodes on Ray: the same rows as in process, bit for bit."""
    from flwr.simulation import legacy_app as _  # noqa: F401

