"""asynchronous: FedAsync (Xie et al., 2019, Algorithm 1, polynomial staleness), as a strategy.

One message goes out at a time; whatever reply has come is mixed in, and its node is asked again.
"""

import time

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg, Result
from task import initial, layers_of, measure, record, share
from task import train as fit

MIXING, PATIENCE = 0.6, 20.0  # share of a fresh reply; seconds without any reply

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


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    loss, accuracy = measure(layers_of(arrays))
    return MetricRecord({"accuracy": accuracy, "loss": loss})


class FedAsync(FedAvg):
    """Mix replies as they come; ``version`` counts the models."""

    def start(self, grid, initial_arrays, replies, evaluate_fn, together=False):
        """Lead until so many replies are mixed in, or none comes any more."""
        self.layers, self.version, self.sent = layers_of(initial_arrays), 0, {}
        result = Result()
        result.evaluate_metrics_serverapp[0] = evaluate_fn(0, initial_arrays)
        nodes = sorted(grid.get_node_ids())
        for group in [nodes] if together else [[node] for node in nodes]:
            self.ask(grid, group)
        end = time.monotonic() + PATIENCE
        while self.version < replies and self.sent and time.monotonic() < end:
            came = list(grid.pull_messages(list(self.sent)))
            for reply in came:
                self.mix(reply)
                self.ask(grid, [reply.metadata.src_node_id])
                end = time.monotonic() + PATIENCE
            if not came:
                time.sleep(0.05)
        result.arrays = record(self.layers)
        result.evaluate_metrics_serverapp[self.version] = evaluate_fn(self.version, result.arrays)
        return result

    def ask(self, grid, nodes):
        """Send the newest model."""
        config = ConfigRecord({"version": self.version})
        content = RecordDict({"arrays": record(self.layers), "config": config})
        ids = grid.push_messages([Message(content, node, "train") for node in nodes])
        self.sent |= dict.fromkeys(ids, self.version)

    def mix(self, reply):
        """Move towards a reply, the less the staler it is."""
        staleness = self.version - self.sent.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return
        share = MIXING / (1 + staleness) ** 0.5
        theirs = layers_of(reply.content["arrays"])
        pairs = zip(self.layers, theirs, strict=True)
        self.layers = [((1 - share) * own + share * new).astype("float32") for own, new in pairs]
        self.version += 1


@server.main()
def main(grid, context):
    """Lead."""
    settings = context.run_config
    result = FedAsync().start(
        grid, record(initial()), settings["replies"], global_evaluate, settings["together"]
    )
    print("final", result.evaluate_metrics_serverapp)
