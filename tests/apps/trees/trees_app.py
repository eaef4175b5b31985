"""trees: a model of bytes, as boosted trees have it; every node adds its own to the ensemble."""

import json

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import IMAGES, LABELS, TEST, share

client = ClientApp()
server = ServerApp()


def blob(models):
    """Return models as a record of bytes."""
    return ArrayRecord([np.frombuffer(json.dumps(models).encode(), np.uint8)])


def models_of(arrays):
    """Read them back."""
    return json.loads(arrays["0"].numpy().tobytes())


@client.train()
def train(message, context):
    """Answer with the node's class centroids."""
    images, labels = share(context)
    centroids = [images[labels == digit].mean(0).round(3).tolist() for digit in range(10)]
    metrics = MetricRecord({"num-examples": len(images)})
    content = RecordDict({"arrays": blob([centroids]), "metrics": metrics})
    return Message(content, reply_to=message)


class Bagging(FedAvg):
    """Put the nodes' models side by side."""

    def aggregate_train(self, server_round, replies):
        """Collect."""
        good = [reply.content for reply in replies if not reply.has_error()]
        return blob([model for held in good for model in models_of(held["arrays"])]), None


def global_evaluate(server_round, arrays):
    """Let the models vote on the server's digits."""
    votes = np.zeros((TEST, 10))
    for centroids in models_of(arrays):
        distances = ((IMAGES[:TEST, None] - np.array(centroids)[None]) ** 2).sum(-1)
        votes[np.arange(TEST), distances.argmin(1)] += 1
    return MetricRecord({"accuracy": float((votes.argmax(1) == LABELS[:TEST]).mean())})


@server.main()
def main(grid, context):
    """One round is all that bagging needs."""
    strategy = Bagging(fraction_evaluate=0.0)
    strategy.start(grid, blob([]), num_rounds=1, evaluate_fn=global_evaluate)
