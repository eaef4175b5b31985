"""batchnorm: a PyTorch model with BatchNorm: its counters are int64."""

import random

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from task import IMAGES, LABELS, TEST, share
from torch import nn

client = ClientApp()
server = ServerApp()


def network():
    """Return the model, always with the same first weights."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def measure(state, images, labels):
    """Return the accuracy of a state."""
    model = network()
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        predicted = model(torch.from_numpy(images)).argmax(1)
    return float((predicted == torch.from_numpy(labels)).float().mean())


@client.train()
def train(message, context):
    """Train on the node's own digits."""
    images, labels = share(context)
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model.train()
    draws = torch.Generator().manual_seed(random.randrange(2**31))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for _ in range(4):
        for rows in torch.randperm(len(y), generator=draws).split(16):
            if len(rows) > 1:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    arrays = ArrayRecord(model.state_dict())
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message, context):
    """Measure on the node's own digits."""
    images, labels = share(context)
    accuracy = measure(message.content["arrays"].to_torch_state_dict(), images, labels)
    told = MetricRecord({"num-examples": len(labels), "accuracy": accuracy})
    return Message(RecordDict({"metrics": told}), reply_to=message)


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    accuracy = measure(arrays.to_torch_state_dict(), IMAGES[:TEST], LABELS[:TEST])
    return MetricRecord({"accuracy": accuracy})


@server.main()
def main(grid, context):
    """Lead the rounds."""
    adam = context.run_config["strategy"] == "FedAdam"
    strategy = FedAdam(eta=0.1) if adam else FedAvg()
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(network().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
