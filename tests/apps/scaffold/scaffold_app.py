"""scaffold: two records of differences; each node keeps its control variate in its state."""

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from task import initial, layers_of, measure, record, share
from task import train as fit

client = ClientApp()
server = ServerApp()
STEPS = 36  # local steps, for the size of the variates


@client.train()
def train(message, context):
    """Answer with the difference of the model, and of the control variate."""
    images, labels = share(context)
    before = layers_of(message.content["model"])
    held = context.state.array_records.get("variate")
    own = layers_of(held) if held is not None else [np.zeros_like(x) for x in before]
    common = layers_of(message.content["variate"])
    after = fit(before, images, labels)
    delta = [b - a for a, b in zip(before, after, strict=True)]
    variate = [o - c - d / STEPS for o, c, d in zip(own, common, delta, strict=True)]
    context.state["variate"] = record(variate)
    change = [v - o for v, o in zip(variate, own, strict=True)]
    content = RecordDict(
        {
            "delta": record(delta),
            "variate": record(change),
            "metrics": MetricRecord({"num-examples": len(images)}),
        }
    )
    return Message(content, reply_to=message)


class Scaffold(FedAvg):
    """Add the mean of the differences."""

    def __init__(self):
        super().__init__(fraction_evaluate=0.0)
        self.model = initial()
        self.variate = [np.zeros_like(x) for x in self.model]

    def configure_train(self, server_round, arrays, config, grid):
        """Send the model and the common variate."""
        content = RecordDict({"model": record(self.model), "variate": record(self.variate)})
        return self._construct_messages(content, list(grid.get_node_ids()), "train")

    def aggregate_train(self, server_round, replies):
        """Average both records."""
        good = [reply.content for reply in replies if not reply.has_error()]
        if not good:
            return None, None
        for held, name in ((self.model, "delta"), (self.variate, "variate")):
            stacks = zip(*(layers_of(content[name]) for content in good), strict=True)
            for layer, stack in zip(held, stacks, strict=True):
                layer += np.mean(stack, axis=0)
        return record([layer.copy() for layer in self.model]), None


def global_evaluate(server_round, arrays):
    """Measure on the server's digits."""
    loss, accuracy = measure(layers_of(arrays))
    return MetricRecord({"accuracy": accuracy, "loss": loss})


@server.main()
def main(grid, context):
    """Lead the rounds."""
    strategy, rounds = Scaffold(), context.run_config["num-server-rounds"]
    strategy.start(grid, ArrayRecord(record(initial())), rounds, evaluate_fn=global_evaluate)
