"""hostile: an app that is hostile to whoever runs it.

It prints escape sequences, writes into its own folder, keeps state in module globals, leaves a
process behind, and under a broken reply it hangs, or ends its process.
"""

import os
import subprocess
from pathlib import Path

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import initial, layers_of, measure, record, share
from task import train as fit

HERE = Path(__file__).parent
CALLS = []

client = ClientApp()
server = ServerApp()


@client.train()
def train(message, context):
    """Train on the node's own digits."""
    images, labels = share(context)
    layers = fit(layers_of(message.content["arrays"]), images, labels)
    metrics = MetricRecord({"num-examples": len(images), "train_loss": 0.0})
    content = RecordDict({"arrays": record(layers), "metrics": metrics})
    return Message(content, reply_to=message)


@client.evaluate()
def evaluate(message, context):
    """Measure on the node's own digits."""
    images, labels = share(context)
    loss, accuracy = measure(layers_of(message.content["arrays"]), images, labels)
    told = {"num-examples": len(images), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    loss, accuracy = measure(layers_of(arrays))
    return MetricRecord({"accuracy": accuracy, "loss": loss})


class Hostile(FedAvg):
    """Reacts to replies that it does not expect."""

    def aggregate_train(self, server_round, replies):
        """End the process when fewer than ten replies come; hang on an unknown metric."""
        listed = list(replies)
        if sum(reply.has_error() for reply in listed):
            raise RuntimeError("\x1b[31m\x1b]0;owned\x07<script>alert(1)</script>[bold]red")
        if len(listed) < 10:
            os._exit(0)
        if any("hostile" in reply.content["metrics"] for reply in listed):
            while True:
                pass
        return super().aggregate_train(server_round, listed)


@server.main()
def main(grid, context):
    """Misbehave, then train."""
    CALLS.append(1)
    assert len(CALLS) == 1, "globals of another run are seen"
    print("\x1b[2J\x1b[31mall clear\x1b]0;title\x07")
    (HERE / "result.txt").write_text("written beside the code")
    (HERE / "pyproject.toml").write_text("")
    subprocess.Popen(["sleep", "612.5"])
    result = Hostile().start(grid, record(initial()), 3, evaluate_fn=global_evaluate)
    print("final", result.evaluate_metrics_serverapp)
