"""float64: arrays in float64 under the names 0, 1, 2, 3; one metric is a list."""

import random

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import initial, measure, share
from task import train as fit

client = ClientApp()
server = ServerApp()


def wide(layers):
    """Return the layers as a record of float64 arrays, as scikit-learn's models give them."""
    return ArrayRecord([np.asarray(layer, np.float64) for layer in layers])


@client.train()
def train(message, context):
    """Train on the node's own digits."""
    images, labels = share(context)
    layers = fit(message.content["arrays"].to_numpy_ndarrays(), images, labels)
    metrics = MetricRecord({"num-examples": len(images), "random_metric": [random.random()] * 3})
    content = RecordDict({"arrays": wide(layers), "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message, context):
    """Measure on the node's own digits."""
    images, labels = share(context)
    loss, accuracy = measure(message.content["arrays"].to_numpy_ndarrays(), images, labels)
    told = {"num-examples": len(images), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    loss, accuracy = measure(arrays.to_numpy_ndarrays())
    return MetricRecord({"accuracy": accuracy, "loss": loss})


@server.main()
def main(grid, context):
    """Lead the rounds."""
    strategy = FedAvg()
    result = strategy.start(
        grid=grid,
        initial_arrays=wide(initial()),
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=global_evaluate,
    )
    print("final", result.evaluate_metrics_serverapp)
